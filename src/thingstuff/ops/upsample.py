"""Bring small masks of the whole image to the image's size: one at a time and only where they can be above the threshold, or all
of them, a tile of the image at a time.

Bilinear resizing is linear and separates into rows and columns, so several resizes with cuts between them are one matrix a side:
mask at image size = down @ mask @ across. A resized pixel is a mean of cells: it passes the threshold only near a cell that does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int16
from torch import Tensor
from torch.nn import functional

STRIP_BYTES = 2**20  # float32 rows computed at a time
GPU_BYTES = 2**27  # of float32 masks, or of all maps on a tile, at a time, where they lie on a GPU
TILE_BYTES = 2**22  # of all maps on one tile in float32: small enough for a processor's cache
TILE_WIDTH = 256  # pixels: what a few cells spread over, so that few maps differ within a tile
SLACK = 1e-3  # by how much a mean may lie outside of what it is a mean of, through rounding

Step = tuple[tuple[int, int], tuple[int, int]]  # resize to this (height, width), then keep the top left (height, width)


def upsample_crops(
    masks: Float[Tensor, "masks height width"], steps: Sequence[Step], threshold: float = 0.5
) -> Iterator[tuple[Bool[np.ndarray, "_ _"], tuple[int, int]]]:
    """Each mask of probabilities at image size: (crop of bools, its top left pixel), in order, one by one.

    A pixel is in when its probability is greater than the threshold; outside the crop none is. Each step resizes bilinearly,
    half-pixel correct and without antialias, and cuts padding off. A mask that reaches no pixel has a crop of none.
    """
    for crop, corner, _ in _crops(masks, steps, threshold, measured=False):
        yield crop, corner


def upsample_logits(
    logits: Float[Tensor, "masks height width"], steps: Sequence[Step]
) -> Iterator[tuple[Bool[np.ndarray, "_ _"], tuple[int, int], float]]:
    """`upsample_crops` of logits, where they are above 0, and the mean probability of the pixels that are in, 0 if none is."""
    yield from _crops(logits, steps, 0.0, measured=True)


@dataclass(frozen=True, eq=False)
class Tile:
    """A rectangle of the image, and the cells of the maps that its pixels are means of."""

    rows: slice  # of the image
    columns: slice
    cells: tuple[slice, slice]  # rows and columns of the maps
    down: Float[Tensor, "pixels_down cells_down"]
    across: Float[Tensor, "pixels_across cells_across"]

    def below(self, maps: Float[Tensor, "maps height width"]) -> Float[Tensor, "maps cells_down cells_across"]:
        """The cells: what the tile shows lies between their least and their greatest value."""
        return maps[:, self.cells[0], self.cells[1]]

    def enlarge(self, cells: Float[Tensor, "maps cells_down cells_across"]) -> Float[Tensor, "maps pixels_down pixels_across"]:
        with torch.autocast(cells.device.type, enabled=False):  # 16 bits would move outlines
            return self.down @ cells.float() @ self.across.T


def tiles(maps: Float[Tensor, "maps height width"], steps: Sequence[Step]) -> Iterator[Tile]:
    """The image in rectangles so small that all maps on one of them take `TILE_BYTES`. See `upsample_crops` for the steps.

    On a GPU, where each takes a while whatever its size, they take `GPU_BYTES`.
    """
    down, across = (
        torch.from_numpy(_weights(cells, [(size[axis], kept[axis]) for size, kept in steps])).to(maps.device)
        for axis, cells in enumerate(maps.shape[1:])
    )
    height, width = len(down), len(across)
    most_bytes, most_columns = (TILE_BYTES, TILE_WIDTH) if maps.device.type == "cpu" else (GPU_BYTES, width)
    rows = max(1, most_bytes // (4 * max(len(maps), 1) * min(width, most_columns)))
    columns = [_banded(across, slice(left, min(left + most_columns, width))) for left in range(0, width, most_columns)]
    for top in range(0, height, rows):
        row, used_rows, weights_down = _banded(down, slice(top, min(top + rows, height)))
        for column, used_columns, weights_across in columns:
            yield Tile(row, column, (used_rows, used_columns), weights_down, weights_across)


def upsample_labels(
    logits: Float[Tensor, "classes height width"], steps: Sequence[Step]
) -> Int16[Tensor, "new_height new_width"]:
    """The class whose logit is largest in each pixel at image size, the first of equal ones. See `upsample_crops` for the steps.

    At image size the logits take 4 bytes a pixel and class, 2.6 GB for 54 classes and 12 megapixels; one tile of them exists, of
    those classes that may be largest somewhere in it.
    """
    height, width = steps[-1][1]
    labels = torch.empty((height, width), dtype=torch.int16, device=logits.device)
    for tile in tiles(logits, steps):
        cells = tile.below(logits).float()
        known = cells.flatten(1)
        # a class that is below another everywhere in these cells is so in every mean of them; the slack is for rounding
        may_win = (~(known.amax(dim=1) < known.amin(dim=1).max() - SLACK)).nonzero().squeeze(1)  # of NaN anything may be
        labels[tile.rows, tile.columns] = may_win[tile.enlarge(cells[may_win]).max(dim=0).indices].short()
    return labels


def _banded(weights: Tensor, pixels: slice) -> tuple[slice, slice, Tensor]:
    """Some pixels, the cells that have a weight in any of them, and those weights."""
    part = weights[pixels]
    used = part.any(dim=0).nonzero()
    cells = slice(int(used[0]), int(used[-1]) + 1)
    return pixels, cells, part[:, cells]


def _crops(
    masks: Tensor, steps: Sequence[Step], threshold: float, measured: bool
) -> Iterator[tuple[np.ndarray, tuple[int, int], float]]:
    down = _weights(masks.shape[1], [(size[0], kept[0]) for size, kept in steps])
    across = _weights(masks.shape[2], [(size[1], kept[1]) for size, kept in steps])
    if masks.device.type != "cpu":
        yield from _crops_of_many(masks, down, across, threshold, measured)
        return
    reach_down, reach_across = _reach(down), _reach(across)
    for cells in masks.float().numpy():  # numpy has no bfloat16, which autocast makes of products
        high = cells > threshold
        rows = _touched(reach_down, high.any(axis=1))
        columns = _touched(reach_across, high.any(axis=0))
        if not (len(rows) and len(columns)):
            yield np.zeros((0, 0), bool), (0, 0), 0.0
        else:
            where = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
            crop, mean = _crop(cells, down[where[0]], across[where[1]], threshold, measured)
            yield crop, (rows.start, columns.start), mean


@torch.no_grad()
def _crops_of_many(
    masks: Tensor, down: np.ndarray, across: np.ndarray, threshold: float, measured: bool
) -> Iterator[tuple[np.ndarray, tuple[int, int], float]]:
    """The way of a GPU, which enlarges many whole masks faster than it is told which part of one matters."""
    weights_down, weights_across = (torch.from_numpy(weights).to(masks.device) for weights in (down, across))
    for some in masks.split(max(1, GPU_BYTES // (4 * len(down) * len(across)))):
        with torch.autocast(masks.device.type, enabled=False):  # 16 bits would move outlines
            values = weights_down @ some.float() @ weights_across.T
        inside = values > threshold
        means = torch.zeros(len(some), dtype=torch.float64)
        if measured:
            total = torch.where(inside, values.sigmoid_(), 0).sum(dim=(1, 2), dtype=torch.float64)
            means = total / inside.sum(dim=(1, 2)).clamp(min=1)
        edges = torch.cat((_ends(inside.any(dim=2)), _ends(inside.any(dim=1))), dim=1)
        for mask, (top, bottom, left, right), mean in zip(inside.cpu().numpy(), edges.tolist(), means.tolist(), strict=True):
            yield mask[top:bottom, left:right], (top, left), mean


def _ends(used: Bool[Tensor, "masks pixels"]) -> Int[Tensor, "masks 2"]:
    """The first pixel used and the one after the last; twice 0 where none is."""
    numbers = used.byte()
    last = used.shape[1] - numbers.flip(1).argmax(dim=1)
    return torch.stack((numbers.argmax(dim=1), torch.where(used.any(dim=1), last, 0)), dim=1)


def _crop(
    cells: np.ndarray, down: np.ndarray, across: np.ndarray, threshold: float, measured: bool
) -> tuple[Bool[np.ndarray, "_ _"], float]:
    used_columns = _used(across)
    columns = cells[:, used_columns] @ across[:, used_columns].T  # cells of a column, pixels of a row
    crop = np.empty((len(down), len(across)), dtype=bool)
    total, count = 0.0, 0
    strip = max(1, STRIP_BYTES // (4 * len(across)))  # rows
    for start in range(0, len(down), strip):
        weights = down[start : start + strip]
        used_rows = _used(weights)
        values = weights[:, used_rows] @ columns[used_rows]
        inside = np.greater(values, threshold, out=crop[start : start + strip])
        if measured:
            probabilities = torch.from_numpy(values[inside]).sigmoid_()
            total += float(probabilities.sum(dtype=torch.float64))
            count += len(probabilities)
    return crop, total / max(count, 1)


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
