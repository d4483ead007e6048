"""From files and arrays to the network's input: `read_image`, `Preprocessing`, `ImageBatch`, and the training `Targets`.

    source -> read_image -> HxWx3 uint8 RGB -> Preprocessing.batch -> ImageBatch (pixels, sizes)

Sizes are (height, width) throughout.
"""

import io
import math
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from PIL.ImageFile import ImageFile
from torch import Tensor

from thingstuff.errors import ConfigError, ImageError, PagesWarning, SizeError
from thingstuff.structures.bit_depth import (
    USUAL_DEPTHS,
    bits_in_use,
    check_bit_depth,
    decode_lower_bytes,
    is_deep_colour,
    stated_bits,
)

DEFAULT_MAX_PIXELS = 200_000_000  # about 14,000 x 14,000; a decoded image takes 3 bytes a pixel
IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB on the 0..255 scale
IMAGENET_STD = (58.395, 57.12, 57.375)

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
      is read as 8, 10, 12 or 14 bits, with a BitDepthWarning. 16-bit samples with transparency are of the full range.
    - Floats must lie in 0..1 (within 0.0001) and become round(255 x).
    - Transparency is composited on white, since the colour hidden under it is arbitrary.

    Raises:
        ImageError: no such file, not an image, truncated, a range nobody can guess, samples beyond `bit_depth`, or more than
            `max_pixels` pixels, which is read from the header before anything is decoded. The message names the file.
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
    if isinstance(source, Tensor):
        return _read_tensor(source, bit_depth)
    if isinstance(source, np.ndarray):
        return _read_array(source, f"array {source.dtype} {source.shape}", bit_depth)
    raise ImageError(
        f"an image can be a path, the bytes of a file, a PIL image, a numpy array or a torch tensor, not {type(source).__name__}"
    )


def _read_file(path: Path, max_pixels: int, bit_depth: int | None) -> UInt8[np.ndarray, "height width 3"]:
    try:
        with path.open("rb") as stream:
            return _read_stream(stream, str(path), max_pixels, bit_depth)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, not an image file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: can't be opened ({error})") from error


def _read_stream(stream: Any, name: str, max_pixels: int, bit_depth: int | None) -> UInt8[np.ndarray, "height width 3"]:
    image = _opened(stream, name)
    if is_deep_colour(image):
        pixels = _read_deep_colour(image, stream, name, max_pixels, bit_depth)
    else:
        pixels = _read_pillow(image, name, max_pixels, bit_depth)
    pages = _pages(image)
    if pages > 1:
        warnings.warn(
            f"{name}: has {pages} pages (or frames), of which the first is read; save each as a file of its own to have them all",
            PagesWarning,
            stacklevel=2,
        )
    return pixels


def _opened(stream: Any, name: str) -> ImageFile:
    """The image of a file by its header; nothing is decoded yet."""
    prefix = stream.read(16)
    if not prefix:
        raise ImageError(f"{name}: is empty (0 bytes)")
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


def _pages(image: Image.Image) -> int:
    """Pages or frames of a file whose first one has been read. The pictures beside a phone's photo (MPO) are none."""
    if image.format == "MPO":
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # a broken later page leaves the first one whole
        return 1


def _read_pillow(image: Image.Image, name: str, max_pixels: int, bit_depth: int | None) -> UInt8[np.ndarray, "height width 3"]:
    width, height = image.size
    if width == 0 or height == 0:
        raise ImageError(f"{name}: has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width:,} x {height:,} = {width * height:,} pixels is over the limit of {max_pixels:,}; "
            "raise the limit (--max-pixels, in Python max_pixels) if the file can be trusted and memory allows 3 bytes a pixel"
        )
    stated = stated_bits(image)
    with _damage_named(name):
        with _PILLOW_LIMIT.lifted_for(width * height):
            image.load()
        upright = _upright(image)
        packed = _packed_bits(image)
        largest = _largest_sample(upright, image.format)
    depth = packed or (8 if largest is None else bits_in_use(largest, stated, bit_depth, name))
    with _damage_named(name):
        pixels = np.empty((upright.height, upright.width, 3), np.uint8)
        for top, strip in _strips(upright):
            _spread(_strip_samples(strip, image.format, depth, name), pixels[top : top + strip.height])
        return pixels


def _read_deep_colour(
    image: ImageFile, stream: Any, name: str, max_pixels: int, bit_depth: int | None
) -> UInt8[np.ndarray, "height width 3"]:
    """RGB of 16-bit samples. The lower 8 bits are decoded where some of them are wanted, which is in data of fewer bits."""
    stated = stated_bits(image)
    upper = _read_pillow(image, name, max_pixels, None)
    highest = upper.max()
    if bit_depth is None and stated is None and highest >= 2 ** (USUAL_DEPTHS[-1] - 8):
        return upper
    stream.seek(0)
    again = _opened(stream, name)
    decode_lower_bytes(again)
    lower = _read_pillow(again, name, max_pixels, None)
    largest = int(highest) << 8 | int(lower[upper == highest].max())
    depth = bits_in_use(largest, stated, bit_depth, name)
    lower >>= np.uint8(depth - 8)
    upper <<= np.uint8(16 - depth)  # what is shifted out is 0: no sample has more bits
    return upper | lower


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
_TIFF_BITS_PER_SAMPLE = 258


def _upright(image: Image.Image) -> Image.Image:
    """The image as it is meant to be seen: EXIF orientation applied."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing about orientation and leaves the pixels intact
        orientation = 1
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _packed_bits(image: Image.Image) -> int | None:
    """Bits that a TIFF packs into fewer than 16 a sample; Pillow keeps their value."""
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE)
    return int(bits[0]) if isinstance(bits, tuple) and 8 <= bits[0] < 16 else None


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in parts that are small enough to be converted, from the top, each with its first row's place."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield top, image if bottom - top == image.height else image.crop((0, top, image.width, bottom))


def _is_deep_grey(image: Image.Image, format_: str | None) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and format_ in ("PNG", "PPM"))  # 16 bits that Pillow widens to 32


def _largest_sample(image: Image.Image, format_: str | None) -> int | None:
    """Of a grey image of 16 bits; None for others."""
    if not _is_deep_grey(image, format_):
        return None
    return max(int(np.asarray(strip).max()) for _, strip in _strips(image))


def _strip_samples(image: Image.Image, format_: str | None, depth: int, name: str) -> UInt8[np.ndarray, "height width *channels"]:
    """8-bit grey, or RGB with a third axis."""
    mode = image.mode
    if _is_deep_grey(image, format_):
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
        depth = bits_in_use(int(values.max()), None, bit_depth, name)
        return (values >> (depth - 8)).astype(np.uint8)
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


def _read_tensor(tensor: Tensor, bit_depth: int | None) -> UInt8[np.ndarray, "height width 3"]:
    name = f"tensor {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    values = tensor.detach().cpu()
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    if values.ndim == 3 and values.shape[0] in (1, 3, 4):
        values = values.permute(1, 2, 0)  # height width channels
    return _read_array(values.numpy(), name, bit_depth)


@dataclass(frozen=True)
class ImageSize:
    """One image of a batch: (height, width) of the network's input without padding, and of the original."""

    input: tuple[int, int]
    original: tuple[int, int]


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images ready for a network: normalised, padded with zeros (the mean colour) at the right and the bottom."""

    pixels: Float[Tensor, "batch 3 height width"]
    sizes: tuple[ImageSize, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) != self.pixels.shape[0]:
            raise SizeError(f"a batch of {self.pixels.shape[0]} images needs as many sizes, got {len(self.sizes)}")

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str) -> "ImageBatch":
        return ImageBatch(self.pixels.to(device), self.sizes)

    def by_padded_size(self, pad_multiple: int) -> list[tuple[tuple[int, ...], "ImageBatch"]]:
        """Which images are of one size when each is padded for itself, to multiples of a number, and a batch of these alone."""
        members: dict[tuple[int, ...], list[int]] = {}
        for image, size in enumerate(self.sizes):
            alone = (
                min(_round_up(side, pad_multiple), most) for side, most in zip(size.input, self.pixels.shape[-2:], strict=True)
            )
            members.setdefault(tuple(alone), []).append(image)
        return [
            (tuple(images), ImageBatch(self.pixels[images, :, :height, :width], tuple(self.sizes[image] for image in images)))
            for (height, width), images in members.items()
        ]


class Resize(Enum):
    """How an image is brought to the network's input size; each peer's networks were trained with its own way."""

    ANTIALIASED = "antialiased"  # ours: bilinear with antialias on 8-bit pixels; sizes as PILLOW
    TORCHVISION = "torchvision"  # normalise, then bilinear without antialias; sides are rounded down
    PILLOW = "pillow"  # detectron2: Pillow's bilinear on 8-bit pixels, which has antialias
    OPENCV = "opencv"  # mmdet: OpenCV's bilinear on 8-bit pixels, which has none


@dataclass(frozen=True)
class Preprocessing:
    """How images become a network's input. It travels inside the checkpoint.

    The short side is resized to `short_side`, unless the long side would exceed `long_side`; 0 leaves images at their own size.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN  # RGB, 0..255 scale
    std: tuple[float, float, float] = IMAGENET_STD  # RGB, 0..255 scale
    short_side: int = 800  # pixels; 0: own size
    long_side: int = 1333  # pixels
    pad_multiple: int = 32  # the batch's sides are multiples of it
    resize: Resize = Resize.ANTIALIASED
    shrink: bool = True  # False: a longer short side is left as it is, for objects whose size does not follow the image's
    square: bool = False  # True: both sides become short_side, whatever the aspect ratio was (YOLACT)
    stretch: bool = False  # True: each side is resized up to a multiple of pad_multiple instead of padded (MaskFormer)

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or not all(math.isfinite(v) for v in (*self.mean, *self.std)):
            raise ConfigError(
                f"mean and std need three finite numbers each (R, G, B on the 0..255 scale), got {self.mean} and {self.std}"
            )
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive, got {self.std}")
        if self.short_side < 0 or self.long_side < 1 or self.pad_multiple < 1:
            raise ConfigError(
                "short_side must be 0 (own size) or more, long_side and pad_multiple 1 or more, "
                f"got {self.short_side}, {self.long_side} and {self.pad_multiple}"
            )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network's input for an image of this size, before padding; no side is ever 0."""
        if height < 1 or width < 1:
            raise SizeError(f"an image of {height} x {width} pixels has no input size")
        if self.short_side == 0:
            return height, width
        if self.square:
            return self.short_side, self.short_side
        short, long = min(height, width), max(height, width)
        short_side = self.short_side if self.shrink else max(self.short_side, short)
        if self.resize is Resize.TORCHVISION:
            scale = min(short_side / short, self.long_side / long)
            sides = math.floor(height * scale), math.floor(width * scale)
        elif self.resize is Resize.OPENCV:
            # mmcv sorts the two limits: the larger is the long side's
            limit_short, limit_long = sorted((short_side, self.long_side))
            scale = min(limit_long / long, limit_short / short)
            sides = int(height * scale + 0.5), int(width * scale + 0.5)
        else:
            # the order of operations is detectron2's, so that rounding falls the same way
            scale = short_side / short
            scaled = (float(short_side), scale * width) if height < width else (scale * height, float(short_side))
            if max(scaled) > self.long_side:
                shrink = self.long_side / max(scaled)
                scaled = scaled[0] * shrink, scaled[1] * shrink
            sides = int(scaled[0] + 0.5), int(scaled[1] + 0.5)
        if self.stretch:
            # whole pixels first, downwards, as transformers does
            scale = min(short_side / short, self.long_side / long)
            sides = tuple(_round_up(int(side * scale + 1e-9), self.pad_multiple) for side in (height, width))
        return max(1, sides[0]), max(1, sides[1])

    def batch(
        self,
        images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        resize: bool = True,
        original_sizes: Sequence[tuple[int, int]] | None = None,
        device: torch.device | str = "cpu",
    ) -> ImageBatch:
        """Resize, normalise and pad RGB images into one batch.

        With `resize=False` images are taken as resized already, as training transforms do; `original_sizes` says what they were.
        Images reach `device` in 8 bits, a quarter of what the network takes, and what is done in floats is done there.
        """
        if len(images) == 0:
            raise SizeError("a batch needs at least one image")
        if original_sizes is not None and len(original_sizes) != len(images):
            raise SizeError(f"{len(images)} images need as many original sizes, got {len(original_sizes)}")
        prepared = [self._prepare(image, resize, device) for image in images]
        sizes = tuple(
            ImageSize(
                input=(int(pixels.shape[1]), int(pixels.shape[2])),
                original=(int(image.shape[0]), int(image.shape[1])) if original_sizes is None else original_sizes[position],
            )
            for position, (pixels, image) in enumerate(zip(prepared, images, strict=True))
        )
        height, width = (_round_up(max(size.input[side] for size in sizes), self.pad_multiple) for side in (0, 1))
        padded = torch.zeros(len(prepared), 3, height, width, device=device)
        for target, pixels in zip(padded, prepared, strict=True):
            inside = target[:, : pixels.shape[1], : pixels.shape[2]]
            inside.copy_(pixels)
            if pixels.dtype == torch.uint8:
                self._normalise(inside)
        return ImageBatch(padded, sizes)

    def _prepare(
        self, image: UInt8[np.ndarray, "_ _ 3"], resize: bool, device: torch.device | str
    ) -> UInt8[Tensor, "3 _ _"] | Float[Tensor, "3 _ _"]:
        """One image resized: in 8 bits, or normalised already where that comes first."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise SizeError(
                f"a batch is made of uint8 arrays (height, width, 3), got {image.dtype} {image.shape}; read_image gives them"
            )
        size = self.input_size(int(image.shape[0]), int(image.shape[1])) if resize else image.shape[:2]
        if size == image.shape[:2]:
            return _on_device(image, device)
        if self.resize is Resize.TORCHVISION:
            pixels = _on_device(image, device).float()
            self._normalise(pixels)
            return torch.nn.functional.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0]
        if self.resize is Resize.PILLOW:
            resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return _on_device(np.asarray(resized), device)
        if self.resize is Resize.OPENCV:
            return _on_device(_resize_as_opencv(image, size), device)
        pixels = _on_device(image, "cpu")[None]  # channels last in memory
        return torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)[0].to(
            device
        )

    def _normalise(self, pixels: Float[Tensor, "3 height width"]) -> None:
        """In place."""
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (self.mean, self.std))
        pixels.sub_(mean).div_(std)


def _on_device(image: UInt8[np.ndarray, "height width 3"], device: torch.device | str) -> UInt8[Tensor, "3 height width"]:
    return torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)


def _round_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _resize_as_opencv(image: UInt8[np.ndarray, "_ _ 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Bilinear without antialias in OpenCV's own 8-bit arithmetic (INTER_LINEAR), bit for bit.

    OpenCV keeps 11 bits of each weight and drops bits between the passes: a float computation is 1 off in every tenth sample.
    """
    height, width = int(image.shape[0]), int(image.shape[1])
    if (height, width) == (2 * size[0], 2 * size[1]):  # OpenCV turns an exact halving into the mean of 2 x 2
        quads = image.reshape(size[0], 2, size[1], 2, 3).astype(np.int32)
        return ((quads.sum(axis=(1, 3)) + 2) >> 2).astype(np.uint8)
    top, down = _opencv_taps(height, size[0])
    left, right = _opencv_taps(width, size[1])
    # at the left and right edge the outer tap gets no weight; at the top and bottom both taps fall on the same row instead
    right = np.where((left < 0) | (left >= width - 1), np.float32(0), right)
    left = left.clip(0, width - 1)
    next_left = (left + 1).clip(0, width - 1)
    weight_left, weight_right = (_opencv_weight(weight)[:, None] for weight in (np.float32(1) - right, right))
    weight_top, weight_down = (_opencv_weight(weight)[:, None, None] for weight in (np.float32(1) - down, down))

    def row_pass(rows: np.ndarray) -> np.ndarray:
        source = image[rows.clip(0, height - 1)].astype(np.int32)
        return (source[:, left] * weight_left + source[:, next_left] * weight_right) >> 4

    upper, lower = (weight_top * row_pass(top)) >> 16, (weight_down * row_pass(top + 1)) >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def _opencv_taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """For each target position the nearer-to-zero source position (-1 at the edge) and the weight of the one after it."""
    scale = 1.0 / (target / source)
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    return first, position - first.astype(np.float32)


def _opencv_weight(weight: np.ndarray) -> np.ndarray:
    return np.rint(weight * np.float32(2048)).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Targets:
    """What a network should find in one training image, in pixels of the network's input without padding."""

    image_id: int
    size: tuple[int, int]  # (height, width) of the input without padding
    boxes: Float[Tensor, "instances 4"]  # x1 y1 x2 y2, right and bottom exclusive
    classes: Int64[Tensor, " instances"]
    masks: Bool[Tensor, "instances height width"]
    is_crowd: Bool[Tensor, " instances"]

    def __post_init__(self) -> None:
        counts = {len(self.boxes), len(self.classes), len(self.masks), len(self.is_crowd)}
        if len(counts) > 1 or tuple(self.masks.shape[1:]) != tuple(self.size):
            raise SizeError(
                f"targets of image {self.image_id} disagree: boxes {tuple(self.boxes.shape)}, "
                f"classes {tuple(self.classes.shape)}, masks {tuple(self.masks.shape)}, "
                f"is_crowd {tuple(self.is_crowd.shape)}, size {self.size}"
            )

    def __len__(self) -> int:
        return len(self.classes)

    def to(self, device: torch.device | str) -> "Targets":
        return Targets(
            image_id=self.image_id,
            size=self.size,
            boxes=self.boxes.to(device),
            classes=self.classes.to(device),
            masks=self.masks.to(device),
            is_crowd=self.is_crowd.to(device),
        )
