"""Segments at the picture's scale: crops with a place and a colour.

A picture is drawn crop by crop, so its cost follows the pixels that objects cover, never instances x height x width.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from thingstuff.structures.segments import Segments
from thingstuff.visuals.colours import Colour
from thingstuff.visuals.scale import scaled_crop

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in picture pixels; right and bottom exclusive


@dataclass(frozen=True, eq=False)
class Shape:
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


def shapes_of(segments: Segments, colours: list[Colour], scale: Fraction) -> list[Shape]:
    """Every segment that has pixels, the largest first, so that small ones are painted over large ones."""
    areas = np.array([mask.area for mask in segments.rles], dtype=np.int64)
    order = (int(index) for index in np.argsort(-areas, kind="stable") if areas[index])
    return [Shape(index, *scaled_crop(segments.rles[index], scale), colours[index]) for index in order]
