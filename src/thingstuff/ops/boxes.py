"""Arithmetic on boxes: areas, overlaps, box deltas, pyramid levels, anchors.

Boxes are `x1 y1 x2 y2` in pixels, right and bottom edges exclusive, so a box holds (x2 - x1) * (y2 - y1) pixels.
Half-precision boxes are computed on in float32: bfloat16 cannot tell pixel 1025 from pixel 1024.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)  # a delta may widen an anchor at most 62.5 times, as Faster R-CNN's implementations agree


def box_areas(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Areas in square pixels; a box inverted along one axis has a negative one."""
    x1, y1, x2, y2 = _at_least_float32(boxes).unbind(-1)
    return (x2 - x1) * (y2 - y1)


def pairwise_iou(a: Float[Tensor, "a 4"], b: Float[Tensor, "b 4"]) -> Float[Tensor, "a b"]:
    """Intersection over union of every pair; 0 where the two do not overlap, empty boxes included."""
    intersection = _pairwise_intersection(a, b)
    union = box_areas(a)[:, None] + box_areas(b)[None, :] - intersection
    return torch.where(intersection > 0, intersection / union, 0)


def pairwise_ioa(a: Float[Tensor, "a 4"], b: Float[Tensor, "b 4"]) -> Float[Tensor, "a b"]:
    """Intersection over the area of `a`, of every pair: how much of a lies in b; 0 where a is empty."""
    intersection = _pairwise_intersection(a, b)
    return torch.where(intersection > 0, intersection / box_areas(a)[:, None], 0)


def clip_boxes(boxes: Float[Tensor, "*batch 4"], size: tuple[int, int]) -> Float[Tensor, "*batch 4"]:
    """Boxes cut at the edges of an image of `size` (height, width); one that lies outside becomes empty on the nearest edge."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=-1)


def encode_deltas(
    boxes: Float[Tensor, "*batch 4"],
    anchors: Float[Tensor, "*batch 4"],
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Tensor, "*batch 4"]:
    """Box deltas dx dy dw dh from anchor to box (Girshick et al., 2014, arXiv:1311.2524, appendix C).

    Centres move in units of the anchor's size, sizes change by their logarithm; each is then multiplied by its weight.
    Both boxes need positive sizes: the logarithm of an empty box is not finite.
    """
    x, y, width, height = _centres_and_sizes(boxes)
    anchor_x, anchor_y, anchor_width, anchor_height = _centres_and_sizes(anchors)
    return torch.stack(
        (
            weights[0] * (x - anchor_x) / anchor_width,
            weights[1] * (y - anchor_y) / anchor_height,
            weights[2] * torch.log(width / anchor_width),
            weights[3] * torch.log(height / anchor_height),
        ),
        dim=-1,
    )


def decode_deltas(
    deltas: Float[Tensor, "*batch deltas"],
    anchors: Float[Tensor, "*batch 4"],
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    max_log_ratio: float = MAX_LOG_RATIO,
    clip_small: bool = False,
) -> Float[Tensor, "*batch deltas"]:
    """Boxes from anchors and their deltas, the inverse of `encode_deltas`; the last axis may hold one set of 4 for each class.

    dw and dh are cut at `max_log_ratio` before the exponential; MMDetection also cuts them at its negative (`clip_small`).
    """
    x, y, width, height = (part[..., None] for part in _centres_and_sizes(anchors))
    dx, dy, dw, dh = (part / weight for part, weight in zip(_split(_at_least_float32(deltas)), weights, strict=True))
    smallest = -max_log_ratio if clip_small else None
    half_width = 0.5 * width * torch.exp(dw.clamp(smallest, max_log_ratio))
    half_height = 0.5 * height * torch.exp(dh.clamp(smallest, max_log_ratio))
    x, y = dx * width + x, dy * height + y
    return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), dim=-1).flatten(-2)


def assign_levels(
    boxes: Float[Tensor, "boxes 4"],
    min_level: int,
    max_level: int,
    canonical_size: int | float = 224,
    canonical_level: int = 4,
    epsilon_inside: float = 0.0,
    epsilon_outside: float = 0.0,
) -> Int[Tensor, " boxes"]:
    """The FPN level each box is pooled from, by its size (Lin et al., 2017, arXiv:1612.03144, equation 1).

    A box of `canonical_size` pixels (the side of a square) goes to `canonical_level`, one of half the size one level lower;
    the result lies within min_level..max_level, and an empty or inverted box is on the lowest. The implementations guard the
    floor differently, and a box on the border between levels lands by that guard: torchvision adds 1e-6 outside the
    logarithm, detectron2 1e-8 inside, MMDetection 1e-6 inside with canonical size 56 at its level 0.
    """
    side = box_areas(boxes).sqrt()
    level = torch.floor(canonical_level + torch.log2(side / canonical_size + epsilon_inside) + epsilon_outside)
    return level.nan_to_num(nan=min_level).clamp(min_level, max_level).long()


def make_anchors(
    grid_sizes: Sequence[tuple[int, int]],
    strides: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[float, ...]],
    ratios: tuple[float, ...],
    rounded: bool = False,
    device: torch.device | str | None = None,
) -> list[Float[Tensor, "_ 4"]]:
    """Anchors of each level, in the order row, column, size, ratio (Ren et al., 2015, arXiv:1506.01497, section 3.1).

    An anchor of `size` pixels has the area size * size and height / width = ratio, and is centred on the top left corner of
    its cell. Grid sizes are (rows, columns), strides are pixels (down, across). torchvision rounds the anchors to whole pixels
    around the centre, halves to even (`rounded`); the others do not.
    """
    anchors = []
    for (rows, columns), (down, across), level_sizes in zip(grid_sizes, strides, sizes, strict=True):
        shapes = [(size * math.sqrt(ratio), size / math.sqrt(ratio)) for size in level_sizes for ratio in ratios]
        corners = [(-width / 2, -height / 2, width / 2, height / 2) for height, width in shapes]
        around_zero = torch.tensor(corners, dtype=torch.float32, device=device)
        if rounded:
            around_zero = around_zero.round()
        y = torch.arange(rows, device=device).float() * down
        x = torch.arange(columns, device=device).float() * across
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack((x, y, x, y), dim=-1)  # row column 4
        anchors.append((centres[:, :, None] + around_zero).reshape(-1, 4))
    return anchors


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _centres_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = _at_least_float32(boxes).unbind(-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


def _split(deltas: Tensor) -> tuple[Tensor, ...]:
    return deltas.unflatten(-1, (-1, 4)).unbind(-1)  # each ... classes


def _pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    a, b = _at_least_float32(a), _at_least_float32(b)
    corner = torch.maximum(a[:, None, :2], b[None, :, :2])
    opposite = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    width, height = (opposite - corner).clamp(min=0).unbind(-1)
    return width * height
