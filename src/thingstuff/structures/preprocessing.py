"""From pixels to the network's input: `Preprocessing`, `ImageBatch`, and the training `Targets`.

    HxWx3 uint8 RGB -> Preprocessing.batch -> ImageBatch (pixels, sizes)

Sizes are (height, width) throughout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from thingstuff.errors import ConfigError, SizeError
from thingstuff.structures.bit_depth import check_bit_depth

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB on the 0..255 scale
IMAGENET_STD = (58.395, 57.12, 57.375)
PAD_MULTIPLE = 32  # of a batch's sides where nobody says otherwise: the largest stride of the usual backbones
MOST_NORM, LEAST_STD = 1e6, 1e-6  # of mean and std: no image has such ones, and float32 holds what comes of them
LARGEST_SIDE = 8192  # pixels of a network's input; more is a slip of the finger that would end in a full memory


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
        members: dict[tuple[int, int], list[int]] = {}
        for image, size in enumerate(self.sizes):
            alone = padded_alone(size.input, pad_multiple, self.pixels.shape[-2:])
            members.setdefault(alone, []).append(image)
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
    pad_multiple: int = PAD_MULTIPLE  # the batch's sides are multiples of it
    resize: Resize = Resize.ANTIALIASED
    shrink: bool = True  # False: a longer short side is left as it is, for objects whose size does not follow the image's
    square: bool = False  # True: both sides become short_side, whatever the aspect ratio was (YOLACT)
    stretch: bool = False  # True: each side is resized up to a multiple of pad_multiple instead of padded (MaskFormer)
    bit_depth: int | None = None  # of 16-bit images that it has learnt from; None: as read_image finds it in each

    def __post_init__(self) -> None:
        check_bit_depth(self.bit_depth)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(abs(v) <= MOST_NORM for v in (*self.mean, *self.std)):
            raise ConfigError(
                f"mean and std need three numbers each (R, G, B on the 0..255 scale), at most {MOST_NORM:,.0f}, "
                f"got {self.mean} and {self.std}"
            )
        if min(self.std) < LEAST_STD:
            raise ConfigError(f"std must be positive, at least {LEAST_STD}, got {self.std}")
        if self.short_side < 0 or self.long_side < 1 or self.pad_multiple < 1:
            raise ConfigError(
                "short_side must be 0 (own size) or more, long_side and pad_multiple 1 or more, "
                f"got {self.short_side}, {self.long_side} and {self.pad_multiple}"
            )
        for name in ("short_side", "long_side", "pad_multiple"):
            if getattr(self, name) > LARGEST_SIDE:
                raise ConfigError(f"{name} must be at most {LARGEST_SIDE} pixels, got {getattr(self, name)}")

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


def padded_alone(size: tuple[int, int], pad_multiple: int, batch: Sequence[int]) -> tuple[int, int]:
    """(height, width) of an image of a batch when it is padded for itself, to multiples of a number."""
    height, width = (min(_round_up(side, pad_multiple), most) for side, most in zip(size, batch, strict=True))
    return height, width


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
    pad_multiple: int = PAD_MULTIPLE  # of the image's preprocessing

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
            pad_multiple=self.pad_multiple,
        )
