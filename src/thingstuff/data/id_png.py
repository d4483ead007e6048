"""PNGs that hold a number for each pixel: segment ids as colours, R + 256 G + 65536 B, or numbers as grey values or palette."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import kornia_rs.io as kornia
import numpy as np
from jaxtyping import Int32, UInt8, UInt32
from PIL import PngImagePlugin

from thingstuff.data.coco_json import pixels
from thingstuff.errors import AnnotationError
from thingstuff.structures.images import DEFAULT_MAX_PIXELS
from thingstuff.structures.panoptic import ids_of_colours

KEPT = 2**25 - 2**16  # bytes, a little below 32 MiB
HEADER = 33  # bytes of the signature and the first chunk
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
    return ids_of_colours(read_colours(path, max_pixels))


def read_colours(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> UInt8[np.ndarray, "height width channels"]:
    """RGB or RGBA as it is in a PNG of segment ids; raises as `read_id_png`."""
    _keep_freed_blocks()
    with _opened(path, max_pixels, COLOURED) as (file, size, kind, _):
        # in a sixth of Pillow's time, though it holds the interpreter meanwhile: threads do not decode side by side
        return kornia.decode_image_png_u8(file.read(), size, "rgb" if kind == RGB else "rgba")


def read_number_png(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> Int32[np.ndarray, "height width"]:
    """The numbers of a PNG's pixels: grey values of 8 or 16 bits, or places in its palette, whose colours are for people.

    Raises:
        AnnotationError: not there, broken, larger than `max_pixels`, or of another kind.
    """
    with _opened(path, max_pixels, NUMBERED) as (file, size, kind, bits):
        if kind == PALETTE:  # of which kornia gives the colours
            with PngImagePlugin.PngImageFile(file) as image:
                return np.asarray(image).astype(np.int32)
        decode = kornia.decode_image_png_u8 if bits == 8 else kornia.decode_image_png_u16
        return decode(file.read(), size, "mono")[..., 0].astype(np.int32)


@cache
def _keep_freed_blocks() -> None:
    """Have maps that come and go use the same memory again.

    glibc gives blocks back to the system as soon as they are freed, and the next map is then made of new pages, which takes as
    long as decoding it. How large a block must be for that is the size of the largest one freed so far, up to 32 MiB, so one is
    freed that was never written to. Elsewhere this does nothing.
    """
    np.empty(KEPT, np.uint8)


@contextmanager
def _opened(path: Path, max_pixels: int, accepted: _Accepted) -> Iterator[tuple[BinaryIO, tuple[int, int], int, int]]:
    """The file; (height, width), kind and bits by its header. Decoded within the block, where what goes wrong names the file."""
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER)
            size = _check_header(header, path, max_pixels, accepted)  # before anything is made of that size
            file.seek(0)
            yield file, size, header[25], header[24]
    except AnnotationError:
        raise
    except FileNotFoundError as error:
        raise AnnotationError(f"{path}: does not exist; put the PNG there, or remove its annotation") from error
    except Exception as error:  # decoders raise many kinds on broken files
        raise AnnotationError(f"{path}: can't be read: {error}; replace it") from error


def png_size(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of a PNG of ids by its header; raises as `read_id_png`."""
    try:
        with open(path, "rb") as file:
            return _check_header(file.read(HEADER), path, max_pixels, COLOURED)
    except OSError as error:
        raise AnnotationError(f"{path}: can't be read: {error.strerror or error}; replace it") from error


def _check_header(header: bytes, path: Path, max_pixels: int, accepted: _Accepted) -> tuple[int, int]:
    """(height, width), from the signature and the first chunk of a PNG."""
    if len(header) < HEADER or not header.startswith(b"\x89PNG\r\n\x1a\n") or header[12:16] != b"IHDR":
        raise AnnotationError(f"{path}: is no PNG; segment ids need a PNG, which keeps every bit of them")
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    depth, kind = header[24], header[25]
    depths, wanted = accepted
    if depth not in depths.get(kind, ()):
        raise AnnotationError(f"{path}: is a PNG of {KINDS.get(kind, 'an unknown kind')} with {depth} bits; {wanted}")
    if height * width > max_pixels:
        raise AnnotationError(
            f"{path}: has {pixels((height, width))}, more than the limit of {max_pixels:,} pixels; "
            "raise the limit (--max-pixels, in Python max_pixels) if it should"
        )
    return height, width
