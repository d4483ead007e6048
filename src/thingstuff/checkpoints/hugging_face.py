"""Mask2Former and MaskFormer of Hugging Face's transformers, on Swin and ResNet: `model.safetensors` and `pytorch_model.bin`.

The file alone says neither what its classes are called nor what the network is for; both follow from the number of classes where
no config.json beside it names them (hugging_face_folder.py).
`save_pretrained` writes the names of transformers 4 to this day, `torch.save(model.state_dict())` those that a version's classes
have; the tables know both.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from thingstuff.checkpoints import hugging_face_folder as folder
from thingstuff.checkpoints import swin
from thingstuff.checkpoints.mask_classification import (
    ENCODER_HERE,
    END,
    HEADS,
    LAYER_HERE,
    UNSUPPORTED,
    attention,
    deformable_attention,
    feed_forward,
    known_categories,
    normed,
    query_model,
    usual_categories,
    warn_of_unknown_stuff,
    with_task,
)
from thingstuff.checkpoints.python_config import Settings
from thingstuff.checkpoints.recognise import Description, refuse_unsupported
from thingstuff.checkpoints.rules import DROP, Rule, recounted, rename
from thingstuff.models.contract import Task
from thingstuff.models.mask2former import Mask2Former
from thingstuff.models.mask_classification import Convention, PostProcessing
from thingstuff.structures.categories import Categories
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
    Rule(_RESNET_BLOCK + r"layer\.(\d)\.convolution\.weight", recounted("backbone.body.layer{}.{}.conv{}.weight", 1, 0, 1)),
    Rule(_RESNET_BLOCK + r"layer\.(\d)\." + _NORM, recounted("backbone.body.layer{}.{}.bn{}.{}", 1, 0, 1)),
    Rule(_RESNET_BLOCK + r"shortcut\.convolution\.weight", recounted("backbone.body.layer{}.{}.downsample.0.weight", 1)),
    Rule(_RESNET_BLOCK + r"shortcut\." + _NORM, recounted("backbone.body.layer{}.{}.downsample.1.{}", 1)),
)

_SWIN = (
    *swin.hugging_face(_BACKBONE + r"(?:model\.|swin\.)?"),
    Rule(_BACKBONE + r"hidden_states_norms\.([0-3])\." + END, r"backbone.level_norms.\1.\2"),
    Rule(_BACKBONE + r"hidden_states_norms\.stage([1-4])\." + END, recounted("backbone.level_norms.{}.{}", -1)),
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


def _normed(theirs: str, here: str) -> tuple[Rule, Rule]:
    return normed(theirs + r"\.0", theirs + r"\.1", here)


_SHARED = (
    *_attention("self_attn", "self_attention"),
    Rule(_LAYER + r"self_attn_layer_norm\." + END, LAYER_HERE + r"after_self_attention.norm.\2"),
    *feed_forward(_LAYER + r"(?:mlp\.)?fc1", _LAYER + r"(?:mlp\.)?fc2", LAYER_HERE),
    Rule(_LAYER + r"final_layer_norm\." + END, LAYER_HERE + r"after_feed_forward.norm.\2"),
    Rule(_PIXELS + r"mask_projection\." + END, r"pixel_decoder.pixel_embeddings.\1"),
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
    *feed_forward(_ENCODER + "fc1", _ENCODER + "fc2", ENCODER_HERE),
    Rule(_ENCODER + r"final_layer_norm\." + END, ENCODER_HERE + r"after_feed_forward.norm.\2"),
    *_normed(_PIXELS + "adapter_1", "pixel_decoder.lateral"),
    *_normed(_PIXELS + "layer_1", "pixel_decoder.output"),
    Rule(_QUERIES + r"queries_features\.weight", "decoder.queries"),
    Rule(_QUERIES + r"level_embed\.weight", "decoder.level_embeddings"),
    Rule(_QUERIES + r"input_projections\.(\d)\." + END, r"decoder.inputs.\1.\2"),
    *attention(_LAYER + "cross_attn", LAYER_HERE + "cross_attention"),
    Rule(_LAYER + r"cross_attn_layer_norm\." + END, LAYER_HERE + r"after_cross_attention.norm.\2"),
    Rule(_QUERIES + r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\." + END, r"decoder.masks.layers.\1.\2"),
)

_MASKFORMER = (
    *_SHARED,
    *_normed(_PIXELS + r"fpn\.stem", "pixel_decoder.top"),
    *(
        rule
        for level in range(3)  # theirs run from C4 down to C2
        for theirs, ours in (("proj", "lateral"), ("block", "output"))
        for rule in _normed(_PIXELS + rf"fpn\.layers\.{level}\.{theirs}", f"pixel_decoder.{ours}.{2 - level}")
    ),
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
    beside = {key: found for key, found in meta.items() if isinstance(found, Settings)}  # a file's own keys may be called so, too
    settings, pictures = beside.get(folder.CONFIG, Settings({})), beside.get(folder.IMAGES)
    refuse_unsupported(list(foreign), UNSUPPORTED, name, LIBRARY)
    folder.refuse_settings(settings, name)
    model, found = query_model(rename(foreign, rules).tensors, name, LIBRARY, folder.heads_in(settings, HEADS))
    folder.demand_own_config(settings, is_mask2former, found.classes, found.queries, name)
    if settings.first(("backbone_config",)).get("downsample_in_bottleneck") is True:
        found = replace(found, backbone=replace(found.backbone, stride_in_1x1=True))
    categories, config = _categories(found, settings, name)
    config = replace(
        config,
        post_processing=PostProcessing(Convention.HUGGING_FACE, 384 if model is Mask2Former else None, only_sure=False),
        # as many pairs of a query and a class as there are queries (image_processing_mask2former.py there)
        thresholds=replace(config.thresholds, score=0.5, detections=found.queries, merge_score=0.5),
    )
    # as in the published preprocessors: Mask2Former's images are squares, MaskFormer's are stretched to multiples of 32
    images = Preprocessing(short_side=384, square=True) if model is Mask2Former else Preprocessing(stretch=True)
    if pictures is not None:
        images = folder.preprocessing_in(pictures, name)
    return Description(model, config, images, categories, rules)


def _categories(config: Any, settings: Settings, name: str) -> tuple[Categories, Any]:
    """What the classes are, and the config with the task that follows; names in config.json tell published ones from others."""
    names, known = folder.names_in(settings, config.classes), known_categories(config.classes)
    if names is None:
        categories = usual_categories(config.classes, name)
        return categories, with_task(config, categories)
    if known is not None and folder.are_names_of(names, known):
        all_things = all(category.is_thing for category in known)
        task = Task.INSTANCE if all_things else Task.PANOPTIC
        return known, replace(config, thresholds=replace(config.thresholds, task=task))
    warn_of_unknown_stuff(config.classes, name)
    return folder.named(names), config
