"""RoI Align (He et al., 2017, arXiv:1703.06870, section 3) and RoI Pool (Girshick, 2015, arXiv:1504.08083, section 2.1).

    levels -> table, a row of channels for each cell -+
                                                      +-> every bin is a weighted sum of rows -> RoI features
    RoIs -> per axis: cells touched, their weights ---+

A bin of RoI Align is the mean of bilinear samples at regular points. Points and weights separate into a vertical and a
horizontal part, so each axis is worked out by itself, samples that touch the same cell are merged, and a bin sums each of its
cells once, times the product of the two weights. One such term is a tap. The sum is `torch.nn.functional.embedding_bag`,
which reads whole rows of channels. The gradient is the same sum with bins and cells changing places. On a GPU the kernels of
`roi_align_triton` do the same.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

FARTHEST = 2.0**24  # cells; whole numbers up to here are exact in float32
TAPS_FORWARD = 2**17  # taps at a time, and
SUM_BYTES = 2**22  # sums at a time: small enough for the processor's cache and for memory to be used again
ON_GPU = 2**5  # times as many of both at a time on a GPU, which takes as long to begin with few as with many
TAPS_BACKWARD = 2**22  # the gradient is added up over the whole map once for so many taps; about 200 MB


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
    `aligned` places the centre of cell (0, 0) at half a cell, as detectron2 does since ROIAlignV2; otherwise it lies at 0 and a
    RoI is at least one cell wide and high. Samples up to one cell outside the map take the value at its edge, those beyond
    are 0; a RoI with an infinite or NaN coordinate is 0 throughout. Half-precision features are summed in float32.

    With a sampling ratio the shapes are known beforehand: this traces under torch.compile(fullgraph=True) and torch.export.
    """
    level_of_roi = torch.zeros(rois.shape[0], dtype=torch.long, device=rois.device)
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
    """`roi_align` of each RoI on its own level: `level_of_roi` indexes `levels` and their `scales`; results in RoI order.

    On a GPU this runs in kernels of its own where Triton is installed, as it is with PyTorch's builds for CUDA on Linux. Their
    gradients may differ in the last bits from run to run. In float64, under torch.compile, without Triton, and where
    torch.use_deterministic_algorithms asks for one result, PyTorch's own operators do the work, which takes longer.
    """
    bins = (output_size, output_size) if isinstance(output_size, int) else output_size
    kernels = None if torch.compiler.is_compiling() else _kernels_for(levels)
    if kernels is not None:
        return kernels.align(levels, rois, level_of_roi, scales, bins, sampling_ratio, aligned)
    windows = _place(levels, rois, level_of_roi, scales, bins, aligned)
    if torch.compiler.is_compiling() or (sampling_ratio > 0 and rois.device.type != "cpu"):
        return _traceable(levels, windows, bins, sampling_ratio)
    if rois.device.type == "cpu":  # a GPU would have to be waited for; there such a RoI is NaN, or fails an assertion
        _check_images(rois, levels[0].shape[0])
    return _MergedSums.apply(windows, bins, sampling_ratio, *levels)


def roi_pool(
    features: Float[Tensor, "batch channels height width"],
    rois: Float[Tensor, "rois 5"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Float[Tensor, "rois channels rows columns"]:
    """The largest value in each bin, RoI and bins rounded to whole cells: what RoI Align replaced.

    Box edges are rounded, halves away from zero, and belong to the RoI, which is at least one cell wide and high; bins overlap
    where they do not divide evenly. A bin outside the map, or of a RoI that is not finite, is 0. Of equal values the first in
    the order row, column receives the gradient.
    """
    bins = (output_size, output_size) if isinstance(output_size, int) else output_size
    _, channels, height, width = features.shape
    box = rois[:, 1:].detach().float() * spatial_scale
    finite = torch.isfinite(box).all(dim=1, keepdim=True)
    rounded = torch.where(finite, box.sign() * (box.abs() + 0.5).floor(), -FARTHEST)
    x1, y1, x2, y2 = rounded.clamp(-FARTHEST, FARTHEST).unbind(1)
    level_of_roi = torch.zeros(rois.shape[0], dtype=torch.long, device=rois.device)
    windows = _place([features], rois, level_of_roi, [spatial_scale], bins, aligned=False)
    rows, columns = _pooled(y1, y2, bins[0], height), _pooled(x1, x2, bins[1], width)
    table = features.permute(0, 2, 3, 1).flatten(0, 2).to(_summed_in(features)).contiguous()
    out = [
        F.embedding_bag(indices, table, _starts(in_bag), mode="max")  # 0 for a bag of nothing
        for _, indices, in_bag, _ in _parts(windows, rows, columns, TAPS_BACKWARD, windows.count)
    ]
    return torch.cat(out).to(features.dtype).view(-1, *bins, channels).permute(0, 3, 1, 2)


def _pooled(start: Tensor, end: Tensor, bins: int, cells: int) -> "_Merged":
    """All cells of each bin of one axis."""
    length = _divided((end - start + 1).clamp(min=1)[:, None], bins)
    number = torch.arange(bins, device=start.device)
    first = (torch.floor(number * length) + start[:, None]).clamp(0, cells).int()
    count = (torch.ceil((number + 1) * length) + start[:, None]).clamp(0, cells).int() - first
    offset = _starts(count.flatten())
    owner = torch.repeat_interleave(count.flatten())
    cell = (first.flatten() - offset)[owner] + _count_up(owner)
    return _Merged(cell, torch.ones_like(cell), count, offset.view_as(count))


def _kernels_for(levels: Sequence[Tensor]) -> ModuleType | None:
    device = levels[0].device
    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return None
    kernels = _kernels()
    if kernels is None or any(level.dtype not in kernels.DTYPES for level in levels) or not kernels.works(device):
        return None
    return kernels


@functools.cache
def _kernels() -> ModuleType | None:
    try:
        from thingstuff.ops import roi_align_triton  # loads Triton, which nothing else here needs
    except ImportError:
        return None
    return roi_align_triton


# --- where the RoIs lie ---


def _check_images(rois: Tensor, batch: int) -> None:
    known = (rois[:, 0] > -1) & (rois[:, 0] < batch)
    if not known.all():
        raise IndexError(f"a RoI is of image {float(rois[~known][0, 0]):g}, but the batch has {batch} images, counted from 0")


@dataclass(frozen=True, eq=False)
class _Axis:
    """One direction of every RoI, in cells of its level."""

    start: Tensor
    bin: Tensor  # length of one bin
    cells: Tensor  # length of the map


@dataclass(frozen=True, eq=False)
class _Windows:
    y: _Axis
    x: _Axis
    base: Tensor  # the first row of the RoI's image and level in the table

    @property
    def count(self) -> int:
        return self.base.shape[0]  # not len(), which a traced size does not survive


def _place(
    levels: Sequence[Tensor],
    rois: Tensor,
    level_of_roi: Tensor,
    scales: Sequence[float],
    bins: tuple[int, int],
    aligned: bool,
) -> _Windows:
    def of_roi(values: Sequence[int] | Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.stack([torch.full((), value, dtype=dtype, device=rois.device) for value in values])[level_of_roi]

    dtype = _summed_in(levels[0])
    rois = rois.detach().to(dtype)
    first = [0]
    for level in levels[:-1]:
        first.append(first[-1] + level.shape[0] * level.shape[2] * level.shape[3])
    heights = of_roi([level.shape[2] for level in levels], torch.long)
    widths = of_roi([level.shape[3] for level in levels], torch.long)
    base = of_roi(first, torch.long) + rois[:, 0].long() * heights * widths
    box = rois[:, 1:] * of_roi(scales, dtype)[:, None] - (0.5 if aligned else 0.0)
    # a RoI that is not finite is put where every sample misses the map
    finite = torch.isfinite(box).all(dim=1, keepdim=True)
    x1, y1, x2, y2 = torch.where(finite, box, torch.full_like(box, -9.0)).unbind(1)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = width.clamp(min=1), height.clamp(min=1)
    return _Windows(_Axis(y1, _divided(height, bins[0]), heights), _Axis(x1, _divided(width, bins[1]), widths), base)


def _divided(lengths: Tensor, count: int) -> Tensor:
    """Rounded once: a GPU multiplies by the reciprocal of a number that is no tensor, and four cells may become a bit more."""
    return lengths / torch.full((), count, dtype=lengths.dtype, device=lengths.device)


def _summed_in(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _bilinear(position: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each sample: the cell before it, the cell after it, how far it lies towards the latter, and whether it counts."""
    inside = (position >= -1) & (position <= cells)
    last = cells - 1
    position = torch.minimum(position.clamp(min=0), last.to(position.dtype))
    low = position.long()
    return low, torch.minimum(low + 1, last), position - low, inside


# --- the way that traces: no sizes that depend on values (with a sampling ratio), nothing done in place ---


def _traceable(levels: Sequence[Tensor], windows: _Windows, bins: tuple[int, int], sampling_ratio: int) -> Tensor:
    channels = levels[0].shape[1]
    rows = [level.permute(0, 2, 3, 1).reshape(-1, channels) for level in levels]  # (batch height width) channels
    table = torch.cat(rows).to(_summed_in(levels[0])).contiguous()
    if sampling_ratio > 0:
        indices, bags, weights = _taps_of_fixed_shape(windows, bins, sampling_ratio)
    else:
        rows, columns = _merge(windows.y, bins[0], sampling_ratio), _merge(windows.x, bins[1], sampling_ratio)
        indices, in_bag, weights = _cross(windows, rows, columns, slice(None))
        bags = in_bag.cumsum(0) - in_bag
    sums = F.embedding_bag(indices, table, bags, mode="sum", per_sample_weights=weights)
    return sums.to(levels[0].dtype).reshape(-1, *bins, channels).permute(0, 3, 1, 2)  # rois channels bin_rows bin_columns


def _taps_of_fixed_shape(windows: _Windows, bins: tuple[int, int], sampling_ratio: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, row_weights = _fixed_axis(windows.y, bins[0], sampling_ratio)
    columns, column_weights = _fixed_axis(windows.x, bins[1], sampling_ratio)
    rows = windows.base[:, None, None] + rows * windows.x.cells[:, None, None]
    indices = rows[:, :, None, :, None] + columns[:, None, :, None, :]  # rois bin_rows bin_columns tap_rows tap_columns
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    bags = torch.arange(windows.count * bins[0] * bins[1], device=indices.device) * (2 * sampling_ratio) ** 2
    return indices.flatten(), bags, weights.flatten()


def _fixed_axis(axis: _Axis, bins: int, samples: int) -> tuple[Tensor, Tensor]:
    """Cells and weights of one axis, each rois x bins x (2 * samples)."""
    start, length, cells = (values[:, None, None] for values in (axis.start, axis.bin, axis.cells))
    bin_number = torch.arange(bins, device=start.device)[:, None]
    sample = torch.arange(samples, device=start.device)
    low, high, share, inside = _bilinear(start + bin_number * length + _divided((sample + 0.5) * length, samples), cells)
    weights = torch.stack((1 - share, share), dim=-1) * (inside / samples)[..., None]
    return torch.stack((low, high), dim=-1).flatten(2), weights.to(length.dtype).flatten(2)


# --- the way that is fast on a processor, and the only one where bins differ in their number of samples ---


@dataclass(frozen=True, eq=False)
class _Merged:
    """One axis of every bin: the cells it touches with their weights, the lists of all bins laid end to end."""

    cells: Tensor
    weights: Tensor
    count: Tensor  # cells of a bin, rois x bins
    offset: Tensor  # where its list starts, rois x bins


def _merge(axis: _Axis, bins: int, sampling_ratio: int) -> _Merged:
    start, length, cells = axis.start[:, None], axis.bin[:, None], axis.cells[:, None]
    samples = torch.full_like(length, sampling_ratio) if sampling_ratio > 0 else length.ceil().clamp(min=0)
    bin_start = start + torch.arange(bins, device=start.device) * length  # rois bins
    earliest, latest = torch.zeros_like(bin_start), (samples - 1).expand_as(bin_start)
    if sampling_ratio <= 0:
        # of a bin reaching far beyond the map, only samples that may touch it are looked at: two more on either side than needed
        step = (length / samples).double()
        earliest = (((-1 - bin_start) / step - 0.5).floor() - 2).nan_to_num().clamp(min=0)
        latest = (((cells - bin_start) / step - 0.5).ceil() + 2).nan_to_num().minimum(latest.double())
    count = (latest - earliest + 1).clamp(min=0).int().flatten()
    first = _starts(count)
    owner = torch.repeat_interleave(count)  # the bin of each sample
    roi = owner // bins
    sample = torch.arange(owner.shape[0], dtype=torch.int32, device=start.device) - first[owner] + earliest.flatten()[owner]
    position = bin_start.flatten()[owner] + (sample.to(start.dtype) + 0.5) * axis.bin[roi] / samples.flatten()[roi]
    low, high, share, inside = _bilinear(position, axis.cells[roi])
    # Samples come in order, so a cell is shared with the sample before or not at all. Each sample needs two places, for
    # low and high: those of the sample before it, or one further (its low is the high before), or two new ones.
    step_up = low[1:] - low[:-1]
    advance = torch.where((owner[1:] == owner[:-1]) & (step_up >= 0) & (step_up < 2), step_up, 2)
    place = torch.cat((torch.zeros(1, dtype=torch.long, device=start.device), advance.cumsum(0)))
    offset = place[first.clamp(max=place.shape[0] - 1)]
    end = place[(first + count - 1).clamp(min=0, max=place.shape[0] - 1)] + 2
    place = place[: owner.shape[0]]
    value = inside / samples.flatten()[roi]
    room = 2 * owner.shape[0]
    merged_cells = torch.zeros(room, dtype=torch.int32, device=start.device)
    merged_cells = merged_cells.scatter(0, place, low.int()).scatter(0, place + 1, high.int())
    weights = torch.zeros(room, dtype=start.dtype, device=start.device)
    weights = weights.index_add(0, place, (1 - share) * value).index_add(0, place + 1, share * value)
    shape = bin_start.shape
    return _Merged(merged_cells, weights, torch.where(count > 0, end - offset, 0).int().view(shape), offset.int().view(shape))


def _cross(windows: _Windows, rows: _Merged, columns: _Merged, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The taps of some RoIs, bin by bin, each of a bin's rows with each of its columns: indices, number in each bin, weights."""
    row_count, column_count = torch.broadcast_tensors(rows.count[part][:, :, None], columns.count[part][:, None, :])
    row_count, column_count = row_count.flatten(), column_count.flatten()  # (rois bin_rows bin_columns)
    shape = (*rows.count[part].shape, columns.count.shape[1])

    def of_bin(values: Tensor) -> Tensor:
        return values.expand(shape).flatten()

    # a strip: one row of a bin, from its first column to its last
    strip_bin = torch.repeat_interleave(row_count)
    row = _take(of_bin(rows.offset[part][:, :, None]) - _starts(row_count), strip_bin) + _count_up(strip_bin)
    strip_length = _take(column_count, strip_bin)
    across = _take(of_bin(windows.x.cells[part, None, None].int()), strip_bin)
    base = _take(of_bin(windows.base[part, None, None].int()), strip_bin)
    strip_start = base + _take(rows.cells, row) * across
    # a tap: one cell of a strip
    strip = torch.repeat_interleave(strip_length)
    column = _take(_take(of_bin(columns.offset[part][:, None, :]), strip_bin) - _starts(strip_length), strip) + _count_up(strip)
    indices = _take(strip_start, strip) + _take(columns.cells, column)
    weights = _take(_take(rows.weights, row), strip) * _take(columns.weights, column)
    return indices, row_count * column_count, weights


def _take(values: Tensor, places: Tensor) -> Tensor:
    return values.index_select(0, places)


def _count_up(like: Tensor) -> Tensor:
    return torch.arange(like.shape[0], dtype=torch.int32, device=like.device)


def _starts(counts: Tensor) -> Tensor:
    return counts.cumsum(0, dtype=counts.dtype) - counts


class _MergedSums(torch.autograd.Function):
    """RoI Align over merged taps, some RoIs at a time so that memory stays bounded; the taps are made again for the gradient.

    For the gradient, taps are sorted by cell. The order of additions is fixed, so gradients are equal to the bit from run to
    run, which scattered additions would not be.
    """

    @staticmethod
    def forward(ctx: Any, windows: _Windows, bins: tuple[int, int], sampling_ratio: int, *levels: Tensor) -> Tensor:
        ctx.windows, ctx.bins, ctx.sampling_ratio = windows, bins, sampling_ratio
        ctx.levels = [(level.shape, level.dtype, _memory_format(level)) for level in levels]
        channels, like = levels[0].shape[1], levels[0]
        table = _table(levels)
        out = _empty((windows.count, channels, *bins), like.dtype, like.device, _memory_format(like))
        most_rois = _at_a_time(SUM_BYTES, like.device) // (table.element_size() * channels * bins[0] * bins[1])
        rows, columns = _merge(windows.y, bins[0], sampling_ratio), _merge(windows.x, bins[1], sampling_ratio)
        for part, indices, in_bag, weights in _parts(windows, rows, columns, _at_a_time(TAPS_FORWARD, like.device), most_rois):
            sums = F.embedding_bag(indices, table, _starts(in_bag), mode="sum", per_sample_weights=weights)
            out[part].permute(0, 2, 3, 1).copy_(sums.view(-1, *bins, channels))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        into = [_empty(shape, dtype, gradient.device, layout) for shape, dtype, layout in ctx.levels]
        cells = sum(level.shape[0] * level.shape[2] * level.shape[3] for level in into)
        windows, bins = ctx.windows, ctx.bins
        rows, columns = _merge(windows.y, bins[0], ctx.sampling_ratio), _merge(windows.x, bins[1], ctx.sampling_ratio)
        parts = _parts(windows, rows, columns, TAPS_BACKWARD, windows.count)
        for number, (part, indices, in_bag, weights) in enumerate(parts):
            of_bins = gradient[part].permute(0, 2, 3, 1)
            table = _empty(of_bins.shape, weights.dtype, of_bins.device, torch.contiguous_format).copy_(of_bins).flatten(0, 2)
            by_cell = indices.sort(stable=True).indices
            bin_of_tap, weights = torch.repeat_interleave(in_bag).index_select(0, by_cell), weights.index_select(0, by_cell)
            ends = torch.bincount(indices, minlength=cells).cumsum(0)
            first = 0
            for slab in _slabs(into):
                count = slab.shape[0] * slab.shape[1]
                taps = slice(int(ends[first - 1]) if first else 0, int(ends[first + count - 1]))
                starts = torch.cat((ends.new_full((1,), taps.start), ends[first : first + count - 1])) - taps.start
                sums = F.embedding_bag(bin_of_tap[taps], table, starts.int(), mode="sum", per_sample_weights=weights[taps]).view(
                    slab.shape
                )
                slab.copy_(sums) if number == 0 else slab.add_(sums)
                first += count
        return None, None, None, *into


def _parts(
    windows: _Windows, rows: _Merged, columns: _Merged, most_taps: int, most_rois: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Taps of consecutive RoIs, within both limits, or those of one RoI."""
    start, total = 0, 0
    taps_of_roi = (rows.count.sum(dim=1) * columns.count.sum(dim=1)).tolist()
    for roi, taps in enumerate(taps_of_roi):
        if roi > start and (total + taps > most_taps or roi - start >= most_rois):
            yield slice(start, roi), *_cross(windows, rows, columns, slice(start, roi))
            start, total = roi, 0
        total += taps
    yield slice(start, windows.count), *_cross(windows, rows, columns, slice(start, windows.count))


def _at_a_time(most: int, device: torch.device) -> int:
    return most if device.type == "cpu" else most * ON_GPU


def _table(levels: Sequence[Tensor]) -> Tensor:
    channels = levels[0].shape[1]
    if len(levels) == 1 and levels[0].dtype == _summed_in(levels[0]):
        rows = levels[0].permute(0, 2, 3, 1)
        if rows.is_contiguous():
            return rows.view(-1, channels)
    cells = [level.shape[0] * level.shape[2] * level.shape[3] for level in levels]
    table = _empty((sum(cells), channels), _summed_in(levels[0]), levels[0].device, torch.contiguous_format)
    for level, rows in zip(levels, table.split(cells), strict=True):
        rows.view(level.shape[0], *level.shape[2:], channels).copy_(level.permute(0, 2, 3, 1))
    return table


def _slabs(levels: Sequence[Tensor]) -> Iterator[Tensor]:
    """The maps in the order of the table's rows, a few rows of an image at a time, seen as height x width x channels."""
    for level in levels:
        rows = max(1, _at_a_time(SUM_BYTES, level.device) // (4 * level.shape[1] * level.shape[3]))
        for image in level.permute(0, 2, 3, 1):
            yield from image.split(rows)


def _memory_format(features: Tensor) -> torch.memory_format:
    channels_last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def _empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device, layout: torch.memory_format) -> Tensor:
    """Like torch.empty. On a processor the memory is numpy's, which asks the system for large pages: for a map of 200 x 336 x
    256 first touching the memory takes 7 ms instead of 45."""
    if layout == torch.channels_last:
        rois, channels, rows, columns = shape
        return _empty((rois, rows, columns, channels), dtype, device, torch.contiguous_format).permute(0, 3, 1, 2)
    byte_count = dtype.itemsize * math.prod(shape)
    if device.type != "cpu" or byte_count == 0:
        return torch.empty(*shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(byte_count, dtype=np.uint8)).view(dtype).view(*shape)
