"""YOLACT and YOLACT++ as their authors' repository stores them (dbolya/yolact): published files and what its trainer saves.

Class logits have background first; the network reads RGB. Of what the arrays do not show, the file's name tells some, as in the
repository itself: `im700` means images of 700 pixels where 550 are usual, `pascal` means the anchors of its Pascal VOC config.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from thingstuff.checkpoints.recognise import Description, categories_for, refuse_unsupported, resnet_config, yolact_config
from thingstuff.checkpoints.rules import DROP, Rule, rename
from thingstuff.errors import CheckpointError
from thingstuff.models.backbone import BackboneConfig
from thingstuff.models.yolact import Thresholds, Yolact
from thingstuff.structures.preprocessing import Preprocessing, Resize

LIBRARY = "YOLACT's repository"
SIZE = 550  # pixels a side
MEAN, STD = (123.68, 116.78, 103.94), (58.40, 57.12, 57.38)  # RGB
ANCHOR_SIZES = (24, 48, 96, 192, 384)  # pixels, for images of that size
PASCAL_ANCHOR_SIZES = (32, 64, 128, 256, 512)

UNSUPPORTED = (
    (r"prediction_layers\.[1-9]\d*\..+", "a network with a head of its own on every level"),
    (r"prediction_layers\.0\.(bbox|conf|mask)_extra\..+|prediction_layers\.0\.(block|conv|bn)\..*", "a head with more layers"),
    (r"prediction_layers\.0\.(gate|score|inst)_layer\..+", "a head that gates or scores masks"),
    (r"class_existence_fc\..+", "a network with a class existence loss"),
)


def detect(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(("prediction_layers.", "proto_net.")) for key in tensors)


def describe(foreign: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Description:
    """What the file holds.

    Raises:
        CheckpointError: another network of that repository, or an array that a YOLACT needs is missing.
    """
    refuse_unsupported(list(foreign), UNSUPPORTED, name, LIBRARY)
    laterals = len([key for key in foreign if re.fullmatch(r"fpn\.lat_layers\.\d+\.weight", key)])
    if laterals != 3:
        raise CheckpointError(f"{name}: its pyramid has {laterals} levels from the backbone; YOLACT's has 3 ({LIBRARY})")
    anchors = _anchors_of(foreign, name)
    is_darknet = any(key.startswith("backbone._preconv.") for key in foreign)
    rules = (*(_DARKNET if is_darknet else _resnet_rules(foreign)), *_rules(foreign, laterals, anchors))
    tensors = rename(foreign, rules).tensors
    backbone = BackboneConfig("darknet53", leaky_slope=0.1) if is_darknet else resnet_config(tensors, name)
    match = re.search(r"_im(\d{2,4})(?!\d)", Path(name).name)
    size = int(match[1]) if match else SIZE
    is_pascal = "pascal" in Path(name).name and anchors == 3
    # the repository scales anchors to whole pixels
    sizes = tuple(float(int(side / SIZE * size)) for side in (PASCAL_ANCHOR_SIZES if is_pascal else ANCHOR_SIZES))
    config = yolact_config(
        tensors,
        name,
        anchors,
        backbone=replace(backbone, frozen_norms=True),  # its trainer keeps the backbone's statistics
        anchor_sizes=sizes,
        whole_pixel_boxes=True,
        # YOLACT++ has three scales of anchors
        anchor_scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)) if anchors == 9 else (1.0,),
        square_anchors=anchors == 3 and not is_pascal,
        thresholds=Thresholds(score=0.0, anchor_score=0.05),
    )
    mean, std = ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)) if is_darknet else (MEAN, STD)
    preprocessing = Preprocessing(
        mean, std, short_side=size, long_side=size, pad_multiple=1, resize=Resize.TORCHVISION, square=True
    )
    return Description(Yolact, config, preprocessing, categories_for(config.classes), rules)


def _anchors_of(foreign: Mapping[str, Tensor], name: str) -> int:
    boxes = foreign.get("prediction_layers.0.bbox_layer.weight")
    anchors = 0 if boxes is None else boxes.shape[0] // 4
    if anchors not in (3, 9):
        raise CheckpointError(f"{name}: has {anchors} anchors a cell where YOLACT has 3 and YOLACT++ 9, and does not say which")
    return anchors


def _stage(match: re.Match[str]) -> str:
    return f"backbone.body.stages_{match[1]}.blocks.{int(match[2]) - 1}.conv{match[3]}"


_DARKNET = (  # Darknet-53 (Redmon and Farhadi, 2018, arXiv:1804.02767, table 1); the first part of a stage halves the size
    Rule(r"backbone\._preconv\.0\.weight", "backbone.body.stem_conv1.conv.weight"),
    Rule(r"backbone\._preconv\.1\.(.+)", r"backbone.body.stem_conv1.bn.\1"),
    Rule(r"backbone\.layers\.(\d)\.0\.0\.weight", r"backbone.body.stages_\1.conv_down.conv.weight"),
    Rule(r"backbone\.layers\.(\d)\.0\.1\.(.+)", r"backbone.body.stages_\1.conv_down.bn.\2"),
    Rule(r"backbone\.layers\.(\d)\.(\d+)\.conv([12])\.0\.weight", lambda match: f"{_stage(match)}.conv.weight"),
    Rule(r"backbone\.layers\.(\d)\.(\d+)\.conv([12])\.1\.(.+)", lambda match: f"{_stage(match)}.bn.{match[4]}"),
)


def _resnet_rules(foreign: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    def block(match: re.Match[str]) -> str:
        return f"backbone.body.layer{int(match[1]) + 1}.{match[2]}".replace("conv_offset_mask", "offset")

    rules = [
        Rule(r"backbone\.(conv1|bn1)\.(.+)", r"backbone.body.\1.\2"),
        Rule(r"backbone\.layers\.(\d)\.(\d+\..+)", block),
    ]
    if any(key.startswith("backbone.layers.") for key in foreign):
        # older trainers stored the backbone's stages under both names; the repository deletes these, too
        rules.append(Rule(r"backbone\.layer\d\..+", DROP))
    return tuple(rules)


def prototype_rule(foreign: Mapping[str, Tensor], start: str) -> Rule:
    """That of the prototype net, whose layers have numbers behind a name that matches `start`."""
    indices = sorted(int(match[1]) for key in foreign if (match := re.fullmatch(rf"{start}\.(\d+)\.weight", key)))
    # a convolution and its ReLU take two places each, and so does the upsampling
    before = next((position for position, index in enumerate(indices) if index != 2 * position), len(indices))

    def prototype(match: re.Match[str]) -> str:
        index = int(match[1])
        if indices and index == indices[-1]:
            return f"prototype_net.prototypes.{match[2]}"
        position = index // 2
        if position < before:
            return f"prototype_net.convs.{position}.{match[2]}"
        return f"prototype_net.last_convs.{position - before - 1}.{match[2]}"

    return Rule(rf"{start}\.(\d+)\.(weight|bias)", prototype)


def _rules(foreign: Mapping[str, Tensor], laterals: int, anchors: int) -> tuple[Rule, ...]:
    def level(match: re.Match[str]) -> str:
        part = "lateral" if match[1] == "lat" else "output"
        return f"neck.{part}.{laterals - 1 - int(match[2])}.conv.{match[3]}"  # deepest first there

    def head_conv(match: re.Match[str]) -> str:
        return f"head.convs.{int(match[1]) // 2}.conv.{match[2]}"

    def background_last(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (anchors, -1)).roll(-1, dims=1).flatten(0, 1)  # (anchor class) ...

    return (
        Rule(r"fpn\.(lat|pred)_layers\.(\d)\.(weight|bias)", level),
        Rule(r"fpn\.downsample_layers\.([01])\.(weight|bias)", r"neck.extra.\1.\2"),
        # published files have more of these than the network uses
        Rule(r"fpn\.downsample_layers\.([2-9])\.(weight|bias)", DROP),
        prototype_rule(foreign, r"proto_net"),
        Rule(r"prediction_layers\.0\.upfeature\.(\d+)\.(weight|bias)", head_conv),
        Rule(r"prediction_layers\.0\.bbox_layer\.(weight|bias)", r"head.deltas.\1"),
        Rule(r"prediction_layers\.0\.conf_layer\.(weight|bias)", r"head.classes.\1", background_last),
        Rule(r"prediction_layers\.0\.mask_layer\.(weight|bias)", r"head.coefficients.\1"),
        Rule(r"semantic_seg_conv\.(weight|bias)", r"semantic.\1"),
        Rule(r"maskiou_net\.maskiou_net\.(\d+)\.(weight|bias)", _mask_rating(foreign)),
    )


def _mask_rating(foreign: Mapping[str, Tensor]) -> Any:
    last = max(
        (int(match[1]) for key in foreign if (match := re.fullmatch(r"maskiou_net\.maskiou_net\.(\d+)\.weight", key))), default=0
    )

    def rename_part(match: re.Match[str]) -> str:
        index = int(match[1])
        return f"mask_rating.classes.{match[2]}" if index == last else f"mask_rating.convs.{index // 2}.{match[2]}"

    return rename_part
