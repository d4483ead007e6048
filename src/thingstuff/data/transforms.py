"""Augmentation: one image and its objects in, the network's input and its training targets out.

    draw -> window of the image -> resize -> flips and quarter turns -> light and colour

Large-scale jitter (Ghiasi et al., 2021, arXiv:2012.07177, section 3) is the middle part with a wide `scale` and a `crop`. The
window is a rectangle of whole source pixels, so image and masks go through one and the same map, and only masks that meet it are
ever decoded: 375 objects on 1388 x 1040 pixels cost what the crop costs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from thingstuff.data.records import Record
from thingstuff.errors import ConfigError, SizeError
from thingstuff.structures.preprocessing import LARGEST_SIDE, Preprocessing, Targets

LARGEST_SCALE = 100  # and one over it is the smallest; beyond, nothing of an image is to be seen


class ScaleOf(Enum):
    """What a scale of 1 means."""

    IMAGE = "the image at its own size"
    CROP = "the whole image just fits into the crop"
    INPUT = "the size that the network's Preprocessing gives the image"


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image; every default but the scale leaves it as it is."""

    scale: tuple[float, float] = (1.0, 1.0)  # drawn log-uniformly, so that halving is as likely as doubling
    scale_of: ScaleOf = ScaleOf.INPUT
    crop: tuple[int, int] | None = None  # (height, width) after scaling; None keeps the whole image; smaller images stay smaller
    horizontal_flip: float = 0.0  # probability
    vertical_flip: float = 0.0  # probability
    quarter_turn: float = 0.0  # probability of a rotation by 90, 180 or 270 degrees, each as likely
    brightness: float = 0.0  # factor drawn from 1 - amount to 1 + amount
    contrast: float = 0.0  # likewise
    saturation: float = 0.0  # likewise
    hue: float = 0.0  # shift drawn from -amount to amount, in turns of the colour circle, 0.5 at most
    greyscale: float = 0.0  # probability
    invert: float = 0.0  # probability of showing the negative
    copy_paste: float = 0.0  # probability that objects of another image are pasted onto it (data/copy_paste.py)
    min_pixels: int = 1  # objects with fewer visible pixels are dropped, in pixels of the network's input

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 1 / LARGEST_SCALE <= low <= high <= LARGEST_SCALE:
            raise ConfigError(
                f"scale must be two factors from {1 / LARGEST_SCALE} to {LARGEST_SCALE}, the lower first, got {self.scale}"
            )
        if self.crop is not None and min(self.crop) < 1:
            raise ConfigError(f"crop must be (height, width) of at least 1 pixel, got {self.crop}")
        if self.scale_of is ScaleOf.CROP and self.crop is None:
            raise ConfigError("scale_of is ScaleOf.CROP, but crop is None; give a crop")
        for name in (
            "horizontal_flip",
            "vertical_flip",
            "quarter_turn",
            "greyscale",
            "invert",
            "copy_paste",
            "brightness",
            "contrast",
            "saturation",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ConfigError(f"hue must lie in 0..0.5, got {self.hue}")
        if self.min_pixels < 1:
            raise ConfigError(f"min_pixels must be at least 1, got {self.min_pixels}")


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in whole pixels, and the size it is resized to."""

    top: int
    left: int
    size: tuple[int, int]  # (height, width) in the image
    output: tuple[int, int]  # (height, width) after resizing


@dataclass(frozen=True, eq=False)
class Sample:
    """One augmented image and its objects, before normalisation and padding."""

    image: np.ndarray  # uint8, height width 3, RGB
    targets: Targets


def augment(
    image: UInt8[np.ndarray, "height width 3"],
    record: Record,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
    random: np.random.Generator,
) -> Sample:
    """Draw one augmented view of an image; the same state of `random` gives the same view.

    Boxes are the tight extents of the masks as they are seen, and `size` of the targets that of the view. Objects with fewer
    visible pixels than `min_pixels` are left out, crowds as well as single ones.

    Raises:
        SizeError: the image is not of the record's size.
    """
    if image.shape[:2] != record.size:
        raise SizeError(f"{record.path}: the image has height and width {image.shape[:2]}, its record says {record.size}")
    window = draw_window(record.size, augmentation, preprocessing, random)
    view = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(_cut(image, window))).permute(2, 0, 1))  # 3 height width
    if window.size != window.output:
        view = F.resize(view, list(window.output), InterpolationMode.BILINEAR, antialias=True)
    stack, kept = cut_masks(record, window, augmentation.min_pixels)
    masks = tv_tensors.Mask(torch.from_numpy(stack))

    view, masks = _turn(view, masks, augmentation, random)
    view = _recolour(view, augmentation, random)

    objects = [record.objects[index] for index in kept]
    plain = masks.as_subclass(Tensor).contiguous()
    targets = Targets(
        image_id=record.image_id,
        size=(view.shape[-2], view.shape[-1]),
        boxes=tight_boxes(plain),
        classes=torch.tensor([found.class_ for found in objects], dtype=torch.int64),
        masks=plain,
        is_crowd=torch.tensor([found.is_crowd for found in objects], dtype=torch.bool),
    )
    return Sample(np.ascontiguousarray(view.permute(1, 2, 0).numpy()), targets)


def draw_window(
    size: tuple[int, int], augmentation: Augmentation, preprocessing: Preprocessing, random: np.random.Generator
) -> Window:
    """A scale and, within the scaled image, the place of the crop; where the crop is larger than the image, all of that side."""
    low, high = augmentation.scale
    factor = float(np.exp(random.uniform(np.log(low), np.log(high)))) if low < high else low
    base = _base_scale(size, augmentation, preprocessing)
    origin, source, output = [], [], []
    for axis, side in enumerate(size):
        scale = base[axis] * factor
        scaled = max(1, round(side * scale))
        if augmentation.crop is None or augmentation.crop[axis] >= scaled:
            origin.append(0)
            source.append(side)
            output.append(scaled)
        else:
            taken = min(side, max(1, round(augmentation.crop[axis] / scale)))
            origin.append(int(random.integers(0, side - taken + 1)))
            source.append(taken)
            output.append(augmentation.crop[axis])
    return Window(origin[0], origin[1], (source[0], source[1]), (output[0], output[1]))


def _base_scale(size: tuple[int, int], augmentation: Augmentation, preprocessing: Preprocessing) -> tuple[float, float]:
    """What a scale of 1 does to each side: the network's input rounds them apart."""
    height, width = size
    if augmentation.scale_of is ScaleOf.CROP:
        assert augmentation.crop is not None
        fit = min(augmentation.crop[0] / height, augmentation.crop[1] / width)
        return fit, fit
    if augmentation.scale_of is ScaleOf.INPUT:
        input_height, input_width = preprocessing.input_size(height, width)
        return input_height / height, input_width / width
    return 1.0, 1.0


def check_min_pixels(records: Iterable[Record], augmentation: Augmentation, preprocessing: Preprocessing) -> None:
    """Raises ConfigError where no object can ever have `min_pixels`, by the extents of the masks: nothing would be learnt."""
    if augmentation.min_pixels == 1:
        return
    most = 0.0
    for record in records:
        base = _base_scale(record.size, augmentation, preprocessing)
        for found in record.objects:
            sides = [side * scale * augmentation.scale[1] for side, scale in zip(found.mask.crop_size, base, strict=True)]
            if augmentation.crop is not None:
                sides = [min(side, crop) for side, crop in zip(sides, augmentation.crop, strict=True)]
            most = max(most, math.prod(sides))
    if most < augmentation.min_pixels:
        raise ConfigError(
            f"min_pixels is {augmentation.min_pixels}, but no object covers more than {most:.0f} pixels of the network's input; "
            "lower it, or all would be left out"
        )


def check_largest(records: Iterable[Record], augmentation: Augmentation, preprocessing: Preprocessing) -> None:
    """Raises ConfigError where a view can have more than `LARGEST_SIDE` pixels a side: it would end in a full memory."""
    for record in records:
        for axis, (side, scale) in enumerate(
            zip(record.size, _base_scale(record.size, augmentation, preprocessing), strict=True)
        ):
            largest = round(side * scale * augmentation.scale[1])
            if augmentation.crop is not None:
                largest = min(largest, augmentation.crop[axis])
            # images at their own size may be as large as they are
            if largest > max(LARGEST_SIDE, side):
                raise ConfigError(
                    f"scale up to {augmentation.scale[1]} makes {record.path or record.image_id} {largest} pixels a side, more "
                    f"than {LARGEST_SIDE}; lower scale (--scale-high), or set a crop"
                )


def _cut(image: np.ndarray, window: Window) -> np.ndarray:
    return image[window.top : window.top + window.size[0], window.left : window.left + window.size[1]]


def cut_masks(record: Record, window: Window, min_pixels: int) -> tuple[Bool[np.ndarray, "objects height width"], list[int]]:
    """The objects' masks as the window shows them (nearest neighbour at pixel centres), and the indices of the objects seen.

    An object is decoded only where its box meets the window, at the size of its own crop.
    """
    # the source row (column) whose pixel holds the centre of each row (column) of the output
    rows, columns = (
        start + np.minimum(((np.arange(output) + 0.5) * (side / output)).astype(np.int64), side - 1)
        for start, side, output in zip((window.top, window.left), window.size, window.output, strict=True)
    )
    kept: list[int] = []
    places: list[tuple[slice, slice, np.ndarray]] = []
    for index, found in enumerate(record.objects):
        (top, left), (height, width) = found.mask.corner, found.mask.crop_size
        first_row, last_row = np.searchsorted(rows, (top, top + height))
        first_column, last_column = np.searchsorted(columns, (left, left + width))
        if first_row == last_row or first_column == last_column:
            continue
        crop = found.mask.crop()
        seen = crop[np.ix_(rows[first_row:last_row] - top, columns[first_column:last_column] - left)]
        if np.count_nonzero(seen) < min_pixels:
            continue
        kept.append(index)
        places.append((slice(first_row, last_row), slice(first_column, last_column), seen))
    stack = np.zeros((len(kept), *window.output), dtype=bool)
    for mask, (row_range, column_range, seen) in zip(stack, places, strict=True):
        mask[row_range, column_range] = seen
    return stack, kept


def tight_boxes(masks: Bool[Tensor, "objects height width"]) -> Float[Tensor, "objects 4"]:
    """x1 y1 x2 y2 of each mask's pixels, right and bottom exclusive; masks have at least one pixel each."""
    if not len(masks):
        return torch.zeros((0, 4))
    pixels = masks.view(torch.uint8)  # whose maximum takes a twentieth of the time of any() on bool
    rows, columns = pixels.amax(dim=2), pixels.amax(dim=1)
    x1, y1 = columns.argmax(dim=1), rows.argmax(dim=1)  # the first pixel set
    x2, y2 = columns.shape[1] - columns.flip(1).argmax(dim=1), rows.shape[1] - rows.flip(1).argmax(dim=1)
    return torch.stack((x1, y1, x2, y2), dim=1).float()


def _turn(view: Tensor, masks: Tensor, augmentation: Augmentation, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    if random.random() < augmentation.horizontal_flip:
        view, masks = F.horizontal_flip(view), F.horizontal_flip(masks)
    if random.random() < augmentation.vertical_flip:
        view, masks = F.vertical_flip(view), F.vertical_flip(masks)
    if random.random() < augmentation.quarter_turn:
        angle = float(random.choice((90, 180, 270)))
        view, masks = F.rotate(view, angle, expand=True), F.rotate(masks, angle, expand=True)  # exact: moves pixels, mixes none
    return view, masks


def _recolour(view: Tensor, augmentation: Augmentation, random: np.random.Generator) -> Tensor:
    # each amount is drawn whether or not it is used, so that adding one kind of jitter leaves the others' draws alone
    brightness, contrast, saturation, hue = random.uniform(-1, 1, size=4)
    greyscale, invert = random.random(2)
    if augmentation.brightness:
        view = F.adjust_brightness(view, 1 + augmentation.brightness * brightness)
    if augmentation.contrast:
        view = F.adjust_contrast(view, 1 + augmentation.contrast * contrast)
    if augmentation.saturation:
        view = F.adjust_saturation(view, 1 + augmentation.saturation * saturation)
    if augmentation.hue:
        view = F.adjust_hue(view, augmentation.hue * hue)
    if greyscale < augmentation.greyscale:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    if invert < augmentation.invert:
        view = F.invert(view)
    return view
