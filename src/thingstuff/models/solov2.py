"""SOLOv2 (Wang et al., 2020, arXiv:2003.10152, figure 2): SOLO with predicted mask kernels on one mask feature for all levels.

image -> backbone C2..C5 -> FPN P2..P6 -+-> each level, with coordinates, resized to its S x S grid
                                        |       -> category branch: classes of each cell
                                        |       -> kernel branch:   a 1x1 convolution for each cell
                                        +-> P2..P5 upsampled and summed: mask feature at stride 4

cells above a score, highest among their neighbours -> their kernels on the mask feature -> masks -> Matrix NMS -> instances
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thingstuff.errors import ConfigError
from thingstuff.models.backbone import Backbone
from thingstuff.models.deformable import Deformable
from thingstuff.models.fpn import FPN, ConvNorm, Norm
from thingstuff.models.solo import (
    PRIOR,
    GridConfig,
    GridModel,
    Tower,
    coordinates,
    demand_groups,
    last_conv,
    level_maps,
    resize,
)


@dataclass(frozen=True)
class SOLOv2Config(GridConfig):
    """The defaults are the paper's R50 network; the light ones have two convolutions of 256 channels and 128 kernel channels."""

    head_channels: int = 512
    head_convs: int = 4
    mask_channels: int = 128  # of the levels of the mask feature before they are summed, a multiple of 32
    kernel_channels: int = 256  # of the mask feature, and so of each cell's kernel; a multiple of 32
    deformable_masks: Deformable = Deformable.NO  # all convolutions of the mask feature

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.mask_channels, self.kernel_channels) < 1:
            raise ConfigError(
                f"mask_channels and kernel_channels must be at least 1, got {self.mask_channels} and {self.kernel_channels}"
            )
        demand_groups(self, "mask_channels")
        demand_groups(self, "kernel_channels")


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the network says, before any threshold. A cell's mask is its kernel on the mask feature, one for all levels."""

    categories: tuple[Float[Tensor, "batch classes _ _"], ...]  # logits on each level's grid
    kernels: tuple[Float[Tensor, "batch channels _ _"], ...]  # on each level's grid
    mask_feature: Float[Tensor, "batch channels height width"]  # stride 4


torch.export.register_dataclass(Predictions)


class MaskFeature(nn.Module):
    """P2..P5 brought to one map at stride 4 (section 3.2.2, figure 3): convolved, upsampled twofold step by step, summed."""

    def __init__(self, config: SOLOv2Config):
        super().__init__()
        width, kind = config.mask_channels, config.deformable_masks
        self.levels = nn.ModuleList()
        for level in range(4):
            # the coarsest one is told where it is
            widths = [config.channels + (2 if level == 3 else 0)] + [width] * max(level, 1)
            self.levels.append(nn.ModuleList(ConvNorm(before, width, 3, Norm.GROUP, kind) for before in widths[:-1]))
        self.output = ConvNorm(width, config.kernel_channels, 1, Norm.GROUP, kind)
        for part in self.modules():
            if isinstance(part, ConvNorm):
                nn.init.kaiming_normal_(part.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pyramid: Sequence[Float[Tensor, "batch _ _ _"]]) -> Float[Tensor, "batch channels height width"]:
        total = torch.zeros((), device=pyramid[0].device)
        for level, convs in enumerate(self.levels):
            assert isinstance(convs, nn.ModuleList)
            x = pyramid[level]
            if level == 3:
                x = torch.cat([x, coordinates(x)], dim=1)
            for position, conv in enumerate(convs):
                x = functional.relu(conv(x))
                if level > 0:
                    # padded images double exactly; the size of the finer level is the goal wherever they do not
                    x = resize(x, pyramid[level - 1 - position].shape[-2:])
            total = total + x
        return functional.relu(self.output(total))


class SOLOv2(GridModel):
    """See the module's figure."""

    coarse_masks = False

    def __init__(self, config: SOLOv2Config):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.neck = FPN(self.backbone.channels, config.channels)
        self.mask_feature = MaskFeature(config)
        self.category_branch = Tower(config.channels, config)
        self.kernel_branch = Tower(config.channels + 2, config)
        self.categories = last_conv(config.head_channels, config.classes, 3, PRIOR)
        self.kernels = last_conv(config.head_channels, config.kernel_channels, 3)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Predictions:
        return self.heads(self.neck(self.backbone(images)))

    def heads(self, pyramid: Sequence[Float[Tensor, "batch channels _ _"]]) -> Predictions:
        grids = [
            resize(torch.cat([level, coordinates(level)], dim=1), (side, side))
            for level, side in zip(level_maps(pyramid), self.config.grids, strict=True)
        ]
        return Predictions(
            tuple(self.categories(self.category_branch(grid[:, :-2])) for grid in grids),
            tuple(self.kernels(self.kernel_branch(grid)) for grid in grids),
            self.mask_feature(pyramid),
        )

    def mask_size(self, predictions: Predictions) -> tuple[int, int]:
        height, width = predictions.mask_feature.shape[-2:]
        return height, width

    def mask_factors(
        self, predictions: Predictions, image: int, level: int, cells: Int[Tensor, " masks"]
    ) -> tuple[Float[Tensor, "masks height width"], ...]:
        kernels = predictions.kernels[level][image].flatten(1)[:, cells].T  # masks channels
        return (functional.conv2d(predictions.mask_feature[image : image + 1], kernels[:, :, None, None])[0],)

    def untrained(self, predictions: Predictions) -> Float[Tensor, ""]:
        return torch.stack([part.float().sum() * 0 for part in (*predictions.kernels, predictions.mask_feature)]).sum()
