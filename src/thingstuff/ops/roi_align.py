"""RoI Align (He et al., 2017, arXiv:1703.06870, section 3) and RoI Pool (Girshick, 2015, arXiv:1504.08083, section 2.1).

levels -> one table, a row of channels per cell -+
                                                 +-> each bin is a weighted sum of rows -> RoI features
RoIs -> per axis: rows touched, their weights ---+

A bin of RoI Align is the mean of bilinear samples at regular points. Samples and weights separate into a vertical and a
horizontal part, so we work out each axis by itself, merge the samples that touch the same cell, and sum each cell once with
the product of its two weights. The sum is `torch.nn.functional.embedding_bag`, which reads whole rows of channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_BYTES = 128 * 2**20  # working memory of one chunk of RoIs, besides features and result
BYTES_PER_TAP = 48  # index, weight and the temporaries that make them


def roi_align(
    features: Float[Tensor, "batch channels height width"],
    rois: Float[Tensor, "rois 5"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Float[Tensor, "rois channels rows columns"]:
    """Features of each RoI on a grid of bins, sampled bilinearly without rounding.

    A RoI is (index in the batch, x1, y1, x2, y2); its box times `spatial_scale` is in cells of the map. Each bin averages
    sampling_ratio**2 samples, or, where sampling_ratio <= 0, one sample for each cell it spans, rounded up, along each axis.
    `aligned` places cell (0, 0) at half a cell, as detectron2 does since ROIAlignV2; otherwise cell (0, 0) lies at 0 and a
    RoI is at least one cell wide and high. Samples up to one cell outside the map take the value at its edge, those beyond
    are 0; a RoI with an infinite or NaN coordinate is 0 throughout. The memory layout of the result is channels-last.
    """
    level_of_roi = torch.zeros(len(rois), dtype=torch.long, device=rois.device)
    return multilevel_roi_align([features], rois, level_of_roi, [spatial_scale], output_size, sampling_ratio, aligned)


def multilevel_roi_align(
    levels: Sequence[Float[Tensor, "batch channels _ _"]],
    rois: Float[Tensor, "rois 5"],
    level_of_roi: Int[Tensor, " rois"],
    scales: Sequence[float],
    output_size: int | tuple[int, int],
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Float[Tensor, "rois channels rows columns"]:
    """`roi_align` of each RoI on its own level: `level_of_roi` indexes `levels` and their `scales`; results in RoI order."""
    bins = (output_size, output_size) if isinstance(output_size, int) else output_size
    channels = levels[0].shape[1]
    table = torch.cat([_rows_of_cells(level) for level in levels])
    windows = _place(levels, rois, level_of_roi, scales, bins, aligned)
    if sampling_ratio > 0 and (torch.compiler.is_compiling() or rois.device.type != "cpu"):
        out = _sum_with_fixed_shapes(table, windows, bins, sampling_ratio)
    else:
        out = _sum_merged(table, windows, bins, sampling_ratio)
    out = out.to(levels[0].dtype).reshape(len(rois), *bins, channels)
    return out.permute(0, 3, 1, 2)  # rois channels rows columns


@dataclass(frozen=True, eq=False)
class _Axis:
    """One direction of every RoI, in cells of its level."""

    start: Tensor
    bin: Tensor  # length of one bin
    cells: Tensor  # length of the map


@dataclass(frozen=True, eq=False)
class _Windows:
    """Where the RoIs lie: two axes, and the first row of their image and level in the table."""

    y: _Axis
    x: _Axis
    base: Tensor


def _rows_of_cells(level: Tensor) -> Tensor:
    return level.permute(0, 2, 3, 1).flatten(0, 2).float()  # (batch height width) channels


def _place(
    levels: Sequence[Tensor],
    rois: Tensor,
    level_of_roi: Tensor,
    scales: Sequence[float],
    bins: tuple[int, int],
    aligned: bool,
) -> _Windows:
    def of_roi(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=rois.device)[level_of_roi]

    rois = rois.detach().float()
    sizes = [tuple(level.shape[2:]) for level in levels]
    first = [0]
    for level in levels[:-1]:
        first.append(first[-1] + level.shape[0] * level.shape[2] * level.shape[3])
    heights, widths = of_roi([h for h, _ in sizes], torch.long), of_roi([w for _, w in sizes], torch.long)
    base = of_roi(first, torch.long) + rois[:, 0].long() * heights * widths
    box = rois[:, 1:] * of_roi(scales, torch.float32)[:, None] - (0.5 if aligned else 0.0)
    # a RoI that is not finite is put where every sample misses the map
    finite = torch.isfinite(box).all(dim=1, keepdim=True)
    box = torch.where(finite, box, torch.tensor([-9.0, -9.0, -8.0, -8.0], device=box.device))
    x1, y1, x2, y2 = box.unbind(1)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = width.clamp(min=1), height.clamp(min=1)
    return _Windows(_Axis(y1, height / bins[0], heights), _Axis(x1, width / bins[1], widths), base)


def _taps(position: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cell at or before each sample, the share of the cell after it, and whether the sample counts."""
    inside = (position >= -1) & (position <= cells)
    last = cells - 1
    position = torch.minimum(position.clamp(min=0), last)
    low = position.long()
    return low, position - low, inside


# --- fixed sampling, shapes known beforehand: what torch.compile and torch.export trace, and no waiting for the device ---


def _sum_with_fixed_shapes(table: Tensor, windows: _Windows, bins: tuple[int, int], sampling_ratio: int) -> Tensor:
    rows, row_weights = _fixed_taps(windows.y, bins[0], sampling_ratio)
    columns, column_weights = _fixed_taps(windows.x, bins[1], sampling_ratio)
    rows = windows.base[:, None, None] + rows * windows.x.cells[:, None, None]
    taps = rows.shape[2] * columns.shape[2]
    indices = rows[:, :, None, :, None] + columns[:, None, :, None, :]  # rois bin_rows bin_columns taps_y taps_x
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    bags = torch.arange(0, indices.numel(), taps, device=table.device)
    return _weighted_sums(table, indices.flatten(), bags, weights.flatten())


def _fixed_taps(axis: _Axis, bins: int, samples: int) -> tuple[Tensor, Tensor]:
    """Cells and weights of one axis, each rois x bins x (2 * samples)."""
    steps = torch.arange(bins * samples, device=axis.start.device)
    bin_number, sample = steps // samples, steps % samples
    start, length, cells = axis.start[:, None], axis.bin[:, None], axis.cells[:, None]
    position = start + bin_number * length + (sample + 0.5) * length / samples
    low, share, inside = _taps(position, cells)
    high = torch.minimum(low + 1, cells - 1)
    both = torch.stack((low, high), dim=-1)
    weights = torch.stack((1 - share, share), dim=-1) * inside[..., None] / samples
    return both.unflatten(1, (bins, samples)).flatten(2), weights.unflatten(1, (bins, samples)).flatten(2)


# --- any sampling, each bin touching as many cells as it needs ---


@dataclass(frozen=True, eq=False)
class _Runs:
    """One axis of every bin: a run of neighbouring cells and their weights, all runs laid end to end."""

    first: Tensor  # first cell, rois x bins
    length: Tensor  # cells in the run, rois x bins
    offset: Tensor  # where the run starts in `weights`, rois x bins
    weights: Tensor


def _sum_merged(table: Tensor, windows: _Windows, bins: tuple[int, int], sampling_ratio: int) -> Tensor:
    rows = _runs(windows.y, bins[0], sampling_ratio)
    columns = _runs(windows.x, bins[1], sampling_ratio)
    # rois bin_rows bin_columns, flattened: bags of taps
    taps_of_roi = rows.length.sum(dim=1) * columns.length.sum(dim=1)
    out = []
    for part in _chunks(taps_of_roi, CHUNK_BYTES // BYTES_PER_TAP):
        indices, bags, weights = _cross(windows, rows, columns, part)
        out.append(_weighted_sums(table, indices, bags, weights))
    return out[0] if len(out) == 1 else torch.cat(out)


def _chunks(taps_of_roi: Tensor, limit: int) -> list[slice]:
    """Slices of consecutive RoIs that stay within the limit, or hold one RoI."""
    parts, start, total = [], 0, 0
    for roi, taps in enumerate(taps_of_roi.tolist()):
        if roi > start and total + taps > limit:
            parts.append(slice(start, roi))
            start, total = roi, 0
        total += taps
    return [*parts, slice(start, len(taps_of_roi))]


def _runs(axis: _Axis, bins: int, sampling_ratio: int) -> _Runs:
    device = axis.start.device
    start, length, cells = axis.start[:, None], axis.bin[:, None], axis.cells[:, None]
    samples = torch.full_like(length, sampling_ratio) if sampling_ratio > 0 else length.ceil().clamp(min=0)
    bin_start = start + torch.arange(bins, device=device) * length
    earliest, latest = torch.zeros_like(bin_start), (samples - 1).expand_as(bin_start)
    if sampling_ratio <= 0:
        # of a bin reaching far beyond the map, only samples that may touch it are looked at: two more on either side than needed
        step = (length / samples).double()
        earliest = (((-1 - bin_start).double() / step - 0.5).floor() - 2).nan_to_num().clamp(min=0)
        latest = (((cells - bin_start).double() / step - 0.5).ceil() + 2).nan_to_num().minimum(latest)
    count = (latest - earliest + 1).clamp(min=0).long()  # rois bins
    bin_of_sample = torch.repeat_interleave(count.flatten())
    within = torch.arange(len(bin_of_sample), device=device) - (count.flatten().cumsum(0) - count.flatten())[bin_of_sample]
    sample = earliest.flatten()[bin_of_sample].float() + within
    roi = bin_of_sample // bins
    position = bin_start.flatten()[bin_of_sample] + (sample + 0.5) * axis.bin[roi] / samples.flatten()[roi]
    low, share, inside = _taps(position, axis.cells[roi])
    high = torch.minimum(low + 1, axis.cells[roi] - 1)
    # the run of a bin covers all cells that its samples touch
    total = len(axis.start) * bins
    nowhere = 2**62
    first = torch.full((total,), nowhere, device=device).scatter_reduce(
        0, bin_of_sample, torch.where(inside, low, nowhere), "amin", include_self=True
    )
    last = torch.full((total,), -1, device=device).scatter_reduce(
        0, bin_of_sample, torch.where(inside, high, -1), "amax", include_self=True
    )
    run = (last - first + 1).clamp(min=0)
    offset = run.cumsum(0) - run
    value = inside / samples.flatten()[roi]
    place = torch.where(inside, offset[bin_of_sample] + low - first[bin_of_sample], 0)
    weights = torch.zeros(int(run.sum()) + 1, device=device)
    weights.index_add_(0, place, (1 - share) * value)
    weights.index_add_(0, place + (high - low), share * value)
    return _Runs(first.view(-1, bins), run.view(-1, bins), offset.view(-1, bins), weights)


def _cross(windows: _Windows, rows: _Runs, columns: _Runs, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, bag starts and weights of the taps of some RoIs: in each bin, every row of its run with every column."""
    device = windows.base.device
    row_count, column_count = rows.length[part][:, :, None], columns.length[part][:, None, :]
    in_bag = (row_count * column_count).flatten()
    bags = in_bag.cumsum(0) - in_bag
    shape = (row_count.shape[0], row_count.shape[1], column_count.shape[2])
    # strips: one row of a bin, its cells neighbours in the table
    strips_of_bag = row_count.expand(shape).flatten().clone()
    strips_of_bag[in_bag == 0] = 0
    bag = torch.repeat_interleave(strips_of_bag)
    row = torch.arange(len(bag), device=device) - (strips_of_bag.cumsum(0) - strips_of_bag)[bag]
    first_row = (
        (windows.base[part, None] + rows.first[part] * windows.x.cells[part, None])[:, :, None].expand(shape).flatten()[bag]
    )
    across = windows.x.cells[part, None, None].expand(shape).flatten()[bag]
    first_column = columns.first[part][:, None, :].expand(shape).flatten()[bag]
    row_weight = rows.weights[rows.offset[part][:, :, None].expand(shape).flatten()[bag] + row]
    strip_length = column_count.expand(shape).flatten()[bag]
    strip_index = first_row + row * across + first_column
    strip_offset = columns.offset[part][:, None, :].expand(shape).flatten()[bag]
    # taps: the cells of each strip
    strip = torch.repeat_interleave(strip_length)
    column = torch.arange(len(strip), device=device) - (strip_length.cumsum(0) - strip_length)[strip]
    return strip_index[strip] + column, bags, row_weight[strip] * columns.weights[strip_offset[strip] + column]


# --- the sum ---


def _weighted_sums(table: Tensor, indices: Tensor, bags: Tensor, weights: Tensor) -> Tensor:
    """Sums of table rows, each times its weight; `bags` says where in `indices` each sum starts."""
    if table.requires_grad and torch.is_grad_enabled():
        return _WeightedSums.apply(table, indices, bags, weights)
    return F.embedding_bag(indices, table, bags, mode="sum", per_sample_weights=weights)


class _WeightedSums(torch.autograd.Function):
    """Its gradient is a weighted sum as well, with bins and cells changing places: for each cell, the bins that used it.

    Sorting the taps by cell keeps the order of additions fixed, so gradients are equal to the bit from run to run, which the
    atomic additions of a scatter would not be.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, indices: Tensor, bags: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(indices, bags, weights)
        ctx.rows = table.shape[0]
        return F.embedding_bag(indices, table, bags, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        indices, bags, weights = ctx.saved_tensors
        cells, by_cell = indices.sort(stable=True)
        taps = torch.arange(len(indices), device=indices.device)
        bin_of_tap = torch.searchsorted(bags, taps, right=True) - 1
        starts = torch.searchsorted(cells, torch.arange(ctx.rows, device=indices.device))
        gradient = F.embedding_bag(
            bin_of_tap[by_cell], gradients[0].contiguous(), starts, mode="sum", per_sample_weights=weights[by_cell]
        )
        return gradient, None, None, None
