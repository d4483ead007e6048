"""Backbones: timm's networks, cut into the feature levels C2..C5 (strides 4, 8, 16, 32) that every neck here starts from.

image -> timm network, features only -> C2, C3, C4, C5
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from thingstuff.errors import ConfigError
from thingstuff.models.deformable import Deformable, DeformableConv

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
        deformable: blocks of a ResNet whose 3x3 convolution is deformable, by name: ``("layer2.0", "layer2.3")``.
        deformable_kind: of these convolutions.
        deformable_groups: parts of their channels that have offsets of their own.
        deformable_bias: they have a bias, although a norm follows (YOLACT++).
        leaky_slope: of the leaky ReLUs below zero; None keeps timm's.
        original_windows: Swin's windows as its authors have them, of one size on maps of any size, which are padded before they
            are shifted; timm makes those of the last level smaller and pads what is shifted already.
        level_norms: a layer norm at the end of each level, as dense prediction on Swin has it.
    """

    name: str = "resnet50"
    options: tuple[tuple[str, object], ...] = ()
    stride_in_1x1: bool = False
    frozen_norms: bool = False
    norm_eps: float | None = None
    deformable: tuple[str, ...] = ()
    deformable_kind: Deformable = Deformable.V2
    deformable_groups: int = 1
    deformable_bias: bool = False
    leaky_slope: float | None = None
    original_windows: bool = False
    level_norms: bool = False

    def __post_init__(self) -> None:
        if self.deformable and self.deformable_kind is Deformable.NO:
            raise ConfigError(f'deformable_kind must be "v1" or "v2" for the deformable blocks {self.deformable}')
        if self.deformable_groups < 1:
            raise ConfigError(f"deformable_groups must be at least 1, got {self.deformable_groups}")
        if self.original_windows and not self.name.startswith("swin_"):
            raise ConfigError(f"original_windows needs a Swin transformer; {self.name} is none")


class Backbone(nn.Module):
    """A timm network that gives C2..C5; ``channels`` holds their widths.

    Raises:
        ConfigError: timm has no such network, does not take the options, or the network lacks one of the strides 4, 8, 16, 32.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self._folded: tuple[object, nn.Module] | None = None  # in a tuple, so that it is no submodule and never saved
        self._frozen: list[nn.Module] = []  # parts that are never in training mode
        with torch.device("meta"):  # a look at the levels first, without memory
            levels = _create(config).feature_info
            reductions = levels.reduction()
        missing = [stride for stride in STRIDES if stride not in reductions]
        if missing:
            raise ConfigError(
                f"backbone {config.name} gives the strides {reductions} and lacks {missing}; choose a network with levels "
                "at strides 4, 8, 16 and 32 (ResNet, EfficientNet, ConvNeXt, Swin ...)"
            )
        last = dict(zip(reductions, levels.out_indices, strict=True))  # the later of two levels with one stride
        wanted = tuple(last[stride] for stride in STRIDES)
        with torch.device("meta"):
            _demand_free_input_size(_create(config, out_indices=wanted), config)
        self.body = _create(config, out_indices=wanted)
        self.channels: tuple[int, ...] = tuple(self.body.feature_info.channels())
        self.channels_last_levels = str(getattr(self.body, "output_fmt", "NCHW")).upper().endswith("NHWC")
        if config.stride_in_1x1:
            _move_stride_to_1x1(self.body, config.name)
        for block in config.deformable:
            _make_deformable(self.body, block, config)
        if config.original_windows:
            _pad_before_shift(self.body)
        if config.level_norms:
            self.level_norms = nn.ModuleList(nn.LayerNorm(width) for width in self.channels)
        for module in self.body.modules():
            if isinstance(module, nn.LeakyReLU) and config.leaky_slope is not None:
                module.negative_slope = config.leaky_slope
        _spare_gradients_in_16_bits(self.body)
        for norm in self._norms():
            if config.norm_eps is not None:
                # torchvision's weights ask for 0, which torch 2.11 refuses; the least number changes no variance
                norm.eps = max(config.norm_eps, torch.finfo(torch.float32).tiny)
            if config.frozen_norms:
                norm.requires_grad_(False)
                self._frozen.append(norm)

    def freeze(self, levels: int) -> None:
        """Keep the first levels, and all that they are made of, as they are: C2 for 1, C2 and C3 for 2, at most 4.

        Generic weights for edges and textures need no further training, and what is not trained takes no gradient: less time and
        memory, as these maps are the largest. detectron2's ``FREEZE_AT=2`` and MMDetection's ``frozen_stages=1`` are 1 here. In a
        network whose levels exchange what they know, as HRNet's do, C2 is made of nearly everything.
        """
        if not 0 <= levels <= len(STRIDES):
            raise ConfigError(f"frozen levels must be from 0 to {len(STRIDES)}, got {levels}")
        if levels == 0:
            return
        was_training = self.training
        self.eval()  # so that looking changes no statistics
        weight = next(self.parameters())
        with torch.enable_grad():
            found = self(torch.zeros(1, 3, 2 * STRIDES[-1], 2 * STRIDES[-1], device=weight.device, dtype=weight.dtype))
        frozen = _weights_behind(found[:levels])
        for weight in frozen:
            weight.requires_grad_(False)
        ids = {id(weight) for weight in frozen}
        for module in self.modules():
            weights = list(module.parameters())
            if any(id(weight) in ids for weight in weights) and not any(weight.requires_grad for weight in weights):
                self._frozen.append(module)
        self.train(was_training)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        unchanging = not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        body = self._folded_body() if unchanging else self.body
        if self.config.original_windows:  # an image that is not padded may end within a patch
            images = functional.pad(images, (0, -images.shape[-1] % STRIDES[0], 0, -images.shape[-2] % STRIDES[0]))
        levels = list(body(images))
        if self.config.level_norms:
            if not self.channels_last_levels:
                levels = [level.permute(0, 2, 3, 1) for level in levels]  # batch height width channels
            levels = [norm(level) for norm, level in zip(self.level_norms, levels, strict=True)]
        if self.channels_last_levels or self.config.level_norms:
            levels = [level.permute(0, 3, 1, 2).contiguous() for level in levels]  # batch channels height width
        return levels

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def _folded_body(self) -> nn.Module:
        """The body with its batch norms folded into the convolutions: fewer passes over memory, equal but for rounding.

        It is a copy, made anew whenever a weight has changed, so that training and saving never see it.
        """
        weights = [*self.body.parameters(), *self.body.buffers()]
        if not self._norms() or any(weight.is_inference() for weight in weights):  # of which changes can't be seen
            return self.body
        state = tuple((weight.data_ptr(), weight._version, weight.device, weight.dtype) for weight in weights)
        if self._folded is None or self._folded[0] != state:
            with torch.autocast(weights[0].device.type, enabled=False):  # the copy outlives this call's precision
                self._folded = (state, folded(self.body))
        return self._folded[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Backbone":
        kept, self._folded = self._folded, None
        try:
            copy = self.__class__.__new__(self.__class__)
            memo[id(self)] = copy
            copy.__dict__ = deepcopy(self.__dict__, memo)
        finally:
            self._folded = kept
        return copy

    def _norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.body.modules() if isinstance(module, nn.BatchNorm2d)]


def _create(config: BackboneConfig, **more: Any) -> Any:  # timm's feature networks share no class
    options: dict[str, Any] = dict(config.options) | ({"always_partition": True} if config.original_windows else {})
    problem: Exception | None = None
    for free_size in _FREE_INPUT_SIZE if any(part in config.name for part in ("swin", "vit", "beit", "eva", "deit")) else ({},):
        try:
            return timm.create_model(config.name, pretrained=False, features_only=True, **options, **free_size, **more)
        except (RuntimeError, TypeError, AttributeError, ValueError) as error:
            problem = error  # the last try is the one without extra words, so its complaint is about the config
    raise ConfigError(f"timm can't build backbone {config.name} with options {options}: {problem}") from problem


def _demand_free_input_size(body: Any, config: BackboneConfig) -> None:
    """Some of timm's transformers work at one image size alone, which shows when they are given another."""
    try:
        levels = body.eval()(torch.empty(1, 3, 96, 160, device="meta"))
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"backbone {config.name} can't take an image of 96 x 160 pixels ({error}); choose a network for images of any size "
            "(ResNet, EfficientNet, ConvNeXt, Swin ...)"
        ) from error
    last = -3 if str(getattr(body, "output_fmt", "NCHW")).upper().endswith("NHWC") else -2
    sides = [level.shape[last] for level in levels]
    if sides != [96 // stride for stride in STRIDES]:
        raise ConfigError(
            f"backbone {config.name} says it has the strides {STRIDES}, but 96 pixels became {sides}; choose another"
        )


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


def _weights_behind(results: Sequence[Tensor]) -> list[Tensor]:
    """The trained weights that results are made with, from the graph of their making."""
    nodes, seen, weights = [result.grad_fn for result in results], set(), []
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes.extend(before for before, _ in node.next_functions)
        weight = getattr(node, "variable", None)  # of a node that adds up a weight's gradient
        if weight is not None:
            weights.append(weight)
    return weights


class _Depthwise(nn.Conv2d):
    """A convolution of each channel by itself.

    Where it is trained in 16 bits on a processor it works in 32: oneDNN (3.12, with AVX-512) is slow at the gradient of large
    kernels in bfloat16, such as EfficientNet's of 5 x 5.
    """

    def forward(self, x: Float[Tensor, "batch channels _ _"]) -> Float[Tensor, "batch channels _ _"]:
        is_trained = torch.is_grad_enabled() and self.weight.requires_grad and self.weight.dtype == torch.float32
        if not (is_trained and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))


class _DepthwiseSame(_Depthwise, Conv2dSame):
    """The same with TensorFlow's padding."""


_CONVS = (nn.Conv2d, Conv2dSame, _Depthwise, _DepthwiseSame)


def _spare_gradients_in_16_bits(body: nn.Module) -> None:
    kinds = {nn.Conv2d: _Depthwise, Conv2dSame: _DepthwiseSame}
    for module in body.modules():
        if type(module) in kinds and isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.__class__ = kinds[type(module)]  # the same parts under the same names


class _PaddedFirst(SwinTransformerBlock):
    """Windows over a map that is padded to whole ones; shifting then moves padding and edges alike (Liu et al., 2021,
    arXiv:2103.14030, the authors' code for dense prediction)."""

    def _attn(self, x: Float[Tensor, "batch height width channels"]) -> Float[Tensor, "batch height width channels"]:
        height, width = x.shape[1:3]
        below, right = -height % self.window_size[0], -width % self.window_size[1]
        padded = nn.functional.pad(x, (0, 0, 0, right, 0, below))
        return super()._attn(padded)[:, :height, :width]


def _pad_before_shift(body: nn.Module) -> None:
    for module in body.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = _PaddedFirst  # the same parts under the same names


def _make_deformable(body: nn.Module, name: str, config: BackboneConfig) -> None:
    """Replace the 3x3 convolution of one block."""
    block = dict(body.named_modules()).get(name)
    plain = getattr(block, "conv2", None)
    if not isinstance(plain, nn.Conv2d) or plain.kernel_size != (3, 3) or plain.dilation != (1, 1):
        raise ConfigError(f"{config.name} has no block {name} with a plain 3x3 convolution that could be deformable")
    if plain.in_channels % config.deformable_groups:
        raise ConfigError(f"{name} of {config.name} has {plain.in_channels} channels, not {config.deformable_groups} equal parts")
    assert block is not None
    block.conv2 = DeformableConv(
        plain.in_channels,
        plain.out_channels,
        stride=plain.stride[0],
        bias=config.deformable_bias,
        kind=config.deformable_kind,
        groups=plain.groups,
        offset_groups=config.deformable_groups,
    )


@torch.no_grad()
def folded(network: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode without the batch norms that follow a convolution directly, and without paddings.

    A norm at fixed statistics scales and shifts each channel, so its numbers go into the kernel and bias before it
    (Jacob et al., 2018, arXiv:1712.05877, section 3.2). What can't be folded stays as it is.
    """
    copy = deepcopy(network).eval()
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # what made each tensor; the tensors are kept so that no id occurs twice
    calls: list[tuple[nn.Module, nn.Module | None]] = []  # norm, and the convolution whose output it was given

    def remember(module: nn.Module, _: Any, output: Tensor) -> None:
        made[id(output)] = (module, output)

    def match(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls.append((module, made.get(id(inputs[0]), (None,))[0]))

    hooks: list[Any] = []
    for module in copy.modules():
        if type(module) in _CONVS:  # another subclass may do more with its kernel
            hooks.append(module.register_forward_hook(remember))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d):
            hooks.append(module.register_forward_pre_hook(match))
    weight = next(network.parameters())
    image = torch.linspace(-1, 1, 3 * 64 * 64, device=weight.device, dtype=weight.dtype).reshape(1, 3, 64, 64)
    before = copy(image)
    for hook in hooks:
        hook.remove()

    norms, convs = [norm for norm, _ in calls], [conv for _, conv in calls]
    replaced: dict[nn.Module, nn.Module] = {}
    for norm, conv in calls:
        if conv is None or norms.count(norm) > 1 or convs.count(conv) > 1:
            continue
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(conv, nn.Conv2d)
        if norm.running_mean is None or norm.running_var is None:
            continue
        kernel, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight, conv.bias = kernel.requires_grad_(False), bias.requires_grad_(False)
        replaced[norm] = norm.get_submodule("act") if isinstance(norm, BatchNormAct2d) else nn.Identity()
    for module in list(copy.modules()):
        for name, child in list(module.named_children()):
            if child in replaced:
                setattr(module, name, replaced[child])
            elif isinstance(child, nn.Conv2d) and type(child) in (Conv2dSame, _DepthwiseSame) and _halves(child):
                setattr(module, name, _SameConv(child))

    # a network that uses a convolution's output elsewhere, too, would show here
    alike = all(_near(old, new) for old, new in zip(before, copy(image), strict=True))
    return copy if alike else network


def _halves(conv: nn.Conv2d) -> bool:
    return conv.stride == (2, 2) and conv.kernel_size in ((3, 3), (5, 5))


class _SameConv(nn.Module):
    """TensorFlow's "same" convolution of stride 2 without the padded copy of its input, which takes as long as the kernel.

    On even sides it wants one pixel more after them than before. Padded by one more than it has before, on all sides, the plain
    convolution gives the same numbers behind a first row and column, which are left out.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        conv = self.conv
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            return conv(x)
        side = (conv.kernel_size[0] + 1) // 2
        return functional.conv2d(x, conv.weight, conv.bias, conv.stride, side, conv.dilation, conv.groups)[..., 1:, 1:]


def _near(old: Tensor, new: Tensor) -> bool:
    # convolutions on a GPU may round their inputs to 10 bits (TF32)
    tolerance = 1e-3 if old.device.type == "cpu" else 1e-2
    return bool((old - new).abs().max() <= tolerance * old.abs().max())
