"""Focal and dice loss against numbers computed by hand."""

import math

import pytest
import torch
from torch.nn import functional

from thingstuff.ops.losses import (
    dice_loss,
    focal_loss,
    pairwise_cross_entropy,
    pairwise_focal,
    pairwise_plain_dice,
    plain_dice_loss,
)


def test_focal_loss_of_even_odds() -> None:
    # probability 1/2: weight 1/4 or 3/4, times (1/2)^2, times log 2
    losses = focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))
    expected = [0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)]
    assert losses.tolist() == pytest.approx(expected)


def test_focal_loss_of_three_to_one() -> None:
    # logit log 3 is probability 3/4
    losses = focal_loss(torch.full((2,), math.log(3)), torch.tensor([1.0, 0.0]), alpha=0.4, gamma=1.0)
    expected = [0.4 * 0.25 * math.log(4 / 3), 0.6 * 0.75 * math.log(4)]
    assert losses.tolist() == pytest.approx(expected)


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    logits, targets = torch.linspace(-4, 4, 9), torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none") / 2
    torch.testing.assert_close(focal_loss(logits, targets, alpha=0.5, gamma=0.0), expected)


def test_focal_loss_and_its_gradient_are_finite_for_any_logit() -> None:
    logits = torch.tensor([-1e4, 1e4, -1e4, 1e4], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    loss.sum().backward()
    assert logits.grad is not None
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    assert loss[0] == loss[3] == 0


def test_dice_loss_by_hand() -> None:
    masks = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    # 2 * 0.5 / (0.25 + 0.25 + 1), and a thousandth twice below
    assert dice_loss(masks, torch.tensor([[1.0, 0.0, 0.0, 0.0]])).item() == pytest.approx(1 - 1 / 1.502)


def test_dice_loss_of_a_right_and_a_wrong_mask() -> None:
    right, wrong = torch.eye(4)[:1] * 100 > 0, torch.eye(4)[1:2] > 0
    target = torch.eye(4)[:1]
    assert dice_loss(right.float(), target).item() == pytest.approx(0, abs=1e-2)
    assert dice_loss(wrong.float(), target).item() == 1


def test_dice_loss_of_soft_targets_is_least_at_the_target() -> None:
    target = torch.tensor([[0.25, 1.0, 0.5, 0.0]])
    assert dice_loss(target, target).item() < dice_loss(target.round(), target).item()


def test_dice_loss_of_nothing_on_nothing_is_defined() -> None:
    masks = torch.zeros(1, 2, 2, requires_grad=True)
    loss = dice_loss(masks, torch.zeros(1, 2, 2))
    loss.sum().backward()
    assert masks.grad is not None
    assert loss.item() == 1
    assert masks.grad.isfinite().all()


def test_no_masks_have_no_losses() -> None:
    assert dice_loss(torch.zeros(0, 3, 3), torch.zeros(0, 3, 3)).shape == (0,)


def test_plain_dice_by_hand():
    masks = torch.tensor([[0.5, 0.5, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    # overlap 1.5, sums 2 and 2: 1 - (3 + 1) / (4 + 1); an empty mask on an empty target: 1 - 1 / 1
    torch.testing.assert_close(plain_dice_loss(masks, targets), torch.tensor([0.2, 0.0]))


def test_losses_of_all_pairs_are_those_of_each_pair():
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 30), (torch.rand(3, 30) > 0.5).float()
    for one, many in (
        (lambda x, q: plain_dice_loss(x[None].sigmoid(), q[None])[0], pairwise_plain_dice(logits.sigmoid(), targets)),
        (functional.binary_cross_entropy_with_logits, pairwise_cross_entropy(logits, targets)),
        (lambda x, q: focal_loss(x, q).mean(), pairwise_focal(logits, targets)),
    ):
        expected = torch.stack([torch.stack([one(x, q) for q in targets]) for x in logits])
        torch.testing.assert_close(many, expected)


def test_pairs_with_no_target_are_none():
    logits = torch.randn(4, 30)
    for pairwise in (pairwise_plain_dice, pairwise_cross_entropy, pairwise_focal):
        assert pairwise(logits, torch.zeros(0, 30)).shape == (4, 0)
