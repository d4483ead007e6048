"""Mask2Former and MaskFormer of their authors, on detectron2: the zoos' `.pkl` files and what its trainer saves as `.pth`.

Unlike detectron2's own networks these read RGB, divide by ImageNet's std and have the stride of a ResNet's block in its 3x3
convolution (configs/coco/panoptic-segmentation/Base-COCO-PanopticSegmentation.yaml of the authors).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from thingstuff.checkpoints import swin
from thingstuff.checkpoints.mask_classification import UNSUPPORTED, query_model, usual_categories, with_task
from thingstuff.checkpoints.recognise import Description, refuse_unsupported
from thingstuff.checkpoints.rules import DROP, Rule, rename
from thingstuff.structures.images import Preprocessing, Resize

LIBRARY = "Mask2Former's authors"

_PIXELS = r"sem_seg_head\.pixel_decoder\."
_QUERIES = r"sem_seg_head\.predictor\."
_ENCODER = _PIXELS + r"transformer\.encoder\.layers\.(\d+)\."
_ENCODER_HERE = r"pixel_decoder.layers.\1."
_LAYER = _QUERIES + r"transformer\.decoder\.layers\.(\d+)\."
_LAYER_HERE = r"decoder.layers.\1."
_END = r"(weight|bias)"

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
    Rule(_PIXELS + r"mask_features\." + _END, r"pixel_decoder.pixel_embeddings.\1"),
    Rule(_ENCODER + r"linear1\." + _END, _ENCODER_HERE + r"feed_forward.widen.\2"),
    Rule(_ENCODER + r"linear2\." + _END, _ENCODER_HERE + r"feed_forward.narrow.\2"),
    Rule(_ENCODER + r"norm2\." + _END, _ENCODER_HERE + r"after_feed_forward.norm.\2"),
    Rule(_QUERIES + r"query_embed\.weight", "decoder.query_positions"),
    Rule(_QUERIES + r"class_embed\." + _END, r"decoder.classes.\1"),
    Rule(_QUERIES + r"mask_embed\.layers\.(\d)\." + _END, r"decoder.masks.layers.\1.\2"),
    Rule(r"criterion\.empty_weight", DROP),  # a weight of the loss, which the config has
    Rule(r"pixel_(mean|std)", DROP),  # Preprocessing holds them here
)

_MASK2FORMER = (
    *_SHARED,
    Rule(_PIXELS + r"input_proj\.(\d)\.0\." + _END, r"pixel_decoder.inputs.\1.conv.\2"),
    Rule(_PIXELS + r"input_proj\.(\d)\.1\." + _END, r"pixel_decoder.inputs.\1.norm.\2"),
    Rule(_PIXELS + r"transformer\.level_embed", "pixel_decoder.level_embeddings"),
    *(
        Rule(_ENCODER + rf"self_attn\.{theirs}\." + _END, _ENCODER_HERE + rf"attention.{ours}.\2")
        for theirs, ours in (
            ("sampling_offsets", "offsets"),
            ("attention_weights", "weights"),
            ("value_proj", "values"),
            ("output_proj", "output"),
        )
    ),
    Rule(_ENCODER + r"norm1\." + _END, _ENCODER_HERE + r"after_attention.norm.\2"),
    Rule(_PIXELS + r"adapter_1\.weight", "pixel_decoder.lateral.conv.weight"),
    Rule(_PIXELS + r"adapter_1\.norm\." + _END, r"pixel_decoder.lateral.norm.\1"),
    Rule(_PIXELS + r"layer_1\.weight", "pixel_decoder.output.conv.weight"),
    Rule(_PIXELS + r"layer_1\.norm\." + _END, r"pixel_decoder.output.norm.\1"),
    *(
        rule
        for theirs, attention, ours in (
            ("cross", r"multihead_attn", "cross_attention"),
            ("self", r"self_attn", "self_attention"),
        )
        for layer in (_QUERIES + rf"transformer_{theirs}_attention_layers\.(\d+)\.",)
        for rule in (
            Rule(layer + attention + r"\.in_proj_" + _END, _LAYER_HERE + ours + r".inputs.\2"),
            Rule(layer + attention + r"\.out_proj\." + _END, _LAYER_HERE + ours + r".output.\2"),
            Rule(layer + r"norm\." + _END, _LAYER_HERE + rf"after_{ours}.norm.\2"),
        )
    ),
    Rule(_QUERIES + r"transformer_ffn_layers\.(\d+)\.linear1\." + _END, _LAYER_HERE + r"feed_forward.widen.\2"),
    Rule(_QUERIES + r"transformer_ffn_layers\.(\d+)\.linear2\." + _END, _LAYER_HERE + r"feed_forward.narrow.\2"),
    Rule(_QUERIES + r"transformer_ffn_layers\.(\d+)\.norm\." + _END, _LAYER_HERE + r"after_feed_forward.norm.\2"),
    Rule(_QUERIES + r"decoder_norm\." + _END, r"decoder.norm.\1"),
    Rule(_QUERIES + r"(?:query_feat|static_query)\.weight", "decoder.queries"),  # the second in files of its first weeks
    Rule(_QUERIES + r"level_embed\.weight", "decoder.level_embeddings"),
    Rule(_QUERIES + r"input_proj\.(\d)\." + _END, r"decoder.inputs.\1.\2"),
)

_MASKFORMER = (
    *_SHARED,
    Rule(_PIXELS + r"input_proj\." + _END, r"pixel_decoder.input.\1"),
    Rule(_ENCODER + r"self_attn\.in_proj_" + _END, _ENCODER_HERE + r"self_attention.inputs.\2"),
    Rule(_ENCODER + r"self_attn\.out_proj\." + _END, _ENCODER_HERE + r"self_attention.output.\2"),
    Rule(_ENCODER + r"norm1\." + _END, _ENCODER_HERE + r"after_self_attention.norm.\2"),
    Rule(_PIXELS + r"layer_4\.weight", "pixel_decoder.top.conv.weight"),
    Rule(_PIXELS + r"layer_4\.norm\." + _END, r"pixel_decoder.top.norm.\1"),
    *(
        rule
        for level in range(3)
        for theirs, ours in ((f"adapter_{level + 1}", f"lateral.{level}"), (f"layer_{level + 1}", f"output.{level}"))
        for rule in (
            Rule(_PIXELS + theirs + r"\.weight", f"pixel_decoder.{ours}.conv.weight"),
            Rule(_PIXELS + theirs + r"\.norm\." + _END, rf"pixel_decoder.{ours}.norm.\1"),
        )
    ),
    *(
        rule
        for theirs, ours, norm in (("self_attn", "self_attention", 1), ("multihead_attn", "cross_attention", 2))
        for rule in (
            Rule(_LAYER + theirs + r"\.in_proj_" + _END, _LAYER_HERE + ours + r".inputs.\2"),
            Rule(_LAYER + theirs + r"\.out_proj\." + _END, _LAYER_HERE + ours + r".output.\2"),
            Rule(_LAYER + rf"norm{norm}\." + _END, _LAYER_HERE + rf"after_{ours}.norm.\2"),
        )
    ),
    Rule(_LAYER + r"linear1\." + _END, _LAYER_HERE + r"feed_forward.widen.\2"),
    Rule(_LAYER + r"linear2\." + _END, _LAYER_HERE + r"feed_forward.narrow.\2"),
    Rule(_LAYER + r"norm3\." + _END, _LAYER_HERE + r"after_feed_forward.norm.\2"),
    Rule(_QUERIES + r"transformer\.decoder\.norm\." + _END, r"decoder.norm.\1"),
    Rule(_QUERIES + r"input_proj\." + _END, r"decoder.input.\1"),
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
