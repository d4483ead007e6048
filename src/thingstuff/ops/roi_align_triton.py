"""RoI Align (He et al., 2017, arXiv:1703.06870, section 3) in kernels for a GPU, written in Triton.

    RoIs -> per axis and bin: cells touched, their weights -+
                                                            +-> every bin: rows of channels, each times its weight, summed
    levels, a row of channels for each cell ----------------+

The same sums as in `roi_align`, which says what they mean: samples that touch the same cell are merged, axis by axis, and a tap
is one cell of a bin. One warp sums a bin, lanes along the channels, so a level whose channels do not lie next to each other is
turned first. Everything is launched without waiting for the GPU. The gradient is added up in float32 by scattered additions, in
no fixed order: it may differ in the last bits from run to run.

Importing this module needs Triton, which comes with PyTorch's builds for CUDA on Linux.
"""

import contextlib
import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, no_type_check

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

TAPS = 8  # of a bin at a time
CELLS = 32  # of a bin and an axis, listed at a time
MOST_CHANNELS = 256  # of a bin, summed by one warp: 8 for each lane
TILE = 64  # rows and columns turned at a time
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def align(
    levels: Sequence[Float[Tensor, "batch channels _ _"]],
    rois: Float[Tensor, "rois 5"],
    level_of_roi: Int[Tensor, " rois"],
    scales: Sequence[float],
    bins: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Float[Tensor, "rois channels rows columns"]:
    """As `multilevel_roi_align`, of levels in `DTYPES`. A RoI of an image or a level that there is not is NaN throughout."""
    return _Align.apply(rois.detach(), level_of_roi, tuple(scales), bins, max(0, sampling_ratio), aligned, *levels)


@functools.cache
def works(device: torch.device) -> bool:
    """Whether kernels can be built for this GPU and run; where they cannot, one warning says why."""
    try:
        with _current(device):
            _turned(torch.zeros(1, 1, 1, device=device), torch.float32)
    except Exception as error:  # what can be missing ranges from a C compiler to a new enough GPU
        reason = (str(error).splitlines() or [""])[0]
        warnings.warn(
            f"RoI Align runs in PyTorch's own operators, which are slower: on {device} Triton fails with "
            f"{type(error).__name__}: {reason}. It needs a C compiler and a GPU that it supports",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


class _Align(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rois: Tensor,
        level_of_roi: Tensor,
        scales: tuple[float, ...],
        bins: tuple[int, int],
        samples: int,
        aligned: bool,
        *levels: Tensor,
    ) -> Tensor:
        like, count = levels[0], rois.shape[0]
        rois, level_of_roi = rois.contiguous(), level_of_roi.contiguous()
        # an adaptive bin lists cells of the map, of which two at most are also the bin's before it
        rows, columns = (
            of_axis * 2 * samples if samples else max(level.shape[axis] for level in levels) + 2 * of_axis
            for axis, of_axis in zip((2, 3), bins, strict=True)
        )
        cells = torch.empty(count, rows + columns, dtype=torch.int32, device=like.device)
        weights = torch.empty(count, rows + columns, dtype=torch.float32, device=like.device)
        spans = torch.empty(count, sum(bins), 2, dtype=torch.int32, device=like.device)
        out = torch.empty((count, like.shape[1], *bins), dtype=like.dtype, device=like.device, memory_format=_memory_format(like))
        out.fill_(math.nan)  # what a RoI of no level keeps
        ctx.bins, ctx.levels = bins, [(level.shape, level.dtype, _memory_format(level)) for level in levels]
        ctx.save_for_backward(rois, level_of_roi, cells, weights, spans)
        if out.numel() == 0:
            return out
        with _current(like.device):
            for number, (level, scale) in enumerate(zip(levels, scales, strict=True)):
                placed = (rois, level_of_roi, number, len(levels), cells, weights, spans, rows + columns)
                _launch(
                    _list_taps,
                    (count, sum(bins)),
                    *placed,
                    *(level.shape[2], level.shape[3], float(scale), rows),
                    *(*bins, samples, triton.next_power_of_2(max(1, 2 * samples)), aligned, CELLS),
                    num_warps=1,
                    enable_fp_fusion=False,  # round as a processor does, or a bin of a whole number of cells gets one sample more
                )
                _launch_bins(_sum_taps, _rows(level), out, placed, level.shape, bins)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        rois, level_of_roi, cells, weights, spans = ctx.saved_tensors
        into: list[Tensor | None] = []
        with _current(gradient.device):
            for number, (shape, dtype, memory_format) in enumerate(ctx.levels):
                if not ctx.needs_input_grad[6 + number]:
                    into.append(None)
                    continue
                batch, channels, height, width = shape
                table = torch.zeros(batch, height * width, channels, dtype=torch.float32, device=gradient.device)
                if gradient.numel() > 0:
                    placed = (rois, level_of_roi, number, len(ctx.levels), cells, weights, spans, cells.shape[1])
                    _launch_bins(_spread_taps, table, gradient, placed, shape, ctx.bins)
                if memory_format == torch.channels_last or table.numel() == 0:
                    into.append(table.to(dtype).view(batch, height, width, channels).permute(0, 3, 1, 2))
                else:
                    into.append(_turned(table, dtype).view(shape))
        return *([None] * 6), *into


def _memory_format(features: Tensor) -> torch.memory_format:
    last = not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _rows(level: Tensor) -> Tensor:
    """A row of channels for each cell: batch (height width) channels."""
    rows = level.permute(0, 2, 3, 1)
    if rows.is_contiguous():
        return rows.flatten(1, 2)
    return _turned(level.contiguous().flatten(2), level.dtype)


def _turned(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous matrices, each with rows and columns changing places."""
    count, rows, columns = matrices.shape
    out = torch.empty(count, columns, rows, dtype=dtype, device=matrices.device)
    if out.numel() > 0:
        tiles = triton.cdiv(rows, TILE) * triton.cdiv(columns, TILE)
        _launch(_turn, (tiles, count), matrices, out, rows, columns, TILE, num_warps=4)
    return out


def _launch_bins(
    kernel: Any, table: Tensor, of_bins: Tensor, placed: Sequence[Any], shape: torch.Size, bins: tuple[int, int]
) -> None:
    """A kernel for each bin, between the rows of one level, a map of this shape, and values rois x channels x bins."""
    batch, channels, height, width = shape
    block = min(MOST_CHANNELS, triton.next_power_of_2(channels))
    grid = (of_bins.shape[0] * bins[0] * bins[1], triton.cdiv(channels, block))
    _launch(
        kernel, grid, *placed, table, of_bins, *of_bins.stride(), batch, height, width, *bins, channels, block, TAPS, num_warps=1
    )


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    kernel[grid](*arguments, **options)


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


# --- kernels; sizes that change from image to image are not specialised on, or each would be built anew ---


@triton.jit
@no_type_check
def _position(number, start, length, samples):
    return start + tl.div_rn((number + 0.5) * length, samples)


@triton.jit
@no_type_check
def _bilinear(position, size):
    """Of samples: the cell before, the cell after, how far they lie towards the latter, and whether they count."""
    inside = (position >= -1) & (position <= size)
    position = tl.minimum(tl.maximum(position, 0.0), size - 1)
    low = tl.floor(position)
    return low, tl.minimum(low + 1, size - 1), position - low, inside


@triton.jit(do_not_specialize=["level", "levels", "slots", "height", "width", "slots_y"])
@no_type_check
def _list_taps(
    rois,
    level_of_roi,
    level,
    levels,
    cells,
    weights,
    spans,  # of each bin, the vertical ones first: where its list begins among those of the RoI, and its length
    slots,  # of a RoI in `cells` and `weights`
    height,
    width,
    scale,
    slots_y,
    BINS_Y: tl.constexpr,
    BINS_X: tl.constexpr,
    SAMPLES: tl.constexpr,  # 0: adaptive
    FIXED: tl.constexpr,  # 2 * SAMPLES up to a power of two
    ALIGNED: tl.constexpr,
    CELLS: tl.constexpr,
):
    """One axis of one bin: the cells it touches and their weights."""
    roi = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1)
    which = tl.load(level_of_roi + roi)
    if (which == level) | (which == level - levels):
        x1 = tl.load(rois + roi * 5 + 1).to(tl.float32) * scale
        y1 = tl.load(rois + roi * 5 + 2).to(tl.float32) * scale
        x2 = tl.load(rois + roi * 5 + 3).to(tl.float32) * scale
        y2 = tl.load(rois + roi * 5 + 4).to(tl.float32) * scale
        if ALIGNED:
            x1 -= 0.5
            y1 -= 0.5
            x2 -= 0.5
            y2 -= 0.5
        vertical = number < BINS_Y
        corner = tl.where(vertical, y1, x1)
        extent = tl.where(vertical, y2 - y1, x2 - x1)
        if not ALIGNED:
            extent = tl.maximum(extent, 1.0)
        most = 3.4028234663852886e38  # the largest float32; no comparison holds for NaN
        finite = (tl.abs(x1) <= most) & (tl.abs(y1) <= most) & (tl.abs(x2) <= most) & (tl.abs(y2) <= most)
        finite = finite & (tl.abs(extent) <= most)
        length = tl.div_rn(tl.where(finite, extent, 0.0), tl.where(vertical, BINS_Y, BINS_X).to(tl.float32))
        bin = tl.where(vertical, number, number - BINS_Y)
        start = tl.where(finite, corner, -9.0) + bin.to(tl.float32) * length
        size = tl.where(vertical, height, width).to(tl.float32)
        slot = tl.where(vertical, 0, slots_y)
        if SAMPLES == 0:
            samples = tl.maximum(tl.ceil(length), 1.0)
            begin = _position(0.0, start, length, samples)
            end = _position(samples - 1, start, length, samples)
            touches = (length > 0) & (end >= -1) & (begin <= size)
            first = tl.minimum(tl.maximum(begin, 0.0), size - 1).to(tl.int32)
            last = tl.minimum(tl.minimum(tl.maximum(end, 0.0), size - 1).to(tl.int32) + 1, size.to(tl.int32) - 1)
            count = tl.where(touches, last - first + 1, 0)
            slot += first + 2 * bin  # places of the map, two apart: the bin before ends at this one's second cell at the latest
            for done in range(0, count, CELLS):
                place = done + tl.arange(0, CELLS)
                cell = (first + place).to(tl.float32)
                # Samples lie more than half a cell apart, so that at most five are within a cell of this one. The division
                # rounds: one before them and two after them are looked at, too.
                earliest = tl.floor((cell - 1 - start) / (length / samples) - 0.5) - 1
                earliest = tl.minimum(tl.where(earliest > 0, earliest, 0.0), samples - 1)
                weight = tl.zeros((CELLS,), tl.float32)
                for further in tl.static_range(8):
                    sample = earliest + further
                    low, high, share, inside = _bilinear(_position(sample, start, length, samples), size)
                    part = tl.where(low == cell, 1 - share, 0.0) + tl.where(high == cell, share, 0.0)
                    weight += tl.where(inside & (sample < samples), part, 0.0)
                tl.store(cells + roi * slots + slot + place, first + place, mask=place < count)
                tl.store(weights + roi * slots + slot + place, weight / samples, mask=place < count)
        else:
            count = 2 * SAMPLES
            slot += count * bin
            place = tl.arange(0, FIXED)
            position = _position((place // 2).to(tl.float32), start, length, tl.cast(SAMPLES, tl.float32))
            low, high, share, inside = _bilinear(position, size)
            after = place % 2 == 1
            weight = tl.where(inside, tl.where(after, share, 1 - share), 0.0) / SAMPLES
            tl.store(cells + roi * slots + slot + place, tl.where(after, high, low).to(tl.int32), mask=place < count)
            tl.store(weights + roi * slots + slot + place, weight, mask=place < count)
        span = spans + (roi * (BINS_Y + BINS_X) + number) * 2
        tl.store(span, slot)
        tl.store(span + 1, count)


@triton.jit
@no_type_check
def _span(spans, roi, number, slots, BINS: tl.constexpr):
    span = spans + (roi * BINS + number) * 2
    return roi * slots + tl.load(span), tl.load(span + 1)


@triton.jit
@no_type_check
def _bin(BINS_Y: tl.constexpr, BINS_X: tl.constexpr):
    """Which bin this program is about: its RoI, and its row and column there."""
    place = tl.program_id(0)
    return (place // (BINS_Y * BINS_X)).to(tl.int64), place // BINS_X % BINS_Y, place % BINS_X


@triton.jit
@no_type_check
def _sources(
    rois,
    spans,
    roi,
    bin_y,
    bin_x,
    slots,
    batch,
    BINS_Y: tl.constexpr,
    BINS_X: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What a bin reads: its image and whether there is one, its lists of rows and columns, some of the channels."""
    image = tl.load(rois + roi * 5).to(tl.float32)
    known = (image > -1) & (image < batch)
    row, rows = _span(spans, roi, bin_y, slots, BINS_Y + BINS_X)
    column, columns = _span(spans, roi, BINS_Y + bin_x, slots, BINS_Y + BINS_X)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return known, tl.where(known, image, 0.0).to(tl.int64), row, rows, column, columns, channel, channel < CHANNELS


@triton.jit
@no_type_check
def _taps(first, row, rows, column, columns, cells, weights, width, TAPS: tl.constexpr):
    """Some taps of a bin, row by row: their cells in the map and their weights, 0 beyond the last."""
    tap = first + tl.arange(0, TAPS)
    there = tap < rows * columns
    down = tap // columns
    across = tap - down * columns
    cell = tl.load(cells + row + down, mask=there, other=0) * width + tl.load(cells + column + across, mask=there, other=0)
    weight = tl.load(weights + row + down, mask=there, other=0.0) * tl.load(weights + column + across, mask=there, other=0.0)
    return cell.to(tl.int64), weight


@triton.jit(
    do_not_specialize=["level", "levels", "slots", "stride_roi", "stride_y", "stride_x", "batch", "height", "width"],
)
@no_type_check
def _sum_taps(
    rois,
    level_of_roi,
    level,
    levels,
    cells,
    weights,
    spans,
    slots,
    table,
    out,
    stride_roi,
    stride_channel,
    stride_y,
    stride_x,
    batch,
    height,
    width,
    BINS_Y: tl.constexpr,
    BINS_X: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAPS: tl.constexpr,
):
    """One bin, some of its channels."""
    roi, bin_y, bin_x = _bin(BINS_Y, BINS_X)
    which = tl.load(level_of_roi + roi)
    if (which == level) | (which == level - levels):
        known, image, row, rows, column, columns, channel, exists = _sources(
            rois, spans, roi, bin_y, bin_x, slots, batch, BINS_Y, BINS_X, CHANNELS, BLOCK
        )
        table += image * height * width * CHANNELS
        total = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, tl.where(known, rows * columns, 0), TAPS):
            cell, weight = _taps(first, row, rows, column, columns, cells, weights, width, TAPS)
            taken = (weight != 0)[:, None] & exists[None, :]
            values = tl.load(table + cell[:, None] * CHANNELS + channel[None, :], mask=taken, other=0.0)
            total += tl.sum(values.to(tl.float32) * weight[:, None], axis=0)
        total = tl.where(known, total, float("nan"))
        to = out + roi * stride_roi + channel * stride_channel + bin_y * stride_y + bin_x * stride_x
        tl.store(to, total.to(out.dtype.element_ty), mask=exists)


@triton.jit(
    do_not_specialize=["level", "levels", "slots", "stride_roi", "stride_y", "stride_x", "batch", "height", "width"],
)
@no_type_check
def _spread_taps(
    rois,
    level_of_roi,
    level,
    levels,
    cells,
    weights,
    spans,
    slots,
    table,
    gradient,
    stride_roi,
    stride_channel,
    stride_y,
    stride_x,
    batch,
    height,
    width,
    BINS_Y: tl.constexpr,
    BINS_X: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAPS: tl.constexpr,
):
    """The gradient of `_sum_taps`, added to the table."""
    roi, bin_y, bin_x = _bin(BINS_Y, BINS_X)
    which = tl.load(level_of_roi + roi)
    if (which == level) | (which == level - levels):
        known, image, row, rows, column, columns, channel, exists = _sources(
            rois, spans, roi, bin_y, bin_x, slots, batch, BINS_Y, BINS_X, CHANNELS, BLOCK
        )
        table += image * height * width * CHANNELS
        of_bin = gradient + roi * stride_roi + channel * stride_channel + bin_y * stride_y + bin_x * stride_x
        value = tl.load(of_bin, mask=exists, other=0.0).to(tl.float32)
        for first in range(0, tl.where(known, rows * columns, 0), TAPS):
            cell, weight = _taps(first, row, rows, column, columns, cells, weights, width, TAPS)
            taken = (weight != 0)[:, None] & exists[None, :]
            to = table + cell[:, None] * CHANNELS + channel[None, :]
            tl.atomic_add(to, value[None, :] * weight[:, None], mask=taken, sem="relaxed")


@triton.jit(do_not_specialize=["rows", "columns"])
@no_type_check
def _turn(matrices, out, rows, columns, TILE: tl.constexpr):
    tiles = tl.cdiv(columns, TILE)
    row = tl.program_id(0) // tiles * TILE + tl.arange(0, TILE)
    column = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    start = tl.program_id(1).to(tl.int64) * rows * columns
    exists = (row < rows)[:, None] & (column < columns)[None, :]
    read = start + row.to(tl.int64)[:, None] * columns + column[None, :]
    written = start + column.to(tl.int64)[None, :] * rows + row[:, None]
    tl.store(out + written, tl.load(matrices + read, mask=exists).to(out.dtype.element_ty), mask=exists)
