"""Colours that tell segments apart, chosen where equal distances look equally different: in OKLab (Ottosson, 2020).

A place in OKLab is (lightness 0..1, a, b). Things get bright colours, one for each; stuff gets calm tones, one for each class.
"""

import re
from functools import cache

import numpy as np

from thingstuff.structures.categories import Categories
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segments
from thingstuff.visuals.text import plain_name

PALETTE_COLOURS = 24
PALE = 0.76  # lightness above which a colour is pale

Colour = tuple[int, int, int]  # sRGB, 0..255

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


def oklab(colours: np.ndarray) -> np.ndarray:
    """Places of sRGB colours (0..255), n x 3."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_OKLAB.T


def srgb(place: np.ndarray) -> np.ndarray | None:
    """The sRGB colour (0..255) at a place, or None where a screen has no such colour."""
    linear = np.linalg.solve(_TO_CONES, np.linalg.solve(_TO_OKLAB, place) ** 3)
    if linear.min() < 0 or linear.max() > 1:
        return None
    return np.round(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


def alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How alike the places of `a` and `b` look, n x m, from 0 to 1 (the same)."""
    return np.exp(-(((a[:, None] - b[None]) / 0.12) ** 2).sum(axis=-1))


@cache
def bright() -> tuple[np.ndarray, np.ndarray]:
    """PALETTE_COLOURS bright colours, hues a golden angle apart and lightness in three steps: sRGB 0..255, and their places."""
    colours, places = [], []
    for i in range(PALETTE_COLOURS):
        hue, lightness = 2 * np.pi * ((0.68 + i * 0.6180339887) % 1), (0.74, 0.86, 0.66)[i % 3]
        shades = (np.array([lightness, chroma * np.cos(hue), chroma * np.sin(hue)]) for chroma in np.arange(0.23, 0, -0.005))
        place, colour = next((place, colour) for place in shades if (colour := srgb(place)) is not None)
        colours.append(colour)
        places.append(place)
    return np.array(colours, dtype=np.uint8), np.array(places)


def _lost_on(background: np.ndarray) -> np.ndarray:
    """How hard each colour of the palette is to see on a background: near to it in hue, where it has one, or in lightness."""
    _, places = bright()
    chroma = float(np.hypot(background[1], background[2]))
    same_hue = places[:, 1:] @ background[1:] / (np.hypot(places[:, 1], places[:, 2]) * max(chroma, 1e-6))
    same_lightness = np.exp(-(((places[:, 0] - background[0]) / 0.12) ** 2))
    return np.maximum(same_hue, 0) * min(chroma / 0.06, 1) + 0.4 * same_lightness


def colours_of(image: np.ndarray, segments: Segments) -> list[Colour]:
    """One colour per segment: a stuff class's own; for a thing the one least like the image below it and the things around it."""
    palette, places = bright()
    alike_each = alike(places, places)
    boxes = np.array([mask.box for mask in segments.rles], dtype=np.float32).reshape(-1, 4)
    is_thing = np.asarray(segments.is_thing, dtype=bool)
    things = boxes[is_thing]
    reach = (
        1 + float(np.median(things[:, 2:] - things[:, :2])) if len(things) else 1.0
    )  # pixels within which colours should differ
    chosen = np.full(len(boxes), -1)
    used = np.zeros(PALETTE_COLOURS)
    preference = 1e-3 * np.arange(PALETTE_COLOURS)
    if not segments.overlapping:  # a full fill in a pale colour looks like stuff
        preference += 4 * np.maximum(places[:, 0] - PALE, 0)
    for i in np.flatnonzero(is_thing):
        gaps = np.maximum(np.maximum(boxes[:, :2] - boxes[i, 2:], boxes[i, :2] - boxes[:, 2:]), 0).max(axis=1)
        near = (chosen >= 0) & (gaps < 3 * reach)
        weights = np.bincount(chosen[near], weights=np.exp(-gaps[near] / reach), minlength=PALETTE_COLOURS)
        below = _lost_on(oklab(_mean_colour(image, segments.rles[i]))[0])
        chosen[i] = int(np.argmin(alike_each @ weights + below + 0.02 * used + preference))
        used[chosen[i]] += 1
    tones = {class_: calm_tone(class_, segments.categories) for class_ in set(segments.classes[~is_thing].tolist())}
    return [
        tones[class_] if place < 0 else (int(palette[place, 0]), int(palette[place, 1]), int(palette[place, 2]))
        for place, class_ in zip(chosen.tolist(), segments.classes.tolist(), strict=True)
    ]


# Tones that people expect of stuff, by a word of its name: hue in degrees, lightness and chroma. Whatever has none gets a hue of
# its own.
_TONES = {
    "sky": (245, 0.80, 0.06),
    **dict.fromkeys(("water", "sea", "river", "lake", "ocean"), (230, 0.60, 0.085)),
    **dict.fromkeys(("tree", "vegetation", "forest", "bush", "hedge"), (148, 0.52, 0.085)),
    **dict.fromkeys(("grass", "meadow", "field", "terrain", "plant", "playingfield", "flower"), (130, 0.70, 0.09)),
    **dict.fromkeys(("snow", "ice"), (220, 0.92, 0.02)),
    **dict.fromkeys(("sand", "beach"), (85, 0.82, 0.07)),
    **dict.fromkeys(("dirt", "ground", "soil", "earth", "gravel", "mud"), (60, 0.60, 0.055)),
    **dict.fromkeys(("mountain", "rock", "stone", "hill"), (80, 0.56, 0.03)),
    **dict.fromkeys(("road", "street", "pavement", "railroad", "platform"), (305, 0.52, 0.035)),
    "sidewalk": (330, 0.66, 0.05),
    **dict.fromkeys(("building", "construction"), (35, 0.66, 0.06)),
    "house": (55, 0.74, 0.06),
    "bridge": (345, 0.58, 0.05),
    "roof": (25, 0.52, 0.08),
    **dict.fromkeys(("wall", "door"), (70, 0.76, 0.035)),
    "ceiling": (95, 0.88, 0.025),
    **dict.fromkeys(("floor", "rug", "carpet"), (100, 0.62, 0.055)),
    **dict.fromkeys(("cabinet", "table", "counter", "shelf", "furniture"), (15, 0.56, 0.075)),
    **dict.fromkeys(("window", "mirror", "light"), (200, 0.80, 0.045)),
    **dict.fromkeys(("background", "other", "unlabeled"), (0, 0.55, 0.0)),
}


@cache
def calm_tone(class_: int, categories: Categories) -> Colour:
    """The tone of a class of stuff, the same in every picture; classes that share a word differ a little."""
    words = re.findall(r"[a-z]+", plain_name(categories[class_].name).lower())
    step = (class_ * 0.6180339887) % 1 - 0.5
    hue, lightness, chroma = next((_TONES[word] for word in words if word in _TONES), (360 * (step + 0.5), 0.68, 0.06))
    angle, lightness = np.deg2rad(hue + 24 * step), lightness + 0.08 * step
    shades = (np.array([lightness, c * np.cos(angle), c * np.sin(angle)]) for c in (chroma, chroma / 2, 0.0))
    red, green, blue = next(colour for shade in shades if (colour := srgb(shade)) is not None)
    return int(red), int(green), int(blue)


def _mean_colour(image: np.ndarray, mask: Mask) -> np.ndarray:
    """Mean sRGB below a mask, 1 x 3; of a large mask, on a grid of at most about 64 x 64 of its pixels."""
    (top, left), (height, width) = mask.corner, mask.crop_size
    step = max(1, max(height, width) // 64)
    crop = mask.crop()[::step, ::step]
    pixels = image[top : top + height : step, left : left + width : step][crop]
    return pixels.mean(axis=0, keepdims=True) if len(pixels) else np.zeros((1, 3))
