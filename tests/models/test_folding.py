"""Batch norms folded into convolutions: the same levels, never stale, never saved."""

import copy

import pytest
import torch
from torch import nn

from thingstuff.models.backbone import Backbone, BackboneConfig, folded


def lively(name: str) -> Backbone:
    """A backbone whose norms do something."""
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(name)).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return backbone


IMAGE = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(1))


def outcome(backbone: Backbone) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [level.clone() for level in backbone(IMAGE)]


def unfolded(backbone: Backbone) -> list[torch.Tensor]:
    return [level.detach() for level in backbone(IMAGE)]  # gradients on: the network as it is


def test_a_first_call_in_bfloat16_folds_as_well():
    backbone = lively("resnet18")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert backbone(IMAGE)[0].dtype == torch.bfloat16
    assert backbone._folded is not None
    assert backbone._folded[1] is not backbone.body
    torch.testing.assert_close(outcome(backbone), unfolded(backbone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnext26ts", "tf_efficientnet_lite0", "mobilenetv3_small_050", "regnety_002"])
def test_the_levels_are_the_same_and_norms_are_gone(name: str):
    backbone = lively(name)
    for fast, plain in zip(outcome(backbone), unfolded(backbone), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
    assert backbone._folded is not None
    left = [module for module in backbone._folded[1].modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(left) < len(backbone._norms()) / 4


@pytest.mark.parametrize("size", [(96, 64), (97, 64), (64, 99), (61, 37)])
def test_sizes_that_are_padded_differently_give_the_same_levels(size: tuple[int, int]):
    backbone = lively("tf_efficientnet_lite0")
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        fast = [level.clone() for level in backbone(image)]
    for level, plain in zip(fast, [level.detach() for level in backbone(image)], strict=True):
        torch.testing.assert_close(level, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("change", ["weight", "statistics", "loaded"])
def test_a_changed_network_is_folded_anew(change: str):
    backbone = lively("resnet18")
    before = outcome(backbone)
    with torch.no_grad():
        if change == "weight":
            next(backbone.parameters()).mul_(2)
        elif change == "statistics":
            backbone._norms()[0].running_mean.add_(1)  # type: ignore[union-attr]
        else:
            backbone.load_state_dict({key: value * 2 for key, value in backbone.state_dict().items()})
    after = outcome(backbone)
    assert not torch.allclose(before[-1], after[-1])
    torch.testing.assert_close(after[-1], unfolded(backbone)[-1], rtol=1e-3, atol=1e-4 * float(after[-1].abs().max()))


def test_the_folded_copy_is_no_part_of_the_network():
    backbone = lively("resnet18")
    keys = list(backbone.state_dict())
    outcome(backbone)
    assert list(backbone.state_dict()) == keys
    assert copy.deepcopy(backbone)._folded is None
    assert backbone._folded is not None


def test_training_and_gradients_see_the_norms():
    backbone = lively("resnet18").train()
    with torch.inference_mode():
        backbone(IMAGE)
    backbone.eval()(IMAGE)
    assert backbone._folded is None


class Forked(nn.Module):
    """A convolution whose output goes to a norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean = torch.ones(4)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = self.conv(images)
        return [features, self.norm(features)]


def test_a_network_that_can_not_be_folded_stays_as_it_is():
    network = Forked().eval()
    assert folded(network) is network
