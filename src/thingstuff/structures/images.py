"""From files and arrays to pixels: `read_image`.

    source -> read_image -> HxWx3 uint8 RGB

What follows, to a network's input, is in preprocessing.py.
"""

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.ImageFile import ImageFile

from thingstuff.errors import ImageError, PagesWarning, warn
from thingstuff.structures.bit_depth import (
    USUAL_DEPTHS,
    DeepSamples,
    bits_in_use,
    bits_needed,
    check_bit_depth,
    decode_lower_bytes,
    is_deep_colour,
    is_deep_grey,
    stated,
)
from thingstuff.structures.files import kind_unless_file

DEFAULT_MAX_PIXELS = 200_000_000  # about 14,000 x 14,000; a decoded image takes 3 bytes a pixel

# Formats are listed rather than "whatever Pillow opens", which includes EPS, a program that Ghostscript runs.
_FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "AVIF", "JPEG2000"),
    *("TGA", "PCX", "SGI", "DDS", "QOI"),
)
_STRIP_PIXELS = 1 << 24  # conversion works in strips, so that a large grey scan is never held as four-byte pixels
_FLOAT_SLACK = 1e-4  # resampling in float32 leaves values such as 1.0000001


def read_image(
    source: Any, max_pixels: int = DEFAULT_MAX_PIXELS, bit_depth: int | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Any image as 8-bit RGB, a fresh array that shares no memory with the source.

    `source` is a path, the bytes of a file, a PIL image, a numpy array (HxW, HxWx1, HxWx3 or HxWx4) or a torch tensor (the same,
    or channels first as torch has it; where both readings fit, such as 3 x 5 x 3, channels come first).

    - EXIF orientation is applied. Of a file of several pages, or an animation, the first is read, with a PagesWarning.
    - 16-bit samples, uint16 arrays too, become 8 bits by dropping lower ones: 8 of the full range, 4 of 12-bit data. The depth is
      `bit_depth` where it is given, else what the file states, else what the largest sample needs: up to 255, 1023, 4095 or 16383
      is read as 8, 10, 12 or 14 bits, with a BitDepthWarning. 16-bit files with transparency are of the full range.
    - Floats must lie in 0..1 (within 0.0001) and become round(255 x).
    - Transparency is composited on white, since the colour hidden under it is arbitrary.

    Raises:
        ImageError: no such file, a pipe or a device, not an image, truncated, a range nobody can guess, samples beyond
            `bit_depth`, or more than `max_pixels` pixels, which is read from the header before anything is decoded. The message
            names the file.
        ConfigError: `bit_depth` is not from 8 to 16.
    """
    check_bit_depth(bit_depth)
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source), max_pixels, bit_depth)
    if isinstance(source, (bytes, bytearray, memoryview)):
        name = f"image of {len(source):,} bytes"
        return _read_stream(io.BytesIO(source), name, max_pixels, bit_depth)
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or f"PIL image of mode {source.mode}")
        return _read_pillow(source, name, max_pixels, bit_depth)
    # torch takes seconds to import, and whoever has a tensor has done it
    if isinstance(source, getattr(sys.modules.get("torch"), "Tensor", ())):
        return _read_tensor(source, bit_depth)
    if isinstance(source, np.ndarray):
        return _read_array(source, f"array {source.dtype} {source.shape}", bit_depth)
    raise ImageError(
        f"an image can be a path, the bytes of a file, a PIL image, a numpy array or a torch tensor, not {type(source).__name__}"
    )


def deep_samples(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> DeepSamples | None:
    """Of a file of 16-bit samples, what its bit depth can be told from; None: others, of which the header alone is read.

    Raises:
        ImageError: as `read_image`.
    """
    name = str(path)
    with _opening(path) as stream:
        image = _opened(stream, name)
        told = stated(image)
        if is_deep_colour(image):
            upper = _read_pillow(image, name, max_pixels, None)
            return DeepSamples(_largest_colour(upper, _lower_bytes(stream, name, max_pixels)), told)
        if not is_deep_grey(image, image.format):
            return None
        _check_pixels(image, name, max_pixels)
        with _damage_named(name), _PILLOW_LIMIT.lifted_for(image.width * image.height):
            image.load()
            return DeepSamples(_largest_sample(image, image.format) or 0, told)


def _read_file(path: Path, max_pixels: int, bit_depth: int | None) -> UInt8[np.ndarray, "height width 3"]:
    with _opening(path) as stream:
        return _read_stream(stream, str(path), max_pixels, bit_depth)


@contextmanager
def _opening(path: Path) -> Iterator[Any]:
    try:
        if kind := kind_unless_file(path):
            raise ImageError(f"{path}: is {kind}, not an image file; save the image as a file and name that")
        with path.open("rb") as stream:
            yield stream
    except FileNotFoundError:
        leads = f"is a link to {os.readlink(path)}, which isn't there" if path.is_symlink() else "no such file"
        raise ImageError(f"{path}: {leads}") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: can't be opened ({error})") from error


def _read_stream(stream: Any, name: str, max_pixels: int, bit_depth: int | None) -> UInt8[np.ndarray, "height width 3"]:
    image = _opened(stream, name)
    if is_deep_colour(image):
        pixels = _read_deep_colour(image, stream, name, max_pixels, bit_depth)
    else:
        pixels = _read_pillow(image, name, max_pixels, bit_depth)
    if _has_more_pages(image):
        warn(
            f"{name}: has more than one page (or frame); the first is read, save each as a file of its own to have them all",
            PagesWarning,
        )
    return pixels


def _opened(stream: Any, name: str) -> ImageFile:
    """The image of a file by its header; nothing is decoded yet."""
    prefix = stream.read(16)
    if not prefix:
        raise ImageError(f"{name}: is empty (0 bytes)")
    prefix = prefix.ljust(16, b"\0")  # formats look for their marks without asking how long it is
    # Not Image.open: it enforces Pillow's own limit on pixels, a global that belongs to the caller's program.
    Image.init()
    reasons: list[str] = []
    for format_ in _FORMATS:
        if format_ not in Image.OPEN:  # this Pillow was built without it
            continue
        factory, accept = Image.OPEN[format_]
        try:
            accepted = accept is None or accept(prefix)
            if isinstance(accepted, str):  # "I know this file but was built without its decoder"
                reasons.append(accepted)
            elif accepted:
                stream.seek(0)
                return factory(stream, name)
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"{name}: {error} Its decoder enforces Pillow's own limit; raise PIL.Image.MAX_IMAGE_PIXELS"
            ) from error
        except Exception as error:  # each decoder raises its own kinds on a broken header; another may still accept the file
            if accept is not None:  # a format without a mark of its own, TGA, is no guess at what the file was meant to be
                reasons.append(f"{format_}: {error}")
    raise ImageError(f"{name}: not an image that can be read ({'; '.join(reasons) or 'unknown format'})")


def _has_more_pages(image: Image.Image) -> bool:
    """Pages or frames of a file whose first one has been read. The pictures beside a phone's photo (MPO) are none."""
    if image.format == "MPO":
        return False
    try:
        image.seek(1)  # to count them is to walk through them all, in every image of a set
    except Exception:  # there is none, or it is broken, which leaves the first one whole
        return False
    return True


def _check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width == 0 or height == 0:
        raise ImageError(f"{name}: has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width:,} x {height:,} = {width * height:,} pixels is over the limit of {max_pixels:,}; "
            "raise the limit (--max-pixels, in Python max_pixels) if the file can be trusted and memory allows 3 bytes a pixel"
        )


def _read_pillow(image: Image.Image, name: str, max_pixels: int, bit_depth: int | None) -> UInt8[np.ndarray, "height width 3"]:
    _check_pixels(image, name, max_pixels)
    told = stated(image)
    with _damage_named(name):
        with _PILLOW_LIMIT.lifted_for(image.width * image.height):
            image.load()
        upright = _upright(image)
        largest = _largest_sample(upright, image.format)
    depth = 8 if largest is None else bits_in_use(largest, told, bit_depth, name)
    with _damage_named(name):
        pixels = np.empty((upright.height, upright.width, 3), np.uint8)
        for top, strip in _strips(upright):
            _spread(_strip_samples(strip, image.format, depth, name), pixels[top : top + strip.height])
        return pixels


def _read_deep_colour(
    image: ImageFile, stream: Any, name: str, max_pixels: int, bit_depth: int | None
) -> UInt8[np.ndarray, "height width 3"]:
    """RGB of 16-bit samples. The lower 8 bits are decoded where some of them are wanted, which is in data of fewer bits."""
    told = stated(image)
    upper = _read_pillow(image, name, max_pixels, None)
    highest = upper.max()
    if bit_depth is None and told is None and highest >= 2 ** (USUAL_DEPTHS[-1] - 8):
        return upper
    lower = _lower_bytes(stream, name, max_pixels)
    depth = bits_in_use(_largest_colour(upper, lower), told, bit_depth, name)
    lower >>= np.uint8(depth - 8)
    upper <<= np.uint8(16 - depth)  # what is shifted out is 0: no sample has more bits
    return upper | lower


def _lower_bytes(stream: Any, name: str, max_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    stream.seek(0)
    again = _opened(stream, name)
    decode_lower_bytes(again)
    return _read_pillow(again, name, max_pixels, None)


def _largest_colour(upper: UInt8[np.ndarray, "height width 3"], lower: UInt8[np.ndarray, "height width 3"]) -> int:
    highest = upper.max()
    return int(highest) << 8 | int(lower[upper == highest].max())


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError and more on damaged data
        raise ImageError(f"{name}: damaged or truncated, {error or type(error).__name__}") from error


class _PillowLimit:
    """Pillow's own limit, a global of the caller's program that some decoders ask again while decoding.

    It is lifted only while an image above it, and within our own limit, is decoded; threads may overlap.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._value: int | None = None

    @contextmanager
    def lifted_for(self, pixels: int) -> Iterator[None]:
        with self._lock:
            lift = self._users > 0 or (Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS)
            if lift and self._users == 0:
                self._value, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._users += lift
        try:
            yield
        finally:
            with self._lock:
                self._users -= lift
                if lift and self._users == 0:
                    Image.MAX_IMAGE_PIXELS = self._value


_PILLOW_LIMIT = _PillowLimit()

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112


def _upright(image: Image.Image) -> Image.Image:
    """The image as it is meant to be seen: EXIF orientation applied."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing about orientation and leaves the pixels intact
        orientation = 1
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in parts that are small enough to be converted, from the top, each with its first row's place."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield top, image if bottom - top == image.height else image.crop((0, top, image.width, bottom))


def _largest_sample(image: Image.Image, format_: str | None) -> int | None:
    """Of a grey image of 16 bits; None for others."""
    if not is_deep_grey(image, format_):
        return None
    return max(int(np.asarray(strip).max()) for _, strip in _strips(image))


def _strip_samples(image: Image.Image, format_: str | None, depth: int, name: str) -> UInt8[np.ndarray, "height width *channels"]:
    """8-bit grey, or RGB with a third axis."""
    mode = image.mode
    if is_deep_grey(image, format_):
        return (np.asarray(image) >> (depth - 8)).astype(np.uint8)
    if mode == "I":
        raise ImageError(f"{name}: 32-bit integer samples have no agreed range; convert the file to 8 or 16 bits a sample")
    if mode == "F":
        return _to_uint8(np.asarray(image), name)
    if mode in ("1", "L") and "transparency" not in image.info:
        return np.asarray(image.convert("L"))
    return np.asarray(_flatten(image))


def _spread(samples: UInt8[np.ndarray, "height width *channels"], pixels: UInt8[np.ndarray, "height width 3"]) -> None:
    """Copy grey or RGB samples into RGB pixels."""
    if samples.ndim == 2:
        for channel in range(3):  # faster than one broadcast assignment
            pixels[..., channel] = samples
    else:
        pixels[...] = samples


def _flatten(image: Image.Image) -> Image.Image:
    """RGB, with what is transparent composited on white."""
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _to_uint8(values: np.ndarray, name: str, bit_depth: int | None = None) -> np.ndarray:
    """Samples of any accepted type as uint8."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        has_alpha = values.ndim == 3 and values.shape[2] == 4
        colours = values[..., :3] if has_alpha else values
        depth = bits_in_use(int(colours.max()), None, bit_depth, name)
        samples = (values >> (depth - 8)).astype(np.uint8)
        if has_alpha:  # of as many bits, or of more where it needs them
            alpha = values[..., 3]
            samples[..., 3] = alpha >> (max(depth, bits_needed(int(alpha.max()))) - 8)
        return samples
    if not np.issubdtype(values.dtype, np.floating):
        raise ImageError(
            f"{name}: samples must be uint8, uint16, bool or float 0..1; convert with .astype('uint8') if they are 0..255"
        )
    if np.isnan(values).any():
        raise ImageError(f"{name}: holds NaN; replace it before segmenting")
    low, high = float(values.min()), float(values.max())
    if low < -_FLOAT_SLACK or high > 1 + _FLOAT_SLACK:
        raise ImageError(
            f"{name}: float samples must lie in 0..1, these span {low:g}..{high:g}; divide by 255 or convert with "
            ".astype('uint8') if they are 0..255, undo the normalisation if they were normalised"
        )
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def _read_array(array: np.ndarray, name: str, bit_depth: int | None) -> UInt8[np.ndarray, "height width 3"]:
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (1, 3, 4)):
        hint = (
            "; channels come last in numpy, use array.transpose(1, 2, 0)"
            if array.ndim == 3 and array.shape[0] in (1, 3, 4)
            else ""
        )
        raise ImageError(f"{name}: an image has shape (height, width) or (height, width, 1, 3 or 4 channels){hint}")
    if array.size == 0:
        raise ImageError(f"{name}: has no pixels")
    samples = _to_uint8(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array, name, bit_depth)
    if samples.ndim == 3 and samples.shape[2] == 4:
        samples = np.asarray(_flatten(Image.fromarray(np.ascontiguousarray(samples), "RGBA")))
    pixels = np.empty((*samples.shape[:2], 3), np.uint8)
    _spread(samples, pixels)
    return pixels


def _read_tensor(tensor: Any, bit_depth: int | None) -> UInt8[np.ndarray, "height width 3"]:
    name = f"tensor {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    values = tensor.detach().cpu()
    if values.element_size() == 2 and values.is_floating_point():  # numpy has no bfloat16
        values = values.float()
    if values.ndim == 3 and values.shape[0] in (1, 3, 4):
        values = values.permute(1, 2, 0)  # height width channels
    return _read_array(values.numpy(), name, bit_depth)
