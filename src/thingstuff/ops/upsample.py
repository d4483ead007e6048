"""Bring small masks of the whole image to the image's size, one at a time and only where they can be above the threshold.

Bilinear resizing is linear and separates into rows and columns, so several resizes with cuts between them are one matrix a side:
mask at image size = down @ mask @ across. A resized pixel is a mean of cells: it passes the threshold only near a cell that does.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

STRIP_BYTES = 2**20  # float32 rows computed at a time

Step = tuple[tuple[int, int], tuple[int, int]]  # resize to this (height, width), then keep the top left (height, width)


def upsample_crops(
    masks: Float[Tensor, "masks height width"], steps: Sequence[Step], threshold: float = 0.5
) -> Iterator[tuple[Bool[np.ndarray, "_ _"], tuple[int, int]]]:
    """Each mask of probabilities at image size: (crop of bools, its top left pixel), in order, one by one.

    A pixel is in when its probability is greater than the threshold; outside the crop none is. Each step resizes bilinearly,
    half-pixel correct and without antialias, and cuts padding off. A mask that reaches no pixel has a crop of none.
    """
    down = _weights(masks.shape[1], [(size[0], kept[0]) for size, kept in steps])
    across = _weights(masks.shape[2], [(size[1], kept[1]) for size, kept in steps])
    reach_down, reach_across = _reach(down), _reach(across)
    for cells in masks.cpu().numpy():
        high = cells > threshold
        rows = _touched(reach_down, high.any(axis=1))
        columns = _touched(reach_across, high.any(axis=0))
        if not (len(rows) and len(columns)):
            yield np.zeros((0, 0), bool), (0, 0)
        else:
            crop = _crop(cells, down[rows.start : rows.stop], across[columns.start : columns.stop], threshold)
            yield crop, (rows.start, columns.start)


def _crop(cells: np.ndarray, down: np.ndarray, across: np.ndarray, threshold: float) -> Bool[np.ndarray, "_ _"]:
    used_rows, used_columns = _used(down), _used(across)
    columns = cells[used_rows, used_columns] @ across[:, used_columns].T  # cells of a column, pixels of a row
    crop = np.empty((len(down), len(across)), dtype=bool)
    strip = max(1, STRIP_BYTES // (4 * len(across)))  # rows
    for start in range(0, len(down), strip):
        np.greater(down[start : start + strip, used_rows] @ columns, threshold, out=crop[start : start + strip])
    return crop


def _weights(cells: int, steps: Sequence[tuple[int, int]]) -> np.ndarray:
    """Weights of the cells (columns) in each pixel (rows) after steps of resizing to the first number and keeping the second."""
    weights = np.eye(cells, dtype=np.float32)
    for pixels, kept in steps:
        low, high, share = _taps(len(weights), pixels)
        weights = ((1 - share)[:, None] * weights[low] + share[:, None] * weights[high])[:kept]
    return weights


def _taps(cells: int, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pixel: the two cells it lies between, and the share of the second."""
    scale = np.float32(cells) / np.float32(pixels)
    position = np.maximum((np.arange(pixels, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))
    low = np.minimum(position.astype(np.int64), cells - 1)
    return low, np.minimum(low + 1, cells - 1), position - low.astype(np.float32)


def _reach(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last cell with a weight in each pixel; both rise with the pixels."""
    used = weights > 0
    return used.argmax(axis=1), used.shape[1] - 1 - used[:, ::-1].argmax(axis=1)


def _touched(reach: tuple[np.ndarray, np.ndarray], high: np.ndarray) -> range:
    """The pixels with a weight on one of the cells from the first to the last that is high."""
    where = np.flatnonzero(high)
    if len(where) == 0:
        return range(0)
    start = int(np.searchsorted(reach[1], where[0], side="left"))
    return range(start, int(np.searchsorted(reach[0], where[-1], side="right")))


def _used(weights: np.ndarray) -> slice:
    """The cells, first to last, that have a weight in any of these pixels."""
    where = np.flatnonzero(weights.any(axis=0))
    return slice(int(where[0]), int(where[-1]) + 1)


def resize_soft(masks: Float[Tensor, "masks _ _"], size: tuple[int, int]) -> Float[Tensor, "masks new_height new_width"]:
    """Masks of probabilities resized bilinearly, half-pixel correct and without antialias."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    if len(masks) == 0:
        return masks.new_zeros((0, *size))
    return functional.interpolate(masks[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
