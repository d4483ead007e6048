"""The feature pyramid, on numbers small enough to add up by hand."""

import pytest
import torch

from thingstuff.models.fpn import FPN, ConvNorm, Norm


def _identity(neck: FPN) -> FPN:
    """Lateral convolutions that pass channel 0 on, output convolutions that copy the centre."""
    with torch.no_grad():
        for conv in neck.modules():
            if isinstance(conv, torch.nn.Conv2d):
                conv.weight.zero_()
                conv.weight[0, 0, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    return neck


def test_each_level_adds_the_coarser_one_doubled() -> None:
    neck = _identity(FPN([1, 1], channels=1))
    fine, coarse = torch.ones(1, 1, 4, 4), torch.tensor([[[[10.0, 20.0], [30.0, 40.0]]]])
    p_fine, p_coarse, p_coarser = neck([fine, coarse])
    assert p_coarse.tolist() == coarse.tolist()
    assert p_fine[0, 0].tolist() == [[11, 11, 21, 21], [11, 11, 21, 21], [31, 31, 41, 41], [31, 31, 41, 41]]
    assert p_coarser.tolist() == [[[[10.0]]]]  # every second cell


def test_odd_sizes_are_met_by_the_nearest_cell() -> None:
    levels = FPN([4, 8], channels=6)([torch.randn(2, 4, 5, 7), torch.randn(2, 8, 3, 4)])
    assert [tuple(level.shape) for level in levels] == [(2, 6, 5, 7), (2, 6, 3, 4), (2, 6, 2, 2)]


@pytest.mark.parametrize(
    ("norm", "keys"), [(Norm.NONE, {"conv.weight", "conv.bias"}), (Norm.GROUP, {"conv.weight", "norm.weight", "norm.bias"})]
)
def test_a_norm_takes_the_place_of_the_bias(norm: Norm, keys: set[str]) -> None:
    assert set(ConvNorm(32, 32, 3, norm).state_dict()) == keys
