"""MMDetection's Mask R-CNN, versions 2 and 3: published files and what its trainers save.

The keys do not tell pytorch-style networks (RGB, stride in the 3x3) from caffe-style ones (BGR, stride in the first 1x1): the
config text in the file's `meta` does, and where somebody took that away, the norms of the original caffe weights still show it.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from thingstuff.checkpoints.python_config import Settings, parse_settings
from thingstuff.checkpoints.recognise import (
    Description,
    backwards,
    categories_for,
    demand_anchor_count,
    is_group_normed,
    mask_rcnn_config,
    refuse_unsupported,
)
from thingstuff.checkpoints.rules import Rule, bgr_to_rgb, rename
from thingstuff.errors import CheckpointError
from thingstuff.models.mask_rcnn import STRIDES, MaskRCNNConfig, Thresholds
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Resize

LIBRARY = "MMDetection"

UNSUPPORTED = (
    (r"panoptic_(head|fusion_head)\..+", "Mask2Former or MaskFormer"),
    (r"semantic_head\..+", "Panoptic FPN"),
    (r"mask_head\.(mask_convs|cls_convs|kernel_convs|mask_feature_head|conv_mask_list)\..+", "SOLO or SOLOv2"),
    (r"bbox_head\.(conv_coeff|head_convs)\..+", "YOLACT"),
    (r"bbox_head\.(fc_cls|fc_reg|shared_fcs|shared_convs)\..+", "a network of MMDetection 1, which has background first,"),
    (r"roi_head\.(bbox|mask)_head\.\d+\..+", "Cascade R-CNN or HTC"),
    (r".+\.conv_offset(_mask)?\..+|.+\.conv2_offset\..+", "a backbone with deformable convolutions"),
    (r"roi_head\.shared_head\..+", "Mask R-CNN C4"),
    (r"roi_head\.(mask_iou_head|point_head)\..+", "Mask Scoring R-CNN or PointRend"),
    (r"roi_head\.bbox_head\.(cls|reg)_(convs|fcs)\..+", "a box head with separate branches"),
    (r"backbone\.stem\..+", "a ResNet with a deep stem"),
    (r"backbone\.(patch_embed|stages|downsample_layers|norm\d)\..+", "a backbone other than ResNet"),
    (r"backbone\.layer\d\.\d+\.(context_block|gen_attention_block|conv_att).*", "a backbone with attention blocks"),
)

# Settings of `model` in a config text, and what they may say here: anything else changes the result and is not supported yet.
SUPPORTED_SETTINGS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("backbone.avg_down", (False,)),
    ("backbone.strides", ([1, 2, 2, 2],)),
    ("backbone.dilations", ([1, 1, 1, 1],)),
    ("backbone.norm_cfg.eps", (1e-5,)),
    ("neck.type", ("FPN",)),
    ("neck.start_level", (0,)),
    ("neck.num_outs", (5,)),
    ("neck.add_extra_convs", (False,)),
    ("neck.upsample_cfg.mode", ("nearest",)),
    ("rpn_head.type", ("RPNHead",)),
    ("rpn_head.loss_cls.use_sigmoid", (True,)),
    ("rpn_head.anchor_generator.type", ("AnchorGenerator",)),
    ("rpn_head.anchor_generator.strides", (list(STRIDES),)),
    ("rpn_head.anchor_generator.center_offset", (0,)),
    ("rpn_head.anchor_generator.scales_per_octave", (1,)),
    ("rpn_head.anchor_generator.base_sizes", (list(STRIDES),)),
    ("rpn_head.anchor_generator.centers", ()),
    ("rpn_head.bbox_coder.type", ("DeltaXYWHBBoxCoder",)),
    ("rpn_head.bbox_coder.target_means", ([0, 0, 0, 0],)),
    ("rpn_head.bbox_coder.target_stds", ([1, 1, 1, 1],)),
    ("rpn_head.bbox_coder.add_ctr_clamp", (False,)),
    ("rpn_head.bbox_coder.clip_border", (True,)),
    ("roi_head.bbox_roi_extractor.type", ("SingleRoIExtractor",)),
    ("roi_head.bbox_roi_extractor.finest_scale", (56,)),
    ("roi_head.bbox_roi_extractor.featmap_strides", (list(STRIDES[:4]),)),
    ("roi_head.bbox_roi_extractor.roi_layer.type", ("RoIAlign",)),
    ("roi_head.bbox_roi_extractor.roi_layer.pool_mode", ("avg",)),
    ("roi_head.mask_roi_extractor.type", ("SingleRoIExtractor",)),
    ("roi_head.mask_roi_extractor.finest_scale", (56,)),
    ("roi_head.mask_roi_extractor.featmap_strides", (list(STRIDES[:4]),)),
    ("roi_head.mask_roi_extractor.roi_layer.type", ("RoIAlign",)),
    ("roi_head.mask_roi_extractor.roi_layer.pool_mode", ("avg",)),
    ("roi_head.mask_roi_extractor.roi_layer.output_size", (14, [14, 14])),
    ("roi_head.bbox_head.bbox_coder.type", ("DeltaXYWHBBoxCoder",)),
    ("roi_head.bbox_head.bbox_coder.target_means", ([0, 0, 0, 0],)),
    ("roi_head.bbox_head.bbox_coder.add_ctr_clamp", (False,)),
    ("roi_head.bbox_head.bbox_coder.clip_border", (True,)),
    ("roi_head.bbox_head.loss_cls.use_sigmoid", (False,)),
    ("roi_head.bbox_head.loss_cls.type", ("CrossEntropyLoss",)),
    ("roi_head.bbox_head.cls_predictor_cfg.type", ("Linear",)),
    ("roi_head.mask_head.type", ("FCNMaskHead",)),
    ("test_cfg.rpn.nms_across_levels", (False,)),
    ("test_cfg.rpn.nms.type", ("nms",)),
    ("test_cfg.rcnn.nms.class_agnostic", (False,)),
)

_STEM = r"backbone\.conv1\.weight"
_STEM_HERE = "backbone.body.conv1.weight"

MASK_RCNN = (
    # norms are called bn or gn, after their kind
    Rule(r"backbone\.[bg]n1\.(.+)", r"backbone.body.bn1.\1"),
    Rule(r"backbone\.layer([1-4])\.(\d+)\.conv([1-3])\.weight", r"backbone.body.layer\1.\2.conv\3.weight"),
    Rule(r"backbone\.layer([1-4])\.(\d+)\.[bg]n([1-3])\.(.+)", r"backbone.body.layer\1.\2.bn\3.\4"),
    Rule(r"backbone\.layer([1-4])\.(\d+)\.downsample\.([01])\.(.+)", r"backbone.body.layer\1.\2.downsample.\3.\4"),
    Rule(r"neck\.lateral_convs\.(\d)\.conv\.(weight|bias)", r"neck.lateral.\1.conv.\2"),
    Rule(r"neck\.lateral_convs\.(\d)\.[bg]n\.(.+)", r"neck.lateral.\1.norm.\2"),
    Rule(r"neck\.fpn_convs\.(\d)\.conv\.(weight|bias)", r"neck.output.\1.conv.\2"),
    Rule(r"neck\.fpn_convs\.(\d)\.[bg]n\.(.+)", r"neck.output.\1.norm.\2"),
    Rule(r"rpn_head\.rpn_conv\.(weight|bias)", r"rpn.convs.0.conv.\1"),
    Rule(r"rpn_head\.rpn_conv\.(\d+)\.conv\.(weight|bias)", r"rpn.convs.\1.conv.\2"),
    Rule(r"rpn_head\.rpn_cls\.(weight|bias)", r"rpn.objectness.\1"),
    Rule(r"rpn_head\.rpn_reg\.(weight|bias)", r"rpn.deltas.\1"),
    Rule(r"roi_head\.bbox_head\.shared_convs\.(\d+)\.conv\.(weight|bias)", r"box_head.convs.\1.conv.\2"),
    Rule(r"roi_head\.bbox_head\.shared_convs\.(\d+)\.[bg]n\.(.+)", r"box_head.convs.\1.norm.\2"),
    Rule(r"roi_head\.bbox_head\.shared_fcs\.(\d+)\.(weight|bias)", r"box_head.fcs.\1.\2"),
    Rule(r"roi_head\.bbox_head\.fc_cls\.(weight|bias)", r"box_head.classes.\1"),
    Rule(r"roi_head\.bbox_head\.fc_reg\.(weight|bias)", r"box_head.deltas.\1"),
    Rule(r"roi_head\.mask_head\.convs\.(\d+)\.conv\.(weight|bias)", r"mask_head.convs.\1.conv.\2"),
    Rule(r"roi_head\.mask_head\.convs\.(\d+)\.[bg]n\.(.+)", r"mask_head.convs.\1.norm.\2"),
    Rule(r"roi_head\.mask_head\.upsample\.(weight|bias)", r"mask_head.upsample.\1"),
    Rule(r"roi_head\.mask_head\.conv_logits\.(weight|bias)", r"mask_head.logits.\1"),
)


def detect(tensors: Mapping[str, Tensor]) -> bool:
    starts = ("roi_head.", "rpn_head.", "neck.lateral_convs.", "bbox_head.", "panoptic_head.", "semantic_head.")
    return any(key.startswith(starts) for key in tensors)


def describe(foreign: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Description:
    """What the file holds.

    Raises:
        CheckpointError: another network of MMDetection's, or an array that a Mask R-CNN needs is missing.
    """
    refuse_unsupported(list(foreign), UNSUPPORTED, name, LIBRARY)
    tensors = rename(foreign, (Rule(_STEM, _STEM_HERE), *MASK_RCNN)).tensors
    found = mask_rcnn_config(tensors, name)
    details = meta.get("meta")
    details = details if isinstance(details, Mapping) else {}
    settings = _settings(details, name)
    preprocessing, is_bgr = _preprocessing(settings, tensors, found)
    config = replace(
        _with_settings(found, settings, name),
        backbone=replace(
            found.backbone,
            stride_in_1x1=_stride_in_1x1(settings, tensors, found),
            frozen_norms=True,  # norm_eval=True: its trainers keep the backbone's statistics
        ),
    )
    demand_anchor_count(config, tensors, name)
    stem = Rule(_STEM, _STEM_HERE, bgr_to_rgb if is_bgr else None)
    return Description(config, preprocessing, _categories(details, config.classes), (stem, *MASK_RCNN))


def _settings(details: Mapping[str, Any], name: str) -> Settings:
    """The config text in the file, read as data and never run; empty where there is none."""
    text = details.get("cfg", details.get("config"))
    if not isinstance(text, str):
        return Settings({})
    settings = parse_settings(text)
    if settings is None:
        warnings.warn(
            f"{name}: the config text in it can't be read; taken for a pytorch-style R-CNN with standard settings", stacklevel=2
        )
        return Settings({})
    return settings


def _preprocessing(settings: Settings, tensors: Mapping[str, Tensor], found: MaskRCNNConfig) -> tuple[Preprocessing, bool]:
    """Mean and std in RGB, and whether the network itself reads BGR."""
    if _has_caffe_norms(tensors) or is_group_normed(found.backbone):
        mean, std, is_bgr = backwards(IMAGENET_MEAN), (1.0, 1.0, 1.0), True
    else:
        mean, std, is_bgr = IMAGENET_MEAN, IMAGENET_STD, False
    stated = settings.first(("model", "data_preprocessor"), ("data_preprocessor",), ("img_norm_cfg",))
    if stated.numbers("mean", 3) and stated.numbers("std", 3):
        (a, b, c), (d, e, f) = stated.numbers("mean", 3), stated.numbers("std", 3)
        mean, std = (a, b, c), (d, e, f)
        is_bgr = stated.get("bgr_to_rgb", stated.get("to_rgb", True)) is False
    if is_bgr:
        mean, std = backwards(mean), backwards(std)
    short, long = _scale(settings)
    return Preprocessing(mean, std, short_side=short, long_side=long, resize=Resize.OPENCV), is_bgr


def _scale(settings: Settings) -> tuple[int, int]:
    """Short and long side of the test images; (800, 1333) where the config does not say otherwise."""
    pipeline = settings.first(("test_pipeline",), ("data", "test", "pipeline"), ("test_dataloader", "dataset", "pipeline"))
    for step in pipeline.steps():
        for key in ("img_scale", "scale"):
            sides = step.numbers(key, 2)
            if sides:
                return int(min(sides)), int(max(sides))
    return 800, 1333


def _stride_in_1x1(settings: Settings, tensors: Mapping[str, Tensor], found: MaskRCNNConfig) -> bool:
    if found.backbone.name in ("resnet18", "resnet34"):
        return False  # basic blocks have no 1x1 to move the stride to
    style = settings.first(("model", "backbone")).get("style")
    return style == "caffe" if isinstance(style, str) else _has_caffe_norms(tensors)


def _has_caffe_norms(tensors: Mapping[str, Tensor]) -> bool:
    """The original caffe weights have their statistics folded into scale and shift: means are 0 and variances 1 everywhere, with
    scales that were trained. Networks of any other origin have statistics; fresh ones have scales of 1."""
    norms = [
        key.removesuffix(".running_mean") for key in tensors if key.startswith("backbone.") and key.endswith(".running_mean")
    ]
    if not norms or any(key + ".running_var" not in tensors or key + ".weight" not in tensors for key in norms):
        return False
    folded = all(
        bool((tensors[key + ".running_mean"].abs() < 1e-4).all() and ((tensors[key + ".running_var"] - 1).abs() < 1e-4).all())
        for key in norms
    )
    return folded and any(bool((tensors[key + ".weight"] != 1).any()) for key in norms)


def _with_settings(found: MaskRCNNConfig, settings: Settings, name: str) -> MaskRCNNConfig:
    model = settings.first(("model",))
    if "ConvWS" in str(model.value):
        raise CheckpointError(f"{name}: a network with weight standardisation ({LIBRARY}) is not supported yet")
    anchors = model.first(("rpn_head", "anchor_generator"))
    scales, ratios, strides = anchors.numbers("scales", 1), anchors.numbers("ratios"), anchors.numbers("strides", 5)
    coder = model.first(("roi_head", "bbox_head", "bbox_coder"))
    stds = coder.numbers("target_stds", 4)
    _refuse_settings(model, name)
    roi_layer = model.first(("roi_head", "bbox_roi_extractor", "roi_layer"))
    mask_roi_layer = model.first(("roi_head", "mask_roi_extractor", "roi_layer"), ("roi_head", "bbox_roi_extractor", "roi_layer"))
    for setting, default in (("sampling_ratio", 0), ("aligned", True)):
        of_boxes, of_masks = roi_layer.get(setting, default), mask_roi_layer.get(setting, default)
        if of_boxes != of_masks:
            raise CheckpointError(
                f"{name}: {setting} of RoI Align is {of_boxes} for boxes and {of_masks} for masks ({LIBRARY}); "
                "two different ones are not supported yet"
            )
    sampling = roi_layer.get("sampling_ratio", 0)
    config = replace(
        found,
        clip_small_deltas=True,
        drop_empty_boxes=False,
        level_canonical=(56.0, 2),
        level_epsilons=(1e-6, 0.0),
        roi_sampling=sampling if isinstance(sampling, int) else 0,
        roi_aligned=roi_layer.get("aligned", True) is not False,
        thresholds=_thresholds(settings, name),
    )
    if scales:
        config = replace(config, anchor_sizes=tuple(float(scales[0] * stride) for stride in (strides or STRIDES)))
    if ratios:
        config = replace(config, anchor_ratios=ratios)
    if stds:
        x, y, width, height = (float(f"{1 / std:.6g}") for std in stds)
        config = replace(config, box_weights=(x, y, width, height))
    return config


def _refuse_settings(model: Settings, name: str) -> None:
    """Raise a CheckpointError for a stated setting that changes what the network gives and has no counterpart here."""
    for path, supported in SUPPORTED_SETTINGS:
        *place, setting = path.split(".")
        value = model.first(tuple(place)).get(setting)
        known = value.rpartition(".")[2] if isinstance(value, str) else value  # version 3 writes mmdet.AnchorGenerator
        if value is not None and known not in supported:
            raise CheckpointError(f"{name}: model.{path} is {value!r} ({LIBRARY}), which is not supported yet")
    scales = model.first(("rpn_head", "anchor_generator")).get("scales")
    if isinstance(scales, list) and len(scales) != 1:
        raise CheckpointError(f"{name}: model.rpn_head.anchor_generator.scales is {scales} ({LIBRARY}); one is supported so far")


def _thresholds(settings: Settings, name: str) -> Thresholds:
    # boxes that lie outside the image count among the best; MMDetection even returns them, without area
    limits = Thresholds(box_min_size=-1.0)
    stated = settings.first(("model", "test_cfg"), ("test_cfg",))
    rpn, rcnn = stated.first(("rpn",)), stated.first(("rcnn",))
    if rcnn.first(("nms",)).get("type", "nms") != "nms":
        warnings.warn(f"{name}: was tested with {rcnn.first(('nms',)).get('type')}; plain NMS is used here", stacklevel=2)
    return replace(
        limits,
        proposals_per_level=rpn.whole("nms_pre", limits.proposals_per_level),
        proposals=rpn.whole("max_per_img", rpn.whole("max_num", rpn.whole("nms_post", limits.proposals))),
        proposal_min_size=rpn.real("min_bbox_size", limits.proposal_min_size),
        proposal_nms=rpn.first(("nms",)).real("iou_threshold", rpn.real("nms_thr", limits.proposal_nms)),
        score=rcnn.real("score_thr", limits.score),
        nms=rcnn.first(("nms",)).real("iou_threshold", rcnn.first(("nms",)).real("iou_thr", limits.nms)),
        detections=rcnn.whole("max_per_img", limits.detections),
        mask=rcnn.real("mask_thr_binary", limits.mask),
    )


def _categories(details: Mapping[str, Any], classes: int) -> Categories:
    """The names in the file where there are as many as classes; 80 of COCO's names are COCO's categories with their own ids."""
    dataset = details.get("dataset_meta")
    names = details.get("CLASSES") or (dataset.get("classes", dataset.get("CLASSES")) if isinstance(dataset, Mapping) else None)
    default = categories_for(classes)
    if not isinstance(names, list | tuple) or len(names) != classes or not all(isinstance(word, str) for word in names):
        return default
    if tuple(names) == default.names:
        return default
    return Categories(tuple(Category(index + 1, str(word)) for index, word in enumerate(names)))
