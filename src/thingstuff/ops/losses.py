"""Losses that more than one family uses, without reduction so that each model can weigh and average as its paper does."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def focal_loss(
    logits: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Tensor, "*shape"]:
    """Sigmoid focal loss (Lin et al., 2017, arXiv:1708.02002, equation 5), one value a logit.

    `targets` are 0 or 1. Positives weigh `alpha`, negatives 1 - `alpha`; what is predicted well already weighs little:
    the probability of the wrong answer to the power `gamma`.
    """
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = torch.where(targets > 0.5, (-logits).sigmoid(), logits.sigmoid())
    weight = torch.where(targets > 0.5, alpha, 1 - alpha)
    return weight * wrong**gamma * cross_entropy


def dice_loss(
    masks: Float[Tensor, "masks *pixels"], targets: Float[Tensor, "masks *pixels"], epsilon: float = 1e-3
) -> Float[Tensor, " masks"]:
    """1 - dice coefficient of each mask of probabilities with its target (Milletari et al., 2016, arXiv:1606.04797, section 3).

    The form with squares: 2 sum(p q) / (sum(p^2) + sum(q^2)), as SOLO has it (arXiv:1912.04488, equation 5). `epsilon` keeps an
    empty mask on an empty target defined.
    """
    p, q = masks.flatten(1), targets.flatten(1)
    overlap = (p * q).sum(dim=1)
    return 1 - 2 * overlap / ((p * p).sum(dim=1) + (q * q).sum(dim=1) + 2 * epsilon)


def plain_dice_loss(
    masks: Float[Tensor, "masks *pixels"], targets: Float[Tensor, "masks *pixels"], epsilon: float = 1.0
) -> Float[Tensor, " masks"]:
    """The form without squares: 1 - (2 sum(p q) + 1) / (sum(p) + sum(q) + 1), as MaskFormer and Mask2Former have it.

    `epsilon` is the 1 in both places: an empty mask on an empty target costs nothing.
    """
    p, q = masks.flatten(1), targets.flatten(1)
    return 1 - (2 * (p * q).sum(dim=1) + epsilon) / (p.sum(dim=1) + q.sum(dim=1) + epsilon)


# The same of each pair of a prediction and a target, for matching: matrix products over the pixels, which nothing repeats


def pairwise_plain_dice(
    masks: Float[Tensor, "masks pixels"], targets: Float[Tensor, "targets pixels"], epsilon: float = 1.0
) -> Float[Tensor, "masks targets"]:
    """`plain_dice_loss` of each mask with each target."""
    overlap = masks @ targets.T
    return 1 - (2 * overlap + epsilon) / (masks.sum(dim=1)[:, None] + targets.sum(dim=1) + epsilon)


def pairwise_cross_entropy(
    logits: Float[Tensor, "masks pixels"], targets: Float[Tensor, "targets pixels"]
) -> Float[Tensor, "masks targets"]:
    """Mean binary cross-entropy over the pixels of each mask with each target."""
    # softplus(x) - x q is -q log(sigmoid(x)) - (1 - q) log(1 - sigmoid(x))
    return (functional.softplus(logits).sum(dim=1)[:, None] - logits @ targets.T) / max(logits.shape[1], 1)


def pairwise_focal(
    logits: Float[Tensor, "masks pixels"], targets: Float[Tensor, "targets pixels"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Tensor, "masks targets"]:
    """Mean `focal_loss` over the pixels of each mask with each target; a target between 0 and 1 is so much of each."""
    probability = logits.sigmoid()
    as_positive = alpha * (1 - probability) ** gamma * functional.softplus(-logits)
    as_negative = (1 - alpha) * probability**gamma * functional.softplus(logits)
    return (as_positive @ targets.T + as_negative @ (1 - targets).T) / max(logits.shape[1], 1)
