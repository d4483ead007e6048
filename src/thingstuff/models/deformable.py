"""Deformable convolutions, of backbones, heads and necks alike: their taps lie where a plain convolution of the same input says.

x -> plain convolution -> offsets of the taps (v2: and a weight for each) -> x sampled there -> kernel
"""

from enum import Enum

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class Deformable(Enum):
    """How a convolution samples its input."""

    NO = "no"  # on the grid
    V1 = "v1"  # at an offset from each tap's place (Dai et al., 2017, arXiv:1703.06211, section 2.1)
    V2 = "v2"  # and each sample has a weight from 0 to 1 (Zhu et al., 2018, arXiv:1811.11168, section 3.2)

    @property
    def numbers(self) -> int:
        """Predicted for each tap: y, x, and the weight."""
        return {Deformable.NO: 0, Deformable.V1: 2, Deformable.V2: 3}[self]


class DeformableConv(nn.Module):
    """A convolution of kind `V1` or `V2`, padded to keep the size where the stride is 1; fresh, its offsets are zero.

    Args:
        groups: of the kernel, as in a plain convolution.
        offset_groups: parts of the input's channels that have offsets of their own.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 3,
        stride: int = 1,
        bias: bool = False,
        kind: Deformable = Deformable.V2,
        groups: int = 1,
        offset_groups: int = 1,
    ):
        super().__init__()
        plain = nn.Conv2d(channels_in, channels_out, kernel, groups=groups, bias=bias)
        self.weight, self.bias = plain.weight, plain.bias
        self.kind, self.stride, self.padding = kind, stride, kernel // 2
        self.taps = offset_groups * kernel * kernel
        # y x y x ... of the taps, group by group, then all weights
        self.offset = nn.Conv2d(channels_in, kind.numbers * self.taps, kernel, stride=stride, padding=self.padding)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        predicted = self.offset(x)
        offsets = predicted[:, : 2 * self.taps]
        weights = predicted[:, 2 * self.taps :].sigmoid() if self.kind is Deformable.V2 else None
        stride, padding = (self.stride, self.stride), (self.padding, self.padding)
        return deform_conv2d(x, offsets, self.weight, self.bias, stride, padding, mask=weights)
