"""The feature pyramid, on numbers small enough to add up by hand."""

import pytest
import torch

from thingstuff.models.fpn import FPN, ConvNorm, Extra, Norm


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


def test_extra_levels_are_strided_convolutions_of_the_pyramid_or_of_the_backbone() -> None:
    coarse, fine = torch.full((1, 2, 4, 4), 3.0), torch.zeros(1, 1, 8, 8)
    for extra, sixth in ((Extra.FROM_PYRAMID, 3.0), (Extra.FROM_BACKBONE, 3.0)):
        neck = _identity(FPN([1, 2], channels=1, extra=extra))
        with torch.no_grad():
            neck.output[-1].conv.bias.fill_(2.0)  # P5 is C5 + 2, which C5 itself is not
        levels = neck([fine, coarse])
        assert [tuple(level.shape[-2:]) for level in levels] == [(8, 8), (4, 4), (2, 2), (1, 1)]
        wanted = sixth + 2 if extra is Extra.FROM_PYRAMID else sixth
        assert levels[2].unique().tolist() == levels[3].unique().tolist() == [wanted]


def test_a_bilinear_neck_interpolates_and_a_relu_ends_each_output() -> None:
    neck = _identity(FPN([1, 1], channels=1, bilinear=True, relu=True))
    p_fine, p_coarse, _ = neck([torch.zeros(1, 1, 1, 4), torch.tensor([[[[-4.0, 4.0]]]])])
    # positions -0.25 0.25 0.75 1.25 in cells: -4 -2 2 4, of which the negative ones are cut
    assert p_fine[0, 0, 0].tolist() == [0, 0, 2, 4]
    assert p_coarse[0, 0, 0].tolist() == [0, 4]
