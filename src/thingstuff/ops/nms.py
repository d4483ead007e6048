"""Non-maximum suppression: of boxes that overlap too much, keep the best.

Exact and greedy: the result is that of taking boxes one by one by descending score, however the work is batched.
"""

import math

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

BLOCK = 512  # boxes compared with each other at a time; memory is BLOCK * boxes, whatever their number


def nms(boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], iou_threshold: float) -> Int[Tensor, " kept"]:
    """Indices of the boxes kept, by descending score; one goes when its IoU with a kept one is strictly above the threshold.

    Equal scores rank by index, lower first; a score of NaN ranks last. A box that is empty or has a coordinate of NaN neither
    suppresses nor is suppressed.
    """
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.long), iou_threshold)


def batched_nms(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, " boxes"],
    groups: Int[Tensor, " boxes"],
    iou_threshold: float,
) -> Int[Tensor, " kept"]:
    """`nms` within each group (class, level, image); the indices of all groups together, by descending score.

    Groups are compared as they are; coordinates are not moved apart, which would round them.
    """
    order = scores.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).sort(descending=True, stable=True).indices
    boxes, groups = boxes[order], groups[order]
    if boxes.dtype in (torch.float16, torch.bfloat16):
        boxes = boxes.float()
    threshold = _round_down(iou_threshold, boxes.dtype)
    alive = torch.arange(len(order), device=boxes.device)
    kept = []
    while len(alive):
        block, rest = alive[:BLOCK], alive[BLOCK:]
        block = block[_sweep(_overlap(boxes[block], boxes[block], threshold) & (groups[block][:, None] == groups[block]))]
        kept.append(block)
        if len(rest):
            hit = _overlap(boxes[block], boxes[rest], threshold) & (groups[block][:, None] == groups[rest])
            alive = rest[~hit.any(dim=0)]
        else:
            alive = rest
    return order[torch.cat(kept)] if kept else order


def _sweep(overlap: Shaped[Tensor, "boxes boxes"]) -> Shaped[Tensor, " boxes"]:
    """Which boxes of one block survive: the greedy sweep, as the fixed point of 'no kept box above me overlaps me'."""
    above = overlap.triu(diagonal=1).float()
    keep = torch.ones(len(overlap), dtype=torch.bool, device=overlap.device)
    while True:
        again = (keep.float() @ above) == 0
        if torch.equal(again, keep):
            return keep
        keep = again


def _overlap(a: Tensor, b: Tensor, threshold: float) -> Tensor:
    """Whether the IoU of each pair is greater; every rounding as in the reference kernel, so that borderline pairs agree."""
    ax1, ay1, ax2, ay2 = a[:, :, None].unbind(1)
    bx1, by1, bx2, by2 = b.unbind(1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    intersection = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    return intersection / union > threshold


def _round_down(threshold: float, dtype: torch.dtype) -> float:
    """The largest value of `dtype` not above the threshold: a comparison in `dtype` then decides as one in float64 would."""
    nearest = torch.tensor(threshold, dtype=dtype)
    return (nearest if nearest.item() <= threshold else torch.nextafter(nearest, torch.tensor(-math.inf, dtype=dtype))).item()
