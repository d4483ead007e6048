"""Mask2Former and MaskFormer of their authors, on detectron2: the zoos' `.pkl` files and what its trainer saves as `.pth`.

Unlike detectron2's own networks these read RGB, divide by ImageNet's std and have the stride of a ResNet's block in its 3x3
convolution (configs/coco/panoptic-segmentation/Base-COCO-PanopticSegmentation.yaml of the authors).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from thingstuff.checkpoints import detectron2, swin
from thingstuff.checkpoints.mask_classification import (
    ENCODER_HERE,
    END,
    LAYER_HERE,
    attention,
    deformable_attention,
    described,
    feed_forward,
    normed,
)
from thingstuff.checkpoints.recognise import Description
from thingstuff.checkpoints.rules import DROP, Rule
from thingstuff.structures.preprocessing import Preprocessing, Resize

LIBRARY = "Mask2Former's authors"

_PIXELS = r"sem_seg_head\.pixel_decoder\."
_QUERIES = r"sem_seg_head\.predictor\."
_ENCODER = _PIXELS + r"transformer\.encoder\.layers\.(\d+)\."
_LAYER = _QUERIES + r"transformer\.decoder\.layers\.(\d+)\."  # of MaskFormer
_FFN = _QUERIES + r"transformer_ffn_layers\.(\d+)\."  # of Mask2Former, which numbers each part of its layers apart

_RESNET = (detectron2.stem(is_bgr=False, prefix=r"backbone\."), *detectron2.resnet(r"backbone\."))


def _normed(theirs: str, here: str) -> tuple[Rule, Rule]:
    return normed(theirs, theirs + r"\.norm", here)


_SHARED = (
    Rule(_PIXELS + r"mask_features\." + END, r"pixel_decoder.pixel_embeddings.\1"),
    *feed_forward(_ENCODER + "linear1", _ENCODER + "linear2", ENCODER_HERE),
    Rule(_ENCODER + r"norm2\." + END, ENCODER_HERE + r"after_feed_forward.norm.\2"),
    Rule(_QUERIES + r"query_embed\.weight", "decoder.query_positions"),
    Rule(_QUERIES + r"class_embed\." + END, r"decoder.classes.\1"),
    Rule(_QUERIES + r"mask_embed\.layers\.(\d)\." + END, r"decoder.masks.layers.\1.\2"),
    Rule(r"criterion\.empty_weight", DROP),  # a weight of the loss, which the config has
    Rule(r"pixel_(mean|std)", DROP),  # Preprocessing holds them here
)

_MASK2FORMER = (
    *_SHARED,
    Rule(_PIXELS + r"input_proj\.(\d)\.0\." + END, r"pixel_decoder.inputs.\1.conv.\2"),
    Rule(_PIXELS + r"input_proj\.(\d)\.1\." + END, r"pixel_decoder.inputs.\1.norm.\2"),
    Rule(_PIXELS + r"transformer\.level_embed", "pixel_decoder.level_embeddings"),
    *deformable_attention(_ENCODER + r"self_attn"),
    Rule(_ENCODER + r"norm1\." + END, ENCODER_HERE + r"after_attention.norm.\2"),
    *_normed(_PIXELS + "adapter_1", "pixel_decoder.lateral"),
    *_normed(_PIXELS + "layer_1", "pixel_decoder.output"),
    *(
        rule
        for theirs, name, ours in (
            ("cross", r"multihead_attn", "cross_attention"),
            ("self", r"self_attn", "self_attention"),
        )
        for layer in (_QUERIES + rf"transformer_{theirs}_attention_layers\.(\d+)\.",)
        for rule in (
            *attention(layer + name, LAYER_HERE + ours),
            Rule(layer + r"norm\." + END, LAYER_HERE + rf"after_{ours}.norm.\2"),
        )
    ),
    *feed_forward(_FFN + "linear1", _FFN + "linear2", LAYER_HERE),
    Rule(_FFN + r"norm\." + END, LAYER_HERE + r"after_feed_forward.norm.\2"),
    Rule(_QUERIES + r"decoder_norm\." + END, r"decoder.norm.\1"),
    Rule(_QUERIES + r"(?:query_feat|static_query)\.weight", "decoder.queries"),  # the second in files of its first weeks
    Rule(_QUERIES + r"level_embed\.weight", "decoder.level_embeddings"),
    Rule(_QUERIES + r"input_proj\.(\d)\." + END, r"decoder.inputs.\1.\2"),
)

_MASKFORMER = (
    *_SHARED,
    Rule(_PIXELS + r"input_proj\." + END, r"pixel_decoder.input.\1"),
    *attention(_ENCODER + "self_attn", ENCODER_HERE + "self_attention"),
    Rule(_ENCODER + r"norm1\." + END, ENCODER_HERE + r"after_self_attention.norm.\2"),
    *_normed(_PIXELS + "layer_4", "pixel_decoder.top"),
    *(
        rule
        for level in range(3)
        for theirs, ours in (("adapter", "lateral"), ("layer", "output"))
        for rule in _normed(_PIXELS + f"{theirs}_{level + 1}", f"pixel_decoder.{ours}.{level}")
    ),
    *(
        rule
        for theirs, ours, norm in (("self_attn", "self_attention", 1), ("multihead_attn", "cross_attention", 2))
        for rule in (
            *attention(_LAYER + theirs, LAYER_HERE + ours),
            Rule(_LAYER + rf"norm{norm}\." + END, LAYER_HERE + rf"after_{ours}.norm.\2"),
        )
    ),
    *feed_forward(_LAYER + "linear1", _LAYER + "linear2", LAYER_HERE),
    Rule(_LAYER + r"norm3\." + END, LAYER_HERE + r"after_feed_forward.norm.\2"),
    Rule(_QUERIES + r"transformer\.decoder\.norm\." + END, r"decoder.norm.\1"),
    Rule(_QUERIES + r"input_proj\." + END, r"decoder.input.\1"),
)


def detect(tensors: Mapping[str, Tensor]) -> bool:
    # the predictor is a module of many; Panoptic FPN's, in detectron2's files, is one convolution of that name
    return any(re.match(r"sem_seg_head\.(pixel_decoder|predictor\.\w+)\.", key) for key in tensors)


def describe(foreign: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Description:
    """What the file holds.

    Raises:
        CheckpointError: a variant that is not supported, or an array that every such network has is missing.
    """
    is_mask2former = any(".transformer_cross_attention_layers." in key for key in foreign)
    is_swin = any(key.startswith("backbone.layers.") for key in foreign)
    rules = (*(swin.AUTHORS if is_swin else _RESNET), *(_MASK2FORMER if is_mask2former else _MASKFORMER))
    model, config, categories = described(foreign, rules, name, LIBRARY)
    return Description(model, config, Preprocessing(resize=Resize.PILLOW), categories, rules)
