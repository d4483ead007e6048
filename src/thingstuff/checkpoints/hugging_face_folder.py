"""What transformers' `save_pretrained` writes: a folder with the arrays in one file or in several, and settings beside them.

    model.safetensors, or model-00001-of-00002.safetensors ... with model.safetensors.index.json (.bin in older versions)
    config.json                 what no array tells: heads, activations, where a ResNet strides, what the classes are called
    preprocessor_config.json    the images that the network was trained with

The file of weights alone loads, too, with the numbers of the published networks.
"""

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from thingstuff.checkpoints.files import ForeignFile, read_weights
from thingstuff.checkpoints.python_config import Settings
from thingstuff.errors import CheckpointError, ConfigError
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.preprocessing import Preprocessing

CONFIG, IMAGES = "config.json", "preprocessor_config.json"
_INDEX = ".index.json"
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.safetensors|\.bin)")
_WEIGHTS = ("model.safetensors", "model.safetensors" + _INDEX, "pytorch_model.bin", "pytorch_model.bin" + _INDEX)

MODEL_TYPES = ("mask2former", "maskformer")
_BILINEAR = 2  # Pillow's number

# The values that have a counterpart here; a setting that is not stated has transformers' default, which is among them.
_SUPPORTED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("pre_norm", (False,)),
    ("activation_function", ("relu",)),
    ("common_stride", (4,)),
    ("feature_strides", ([4, 8, 16, 32],)),
    ("decoder_config.activation_function", ("relu",)),
    ("backbone_config.hidden_act", ("gelu", "relu")),  # Swin's and ResNet's own
    ("backbone_config.layer_norm_eps", (1e-5,)),
    ("backbone_config.downsample_in_first_stage", (False,)),
)


# The arrays


def read_arrays(path: Path) -> ForeignFile:
    """All arrays of a file of weights, of a folder that holds one, or of the files that an index lists.

    Raises:
        CheckpointError: no weights in the folder, a broken index, a file that holds other arrays than the index says, one file of
            several alone, or what `read_weights` says of each.
    """
    if path.is_dir():
        found = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
        if found is None:
            raise CheckpointError(f"{path}: is a folder without {' or '.join(_WEIGHTS[::2])}; name the weights file in it")
        path = found
    part = _PART.fullmatch(path.name)
    if part and int(part[2]) > 1:
        index = f"{part[1]}{part[3]}{_INDEX}"
        raise CheckpointError(f"{path}: is one of the {int(part[2])} files of a network; load their folder, or {index} beside it")
    if not path.name.endswith(_INDEX):
        return read_weights(path)
    names = _read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(part, str) for part in names.values()):
        raise CheckpointError(f"{path}: has no weight_map that tells which file holds which array")
    tensors: dict[str, Tensor] = {}
    for part in sorted(set(names.values())):
        if Path(part).name != part:
            raise CheckpointError(f"{path}: lists {part!r}, which is no file beside it")
        # a file where every name begins with "model." has lost it
        found_here = {key.removeprefix("model."): tensor for key, tensor in read_weights(path.parent / part).tensors.items()}
        expected = {key.removeprefix("model.") for key, file in names.items() if file == part}
        if found_here.keys() != expected:
            odd = ", ".join(sorted(found_here.keys() ^ expected)[:3])
            raise CheckpointError(f"{path}: {part} holds other arrays than this index says ({odd}); download both again")
        tensors |= found_here
    return ForeignFile(path, tensors)


def settings_beside(path: Path) -> dict[str, Settings]:
    """The two files of settings in the folder of these weights, by name, as far as they are there and of such a network.

    Raises:
        CheckpointError: one of them is no JSON object.
    """
    found = {name: Settings(_read_json(path.parent / name)) for name in (CONFIG, IMAGES) if (path.parent / name).is_file()}
    config, images = found.get(CONFIG), found.get(IMAGES)
    if config is not None and config.get("model_type") not in MODEL_TYPES:
        return {}  # of another network in the same folder, as its images are
    if images is not None:
        kind = images.get("image_processor_type", images.get("feature_extractor_type", "Mask"))
        if not str(kind).startswith("Mask"):
            del found[IMAGES]
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: can't be read as JSON ({type(error).__name__}: {error}); download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not an object of settings")
    return content


# config.json


def refuse_settings(config: Settings, name: str) -> None:
    """Raise a CheckpointError for a setting that changes what the network gives and has no counterpart here."""
    for place, supported in _SUPPORTED:
        *outer, key = place.split(".")
        value = (config.first(tuple(outer)) if outer else config).get(key)
        if value is not None and value not in supported:
            raise CheckpointError(f"{name}: {CONFIG} beside it sets {place} to {value!r}, which is not supported yet")


def demand_own_config(config: Settings, is_mask2former: bool, classes: int, queries: int, name: str) -> None:
    """Refuse a config.json of another such network than the one in the file."""
    labels = config.get("id2label")
    part = config if is_mask2former else config.first(("decoder_config",))
    stated = {
        "model_type": (config.get("model_type"), "mask2former" if is_mask2former else "maskformer"),
        "num_queries": (part.get("num_queries"), queries),
        "id2label": (len(labels) if isinstance(labels, dict) else None, classes),
    }
    for setting, (value, actual) in stated.items():
        if value is not None and value != actual:
            raise CheckpointError(
                f"{name}: {CONFIG} beside it is of another network: its {setting} says {value}, the arrays {actual}; "
                "give the file a folder of its own"
            )


def heads_in(config: Settings, default: int) -> int:
    """Of every attention that is in use: those of MaskFormer are in its decoder alone."""
    if config.get("model_type") == "maskformer":
        return config.first(("decoder_config",)).whole("decoder_attention_heads", default)
    return config.whole("num_attention_heads", default)


def names_in(config: Settings, classes: int) -> tuple[str, ...] | None:
    """What the classes are called; None where nobody has named them."""
    labels = config.get("id2label")
    if not isinstance(labels, dict):
        return None
    names = tuple(str(labels.get(str(number), "")) for number in range(classes))
    made_up = tuple(f"LABEL_{number}" for number in range(classes))
    return names if all(names) and names != made_up else None


def are_names_of(names: tuple[str, ...], known: Categories) -> bool:
    """Whether these are the names of published categories, of which spellings differ: "road" or "road, route"."""
    alike = sum(_first_word(word) == _first_word(category.name) for word, category in zip(names, known, strict=True))
    return 2 * alike >= len(names)


def _first_word(name: str) -> str:
    return name.partition(",")[0].strip().lower()


def named(names: tuple[str, ...]) -> Categories:
    """Categories with these names, all things: which are stuff is not in the file."""
    return Categories(tuple(Category(number + 1, word) for number, word in enumerate(names)))


# preprocessor_config.json


def preprocessing_in(images: Settings, name: str) -> Preprocessing:
    """How images become the network's input.

    Raises:
        CheckpointError: a way that has no counterpart here.
    """
    where = f"{name}: {IMAGES} beside it"
    resample = images.get("resample", _BILINEAR)
    if images.get("do_resize") is not False and resample != _BILINEAR:
        raise CheckpointError(f"{where} resizes with Pillow's filter {resample!r}; bilinear ({_BILINEAR}) is supported")
    factor = 1.0 if images.get("do_rescale") is False else images.real("rescale_factor", 1 / 255)
    mean, std = images.numbers("image_mean", 3) or (0.485, 0.456, 0.406), images.numbers("image_std", 3) or (0.229, 0.224, 0.225)
    if images.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if factor <= 0:
        raise CheckpointError(f"{where} has a rescale_factor of {factor}")
    # (pixel * factor - mean) / std, in our order
    pixels = {
        "mean": tuple(round(value / factor, 6) for value in mean),
        "std": tuple(round(value / factor, 6) for value in std),
    }
    try:
        return Preprocessing(**pixels, **_size(images, where))
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _size(images: Settings, where: str) -> dict[str, Any]:
    if images.get("do_resize") is False:
        return {"short_side": 0}
    size = images.get("size")
    stated = images.first(("size",))
    short, long = stated.whole("shortest_edge", 800), stated.whole("longest_edge", images.whole("max_size", 1333))
    if isinstance(size, int):  # as old versions have it
        short = size
    height, width = stated.get("height"), stated.get("width")
    if height is not None or width is not None:
        if height != width or not isinstance(height, int):
            raise CheckpointError(f"{where} resizes to {height} x {width} pixels; squares and a short side are supported")
        return {"short_side": height, "square": True}
    multiple = images.whole("size_divisor", images.whole("size_divisibility", 32))
    return {"short_side": short, "long_side": long, "stretch": True, "pad_multiple": multiple}
