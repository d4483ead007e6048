"""detectron2's Mask R-CNN on FPN and Panoptic FPN: the zoo's `.pkl` files and what its trainer saves as `.pth`.

The zoo's networks read BGR (config/defaults.py and configs/Base-RCNN-FPN.yaml there); ours read RGB, so the first kernel is
flipped. Files of 2019 and 2020 hold `pixel_mean`, `pixel_std` and the anchors, which then decide; later ones hold none of them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from thingstuff.checkpoints.recognise import (
    Description,
    backwards,
    categories_for,
    demand_anchor_count,
    is_group_normed,
    is_grouped,
    mask_rcnn_config,
    refuse_unsupported,
    with_semantic_branch,
)
from thingstuff.checkpoints.rules import DROP, Rule, background_to_the_end, bgr_to_rgb, recounted, rename
from thingstuff.errors import CheckpointError
from thingstuff.models.mask_rcnn import MaskRCNN, MaskRCNNConfig, Thresholds
from thingstuff.models.panoptic_fpn import PanopticFPN, PanopticFPNConfig
from thingstuff.structures.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Resize

LIBRARY = "detectron2"

UNSUPPORTED = (
    (r"sem_seg_head\.(decoder|head|layers)\..+|ins_embed_head\..+", "DeepLab or Panoptic-DeepLab"),
    (r"sem_seg_head\.(coarse_sem_seg_head|point_head)\..+", "PointRend"),
    (r"roi_heads\.box_(head|predictor)\.\d+\..+", "Cascade R-CNN"),
    (r"roi_heads\.res5\..+", "Mask R-CNN C4"),
    (r"backbone\.(stem|res[2-5])\..+", "Mask R-CNN without FPN (DC5)"),
    (r"backbone\.bottom_up\.(s\d|stem\.conv)\..+", "a RegNet backbone"),
    (r"backbone\.bottom_up\.stem\.conv1_\d\..+", "a ResNet with a deep stem"),
    (r"backbone\.(net|simfp_\d)\..+", "ViTDet"),
    (r"backbone\.top_block\..+", "a pyramid with P6 and P7 of its own (RetinaNet)"),
    (r"roi_heads\.keypoint_head\..+", "Keypoint R-CNN"),
    (r"roi_heads\.(mask_point_head|mask_coarse_head|mask_head\.(point_head|coarse_head))\..+", "PointRend"),
)

_BODY = r"backbone\.bottom_up\."
_HEADS = r"roi_heads\."


def stem(is_bgr: bool, prefix: str = _BODY) -> Rule:
    """The rule of the first convolution of a ResNet below a prefix (a pattern)."""
    return Rule(prefix + r"stem\.conv1\.weight", "backbone.body.conv1.weight", bgr_to_rgb if is_bgr else None)


def resnet(prefix: str = _BODY) -> tuple[Rule, ...]:
    """Those of the rest of it."""
    block = prefix + r"res([2-5])\.(\d+)\."
    return (
        Rule(prefix + r"stem\.conv1\.norm\.(.+)", r"backbone.body.bn1.\1"),
        Rule(block + r"conv([1-3])\.weight", recounted("backbone.body.layer{}.{}.conv{}.weight", -1)),
        Rule(block + r"conv([1-3])\.norm\.(.+)", recounted("backbone.body.layer{}.{}.bn{}.{}", -1)),
        Rule(block + r"conv2_offset\.(weight|bias)", recounted("backbone.body.layer{}.{}.conv2.offset.{}", -1)),
        Rule(block + r"shortcut\.weight", recounted("backbone.body.layer{}.{}.downsample.0.weight", -1)),
        Rule(block + r"shortcut\.norm\.(.+)", recounted("backbone.body.layer{}.{}.downsample.1.{}", -1)),
    )


MASK_RCNN = (
    *resnet(),
    Rule(r"backbone\.fpn_lateral([2-5])\.(weight|bias)", recounted("neck.lateral.{}.conv.{}", -2)),
    Rule(r"backbone\.fpn_lateral([2-5])\.norm\.(.+)", recounted("neck.lateral.{}.norm.{}", -2)),
    Rule(r"backbone\.fpn_output([2-5])\.(weight|bias)", recounted("neck.output.{}.conv.{}", -2)),
    Rule(r"backbone\.fpn_output([2-5])\.norm\.(.+)", recounted("neck.output.{}.norm.{}", -2)),
    Rule(r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.convs.0.conv.\1"),
    Rule(r"proposal_generator\.rpn_head\.conv\.conv(\d+)\.(weight|bias)", r"rpn.convs.\1.conv.\2"),
    Rule(r"proposal_generator\.rpn_head\.objectness_logits\.(weight|bias)", r"rpn.objectness.\1"),
    Rule(r"proposal_generator\.rpn_head\.anchor_deltas\.(weight|bias)", r"rpn.deltas.\1"),
    Rule(r"proposal_generator\.anchor_generator\.cell_anchors\.\d+", DROP),  # computed here, from the sizes they show
    Rule(_HEADS + r"box_head\.conv(\d+)\.(weight|bias)", recounted("box_head.convs.{}.conv.{}", -1)),
    Rule(_HEADS + r"box_head\.conv(\d+)\.norm\.(.+)", recounted("box_head.convs.{}.norm.{}", -1)),
    Rule(_HEADS + r"box_head\.fc(\d+)\.(weight|bias)", recounted("box_head.fcs.{}.{}", -1)),
    Rule(_HEADS + r"box_predictor\.cls_score\.(weight|bias)", r"box_head.classes.\1"),
    Rule(_HEADS + r"box_predictor\.bbox_pred\.(weight|bias)", r"box_head.deltas.\1"),
    Rule(_HEADS + r"mask_head\.mask_fcn(\d+)\.(weight|bias)", recounted("mask_head.convs.{}.conv.{}", -1)),
    Rule(_HEADS + r"mask_head\.mask_fcn(\d+)\.norm\.(.+)", recounted("mask_head.convs.{}.norm.{}", -1)),
    Rule(_HEADS + r"mask_head\.deconv\.(weight|bias)", r"mask_head.upsample.\1"),
    Rule(_HEADS + r"mask_head\.predictor\.(weight|bias)", r"mask_head.logits.\1"),
    Rule(r"pixel_(mean|std)", DROP),  # Preprocessing holds them here
)


def _of_semantic_branch(part: str) -> Callable[[re.Match[str]], str]:
    """p2 is levels.0; an upsampling follows each convolution there, so that these have every second number."""

    def replacement(match: re.Match[str]) -> str:
        return f"semantic_branch.levels.{int(match[1]) - 2}.{int(match[2]) // 2}.{part}.{match[3]}"

    return replacement


PANOPTIC_FPN = (
    *MASK_RCNN,
    Rule(r"sem_seg_head\.p([2-5])\.(\d+)\.(weight|bias)", _of_semantic_branch("conv")),
    Rule(r"sem_seg_head\.p([2-5])\.(\d+)\.norm\.(.+)", _of_semantic_branch("norm")),
    # things are the first class there and the last here
    Rule(r"sem_seg_head\.predictor\.(weight|bias)", r"semantic_branch.logits.\1", background_to_the_end),
)


def detect(tensors: Mapping[str, Tensor]) -> bool:
    starts = ("backbone.bottom_up.", "backbone.fpn_lateral", "backbone.res", "backbone.stem.", "proposal_generator.")
    return any(key.startswith(starts) for key in tensors)


def describe(foreign: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Description:
    """What the file holds.

    Raises:
        CheckpointError: another network of detectron2's, or an array that a Mask R-CNN needs is missing.
    """
    refuse_unsupported(list(foreign), UNSUPPORTED, name, LIBRARY)
    tensors = rename(foreign, (stem(is_bgr=False), *PANOPTIC_FPN)).tensors
    found = mask_rcnn_config(tensors, name)
    preprocessing, is_bgr = _preprocessing(foreign, is_grouped(found.backbone))
    config = replace(
        found,
        backbone=replace(found.backbone, stride_in_1x1=_stride_in_1x1(found, preprocessing)),
        thresholds=_thresholds(found.classes),
    )
    config = with_semantic_branch(_with_anchors(config, foreign, name), tensors)
    demand_anchor_count(config, tensors, name)
    first = stem(is_bgr)
    if isinstance(config, PanopticFPNConfig):
        categories = categories_for(config.things, config.stuff)
        return Description(PanopticFPN, config, preprocessing, categories, (first, *PANOPTIC_FPN))
    return Description(MaskRCNN, config, preprocessing, categories_for(config.classes), (first, *MASK_RCNN))


def _preprocessing(foreign: Mapping[str, Tensor], grouped: bool) -> tuple[Preprocessing, bool]:
    """Mean and std in RGB, and whether the network itself reads BGR."""
    mean, std = backwards(IMAGENET_MEAN), (1.0, 1.0, 1.0)  # the MSRA weights have the std in their first kernel
    if grouped:
        std = backwards(IMAGENET_STD)  # FAIR's X-101 was trained with it (mask_rcnn_X_101_32x8d_FPN_3x.yaml)
    if "pixel_mean" in foreign and "pixel_std" in foreign:
        mean, std = _triple(foreign["pixel_mean"]), _triple(foreign["pixel_std"])
    is_bgr = mean[0] <= mean[2]  # in ImageNet's mean red is largest
    if is_bgr:
        mean, std = backwards(mean), backwards(std)
    return Preprocessing(mean, std, short_side=800, long_side=1333, resize=Resize.PILLOW), is_bgr


def _triple(stored: Tensor) -> tuple[float, float, float]:
    first, second, third = (round(float(value), 4) for value in stored.flatten()[:3])
    return first, second, third


def _stride_in_1x1(found: MaskRCNNConfig, preprocessing: Preprocessing) -> bool:
    """STRIDE_IN_1X1: true by default, for the MSRA weights; false in the configs of ResNeXt, GroupNorm, and networks that divide
    by a std, which start from torchvision's or FAIR's weights or from none. Basic blocks have no 1x1 to move the stride to."""
    bottleneck = found.backbone.name not in ("resnet18", "resnet34")
    plain = not is_grouped(found.backbone) and not is_group_normed(found.backbone)
    return bottleneck and plain and preprocessing.std == (1.0, 1.0, 1.0)


def _thresholds(classes: int) -> Thresholds:
    # boxes that lie outside the image count among the best; they are dropped from the result, not before NMS
    limits = Thresholds(box_min_size=-1.0)
    if classes in (1203, 1230):  # LVIS v1 and v0.5: SCORE_THRESH_TEST and DETECTIONS_PER_IMAGE of their configs
        return replace(limits, score=1e-4, detections=300)
    return limits


def _with_anchors(config: MaskRCNNConfig, foreign: Mapping[str, Tensor], name: str) -> MaskRCNNConfig:
    """The anchors' sizes and ratios where the file holds them: one size a level, the same ratios everywhere."""
    cells = [foreign.get(f"proposal_generator.anchor_generator.cell_anchors.{level}") for level in range(5)]
    if any(cell is None for cell in cells):
        return config
    stacked = torch.stack([cell.double() for cell in cells if cell is not None])  # level anchor 4
    width, height = stacked[..., 2] - stacked[..., 0], stacked[..., 3] - stacked[..., 1]
    sizes, ratios = (width * height).sqrt(), height / width
    if not torch.allclose(sizes, sizes[:, :1].expand_as(sizes), rtol=1e-3) or not torch.allclose(ratios, ratios[:1], rtol=1e-3):
        raise CheckpointError(f"{name}: has anchors of several sizes on one level, which is not supported yet")
    return replace(
        config,
        anchor_sizes=tuple(float(f"{size:.5g}") for size in sizes[:, 0].tolist()),
        anchor_ratios=tuple(float(f"{ratio:.4g}") for ratio in ratios[0].tolist()),
    )
