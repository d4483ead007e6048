"""Mask2Former and MaskFormer of Hugging Face's transformers, on Swin and ResNet: `model.safetensors` and `pytorch_model.bin`.

The file alone says neither what its classes are called nor what the network is for; both follow from the number of classes.
`save_pretrained` writes the names of transformers 4 to this day, `torch.save(model.state_dict())` those that a version's classes
have; the tables know both.
"""

from collections.abc import Mapping
from dataclasses import replace
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
from thingstuff.models.mask2former import Mask2Former
from thingstuff.models.mask_classification import Convention, PostProcessing, Thresholds
from thingstuff.structures.preprocessing import Preprocessing

LIBRARY = "Hugging Face"

_MODEL = r"(?:model\.)?"
_BACKBONE = _MODEL + r"pixel_level_module\.encoder\."
_PIXELS = _MODEL + r"pixel_level_module\.decoder\."
_QUERIES = _MODEL + r"transformer_module\."

_RESNET_BLOCK = _BACKBONE + r"encoder\.stages\.(\d)\.layers\.(\d+)\."
_NORM = r"normalization\.(.+)"
_RESNET = (
    Rule(_BACKBONE + r"embedder\.embedder\.convolution\.weight", "backbone.body.conv1.weight"),
    Rule(_BACKBONE + r"embedder\.embedder\." + _NORM, r"backbone.body.bn1.\1"),
    Rule(
        _RESNET_BLOCK + r"layer\.(\d)\.convolution\.weight",
        lambda match: f"backbone.body.layer{int(match[1]) + 1}.{match[2]}.conv{int(match[3]) + 1}.weight",
    ),
    Rule(
        _RESNET_BLOCK + r"layer\.(\d)\." + _NORM,
        lambda match: f"backbone.body.layer{int(match[1]) + 1}.{match[2]}.bn{int(match[3]) + 1}.{match[4]}",
    ),
    Rule(
        _RESNET_BLOCK + r"shortcut\.convolution\.weight",
        lambda match: f"backbone.body.layer{int(match[1]) + 1}.{match[2]}.downsample.0.weight",
    ),
    Rule(
        _RESNET_BLOCK + r"shortcut\." + _NORM,
        lambda match: f"backbone.body.layer{int(match[1]) + 1}.{match[2]}.downsample.1.{match[3]}",
    ),
)

_SWIN = (
    *swin.hugging_face(_BACKBONE + r"(?:model\.|swin\.)?"),
    Rule(_BACKBONE + r"hidden_states_norms\.([0-3])\." + END, r"backbone.level_norms.\1.\2"),
    Rule(
        _BACKBONE + r"hidden_states_norms\.stage([1-4])\." + END,
        lambda match: f"backbone.level_norms.{int(match[1]) - 1}.{match[2]}",
    ),
)

_ENCODER = _PIXELS + r"encoder\.layers\.(\d+)\."
_LAYER = _QUERIES + r"decoder\.layers\.(\d+)\."


def _attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The arrays of an attention in a decoder layer whose queries, keys and values have weights of their own."""
    return (
        *(
            Rule(_LAYER + rf"{theirs}\.{name}_proj\." + END, LAYER_HERE + rf"{ours}.inputs.\2", part=(number, 3))
            for number, name in enumerate("qkv")
        ),
        Rule(_LAYER + theirs + r"\.(?:out|o)_proj\." + END, LAYER_HERE + rf"{ours}.output.\2"),
    )


_SHARED = (
    *_attention("self_attn", "self_attention"),
    Rule(_LAYER + r"self_attn_layer_norm\." + END, LAYER_HERE + r"after_self_attention.norm.\2"),
    Rule(_LAYER + r"(?:mlp\.)?fc1\." + END, LAYER_HERE + r"feed_forward.widen.\2"),
    Rule(_LAYER + r"(?:mlp\.)?fc2\." + END, LAYER_HERE + r"feed_forward.narrow.\2"),
    Rule(_LAYER + r"final_layer_norm\." + END, LAYER_HERE + r"after_feed_forward.norm.\2"),
    Rule(_QUERIES + r"decoder\.layernorm\." + END, r"decoder.norm.\1"),
    Rule(_QUERIES + r"queries_embedder\.weight", "decoder.query_positions"),
    Rule(r"class_predictor\." + END, r"decoder.classes.\1"),
    Rule(r"criterion\.empty_weight", DROP),  # a weight of the loss, which the config has
)

_MASK2FORMER = (
    *_SHARED,
    Rule(_PIXELS + r"input_projections\.(\d)\.0\." + END, r"pixel_decoder.inputs.\1.conv.\2"),
    Rule(_PIXELS + r"input_projections\.(\d)\.1\." + END, r"pixel_decoder.inputs.\1.norm.\2"),
    Rule(_PIXELS + r"level_embed", "pixel_decoder.level_embeddings"),
    *deformable_attention(_ENCODER + r"self_attn"),
    Rule(_ENCODER + r"self_attn_layer_norm\." + END, ENCODER_HERE + r"after_attention.norm.\2"),
    Rule(_ENCODER + r"fc1\." + END, ENCODER_HERE + r"feed_forward.widen.\2"),
    Rule(_ENCODER + r"fc2\." + END, ENCODER_HERE + r"feed_forward.narrow.\2"),
    Rule(_ENCODER + r"final_layer_norm\." + END, ENCODER_HERE + r"after_feed_forward.norm.\2"),
    Rule(_PIXELS + r"adapter_1\.0\.weight", "pixel_decoder.lateral.conv.weight"),
    Rule(_PIXELS + r"adapter_1\.1\." + END, r"pixel_decoder.lateral.norm.\1"),
    Rule(_PIXELS + r"layer_1\.0\.weight", "pixel_decoder.output.conv.weight"),
    Rule(_PIXELS + r"layer_1\.1\." + END, r"pixel_decoder.output.norm.\1"),
    Rule(_PIXELS + r"mask_projection\." + END, r"pixel_decoder.pixel_embeddings.\1"),
    Rule(_QUERIES + r"queries_features\.weight", "decoder.queries"),
    Rule(_QUERIES + r"level_embed\.weight", "decoder.level_embeddings"),
    Rule(_QUERIES + r"input_projections\.(\d)\." + END, r"decoder.inputs.\1.\2"),
    *attention(_LAYER + "cross_attn", LAYER_HERE + "cross_attention"),
    Rule(_LAYER + r"cross_attn_layer_norm\." + END, LAYER_HERE + r"after_cross_attention.norm.\2"),
    Rule(_QUERIES + r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\." + END, r"decoder.masks.layers.\1.\2"),
)

_MASKFORMER = (
    *_SHARED,
    Rule(_PIXELS + r"fpn\.stem\.0\.weight", "pixel_decoder.top.conv.weight"),
    Rule(_PIXELS + r"fpn\.stem\.1\." + END, r"pixel_decoder.top.norm.\1"),
    *(
        rule
        for level in range(3)  # theirs run from C4 down to C2
        for theirs, ours in (("proj", f"lateral.{2 - level}"), ("block", f"output.{2 - level}"))
        for rule in (
            Rule(_PIXELS + rf"fpn\.layers\.{level}\.{theirs}\.0\.weight", f"pixel_decoder.{ours}.conv.weight"),
            Rule(_PIXELS + rf"fpn\.layers\.{level}\.{theirs}\.1\." + END, rf"pixel_decoder.{ours}.norm.\1"),
        )
    ),
    Rule(_PIXELS + r"mask_projection\." + END, r"pixel_decoder.pixel_embeddings.\1"),
    Rule(_QUERIES + r"input_projection\." + END, r"decoder.input.\1"),
    *_attention("encoder_attn", "cross_attention"),
    Rule(_LAYER + r"encoder_attn_layer_norm\." + END, LAYER_HERE + r"after_cross_attention.norm.\2"),
    Rule(r"mask_embedder\.(\d)\.0\." + END, r"decoder.masks.layers.\1.\2"),
)


def detect(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.removeprefix("model.").startswith("pixel_level_module.") for key in tensors)


def describe(foreign: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Description:
    """What the file holds.

    Raises:
        CheckpointError: a variant that is not supported, or an array that every such network has is missing.
    """
    is_mask2former = any(".queries_features." in key for key in foreign)
    is_swin = any(".blocks." in key for key in foreign)
    rules = (*(_SWIN if is_swin else _RESNET), *(_MASK2FORMER if is_mask2former else _MASKFORMER))
    refuse_unsupported(list(foreign), UNSUPPORTED, name, LIBRARY)
    model, found = query_model(rename(foreign, rules).tensors, name, LIBRARY)
    categories = usual_categories(found.classes, name)
    config = replace(
        found,
        post_processing=PostProcessing(Convention.HUGGING_FACE, 384 if model is Mask2Former else None, only_sure=False),
        thresholds=Thresholds(score=0.5, merge_score=0.5),
    )
    # as in the published preprocessors: Mask2Former's images are squares, MaskFormer's are stretched to multiples of 32
    images = Preprocessing(short_side=384, square=True) if model is Mask2Former else Preprocessing(stretch=True)
    return Description(model, with_task(config, categories), images, categories, rules)
