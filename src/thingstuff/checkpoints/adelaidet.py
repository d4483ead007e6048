"""AdelaiDet's SOLOv2: a detectron2 network, whose backbone and neck have detectron2's names.

Its files hold neither `pixel_mean` nor `pixel_std`; its configs start from the MSRA weights, as detectron2's own do: BGR, the std
in the first kernel, stride in the first 1x1 convolution.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from thingstuff.checkpoints import detectron2
from thingstuff.checkpoints.recognise import Description, categories_for, refuse_unsupported
from thingstuff.checkpoints.rules import Rule, rename
from thingstuff.checkpoints.solo import grid_model
from thingstuff.structures.preprocessing import IMAGENET_MEAN, Preprocessing, Resize

LIBRARY = "AdelaiDet"

UNSUPPORTED = (
    (r"ins_head\.\w+_tower\.0\.bias", "SOLOv2 without group norm in its branches"),
    *(entry for entry in detectron2.UNSUPPORTED if entry[0].startswith(r"backbone\.")),
)


def _tower(branch: str) -> Callable[[re.Match[str]], str]:
    """A branch is a row of convolution, group norm and ReLU, again and again."""

    def replacement(match: re.Match[str]) -> str:
        position, part = divmod(int(match[1]), 3)
        return f"{branch}.convs.{position}.{'conv' if part == 0 else 'norm'}.{match[2]}"

    return replacement


_FEATURE = r"mask_head\.convs_all_levels\.(\d)\.conv(\d)"

RULES = (
    *(rule for rule in detectron2.MASK_RCNN if rule.pattern.startswith((r"backbone\.", "pixel_"))),
    Rule(r"ins_head\.cate_tower\.(\d+)\.(weight|bias)", _tower("category_branch")),
    Rule(r"ins_head\.kernel_tower\.(\d+)\.(weight|bias)", _tower("kernel_branch")),
    Rule(r"ins_head\.cate_pred\.(weight|bias)", r"categories.\1"),
    Rule(r"ins_head\.kernel_pred\.(weight|bias)", r"kernels.\1"),
    Rule(_FEATURE + r"\.0\.weight", r"mask_feature.levels.\1.\2.conv.weight"),
    Rule(_FEATURE + r"\.1\.(weight|bias)", r"mask_feature.levels.\1.\2.norm.\3"),
    Rule(r"mask_head\.conv_pred\.0\.weight", r"mask_feature.output.conv.weight"),
    Rule(r"mask_head\.conv_pred\.1\.(weight|bias)", r"mask_feature.output.norm.\1"),
)


def detect(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(("ins_head.cate_tower.", "ins_head.cate_pred.")) for key in tensors)


def describe(foreign: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Description:
    """What the file holds.

    Raises:
        CheckpointError: a variant that is not supported, or an array that every SOLOv2 has is missing.
    """
    refuse_unsupported(list(foreign), UNSUPPORTED, name, LIBRARY)
    model, found = grid_model(rename(foreign, (detectron2.stem(is_bgr=False), *RULES)).tensors, name, LIBRARY)
    bottleneck = found.backbone.name not in ("resnet18", "resnet34")
    config = replace(found, backbone=replace(found.backbone, stride_in_1x1=bottleneck, frozen_norms=True))
    preprocessing = Preprocessing(IMAGENET_MEAN, (1.0, 1.0, 1.0), short_side=800, long_side=1333, resize=Resize.PILLOW)
    return Description(model, config, preprocessing, categories_for(config.classes), (detectron2.stem(is_bgr=True), *RULES))
