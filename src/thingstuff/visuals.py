"""Overlay pictures of segments: translucent fill, thin outlines, labels that stay legible.

image, Segments -> scale -> colours -> fills -> outlines -> labels -> picture

A picture is drawn crop by crop, so its cost follows the pixels that objects cover, never instances x height x width.

Size: an image smaller than MIN_SIDE is enlarged by a whole factor, so that outlines are thin beside what they surround and labels
legible; one longer than MAX_SIDE is reduced by a whole factor, since few viewers open more. `scale=1` keeps the image's own size.

Colour: each thing gets the palette's colour least like its neighbours' colours and the image below it, so that touching objects
differ and purple tissue gets no purple outline; each stuff class keeps one colour. The same input gives the same picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from thingstuff.errors import ConfigError, SizeError
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segments

MIN_SIDE = 960  # pixels: an image with a shorter long side is enlarged by the smallest whole factor that reaches this
PANEL_SIDE = 512  # pixels: the same for each panel of several side by side
MAX_ENLARGEMENT = 8
MAX_SIDE = 4096  # pixels: a longer image is reduced by the smallest whole factor that brings it within this
MAX_LABELS = 40  # more segments than this are drawn without labels
LABELS_SHARE = 0.12  # of the picture that all labels together may cover before none is drawn
PALETTE_COLOURS = 24
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

Colour = tuple[int, int, int]  # sRGB, 0..255
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in picture pixels; right and bottom exclusive


@dataclass(frozen=True, eq=False)
class _Shape:
    """One segment at the picture's scale."""

    index: int  # into the Segments
    crop: np.ndarray  # bool, height x width
    left: int
    top: int
    colour: Colour

    @property
    def box(self) -> Rectangle:
        height, width = self.crop.shape
        return self.left, self.top, self.left + width, self.top + height


def overlay(
    image: np.ndarray,
    segments: Segments,
    *,
    labels: bool | None = None,
    scores: bool = True,
    opacity: float = 0.3,
    scale: int | Fraction | None = None,
) -> np.ndarray:
    """Draw segments on their image: RGB uint8, height x width x 3, at the picture's scale (see the module's first lines).

    Args:
        image: uint8, height x width x 3, or height x width for grey.
        labels: None writes labels while they are few and fit; True writes every one that has room; False none.
        scores: whether a label gives the score; a score of exactly 1, as ground truth has, is left out.
        opacity: of the fill, from 0 to 1.
        scale: picture pixels per image pixel, a whole number or one over a whole number; None chooses.

    Raises:
        SizeError: image and segments differ in height or width.
        ConfigError: an opacity or a scale outside what is stated above.
    """
    image = _as_rgb(image)
    height, width = image.shape[:2]
    if (height, width) != tuple(segments.size):
        raise SizeError(
            f"the image is {width}x{height} pixels but its segments describe {segments.size[1]}x{segments.size[0]}; "
            "draw segments on the image they were made from"
        )
    if not 0 <= opacity <= 1:
        raise ConfigError(f"opacity must lie from 0 to 1, got {opacity}")
    scale = _fitting_scale(height, width) if scale is None else _checked_scale(scale)
    background = _scaled_image(image, scale)
    shapes = _shapes(image, segments, scale)
    picture = _filled(background, shapes, opacity)
    for shape in shapes:
        _outline(picture, shape)
    if labels is False or not shapes:
        return picture
    return _write_labels(picture, segments, shapes, every=labels is True, scores=scores)


def side_by_side(image: np.ndarray, prediction: Segments, truth: Segments) -> np.ndarray:
    """The image, what was predicted and what is true, as three captioned panels in one row: RGB uint8."""
    image = _as_rgb(image)
    scale = _fitting_scale(*image.shape[:2], least=PANEL_SIDE)
    panels = {
        "image": _scaled_image(image, scale),
        f"prediction: {describe(prediction)}": overlay(image, prediction, scale=scale),
        f"ground truth: {describe(truth)}": overlay(image, truth, scale=scale),
    }
    height, width = panels["image"].shape[:2]
    gap = max(4, height // 100)
    font = _font(_font_size(height, width))
    band = ceil(1.8 * _text_size("Ag", font)[1])
    sheet = Image.new("RGB", (3 * width + 2 * gap, height + band), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (caption, panel) in enumerate(panels.items()):
        left = column * (width + gap)
        sheet.paste(Image.fromarray(panel), (left, band))
        draw.text((left + gap, band // 2), _shortened(caption, font, width - 2 * gap), fill="black", font=font, anchor="lm")
    return np.asarray(sheet)


def describe(segments: Segments, most: int = 4) -> str:
    """Counts per class in words, the most frequent first: "12 person, 3 dog and 4 more"; "nothing" when empty."""
    classes, counts = np.unique(segments.classes, return_counts=True)
    order = np.lexsort((classes, -counts))
    parts = [f"{counts[i]} {segments.categories[int(classes[i])].name}" for i in order[:most]]
    rest = int(counts[order[most:]].sum())
    return ", ".join(parts) + (f" and {rest} more" if rest else "") if parts else "nothing"


def save(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture; its suffix says how. The folder is made when it is missing.

    Raises:
        ConfigError: the suffix is not one of SUFFIXES, or the file can't be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: can't tell the picture's format from its name; end it with one of {', '.join(SUFFIXES)}")
    options: dict[str, Any] = {".png": {"compress_level": 4}, ".jpg": {"quality": 92}, ".jpeg": {"quality": 92}}.get(
        path.suffix.lower(), {}
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, **options)
    except OSError as error:
        raise ConfigError(f"{path}: the picture can't be written there ({error.strerror or error})") from error


# Scale ----------------------------------------------------------------------------------------------------------------


def _as_rgb(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3))) or 0 in image.shape:
        raise SizeError(
            f"a picture needs an image of uint8, height x width x 3 or height x width, got {image.dtype} of shape {image.shape}"
        )
    return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2) if image.size == image.shape[0] * image.shape[1] else image


def _fitting_scale(height: int, width: int, least: int = MIN_SIDE) -> Fraction:
    side = max(height, width)
    if side > MAX_SIDE:
        return Fraction(1, ceil(side / MAX_SIDE))
    return Fraction(min(ceil(least / side), MAX_ENLARGEMENT))


def _checked_scale(scale: int | Fraction) -> Fraction:
    if scale <= 0 or 1 not in (Fraction(scale).numerator, Fraction(scale).denominator):
        raise ConfigError(f"scale must be a whole number, or one over a whole number, got {scale}")
    return Fraction(scale)


def _scaled_image(image: np.ndarray, scale: Fraction) -> np.ndarray:
    if scale == 1:
        return image
    if scale < 1:
        return np.asarray(Image.fromarray(image).reduce(scale.denominator))
    size = (image.shape[1] * scale.numerator, image.shape[0] * scale.numerator)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _scaled_crop(mask: Mask, scale: Fraction) -> tuple[np.ndarray, int, int]:
    """The mask's crop at the picture's scale, and its left and top there.

    Enlarged outlines are smooth: bilinear, cut at one half, which leaves straight edges where they were and rounds corners.
    Reduced masks keep the cells they cover by half, or, when there is none, every cell they touch, so that no object vanishes.
    """
    crop = mask.crop()
    top, left = mask.corner
    if scale == 1:
        return crop, left, top
    if scale > 1:
        factor = scale.numerator
        padded = Image.fromarray(np.pad(crop, 1).astype(np.uint8) * 255)
        enlarged = np.asarray(padded.resize((padded.width * factor, padded.height * factor), Image.Resampling.BILINEAR))
        return enlarged[factor:-factor, factor:-factor] >= 128, left * factor, top * factor
    factor = scale.denominator
    rest_top, rest_left = top % factor, left % factor
    height, width = crop.shape
    rest_bottom, rest_right = -(rest_top + height) % factor, -(rest_left + width) % factor
    padded = np.pad(crop, ((rest_top, rest_bottom), (rest_left, rest_right)))
    covered = np.asarray(Image.fromarray(padded.astype(np.uint8) * 255).reduce(factor))
    reduced = covered >= 128
    return (reduced if reduced.any() else covered > 0), left // factor, top // factor


def _shapes(image: np.ndarray, segments: Segments, scale: Fraction) -> list[_Shape]:
    """Every segment that has pixels, the largest first, so that small ones are painted over large ones."""
    areas = np.array([mask.area for mask in segments.rles], dtype=np.int64)
    colours = _colours(image, segments)
    order = (int(index) for index in np.argsort(-areas, kind="stable") if areas[index])
    return [_Shape(index, *_scaled_crop(segments.rles[index], scale), colours[index]) for index in order]


# Colours --------------------------------------------------------------------------------------------------------------
# In OKLab (Ottosson, 2020), where equal distances look equally different. A place is (lightness 0..1, a, b).

_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _oklab(colours: np.ndarray) -> np.ndarray:
    """Places of sRGB colours (0..255), n x 3."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_OKLAB.T


def _srgb(place: np.ndarray) -> np.ndarray | None:
    """The sRGB colour (0..255) at a place, or None where a screen has no such colour."""
    linear = np.linalg.solve(_TO_CONES, np.linalg.solve(_TO_OKLAB, place) ** 3)
    if linear.min() < 0 or linear.max() > 1:
        return None
    return np.round(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


def _alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How alike the places of `a` and `b` look, n x m, from 0 to 1 (the same)."""
    return np.exp(-(((a[:, None] - b[None]) / 0.12) ** 2).sum(axis=-1))


@cache
def _palette() -> tuple[np.ndarray, np.ndarray]:
    """PALETTE_COLOURS bright colours, hues a golden angle apart and lightness in three steps: sRGB 0..255, and their places."""
    colours, places = [], []
    for i in range(PALETTE_COLOURS):
        hue, lightness = 2 * np.pi * ((0.68 + i * 0.6180339887) % 1), (0.74, 0.86, 0.66)[i % 3]
        shades = (np.array([lightness, chroma * np.cos(hue), chroma * np.sin(hue)]) for chroma in np.arange(0.23, 0, -0.005))
        place, colour = next((place, colour) for place in shades if (colour := _srgb(place)) is not None)
        colours.append(colour)
        places.append(place)
    return np.array(colours, dtype=np.uint8), np.array(places)


def _lost_on(background: np.ndarray) -> np.ndarray:
    """How hard each colour of the palette is to see on a background: near to it in hue, where it has one, or in lightness."""
    _, places = _palette()
    chroma = float(np.hypot(background[1], background[2]))
    same_hue = places[:, 1:] @ background[1:] / (np.hypot(places[:, 1], places[:, 2]) * max(chroma, 1e-6))
    same_lightness = np.exp(-(((places[:, 0] - background[0]) / 0.12) ** 2))
    return np.maximum(same_hue, 0) * min(chroma / 0.06, 1) + 0.4 * same_lightness


def _colours(image: np.ndarray, segments: Segments) -> list[Colour]:
    """One colour per segment: a stuff class's own; for a thing the one least like the image below it and the things around it."""
    palette, places = _palette()
    alike = _alike(places, places)
    boxes = np.array([mask.box for mask in segments.rles], dtype=np.float32).reshape(-1, 4)
    is_thing = np.asarray(segments.is_thing, dtype=bool)
    chosen = np.where(is_thing, -1, np.asarray(segments.classes) % PALETTE_COLOURS)
    reach = 1 + float(np.median(boxes[:, 2:] - boxes[:, :2])) if len(boxes) else 1.0  # pixels within which colours should differ
    used = np.bincount(chosen[~is_thing], minlength=PALETTE_COLOURS).astype(np.float64)
    preference = 1e-3 * np.arange(PALETTE_COLOURS)
    for i in np.flatnonzero(is_thing):
        gaps = np.maximum(np.maximum(boxes[:, :2] - boxes[i, 2:], boxes[i, :2] - boxes[:, 2:]), 0).max(axis=1)
        near = (chosen >= 0) & (gaps < 3 * reach)
        weights = np.bincount(chosen[near], weights=np.exp(-gaps[near] / reach), minlength=PALETTE_COLOURS)
        below = _lost_on(_oklab(_mean_colour(image, segments.rles[i]))[0])
        chosen[i] = int(np.argmin(alike @ weights + below + 0.02 * used + preference))
        used[chosen[i]] += 1
    return [(int(r), int(g), int(b)) for r, g, b in palette[chosen]]


def _mean_colour(image: np.ndarray, mask: Mask) -> np.ndarray:
    """Mean sRGB below a mask, 1 x 3; of a large mask, on a grid of at most about 64 x 64 of its pixels."""
    (top, left), (height, width) = mask.corner, mask.crop_size
    step = max(1, max(height, width) // 64)
    crop = mask.crop()[::step, ::step]
    pixels = image[top : top + height : step, left : left + width : step][crop]
    return pixels.mean(axis=0, keepdims=True) if len(pixels) else np.zeros((1, 3))


# Fills and outlines ---------------------------------------------------------------------------------------------------


def _filled(background: np.ndarray, shapes: Sequence[_Shape], opacity: float) -> np.ndarray:
    """The picture with every pixel blended once, with the colour of the smallest shape that covers it."""
    owners = np.zeros(background.shape[:2], dtype=np.int32)  # 0: nobody
    for number, shape in enumerate(shapes, 1):
        left, top, right, bottom = shape.box
        owners[top:bottom, left:right][shape.crop] = number
    painted = owners > 0
    dimmed = (np.arange(256) * (1 - opacity)).astype(np.uint8)
    added = (np.array([(0, 0, 0), *(shape.colour for shape in shapes)]) * opacity).astype(np.uint8)
    channels = [np.where(painted, dimmed[background[..., c]], background[..., c]) + added[owners, c] for c in range(3)]
    return np.stack(channels, axis=-1)


def _outline(picture: np.ndarray, shape: _Shape) -> None:
    """Paint the outermost pixels of the shape; where the picture's border cuts it, the outline stays open."""
    left, top, right, bottom = shape.box
    height, width = picture.shape[:2]
    thickness = _outline_thickness(height, width)
    if min(shape.crop.shape) < 6 * thickness:
        thickness = 1
    at_border = (top == 0, bottom == height), (left == 0, right == width)
    padded = np.pad(shape.crop, ((thickness, thickness), (thickness, thickness)))
    for axis, (at_start, at_end) in enumerate(at_border):
        rows = np.moveaxis(padded, axis, 0)
        if at_start:
            rows[:thickness] = rows[thickness]
        if at_end:
            rows[-thickness:] = rows[-thickness - 1]
    for step in range(thickness):
        inner = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        if step % 2:  # every other step takes diagonal neighbours too, which keeps the line equally thick all around
            inner &= padded[:-2, :-2] & padded[:-2, 2:] & padded[2:, :-2] & padded[2:, 2:]
        padded = inner
    picture[top:bottom, left:right][shape.crop & ~padded] = shape.colour


def _outline_thickness(height: int, width: int) -> int:
    return max(1, round(max(height, width) / 640))


# Labels ---------------------------------------------------------------------------------------------------------------


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _font_size(height: int, width: int) -> int:
    return min(max(round(max(height, width) / 56), 11), 48)


def _text_size(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[int, int]:
    left, top, right, bottom = font.getbbox(text)
    return ceil(right - left), ceil(bottom - top)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text on one line, cut with dots to `width` pixels; empty when not even one letter has room."""
    text = " ".join(text.split())
    if _text_size(text, font)[0] <= width:
        return text
    for end in range(len(text) - 1, 0, -1):
        if _text_size(text[:end] + "...", font)[0] <= width:
            return text[:end].rstrip() + "..."
    return ""


def _write_labels(picture: np.ndarray, segments: Segments, shapes: Sequence[_Shape], every: bool, scores: bool) -> np.ndarray:
    height, width = picture.shape[:2]
    if not every and len(shapes) > MAX_LABELS:
        return picture
    font = _font(_font_size(height, width))
    line, capital = _text_size("Ag", font)[1], _text_size("A", font)[1]
    margin = max(2, line // 4)
    texts = {}
    for shape in shapes:
        score = float(segments.scores[shape.index])
        text = segments.categories[int(segments.classes[shape.index])].name
        text += f" {score:.2f}" if scores and score < 1 else ""
        texts[shape.index] = _shortened(text, font, width // 2 - 2 * margin)
    sizes = {i: (_text_size(text, font)[0] + 2 * margin, line + 2 * margin) for i, text in texts.items() if text}
    if not every and sum(w * h for w, h in sizes.values()) > LABELS_SHARE * height * width:
        return picture
    drawn = Image.fromarray(picture)
    draw = ImageDraw.Draw(drawn)
    boxes = np.array([shape.box for shape in shapes])
    taken: list[Rectangle] = []
    for number, shape in reversed(list(enumerate(shapes))):  # the smallest first: it has the fewest places to go
        if shape.index not in sizes:
            continue
        others = np.delete(boxes, number, axis=0)
        place = _label_place(shape, sizes[shape.index], np.array(taken).reshape(-1, 4), others, height, width)
        if place is None:
            continue
        taken.append(place)
        left, top, right, bottom = place
        draw.rounded_rectangle((left, top, right - 1, bottom - 1), radius=margin, fill=shape.colour)
        draw.text((left + margin, (top + bottom + capital) // 2), texts[shape.index], fill="black", font=font, anchor="ls")
    return np.asarray(drawn)


def _label_place(
    shape: _Shape, size: tuple[int, int], taken: np.ndarray, others: np.ndarray, height: int, width: int
) -> Rectangle | None:
    """Where a label of (width, height) `size` goes: inside the picture, on no label taken before, hiding little of other shapes.

    `taken` and `others` are rectangles, n x 4; None when every place is taken.
    """
    label_width, label_height = size
    left, top, right, bottom = shape.box
    inside_x, inside_y = _deepest(shape)
    head = left + int(np.flatnonzero(shape.crop[0]).mean()) if shape.crop[0].any() else inside_x
    centred = inside_x - label_width // 2
    corners = np.array(  # left and top of the label, the best first
        [
            (head - label_width // 2, top - label_height),
            (centred, inside_y - label_height // 2),
            (left, top - label_height),
            (right - label_width, top - label_height),
            (centred, bottom),
            (right, inside_y - label_height // 2),
            (left - label_width, inside_y - label_height // 2),
            (head - label_width // 2, top),
            (left, bottom),
            (centred, inside_y + label_height // 2),
            (centred, inside_y - 3 * label_height // 2),
            (right, top - label_height),
            (right, bottom),
            (left - label_width, top - label_height),
            (left - label_width, bottom),
        ]
    )
    room = np.array([width, height]) - size
    if room.min() < 0:
        return None
    corners = np.clip(corners, 0, room)
    places = np.concatenate([corners, corners + size], axis=1)
    sides = others[:, 2:] - others[:, :2]
    hidden = (_common(places, others) / (1 + np.minimum(sides.prod(axis=1), label_width * label_height))).sum(axis=1)
    own = _common(places, np.array([shape.box]))[:, 0] / shape.crop.size
    costs = np.where(_common(places, taken).any(axis=1), np.inf, 0.1 * np.arange(len(places)) + hidden + own)
    best = int(np.argmin(costs))
    if costs[best] == np.inf:
        return None
    x1, y1, x2, y2 = places[best].tolist()
    return x1, y1, x2, y2


def _common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pixels that each rectangle of `a` shares with each of `b`, n x m."""
    corner, opposite = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.maximum(opposite - corner, 0).prod(axis=-1)


def _deepest(shape: _Shape) -> tuple[int, int]:
    """A point well inside the shape, x and y in picture pixels, found on a grid of at most 48 cells a side."""
    step = max(1, ceil(max(shape.crop.shape) / 48))
    grid = np.pad(shape.crop[step // 2 :: step, step // 2 :: step], 1)
    if not grid.any():
        ys, xs = np.nonzero(shape.crop)
        return shape.left + int(xs[len(xs) // 2]), shape.top + int(ys[len(ys) // 2])
    deepest = grid
    while grid.any():
        deepest = grid
        grid = np.pad(grid[1:-1, 1:-1] & grid[:-2, 1:-1] & grid[2:, 1:-1] & grid[1:-1, :-2] & grid[1:-1, 2:], 1)
    ys, xs = np.nonzero(deepest)
    middle = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    return shape.left + int((xs[middle] - 1) * step + step // 2), shape.top + int((ys[middle] - 1) * step + step // 2)
