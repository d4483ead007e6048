"""Matrix NMS (Wang et al., 2020, SOLOv2, arXiv:2003.10152, section 3.3, equations 4, 5): scores decay, no mask is dropped.

A mask's score is multiplied by  min over better masks i of its class  f(IoU with i) / f(highest IoU of i with one better than i):
a mask is punished for what covers it, and less so where what covers it is itself covered. There is no loop over masks.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Kernel = Literal["gaussian", "linear"]
TILE = 2**25  # pixels turned into float32 at a time


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
    decayed = scores.clone()
    order = scores.argsort(descending=True, stable=True)
    classes_in_order = classes[order]
    for class_ in classes_in_order.unique():
        among = order[classes_in_order == class_]
        if len(among) > 1:
            decayed[among] *= _decay(mask_ious(masks[among]).triu(diagonal=1), kernel, sigma)
    return decayed


def _decay(ious: Float[Tensor, "masks masks"], kernel: Kernel, sigma: float) -> Float[Tensor, " masks"]:
    """Factor of each mask; row i, column j holds the IoU of mask j with a better mask i, and 0 where i is not better."""
    covered = ious.amax(dim=0)[:, None]  # of each mask i, by one better than i
    if kernel == "gaussian":
        factors = torch.exp(sigma * (covered**2 - ious**2))
    else:
        factors = (1 - ious) / (1 - covered).clamp(min=torch.finfo(ious.dtype).eps)
    return factors.amin(dim=0)


def mask_ious(masks: Bool[Tensor, "masks height width"]) -> Float[Tensor, "masks masks"]:
    """IoU of every pair of masks; two empty masks have 0. Pixels are counted in float32, exact up to 2^24 of them."""
    flat = masks.flatten(1)  # masks (height width)
    shared = torch.zeros(len(flat), len(flat), device=masks.device)
    for part in flat.split(max(1, TILE // max(len(flat), 1)), dim=1):
        pixels = part.float()
        shared.addmm_(pixels, pixels.T)
    areas = shared.diagonal()
    return shared / (areas[:, None] + areas - shared).clamp(min=1)
