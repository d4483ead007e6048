"""Masks of the image's size as targets at a stride."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def shrink_masks(masks: Bool[Tensor, "masks _ _"], size: Sequence[int], stride: int) -> Float[Tensor, "masks height width"]:
    """Share of each cell of `stride` pixels a side that is covered, on a map of this (height, width).

    Most others sample, which loses objects smaller than a cell; a share of them stays.
    """
    height, width = size
    small = torch.zeros((len(masks), height, width), device=masks.device)
    for mask, share in zip(masks, small, strict=True):  # one by one: as floats they are large
        padded = functional.pad(mask.float(), (0, width * stride - mask.shape[1], 0, height * stride - mask.shape[0]))
        share.copy_(functional.avg_pool2d(padded[None], stride)[0])
    return small
