"""Boundary regions of masks, for boundary IoU (Cheng et al., 2021, arXiv:2103.16562, section 4).

The boundary of a mask is what lies within a few pixels of its outline, on the inside: the mask less its erosion. What is
outside the image counts as outside the mask. The functions take numpy arrays and tensors of any device alike.
"""

import math
from typing import Any

from jaxtyping import Bool, Integer

from thingstuff.errors import ConfigError

SHARE = 0.02  # of the image's diagonal, the paper's choice for COCO and LVIS; section 4.1 takes 0.005 for Cityscapes


def boundary_width(size: tuple[int, int], share: float = SHARE) -> int:
    """Pixels a boundary is wide in an image of (height, width): `share` of its diagonal, rounded, and at least 1."""
    if not 0 < share <= 1:
        raise ConfigError(f"the boundary's width is a share of the image's diagonal, above 0 and at most 1; got {share}")
    return max(1, round(share * math.hypot(*size)))


def boundary_of(mask: Bool[Any, "height width"], share: float = SHARE) -> Bool[Any, "height width"]:
    """The pixels of a mask of a whole image that lie within `boundary_width` of its outline."""
    return inner_boundary(mask, boundary_width((int(mask.shape[0]), int(mask.shape[1])), share))


def inner_boundary(mask: Bool[Any, "height width"], width: int) -> Bool[Any, "height width"]:
    """The mask less its erosion by a square of 2 width + 1 pixels, which is a 3 x 3 square eroding `width` times.

    A crop gives the same pixels as its image when it holds every pixel of the mask; `width` goes by the size of the image.
    """
    boundary = mask & mask  # a copy, for both kinds of array
    inner = boundary[width : mask.shape[0] - width, width : mask.shape[1] - width]
    if 2 * width < min(mask.shape):
        inner &= ~_all_of(_all_of(mask, 2 * width + 1, axis=0), 2 * width + 1, axis=1)
    return boundary


def boundary_of_segments(ids: Integer[Any, "height width"], share: float = SHARE) -> Bool[Any, "height width"]:
    """Where a map of segment ids shows a pixel of its own segment's boundary: `boundary_of` every segment, all at once.

    A pixel is inside when the square around it holds its id alone: its rows are of one id each, and so is its middle column.
    """
    height, width = int(ids.shape[0]), int(ids.shape[1])
    reach = boundary_width((height, width), share)
    boundary = ids == ids
    if 2 * reach < min(height, width):
        rows = _all_of(ids[:, :-1] == ids[:, 1:], 2 * reach, axis=1)  # height (width - 2 reach)
        columns = _all_of(ids[:-1] == ids[1:], 2 * reach, axis=0)  # (height - 2 reach) width
        inside = _all_of(rows, 2 * reach + 1, axis=0) & columns[:, reach : width - reach]
        boundary[reach : height - reach, reach : width - reach] = ~inside
    return boundary


def _all_of(values: Any, window: int, axis: int) -> Any:
    """Whether all of `window` neighbours are set; the result is window - 1 shorter. Doubles the span at each step."""
    span = 1
    while span < window:
        step = min(span, window - span)
        kept = values.shape[axis] - step
        values = values[:kept] & values[step:] if axis == 0 else values[:, :kept] & values[:, step:]
        span += step
    return values
