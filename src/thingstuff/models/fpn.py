"""Feature Pyramid Networks (Lin et al., 2017, arXiv:1612.03144, figure 3).

C5 -> 1x1 -> + ------------> 3x3 -> P5 -> (subsampled) P6
             | up 2x
C4 -> 1x1 -> + ------------> 3x3 -> P4
             | up 2x
C3 -> 1x1 -> + ------------> 3x3 -> P3   and so on down to P2

Some networks start at P3 and get P6 and P7 from 3x3 convolutions of stride 2 (Lin et al., 2017, arXiv:1708.02002, section 4).
"""

from collections.abc import Sequence
from enum import Enum

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thingstuff.models.deformable import Deformable, DeformableConv


class Norm(Enum):
    """Normalisation after a convolution of a neck or head."""

    NONE = "none"
    BATCH = "batch"
    GROUP = "group"  # 32 groups (Wu and He, 2018, arXiv:1803.08494)


class Extra(Enum):
    """Where the levels above P5 come from."""

    POOLED = "pooled"  # one level, every second cell of P5
    FROM_PYRAMID = "from_pyramid"  # two levels, convolutions of P5 and of P6
    FROM_BACKBONE = "from_backbone"  # two levels, convolutions of C5 and of P6


class ConvNorm(nn.Module):
    """A convolution that keeps the size, and the norm that replaces its bias unless it is to have both."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        norm: Norm = Norm.NONE,
        deformable: Deformable = Deformable.NO,
        bias: bool = False,
    ):
        super().__init__()
        bias = bias or norm is Norm.NONE
        if deformable is Deformable.NO:
            self.conv: nn.Conv2d | DeformableConv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=bias)
        else:
            self.conv = DeformableConv(channels_in, channels_out, kernel, bias=bias, kind=deformable)
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
        channels_in: widths of the backbone's levels, finest first; a network that starts at P3 gives C3..C5.
        channels: width of every pyramid level.
        norm: after each lateral and output convolution.
        extra: the levels above P5.
        bilinear: enlarge a level bilinearly on its way down, not by repeating cells.
        relu: after each output convolution.
    """

    def __init__(
        self,
        channels_in: Sequence[int],
        channels: int,
        norm: Norm = Norm.NONE,
        extra: Extra = Extra.POOLED,
        bilinear: bool = False,
        relu: bool = False,
    ):
        super().__init__()
        self.extra_from, self.bilinear, self.relu = extra, bilinear, relu
        self.lateral = nn.ModuleList(ConvNorm(width, channels, 1, norm) for width in channels_in)
        self.output = nn.ModuleList(ConvNorm(channels, channels, 3, norm) for _ in channels_in)
        if extra is not Extra.POOLED:
            before = (channels if extra is Extra.FROM_PYRAMID else channels_in[-1], channels)
            self.extra = nn.ModuleList(nn.Conv2d(width, channels, 3, stride=2, padding=1) for width in before)
        for convolution in self.modules():
            if isinstance(convolution, nn.Conv2d):
                nn.init.kaiming_uniform_(convolution.weight, a=1)
                if convolution.bias is not None:
                    nn.init.zeros_(convolution.bias)

    def forward(self, levels: Sequence[Float[Tensor, "batch _ _ _"]]) -> list[Float[Tensor, "batch channels _ _"]]:
        mixed = self.lateral[-1](levels[-1])
        pyramid = [self._finish(self.output[-1](mixed))]
        for level, lateral, output in zip(levels[-2::-1], self.lateral[-2::-1], self.output[-2::-1], strict=True):
            lateral_map = lateral(level)
            mixed = lateral_map + self._enlarged(mixed, lateral_map)
            pyramid.insert(0, self._finish(output(mixed)))
        if self.extra_from is Extra.POOLED:
            pyramid.append(functional.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        else:
            above = pyramid[-1] if self.extra_from is Extra.FROM_PYRAMID else levels[-1]
            for convolution in self.extra:
                above = convolution(above)
                pyramid.append(above)
        return pyramid

    def _enlarged(self, level: Tensor, like: Tensor) -> Tensor:
        if self.bilinear:
            return functional.interpolate(level, size=like.shape[-2:], mode="bilinear", align_corners=False)
        return functional.interpolate(level, size=like.shape[-2:], mode="nearest")

    def _finish(self, level: Tensor) -> Tensor:
        return functional.relu(level) if self.relu else level
