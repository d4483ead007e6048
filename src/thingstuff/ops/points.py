"""Masks at points instead of everywhere (PointRend, Kirillov et al., 2019, arXiv:1912.08193, section 3.1)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

CELLS = 2**22  # of booleans, read as numbers at a time: 16 MB


def sample_points(
    maps: Float[Tensor, "maps height width"] | Bool[Tensor, "maps height width"],
    points: Float[Tensor, "some points 2"],
    size: tuple[int, int] | None = None,
    which: Int[Tensor, " rows"] | None = None,
) -> Float[Tensor, "rows points"]:
    """Each map at its own points, or at those all maps share, bilinearly; outside a map is zero.

    Points are x y as shares of an area that begins where the maps do: of the maps themselves, or of `size` (height, width) in
    cells, which may be larger. 0 0 is the corner of the first cell, whose centre lies half a cell further in. `which` says the
    map of each row of points; without it there is a row for each map. Booleans are never turned into numbers all at once: a CPU
    reads some maps at a time, a GPU where the points are.
    """
    height, width = maps.shape[1:]
    count = len(maps) if which is None else len(which)
    high, wide = size or (height, width)
    if height * width == 0:  # all is outside
        return points.new_zeros((count, points.shape[1]))
    if maps.device.type != "cpu":
        return _gathered(maps, points * points.new_tensor([wide, high]) - 0.5, which)
    grid = points * points.new_tensor([2 * wide / width, 2 * high / height]) - 1
    if maps.dtype != torch.bool and which is None:
        return _by_grid_sample(maps.to(points.dtype), grid)
    pieces = (torch.arange(count) if which is None else which).split(max(1, CELLS // (height * width)))
    grids = grid.split(len(pieces[0])) if len(grid) == count else [grid] * len(pieces)
    parts = [_by_grid_sample(maps[piece].to(grid.dtype), own) for piece, own in zip(pieces, grids, strict=True)]
    return torch.cat(parts)


def _by_grid_sample(
    maps: Float[Tensor, "maps height width"], grid: Float[Tensor, "some points 2"]
) -> Float[Tensor, "maps points"]:
    """The way of a CPU, in one pass; a grid goes from -1 to 1 over the map."""
    if len(grid) == 1:  # maps that share their points are channels of one
        return functional.grid_sample(maps[None], grid[:, None], align_corners=False)[0, :, 0]
    return functional.grid_sample(maps[:, None], grid[:, None], align_corners=False)[:, 0, 0]


def _gathered(
    maps: Tensor, position: Float[Tensor, "some points 2"], which: Int[Tensor, " rows"] | None = None
) -> Float[Tensor, "rows points"]:
    """The way of a GPU, where torch's deterministic mode has no gradient of grid_sample; positions are x y in cells."""
    height, width = maps.shape[1:]
    flat = maps.flatten(1)
    count = len(maps) if which is None else len(which)
    x, y = position.unbind(-1)  # some points
    total = torch.zeros((count, position.shape[1]), device=maps.device, dtype=position.dtype)
    for row, share_down in _taps(y):
        for column, share_across in _taps(x):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            cell = torch.where(inside, row * width + column, 0).long().expand(count, -1)
            values = flat.gather(1, cell) if which is None else flat[which[:, None], cell]
            total = total + values.to(position.dtype) * (share_down * share_across * inside)
    return total


def _taps(position: Float[Tensor, "some points"]) -> list[tuple[Tensor, Tensor]]:
    """The two cells that a position lies between, and the share of each."""
    low = position.floor()
    share = position - low
    return [(low, 1 - share), (low + 1, share)]


@torch.no_grad()
def uncertain_points(
    logits_at: Callable[[Float[Tensor, "maps points 2"]], Float[Tensor, "maps points"]],
    maps: int,
    points: int,
    oversample: float,
    importance: float,
    like: Tensor,
) -> Float[Tensor, "maps {points} 2"]:
    """Points where training pays: for each map the most uncertain of many, and some anywhere (section 3.1, "training").

    Args:
        logits_at: what the maps say at points; near 0 is uncertain.
        maps: how many there are.
        points: wanted of each.
        oversample: so many times the points are drawn to choose from.
        importance: share of the points that is chosen so; the others are drawn evenly.
        like: a tensor on the device of the result.
    """
    chosen = int(importance * points)
    candidates = torch.rand(maps, max(int(oversample * points), chosen), 2, device=like.device)
    uncertainty = -logits_at(candidates).abs()
    best = uncertainty.topk(chosen, dim=1, sorted=False).indices
    picked = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.cat([picked, torch.rand(maps, points - chosen, 2, device=like.device)], dim=1)
