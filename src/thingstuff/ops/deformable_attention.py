"""Multi-scale deformable attention (Zhu et al., 2020, arXiv:2010.04159, section 4.1, equation 3), in plain PyTorch.

    levels -> of each head a table, a row of channels for each cell -+
                                                                     +-> each query and head: a weighted sum of rows
    places and attention weights -> four cells a sample -------------+

Each sample is bilinear, so with its attention weight it is four terms of one weighted sum, and all samples of a query and a head
are one bag of `torch.nn.functional.embedding_bag`: no sampled value is ever stored. The gradient of the table is the same sum
with bags and rows changing places, a product with a sparse matrix; those of places and weights follow from each term's share,
worked out anew piece by piece.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

TERMS = 2**18  # of the weighted sums, worked on at a time: about 10 MB of numbers beside the result
BORDER = 2  # cells of zeros around each level: a sample beyond it reads nothing but zeros


def deformable_attention(
    values: Float[Tensor, "batch cells heads channels"],
    sizes: Sequence[tuple[int, int]],
    places: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads channels"]:
    """Of each query and head the sum of its samples from all levels, each times its weight.

    Args:
        values: the levels' cells one after the other, each level row by row.
        sizes: (height, width) of each level.
        places: x y of each sample as shares of its level's width and height; 0 0 is the corner of the first cell, whose centre
            lies half a cell further in. Beyond the outermost centres a sample fades to zero over one cell.
        weights: of each sample.

    Sums are made in float32, or in float64 where the values are. Traces under torch.compile(fullgraph=True) and torch.export.
    """
    assert values.shape[1] == sum(height * width for height, width in sizes)
    if torch.compiler.is_compiling() or values.device.type != "cpu":
        return by_grid_sample(values, sizes, places, weights)
    exact = torch.float64 if values.dtype == torch.float64 else torch.float32
    sums = _BagsOfTerms.apply(values.to(exact), tuple(sizes), places.to(exact), weights.to(exact))
    return sums.to(values.dtype)


def by_grid_sample(
    values: Float[Tensor, "batch cells heads channels"],
    sizes: Sequence[tuple[int, int]],
    places: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads channels"]:
    """The same in operators that compilers and exporters know best; it stores every sample before the sum."""
    batch, queries, heads, levels, points, _ = places.shape
    grids = (2 * places - 1).transpose(1, 2).flatten(0, 1)  # (batch heads) queries levels points 2
    sampled = []
    for level, part in enumerate(values.split([height * width for height, width in sizes], dim=1)):
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, -1, *sizes[level])  # (batch heads) channels height width
        sampled.append(F.grid_sample(maps, grids[:, :, level], padding_mode="zeros", align_corners=False))
    samples = torch.stack(sampled, dim=-2).flatten(-2)  # (batch heads) channels queries (levels points)
    of_sample = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    sums = (samples * of_sample).sum(dim=-1).unflatten(0, (batch, heads))  # batch heads channels queries
    return sums.permute(0, 3, 1, 2).to(values.dtype)  # batch queries heads channels


@dataclass(frozen=True)
class _Levels:
    """Cells of all levels, one level after the other; in tables zeros lie around each, so no sample needs a test of its own."""

    sizes: tuple[tuple[int, int], ...]  # height, width

    def pad(self, values: Float[Tensor, "batch cells heads channels"]) -> Float[Tensor, "batch heads padded_cells channels"]:
        batch, _, heads, channels = values.shape
        cells = sum((height + 2 * BORDER) * (width + 2 * BORDER) for height, width in self.sizes)
        tables = values.new_zeros((batch, heads, cells, channels))
        for inner, level in zip(self._inner(tables), self._plain(values), strict=True):
            inner.copy_(level)
        return tables

    def cut(self, tables: Float[Tensor, "batch heads padded_cells channels"]) -> Float[Tensor, "batch cells heads channels"]:
        batch, heads, _, channels = tables.shape
        values = tables.new_empty((batch, sum(height * width for height, width in self.sizes), heads, channels))
        for inner, level in zip(self._inner(tables), self._plain(values), strict=True):
            level.copy_(inner)
        return values

    def _plain(self, values: Tensor) -> list[Tensor]:
        parts = values.transpose(1, 2).split([height * width for height, width in self.sizes], dim=2)
        return [part.unflatten(2, size) for part, size in zip(parts, self.sizes, strict=True)]

    def _inner(self, tables: Tensor) -> list[Tensor]:
        sizes = [(height + 2 * BORDER, width + 2 * BORDER) for height, width in self.sizes]
        parts = tables.split([height * width for height, width in sizes], dim=2)
        inside = slice(BORDER, -BORDER)
        return [part.unflatten(2, size)[:, :, inside, inside] for part, size in zip(parts, sizes, strict=True)]


@dataclass(frozen=True, eq=False)
class _Terms:
    """Of each sample its four cells, in the order top left, top right, bottom left, bottom right.

    The terms of a query and head lie together: of all its samples the first cells, then the second ones.
    """

    rows: Int[Tensor, "heads queries 4 samples"]  # of the table of these heads
    share: Float[Tensor, "2 heads queries samples"]  # x y from the first cell towards the last

    def bilinear(self) -> Float[Tensor, "heads queries 4 samples"]:
        x, y = self.share
        left, top = 1 - x, 1 - y
        return torch.stack((top * left, top * x, y * left, y * x), dim=2)

    def starts(self) -> Int[Tensor, " queries_and_heads_and_end"]:
        """The first term of each query and head."""
        heads, queries, _, samples = self.rows.shape
        return torch.arange(heads * queries + 1, dtype=torch.int32) * (4 * samples)


def _terms(places: Float[Tensor, "queries heads levels points 2"], levels: _Levels) -> _Terms:
    """What lies beyond the zeros around a level, or is not a number, is among them."""
    heads, points = places.shape[1], places.shape[3]
    side = torch.tensor(levels.sizes).flip(1).T  # x y, levels
    wide, high = side + 2 * BORDER
    cells = wide * high
    first = cells.cumsum(0) - cells + BORDER * wide + BORDER  # the one at 0 0
    down, first, side = (values.repeat_interleave(points, dim=-1) for values in (wide.int(), first.int(), side.to(places.dtype)))
    # x y, heads queries samples; a copy of its own, as contiguous() makes none of a single sample, which is the caller's
    position = places.flatten(2, 3).permute(3, 1, 0, 2).clone(memory_format=torch.contiguous_format)
    position = position.mul_(side[:, None, None]).sub_(0.5)
    position = torch.where(position > -BORDER, position, -BORDER).minimum(side[:, None, None])
    low = position.floor()
    x, y = low.int()
    table = torch.arange(heads, dtype=torch.int32)[:, None, None] * int(cells.sum())
    top_left = (y * down).add_(x).add_(first + table)
    rows = torch.stack((top_left, top_left + 1, top_left + down, top_left + (down + 1)), dim=2)
    return _Terms(rows, position.sub_(low))


def _pieces(places: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """An image, some queries and some heads at a time: queries first, since those of one head read the same cells."""
    batch, queries, heads, levels, points, _ = places.shape
    count = max(1, TERMS // (4 * levels * points))  # of pairs of a query and a head
    many = max(1, count // max(queries, 1))
    for image in range(batch):
        for head in range(0, heads, many):
            for start in range(0, queries, count):
                yield image, slice(start, min(start + count, queries)), slice(head, min(head + many, heads))


class _BagsOfTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: tuple[tuple[int, int], ...], places: Tensor, weights: Tensor) -> Tensor:
        ctx.levels = _Levels(sizes)
        tables = ctx.levels.pad(values)
        ctx.save_for_backward(tables, places, weights)
        sums = values.new_empty((*places.shape[:3], values.shape[3]))
        for image, some, heads in _pieces(places):
            terms = _terms(places[image, some, heads], ctx.levels)
            attention = weights[image, some, heads].flatten(2).transpose(0, 1)  # heads queries samples
            weight = (terms.bilinear() * attention[:, :, None]).flatten()
            table = tables[image, heads].flatten(0, 1)  # (heads padded_cells) channels
            found = F.embedding_bag(
                terms.rows.flatten(), table, terms.starts(), mode="sum", per_sample_weights=weight, include_last_offset=True
            )
            sums[image, some, heads] = found.unflatten(0, attention.shape[:2]).transpose(0, 1)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from scipy.sparse import csc_array  # takes long to import and only training needs it

        tables, places, weights = ctx.saved_tensors
        of_tables, of_places, of_weights = torch.zeros_like(tables), torch.empty_like(places), torch.empty_like(weights)
        side = torch.tensor(ctx.levels.sizes, dtype=places.dtype).flip(1)[:, None]  # levels 1 (x y)
        for image, some, heads in _pieces(places):
            terms = _terms(places[image, some, heads], ctx.levels)
            attention = weights[image, some, heads].transpose(0, 1)  # heads queries levels points
            bilinear, rows, starts = terms.bilinear(), terms.rows.flatten(), terms.starts()
            table = tables[image, heads].flatten(0, 1)  # (heads padded_cells) channels
            of_sums = gradients[0][image, some, heads].transpose(0, 1).flatten(0, 1)  # (heads queries) channels

            # how much each term's value and the sum's gradient agree: not at all in the zeros around a level
            bag_of_term = torch.arange(len(of_sums), dtype=torch.int32).repeat_interleave(bilinear.shape[2:].numel())
            agreement = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                of_sums, table, rows, starts[:-1], bag_of_term, 0
            ).view_as(bilinear)
            of_weights[image, some, heads] = (agreement * bilinear).sum(dim=2).view_as(attention).transpose(0, 1)
            top_left, top_right, bottom_left, bottom_right = agreement.unbind(2)
            x, y = terms.share
            along_x = torch.lerp(top_right - top_left, bottom_right - bottom_left, y).view_as(attention)
            along_y = torch.lerp(bottom_left - top_left, bottom_right - top_right, x).view_as(attention)
            along = torch.stack((along_x * attention, along_y * attention), dim=-1) * side
            of_places[image, some, heads] = along.transpose(0, 1)

            # spread over the rows by a sparse matrix, a column for each bag: no sort, and no product is ever stored
            weight = (bilinear * attention.flatten(2)[:, :, None]).flatten()
            spread = csc_array((weight.numpy(), rows.numpy(), starts.numpy()), shape=(len(table), len(of_sums)))
            of_tables[image, heads] += torch.from_numpy(spread @ of_sums.numpy()).view_as(of_tables[image, heads])
        return ctx.levels.cut(of_tables), None, of_places, of_weights
