"""MMDetection's Mask R-CNN and Panoptic FPN, versions 2 and 3: published files and what its trainers save."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from thingstuff.checkpoints import swin
from thingstuff.checkpoints.mmdetection_config import (
    BACKBONE,
    BACKBONE_SETTINGS,
    LIBRARY,
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
from thingstuff.checkpoints.recognise import (
    Description,
    demand_anchor_count,
    mask_rcnn_config,
    refuse_unsupported,
    with_semantic_branch,
)
from thingstuff.checkpoints.rules import Rule, rename
from thingstuff.errors import CheckpointError
from thingstuff.models.mask_rcnn import STRIDES, MaskRCNN, MaskRCNNConfig, Thresholds
from thingstuff.models.panoptic_fpn import PanopticFPN, PanopticFPNConfig

UNSUPPORTED = (
    (r"roi_head\.(semantic|fused_semantic|glbctx|feat_relay)_head\..+", "HTC or SCNet"),
    (r"bbox_head\.(fc_cls|fc_reg|shared_fcs|shared_convs)\..+", "a network of MMDetection 1, which has background first,"),
    (r"roi_head\.(bbox|mask)_head\.\d+\..+", "Cascade R-CNN or HTC"),
    (r"roi_head\.shared_head\..+", "Mask R-CNN C4"),
    (r"roi_head\.(mask_iou_head|point_head)\..+", "Mask Scoring R-CNN or PointRend"),
    (r"roi_head\.bbox_head\.(cls|reg)_(convs|fcs)\..+", "a box head with separate branches"),
    (r"backbone\.stem\..+", "a ResNet with a deep stem"),
    (r"backbone\.absolute_pos_embed", "a Swin with absolute positions"),
    (r"backbone\.(downsample_layers|layers)\..+", "a backbone other than ResNet and Swin"),
    (r"backbone\.layer\d\.\d+\.(context_block|gen_attention_block|conv_att).*", "a backbone with attention blocks"),
)

# Settings of `model` in a config text, and what they may say here: anything else changes the result and is not supported yet.
SUPPORTED_SETTINGS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    *BACKBONE_SETTINGS,
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
    ("roi_head.type", ("StandardRoIHead", "DynamicRoIHead", "PISARoIHead")),  # they differ in training alone
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
    ("roi_head.bbox_head.with_avg_pool", (False,)),
    ("roi_head.bbox_head.norm_cfg.num_groups", (32,)),
    ("roi_head.bbox_head.loss_cls.use_sigmoid", (False,)),
    ("roi_head.bbox_head.loss_cls.type", ("CrossEntropyLoss",)),
    ("roi_head.bbox_head.cls_predictor_cfg.type", ("Linear",)),
    ("roi_head.mask_head.type", ("FCNMaskHead",)),
    ("roi_head.mask_head.norm_cfg.num_groups", (32,)),
    ("roi_head.mask_head.upsample_cfg.type", ("deconv",)),
    ("roi_head.mask_head.upsample_cfg.scale_factor", (2,)),
    ("test_cfg.rpn.nms_across_levels", (False,)),
    ("test_cfg.rpn.nms.type", ("nms",)),
    ("semantic_head.type", ("PanopticFPNHead",)),
    ("semantic_head.start_level", (0,)),
    ("semantic_head.end_level", (4,)),
    ("semantic_head.norm_cfg.num_groups", (32,)),
    ("panoptic_fusion_head.type", ("HeuristicFusionHead",)),
)

MASK_RCNN = (  # less its backbone
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
_UPSAMPLED = r"semantic_head\.conv_upsample_layers\.(\d)\.conv\.(\d)\."
PANOPTIC_FPN = (
    *MASK_RCNN,
    Rule(_UPSAMPLED + r"conv\.(weight|bias)", r"semantic_branch.levels.\1.\2.conv.\3"),
    Rule(_UPSAMPLED + r"[bg]n\.(.+)", r"semantic_branch.levels.\1.\2.norm.\3"),
    Rule(r"semantic_head\.conv_logits\.(weight|bias)", r"semantic_branch.logits.\1"),
)


def detect(tensors: Mapping[str, Tensor]) -> bool:
    starts = ("roi_head.", "rpn_head.", "neck.lateral_convs.", "bbox_head.", "semantic_head.")
    return any(key.startswith(starts) for key in tensors)


def describe(foreign: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Description:
    """What the file holds.

    Raises:
        CheckpointError: another network of MMDetection's, or an array that a Mask R-CNN needs is missing.
    """
    refuse_unsupported(list(foreign), UNSUPPORTED, name, LIBRARY)
    is_swin = any(".w_msa." in key for key in foreign)
    of_backbone = swin.MMDETECTION if is_swin else BACKBONE
    tensors = rename(foreign, (*stem(is_bgr=False), *of_backbone, *PANOPTIC_FPN)).tensors
    found = mask_rcnn_config(tensors, name, swin.swin_config(tensors, name) if is_swin else None)
    settings = settings_in(meta, name)
    mean, std, is_bgr = pixel_statistics(settings, tensors, found.backbone)
    config = replace(
        _with_settings(found, settings, _limits_unless_stated(tensors), name),
        backbone=replace(
            found.backbone,
            stride_in_1x1=stride_in_1x1(settings, tensors, found.backbone),
            frozen_norms=not is_swin,  # norm_eval=True: its trainers keep a ResNet's statistics
        ),
    )
    panoptic = _test_settings(settings).first(("panoptic",))
    config = with_semantic_branch(
        config,
        tensors,
        merge_score=0.0,  # all that the box head keeps is merged
        overlap=panoptic.real("mask_overlap", 0.5),
        stuff_area=int(panoptic.real("stuff_area_limit", 4096.0)),
    )
    demand_anchor_count(config, tensors, name)
    preprocessing = images_of_tests(settings, name, mean, std)
    if isinstance(config, PanopticFPNConfig):
        categories = categories_in(meta, config.things, config.stuff)
        return Description(PanopticFPN, config, preprocessing, categories, (*stem(is_bgr), *of_backbone, *PANOPTIC_FPN))
    rules = (*stem(is_bgr), *of_backbone, *MASK_RCNN)
    return Description(MaskRCNN, config, preprocessing, categories_in(meta, config.classes), rules)


def _limits_unless_stated(tensors: Mapping[str, Tensor]) -> Thresholds:
    # boxes that lie outside the image count among the best; MMDetection even returns them, without area
    limits = Thresholds(box_min_size=-1.0)
    if "semantic_branch.logits.weight" in tensors:
        return replace(limits, score=0.6, cross_class=True)  # of its Panoptic FPN's configs
    return limits


def _test_settings(settings: Settings) -> Settings:
    return settings.first(("model", "test_cfg"), ("test_cfg",))


def _with_settings(found: MaskRCNNConfig, settings: Settings, limits: Thresholds, name: str) -> MaskRCNNConfig:
    model = settings.first(("model",))
    anchors = model.first(("rpn_head", "anchor_generator"))
    ratios, strides = anchors.numbers("ratios"), anchors.numbers("strides", 5)
    # the one of an octave by another name
    scales = anchors.numbers("scales", 1) or tuple(scale for scale in (anchors.real("octave_base_scale", 0.0),) if scale)
    coder = model.first(("roi_head", "bbox_head", "bbox_coder"))
    stds = coder.numbers("target_stds", 4)
    refuse_settings(model, SUPPORTED_SETTINGS, name)
    several = anchors.get("scales")
    if isinstance(several, list) and len(several) != 1:
        raise CheckpointError(f"{name}: model.rpn_head.anchor_generator.scales is {several} ({LIBRARY}); one is supported so far")
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
        thresholds=_thresholds(_test_settings(settings), limits, name),
    )
    if scales:
        config = replace(config, anchor_sizes=tuple(float(scales[0] * stride) for stride in (strides or STRIDES)))
    if ratios:
        config = replace(config, anchor_ratios=ratios)
    if stds:
        x, y, width, height = (float(f"{1 / std:.6g}") for std in stds)
        config = replace(config, box_weights=(x, y, width, height))
    return config


def _thresholds(stated: Settings, limits: Thresholds, name: str) -> Thresholds:
    rpn = stated.first(("rpn",))
    # version 2 stated what a Panoptic FPN keeps of its boxes in a section of its own
    rcnn = Settings({**stated.first(("rcnn",)).fields, **stated.first(("panoptic",)).fields})
    nms = rcnn.first(("nms",))
    if nms.get("type", "nms") != "nms":
        warnings.warn(f"{name}: was tested with {nms.get('type')}; plain NMS is used here", stacklevel=2)
    return replace(
        limits,
        proposals_per_level=limit(rpn, "nms_pre", limits.proposals_per_level),
        proposals=rpn.whole("max_per_img", rpn.whole("max_num", rpn.whole("nms_post", limits.proposals))),
        proposal_min_size=rpn.real("min_bbox_size", limits.proposal_min_size),
        proposal_nms=rpn.first(("nms",)).real("iou_threshold", rpn.real("nms_thr", limits.proposal_nms)),
        score=rcnn.real("score_thr", limits.score),
        nms=nms.real("iou_threshold", nms.real("iou_thr", limits.nms)),
        detections=limit(rcnn, "max_per_img", limits.detections),
        mask=rcnn.real("mask_thr_binary", limits.mask),
        cross_class=nms.get("class_agnostic", False) is True if nms.fields else limits.cross_class,
    )
