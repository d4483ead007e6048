"""What a foreign file is: every size of its network, read from its arrays once they carry our names."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from thingstuff.checkpoints.rules import Rule
from thingstuff.errors import CheckpointError
from thingstuff.models.backbone import BackboneConfig
from thingstuff.models.contract import Model
from thingstuff.models.deformable import Deformable
from thingstuff.models.fpn import Norm
from thingstuff.models.mask_rcnn import MaskRCNNConfig
from thingstuff.models.panoptic_fpn import PanopticFPNConfig
from thingstuff.models.panoptic_fpn import Thresholds as PanopticThresholds
from thingstuff.models.yolact import YolactConfig
from thingstuff.structures.categories import COCO_PANOPTIC, COCO_THINGS, Categories
from thingstuff.structures.preprocessing import Preprocessing


@dataclass(frozen=True)
class Description:
    """A foreign file as its layout reads it: what to build, how to fill it, and what goes in and comes out."""

    model: type[Model]
    config: Any  # of that model
    preprocessing: Preprocessing
    categories: Categories
    rules: tuple[Rule, ...]


def refuse_unsupported(names: Sequence[str], table: Sequence[tuple[str, str]], name: str, library: str) -> None:
    """Raise a CheckpointError for the first entry (pattern, what it is) of `table` that fits a parameter name as a whole."""
    for pattern, what in table:
        compiled = re.compile(pattern)
        culprit = next((key for key in names if compiled.fullmatch(key)), None)
        if culprit:
            raise CheckpointError(f"{name}: {what} ({library}, seen by {culprit}) is not supported yet")


def categories_for(things: int, stuff: int = 0) -> Categories:
    """COCO's where the numbers of classes say so, else numbered ones; things before stuff."""
    for known in (COCO_THINGS, COCO_PANOPTIC):
        if [category.is_thing for category in known] == [True] * things + [False] * stuff:
            return known
    return Categories.numbered(things, stuff)


def count(tensors: Mapping[str, Tensor], pattern: str, name: str) -> int:
    """How many numbered parts (group 1 of the pattern) there are; they must be numbered from 0 without gaps."""
    compiled = re.compile(pattern)
    numbers = {int(match[1]) for key in tensors if (match := compiled.fullmatch(key))}
    if numbers and max(numbers) != len(numbers) - 1:
        raise CheckpointError(f"{name}: the parts named {pattern} are numbered {sorted(numbers)[:8]}, with gaps")
    return len(numbers)


def mask_rcnn_config(tensors: Mapping[str, Tensor], name: str, backbone: BackboneConfig | None = None) -> MaskRCNNConfig:
    """The config that these arrays, under our names, fit; what no array shows keeps its default.

    The backbone is a ResNet unless one is given.

    Raises:
        CheckpointError: an array that every Mask R-CNN on FPN has is missing.
    """

    def shape(key: str) -> Sequence[int]:
        if key not in tensors:
            raise CheckpointError(f"{name}: looks like a Mask R-CNN on FPN but lacks what becomes {key} here")
        return tensors[key].shape

    if not any(key.startswith("box_head.") for key in tensors) and "semantic_branch.logits.weight" in tensors:
        raise CheckpointError(f"{name}: is a Semantic FPN, which finds no things, and is not supported yet")
    if not any(key.startswith("mask_head.") for key in tensors):
        raise CheckpointError(f"{name}: is a Faster R-CNN, which has no mask head; it finds boxes alone and is not supported")
    channels = shape("neck.output.0.conv.weight")[0]
    box_convs = count(tensors, r"box_head\.convs\.(\d+)\.conv\.weight", name)
    mask_convs = count(tensors, r"mask_head\.convs\.(\d+)\.conv\.weight", name)
    box_channels = shape("box_head.convs.0.conv.weight")[0] if box_convs else channels
    upsampled = shape("mask_head.upsample.weight")[1]
    mask_channels = shape("mask_head.convs.0.conv.weight")[0] if mask_convs else upsampled
    rpn_channels = shape("rpn.convs.0.conv.weight")[0]
    box_width, box_inputs = shape("box_head.fcs.0.weight")
    classes = shape("box_head.classes.weight")[0] - 1
    if classes < 1 or box_inputs < box_channels:
        raise CheckpointError(
            f"{name}: its box head has {classes + 1} class logits on {box_inputs} inputs, which is no Mask R-CNN"
        )
    return MaskRCNNConfig(
        backbone=backbone or resnet_config(tensors, name),
        classes=classes,
        channels=channels,
        neck_norm=_norm(tensors, "neck.lateral.0"),
        head_norm=_norm(tensors, "box_head.convs.0" if box_convs else "mask_head.convs.0"),
        rpn_convs=count(tensors, r"rpn\.convs\.(\d+)\.conv\.weight", name),
        rpn_channels=None if rpn_channels == channels else rpn_channels,
        box_convs=box_convs,
        box_channels=box_channels,
        box_fcs=count(tensors, r"box_head\.fcs\.(\d+)\.weight", name),
        box_width=box_width,
        mask_convs=mask_convs,
        mask_channels=mask_channels,
        mask_upsampled_channels=None if upsampled == mask_channels else upsampled,
        box_pool=math.isqrt(box_inputs // box_channels),
        class_agnostic_boxes=classes > 1 and shape("box_head.deltas.weight")[0] == 4,
        class_agnostic_masks=classes > 1 and shape("mask_head.logits.weight")[0] == 1,
    )


def with_semantic_branch(config: MaskRCNNConfig, tensors: Mapping[str, Tensor], **limits: Any) -> MaskRCNNConfig:
    """The Panoptic FPN of this Mask R-CNN and the semantic branch in these arrays, under our names; itself where there is none.

    Things come before stuff. `limits` are the numbers of the merge in which the library differs.
    """
    logits = tensors.get("semantic_branch.logits.weight")
    if logits is None or logits.ndim != 4:
        return config
    stuff = logits.shape[0] - 1
    values = {field.name: getattr(config, field.name) for field in fields(config)} | {
        "classes": config.classes + stuff,
        "thresholds": PanopticThresholds(**vars(config.thresholds), **limits),
    }
    return PanopticFPNConfig(
        **values,
        is_thing=(True,) * config.classes + (False,) * stuff,
        semantic_channels=logits.shape[1],
        semantic_norm=_norm(tensors, "semantic_branch.levels.0.0"),
    )


def demand_anchor_count(config: MaskRCNNConfig, tensors: Mapping[str, Tensor], name: str) -> None:
    """Anchors are computed, not stored: with another number of them than expected, nobody knows their shapes."""
    stored = tensors["rpn.objectness.weight"].shape[0] if "rpn.objectness.weight" in tensors else 0
    if stored != len(config.anchor_ratios):
        raise CheckpointError(
            f"{name}: has {stored} anchors a cell where this layout has {len(config.anchor_ratios)}, and does not say which"
        )


def yolact_config(tensors: Mapping[str, Tensor], name: str, anchors: int, **more: Any) -> YolactConfig:
    """The config of a YOLACT with so many anchors a cell that these arrays, under our names, fit; `more` is what they don't show.

    Raises:
        CheckpointError: an array that every YOLACT has is missing, or the arrays contradict each other.
    """

    def shape(key: str) -> Sequence[int]:
        if key not in tensors or tensors[key].ndim != 4:
            raise CheckpointError(f"{name}: looks like a YOLACT but lacks what becomes {key} here")
        return tensors[key].shape

    classes, head_channels, *_ = shape("head.classes.weight")
    coefficients, boxes = shape("head.coefficients.weight")[0], shape("head.deltas.weight")[0]
    prototypes, prototype_channels, *_ = shape("prototype_net.prototypes.weight")
    if boxes != 4 * anchors or coefficients != prototypes * anchors or classes % anchors or classes < 2 * anchors:
        raise CheckpointError(
            f"{name}: its head gives {classes} class logits, {boxes} numbers of boxes and {coefficients} coefficients a cell, "
            f"which is not {anchors} anchors with {prototypes} prototypes"
        )
    rating = count(tensors, r"mask_rating\.convs\.(\d+)\.weight", name)
    return YolactConfig(
        classes=classes // anchors - 1,
        channels=shape("neck.output.0.conv.weight")[0],
        prototypes=prototypes,
        prototype_channels=prototype_channels,
        prototype_convs=count(tensors, r"prototype_net\.convs\.(\d+)\.weight", name),
        last_prototype_convs=count(tensors, r"prototype_net\.last_convs\.(\d+)\.weight", name),
        head_convs=count(tensors, r"head\.convs\.(\d+)\.conv\.weight", name),
        head_channels=head_channels,
        mask_rating_channels=tuple(shape(f"mask_rating.convs.{index}.weight")[0] for index in range(rating)),
        **more,
    )


# timm's names of the depths with everything else standard: (has bottleneck blocks, blocks in each stage)
_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
_STANDARD_CHANNELS = (64, 128, 256, 512)  # before a bottleneck's expansion by 4


def resnet_config(tensors: Mapping[str, Tensor], name: str) -> BackboneConfig:
    """A ResNet, ResNeXt or wide ResNet of any depth (He et al., 2015, table 1; Xie et al., 2016, arXiv:1611.05431, section 3)."""
    body = "backbone.body."
    blocks = tuple(count(tensors, rf"backbone\.body\.layer{stage}\.(\d+)\.conv1\.weight", name) for stage in (1, 2, 3, 4))
    if 0 in blocks or body + "conv1.weight" not in tensors:
        raise CheckpointError(f"{name}: its backbone is no ResNet (blocks in its four stages: {blocks})")
    if tensors[body + "conv1.weight"].shape[0] != 64:
        raise CheckpointError(
            f"{name}: its backbone has a stem of {tensors[body + 'conv1.weight'].shape[0]} channels where a ResNet has 64, "
            "which is not supported yet"
        )
    bottleneck = body + "layer1.0.conv3.weight" in tensors
    last = "conv3" if bottleneck else "conv2"
    widths = [tensors.get(f"{body}layer{stage}.0.{last}.weight") for stage in (1, 2, 3, 4)]
    middle = tensors.get(body + "layer1.0.conv2.weight")
    if any(kernel is None for kernel in widths) or middle is None or middle.ndim != 4:
        raise CheckpointError(f"{name}: the blocks of its backbone are not those of a ResNet")
    channels = tuple(kernel.shape[0] // (4 if bottleneck else 1) for kernel in widths if kernel is not None)
    options: list[tuple[str, object]] = []
    known = _RESNETS.get((bottleneck, blocks))
    if known is None:
        options.append(("layers", blocks))
    if channels != _STANDARD_CHANNELS:
        options.append(("channels", channels))
    if bottleneck:
        groups = middle.shape[0] // middle.shape[1]
        base_width = middle.shape[0] * 64 // (channels[0] * groups) if channels[0] and groups else 64
        options += [("cardinality", groups)] if groups != 1 else []
        options += [("base_width", base_width)] if base_width != 64 else []
    if body + "bn1.running_mean" not in tensors:
        options.append(("norm_layer", "groupnorm"))
    return BackboneConfig(
        known or ("resnet50" if bottleneck else "resnet18"),
        tuple(options),
        frozen_norms=has_frozen_norms(tensors),
        **_deformable_blocks(tensors, name),
    )


def _deformable_blocks(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """What a backbone's config says of deformable convolutions; of all blocks that have one, the first tells their kind."""
    found = [
        match for key in tensors if (match := re.fullmatch(r"backbone\.body\.((layer\d)\.(\d+)\.conv2)\.offset\.weight", key))
    ]
    if not found:
        return {}
    found.sort(key=lambda match: (match[2], int(match[3])))
    first = "backbone.body." + found[0][1]
    kind, groups = deformable_kind(tensors, first, name)
    return {
        "deformable": tuple(match[1].removesuffix(".conv2") for match in found),
        "deformable_kind": kind,
        "deformable_groups": groups,
        "deformable_bias": f"{first}.bias" in tensors,
    }


def deformable_kind(tensors: Mapping[str, Tensor], conv: str, name: str) -> tuple[Deformable, int]:
    """How a convolution samples, and for how many parts of its channels apart: seen by the offsets that it predicts."""
    kernel, offset = tensors.get(f"{conv}.weight"), tensors.get(f"{conv}.offset.weight")
    if offset is None:
        return Deformable.NO, 1
    taps = 1 if kernel is None or kernel.ndim != 4 else kernel.shape[2] * kernel.shape[3]
    # 6 numbers a tap could be 2 parts of v2 or 3 of v1; no published network has 3
    for kind in (Deformable.V2, Deformable.V1):
        groups, rest = divmod(offset.shape[0], kind.numbers * taps)
        if groups and not rest:
            return kind, groups
    raise CheckpointError(f"{name}: {conv} is deformable but predicts {offset.shape[0]} numbers for {taps} taps")


def backwards(values: tuple[float, float, float]) -> tuple[float, float, float]:
    """From B, G, R to R, G, B, or back."""
    return values[2], values[1], values[0]


def has_frozen_norms(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the backbone's batch norms were never trained: frozen ones store no count of batches."""
    return "backbone.body.bn1.running_mean" in tensors and "backbone.body.bn1.num_batches_tracked" not in tensors


def is_grouped(config: BackboneConfig) -> bool:
    return any(key == "cardinality" for key, _ in config.options)


def is_group_normed(config: BackboneConfig) -> bool:
    return ("norm_layer", "groupnorm") in config.options


def _norm(tensors: Mapping[str, Tensor], part: str) -> Norm:
    if f"{part}.norm.running_mean" in tensors:
        return Norm.BATCH
    return Norm.GROUP if f"{part}.norm.weight" in tensors else Norm.NONE
