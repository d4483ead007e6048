"""The arrays of a Hugging Face Mask2Former or MaskFormer under the names of their authors, from whose files theirs were made.

Both sides as the conversion scripts of transformers pair them, without our names in between.
"""

import re
from collections.abc import Mapping

import numpy as np

_PIXELS, _QUERIES = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
_SWIN = [
    (r"pixel_level_module\.encoder\.(model\.)?(?=embeddings|encoder)", "backbone."),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.norm", "patch_embed.norm"),
    (r"backbone\.encoder\.layers", "backbone.layers"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.self\.relative", "attn.relative"),
    (r"attention\.self\.(query|key|value)\.(\w+)", r"attn.qkv.\2"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"pixel_level_module\.encoder\.hidden_states_norms\.stage(\d)", lambda match: f"backbone.norm{int(match[1]) - 1}"),
    (r"pixel_level_module\.encoder\.hidden_states_norms\.(\d)", r"backbone.norm\1"),
]
_SHARED = [
    *_SWIN,
    (r"pixel_level_module\.decoder\.mask_projection", _PIXELS + "mask_features"),
    (r"self_attn\.[qkv]_proj\.(weight|bias)", r"self_attn.in_proj_\1"),
    (r"transformer_module\.queries_embedder", _QUERIES + "query_embed"),
    (r"class_predictor", _QUERIES + "class_embed"),
]
MASK2FORMER = [
    *_SHARED,
    (r"pixel_level_module\.decoder\.(adapter|layer)_1\.0", _PIXELS + r"\1_1"),
    (r"pixel_level_module\.decoder\.(adapter|layer)_1\.1", _PIXELS + r"\1_1.norm"),
    (r"pixel_level_module\.decoder\.input_projections", _PIXELS + "input_proj"),
    (r"pixel_level_module\.decoder\.level_embed", _PIXELS + "transformer.level_embed"),
    (r"pixel_level_module\.decoder\.encoder\.(layers\.\d+)\.fc", _PIXELS + r"transformer.encoder.\1.linear"),
    (r"pixel_level_module\.decoder\.encoder\.(layers\.\d+)\.self_attn_layer_norm", _PIXELS + r"transformer.encoder.\1.norm1"),
    (r"pixel_level_module\.decoder\.encoder\.(layers\.\d+)\.final_layer_norm", _PIXELS + r"transformer.encoder.\1.norm2"),
    (r"pixel_level_module\.decoder\.encoder\.(layers\.\d+)\.self_attn", _PIXELS + r"transformer.encoder.\1.self_attn"),
    (r"transformer_module\.decoder\.layers\.(\d+)\.self_attn_layer_norm", r"P.transformer_self_attention_layers.\1.norm"),
    (r"transformer_module\.decoder\.layers\.(\d+)\.self_attn", r"P.transformer_self_attention_layers.\1.self_attn"),
    (r"transformer_module\.decoder\.layers\.(\d+)\.cross_attn_layer_norm", r"P.transformer_cross_attention_layers.\1.norm"),
    (r"transformer_module\.decoder\.layers\.(\d+)\.cross_attn", r"P.transformer_cross_attention_layers.\1.multihead_attn"),
    (r"transformer_module\.decoder\.layers\.(\d+)\.fc", r"P.transformer_ffn_layers.\1.linear"),
    (r"transformer_module\.decoder\.layers\.(\d+)\.final_layer_norm", r"P.transformer_ffn_layers.\1.norm"),
    (r"transformer_module\.decoder\.layernorm", "P.decoder_norm"),
    (r"transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0", r"P.mask_embed.layers.\1"),
    (r"transformer_module\.queries_features", "P.query_feat"),
    (r"transformer_module\.level_embed", "P.level_embed"),
    (r"^P\.", _QUERIES),
]
MASKFORMER = [
    *_SHARED,
    (r"pixel_level_module\.decoder\.fpn\.stem\.0", _PIXELS + "layer_4"),
    (r"pixel_level_module\.decoder\.fpn\.stem\.1", _PIXELS + "layer_4.norm"),
    *(
        (rf"pixel_level_module\.decoder\.fpn\.layers\.{number}\.{part}\.{index}", f"{_PIXELS}{name}_{3 - number}{norm}")
        for number in range(3)
        for part, name in (("proj", "adapter"), ("block", "layer"))
        for index, norm in ((0, ""), (1, ".norm"))
    ),
    (r"transformer_module\.decoder\.layernorm", "P.transformer.decoder.norm"),
    (r"transformer_module\.decoder\.layers", "P.transformer.decoder.layers"),
    (r"encoder_attn\.[qkv]_proj\.(weight|bias)", r"multihead_attn.in_proj_\1"),
    (r"encoder_attn\.out_proj", "multihead_attn.out_proj"),
    (r"self_attn_layer_norm", "norm1"),
    (r"encoder_attn_layer_norm", "norm2"),
    (r"final_layer_norm", "norm3"),
    (r"(P.*)\.fc", r"\1.linear"),
    (r"transformer_module\.input_projection", "P.input_proj"),
    (r"mask_embedder\.(\d)\.0", r"P.mask_embed.layers.\1"),
    (r"^P\.", _QUERIES),
]
_PARTS = ("query", "q_proj", "key", "k_proj", "value", "v_proj")  # in the order in which the authors' arrays hold them


def as_authors(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A whole file's arrays; queries, keys and values, apart at Hugging Face, become one."""
    table = MASK2FORMER if any("queries_features" in name for name in arrays) else MASKFORMER
    parts: dict[str, dict[int, np.ndarray]] = {}
    for name, array in arrays.items():
        if name.startswith("model.pixel_level_module.encoder.model.layernorm."):
            continue  # that of classification, which the authors do not have beside the levels' norms
        new = name.removeprefix("model.")
        for pattern, replacement in table:
            new = re.sub(pattern, replacement, new)
        part = next((number for number, word in enumerate(_PARTS) if name.split(".")[-2] == word), 0)
        parts.setdefault(new, {})[part] = array
    return {
        name: np.concatenate([array for _, array in sorted(found.items())]) if len(found) > 1 else next(iter(found.values()))
        for name, found in parts.items()
    }
