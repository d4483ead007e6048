"""Mask2Former and MaskFormer in the layouts of their authors, Hugging Face and MMDetection: sizes, settings, misfits."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import thingstuff
from thingstuff.checkpoints import LAYOUTS, hugging_face, mask2former, mmdetection_mask2former
from thingstuff.checkpoints.files import shapes_of
from thingstuff.checkpoints.rules import convert
from thingstuff.checkpoints.swin import swin_config
from thingstuff.errors import CheckpointError
from thingstuff.models.backbone import BackboneConfig
from thingstuff.models.contract import Task
from thingstuff.models.mask2former import Mask2Former, Mask2FormerConfig
from thingstuff.models.mask_classification import Convention, PostProcessing, Thresholds
from thingstuff.models.maskformer import MaskFormer, MaskFormerConfig
from thingstuff.structures.categories import CITYSCAPES, COCO_PANOPTIC, COCO_THINGS, Categories
from thingstuff.structures.scenes import ADE20K, ADE20K_THINGS, MAPILLARY_VISTAS

UNKNOWN = "does not say which of its 7 classes are stuff"
GUESSED = "does not say what its %d classes are; by their number they are taken for"
pytestmark = [  # that most networks here have
    pytest.mark.filterwarnings(f"ignore:.*{UNKNOWN}"),
    pytest.mark.filterwarnings("ignore:.*by their number they are taken for"),
]
REFERENCE = Path(__file__).parents[1] / "reference"

# From our names to each library's, spelled out the other way round than the tables that are tested.
_STAGE = [(rf"backbone\.body\.layers_{stage}\.downsample", f"backbone.body.layers_{stage - 1}.merging") for stage in (1, 2, 3)]
_DETECTRON2_RESNET = [
    (r"backbone\.body\.conv1\.weight", "backbone.stem.conv1.weight"),
    (r"backbone\.body\.bn1\.", "backbone.stem.conv1.norm."),
    (r"downsample\.0\.", "shortcut."),
    (r"downsample\.1\.", "shortcut.norm."),
    (r"(backbone\..*)\.bn(\d)\.", r"\1.conv\2.norm."),
    *((rf"backbone\.body\.layer{stage}\.", f"backbone.res{stage + 1}.") for stage in (1, 2, 3, 4)),
]
_DEFORMABLE = [
    (r"(pixel_decoder.*)\.attention\.offsets", r"\1.self_attn.sampling_offsets"),
    (r"(pixel_decoder.*)\.attention\.weights", r"\1.self_attn.attention_weights"),
    (r"(pixel_decoder.*)\.attention\.values", r"\1.self_attn.value_proj"),
    (r"(pixel_decoder.*)\.attention\.output", r"\1.self_attn.output_proj"),
]
NAMES = {
    ("authors", Mask2Former): [
        *_DETECTRON2_RESNET,
        *_STAGE,
        (r"backbone\.body\.layers_(\d)\.merging", r"backbone.layers.\1.downsample"),
        (r"backbone\.body\.layers_(\d)", r"backbone.layers.\1"),
        (r"backbone\.body\.patch", "backbone.patch"),
        (r"backbone\.level_norms\.(\d)", r"backbone.norm\1"),
        *_DEFORMABLE,
        (r"pixel_decoder\.inputs\.(\d)\.conv", r"sem_seg_head.pixel_decoder.input_proj.\1.0"),
        (r"pixel_decoder\.inputs\.(\d)\.norm", r"sem_seg_head.pixel_decoder.input_proj.\1.1"),
        (r"^pixel_decoder\.level_embeddings", "sem_seg_head.pixel_decoder.transformer.level_embed"),
        (r"^pixel_decoder\.layers", "sem_seg_head.pixel_decoder.transformer.encoder.layers"),
        (r"(pixel_decoder.*)feed_forward\.widen", r"\1linear1"),
        (r"(pixel_decoder.*)feed_forward\.narrow", r"\1linear2"),
        (r"(pixel_decoder.*)after_attention\.norm", r"\1norm1"),
        (r"(pixel_decoder.*)after_feed_forward\.norm", r"\1norm2"),
        (r"^pixel_decoder\.lateral\.conv", "sem_seg_head.pixel_decoder.adapter_1"),
        (r"^pixel_decoder\.lateral", "sem_seg_head.pixel_decoder.adapter_1"),
        (r"^pixel_decoder\.output\.conv", "sem_seg_head.pixel_decoder.layer_1"),
        (r"^pixel_decoder\.output", "sem_seg_head.pixel_decoder.layer_1"),
        (r"^pixel_decoder\.pixel_embeddings", "sem_seg_head.pixel_decoder.mask_features"),
        (r"^decoder\.queries", "sem_seg_head.predictor.query_feat.weight"),
        (r"^decoder\.query_positions", "sem_seg_head.predictor.query_embed.weight"),
        (r"^decoder\.level_embeddings", "sem_seg_head.predictor.level_embed.weight"),
        (r"^decoder\.inputs", "sem_seg_head.predictor.input_proj"),
        (r"^decoder\.norm", "sem_seg_head.predictor.decoder_norm"),
        (r"^decoder\.classes", "sem_seg_head.predictor.class_embed"),
        (r"^decoder\.masks", "sem_seg_head.predictor.mask_embed"),
        (r"^decoder\.layers\.(\d+)\.self_attention", r"P.transformer_self_attention_layers.\1.self_attn"),
        (r"^decoder\.layers\.(\d+)\.after_self_attention", r"P.transformer_self_attention_layers.\1"),
        (r"^decoder\.layers\.(\d+)\.cross_attention", r"P.transformer_cross_attention_layers.\1.multihead_attn"),
        (r"^decoder\.layers\.(\d+)\.after_cross_attention", r"P.transformer_cross_attention_layers.\1"),
        (r"^decoder\.layers\.(\d+)\.feed_forward\.widen", r"P.transformer_ffn_layers.\1.linear1"),
        (r"^decoder\.layers\.(\d+)\.feed_forward\.narrow", r"P.transformer_ffn_layers.\1.linear2"),
        (r"^decoder\.layers\.(\d+)\.after_feed_forward", r"P.transformer_ffn_layers.\1"),
        (r"attn\.inputs\.", "attn.in_proj_"),
        (r"attn\.output\.", "attn.out_proj."),
        (r"^P\.", "sem_seg_head.predictor."),
    ],
    ("authors", MaskFormer): [
        *_DETECTRON2_RESNET,
        *_STAGE,
        (r"backbone\.body\.layers_(\d)\.merging", r"backbone.layers.\1.downsample"),
        (r"backbone\.body\.layers_(\d)", r"backbone.layers.\1"),
        (r"backbone\.body\.patch", "backbone.patch"),
        (r"backbone\.level_norms\.(\d)", r"backbone.norm\1"),
        (r"^pixel_decoder\.input\.", "sem_seg_head.pixel_decoder.input_proj."),
        (r"^pixel_decoder\.layers\.(\d+)\.self_attention", r"sem_seg_head.pixel_decoder.transformer.encoder.layers.\1.self_attn"),
        (r"^pixel_decoder\.layers", "sem_seg_head.pixel_decoder.transformer.encoder.layers"),
        (r"(pixel_decoder.*)after_self_attention\.norm", r"\1norm1"),
        (r"(pixel_decoder.*)after_feed_forward\.norm", r"\1norm2"),
        (r"feed_forward\.widen", "linear1"),
        (r"feed_forward\.narrow", "linear2"),
        (r"^pixel_decoder\.top\.conv", "sem_seg_head.pixel_decoder.layer_4"),
        (r"^pixel_decoder\.top", "sem_seg_head.pixel_decoder.layer_4"),
        *((rf"^pixel_decoder\.lateral\.{i}\.conv", f"sem_seg_head.pixel_decoder.adapter_{i + 1}") for i in range(3)),
        *((rf"^pixel_decoder\.lateral\.{i}", f"sem_seg_head.pixel_decoder.adapter_{i + 1}") for i in range(3)),
        *((rf"^pixel_decoder\.output\.{i}\.conv", f"sem_seg_head.pixel_decoder.layer_{i + 1}") for i in range(3)),
        *((rf"^pixel_decoder\.output\.{i}", f"sem_seg_head.pixel_decoder.layer_{i + 1}") for i in range(3)),
        (r"^pixel_decoder\.pixel_embeddings", "sem_seg_head.pixel_decoder.mask_features"),
        (r"^decoder\.query_positions", "sem_seg_head.predictor.query_embed.weight"),
        (r"^decoder\.input\.", "sem_seg_head.predictor.input_proj."),
        (r"^decoder\.norm", "sem_seg_head.predictor.transformer.decoder.norm"),
        (r"^decoder\.classes", "sem_seg_head.predictor.class_embed"),
        (r"^decoder\.masks", "sem_seg_head.predictor.mask_embed"),
        (r"^decoder\.layers\.(\d+)\.self_attention", r"decoder.layers.\1.self_attn"),
        (r"^decoder\.layers\.(\d+)\.cross_attention", r"decoder.layers.\1.multihead_attn"),
        (r"after_self_attention\.norm", "norm1"),
        (r"after_cross_attention\.norm", "norm2"),
        (r"after_feed_forward\.norm", "norm3"),
        (r"^decoder\.layers", "sem_seg_head.predictor.transformer.decoder.layers"),
        (r"attn\.inputs\.", "attn.in_proj_"),
        (r"attn\.output\.", "attn.out_proj."),
    ],
}
_MMDETECTION_SWIN = [
    *_STAGE,
    (r"backbone\.body\.layers_(\d)\.merging", r"backbone.stages.\1.downsample"),
    (r"(backbone\..*)mlp\.fc1", r"\1ffn.layers.0.0"),
    (r"(backbone\..*)mlp\.fc2", r"\1ffn.layers.1"),
    (r"(backbone\..*)\.attn\.", r"\1.attn.w_msa."),
    (r"backbone\.body\.layers_(\d)", r"backbone.stages.\1"),
    (r"backbone\.body\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"backbone\.level_norms\.(\d)", r"backbone.norm\1"),
    (r"backbone\.body\.", "backbone."),
]
_MMDETECTION_HEAD = [
    (r"^pixel_decoder\.pixel_embeddings", "pixel_decoder.mask_feature"),
    (r"^pixel_decoder\.layers", "pixel_decoder.encoder.layers"),
    (r"^decoder\.layers", "transformer_decoder.layers"),
    (r"feed_forward\.widen", "ffn.layers.0.0"),
    (r"feed_forward\.narrow", "ffn.layers.1"),
    (r"^decoder\.norm", "transformer_decoder.post_norm"),
    (r"^decoder\.query_positions", "query_embed.weight"),
    (r"^decoder\.queries", "query_feat.weight"),
    (r"^decoder\.level_embeddings", "level_embed.weight"),
    (r"^pixel_decoder\.level_embeddings", "pixel_decoder.level_encoding.weight"),
    (r"^decoder\.classes", "cls_embed"),
    *((rf"^decoder\.masks\.layers\.{i}\.", f"mask_embed.{2 * i}.") for i in range(3)),
    *_DEFORMABLE,
    (r"\.(self|cross)_attention\.inputs\.", r".\1_attn.attn.in_proj_"),
    (r"\.(self|cross)_attention\.output\.", r".\1_attn.attn.out_proj."),
]
NAMES["mmdetection", Mask2Former] = [
    *_MMDETECTION_SWIN,
    *_MMDETECTION_HEAD,
    (r"^pixel_decoder\.inputs\.(\d)\.norm", r"pixel_decoder.input_convs.\1.gn"),
    (r"^pixel_decoder\.inputs", "pixel_decoder.input_convs"),
    (r"^pixel_decoder\.(lateral|output)\.norm", r"pixel_decoder.\1_convs.0.gn"),
    (r"^pixel_decoder\.(lateral|output)\.conv", r"pixel_decoder.\1_convs.0.conv"),
    (r"(encoder.*)after_attention\.norm", r"\1norms.0"),
    (r"(encoder.*)after_feed_forward\.norm", r"\1norms.1"),
    (r"after_cross_attention\.norm", "norms.0"),
    (r"after_self_attention\.norm", "norms.1"),
    (r"after_feed_forward\.norm", "norms.2"),
    (r"^decoder\.inputs", "decoder_input_projs"),
    (r"^(?!backbone\.)", "panoptic_head."),
]
NAMES["mmdetection", MaskFormer] = [
    *_MMDETECTION_SWIN,
    *_MMDETECTION_HEAD,
    (r"^pixel_decoder\.input\.", "pixel_decoder.encoder_in_proj."),
    (r"^pixel_decoder\.top\.norm", "pixel_decoder.TOP.gn"),
    (r"^pixel_decoder\.top", "pixel_decoder.TOP"),
    (r"^pixel_decoder\.(lateral|output)\.(\d)\.norm", r"pixel_decoder.\1_convs.\2.gn"),
    (r"^pixel_decoder\.(lateral|output)\.(\d)\.conv", r"pixel_decoder.\1_convs.\2.conv"),
    (r"(encoder.*)after_self_attention\.norm", r"\1norms.0"),
    (r"(encoder.*)after_feed_forward\.norm", r"\1norms.1"),
    (r"after_self_attention\.norm", "norms.0"),
    (r"after_cross_attention\.norm", "norms.1"),
    (r"after_feed_forward\.norm", "norms.2"),
    (r"^decoder\.input\.", "decoder_input_proj."),
    (r"^(?!backbone\.)", "panoptic_head."),
]


def _hugging_face_backbone(swin, level):
    return [
        *_STAGE,
        (r"backbone\.body\.layers_(\d)\.merging", rf"{swin}.encoder.layers.\1.downsample"),
        (r"(backbone\..*)mlp\.fc1", r"\1intermediate.dense"),
        (r"(backbone\..*)mlp\.fc2", r"\1output.dense"),
        (r"(backbone\..*layers_.*)norm1", r"\1layernorm_before"),
        (r"(backbone\..*layers_.*)norm2", r"\1layernorm_after"),
        (r"(backbone\..*)\.attn\.proj", r"\1.attention.output.dense"),
        (r"(backbone\..*)\.attn\.relative", r"\1.attention.self.relative"),
        (r"backbone\.body\.layers_(\d)", rf"{swin}.encoder.layers.\1"),
        (r"backbone\.body\.patch_embed\.proj\.", f"{swin}.embeddings.patch_embeddings.projection."),
        (r"backbone\.body\.patch_embed\.norm", f"{swin}.embeddings.norm"),
        *((rf"backbone\.level_norms\.{i}", f"B.hidden_states_norms.{level(i)}") for i in range(4)),
        (r"backbone\.body\.conv1\.", "B.embedder.embedder.convolution."),
        (r"backbone\.body\.bn1\.", "B.embedder.embedder.normalization."),
        *((rf"(backbone\..*)conv{i + 1}\.", rf"\1layer.{i}.convolution.") for i in range(3)),
        *((rf"(backbone\..*)bn{i + 1}\.", rf"\1layer.{i}.normalization.") for i in range(3)),
        (r"(backbone\..*)downsample\.0\.", r"\1shortcut.convolution."),
        (r"(backbone\..*)downsample\.1\.", r"\1shortcut.normalization."),
        *((rf"backbone\.body\.layer{i + 1}\.", f"B.encoder.stages.{i}.layers.") for i in range(4)),
        (r"^B\.", "model.pixel_level_module.encoder."),
    ]


_HUGGING_FACE_HEAD = [
    (r"^pixel_decoder\.pixel_embeddings", "D.mask_projection"),
    (r"feed_forward\.widen", "fc1"),
    (r"feed_forward\.narrow", "fc2"),
    (r"after_feed_forward\.norm", "final_layer_norm"),
    (r"after_(self_)?attention\.norm", "self_attn_layer_norm"),
    (r"self_attention\.output", "self_attn.out_proj"),
    (r"^decoder\.query_positions", "Q.queries_embedder.weight"),
    (r"^decoder\.classes", "class_predictor"),
    (r"^decoder\.norm", "Q.decoder.layernorm"),
    *_DEFORMABLE,
]
NAMES["hugging face", Mask2Former] = [
    *_hugging_face_backbone("B", lambda i: f"stage{i + 1}"),
    *_HUGGING_FACE_HEAD,
    (r"^pixel_decoder\.inputs\.(\d)\.conv", r"D.input_projections.\1.0"),
    (r"^pixel_decoder\.inputs\.(\d)\.norm", r"D.input_projections.\1.1"),
    (r"^pixel_decoder\.level_embeddings", "D.level_embed"),
    (r"^pixel_decoder\.layers", "D.encoder.layers"),
    (r"^pixel_decoder\.lateral\.conv", "D.adapter_1.0"),
    (r"^pixel_decoder\.lateral\.norm", "D.adapter_1.1"),
    (r"^pixel_decoder\.output\.conv", "D.layer_1.0"),
    (r"^pixel_decoder\.output\.norm", "D.layer_1.1"),
    (r"^decoder\.queries", "Q.queries_features.weight"),
    (r"^decoder\.level_embeddings", "Q.level_embed.weight"),
    (r"^decoder\.inputs", "Q.input_projections"),
    (r"after_cross_attention\.norm", "cross_attn_layer_norm"),
    (r"cross_attention\.inputs\.", "cross_attn.in_proj_"),
    (r"cross_attention\.output", "cross_attn.out_proj"),
    (r"^decoder\.masks\.layers\.(\d)\.", r"Q.decoder.mask_predictor.mask_embedder.\1.0."),
    (r"^decoder\.layers", "Q.decoder.layers"),
    (r"^D\.", "model.pixel_level_module.decoder."),
    (r"^Q\.", "model.transformer_module."),
]
NAMES["hugging face", MaskFormer] = [
    *_hugging_face_backbone("B.model", lambda i: i),
    *_HUGGING_FACE_HEAD,
    (r"^pixel_decoder\.top\.conv", "D.fpn.stem.0"),
    (r"^pixel_decoder\.top\.norm", "D.fpn.stem.1"),
    *((rf"^pixel_decoder\.lateral\.{i}\.conv", f"D.fpn.layers.{2 - i}.proj.0") for i in range(3)),
    *((rf"^pixel_decoder\.lateral\.{i}\.norm", f"D.fpn.layers.{2 - i}.proj.1") for i in range(3)),
    *((rf"^pixel_decoder\.output\.{i}\.conv", f"D.fpn.layers.{2 - i}.block.0") for i in range(3)),
    *((rf"^pixel_decoder\.output\.{i}\.norm", f"D.fpn.layers.{2 - i}.block.1") for i in range(3)),
    (r"^decoder\.input\.", "Q.input_projection."),
    (r"after_cross_attention\.norm", "encoder_attn_layer_norm"),
    (r"cross_attention\.output", "encoder_attn.out_proj"),
    (r"^decoder\.masks\.layers\.(\d)\.", r"mask_embedder.\1.0."),
    (r"^decoder\.layers", "Q.decoder.layers"),
    (r"^D\.", "model.pixel_level_module.decoder."),
    (r"^Q\.", "model.transformer_module."),
]
_JOINED = {  # of Hugging Face: our names of what lies in three arrays there, and theirs
    r"attn\.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    r"self_attention\.inputs": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}
_JOINED_MASKFORMER = {r"cross_attention\.inputs": ("encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj")}

_SMALL_SWIN = BackboneConfig(
    "swin_tiny_patch4_window7_224",
    (("embed_dim", 32), ("depths", (1, 2, 3, 1)), ("num_heads", (1, 2, 4, 8)), ("window_size", 5)),
    original_windows=True,
    level_norms=True,
)
_UNUSUAL_SWIN = replace(_SMALL_SWIN, options=(*_SMALL_SWIN.options, ("mlp_ratio", 2.5), ("qkv_bias", False)))
_LARGE_SWIN = BackboneConfig("swin_large_patch4_window12_384", original_windows=True, level_norms=True)
_SIZES = {"classes": 7, "channels": 64, "mask_channels": 48, "query_channels": 64, "queries": 30}
CONFIGS = {
    "mask2former r18": Mask2FormerConfig(
        BackboneConfig("resnet18"), points=2, encoder_layers=2, encoder_width=96, decoder_layers=4, decoder_width=80, **_SIZES
    ),
    "mask2former r101, narrow queries": Mask2FormerConfig(
        BackboneConfig("resnet101"),
        encoder_layers=1,
        encoder_width=96,
        decoder_layers=3,
        decoder_width=80,
        **_SIZES | {"query_channels": 32},
    ),
    "mask2former swin": Mask2FormerConfig(
        _SMALL_SWIN, encoder_layers=3, encoder_width=96, decoder_layers=6, decoder_width=80, **_SIZES
    ),
    "mask2former swin, narrow blocks without biases": Mask2FormerConfig(_UNUSUAL_SWIN, decoder_layers=3, **_SIZES),
    "mask2former swin-l": Mask2FormerConfig(_LARGE_SWIN, queries=200),
    "maskformer r50": MaskFormerConfig(BackboneConfig("resnet50"), decoder_layers=2, decoder_width=80, **_SIZES),
    "maskformer r34, encoder": MaskFormerConfig(
        BackboneConfig("resnet34"), encoder_layers=2, encoder_width=96, decoder_layers=3, decoder_width=80, **_SIZES
    ),
    "maskformer swin": MaskFormerConfig(_SMALL_SWIN, decoder_layers=2, decoder_width=80, **_SIZES),
}
MODELS = {Mask2FormerConfig: Mask2Former, MaskFormerConfig: MaskFormer}
LIBRARIES = ("authors", "hugging face", "mmdetection")
PAIRS = [
    (library, kind)
    for library in LIBRARIES
    for kind in CONFIGS
    if not (library == "hugging face" and kind.endswith("encoder"))  # which it does not have
]


def theirs(library, model, name):
    """The names under which a library stores what is one array here."""
    joined = _JOINED | (_JOINED_MASKFORMER if model is MaskFormer else {}) if library == "hugging face" else {}
    for pattern, parts in joined.items():
        if re.search(rf"\.{pattern}\.", name):
            return [_renamed(library, model, re.sub(pattern, part, name)) for part in parts]
    return [_renamed(library, model, name)]


def _renamed(library, model, name):
    for pattern, replacement in NAMES[library, model]:
        name = re.sub(pattern, replacement, name)
    return name


@cache
def shapes_here(kind):
    config = CONFIGS[kind]
    return shapes_of(MODELS[type(config)], config)


def hollow(library, kind):
    """A file's arrays, without memory."""
    config = CONFIGS[kind]
    tensors = {}
    for name, shape in shapes_here(kind).items():
        names = theirs(library, MODELS[type(config)], name)
        for each in names:
            tensors[each] = torch.tensor(0.5).expand((shape[0] // len(names), *shape[1:]) if len(names) > 1 else shape)
    top = "encoder_out_proj" if getattr(config, "encoder_layers", 0) else "last_feat_conv"
    return {name.replace("TOP", top): tensor for name, tensor in tensors.items()}


def described(tensors, meta=None):
    layout = next(layout for layout in LAYOUTS if layout.detect(tensors))
    return layout.describe(tensors, meta or {}, "model.pth")


def with_config(text):
    return {"meta": {"cfg": text}}


@pytest.mark.parametrize(
    ("library", "case"),
    [
        ("mmdetection", "mmdet-mask2former-r50"),
        ("mmdetection", "mmdet-mask2former-swin-t"),
        ("hugging face", "hf-mask2former-swin-tiny"),
        ("hugging face", "hf-maskformer-swin-tiny"),
    ],
)
def test_the_names_are_those_of_the_cases(library, case):
    keys = json.loads((REFERENCE / case / "keys.json").read_text())
    tensors = {name: torch.tensor(0.5).expand(shape) for name, shape in keys.items()}
    found = described(tensors)
    shapes = shapes_of(found.model, found.config)
    computed = r".*relative_position_index|criterion\.empty_weight|.*encoder\.model\.layernorm\.(weight|bias)"
    stored = {name for name in keys if not re.fullmatch(computed, name)}
    assert {each for name in shapes for each in theirs(library, found.model, name)} == stored
    assert set(convert(tensors, found.rules, shapes, case)) == set(shapes)


@pytest.mark.parametrize(("library", "kind"), PAIRS)
def test_every_size_is_found_and_every_array_has_its_place(library, kind):
    tensors = hollow(library, kind)
    found = described(tensors)
    expected = CONFIGS[kind]
    backbone = expected.backbone
    if library == "mmdetection" and not backbone.original_windows:
        backbone = replace(backbone, frozen_norms=True)  # its trainers keep the backbone's statistics
    assert found.model is MODELS[type(expected)]
    assert replace(found.config, thresholds=Thresholds(), post_processing=expected.post_processing) == replace(
        expected, backbone=backbone
    )
    assert len(found.categories) == expected.classes
    assert set(convert(tensors, found.rules, shapes_here(kind), "model.pth")) == set(shapes_here(kind))


@pytest.mark.parametrize("kind", ["mask2former swin", "mask2former r18", "maskformer swin", "maskformer r34, encoder"])
def test_a_network_answers_alike_from_every_layout(tmp_path, kind):
    torch.manual_seed(0)
    config = CONFIGS[kind]
    model = MODELS[type(config)](config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):  # norms without statistics would be taken for caffe's
            buffer.normal_(std=0.1)
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = model(image)
    for library in LIBRARIES:
        if (library, kind) not in PAIRS:
            continue
        state = {}
        for name, tensor in model.state_dict().items():
            if library == "mmdetection" and ".downsample." in name and config.backbone.original_windows:
                # from (column row) channel to channel (row column), as unfold gives them
                tensor = tensor.unflatten(-1, (2, 2, -1)).permute(*range(tensor.ndim - 1), -1, -2, -3).flatten(-3)
            names = theirs(library, type(model), name)
            parts = tensor.chunk(3) if len(names) == 3 else [tensor]
            top = "encoder_out_proj" if config.encoder_layers else "last_feat_conv"
            state |= {each.replace("TOP", top): part.clone() for each, part in zip(names, parts, strict=True)}
        path = tmp_path / ("model.safetensors" if library == "hugging face" else "model.pth")
        if library == "hugging face":
            save_file(state | {"criterion.empty_weight": torch.ones(8)}, path)
        else:
            torch.save({"model" if library == "authors" else "state_dict": state}, path)
        loaded = thingstuff.load(path, device="cpu").model
        with torch.inference_mode():
            found = loaded(image)
        torch.testing.assert_close(found.class_logits, expected.class_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.pixel_embeddings, expected.pixel_embeddings, atol=1e-4, rtol=1e-4)


def test_detectron2s_pickles_load_too(tmp_path):
    import pickle

    state = {name: np.full(tensor.shape, 0.5, np.float32) for name, tensor in hollow("authors", "mask2former r18").items()}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "Mask2Former"}))
    segmenter = thingstuff.load(tmp_path / "model_final.pkl", device="cpu")
    assert isinstance(segmenter.model, Mask2Former)
    assert segmenter.preprocessing.std == (58.395, 57.12, 57.375)


def test_files_of_the_first_weeks_call_the_queries_static():
    tensors = hollow("authors", "mask2former r18")
    tensors["sem_seg_head.predictor.static_query.weight"] = tensors.pop("sem_seg_head.predictor.query_feat.weight")
    assert described(tensors).model is Mask2Former


@pytest.mark.parametrize(("library", "kind"), [("mmdetection", "mask2former r18"), ("mmdetection", "maskformer r50")])
def test_version_2_of_mmdetection_numbers_the_attentions_in_the_order_in_which_they_run(library, kind):
    expected = convert(hollow(library, kind), described(hollow(library, kind)).rules, shapes_here(kind), "model.pth")
    order = ("cross_attn", "self_attn") if kind.startswith("mask2former") else ("self_attn", "cross_attn")
    tensors = {}
    for name, tensor in hollow(library, kind).items():
        if ".pixel_decoder." in name:
            name = name.replace(".self_attn.", ".attentions.0.")
        for number, attention in enumerate(order):
            name = name.replace(f".{attention}.", f".attentions.{number}.")
        tensors[name.replace(".ffn.", ".ffns.0.") if name.startswith("panoptic_head.") else name] = tensor
    assert any(".attentions.1." in name for name in tensors)
    found = convert(tensors, described(tensors).rules, shapes_here(kind), "model.pth")
    assert found.keys() == expected.keys()


_IN_MEMORY = {  # from the names of the cases, as `save_pretrained` writes them, to those of the classes of transformers 5.24
    "hf-mask2former-swin-tiny": [
        (r"(module\.encoder\.)(?=embeddings|encoder)", r"\1swin."),
        (r"attention\.self\.(q|k|v)(uery|ey|alue)\.", r"attention.\1_proj."),
        (r"attention\.self\.relative_position", "attention.relative_position_bias.relative_position"),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
    ],
    "hf-maskformer-swin-tiny": [
        (r"(decoder\.layers.*attn)\.out_proj", r"\1.o_proj"),
        (r"(decoder\.layers\.\d+)\.fc", r"\1.mlp.fc"),
    ],
}


@pytest.mark.parametrize(
    ("case", "renamed"),
    [
        # 4 of the patches, 18 of each of 12 blocks, 9 of merging
        ("hf-mask2former-swin-tiny", 4 + 12 * 18 + 9),
        # weight and bias of two outputs and two layers of an MLP
        ("hf-maskformer-swin-tiny", 6 * 8),
    ],
)
def test_what_torch_saves_of_a_hugging_face_model_has_other_names_and_the_same_places(case, renamed):
    keys = json.loads((REFERENCE / case / "keys.json").read_text())
    saved = {name: torch.tensor(float(number)).expand(shape) for number, (name, shape) in enumerate(keys.items())}
    in_memory = {}
    for name, tensor in saved.items():
        for pattern, replacement in _IN_MEMORY[case]:
            name = re.sub(pattern, replacement, name)
        in_memory[name] = tensor
    assert len(in_memory.keys() - saved.keys()) == renamed
    found, expected = described(in_memory), described(saved)
    assert (found.model, found.config) == (expected.model, expected.config)
    shapes = shapes_of(found.model, found.config)
    arrays, usual = (convert(tensors, found.rules, shapes, case) for tensors in (in_memory, saved))
    for name, array in usual.items():
        assert torch.equal(arrays[name], array), name


@pytest.mark.parametrize("kind", ["mask2former r18", "maskformer r50"])
def test_an_output_under_both_of_hugging_faces_names_is_a_misfit(kind):
    tensors = hollow("hugging face", kind)
    layer = "model.transformer_module.decoder.layers.1.self_attn."
    tensors[layer + "o_proj.bias"] = tensors[layer + "out_proj.bias"]
    misfit = rf"{layer}o_proj.bias and {layer}out_proj.bias both become decoder.layers.1.self_attention.output.bias"
    with pytest.raises(CheckpointError, match=misfit):
        convert(tensors, described(tensors).rules, shapes_here(kind), "model.pth")


@pytest.mark.parametrize(
    ("ratio", "widths"),
    [
        (1.1, [61, 123, 246, 492]),  # 61.6, 123.2, 246.4 and 492.8, while 61 / 56 would make 122 of 112
        (1.0893, [61, 122, 244, 488]),  # 56 * (61 / 56) is a little less than 61 in floats
    ],
)
def test_blocks_of_a_swin_are_as_wide_as_whole_channels_of_theirs(ratio, widths):
    sizes = (("embed_dim", 56), ("depths", (1, 1, 1, 1)), ("num_heads", (2, 4, 8, 16)), ("window_size", 5))
    config = Mask2FormerConfig(replace(_SMALL_SWIN, options=(*sizes, ("mlp_ratio", ratio))), decoder_layers=1, **_SIZES)
    shapes = shapes_of(Mask2Former, config)
    assert [shapes[f"backbone.body.layers_{stage}.blocks.0.mlp.fc1.weight"][0] for stage in range(4)] == widths
    found = swin_config({name: torch.tensor(0.5).expand(shape) for name, shape in shapes.items()}, "model.pth")
    assert shapes_of(Mask2Former, replace(config, backbone=found)) == shapes


# What no array shows


@pytest.mark.parametrize(
    ("classes", "categories", "task"),
    [
        (133, COCO_PANOPTIC, Task.PANOPTIC),
        (80, COCO_THINGS, Task.INSTANCE),
        (19, CITYSCAPES, Task.PANOPTIC),
        (150, ADE20K, Task.PANOPTIC),
        (100, ADE20K_THINGS, Task.PANOPTIC),  # they may be anybody's
        (65, MAPILLARY_VISTAS, Task.PANOPTIC),
    ],
)
def test_categories_and_task_follow_from_the_number_of_classes(classes, categories, task):
    tensors = hollow("hugging face", "mask2former r18")
    for name in ("class_predictor.weight", "class_predictor.bias"):
        tensors[name] = torch.tensor(0.5).expand(classes + 1, *tensors[name].shape[1:])
    with pytest.warns(UserWarning, match=rf"model\.pth: {GUESSED % classes}.*: set `model\.categories` to say what they are"):
        found = described(tensors)
    assert found.categories == categories
    assert found.config.thresholds.task is task


@pytest.mark.filterwarnings("error")
def test_names_and_kinds_in_the_file_are_no_guess():
    tensors = hollow("mmdetection", "mask2former r18")
    for name in ("panoptic_head.cls_embed.weight", "panoptic_head.cls_embed.bias"):
        tensors[name] = torch.tensor(0.5).expand(101, *tensors[name].shape[1:])
    text = "model = dict(panoptic_head=dict(num_things_classes=%d, num_stuff_classes=%d))"
    own = tuple(f"screw {number}" for number in range(100))
    found = described(tensors, {"meta": {"cfg": text % (100, 0), "CLASSES": own}})
    assert (found.categories.names, found.config.thresholds.task) == (own, Task.INSTANCE)
    assert described(tensors, with_config(text % (60, 40))).categories == Categories.numbered(60, 40)
    with pytest.warns(UserWarning, match=GUESSED % 100):
        assert described(tensors, with_config(text % (100, 0))).config.thresholds.task is Task.PANOPTIC


@pytest.mark.parametrize("library", LIBRARIES)
def test_where_nobody_can_know_which_classes_are_stuff_a_warning_says_so(library):
    with pytest.warns(UserWarning, match=rf"model\.pth: {UNKNOWN}.* set `model\.categories`"):
        found = described(hollow(library, "mask2former r18"))
    assert found.categories == Categories.numbered(7)
    assert found.config.thresholds.task is Task.PANOPTIC


@pytest.mark.filterwarnings("error")
def test_a_config_text_that_tells_things_from_stuff_needs_no_warning():
    text = "model = dict(panoptic_head=dict(num_things_classes=4, num_stuff_classes=3))"
    found = described(hollow("mmdetection", "mask2former r18"), with_config(text))
    assert found.categories == Categories.numbered(4, 3)


def test_things_come_first_in_mmdetection_whatever_the_number_of_classes():
    tensors = hollow("mmdetection", "mask2former r18")
    for name in ("panoptic_head.cls_embed.weight", "panoptic_head.cls_embed.bias"):
        tensors[name] = torch.tensor(0.5).expand(151, *tensors[name].shape[1:])
    text = "model = dict(panoptic_head=dict(num_things_classes=100, num_stuff_classes=50))"
    for meta in (with_config(text), {}):
        assert described(tensors, meta).categories == Categories.numbered(100, 50)


def test_hugging_face_has_its_own_way_to_segments_and_its_own_images():
    found = described(hollow("hugging face", "mask2former swin"))
    assert found.config.post_processing == PostProcessing(Convention.HUGGING_FACE, 384, only_sure=False)
    assert found.preprocessing.input_size(400, 600) == (384, 384)
    found = described(hollow("hugging face", "maskformer swin"))
    assert found.config.post_processing == PostProcessing(Convention.HUGGING_FACE, None, only_sure=False)
    assert found.preprocessing.input_size(400, 600) == (800, 1216)
    assert found.config.thresholds.merge_score == 0.5


@pytest.mark.parametrize(("kind", "queries"), [("mask2former swin-l", 200), ("maskformer swin", 30)])
def test_hugging_face_ranks_as_many_instances_as_there_are_queries(kind, queries):
    assert described(hollow("hugging face", kind)).config.thresholds.detections == queries
    assert described(hollow("authors", kind)).config.thresholds.detections == 100


def test_the_config_text_of_mmdetection_decides():
    text = """
model = dict(
    panoptic_head=dict(num_things_classes=4, num_stuff_classes=3,
        transformer_decoder=dict(layer_cfg=dict(self_attn_cfg=dict(embed_dims=64, num_heads=4)))),
    test_cfg=dict(panoptic_on=False, max_per_image=50, iou_thr=0.7, filter_low_score=False, object_mask_thr=0.6))
test_pipeline = [dict(type='Resize', scale=(1024, 512))]
"""
    found = described(hollow("mmdetection", "mask2former r18"), with_config(text))
    assert found.config.heads == 4
    assert found.config.points == 4  # twice as many for half the heads
    assert [category.is_thing for category in found.categories] == [True] * 4 + [False] * 3
    assert found.config.thresholds == Thresholds(Task.INSTANCE, detections=50, merge_score=0.6, overlap=0.7)
    assert found.config.post_processing.only_sure is False
    assert (found.preprocessing.short_side, found.preprocessing.long_side) == (512, 1024)


@pytest.mark.filterwarnings("ignore:.*does not say which of its")
def test_a_config_text_that_does_not_speak_of_low_scores_leaves_them_in():
    tensors = hollow("mmdetection", "mask2former r18")
    assert described(tensors).config.post_processing.only_sure
    assert not described(tensors, with_config("model = dict(test_cfg=dict(iou_thr=0.8))")).config.post_processing.only_sure


@pytest.mark.filterwarnings("ignore:.*does not say which of its")
def test_mmdetection_does_not_pad_maskformers_images_unless_it_says_so():
    tensors = hollow("mmdetection", "maskformer r50")
    found = described(tensors)
    assert (found.preprocessing.pad_multiple, found.config.post_processing.unpadded) == (1, True)
    found = described(tensors, with_config("model = dict(data_preprocessor=dict(pad_size_divisor=32))"))
    assert (found.preprocessing.pad_multiple, found.config.post_processing.unpadded) == (32, False)
    found = described(hollow("mmdetection", "mask2former r18"))
    assert (found.preprocessing.pad_multiple, found.config.post_processing.unpadded) == (32, False)


@pytest.mark.filterwarnings("ignore:.*does not say which of its")
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("mask2former r18", [f"panoptic_head.decoder_input_projs.{level}" for level in range(3)]),
        ("maskformer r34, encoder", ["panoptic_head.decoder_input_proj"]),
    ],
)
def test_what_queries_look_at_may_be_convolved_although_it_has_their_width(kind, names):
    tensors = hollow("mmdetection", kind)
    assert not described(tensors).config.input_convs
    tensors |= {f"{name}.weight": torch.tensor(0.5).expand(64, 64, 1, 1) for name in names}
    tensors |= {f"{name}.bias": torch.tensor(0.5).expand(64) for name in names}
    found = described(tensors)
    assert found.config.input_convs
    convert(tensors, found.rules, shapes_of(found.model, found.config), "model.pth")


@pytest.mark.parametrize("place", ["positional_encoding", "pixel_decoder.positional_encoding"])
def test_other_wave_lengths_of_the_positions_are_refused(place):
    outer, _, inner = place.rpartition(".")
    text = f"{inner}=dict(temperature=100)"
    text = f"model = dict(panoptic_head=dict({f'{outer}=dict({text})' if outer else text}))"
    with pytest.raises(CheckpointError, match=rf"model\.panoptic_head\.{re.escape(place)}\.temperature is 100"):
        described(hollow("mmdetection", "mask2former r18"), with_config(text))


def heads_text(**heads):
    return with_config(
        f"model = dict(panoptic_head=dict({', '.join(f'{k}=dict(attn=dict(num_heads={v}))' for k, v in heads.items())}))"
    )


@pytest.mark.parametrize("part", ["pixel_decoder", "transformer_decoder"])
def test_either_decoder_may_state_the_heads(part):
    assert described(hollow("mmdetection", "mask2former r18"), heads_text(**{part: 4})).config.heads == 4


# What does not fit


def test_decoders_whose_heads_differ_are_refused():
    with pytest.raises(CheckpointError, match=r"num_heads is 4 in model\.panoptic_head\.pixel_decoder and 8 in model"):
        described(hollow("mmdetection", "mask2former r18"), heads_text(pixel_decoder=4, transformer_decoder=8))


def test_attentions_of_one_decoder_whose_heads_differ_are_refused():
    layer = "dict(self_attn_cfg=dict(num_heads=8), cross_attn_cfg=dict(num_heads=4))"
    text = f"model = dict(panoptic_head=dict(transformer_decoder=dict(layer_cfg={layer})))"
    with pytest.raises(CheckpointError, match=r"num_heads is 4 in (model\.panoptic_head\.transformer_decoder) and 8 in \1 "):
        described(hollow("mmdetection", "mask2former r18"), with_config(text))


def test_all_misfits_are_listed_in_one_error():
    tensors = hollow("hugging face", "mask2former r18")
    del tensors["model.transformer_module.decoder.layers.1.self_attn.k_proj.weight"]
    tensors["model.transformer_module.decoder.layers.2.fc1.weight"] = torch.zeros(81, 64)
    tensors["something.else"] = torch.zeros(1)
    found = described(tensors)
    with pytest.raises(CheckpointError) as raised:
        convert(tensors, found.rules, shapes_here("mask2former r18"), "model.pth")
    message = str(raised.value)
    assert "4 parameters" in message
    assert "something.else: no rule knows it" in message
    assert "layers.1.self_attn.q_proj.weight and " in message
    assert "not the 3 parts that make decoder.layers.1.self_attention.inputs.weight" in message
    assert "decoder.layers.1.self_attention.inputs.weight: missing from the file" in message
    assert "shape (81, 64), the model needs (80, 64)" in message


@pytest.mark.parametrize(
    ("library", "kind", "change", "message"),
    [
        ("authors", "mask2former r18", "backbone.stem.conv2.weight", "a ResNet with a deep stem .* is not supported yet"),
        ("mmdetection", "mask2former r18", "backbone.stem.0.weight", "a ResNet with a deep stem .* is not supported yet"),
        ("authors", "mask2former swin", "backbone.absolute_pos_embed", "absolute positions .* is not supported yet"),
    ],
)
def test_variants_that_are_not_supported_are_named(library, kind, change, message):
    with pytest.raises(CheckpointError, match=message):
        described(hollow(library, kind) | {change: torch.zeros(1)})


def test_a_missing_array_is_named():
    tensors = hollow("hugging face", "mask2former r18")
    del tensors["class_predictor.weight"]
    with pytest.raises(CheckpointError, match=r"looks like a Mask2Former .* but lacks what becomes decoder\.classes\.weight"):
        described(tensors)


def test_a_swin_with_absolute_positions_is_refused_by_name():
    tensors = hollow("hugging face", "mask2former swin")
    tensors["model.pixel_level_module.encoder.embeddings.position_embeddings"] = torch.zeros(1, 3136, 32)
    with pytest.raises(CheckpointError, match=r"a Swin with absolute positions .* is not supported yet"):
        described(tensors)


def test_another_number_of_levels_is_said():
    tensors = hollow("mmdetection", "mask2former r18")
    tensors["panoptic_head.pixel_decoder.level_encoding.weight"] = torch.zeros(4, 64)
    with pytest.raises(CheckpointError, match="has 4 levels; 3 are supported so far"):
        described(tensors)


def test_each_layout_detects_its_own_files_alone():
    layouts = {"authors": mask2former, "hugging face": hugging_face, "mmdetection": mmdetection_mask2former}
    for library in LIBRARIES:
        for other, layout in layouts.items():
            assert layout.detect(hollow(library, "maskformer r50")) == (library == other)
