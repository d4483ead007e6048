"""SOLO, Decoupled SOLO and SOLOv2 of MMDetection, versions 2 and 3, and of their authors, whose repository is an MMDetection 1.

The two name their heads differently and their backbones and necks alike. MMDetection counts classes without background; so do the
authors' arrays, whose categories are sigmoids.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from thingstuff.checkpoints.mmdetection_config import (
    BACKBONE,
    BACKBONE_SETTINGS,
    LIBRARY,
    OFFSETS,
    categories_in,
    images_of_tests,
    limit,
    pixel_statistics,
    refuse_settings,
    settings_in,
    stem,
    stride_in_1x1,
)
from thingstuff.checkpoints.python_config import Settings
from thingstuff.checkpoints.recognise import Description, refuse_unsupported
from thingstuff.checkpoints.rules import Rule, rename
from thingstuff.checkpoints.solo import UNSUPPORTED, grid_model, usual_image_size
from thingstuff.models.solo import STRIDES, GridConfig, Thresholds

_NECK = (
    Rule(r"neck\.lateral_convs\.(\d)\.conv\.(weight|bias)", r"neck.lateral.\1.conv.\2"),
    Rule(r"neck\.fpn_convs\.(\d)\.conv\.(weight|bias)", r"neck.output.\1.conv.\2"),
)

_BRANCHES = {  # their names in MMDetection and in the authors' repository, and ours
    "cls_convs": "category_branch",
    "cate_convs": "category_branch",
    "mask_convs": "mask_branch",
    "ins_convs": "mask_branch",
    "mask_convs_x": "column_branch",
    "ins_convs_x": "column_branch",
    "mask_convs_y": "row_branch",
    "ins_convs_y": "row_branch",
    "kernel_convs": "kernel_branch",
}


def _branch(match: re.Match[str]) -> str:
    return f"{_BRANCHES[match[1]]}.convs.{match[2]}.{match[3].replace('gn', 'norm').replace('bn', 'norm')}.{match[4]}"


def _branch_offsets(match: re.Match[str]) -> str:
    return f"{_BRANCHES[match[1]]}.convs.{match[2]}.conv.offset.{match[3]}"


def _feature(head: str, output: str) -> tuple[Rule, ...]:
    """SOLOv2's mask feature."""
    level, here = head + r"\.convs_all_levels\.(\d)\.conv(\d)\.", r"mask_feature.levels.\1.\2."
    return (
        Rule(level + r"conv\.weight", here + "conv.weight"),
        Rule(level + "conv" + OFFSETS + r"\.(weight|bias)", here + r"conv.offset.\3"),
        Rule(level + r"gn\.(.+)", here + r"norm.\3"),
        Rule(output + r"\.conv\.weight", "mask_feature.output.conv.weight"),
        Rule(output + r"\.conv" + OFFSETS + r"\.(weight|bias)", r"mask_feature.output.conv.offset.\1"),
        Rule(output + r"\.gn\.(.+)", r"mask_feature.output.norm.\1"),
    )


_CONV = rf"(?:mask|bbox)_head\.({'|'.join(_BRANCHES)})\.(\d+)\."
_HEADS = (
    Rule(_CONV + r"(conv|[bg]n)\.(weight|bias|running_mean|running_var|num_batches_tracked)", _branch),
    Rule(_CONV + "conv" + OFFSETS + r"\.(weight|bias)", _branch_offsets),
)

_MMDETECTION_HEADS = (
    Rule(r"mask_head\.conv_cls\.(weight|bias)", r"categories.\1"),
    Rule(r"mask_head\.conv_mask_list\.(\d)\.(weight|bias)", r"kernels.\1.\2"),
    Rule(r"mask_head\.conv_mask_list_x\.(\d)\.(weight|bias)", r"columns.\1.\2"),
    Rule(r"mask_head\.conv_mask_list_y\.(\d)\.(weight|bias)", r"rows.\1.\2"),
    Rule(r"mask_head\.conv_kernel\.(weight|bias)", r"kernels.\1"),
    *_feature(r"mask_head\.mask_feature_head", r"mask_head\.mask_feature_head\.conv_pred"),
)

_AUTHORS_HEADS = (
    Rule(r"bbox_head\.d?solo_cate\.(weight|bias)", r"categories.\1"),
    Rule(r"bbox_head\.solo_ins_list\.(\d)\.(weight|bias)", r"kernels.\1.\2"),
    Rule(r"bbox_head\.dsolo_ins_list_x\.(\d)\.(weight|bias)", r"columns.\1.\2"),
    Rule(r"bbox_head\.dsolo_ins_list_y\.(\d)\.(weight|bias)", r"rows.\1.\2"),
    Rule(r"bbox_head\.solo_kernel\.(weight|bias)", r"kernels.\1"),
    *_feature("mask_feat_head", r"mask_feat_head\.conv_pred\.0"),
)

RULES = (*BACKBONE, *_NECK, *_HEADS, *_MMDETECTION_HEADS, *_AUTHORS_HEADS)

# Settings of `model` in a config text, under MMDetection's and the authors' names for the head.
_HEAD_SETTINGS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("cls_down_index", (0,)),
    ("cate_down_pos", (0,)),
    ("strides", (list(STRIDES),)),
    ("dynamic_conv_size", (1,)),
    ("norm_cfg.type", ("GN",)),
    ("norm_cfg.num_groups", (32,)),
    ("loss_cls.use_sigmoid", (True,)),
    ("loss_cate.use_sigmoid", (True,)),
    ("mask_feature_head.start_level", (0,)),
    ("mask_feature_head.end_level", (3,)),
    ("mask_feature_head.mask_stride", (4,)),
    ("mask_feature_head.norm_cfg.type", ("GN",)),
    ("mask_feature_head.norm_cfg.num_groups", (32,)),
)
SUPPORTED_SETTINGS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    *BACKBONE_SETTINGS,
    ("neck.type", ("FPN",)),
    ("neck.start_level", (0,)),
    ("neck.num_outs", (5,)),
    ("neck.add_extra_convs", (False,)),
    ("neck.upsample_cfg.mode", ("nearest",)),
    *((f"{head}.{setting}", values) for head in ("mask_head", "bbox_head") for setting, values in _HEAD_SETTINGS),
    ("mask_feat_head.start_level", (0,)),
    ("mask_feat_head.end_level", (3,)),
    ("mask_feat_head.norm_cfg.num_groups", (32,)),
)

_OURS = re.compile(
    r"mask_head\.(cls_convs|conv_cls|kernel_convs|mask_convs(_[xy])?|conv_mask_list(_[xy])?|mask_feature_head)\..+"
    r"|bbox_head\.(cate_convs|d?solo_cate)\..+"
)


def detect(tensors: Mapping[str, Tensor]) -> bool:
    return any(_OURS.fullmatch(key) for key in tensors)


def describe(foreign: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Description:
    """What the file holds.

    Raises:
        CheckpointError: a variant that is not supported, or an array that every SOLO has is missing.
    """
    library = "SOLO's authors" if any(key.startswith("bbox_head.") for key in foreign) else LIBRARY
    refuse_unsupported(list(foreign), UNSUPPORTED, name, library)
    tensors = rename(foreign, (*stem(is_bgr=False), *RULES)).tensors
    model, found = grid_model(tensors, name, library)
    settings = settings_in(meta, name)
    refuse_settings(settings.first(("model",)), SUPPORTED_SETTINGS, name)
    mean, std, is_bgr = pixel_statistics(settings, tensors, found.backbone)
    config = replace(
        _with_settings(found, settings),
        backbone=replace(
            found.backbone,
            stride_in_1x1=stride_in_1x1(settings, tensors, found.backbone),
            frozen_norms=True,  # norm_eval=True: its trainers keep the backbone's statistics
        ),
    )
    return Description(
        model,
        config,
        images_of_tests(settings, name, mean, std, usual_image_size(found)),
        categories_in(meta, config.classes),
        (*stem(is_bgr), *RULES),
    )


def _with_settings(found: GridConfig, settings: Settings) -> GridConfig:
    """The grids that the arrays don't show, the share of the centre, the ranges of scales and the limits of tests."""
    head = settings.first(("model", "mask_head"), ("model", "bbox_head"))
    grids, ranges = head.numbers("num_grids", len(STRIDES)), head.get("scale_ranges")
    if grids:
        found = replace(found, grids=tuple(int(side) for side in grids))
    if isinstance(ranges, list) and len(ranges) == len(STRIDES):
        pairs = [Settings({"pair": pair}).numbers("pair", 2) for pair in ranges]
        if all(pairs):
            found = replace(found, scale_ranges=tuple((low, high) for low, high in pairs))
    stated = settings.first(("model", "test_cfg"), ("test_cfg",))
    limits = found.thresholds
    kernel = stated.get("kernel", limits.kernel)
    return replace(
        found,
        centre=head.real("pos_scale", head.real("sigma", found.centre)),
        thresholds=Thresholds(
            # below 0 nothing is left out, and no score is below 0
            score=max(stated.real("filter_thr", stated.real("update_thr", limits.score)), 0.0),
            detections=limit(stated, "max_per_img", limits.detections),
            cell_score=stated.real("score_thr", limits.cell_score),
            mask=stated.real("mask_thr", limits.mask),
            candidates=limit(stated, "nms_pre", limits.candidates),
            kernel="linear" if kernel == "linear" else "gaussian",
            sigma=stated.real("sigma", limits.sigma),
        ),
    )
