"""MMDetection's YOLACT, versions 2 and 3: published files and what its trainers save.

Another network in details than its authors': P6 comes from C5, the pyramid has no ReLU, and anchors keep their ratios.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from thingstuff.checkpoints import yolact
from thingstuff.checkpoints.mmdetection_config import (
    BACKBONE,
    BACKBONE_SETTINGS,
    LIBRARY,
    categories_in,
    limit,
    pad_multiple,
    pixel_statistics,
    refuse_settings,
    settings_in,
    stem,
    steps_of_tests,
    stride_in_1x1,
)
from thingstuff.checkpoints.python_config import Settings
from thingstuff.checkpoints.recognise import Description, refuse_unsupported, resnet_config, yolact_config
from thingstuff.checkpoints.rules import Rule, rename
from thingstuff.errors import CheckpointError
from thingstuff.models.fpn import Extra
from thingstuff.models.yolact import Thresholds, Yolact, YolactConfig
from thingstuff.structures.preprocessing import Preprocessing, Resize

SIZE = 550  # pixels a side
MEAN, STD = (123.68, 116.78, 103.94), (58.40, 57.12, 57.38)  # RGB
GRIDS = (69, 35, 18, 9, 5)  # cells a side of P3..P7 at that size; its configs write strides as 550 over them

UNSUPPORTED = (
    (r"backbone\.stem\..+", "a ResNet with a deep stem"),
    (r"backbone\.(patch_embed|stages|downsample_layers|norm\d)\..+", "a backbone other than ResNet"),
    (r"backbone\.layer\d\.\d+\.(context_block|gen_attention_block|conv_att).*", "a backbone with attention blocks"),
)
# Settings of `model` in a config text, and what they may say here: anything else changes the result and is not supported yet.
SUPPORTED_SETTINGS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    *BACKBONE_SETTINGS,
    ("neck.type", ("FPN",)),
    ("neck.start_level", (1,)),
    ("neck.num_outs", (5,)),
    ("neck.add_extra_convs", ("on_input", "on_output")),
    ("neck.relu_before_extra_convs", (False,)),
    ("neck.upsample_cfg.mode", ("bilinear",)),
    ("bbox_head.type", ("YOLACTHead",)),
    ("bbox_head.use_sigmoid_cls", (False,)),
    ("bbox_head.loss_cls.use_sigmoid", (False,)),
    ("bbox_head.anchor_generator.type", ("AnchorGenerator",)),
    ("bbox_head.anchor_generator.scales_per_octave", (1,)),
    ("bbox_head.anchor_generator.scales", ()),
    ("bbox_head.bbox_coder.type", ("DeltaXYWHBBoxCoder",)),
    ("bbox_head.bbox_coder.target_means", ([0, 0, 0, 0],)),
    ("bbox_head.bbox_coder.add_ctr_clamp", (False,)),
    ("bbox_head.bbox_coder.clip_border", (True,)),
    ("mask_head.type", ("YOLACTProtonet",)),
    ("mask_head.include_last_relu", (True,)),
)


def detect(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(("bbox_head.conv_coeff.", "mask_head.protonet.")) for key in tensors)


def describe(foreign: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Description:
    """What the file holds.

    Raises:
        CheckpointError: a variant without counterpart here, or an array that a YOLACT needs is missing.
    """
    refuse_unsupported(list(foreign), UNSUPPORTED, name, LIBRARY)
    rules = _rules(foreign)
    tensors = rename(foreign, (*stem(is_bgr=False), *rules)).tensors
    settings = settings_in(meta, name)
    refuse_settings(settings.first(("model",)), SUPPORTED_SETTINGS, name)
    neck = settings.first(("model", "neck"))
    if neck.get("type") and not neck.get("upsample_cfg"):
        raise CheckpointError(f"{name}: its pyramid ({LIBRARY}) is enlarged by repeating cells, which YOLACT's here is not")
    found = resnet_config(tensors, name)
    mean, std, is_bgr = pixel_statistics(settings, tensors, found, MEAN, STD)
    config = yolact_config(
        tensors,
        name,
        _ratios_of(settings, tensors),
        backbone=replace(found, stride_in_1x1=stride_in_1x1(settings, tensors, found), frozen_norms=True),
        neck_relu=False,
        square_anchors=False,
        anchor_ratios=(0.5, 1.0, 2.0),
        anchor_sizes=tuple(3.0 * base for base in (8, 16, 32, 64, 128)),
        anchor_strides=tuple(SIZE / cells for cells in GRIDS),
        clip_deltas=True,
        clip_boxes=True,
        thresholds=_thresholds(settings),
        extra_levels=_extra_levels(settings, tensors),
    )
    config = _with_anchors(config, settings, name)
    side = _side(settings, name)
    padded = pad_multiple(settings, 1)
    preprocessing = Preprocessing(
        mean, std, short_side=side, long_side=side, pad_multiple=padded, resize=Resize.OPENCV, square=True
    )
    return Description(Yolact, config, preprocessing, categories_in(meta, config.classes), (*stem(is_bgr), *rules))


def _rules(foreign: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    def extra(match: re.Match[str]) -> str:
        return f"neck.extra.{int(match[1]) - 3}.{match[2]}"

    return (
        *BACKBONE,
        Rule(r"neck\.lateral_convs\.(\d)\.conv\.(weight|bias)", r"neck.lateral.\1.conv.\2"),
        Rule(r"neck\.fpn_convs\.([0-2])\.conv\.(weight|bias)", r"neck.output.\1.conv.\2"),
        Rule(r"neck\.fpn_convs\.([34])\.conv\.(weight|bias)", extra),
        Rule(r"bbox_head\.head_convs\.(\d+)\.conv\.(weight|bias)", r"head.convs.\1.conv.\2"),
        Rule(r"bbox_head\.conv_cls\.(weight|bias)", r"head.classes.\1"),
        Rule(r"bbox_head\.conv_reg\.(weight|bias)", r"head.deltas.\1"),
        Rule(r"bbox_head\.conv_coeff\.(weight|bias)", r"head.coefficients.\1"),
        yolact.prototype_rule(foreign, r"mask_head\.protonet"),
        Rule(r"(?:mask_head\.segm_branch|segm_head)\.segm_conv\.(weight|bias)", r"semantic.\1"),
    )


def _extra_levels(settings: Settings, tensors: Mapping[str, Tensor]) -> Extra:
    """What P6 is made from; where C5 is no wider than a pyramid level only the config tells."""
    stated = settings.first(("model", "neck")).get("add_extra_convs")
    if stated in ("on_input", "on_output"):
        return Extra.FROM_BACKBONE if stated == "on_input" else Extra.FROM_PYRAMID
    extra, lateral = tensors.get("neck.extra.0.weight"), tensors.get("neck.lateral.2.conv.weight")
    from_backbone = extra is None or lateral is None or extra.shape[1] == lateral.shape[1]
    return Extra.FROM_BACKBONE if from_backbone else Extra.FROM_PYRAMID


def _ratios_of(settings: Settings, tensors: Mapping[str, Tensor]) -> int:
    stated = settings.first(("model", "bbox_head", "anchor_generator")).numbers("ratios")
    return len(stated) or 3


def _with_anchors(config: YolactConfig, settings: Settings, name: str) -> YolactConfig:
    """The anchors that the config text states, centred on half a stride as they are in YOLACT's configs."""
    stated = settings.first(("model", "bbox_head", "anchor_generator"))
    ratios, bases, strides = stated.numbers("ratios"), stated.numbers("base_sizes", 5), stated.numbers("strides", 5)
    octave = stated.real("octave_base_scale", 3.0)
    centres = [Settings({"xy": pair}).numbers("xy", 2) for pair in stated.get("centers") or ()]
    config = replace(config, anchor_strides=strides or config.anchor_strides)
    assert config.anchor_strides is not None
    if centres and any(
        not centre or max(abs(part - stride / 2) for part in centre) > 1e-3 * stride
        for centre, stride in zip(centres, config.anchor_strides, strict=False)
    ):
        raise CheckpointError(f"{name}: anchors whose centres are not those of their cells ({LIBRARY}) are not supported yet")
    stds = settings.first(("model", "bbox_head", "bbox_coder")).numbers("target_stds", 4)
    if stds:
        x, y, width, height = (float(f"{1 / std:.6g}") for std in stds)
        config = replace(config, box_weights=(x, y, width, height))
    sizes = tuple(octave * base for base in (bases or (8, 16, 32, 64, 128)))
    return replace(config, anchor_sizes=sizes, anchor_ratios=ratios or config.anchor_ratios)


def _side(settings: Settings, name: str) -> int:
    for step in steps_of_tests(settings).steps():
        sides = step.numbers("img_scale", 2) or step.numbers("scale", 2)
        if sides and sides[0] != sides[1]:
            raise CheckpointError(f"{name}: was tested on images of {sides} pixels; a square is all that is supported here")
        if sides:
            return int(sides[0])
    side = settings.get("input_size", settings.get("img_size", SIZE))
    return side if isinstance(side, int) and side > 0 else SIZE


def _thresholds(settings: Settings) -> Thresholds:
    limits = Thresholds()
    stated = settings.first(("model", "test_cfg"), ("test_cfg",))
    return replace(
        limits,
        anchors_per_level=limit(stated, "nms_pre", 1000),
        score=stated.real("score_thr", limits.score),
        nms=stated.real("iou_thr", limits.nms),
        class_candidates=limit(stated, "top_k", limits.class_candidates),
        detections=limit(stated, "max_per_img", limits.detections),
        mask=stated.real("mask_thr", limits.mask),
    )
