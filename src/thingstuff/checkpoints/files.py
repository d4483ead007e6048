"""Weights files: our own format (safetensors that carry their config), and safe reading of everybody else's.

Own format: one safetensors file. Its metadata holds, as JSON, the architecture's name, its config, the categories and the image
preprocessing, so the file alone is enough to load. Nothing that is read here can run code: see `pickles.py`.
"""

import dataclasses
import json
import os
import struct
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from thingstuff.checkpoints.pickles import read_numpy_pickle, refuse_unknown, survey_torch_archive
from thingstuff.checkpoints.plain import from_plain, to_plain
from thingstuff.checkpoints.rules import demand_fit
from thingstuff.errors import CheckpointError, ConfigError, ThingstuffError
from thingstuff.models.contract import Model
from thingstuff.models.mask2former import Mask2Former, Mask2FormerConfig
from thingstuff.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from thingstuff.models.maskformer import MaskFormer, MaskFormerConfig
from thingstuff.models.panoptic_fpn import PanopticFPN, PanopticFPNConfig
from thingstuff.models.solo import SOLO, DecoupledSOLO, DecoupledSOLOConfig, SOLOConfig
from thingstuff.models.solov2 import SOLOv2, SOLOv2Config
from thingstuff.models.yolact import Yolact, YolactConfig
from thingstuff.structures.categories import Categories
from thingstuff.structures.preprocessing import Preprocessing

FORMAT = "thingstuff"
VERSION = "1"

# What files of every version hold, less what has no default; it says what a network sees and gives, which no weight shows.
CONFIG_HELD = ("backbone", "classes", "thresholds")
PREPROCESSING_HELD = ("mean", "std", "short_side", "long_side", "pad_multiple", "resize")
_MARKS = ("architecture", "config", "categories", "preprocessing")  # in the metadata, besides "format"

# The names in this table are written into files and never change. A config has a `backbone`; counts of layers in it end in
# `_convs`, `_fcs` or `_layers`.
ARCHITECTURES: dict[str, tuple[type[Model], type]] = {
    "mask-rcnn": (MaskRCNN, MaskRCNNConfig),
    "maskformer": (MaskFormer, MaskFormerConfig),
    "mask2former": (Mask2Former, Mask2FormerConfig),
    "panoptic-fpn": (PanopticFPN, PanopticFPNConfig),
    "solo": (SOLO, SOLOConfig),
    "decoupled-solo": (DecoupledSOLO, DecoupledSOLOConfig),
    "solov2": (SOLOv2, SOLOv2Config),
    "yolact": (Yolact, YolactConfig),
}


@dataclass(frozen=True)
class Header:
    """What an own file says about its weights."""

    architecture: str
    config: Any
    categories: Categories
    preprocessing: Preprocessing
    notes: dict[str, str]


def save(
    path: str | Path,
    model: Model,
    categories: Categories,
    preprocessing: Preprocessing,
    half: bool = False,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a model as one safetensors file, whole or not at all.

    Args:
        path: the file; an existing one is replaced.
        model: of an architecture listed in `ARCHITECTURES`, with its `config`.
        categories: what the classes mean.
        preprocessing: how images become the network's input.
        half: store kernels in 16 bits; norms and biases keep 32, they weigh little and need the range.
        notes: texts to keep beside the weights: training data, licence, scores.

    Raises:
        CheckpointError: the architecture has no name here, or a weight does not fit into 16 bits.
    """
    architecture = architecture_of(model)
    if architecture is None:
        raise CheckpointError(f"{path}: {type(model).__name__} is no architecture that a weights file can name")
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "architecture": architecture,
        "config": json.dumps(to_plain(model.config), allow_nan=False),
        "categories": json.dumps(to_plain(categories)),
        "preprocessing": json.dumps(to_plain(preprocessing), allow_nan=False),
        "notes": json.dumps(dict(notes or {})),
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.detach().to("cpu", torch.float16) if half and tensor.ndim > 1 and tensor.is_floating_point() else tensor
        if not stored.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite{' in 16 bits' if half else ''}; not saved")
        tensors[name] = stored.detach().to("cpu").contiguous().clone()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, unfinished, metadata)
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def architecture_of(model: Model) -> str | None:
    """The name of its kind in `ARCHITECTURES`."""
    return next((name for name, (kind, _) in ARCHITECTURES.items() if type(model) is kind), None)


def is_own_format(path: str | Path) -> bool:
    """Whether the file was written by `save`, by its mark or, where that was lost, by what else only `save` writes.

    One that can't be read was not: the reader of foreign files says why.
    """
    path = Path(path)
    if not path.is_file() or not _looks_like_safetensors(path):
        return False
    try:
        metadata = _metadata(path)
    except CheckpointError:
        return False
    return metadata.get("format") == FORMAT or sum(name in metadata for name in _MARKS) > 1


def read_header(path: str | Path) -> Header:
    """Everything an own file holds besides the weights.

    Raises:
        CheckpointError: not an own file, written by a later version, or contradicting itself.
    """
    path = Path(path)
    metadata = _metadata(path)
    if not is_own_format(path):
        raise CheckpointError(f"{path}: not written by thingstuff; load it with thingstuff.load, which knows foreign layouts too")
    if metadata.get("format") != FORMAT:
        stated = repr(metadata["format"]) if "format" in metadata else "missing"
        raise CheckpointError(
            f"{path}: its metadata is damaged: format is {stated} where thingstuff writes {FORMAT!r}; "
            "take the file as it was written"
        )
    if lost := [name for name in ("format_version", "architecture") if name not in metadata]:
        raise CheckpointError(f"{path}: its metadata is damaged: {' and '.join(lost)} missing; take the file as it was written")
    if metadata["format_version"] != VERSION:
        raise CheckpointError(
            f"{path}: format version {metadata['format_version']}, this thingstuff reads {VERSION}; install a newer one"
        )
    architecture = metadata["architecture"]
    if architecture not in ARCHITECTURES:
        raise CheckpointError(f"{path}: architecture {architecture!r} is unknown to this version of thingstuff")
    parts: dict[str, Any] = {}
    for name in ("config", "categories", "preprocessing", "notes"):
        try:
            parts[name] = json.loads(metadata[name])
        except (KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: its {name} can't be read ({type(error).__name__}: {error})") from None
    _, kind = ARCHITECTURES[architecture]
    try:
        return Header(
            architecture,
            from_plain(kind, parts["config"], f"{path}: config", CONFIG_HELD),
            from_plain(Categories, parts["categories"], f"{path}: categories"),
            from_plain(Preprocessing, parts["preprocessing"], f"{path}: preprocessing", PREPROCESSING_HELD),
            _read_notes(parts["notes"], path),
        )
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_notes(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{path}: notes must be texts by name")
    return value


def read(path: str | Path) -> tuple[Model, Categories, Preprocessing]:
    """The model in an own file, with its categories and preprocessing.

    Raises:
        CheckpointError: see `read_header`; or the weights do not fit the config exactly.
    """
    path = Path(path)
    header = read_header(path)
    tensors = _read_safetensors(path)
    _refuse_reaching_out(header.config, len(tensors), path)
    kind, _ = ARCHITECTURES[header.architecture]
    try:
        demand_fit(tensors, shapes_of(kind, header.config), str(path))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return build(kind, header.config, tensors), header.categories, header.preprocessing


def shapes_of(kind: type[Model], config: Any) -> dict[str, torch.Size]:
    """Shapes of a model's parameters and buffers, without memory for them.

    Raises:
        ConfigError: no network can be built from the config.
    """
    try:
        with torch.device("meta"), _NoRandomNumbers():
            return {name: tensor.shape for name, tensor in kind(config).state_dict().items()}
    except ThingstuffError:
        raise
    except Exception as error:  # whatever torch and timm raise on numbers that nobody trained a network with
        words = " ".join(str(error).split())[:200]
        raise ConfigError(f"no network can be built from its config ({type(error).__name__}: {words})") from error


def build(kind: type[Model], config: Any, tensors: Mapping[str, Tensor]) -> Model:
    """A model of a config with these weights, in evaluation mode; they must fit `shapes_of` it."""
    with _NoRandomNumbers():
        model = kind(config)
    model.load_state_dict(dict(tensors))
    return model.eval()


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves out the draws of a fresh network's weights, which take long; all of them are about to be replaced."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _refuse_reaching_out(config: Any, count: int, path: Path) -> None:
    """A config from a file may describe a network, not fetch one, nor ask for more layers than the file has weights."""
    backbone = config.backbone
    keys = {key for key, _ in backbone.options}
    fetching = sorted(key for key in keys if key.startswith(("pretrained", "checkpoint", "cache", "hf_")))
    if fetching or not backbone.name.replace("_", "").replace(".", "").isalnum():
        raise CheckpointError(f"{path}: backbone {backbone.name!r} with options {fetching} would load something else; refused")
    counted = [field.name for field in dataclasses.fields(config) if field.name.endswith(("_convs", "_fcs", "_layers"))]
    numbers = [*backbone.options, *((name, getattr(config, name)) for name in counted)]
    for key, value in numbers:
        layers = value if isinstance(value, tuple) else (value,)
        limit = count if key in ("layers", "depths", *counted) else 1 << 16
        if any(isinstance(number, int) and number > limit for number in layers):
            raise CheckpointError(f"{path}: {key} of {value} does not go with the {count} arrays of the file")


# Foreign files


@dataclass(frozen=True)
class ForeignFile:
    """Arrays by the names their library gave them, and whatever else lay beside them."""

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)


_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before version 1.6
_NOT_WEIGHTS = (  # first bytes, and what a file that begins with them is
    (b"<", "a web page, not weights: the download failed or needs a login"),
    (b"version https://git-lfs", "a Git LFS pointer, not weights: run git lfs pull"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"{", "JSON, not weights"),
    (b"\x89PNG", "an image, not weights"),
    (b"\xff\xd8\xff", "an image, not weights"),
)


def read_weights(path: str | Path) -> ForeignFile:
    """The arrays of a `.pth`, `.pt`, `.safetensors` or detectron2 `.pkl`, told apart by content, not by name.

    The weights may lie under "model", "state_dict" or "model_state_dict"; a "module.", "_orig_mod." or "model."
    before every name is taken off.

    Raises:
        CheckpointError: missing, empty, truncated, not weights, or asking for anything but arrays. The message names the file.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; name the weights file in it")
    if path.exists() and not path.is_file():  # to open a pipe is to wait for its writer
        raise CheckpointError(f"{path}: is a pipe or a device, not a file; save the weights as a file and name that")
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be opened ({error.strerror or error})") from error
    if not head:
        raise CheckpointError(f"{path}: is empty (0 bytes); download it again")
    if head.startswith(b"PK\x03\x04") or head.startswith(_TORCH_LEGACY):
        payload = _read_torch(path, archive=head.startswith(b"PK"))
    elif _looks_like_safetensors(path):
        return _checked(path, dict(_read_safetensors(path)), dict(_metadata(path)))
    elif head[:1] == b"\x80" or path.suffix == ".pkl":
        payload = read_numpy_pickle(path)
    else:
        what = next((words for start, words in _NOT_WEIGHTS if head.startswith(start)), "no weights file that thingstuff knows")
        raise CheckpointError(f"{path}: is {what} (expected .pth, .pt, .safetensors, or detectron2's .pkl)")
    state, meta = _find_state(path, payload)
    return _checked(path, state, meta)


def _read_torch(path: Path, archive: bool) -> Any:
    known = set(torch._weights_only_unpickler._get_allowed_globals())  # type: ignore[attr-defined]
    stand_ins = survey_torch_archive(path, known) if archive else []
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            warnings.simplefilter("ignore")  # notes on storage types of older versions, which a reader can't change
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ValueError and more on broken files
        if not archive and "global" in str(error).lower():
            name = str(error).partition("GLOBAL ")[2].split(" ")[0] or "Python objects"
            refuse_unknown(path, [name])
        words = (str(error).splitlines() or ["no details"])[0]
        raise CheckpointError(f"{path}: truncated or damaged ({type(error).__name__}: {words}); download it again") from error


def _looks_like_safetensors(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(9)
    if len(head) < 9 or head[8:] != b"{":
        return False
    return struct.unpack("<Q", head[:8])[0] <= path.stat().st_size


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or damaged safetensors ({error}); download it again") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: truncated or damaged safetensors ({error}); download it again") from error


_WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile and the usual LightningModule
_NESTS = ("state_dict", "model_state_dict", "model", "model_state")


def _find_state(path: Path, payload: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The mapping that holds the arrays, and what lies beside it on the way down."""
    meta: dict[str, Any] = {}
    for _ in range(3):
        if not isinstance(payload, Mapping):
            break
        nest = next((name for name in _NESTS if isinstance(payload.get(name), Mapping)), None)
        if nest is None:
            if any(isinstance(value, Tensor | np.ndarray) for value in payload.values()):
                return dict(payload), meta
            break
        meta |= {str(key): value for key, value in payload.items() if key != nest}
        payload = payload[nest]
    found = f"keys {[str(key) for key in list(payload)[:6]]}" if isinstance(payload, Mapping) else f"a {type(payload).__name__}"
    raise CheckpointError(f"{path}: holds no weights (found {found}); expected parameter names with their arrays")


def _checked(path: Path, state: Mapping[Any, Any], meta: dict[str, Any]) -> ForeignFile:
    tensors: dict[str, Tensor] = {}
    limit = path.stat().st_size
    for key, value in state.items():
        if isinstance(value, np.ndarray | np.generic):
            # the byte order of this machine, and memory of its own
            value = torch.from_numpy(np.array(value, dtype=np.asarray(value).dtype.newbyteorder("=")))
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key!r} is a {type(value).__name__}, not an array; a weights file holds arrays alone")
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(f"{path}: {key} is sparse, quantised or without data; save dense floating-point weights")
        if value.numel() == 0 or value.numel() * value.element_size() > limit:
            raise CheckpointError(f"{path}: {key} has shape {tuple(value.shape)}, empty or more than the whole file holds")
        tensors[key] = value.detach()
    if not tensors:
        raise CheckpointError(f"{path}: holds no weights")
    while prefix := next((prefix for prefix in _WRAPPERS if all(key.startswith(prefix) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return ForeignFile(path, tensors, meta)
