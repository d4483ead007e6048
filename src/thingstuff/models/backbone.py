"""Backbones: timm's networks, cut into the feature levels C2..C5 (strides 4, 8, 16, 32) that every neck here starts from.

image -> timm network, features only -> C2, C3, C4, C5
"""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from thingstuff.errors import ConfigError

STRIDES = (4, 8, 16, 32)

# timm's transformers check the input size unless told not to; each family has its own word for that.
_FREE_INPUT_SIZE: tuple[dict[str, bool], ...] = ({"strict_img_size": False}, {"dynamic_img_size": True}, {})


@dataclass(frozen=True)
class BackboneConfig:
    """Which timm network, and how it departs from timm's default.

    Args:
        name: a timm model name that gives the strides 4, 8, 16 and 32 with ``features_only=True``.
        options: keyword arguments for ``timm.create_model``, as pairs: ``(("layers", (3, 4, 23, 3)), ("cardinality", 32))``.
        stride_in_1x1: put a bottleneck's stride in its first 1x1 convolution, as the original (caffe) ResNet of He et al. does.
        frozen_norms: keep batch norms at their stored statistics and their scales untrained.
        norm_eps: epsilon of the batch norms; None keeps timm's.
    """

    name: str = "resnet50"
    options: tuple[tuple[str, object], ...] = ()
    stride_in_1x1: bool = False
    frozen_norms: bool = False
    norm_eps: float | None = None


class Backbone(nn.Module):
    """A timm network that gives C2..C5; ``channels`` holds their widths.

    Raises:
        ConfigError: timm has no such network, does not take the options, or the network lacks one of the strides 4, 8, 16, 32.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        with torch.device("meta"):  # a look at the levels first, without memory
            reductions = _create(config).feature_info.reduction()
        missing = [stride for stride in STRIDES if stride not in reductions]
        if missing:
            raise ConfigError(
                f"backbone {config.name} gives the strides {reductions} and lacks {missing}; choose a network with levels "
                "at strides 4, 8, 16 and 32 (ResNet, EfficientNet, ConvNeXt, Swin ...)"
            )
        last = {stride: index for index, stride in enumerate(reductions)}
        self.body = _create(config, out_indices=tuple(last[stride] for stride in STRIDES))
        self.channels: tuple[int, ...] = tuple(self.body.feature_info.channels())
        self.channels_last_levels = str(getattr(self.body, "output_fmt", "NCHW")).upper().endswith("NHWC")
        if config.stride_in_1x1:
            _move_stride_to_1x1(self.body, config.name)
        for norm in self._norms():
            if config.norm_eps is not None:
                norm.eps = config.norm_eps
            if config.frozen_norms:
                norm.requires_grad_(False)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        levels = list(self.body(images))
        if self.channels_last_levels:
            levels = [level.permute(0, 3, 1, 2).contiguous() for level in levels]  # batch channels height width
        return levels

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.config.frozen_norms:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.body.modules() if isinstance(module, nn.BatchNorm2d)]


def _create(config: BackboneConfig, **more: Any) -> Any:  # timm's feature networks share no class
    options: dict[str, Any] = dict(config.options)
    problem: Exception | None = None
    for free_size in _FREE_INPUT_SIZE if any(part in config.name for part in ("swin", "vit", "beit", "eva", "deit")) else ({},):
        try:
            return timm.create_model(config.name, pretrained=False, features_only=True, **options, **free_size, **more)
        except (RuntimeError, TypeError, AttributeError, ValueError) as error:
            problem = error  # the last try is the one without extra words, so its complaint is about the config
    raise ConfigError(f"timm can't build backbone {config.name} with options {options}: {problem}") from problem


def _move_stride_to_1x1(body: nn.Module, name: str) -> None:
    """Move each bottleneck's stride from its 3x3 convolution to the 1x1 before it (He et al., 2015, arXiv:1512.03385)."""
    bottlenecks = [module for module in body.modules() if hasattr(module, "conv3") and hasattr(module, "downsample")]
    if not bottlenecks:
        raise ConfigError(f"stride_in_1x1 needs a ResNet of bottleneck blocks; {name} has none")
    for block in bottlenecks:
        first, middle = block.get_submodule("conv1"), block.get_submodule("conv2")
        assert isinstance(first, nn.Conv2d)
        assert isinstance(middle, nn.Conv2d)
        first.stride, middle.stride = middle.stride, first.stride
