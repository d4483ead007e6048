"""Matrix NMS (Wang et al., 2020, SOLOv2, arXiv:2003.10152, section 3.3, equations 4, 5): scores decay, no mask is dropped.

A mask's score is multiplied by  min over better masks i of its class  f(IoU with i) / f(highest IoU of i with one better than i):
a mask is punished for what covers it, and less so where what covers it is itself covered. There is no loop over masks.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

Kernel = Literal["gaussian", "linear"]
TILE = 64  # pixels a side; masks are compared tile by tile, in each those that reach it alone
TOGETHER = 128  # masks in a tile from which on classes are compared apart; fewer are compared faster than told apart
SAMPLE = 8  # every so many-th row and column tells which tiles a mask reaches
FULL = 0.75  # share of the tiles that masks reach on average from which on tiles spare nothing
AT_ONCE = 2**22  # pixels of masks that are floats at a time, where masks are not compared by tiles


@torch.no_grad()
def matrix_nms(
    masks: Bool[Tensor, "masks height width"],
    scores: Float[Tensor, " masks"],
    classes: Int[Tensor, " masks"],
    kernel: Kernel = "gaussian",
    sigma: float = 2.0,
) -> Float[Tensor, " masks"]:
    """Decayed scores, in the order of the masks. Masks of different classes don't see each other.

    The kernel is f(IoU) = exp(-sigma IoU^2) ("gaussian") or 1 - IoU ("linear"). Of equal scores the earlier mask is the better.
    A mask that a better one repeats exactly scores 0 with the linear kernel. An empty mask covers nothing and keeps its score.
    """
    if len(masks) < 2:
        return scores.clone()
    order = scores.argsort(descending=True, stable=True)
    order = order[classes[order].argsort(stable=True)]  # class by class, best first
    ious = mask_ious(masks[order], classes[order]).triu_(diagonal=1)
    decayed = torch.empty_like(scores)
    decayed[order] = scores[order] * _decay(ious, kernel, sigma)
    return decayed


def _decay(ious: Float[Tensor, "masks masks"], kernel: Kernel, sigma: float) -> Float[Tensor, " masks"]:
    """Factor of each mask; row i, column j holds the IoU of mask j with a better mask i, and 0 where i is not better.

    The best of its class makes the least factor of each mask 1 or less; those of other classes are 1 or more and change none.
    """
    covered = ious.amax(dim=0)[:, None]  # of each mask i, by one better than i
    if kernel == "gaussian":
        factors = torch.exp(sigma * (covered**2 - ious**2))
    else:
        factors = (1 - ious) / (1 - covered).clamp(min=torch.finfo(ious.dtype).eps)
    return factors.amin(dim=0)


def mask_ious(
    masks: Bool[Tensor, "masks height width"], classes: Int[Tensor, " masks"] | None = None
) -> Float[Tensor, "masks masks"]:
    """IoU of every pair of masks, 0 for two empty ones; with classes, which must be sorted, 0 for pairs of different ones.

    Pixels are counted in float32, exact up to 2^24 of them, under autocast, too.
    """
    sample = masks[:, ::SAMPLE, ::SAMPLE].float()
    with torch.autocast(masks.device.type, enabled=False):
        if sample.numel() and functional.max_pool2d(sample, TILE // SAMPLE, ceil_mode=True).mean() > FULL:
            shared = _shared_by_class(masks, classes)
        else:
            shared = _shared_by_tile(masks, classes)
    areas = shared.diagonal()
    union = areas[:, None] + areas - shared
    ious = shared / union.clamp(min=1)
    return ious if classes is None else ious * (classes[:, None] == classes)


def _shared_by_class(
    masks: Bool[Tensor, "masks height width"], classes: Int[Tensor, " masks"] | None
) -> Float[Tensor, "masks masks"]:
    """Pixels that masks of a class share, for masks that fill the image: tiles would only be more and smaller products."""
    shared = torch.zeros(len(masks), len(masks), device=masks.device)
    counts = [len(masks)] if classes is None else classes.unique_consecutive(return_counts=True)[1].tolist()
    start = 0
    for some in masks.split(counts):
        of_class = shared[start : start + len(some), start : start + len(some)]
        for part in some.flatten(1).split(max(1, AT_ONCE // len(some)), dim=1):
            pixels = part.float()
            of_class.addmm_(pixels, pixels.T)
        start += len(some)
    return shared


def _shared_by_tile(
    masks: Bool[Tensor, "masks height width"], classes: Int[Tensor, " masks"] | None
) -> Float[Tensor, "masks masks"]:
    """Pixels that masks share, whatever their class where few meet: only those that reach a tile are compared there."""
    shared = torch.zeros(len(masks), len(masks), device=masks.device)
    for rows in masks.view(torch.uint8).split(TILE, dim=1):
        reached = rows.amax(dim=1)  # masks width
        for tile, columns in zip(rows.split(TILE, dim=2), reached.split(TILE, dim=1), strict=True):
            members = columns.amax(dim=1).nonzero().squeeze(1)
            parts = [members]
            if classes is not None and len(members) > TOGETHER:
                parts = members.split(classes[members].unique_consecutive(return_counts=True)[1].tolist())
            for part in parts:
                pixels = tile[part].flatten(1).float()  # masks (height width)
                shared[part[:, None], part] += pixels @ pixels.T
    return shared
