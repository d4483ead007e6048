"""What a file of Mask2Former or MaskFormer is: every size of the network, read from its arrays once they carry our names."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from thingstuff.checkpoints.recognise import count, refuse_unsupported, resnet_config
from thingstuff.checkpoints.rules import Rule, rename
from thingstuff.checkpoints.swin import is_swin, swin_config
from thingstuff.errors import CheckpointError
from thingstuff.models.backbone import BackboneConfig
from thingstuff.models.contract import Task
from thingstuff.models.mask2former import LEVELS, Mask2Former, Mask2FormerConfig
from thingstuff.models.mask_classification import MaskClassifier
from thingstuff.models.maskformer import MaskFormer, MaskFormerConfig
from thingstuff.structures.categories import CITYSCAPES, COCO_PANOPTIC, COCO_THINGS, Categories
from thingstuff.structures.scenes import ADE20K, ADE20K_THINGS, MAPILLARY_VISTAS

HEADS = 8  # of every attention in the published networks; no array shows it

# Patterns of the libraries' names and what they give away.
UNSUPPORTED = (
    (r"backbone\.stem\.(\d|conv1_\d|conv[23])\..+", "a ResNet with a deep stem"),
    (r".+\.conv_offset(_mask)?\..+|.+\.conv2_offset(_mask)?\..+", "a backbone with deformable convolutions"),
    (r"backbone\.absolute_pos_embed|.+\.embeddings\.position_embeddings", "a Swin with absolute positions"),
    (r"backbone\.(dilated_)?(levels|downsample_layers)\..+", "a backbone other than ResNet and Swin"),
)

# Rules that the tables of all three libraries have

END = r"(weight|bias)"
ENCODER_HERE = r"pixel_decoder.layers.\1."  # where the pattern's first group is the layer's number
LAYER_HERE = r"decoder.layers.\1."


def attention(theirs: str, here: str) -> tuple[Rule, Rule]:
    """The arrays of torch's attention in a layer, by the name (a pattern) that a library gives it there, and by ours."""
    return Rule(theirs + r"\.in_proj_" + END, here + r".inputs.\2"), Rule(theirs + r"\.out_proj\." + END, here + r".output.\2")


def deformable_attention(theirs: str) -> tuple[Rule, ...]:
    """Those of deformable attention in a layer of the encoder, which has the names of Deformable DETR's code everywhere."""
    names = {"sampling_offsets": "offsets", "attention_weights": "weights", "value_proj": "values", "output_proj": "output"}
    return tuple(Rule(theirs + rf"\.{name}\." + END, ENCODER_HERE + rf"attention.{ours}.\2") for name, ours in names.items())


def feed_forward(widen: str, narrow: str, here: str) -> tuple[Rule, Rule]:
    """The two linear layers behind the attentions of a layer."""
    return Rule(widen + r"\." + END, here + r"feed_forward.widen.\2"), Rule(
        narrow + r"\." + END, here + r"feed_forward.narrow.\2"
    )


def normed(conv: str, norm: str, here: str) -> tuple[Rule, Rule]:
    """A convolution without bias, and the norm that follows it."""
    return Rule(conv + r"\.weight", here + ".conv.weight"), Rule(norm + r"\." + END, here + r".norm.\1")


# What the arrays tell


def described(
    foreign: Mapping[str, Tensor], rules: Sequence[Rule], name: str, library: str
) -> tuple[type[MaskClassifier], Mask2FormerConfig | MaskFormerConfig, Categories]:
    """The network, its config and its classes where a library's files hold arrays and nothing else.

    Raises:
        CheckpointError: a variant that is not supported, or an array that every such network has is missing.
    """
    refuse_unsupported(list(foreign), UNSUPPORTED, name, library)
    model, config = query_model(rename(foreign, rules).tensors, name, library)
    categories = usual_categories(config.classes, name)
    return model, with_task(config, categories), categories


def query_model(
    tensors: Mapping[str, Tensor], name: str, library: str, heads: int = HEADS
) -> tuple[type[MaskClassifier], Mask2FormerConfig | MaskFormerConfig]:
    """The network and the config that these arrays, under our names, fit; what no array shows keeps its default.

    Raises:
        CheckpointError: an array that every such network has is missing, or it is of a kind that is not supported.
    """
    if "decoder.queries" in tensors:
        return Mask2Former, _mask2former_config(tensors, name, library, heads)
    return MaskFormer, _maskformer_config(tensors, name, library, heads)


def _mask2former_config(tensors: Mapping[str, Tensor], name: str, library: str, heads: int) -> Mask2FormerConfig:
    shape = _shapes_in(tensors, f"{name}: looks like a Mask2Former ({library})")
    levels = shape("pixel_decoder.level_embeddings")[0]
    if levels != LEVELS:
        raise CheckpointError(f"{name}: its pixel decoder ({library}) has {levels} levels; {LEVELS} are supported so far")
    sizes = _sizes(tensors, shape, name, "attention.weights", queries="decoder.queries")
    if sizes["encoder_layers"]:
        samples = shape("pixel_decoder.layers.0.attention.weights.weight")[0]
        if samples % (heads * LEVELS):
            raise CheckpointError(
                f"{name}: its deformable attention ({library}) has {samples} samples, which {heads} heads on {LEVELS} levels "
                "can't share"
            )
        sizes["points"] = samples // (heads * LEVELS)
    if sizes["decoder_layers"]:
        sizes["decoder_width"] = shape("decoder.layers.0.feed_forward.widen.weight")[0]
    return Mask2FormerConfig(backbone_config(tensors, name), heads=heads, **sizes)


def _maskformer_config(tensors: Mapping[str, Tensor], name: str, library: str, heads: int) -> MaskFormerConfig:
    shape = _shapes_in(tensors, f"{name}: looks like a MaskFormer ({library})")
    sizes = _sizes(tensors, shape, name, "self_attention.output", queries="decoder.query_positions")
    decoder_width = shape("decoder.layers.0.feed_forward.widen.weight")[0]
    sizes["input_convs"] = sizes["input_convs"] and sizes["encoder_layers"] > 0  # else C5 has a width of its own
    return MaskFormerConfig(backbone_config(tensors, name), heads=heads, decoder_width=decoder_width, **sizes)


def _shapes_in(tensors: Mapping[str, Tensor], what: str) -> Callable[..., Sequence[int]]:
    """The shape of an array by our name; `what` the file looks like is said where it is missing or has another number of axes."""

    def shape(key: str, axes: int = 2) -> Sequence[int]:
        if key not in tensors or tensors[key].ndim != axes:
            raise CheckpointError(f"{what} but lacks what becomes {key} here")
        return tensors[key].shape

    return shape


def _sizes(
    tensors: Mapping[str, Tensor], shape: Callable[..., Sequence[int]], name: str, encoder_part: str, queries: str
) -> dict[str, Any]:
    """The sizes of what both networks have; every layer of the encoder has `encoder_part`, and `queries` is one row a query."""
    count_of_queries, query_channels = shape(queries)
    mask_channels, channels, *_ = shape("pixel_decoder.pixel_embeddings.weight", 4)
    encoder_layers = count(tensors, rf"pixel_decoder\.layers\.(\d+)\.{re.escape(encoder_part)}\.weight", name)
    width = {"encoder_width": shape("pixel_decoder.layers.0.feed_forward.widen.weight")[0]} if encoder_layers else {}
    return {
        "classes": shape("decoder.classes.weight")[0] - 1,
        "channels": channels,
        "mask_channels": mask_channels,
        "query_channels": query_channels,
        "input_convs": channels == query_channels
        and any(key.startswith(("decoder.input.", "decoder.inputs.")) for key in tensors),
        "queries": count_of_queries,
        "encoder_layers": encoder_layers,
        "decoder_layers": count(tensors, r"decoder\.layers\.(\d+)\.cross_attention\.output\.weight", name),
        **width,
    }


def backbone_config(tensors: Mapping[str, Tensor], name: str) -> BackboneConfig:
    """A Swin or a ResNet, whichever it is."""
    return swin_config(tensors, name) if is_swin(tensors) else resnet_config(tensors, name)


def usual_categories(classes: int, name: str) -> Categories:
    """What so many classes are in the published networks, else numbered things: a guess either way, which a warning says."""
    known = known_categories(classes)
    if known is not None:
        warn_of_guess(classes, name)
    else:
        warn_of_unknown_stuff(classes, name)
    return known or Categories.numbered(classes)


def warn_of_unknown_stuff(classes: int, name: str) -> None:
    """Say that nobody can know which of the classes are stuff."""
    warnings.warn(
        f"{name}: does not say which of its {classes} classes are stuff, so all are taken for things and each query gives a "
        "segment of its own in a panoptic result; set `model.categories` to say what they are. A semantic result "
        "(task='semantic') is the same either way",
        stacklevel=3,
    )


_PUBLISHED = {  # by their number, and what they are in words
    80: (COCO_THINGS, "COCO's things"),
    133: (COCO_PANOPTIC, "COCO's things and stuff"),
    19: (CITYSCAPES, "those of Cityscapes"),
    8: (Categories(tuple(category for category in CITYSCAPES if category.is_thing)), "the things of Cityscapes"),
    150: (ADE20K, "those of ADE20K"),
    100: (ADE20K_THINGS, "the things of ADE20K"),
    65: (MAPILLARY_VISTAS, "those of Mapillary Vistas"),
}


def known_categories(classes: int) -> Categories | None:
    """Those of the published networks with so many."""
    return _PUBLISHED.get(classes, (None, ""))[0]


def warn_of_guess(classes: int, name: str) -> None:
    """Say that these categories follow from nothing but how many there are; `known_categories` knows the number."""
    warnings.warn(
        f"{name}: does not say what its {classes} classes are; by their number they are taken for {_PUBLISHED[classes][1]}. If "
        "they are others, names and what is stuff are wrong: set `model.categories` to say what they are",
        stacklevel=3,
    )


def with_task(config: Any, categories: Categories) -> Any:
    """The config asking for instances where all classes are known to be things. Files do not say what their network is for.

    100 classes without names are no reason: they may be anybody's as well as ADE20K's things.
    """
    guessed = categories in (Categories.numbered(len(categories)), ADE20K_THINGS)
    task = Task.INSTANCE if all(category.is_thing for category in categories) and not guessed else Task.PANOPTIC
    return replace(config, thresholds=replace(config.thresholds, task=task))
