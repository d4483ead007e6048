"""What all of MMDetection's files share, versions 2 and 3: the config text in `meta`, the backbone's names, the images expected.

The keys do not tell pytorch-style networks (RGB, stride in the 3x3) from caffe-style ones (BGR, stride in the first 1x1): the
config text in the file's `meta` does, and where somebody took that away, the norms of the original caffe weights still show it.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from thingstuff.checkpoints.python_config import Settings, parse_settings
from thingstuff.checkpoints.recognise import backwards, categories_for, is_group_normed
from thingstuff.checkpoints.rules import Rule, bgr_to_rgb
from thingstuff.errors import CheckpointError
from thingstuff.models.backbone import BackboneConfig
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Resize

LIBRARY = "MMDetection"
UNLIMITED = 2**31 - 1

# A setting of `model` in a config text, and what it may say: anything else changes the result and is not supported yet.
Supported = Sequence[tuple[str, tuple[Any, ...]]]

BACKBONE_SETTINGS: Supported = (
    ("backbone.avg_down", (False,)),
    ("backbone.strides", ([1, 2, 2, 2], [4, 2, 2, 2])),  # of a ResNet, and of a Swin
    ("backbone.qk_scale", ()),
    ("backbone.dilations", ([1, 1, 1, 1],)),
    ("backbone.norm_cfg.eps", (1e-5,)),
    ("backbone.norm_cfg.num_groups", (32,)),
    ("neck.act_cfg", ()),
    ("neck.norm_cfg.num_groups", (32,)),
    ("backbone.dcn.type", ("DCN", "DCNv2")),
)
OFFSETS = r"(?:\.conv)?_offset(?:_mask)?"  # after a deformable convolution's name; each version of mmcv has its own

BACKBONE = (  # a ResNet, less its first convolution; norms are called bn or gn, after their kind
    Rule(r"backbone\.[bg]n1\.(.+)", r"backbone.body.bn1.\1"),
    Rule(r"backbone\.layer([1-4])\.(\d+)\.conv([1-3])\.weight", r"backbone.body.layer\1.\2.conv\3.weight"),
    Rule(r"backbone\.layer([1-4])\.(\d+)\.conv2" + OFFSETS + r"\.(weight|bias)", r"backbone.body.layer\1.\2.conv2.offset.\3"),
    Rule(r"backbone\.layer([1-4])\.(\d+)\.[bg]n([1-3])\.(.+)", r"backbone.body.layer\1.\2.bn\3.\4"),
    Rule(r"backbone\.layer([1-4])\.(\d+)\.downsample\.([01])\.(.+)", r"backbone.body.layer\1.\2.downsample.\3.\4"),
)


def stem(is_bgr: bool) -> tuple[Rule, Rule]:
    """The rules of the first convolution, of a ResNet and of a Swin."""
    order = bgr_to_rgb if is_bgr else None
    return (
        Rule(r"backbone\.conv1\.weight", "backbone.body.conv1.weight", order),
        Rule(r"backbone\.patch_embed\.projection\.weight", "backbone.body.patch_embed.proj.weight", order),
    )


def settings_in(meta: Mapping[str, Any], name: str) -> Settings:
    """The config text in the file, read as data and never run; empty where there is none."""
    text = _details(meta).get("cfg", _details(meta).get("config"))
    if not isinstance(text, str):
        return Settings({})
    settings = parse_settings(text)
    if settings is None:
        warnings.warn(f"{name}: the config text in it can't be read; taken for a network with standard settings", stacklevel=2)
        return Settings({})
    return settings


def pixel_statistics(
    settings: Settings,
    tensors: Mapping[str, Tensor],
    backbone: BackboneConfig,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> tuple[tuple[float, float, float], tuple[float, float, float], bool]:
    """Mean and std in RGB, and whether the network itself reads BGR; the defaults are those of pytorch-style networks."""
    is_bgr = False
    if has_caffe_norms(tensors) or is_group_normed(backbone):
        mean, std, is_bgr = backwards(IMAGENET_MEAN), (1.0, 1.0, 1.0), True
    version_3 = settings.first(("model", "data_preprocessor"), ("data_preprocessor",))
    version_2 = next((step for step in steps_of_tests(settings).steps() if step.get("type") == "Normalize"), Settings({}))
    for stated in (version_3, version_2, settings.first(("img_norm_cfg",))):
        if stated.numbers("mean", 3) and stated.numbers("std", 3):
            (a, b, c), (d, e, f) = stated.numbers("mean", 3), stated.numbers("std", 3)
            mean, std = (a, b, c), (d, e, f)
            # where nothing is said, version 3 leaves the order in which files are read there, version 2 changes it
            is_bgr = not (stated.get("bgr_to_rgb") or stated.get("rgb_to_bgr") or stated.get("to_rgb", stated is not version_3))
            break
    return (backwards(mean), backwards(std), True) if is_bgr else (mean, std, False)


def images_of_tests(
    settings: Settings,
    name: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    sides: tuple[int, int] = (800, 1333),
    multiple: int = 32,
) -> Preprocessing:
    """How images become the network's input; short and long side and what they are padded to multiples of are the defaults.

    Raises:
        CheckpointError: it was tested on images stretched to a shape that is no square.
    """
    steps = list(steps_of_tests(settings).steps())
    stated = (step.numbers(key, 2) for step in steps for key in ("img_scale", "scale"))
    width, height = next((pair for pair in stated if pair), sides)
    stretched = any(step.get("type") == "Resize" and step.get("keep_ratio") is False for step in steps)
    if stretched and width != height:
        raise CheckpointError(
            f"{name}: was tested on images stretched to {int(width)} x {int(height)} pixels ({LIBRARY}), whatever their shape; "
            "a square is all that is supported so far"
        )
    return Preprocessing(
        mean,
        std,
        short_side=int(min(width, height)),
        long_side=int(max(width, height)),
        pad_multiple=pad_multiple(settings, multiple),
        resize=Resize.OPENCV,
        square=stretched,
    )


def pad_multiple(settings: Settings, default: int) -> int:
    """What images' sides are padded to multiples of: version 3 states it with the pixels' statistics, version 2 as a step."""
    stated = settings.first(("model", "data_preprocessor"), ("data_preprocessor",)).whole("pad_size_divisor", 0)
    steps = (step.whole("size_divisor", 0) for step in steps_of_tests(settings).steps() if step.get("type") == "Pad")
    return stated or next(steps, 0) or default


def steps_of_tests(settings: Settings) -> Settings:
    """The steps that the test images go through."""
    return settings.first(("test_pipeline",), ("data", "test", "pipeline"), ("test_dataloader", "dataset", "pipeline"))


def limit(stated: Settings, key: str, default: int) -> int:
    """How many are kept at most; any number below 1 means all of them."""
    value = stated.get(key)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return UNLIMITED if is_number and value < 1 else stated.whole(key, default)


def stride_in_1x1(settings: Settings, tensors: Mapping[str, Tensor], backbone: BackboneConfig) -> bool:
    """Whether the backbone is caffe-style."""
    if backbone.name in ("resnet18", "resnet34"):
        return False  # basic blocks have no 1x1 to move the stride to
    style = settings.first(("model", "backbone")).get("style")
    return style == "caffe" if isinstance(style, str) else has_caffe_norms(tensors)


def has_caffe_norms(tensors: Mapping[str, Tensor]) -> bool:
    """The original caffe weights have their statistics folded into scale and shift: means are 0 and variances 1 everywhere, with
    scales that were trained. Networks of any other origin have statistics; fresh ones have scales of 1."""
    norms = [
        key.removesuffix(".running_mean") for key in tensors if key.startswith("backbone.") and key.endswith(".running_mean")
    ]
    if not norms or any(key + ".running_var" not in tensors or key + ".weight" not in tensors for key in norms):
        return False
    folded = all(
        bool((tensors[key + ".running_mean"].abs() < 1e-4).all() and ((tensors[key + ".running_var"] - 1).abs() < 1e-4).all())
        for key in norms
    )
    return folded and any(bool((tensors[key + ".weight"] != 1).any()) for key in norms)


def refuse_settings(model: Settings, table: Supported, name: str) -> None:
    """Raise a CheckpointError for a stated setting that changes what the network gives and has no counterpart here."""
    if "ConvWS" in str(model.value):
        raise CheckpointError(f"{name}: a network with weight standardisation ({LIBRARY}) is not supported yet")
    for path, supported in table:
        *place, setting = path.split(".")
        value = model.first(tuple(place)).get(setting) if place else model.get(setting)
        known = value.rpartition(".")[2] if isinstance(value, str) else value  # version 3 writes mmdet.AnchorGenerator
        if value is not None and known not in supported:
            raise CheckpointError(f"{name}: model.{path} is {value!r} ({LIBRARY}), which is not supported yet")


def categories_in(meta: Mapping[str, Any], things: int, stuff: int = 0) -> Categories:
    """The names in the file where there are as many as classes, things first; COCO's are its categories with their own ids."""
    names = names_in(meta, things + stuff)
    default = categories_for(things, stuff)
    if names is None or names == default.names:
        return default
    return Categories(tuple(Category(index + 1, word, is_thing=index < things) for index, word in enumerate(names)))


def names_in(meta: Mapping[str, Any], classes: int) -> tuple[str, ...] | None:
    """The names of the classes, where the file has as many."""
    dataset = _details(meta).get("dataset_meta")
    names = _details(meta).get("CLASSES") or (
        dataset.get("classes", dataset.get("CLASSES")) if isinstance(dataset, Mapping) else None
    )
    if not isinstance(names, list | tuple) or len(names) != classes or not all(isinstance(word, str) for word in names):
        return None
    return tuple(str(word) for word in names)


def _details(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    details = meta.get("meta")
    return details if isinstance(details, Mapping) else {}
