"""Mask2Former and MaskFormer of MMDetection, versions 2 and 3; the two versions name the parts of a decoder layer differently."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

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
    warn_of_guess,
    with_task,
)
from thingstuff.checkpoints.mmdetection_config import (
    BACKBONE,
    BACKBONE_SETTINGS,
    LIBRARY,
    categories_in,
    images_of_tests,
    names_in,
    pixel_statistics,
    refuse_settings,
    settings_in,
    stem,
    stride_in_1x1,
)
from thingstuff.checkpoints.python_config import Settings
from thingstuff.checkpoints.recognise import Description, refuse_unsupported
from thingstuff.checkpoints.rules import Rule, rename
from thingstuff.errors import CheckpointError
from thingstuff.models.contract import Task
from thingstuff.models.mask_classification import PostProcessing, Thresholds
from thingstuff.structures.categories import Categories
from thingstuff.structures.preprocessing import Preprocessing

_HEAD = r"panoptic_head\."
_PIXELS = _HEAD + r"pixel_decoder\."
_ENCODER = _PIXELS + r"encoder\.layers\.(\d+)\."
_LAYER = _HEAD + r"transformer_decoder\.layers\.(\d+)\."

_FEED_FORWARD = r"(?:ffn|ffns\.0)\.layers\."

_SHARED = (
    Rule(_PIXELS + r"mask_feature\." + END, r"pixel_decoder.pixel_embeddings.\1"),
    *feed_forward(_ENCODER + _FEED_FORWARD + r"0\.0", _ENCODER + _FEED_FORWARD + "1", ENCODER_HERE),
    Rule(_ENCODER + r"norms\.1\." + END, ENCODER_HERE + r"after_feed_forward.norm.\2"),
    *feed_forward(_LAYER + _FEED_FORWARD + r"0\.0", _LAYER + _FEED_FORWARD + "1", LAYER_HERE),
    Rule(_LAYER + r"norms\.2\." + END, LAYER_HERE + r"after_feed_forward.norm.\2"),
    Rule(_HEAD + r"transformer_decoder\.post_norm\." + END, r"decoder.norm.\1"),
    Rule(_HEAD + r"query_embed\.weight", "decoder.query_positions"),
    Rule(_HEAD + r"cls_embed\." + END, r"decoder.classes.\1"),
    Rule(_HEAD + r"mask_embed\.0\." + END, r"decoder.masks.layers.0.\1"),
    Rule(_HEAD + r"mask_embed\.2\." + END, r"decoder.masks.layers.1.\1"),
    Rule(_HEAD + r"mask_embed\.4\." + END, r"decoder.masks.layers.2.\1"),
)


def _normed(theirs: str, here: str) -> tuple[Rule, Rule]:
    return normed(theirs + r"\.conv", theirs + r"\.gn", here)


def _attentions(*order: str) -> tuple[Rule, ...]:
    """The two attentions of a decoder layer in the order in which they run, which version 2 names them by."""
    return tuple(
        rule
        for number, (theirs, ours) in enumerate((name, name.replace("attn", "attention")) for name in order)
        for rule in (
            *attention(_LAYER + rf"(?:{theirs}|attentions\.{number})\.attn", LAYER_HERE + ours),
            Rule(_LAYER + rf"norms\.{number}\." + END, LAYER_HERE + rf"after_{ours}.norm.\2"),
        )
    )


_MASK2FORMER = (
    *_SHARED,
    *_attentions("cross_attn", "self_attn"),
    Rule(_PIXELS + r"input_convs\.(\d)\.conv\." + END, r"pixel_decoder.inputs.\1.conv.\2"),
    Rule(_PIXELS + r"input_convs\.(\d)\.gn\." + END, r"pixel_decoder.inputs.\1.norm.\2"),
    Rule(_PIXELS + r"level_encoding\.weight", "pixel_decoder.level_embeddings"),
    *deformable_attention(_ENCODER + r"(?:self_attn|attentions\.0)"),
    Rule(_ENCODER + r"norms\.0\." + END, ENCODER_HERE + r"after_attention.norm.\2"),
    *_normed(_PIXELS + r"lateral_convs\.0", "pixel_decoder.lateral"),
    *_normed(_PIXELS + r"output_convs\.0", "pixel_decoder.output"),
    Rule(_HEAD + r"query_feat\.weight", "decoder.queries"),
    Rule(_HEAD + r"level_embed\.weight", "decoder.level_embeddings"),
    Rule(_HEAD + r"decoder_input_projs\.(\d)\." + END, r"decoder.inputs.\1.\2"),
)

_MASKFORMER = (
    *_SHARED,
    *_attentions("self_attn", "cross_attn"),
    Rule(_PIXELS + r"encoder_in_proj\." + END, r"pixel_decoder.input.\1"),
    *attention(_ENCODER + r"(?:self_attn|attentions\.0)\.attn", ENCODER_HERE + "self_attention"),
    Rule(_ENCODER + r"norms\.0\." + END, ENCODER_HERE + r"after_self_attention.norm.\2"),
    *_normed(_PIXELS + r"(?:last_feat_conv|encoder_out_proj)", "pixel_decoder.top"),
    *(
        rule
        for level in range(3)
        for part in ("lateral", "output")
        for rule in _normed(_PIXELS + rf"{part}_convs\.{level}", f"pixel_decoder.{part}.{level}")
    ),
    Rule(_HEAD + r"decoder_input_proj\." + END, r"decoder.input.\1"),
)

SUPPORTED_SETTINGS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    *BACKBONE_SETTINGS,
    ("panoptic_head.num_transformer_feat_level", (3,)),
    ("panoptic_head.pixel_decoder.num_outs", (3,)),
    ("panoptic_head.pixel_decoder.norm_cfg.type", ("GN",)),
    ("panoptic_head.pixel_decoder.norm_cfg.num_groups", (32,)),
    ("panoptic_head.pixel_decoder.act_cfg.type", ("ReLU",)),
    *(
        (f"panoptic_head.{place}.{setting}", values)
        for place in ("positional_encoding", "pixel_decoder.positional_encoding")
        for setting, values in (("normalize", (True,)), ("temperature", (10000,)), ("offset", (0.0,)))
    ),
    ("panoptic_head.pixel_decoder.strides", ([4, 8, 16, 32],)),
    ("panoptic_head.transformer_decoder.init_cfg", (None,)),
)


def detect(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("panoptic_head.") for key in tensors)


def describe(foreign: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Description:
    """What the file holds.

    Raises:
        CheckpointError: a variant that is not supported, or an array that every such network has is missing.
    """
    refuse_unsupported(list(foreign), UNSUPPORTED, name, LIBRARY)
    is_mask2former, is_swin = "panoptic_head.query_feat.weight" in foreign, any(".w_msa." in key for key in foreign)
    rules = (*(swin.MMDETECTION if is_swin else BACKBONE), *(_MASK2FORMER if is_mask2former else _MASKFORMER))
    tensors = rename(foreign, (*stem(is_bgr=False), *rules)).tensors
    settings = settings_in(meta, name)
    model_settings = settings.first(("model",))
    refuse_settings(model_settings, SUPPORTED_SETTINGS, name)
    model, found = query_model(tensors, name, LIBRARY, _heads(model_settings, name))
    mean, std, is_bgr = pixel_statistics(settings, tensors, found.backbone)
    backbone = found.backbone
    if not backbone.original_windows:
        in_1x1 = stride_in_1x1(settings, tensors, backbone)
        backbone = replace(backbone, stride_in_1x1=in_1x1, frozen_norms=True)  # norm_eval=True
    categories = _categories(meta, model_settings, found.classes, name)
    preprocessing = images_of_tests(settings, name, mean, std, multiple=32 if is_mask2former else 1)
    found = replace(found, post_processing=_post_processing(found.post_processing, model_settings, preprocessing))
    config = with_task(replace(found, backbone=backbone, thresholds=_thresholds(model_settings)), categories)
    if model_settings.first(("test_cfg",)).get("panoptic_on") is False:
        config = replace(config, thresholds=replace(config.thresholds, task=Task.INSTANCE))
    return Description(
        model,
        config,
        preprocessing,
        categories,
        (*stem(is_bgr), *rules),
    )


def _post_processing(usual: PostProcessing, model: Settings, images: Preprocessing) -> PostProcessing:
    """With the settings of the config text, where nothing said of low scores means that they stay."""
    stated = model.first(("test_cfg",))
    only_sure = stated.get("filter_low_score", False) is True if stated.fields else usual.only_sure
    return replace(usual, only_sure=only_sure, unpadded=images.pad_multiple == 1)


def _heads(model: Settings, name: str) -> int:
    """Of every attention: here the pixel decoder has as many as the decoder."""
    parts = ("pixel_decoder", "transformer_decoder")
    stated = {
        part: {heads for step in model.first(("panoptic_head", part)).steps() if (heads := step.whole("num_heads", 0))}
        for part in parts
    }
    numbers = set().union(*stated.values())
    if len(numbers) > 1:
        each = " and ".join(f"{heads} in model.panoptic_head.{part}" for part in parts for heads in sorted(stated[part]))
        raise CheckpointError(f"{name}: num_heads is {each} ({LIBRARY}); numbers that differ are not supported yet")
    return next(iter(numbers), HEADS)


def _thresholds(model: Settings) -> Thresholds:
    stated, limits = model.first(("test_cfg",)), Thresholds()
    return replace(
        limits,
        detections=stated.whole("max_per_image", limits.detections),
        merge_score=stated.real("object_mask_thr", limits.merge_score),
        overlap=stated.real("iou_thr", limits.overlap),
    )


def _categories(meta: Mapping[str, Any], model: Settings, classes: int, name: str) -> Categories:
    """The names in the file; how many of them are things, which come first in MMDetection, the head's settings say."""
    things, known = model.first(("panoptic_head",)).get("num_things_classes"), known_categories(classes)
    is_stated = isinstance(things, int) and 0 <= things <= classes
    if is_stated:
        usual = known or Categories.numbered(classes)
    else:
        usual = known or usual_categories(classes, name)
        things = sum(category.is_thing for category in usual)
    # that all are things adds nothing to how many classes there are; COCO's 80 things and 53 kinds of stuff do
    if known is not None and names_in(meta, classes) is None and (not is_stated or things == classes == sum(_flags(known))):
        warn_of_guess(classes, name)
    named = categories_in(meta, things, classes - things)
    nameless = named == Categories.numbered(things, classes - things)
    return usual if nameless and _flags(usual) == [True] * things + [False] * (classes - things) else named


def _flags(categories: Categories) -> list[bool]:
    return [category.is_thing for category in categories]
