"""PNGs that hold a number for each pixel: segment ids as colours, R + 256 G + 65536 B, or numbers as grey values or palette."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt32
from PIL import PngImagePlugin

from thingstuff.data.coco_json import pixels
from thingstuff.errors import AnnotationError
from thingstuff.structures.images import DEFAULT_MAX_PIXELS

LARGEST_ID = 256**3 - 1  # three bytes of colour
GREY, RGB, PALETTE, RGBA = 0, 2, 3, 6  # kinds of PNG, as its header numbers them
KINDS = {GREY: "grey", RGB: "RGB", PALETTE: "a palette", 4: "grey with alpha", RGBA: "RGBA"}
_Accepted = tuple[dict[int, tuple[int, ...]], str]  # bits of each kind, and what to say of others
COLOURED: _Accepted = ({RGB: (8,), RGBA: (8,)}, "segment ids need RGB with 8 bits each (R + 256 G + 65536 B)")
NUMBERED: _Accepted = ({GREY: (8, 16), PALETTE: (1, 2, 4, 8)}, "numbers need grey of 8 or 16 bits, or a palette")


def read_id_png(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> UInt32[np.ndarray, "height width"]:
    """The segment ids that an RGB PNG paints; of RGBA the alpha is left aside, as panopticapi does.

    Raises:
        AnnotationError: not there, broken, larger than `max_pixels`, or no PNG with 8 bits for each of red, green and blue.
    """
    with _opened(path, max_pixels, COLOURED) as image:
        colours = image.tobytes("raw", "RGBX" if image.mode == "RGB" else "RGBA")
        return np.frombuffer(colours, "<u4").reshape(image.height, image.width) & np.uint32(LARGEST_ID)


def read_number_png(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> Int32[np.ndarray, "height width"]:
    """The numbers of a PNG's pixels: grey values of 8 or 16 bits, or places in its palette, whose colours are for people.

    Raises:
        AnnotationError: not there, broken, larger than `max_pixels`, or of another kind.
    """
    with _opened(path, max_pixels, NUMBERED) as image:
        return np.asarray(image).astype(np.int32)


@contextmanager
def _opened(path: Path, max_pixels: int, accepted: _Accepted) -> Iterator[PngImagePlugin.PngImageFile]:
    """The image, decoded within the block; what goes wrong there is an AnnotationError that names the file."""
    try:
        with open(path, "rb") as file:
            _check_header(file.read(33), path, max_pixels, accepted)
            file.seek(0)
            with PngImagePlugin.PngImageFile(file) as image:
                yield image
    except AnnotationError:
        raise
    except FileNotFoundError as error:
        raise AnnotationError(f"{path}: does not exist; put the PNG there, or remove its annotation") from error
    except Exception as error:  # Pillow raises many kinds on broken files
        raise AnnotationError(f"{path}: can't be read: {error}; replace it") from error


def png_size(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of a PNG of ids by its header; raises as `read_id_png`."""
    try:
        with open(path, "rb") as file:
            return _check_header(file.read(33), path, max_pixels, COLOURED)
    except OSError as error:
        raise AnnotationError(f"{path}: can't be read: {error.strerror or error}; replace it") from error


def _check_header(header: bytes, path: Path, max_pixels: int, accepted: _Accepted) -> tuple[int, int]:
    """(height, width), from the signature and the first chunk of a PNG."""
    if len(header) < 33 or not header.startswith(b"\x89PNG\r\n\x1a\n") or header[12:16] != b"IHDR":
        raise AnnotationError(f"{path}: is no PNG; segment ids need a PNG, which keeps every bit of them")
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    depth, kind = header[24], header[25]
    depths, wanted = accepted
    if depth not in depths.get(kind, ()):
        raise AnnotationError(f"{path}: is a PNG of {KINDS.get(kind, 'an unknown kind')} with {depth} bits; {wanted}")
    if height * width > max_pixels:
        raise AnnotationError(
            f"{path}: has {pixels((height, width))}, more than the limit of {max_pixels:,} pixels; raise max_pixels if it should"
        )
    return height, width
