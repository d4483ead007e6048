"""Multi-scale deformable attention (Zhu et al., 2020, arXiv:2010.04159, section 4.1, equation 3), in plain PyTorch.

    levels -> table, a row of channels for each cell and head -+
                                                               +-> each query and head: a weighted sum of rows
    places and attention weights -> four cells a sample -------+

Each sample is bilinear, so with its attention weight it is four terms of one weighted sum, and all samples of a query and a head
are one bag of `torch.nn.functional.embedding_bag`: no sampled value is ever stored. The gradient of the table is the same sum
with bags and rows changing places; those of places and weights follow from each term's share, worked out anew piece by piece.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

TERMS = 2**19  # of the weighted sums, worked on at a time: about 20 MB of numbers beside the result


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


@dataclass(frozen=True, eq=False)
class _Terms:
    """Of each sample its four cells, in the order top left, top right, bottom left, bottom right."""

    rows: Int[Tensor, "batch queries heads levels points 4"]  # of the table
    bilinear: Float[Tensor, "batch queries heads levels points 4"]  # 0 for a cell outside
    inside: Float[Tensor, "batch queries heads levels points 4"]  # 1 or 0
    share: Float[Tensor, "batch queries heads levels points 2"]  # x y from the first cell towards the last


def _terms(places: Tensor, sizes: Sequence[tuple[int, int]], cells: int, first_image: int = 0) -> _Terms:
    batch, _, heads = places.shape[:3]
    side = torch.tensor([[width, height] for height, width in sizes], dtype=places.dtype)[:, None]  # levels 1 (x y)
    first_cell = torch.tensor([height * width for height, width in sizes]).cumsum(0).roll(1)
    first_cell[0] = 0
    position = places * side - 0.5
    low = position.floor()
    share = position - low
    # a cell outside has no weight and may be read anywhere; what is not a number counts as outside
    corners = torch.stack((low, low + 1), dim=-2)  # ... (first last) (x y)
    is_inside = (corners >= 0) & (corners < side[:, :, None])
    corners = torch.where(is_inside, corners, 0).int()
    rows = corners[..., 1, None] * side[..., 0, None, None].int() + corners[..., None, :, 0]  # ... (top bottom) (left right)
    image = torch.arange(first_image, first_image + batch, dtype=torch.int32)[:, None, None, None, None, None, None]
    head = torch.arange(heads, dtype=torch.int32)[:, None, None, None, None]
    rows = (rows + first_cell.int()[:, None, None, None] + image * cells) * heads + head
    across = torch.stack((1 - share[..., 0], share[..., 0]), dim=-1)
    down = torch.stack((1 - share[..., 1], share[..., 1]), dim=-1)
    inside = (is_inside[..., 1, None] & is_inside[..., None, :, 0]).flatten(-2)
    bilinear = torch.where(inside, (down[..., None] * across[..., None, :]).flatten(-2), 0)
    return _Terms(rows.flatten(-2), bilinear, inside.to(places.dtype), share)


def _pieces(places: Tensor) -> Iterator[tuple[int, slice]]:
    """An image and some of its queries at a time."""
    _, queries, heads, levels, points, _ = places.shape
    count = max(1, TERMS // (4 * heads * levels * points))
    for image in range(places.shape[0]):
        for start in range(0, queries, count):
            yield image, slice(start, min(start + count, queries))


class _BagsOfTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: tuple[tuple[int, int], ...], places: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(values, places, weights)
        ctx.sizes = sizes
        _, cells, heads, channels = values.shape
        table = values.reshape(-1, channels)  # (batch cells heads) channels
        sums = values.new_empty((*places.shape[:3], channels))
        for image, part in _pieces(places):
            terms = _terms(places[image : image + 1, part], sizes, cells, image)
            weight = terms.bilinear * weights[image : image + 1, part, ..., None]
            bags = _starts(weight)
            found = F.embedding_bag(
                terms.rows.flatten(), table, bags, mode="sum", per_sample_weights=weight.flatten().to(table.dtype)
            )
            sums[image, part] = found.view(-1, heads, channels)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, places, weights = ctx.saved_tensors
        _, cells, heads, channels = values.shape
        table = values.reshape(-1, channels)
        of_values, of_places, of_weights = torch.zeros_like(values), torch.empty_like(places), torch.empty_like(weights)
        side = torch.tensor([[width, height] for height, width in ctx.sizes], dtype=places.dtype)[:, None]  # levels 1 (x y)
        for image, part in _pieces(places):
            here = slice(image, image + 1)
            terms = _terms(places[here, part], ctx.sizes, cells)
            attention = weights[here, part]
            weight = (terms.bilinear * attention[..., None]).flatten()
            rows, bags = terms.rows.flatten(), _starts(terms.bilinear)
            bag_of_term = torch.arange(len(bags), dtype=torch.int32).repeat_interleave(len(rows) // len(bags))
            of_sums = gradients[0][image, part].reshape(-1, channels)  # (queries heads) channels

            # how much each term's value and the sum's gradient agree
            own = table[image * cells * heads : (image + 1) * cells * heads]
            agreement = torch.ops.aten._embedding_bag_per_sample_weights_backward(of_sums, own, rows, bags, bag_of_term, 0)
            agreement = agreement.view_as(terms.bilinear) * terms.inside
            of_weights[here, part] = (agreement * terms.bilinear).sum(dim=-1)
            top_left, top_right, bottom_left, bottom_right = agreement.unbind(-1)
            x, y = terms.share.unbind(-1)
            along_x = (1 - y) * (top_right - top_left) + y * (bottom_right - bottom_left)
            along_y = (1 - x) * (bottom_left - top_left) + x * (bottom_right - top_right)
            of_places[here, part] = torch.stack((along_x, along_y), dim=-1) * attention[..., None] * side

            by_row = rows.sort(stable=True).indices
            counts = torch.bincount(rows, minlength=cells * heads)
            of_values[image] += F.embedding_bag(
                bag_of_term[by_row], of_sums, (counts.cumsum(0) - counts).int(), mode="sum", per_sample_weights=weight[by_row]
            ).view(cells, heads, channels)
        return of_values, None, of_places, of_weights


def _starts(of_term: Tensor) -> Tensor:
    """The first term of each query and head."""
    count = of_term.shape[:3].numel()
    return torch.arange(count, dtype=torch.int32) * (of_term.numel() // max(count, 1))
