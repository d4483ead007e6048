"""Non-maximum suppression: of boxes that overlap too much, keep the best.

`nms` and `batched_nms` are exact and greedy: the result is that of taking boxes one by one by descending score, however the work
is batched. `fast_nms` compares all pairs at once and lets a box that is itself suppressed suppress others, too.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 256  # boxes swept in turn at a time
TILE = 2**16  # pairs compared at a time: small enough for a processor's cache; memory stays bounded for any number of boxes
FAST_PAIRS = 2**18  # pairs that Fast NMS compares at a time
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


def fast_nms(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, "boxes classes"],
    iou_threshold: float,
    candidates: int,
    min_score: float = 0.0,
    cross_class: bool = False,
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " kept"], Float[Tensor, " kept"]]:
    """Fast NMS (Bolya et al., 2019, arXiv:1904.02689, section 3.3): indices, classes and scores kept, by descending score.

    Within each class the best `candidates` are compared, all pairs at once; one goes when its IoU with any better one is strictly
    above the threshold. With `cross_class` each box has its best class alone, and boxes compete whatever their class.
    A score of NaN is none.
    Scores must be above `min_score`. That bound never changes which of the others are kept, since only better ones suppress.
    """
    boxes, scores = _upright(boxes), scores.detach()
    if cross_class:
        best = scores.amax(dim=1, keepdim=True) if scores.numel() else scores[:, :0]
        kept, classes, found = _fast_nms(boxes, best, iou_threshold, candidates, min_score)
        classes = scores[kept].argmax(dim=1) if len(kept) else classes
    else:
        kept, classes, found = _fast_nms(boxes, scores, iou_threshold, candidates, min_score)
    order = _by_score(found)
    return kept[order], classes[order], found[order]


def _fast_nms(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, "boxes classes"],
    iou_threshold: float,
    candidates: int,
    min_score: float,
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " kept"], Float[Tensor, " kept"]]:
    threshold = _round_down(iou_threshold, boxes.dtype)
    few = min(candidates, len(boxes))
    if scores.shape[1] == 1 and few**2 <= FAST_PAIRS:  # nothing to put together: counting takes longer than comparing
        return _fast_nms_of(torch.zeros(1, dtype=torch.int64, device=boxes.device), boxes, scores, few, threshold, min_score)
    most = (scores > min_score).sum(dim=0).clamp(max=candidates)  # candidates of each class
    results = [(most[:0], most[:0], scores[:0].sum(dim=1))]
    used = most.nonzero().flatten()
    used = used[most[used].sort(stable=True).indices]  # classes with as many candidates go together
    start = 0
    while start < len(used):
        # a chunk of classes makes at most so many pairs; the last of it has the most candidates
        sizes = most[used[start:]]
        chunk = max(1, int((sizes**2 * torch.arange(1, len(sizes) + 1, device=sizes.device) <= FAST_PAIRS).sum()))
        classes = used[start : start + chunk]
        start += chunk
        results.append(_fast_nms_of(classes, boxes, scores[:, classes], int(most[classes].max()), threshold, min_score))
    kept, classes, found = (torch.cat(parts) for parts in zip(*results, strict=True))
    return kept, classes, found


def _fast_nms_of(
    classes: Int[Tensor, " classes"],
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, "boxes classes"],
    candidates: int,
    threshold: float,
    min_score: float,
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " kept"], Float[Tensor, " kept"]]:
    """Some classes at once, each with the same number of candidates."""
    best, order = _nan_last(scores.T).topk(candidates, dim=1)  # classes candidates
    ious = _ious_within(boxes[order]).triu_(diagonal=1)  # classes better worse
    keep = best > min_score
    if candidates:
        keep &= ious.amax(dim=1) <= threshold
    which, rank = keep.nonzero(as_tuple=True)
    return order[which, rank], classes[which], best[which, rank]


def _by_score(scores: Tensor) -> Tensor:
    return _nan_last(scores).sort(descending=True, stable=True).indices


def _nan_last(scores: Tensor) -> Tensor:
    return scores.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)


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
    pairs agree, and done in place, since most of the time of this file is spent here."""
    ax1, ay1, ax2, ay2 = a[:, :, None].unbind(1)
    bx1, by1, bx2, by2 = b.T.contiguous()
    scratch = torch.maximum(ax1, bx1)
    width = torch.minimum(ax2, bx2).sub_(scratch).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1, out=scratch))
    intersection = width.mul_(height)
    union = torch.add(areas_of_a[:, None], areas_of_b, out=scratch).sub_(intersection)
    return intersection.div_(union)


def _ious_within(boxes: Float[Tensor, "groups boxes 4"]) -> Float[Tensor, "groups boxes boxes"]:
    """IoU of every pair within each group, 0 where they lie apart; in place, for the same reason as `_ious`."""
    x1, y1, x2, y2 = boxes.movedim(2, 0).contiguous()
    areas = (x2 - x1) * (y2 - y1)
    scratch = torch.maximum(x1[:, :, None], x1[:, None])
    width = torch.minimum(x2[:, :, None], x2[:, None]).sub_(scratch).clamp_(min=0)
    torch.maximum(y1[:, :, None], y1[:, None], out=scratch)
    intersection = torch.minimum(y2[:, :, None], y2[:, None]).sub_(scratch).clamp_(min=0).mul_(width)
    torch.add(areas[:, :, None], areas[:, None], out=scratch).sub_(intersection)
    # boxes without area that lie apart would be 0 / 0
    return intersection.div_(scratch.clamp_(min=torch.finfo(scratch.dtype).tiny))


def _round_down(threshold: float, dtype: torch.dtype) -> float:
    """The largest value of `dtype` not above the threshold: a comparison in `dtype` then decides as one in float64 would."""
    nearest = torch.tensor(threshold, dtype=dtype)
    return (nearest if nearest.item() <= threshold else torch.nextafter(nearest, torch.tensor(-math.inf, dtype=dtype))).item()
