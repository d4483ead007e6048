"""Merge things found one by one with a map of stuff, so that no pixel has two segments (Kirillov et al., 2019, arXiv:1901.02446,
section 3.2, panoptic inference).

things by descending score, each on the pixels that are still free -> stuff on the pixels left over
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Integer

STRIP_BYTES = 2**22  # of the map, counted at a time


@dataclass(frozen=True, eq=False)
class Part:
    """One segment of the merged map."""

    is_thing: bool
    index: int  # of the thing among those given; of stuff: its value in the map
    crop: Bool[np.ndarray, "_ _"]  # its pixels
    corner: tuple[int, int]  # (top, left) of the crop in the image


def merge_panoptic(
    things: Iterable[tuple[np.ndarray, tuple[int, int]]],
    scores: Sequence[float],
    stuff: Integer[np.ndarray, "height width"],
    score: float,
    overlap: float,
    stuff_area: int,
) -> Iterator[Part]:
    """The segments of the merged map: things by descending score, then stuff by ascending value. None is without a pixel.

    Parts come one by one, and things are asked for one by one, so whoever encodes a part at once needs the memory of one crop
    and of one byte a pixel for what is taken.

    Args:
        things: the masks by descending score, each as a crop of booleans and its (top, left) corner in the image.
        scores: theirs.
        stuff: of each pixel the kind of stuff, 0 and up; below 0 where there is none, which stays void unless a thing lies there.
        score: things scored lower are left out.
        overlap: so are those of which more than this share already belongs to things scored higher.
        stuff_area: stuff with fewer pixels left to it is void.
    """
    taken = np.zeros(stuff.shape, dtype=bool)
    assert all(first >= second for first, second in pairwise(scores)), "things come by descending score"
    for index, (of_thing, (crop, (top, left))) in enumerate(zip(scores, things, strict=False)):
        if of_thing < score:
            break
        under = taken[top : top + crop.shape[0], left : left + crop.shape[1]]
        part = crop & ~under
        area, free = np.count_nonzero(crop), np.count_nonzero(part)
        if free and (area - free) / area <= overlap:
            under |= part
            yield Part(True, index, part, (top, left))
    for kind in np.flatnonzero(_free_areas(stuff, taken) >= max(stuff_area, 1)).tolist():
        part = stuff == kind
        part &= ~taken
        yield Part(False, kind, part, (0, 0))


def _free_areas(stuff: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Pixels of each kind of stuff that no thing has taken."""
    kinds = int(stuff.max(initial=-1)) + 1
    areas = np.zeros(kinds, dtype=np.int64)
    rows = max(1, STRIP_BYTES // max(1, 8 * stuff.shape[1]))  # counting needs 8 bytes a pixel
    for start in range(0, len(stuff), rows):
        free = stuff[start : start + rows][~taken[start : start + rows]]
        areas += np.bincount(free[free >= 0], minlength=kinds)
    return areas
