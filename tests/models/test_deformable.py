"""Deformable convolutions against the papers' formula, written out sample by sample."""

import math

import pytest
import torch
from torch import Tensor

from thingstuff.models.deformable import Deformable, DeformableConv


def value_at(plane: Tensor, y: float, x: float) -> float:
    """Bilinear between the four pixels around a place; there is nothing outside (Dai et al., 2017, equations 3 and 4)."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total += max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column)) * float(plane[row, column])
    return total


def by_the_paper(conv: DeformableConv, image: Tensor, parts: int) -> Tensor:
    """Every output of one image: the sum over taps and channels of kernel x weight x value (Zhu et al., 2018, equation 1)."""
    side, taps = conv.weight.shape[-1], conv.weight.shape[-1] ** 2
    predicted = conv.offset(image[None])[0]
    offsets = predicted[: 2 * parts * taps].unflatten(0, (parts, taps, 2))  # part tap (y x) row column
    weights = predicted[2 * parts * taps :].sigmoid()
    groups = image.shape[0] // conv.weight.shape[1]
    result = torch.zeros(conv.weight.shape[0], *predicted.shape[1:])
    for out, row, column in (
        (o, r, c) for o in range(len(result)) for r in range(result.shape[1]) for c in range(result.shape[2])
    ):
        first = out // (len(result) // groups) * conv.weight.shape[1]  # channel that the group begins with
        for channel in range(first, first + conv.weight.shape[1]):
            part = channel // (image.shape[0] // parts)
            for tap in range(taps):
                dy, dx = offsets[part, tap, :, row, column].tolist()
                y = row * conv.stride - side // 2 + tap // side + dy
                x = column * conv.stride - side // 2 + tap % side + dx
                weight = float(weights[part * taps + tap, row, column]) if conv.kind is Deformable.V2 else 1.0
                kernel = float(conv.weight[out, channel - first, tap // side, tap % side])
                result[out, row, column] += kernel * weight * value_at(image[channel], y, x)
    return result if conv.bias is None else result + conv.bias[:, None, None]


@pytest.mark.parametrize("kind", [Deformable.V1, Deformable.V2])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "parts", "bias"),
    [(3, 1, 1, 1, False), (3, 2, 2, 1, True), (3, 1, 1, 2, False), (1, 1, 1, 1, True)],
)
@torch.no_grad()
def test_samples_are_those_of_the_papers_formula(
    kind: Deformable, kernel: int, stride: int, groups: int, parts: int, bias: bool
) -> None:
    torch.manual_seed(0)
    conv = DeformableConv(4, 2, kernel, stride, bias, kind, groups, parts)
    conv.offset.weight.normal_(std=0.3)
    conv.offset.bias.normal_(std=1.5)  # far enough to leave the image at its edges
    image = torch.randn(4, 5, 4)
    torch.testing.assert_close(conv(image[None])[0], by_the_paper(conv, image, parts), atol=1e-4, rtol=1e-4)


def test_without_offsets_v1_is_a_plain_convolution_and_v2_half_of_one() -> None:
    x = torch.randn(2, 3, 9, 11)
    for kind, share in ((Deformable.V1, 1.0), (Deformable.V2, 0.5)):  # a weight of 0 before the sigmoid halves every sample
        conv = DeformableConv(3, 5, stride=2, bias=True, kind=kind)
        plain = torch.nn.functional.conv2d(x, conv.weight, stride=2, padding=1)
        assert conv.bias is not None
        torch.testing.assert_close(conv(x), share * plain + conv.bias[:, None, None])


def test_samples_lie_where_the_offsets_say() -> None:
    conv = DeformableConv(1, 1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1.0  # the tap in the middle, number 4
        assert conv.offset.bias is not None
        conv.offset.bias[2 * 4 + 1] = 1.5  # one and a half to the right
        conv.offset.bias[18 + 4] = 100.0  # weight 1
    row = torch.tensor([[[[0.0, 2.0, 4.0, 8.0, 0.0, 0.0]]]])
    # between cells 1 and 2, 2 and 3, 3 and 4, 4 and 5; beyond the last cell there is nothing
    torch.testing.assert_close(conv(row), torch.tensor([[[[3.0, 6.0, 4.0, 0.0, 0.0, 0.0]]]]))


def test_offsets_and_weights_learn() -> None:
    conv = DeformableConv(3, 4)
    conv(torch.randn(1, 3, 6, 6)).square().sum().backward()
    assert conv.offset.weight.grad is not None
    assert conv.offset.weight.grad[:18].abs().max() > 0
    assert conv.offset.weight.grad[18:].abs().max() > 0
