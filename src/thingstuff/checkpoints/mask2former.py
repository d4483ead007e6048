"""Mask2Former and MaskFormer of their authors, on detectron2: the zoos' `.pkl` files and what its trainer saves as `.pth`.

Unlike detectron2's own networks these read RGB, divide by ImageNet's std and have the stride of a ResNet's block in its 3x3
convolution (configs/coco/panoptic-segmentation/Base-COCO-PanopticSegmentation.yaml of the authors).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from thingstuff.checkpoints import swin
from thingstuff.checkpoints.mask_classification import (
    ENCODER_HERE,
    END,
    LAYER_HERE,
    UNSUPPORTED,
    attention,
    deformable_attention,
    query_model,
    usual_categories,
    with_task,
)
from thingstuff.checkpoints.recognise import Description, refuse_unsupported
from thingstuff.checkpoints.rules import DROP, Rule, rename
from thingstuff.structures.preprocessing import Preprocessing, Resize

LIBRARY = "Mask2Former's authors"

_PIXELS = r"sem_seg_head\.pixel_decoder\."
_QUERIES = r"sem_seg_head\.predictor\."
_ENCODER = _PIXELS + r"transformer\.encoder\.layers\.(\d+)\."
_LAYER = _QUERIES + r"transformer\.decoder\.layers\.(\d+)\."

_RESNET = (
    Rule(r"backbone\.stem\.conv1\.weight", "backbone.body.conv1.weight"),
    Rule(r"backbone\.stem\.conv1\.norm\.(.+)", r"backbone.body.bn1.\1"),
    *(
        rule
        for stage in (1, 2, 3, 4)
        for rule in (
            Rule(rf"backbone\.res{stage + 1}\.(\d+)\.conv([1-3])\.weight", rf"backbone.body.layer{stage}.\1.conv\2.weight"),
            Rule(rf"backbone\.res{stage + 1}\.(\d+)\.conv([1-3])\.norm\.(.+)", rf"backbone.body.layer{stage}.\1.bn\2.\3"),
            Rule(rf"backbone\.res{stage + 1}\.(\d+)\.shortcut\.weight", rf"backbone.body.layer{stage}.\1.downsample.0.weight"),
            Rule(rf"backbone\.res{stage + 1}\.(\d+)\.shortcut\.norm\.(.+)", rf"backbone.body.layer{stage}.\1.downsample.1.\2"),
        )
    ),
)

_SHARED = (
    Rule(_PIXELS + r"mask_features\." + END, r"pixel_decoder.pixel_embeddings.\1"),
    Rule(_ENCODER + r"linear1\." + END, ENCODER_HERE + r"feed_forward.widen.\2"),
    Rule(_ENCODER + r"linear2\." + END, ENCODER_HERE + r"feed_forward.narrow.\2"),
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
    Rule(_PIXELS + r"adapter_1\.weight", "pixel_decoder.lateral.conv.weight"),
    Rule(_PIXELS + r"adapter_1\.norm\." + END, r"pixel_decoder.lateral.norm.\1"),
    Rule(_PIXELS + r"layer_1\.weight", "pixel_decoder.output.conv.weight"),
    Rule(_PIXELS + r"layer_1\.norm\." + END, r"pixel_decoder.output.norm.\1"),
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
    Rule(_QUERIES + r"transformer_ffn_layers\.(\d+)\.linear1\." + END, LAYER_HERE + r"feed_forward.widen.\2"),
    Rule(_QUERIES + r"transformer_ffn_layers\.(\d+)\.linear2\." + END, LAYER_HERE + r"feed_forward.narrow.\2"),
    Rule(_QUERIES + r"transformer_ffn_layers\.(\d+)\.norm\." + END, LAYER_HERE + r"after_feed_forward.norm.\2"),
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
    Rule(_PIXELS + r"layer_4\.weight", "pixel_decoder.top.conv.weight"),
    Rule(_PIXELS + r"layer_4\.norm\." + END, r"pixel_decoder.top.norm.\1"),
    *(
        rule
        for level in range(3)
        for theirs, ours in ((f"adapter_{level + 1}", f"lateral.{level}"), (f"layer_{level + 1}", f"output.{level}"))
        for rule in (
            Rule(_PIXELS + theirs + r"\.weight", f"pixel_decoder.{ours}.conv.weight"),
            Rule(_PIXELS + theirs + r"\.norm\." + END, rf"pixel_decoder.{ours}.norm.\1"),
        )
    ),
    *(
        rule
        for theirs, ours, norm in (("self_attn", "self_attention", 1), ("multihead_attn", "cross_attention", 2))
        for rule in (
            *attention(_LAYER + theirs, LAYER_HERE + ours),
            Rule(_LAYER + rf"norm{norm}\." + END, LAYER_HERE + rf"after_{ours}.norm.\2"),
        )
    ),
    Rule(_LAYER + r"linear1\." + END, LAYER_HERE + r"feed_forward.widen.\2"),
    Rule(_LAYER + r"linear2\." + END, LAYER_HERE + r"feed_forward.narrow.\2"),
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
    refuse_unsupported(list(foreign), UNSUPPORTED, name, LIBRARY)
    model, found = query_model(rename(foreign, rules).tensors, name, LIBRARY)
    categories = usual_categories(found.classes, name)
    return Description(model, with_task(found, categories), Preprocessing(resize=Resize.PILLOW), categories, rules)
