"""Losses that more than one family uses, without reduction so that each model can weigh and average as its paper does."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
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


def upsampled_cross_entropy(
    logits: Float[Tensor, "batch classes rows columns"], truth: Int[Tensor, "batch height width"], ignored: int
) -> Float[Tensor, ""]:
    """Softmax cross-entropy of logits enlarged bilinearly to the size of the truth: its sum over the pixels not `ignored`.

    `truth` has a class or `ignored`, below 0, for each pixel. The gradient is found with the value, image by image and in place,
    so that one map of all classes lives at a time, where autograd keeps three of the whole batch. In float32, whatever autocast
    says; it can't be differentiated twice.
    """
    return _UpsampledCrossEntropy.apply(logits, truth, ignored)  # pyright: ignore[reportReturnType]


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, truth: Tensor, ignored: int) -> Tensor:
        total, gradients = logits.new_zeros((), dtype=torch.float32), []
        with torch.autocast(logits.device.type, enabled=False):
            for part, wanted in zip(logits.split(1), truth, strict=True):
                with torch.enable_grad():
                    # a pixel's classes side by side: softmax over any other axis takes twice the time, on a processor
                    cells = part.detach().float().contiguous(memory_format=torch.channels_last).requires_grad_()
                    enlarged = functional.interpolate(cells, size=wanted.shape, mode="bilinear", align_corners=False)
                pixels = enlarged.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (row column) class, the same memory
                torch.log_softmax(pixels, dim=1, out=pixels)
                is_void = wanted.flatten() == ignored
                of_truth = wanted.flatten().masked_fill(is_void, 0)[:, None]
                total -= pixels.gather(1, of_truth)[:, 0].masked_fill_(is_void, 0).sum()
                if ctx.needs_input_grad[0]:
                    # of a pixel: its probabilities, less 1 for the true class
                    gradient = pixels.exp_()
                    gradient.scatter_add_(1, of_truth, gradient.new_full((1, 1), -1).expand_as(of_truth))
                    gradient.masked_fill_(is_void[:, None], 0)
                    gradient = gradient.unflatten(0, (1, *wanted.shape)).permute(0, 3, 1, 2)
                    gradients += torch.autograd.grad(enlarged, cells, gradient)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients).to(logits.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (of_logits,) = ctx.saved_tensors
        return of_logits * gradient, None, None


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
