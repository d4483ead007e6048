"""torchvision's Mask R-CNN: the published files, what the current version saves, and the V2 architecture.

Classes are counted with background first here; RGB in 0..1; no half-pixel offset in RoI Align (mask_rcnn.py, roi_heads.py there).
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from thingstuff.checkpoints.recognise import (
    Description,
    categories_for,
    count,
    demand_anchor_count,
    has_frozen_norms,
    mask_rcnn_config,
    refuse_unsupported,
)
from thingstuff.checkpoints.rules import Rule, background_to_the_end, rename, without_background, without_background_box
from thingstuff.models.fpn import Norm
from thingstuff.models.mask_rcnn import MaskRCNN, MaskRCNNConfig, Thresholds
from thingstuff.structures.categories import COCO_THINGS_WITH_GAPS
from thingstuff.structures.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Resize

LIBRARY = "torchvision"

UNSUPPORTED = (
    (r"roi_heads\.keypoint_.+", "Keypoint R-CNN"),
    (r"head\.(classification_head|regression_head)\..+", "RetinaNet or FCOS"),
    (r"backbone\.body\.(0|features)\..+", "a MobileNet backbone"),
)


def detect(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(("backbone.body.", "backbone.fpn.", "rpn.head.")) for key in tensors)


def rules(box_convs: int) -> tuple[Rule, ...]:
    """The key table; the V2 box head numbers its linear layers after its convolutions and a flattening."""

    def linear(match: re.Match[str]) -> str:
        return f"box_head.fcs.{(int(match[1]) - box_convs - 1) // 2}.{match[2]}"

    def mask_conv(match: re.Match[str]) -> str:
        return f"mask_head.convs.{int(match[1]) - 1}.conv.{match[2]}"

    return (
        Rule(r"backbone\.body\.(.+)", r"backbone.body.\1"),  # timm keeps torchvision's names
        # the first ".0" of a pair is what newer versions add
        Rule(r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.lateral.\1.conv.\2"),
        Rule(r"backbone\.fpn\.inner_blocks\.(\d)\.1\.(.+)", r"neck.lateral.\1.norm.\2"),
        Rule(r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.output.\1.conv.\2"),
        Rule(r"backbone\.fpn\.layer_blocks\.(\d)\.1\.(.+)", r"neck.output.\1.norm.\2"),
        Rule(r"rpn\.head\.conv\.(weight|bias)", r"rpn.convs.0.conv.\1"),
        Rule(r"rpn\.head\.conv\.(\d+)\.0\.(weight|bias)", r"rpn.convs.\1.conv.\2"),
        Rule(r"rpn\.head\.cls_logits\.(weight|bias)", r"rpn.objectness.\1"),
        Rule(r"rpn\.head\.bbox_pred\.(weight|bias)", r"rpn.deltas.\1"),
        Rule(r"roi_heads\.box_head\.fc6\.(weight|bias)", r"box_head.fcs.0.\1"),
        Rule(r"roi_heads\.box_head\.fc7\.(weight|bias)", r"box_head.fcs.1.\1"),
        Rule(r"roi_heads\.box_head\.(\d+)\.0\.(weight|bias)", r"box_head.convs.\1.conv.\2"),
        Rule(r"roi_heads\.box_head\.(\d+)\.1\.(.+)", r"box_head.convs.\1.norm.\2"),
        Rule(r"roi_heads\.box_head\.(\d+)\.(weight|bias)", linear),
        Rule(r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", r"box_head.classes.\1", background_to_the_end),
        Rule(r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", r"box_head.deltas.\1", without_background_box),
        Rule(r"roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)", mask_conv),
        Rule(r"roi_heads\.mask_head\.(\d+)\.0\.(weight|bias)", r"mask_head.convs.\1.conv.\2"),
        Rule(r"roi_heads\.mask_head\.(\d+)\.1\.(.+)", r"mask_head.convs.\1.norm.\2"),
        Rule(r"roi_heads\.mask_predictor\.conv5_mask\.(weight|bias)", r"mask_head.upsample.\1"),
        Rule(r"roi_heads\.mask_predictor\.mask_fcn_logits\.(weight|bias)", r"mask_head.logits.\1", without_background),
    )


def describe(foreign: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Description:
    """What the file holds.

    Raises:
        CheckpointError: another network of torchvision's, or an array that a Mask R-CNN needs is missing.
    """
    refuse_unsupported(list(foreign), UNSUPPORTED, name, LIBRARY)
    table = rules(count(foreign, r"roi_heads\.box_head\.(\d+)\.0\.weight", name))
    tensors = rename(foreign, table).tensors
    found = mask_rcnn_config(tensors, name)
    config = replace(
        found,
        backbone=replace(found.backbone, norm_eps=_norm_eps(foreign, tensors, found)),
        anchors_rounded=True,
        anchor_stride_from_grid=True,
        roi_sampling=2,
        roi_aligned=False,
        level_epsilons=(0.0, 1e-6),
        paste="integer",
        min_size_inclusive=True,
        drop_empty_boxes=False,
        thresholds=Thresholds(proposal_min_size=1e-3, box_min_size=1e-2),
    )
    demand_anchor_count(config, tensors, name)
    preprocessing = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, short_side=800, long_side=1333, resize=Resize.TORCHVISION)
    # the published networks have a class for each number from 1 to 90, those without a category included
    categories = COCO_THINGS_WITH_GAPS if config.classes == len(COCO_THINGS_WITH_GAPS) else categories_for(config.classes)
    return Description(MaskRCNN, config, preprocessing, categories, table)


def _norm_eps(foreign: Mapping[str, Tensor], tensors: Mapping[str, Tensor], found: MaskRCNNConfig) -> float:
    """The epsilon of the backbone's batch norms, which no file states.

    Frozen norms had none when the published V1 weights were trained; torchvision sets 0 again when it loads these, and so does
    whoever fine-tunes them, while a network built around other weights has 1e-5. So: 0 for the old key names and for a frozen
    ResNet-50 without norms in neck and heads, unless a variance of 0 shows that it can't be.
    """
    old_names = "rpn.head.conv.weight" in foreign
    like_published = found.backbone.name == "resnet50" and not found.backbone.options and found.neck_norm is Norm.NONE
    if not has_frozen_norms(tensors) or not (old_names or like_published):
        return 1e-5
    variances = [tensor for key, tensor in tensors.items() if key.startswith("backbone.") and key.endswith(".running_var")]
    return 0.0 if all(bool((variance > 0).all()) for variance in variances) else 1e-5
