"""Swin backbones: their names in other libraries, the order of what patch merging joins, and their sizes.

timm puts a stage's patch merging before its blocks, everybody else after those of the stage before. MMDetection joins the four
patches with `unfold`, channel by channel; the authors, timm and Hugging Face patch by patch.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from thingstuff.checkpoints.recognise import count
from thingstuff.checkpoints.rules import DROP, Rule, recounted
from thingstuff.errors import CheckpointError
from thingstuff.models.backbone import BackboneConfig

_BODY = "backbone.body."


_MERGING = recounted(_BODY + "layers_{}.downsample.{}.{}", 1)


def _by_patch(values: Tensor) -> Tensor:
    """The last axis from channel (row column) to (column row) channel."""
    if values.ndim == 0 or values.shape[-1] % 4:
        return values  # which fits no Swin, and is reported as that
    return values.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)


AUTHORS = (  # Liu et al.'s code for dense prediction, as detectron2's users have it
    Rule(r"backbone\.patch_embed\.(proj|norm)\.(weight|bias)", _BODY + r"patch_embed.\1.\2"),
    Rule(
        r"backbone\.layers\.(\d)\.blocks\.(\d+)\.(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(weight|bias)",
        _BODY + r"layers_\1.blocks.\2.\3.\4",
    ),
    Rule(
        r"backbone\.layers\.(\d)\.blocks\.(\d+)\.attn\.relative_position_bias_table",
        _BODY + r"layers_\1.blocks.\2.attn.relative_position_bias_table",
    ),
    Rule(r"backbone\.layers\.\d\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)", DROP),
    Rule(r"backbone\.layers\.(\d)\.downsample\.(norm|reduction)\.(.+)", _MERGING),
    Rule(r"backbone\.norm([0-3])\.(weight|bias)", r"backbone.level_norms.\1.\2"),
)

_BLOCK = r"backbone\.stages\.(\d)\.blocks\.(\d+)\."
_BLOCK_HERE = _BODY + r"layers_\1.blocks.\2."
MMDETECTION = (  # less the kernel of the first convolution
    Rule(r"backbone\.patch_embed\.projection\.bias", _BODY + "patch_embed.proj.bias"),
    Rule(r"backbone\.patch_embed\.norm\.(weight|bias)", _BODY + r"patch_embed.norm.\1"),
    Rule(_BLOCK + r"(norm[12])\.(weight|bias)", _BLOCK_HERE + r"\3.\4"),
    Rule(_BLOCK + r"attn\.w_msa\.(qkv|proj)\.(weight|bias)", _BLOCK_HERE + r"attn.\3.\4"),
    Rule(_BLOCK + r"attn\.w_msa\.relative_position_bias_table", _BLOCK_HERE + "attn.relative_position_bias_table"),
    Rule(_BLOCK + r"attn\.w_msa\.relative_position_index", DROP),
    Rule(_BLOCK + r"ffn\.layers\.0\.0\.(weight|bias)", _BLOCK_HERE + r"mlp.fc1.\3"),
    Rule(_BLOCK + r"ffn\.layers\.1\.(weight|bias)", _BLOCK_HERE + r"mlp.fc2.\3"),
    Rule(
        r"backbone\.stages\.(\d)\.downsample\.(norm|reduction)\.(.+)",
        _MERGING,
        _by_patch,
    ),
    Rule(r"backbone\.norm([0-3])\.(weight|bias)", r"backbone.level_norms.\1.\2"),
)


def hugging_face(prefix: str) -> tuple[Rule, ...]:
    """The rules below a prefix (a pattern); the norms of the levels have names that differ between models.

    Where two names stand for one array, the second is that of transformers 5.12 and later in memory, as `torch.save` writes it.
    """
    block = prefix + r"encoder\.layers\.(\d)\.blocks\.(\d+)\."
    return (
        Rule(prefix + r"embeddings\.patch_embeddings\.projection\.(weight|bias)", _BODY + r"patch_embed.proj.\1"),
        Rule(prefix + r"embeddings\.norm\.(weight|bias)", _BODY + r"patch_embed.norm.\1"),
        Rule(block + r"layernorm_before\.(weight|bias)", _BLOCK_HERE + r"norm1.\3"),
        Rule(block + r"layernorm_after\.(weight|bias)", _BLOCK_HERE + r"norm2.\3"),
        *(
            Rule(block + rf"attention\.(?:{name})\.(weight|bias)", _BLOCK_HERE + r"attn.qkv.\3", part=(number, 3))
            for number, name in enumerate((r"self\.query|q_proj", r"self\.key|k_proj", r"self\.value|v_proj"))
        ),
        Rule(block + r"attention\.(?:output\.dense|o_proj)\.(weight|bias)", _BLOCK_HERE + r"attn.proj.\3"),
        Rule(
            block + r"attention\.(?:self|relative_position_bias)\.relative_position_bias_table",
            _BLOCK_HERE + "attn.relative_position_bias_table",
        ),
        Rule(block + r"attention\.(?:self|relative_position_bias)\.relative_position_index", DROP),
        Rule(block + r"(?:intermediate\.dense|mlp\.fc1)\.(weight|bias)", _BLOCK_HERE + r"mlp.fc1.\3"),
        Rule(block + r"(?:output\.dense|mlp\.fc2)\.(weight|bias)", _BLOCK_HERE + r"mlp.fc2.\3"),
        Rule(
            prefix + r"encoder\.layers\.(\d)\.downsample\.(norm|reduction)\.(.+)",
            _MERGING,
        ),
        Rule(prefix + r"layernorm\.(weight|bias)", DROP),  # of the last level, for classification
    )


# timm's names of the sizes that were published: (width of the first stage, depths, heads, side of the windows)
_SWINS: dict[tuple[int, tuple[int, ...], tuple[int, ...], int], str] = {
    (96, (2, 2, 6, 2), (3, 6, 12, 24), 7): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), (3, 6, 12, 24), 7): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), (4, 8, 16, 32), 7): "swin_base_patch4_window7_224",
    (128, (2, 2, 18, 2), (4, 8, 16, 32), 12): "swin_base_patch4_window12_384",
    (192, (2, 2, 18, 2), (6, 12, 24, 48), 7): "swin_large_patch4_window7_224",
    (192, (2, 2, 18, 2), (6, 12, 24, 48), 12): "swin_large_patch4_window12_384",
}


def is_swin(tensors: Mapping[str, Tensor]) -> bool:
    """Whether arrays under our names have a Swin among them."""
    return any(key.startswith(_BODY + "layers_0.blocks.") for key in tensors)


def swin_config(tensors: Mapping[str, Tensor], name: str) -> BackboneConfig:
    """A Swin of any size, with its authors' windows and a norm on every level (Liu et al., 2021, arXiv:2103.14030, section 3.3).

    Raises:
        CheckpointError: an array that every Swin has is missing, or its sizes are none that a Swin can have.
    """

    def shape(key: str, axes: int) -> Sequence[int]:
        if key not in tensors or tensors[key].ndim != axes:
            raise CheckpointError(f"{name}: its backbone looks like a Swin but lacks what becomes {key} here")
        return tensors[key].shape

    patches = shape(_BODY + "patch_embed.proj.weight", 4)
    tables = [shape(f"{_BODY}layers_{stage}.blocks.0.attn.relative_position_bias_table", 2) for stage in range(4)]
    depths = tuple(count(tensors, rf"backbone\.body\.layers_{stage}\.blocks\.(\d+)\.norm1\.weight", name) for stage in range(4))
    heads = tuple(table[1] for table in tables)
    window = (math.isqrt(tables[0][0]) + 1) // 2
    if tuple(patches[2:]) != (4, 4) or any(table[0] != (2 * window - 1) ** 2 for table in tables):
        raise CheckpointError(
            f"{name}: its Swin has patches of {tuple(patches[2:])} pixels and {[table[0] for table in tables]} positions in its "
            "tables; patches of 4 x 4 and windows of one size are supported"
        )
    width = patches[0]
    known = _SWINS.get((width, depths, heads, window))
    options: tuple[tuple[str, object], ...] = ()
    if known is None:
        options = (("embed_dim", width), ("depths", depths), ("num_heads", heads), ("window_size", window))
    widened, last = shape(_BODY + "layers_3.blocks.0.mlp.fc1.weight", 2)  # where rounding down to whole channels lost least
    if widened != 4 * last:
        ratio = widened / last
        options += (("mlp_ratio", ratio if int(last * ratio) == widened else math.nextafter(ratio, math.inf)),)
    if not any(key.endswith(".attn.qkv.bias") for key in tensors):
        options += (("qkv_bias", False),)
    return BackboneConfig(
        known or "swin_tiny_patch4_window7_224",
        options,
        original_windows=True,
        level_norms="backbone.level_norms.0.weight" in tensors,
    )
