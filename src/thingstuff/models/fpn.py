"""Feature Pyramid Networks (Lin et al., 2017, arXiv:1612.03144, figure 3).

C5 -> 1x1 -> + ------------> 3x3 -> P5 -> (subsampled) P6
             | up 2x
C4 -> 1x1 -> + ------------> 3x3 -> P4
             | up 2x
C3 -> 1x1 -> + ------------> 3x3 -> P3   and so on down to P2
"""

from collections.abc import Sequence
from enum import Enum

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Norm(Enum):
    """Normalisation after a convolution of a neck or head."""

    NONE = "none"
    BATCH = "batch"
    GROUP = "group"  # 32 groups (Wu and He, 2018, arXiv:1803.08494)


class ConvNorm(nn.Module):
    """A convolution that keeps the size, and the norm that replaces its bias."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, norm: Norm = Norm.NONE):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=norm is Norm.NONE)
        if norm is Norm.BATCH:
            self.norm: nn.Module = nn.BatchNorm2d(channels_out)
        elif norm is Norm.GROUP:
            self.norm = nn.GroupNorm(32, channels_out)
        else:
            self.norm = nn.Identity()

    def forward(self, x: Float[Tensor, "batch _ height width"]) -> Float[Tensor, "batch _ height width"]:
        return self.norm(self.conv(x))


class FPN(nn.Module):
    """Top-down neck: C2..C5 in, P2..P5 out, and P6 as every second cell of P5 (section 4.1, footnote 2).

    Args:
        channels_in: widths of the backbone's levels, finest first.
        channels: width of every pyramid level.
        norm: after each lateral and output convolution.
    """

    def __init__(self, channels_in: Sequence[int], channels: int, norm: Norm = Norm.NONE):
        super().__init__()
        self.lateral = nn.ModuleList(ConvNorm(width, channels, 1, norm) for width in channels_in)
        self.output = nn.ModuleList(ConvNorm(channels, channels, 3, norm) for _ in channels_in)
        for convolution in self.modules():
            if isinstance(convolution, nn.Conv2d):
                nn.init.kaiming_uniform_(convolution.weight, a=1)
                if convolution.bias is not None:
                    nn.init.zeros_(convolution.bias)

    def forward(self, levels: Sequence[Float[Tensor, "batch _ _ _"]]) -> list[Float[Tensor, "batch channels _ _"]]:
        mixed = self.lateral[-1](levels[-1])
        pyramid = [self.output[-1](mixed)]
        for level, lateral, output in zip(levels[-2::-1], self.lateral[-2::-1], self.output[-2::-1], strict=True):
            lateral_map = lateral(level)
            mixed = lateral_map + functional.interpolate(mixed, size=lateral_map.shape[-2:], mode="nearest")
            pyramid.insert(0, output(mixed))
        pyramid.append(functional.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        return pyramid
