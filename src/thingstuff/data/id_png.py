"""PNGs that paint segment ids: R + 256 G + 65536 B, 0 for void."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt32
from PIL import PngImagePlugin

from thingstuff.data.coco_json import pixels
from thingstuff.errors import AnnotationError
from thingstuff.structures.images import DEFAULT_MAX_PIXELS

LARGEST_ID = 256**3 - 1  # three bytes of colour


def read_id_png(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> UInt32[np.ndarray, "height width"]:
    """The segment ids that an RGB PNG paints; of RGBA the alpha is left aside, as panopticapi does.

    Raises:
        AnnotationError: not there, broken, larger than `max_pixels`, or no PNG with 8 bits for each of red, green and blue.
    """
    try:
        with open(path, "rb") as file:
            height, width = _check_header(file.read(33), path, max_pixels)
            file.seek(0)
            with PngImagePlugin.PngImageFile(file) as image:
                colours = image.tobytes("raw", "RGBX" if image.mode == "RGB" else "RGBA")
    except AnnotationError:
        raise
    except FileNotFoundError as error:
        raise AnnotationError(f"{path}: does not exist; put the PNG there, or remove its annotation") from error
    except Exception as error:  # Pillow raises many kinds on broken files
        raise AnnotationError(f"{path}: can't be read: {error}; replace it") from error
    return np.frombuffer(colours, "<u4").reshape(height, width) & np.uint32(LARGEST_ID)


def png_size(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of a PNG of ids by its header; raises as `read_id_png`."""
    try:
        with open(path, "rb") as file:
            return _check_header(file.read(33), path, max_pixels)
    except OSError as error:
        raise AnnotationError(f"{path}: can't be read: {error.strerror or error}; replace it") from error


def _check_header(header: bytes, path: Path, max_pixels: int) -> tuple[int, int]:
    """(height, width), from the signature and the first chunk of a PNG."""
    if len(header) < 33 or not header.startswith(b"\x89PNG\r\n\x1a\n") or header[12:16] != b"IHDR":
        raise AnnotationError(f"{path}: is no PNG; segment ids need a PNG, which keeps every bit of them")
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    depth, kind = header[24], header[25]
    if depth != 8 or kind not in (2, 6):
        kinds = {0: "grey", 2: "RGB", 3: "a palette", 4: "grey with alpha", 6: "RGBA"}
        raise AnnotationError(
            f"{path}: is a PNG of {kinds.get(kind, 'an unknown kind')} with {depth} bits; segment ids need RGB with 8 bits each "
            "(R + 256 G + 65536 B)"
        )
    if height * width > max_pixels:
        raise AnnotationError(
            f"{path}: has {pixels((height, width))}, more than the limit of {max_pixels:,} pixels; raise max_pixels if it should"
        )
    return height, width
