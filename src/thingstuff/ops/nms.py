"""Non-maximum suppression: of boxes that overlap too much, keep the best.

Exact and greedy: the result is that of taking boxes one by one by descending score, however the work is batched.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 256  # boxes swept in turn at a time
TILE = 2**16  # pairs compared at a time: small enough for a processor's cache; memory stays bounded for any number of boxes
LARGE_GROUP = 256  # groups from this size on are swept alone, smaller ones together


def nms(boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], iou_threshold: float) -> Int[Tensor, " kept"]:
    """Indices of the boxes kept, by descending score; one goes when its IoU with a kept one is strictly above the threshold.

    Equal scores rank by index, lower first; a score of NaN ranks last. A box that is empty, inverted or not finite neither
    suppresses nor is suppressed.
    """
    order = _by_score(scores)
    return order[_greedy(_upright(boxes)[order], None, iou_threshold)]


def batched_nms(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, " boxes"],
    groups: Int[Tensor, " boxes"],
    iou_threshold: float,
) -> Int[Tensor, " kept"]:
    """`nms` within each group (class, level, image); the indices of all groups together, by descending score.

    Groups are compared as they are; coordinates are not moved apart, which would round them.
    """
    order = _by_score(scores)
    boxes, groups = _upright(boxes)[order], groups[order]
    _, groups, sizes = groups.unique(return_inverse=True, return_counts=True)
    keep = torch.zeros_like(groups, dtype=torch.bool)
    large = sizes >= LARGE_GROUP
    for group in large.nonzero().flatten():
        members = (groups == group).nonzero().flatten()
        keep[members[_greedy(boxes[members], None, iou_threshold)]] = True
    small = (~large[groups]).nonzero().flatten()
    keep[small[_greedy(boxes[small], groups[small], iou_threshold)]] = True
    return order[keep]


def _by_score(scores: Tensor) -> Tensor:
    return scores.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).sort(descending=True, stable=True).indices


def _upright(boxes: Tensor) -> Tensor:
    return boxes.detach().float() if boxes.dtype in (torch.float16, torch.bfloat16) else boxes.detach()


def _greedy(boxes: Float[Tensor, "boxes 4"], groups: Int[Tensor, " boxes"] | None, iou_threshold: float) -> Int[Tensor, " kept"]:
    """Which of the boxes, in descending order of score, are kept, in that order; those of different groups do not compete."""
    threshold = _round_down(iou_threshold, boxes.dtype)
    x1, y1, x2, y2 = boxes.unbind(1)
    areas = (x2 - x1) * (y2 - y1)
    solid = (x2 > x1) & (y2 > y1) & (areas > 0) & areas.isfinite()  # the others take no part
    keep = ~solid
    alive = solid.nonzero().flatten()
    while len(alive):
        block, alive = alive[:BLOCK], alive[BLOCK:]
        among = _ious(boxes[block], areas[block], boxes[block], areas[block])
        if groups is not None:
            among *= groups[block][:, None] == groups[block]
        block = block[_sweep(among, threshold)]
        keep[block] = True
        if not len(alive):
            break
        rest, areas_of_rest = boxes[alive], areas[alive]
        highest = torch.zeros_like(areas_of_rest)
        for some in block.split(max(1, TILE // len(alive))):
            ious = _ious(boxes[some], areas[some], rest, areas_of_rest)
            if groups is not None:
                ious *= groups[some][:, None] == groups[alive]
            highest = torch.maximum(highest, ious.amax(dim=0))
        alive = alive[highest <= threshold]
    return keep.nonzero().flatten()


def _sweep(ious: Float[Tensor, "boxes boxes"], threshold: float) -> Int[Tensor, " kept"]:
    """The boxes of one block that survive each other, as a sweep over rows of bits; the one step that goes box by box."""
    count = len(ious)
    ranks = np.arange(count, dtype=np.int16)
    suppresses = (ious.cpu().numpy() > threshold) & (ranks[:, None] < ranks)
    rows = np.packbits(suppresses, axis=1, bitorder="little")
    gone = 0
    for rank in np.flatnonzero(rows.any(axis=1)).tolist():
        if not gone >> rank & 1:
            gone |= int.from_bytes(rows[rank].tobytes(), "little")
    bits = np.frombuffer(gone.to_bytes(rows.shape[1], "little"), dtype=np.uint8)
    survives = np.unpackbits(bits, count=count, bitorder="little") == 0
    return torch.from_numpy(survives.nonzero()[0]).to(ious.device)


def _ious(
    a: Float[Tensor, "a 4"], areas_of_a: Float[Tensor, " a"], b: Float[Tensor, "b 4"], areas_of_b: Float[Tensor, " b"]
) -> Float[Tensor, "a b"]:
    """IoU of every pair, or a number below 0 where they lie apart; rounded like the reference kernel, so that borderline
    pairs agree, and done in place, as half the time of this file is spent here."""
    ax1, ay1, ax2, ay2 = a[:, :, None].unbind(1)
    bx1, by1, bx2, by2 = b.T.contiguous()
    scratch = torch.maximum(ax1, bx1)
    width = torch.minimum(ax2, bx2).sub_(scratch).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1, out=scratch))
    intersection = width.mul_(height)
    union = torch.add(areas_of_a[:, None], areas_of_b, out=scratch).sub_(intersection)
    return intersection.div_(union)


def _round_down(threshold: float, dtype: torch.dtype) -> float:
    """The largest value of `dtype` not above the threshold: a comparison in `dtype` then decides as one in float64 would."""
    nearest = torch.tensor(threshold, dtype=dtype)
    return (nearest if nearest.item() <= threshold else torch.nextafter(nearest, torch.tensor(-math.inf, dtype=dtype))).item()
