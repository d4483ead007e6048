"""The folder of a run: `recipe.json`, `state.pt` to resume from, `log.csv`, `log.jsonl` and `validation.json`.

`recipe.json` also holds the network, since its name in the recipe means another one where the catalog, or the checkpoint of that
path, has changed since the run began.
"""

import csv
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from thingstuff.checkpoints.files import ARCHITECTURES, CONFIG_HELD, PREPROCESSING_HELD, architecture_of
from thingstuff.checkpoints.plain import from_plain, to_plain
from thingstuff.data.folders import has_instances, has_panoptic, splits_of
from thingstuff.data.records import InstanceDataset
from thingstuff.errors import CheckpointError, ConfigError, TrainingError
from thingstuff.models.contract import Model
from thingstuff.segmenter import Segmenter
from thingstuff.structures.preprocessing import Preprocessing
from thingstuff.training.recipe import Recipe

STATE_FILE = "state.pt"


@dataclass
class State:
    """What a run has besides its recipe and weights: how far it is, and what it found best."""

    step: int = 0
    best: float = -1.0  # of the task's figure
    best_step: int = -1
    validation_due: bool = False  # of this step: a signal came before it was through


@dataclass(frozen=True)
class Network:
    """What a run trains, less the weights and the categories."""

    model_class: type[Model]
    config: Any
    preprocessing: Preprocessing


def begun_network(folder: Path) -> Network | None:
    """That of the run in this folder; None where it has made no step, or began before folders held it.

    Raises:
        TrainingError: the file is damaged, or was written by a later version.
    """
    path = folder / "recipe.json"
    if not path.exists() or not (folder / STATE_FILE).exists():
        return None
    stored = _read_recipe(path).get("network")
    if stored is None:
        return None
    try:
        model_class, config_class = ARCHITECTURES[stored["architecture"]]
        return Network(
            model_class,
            from_plain(config_class, stored["config"], "config", CONFIG_HELD),
            from_plain(Preprocessing, stored["preprocessing"], "preprocessing", PREPROCESSING_HELD),
        )
    except (KeyError, TypeError, CheckpointError, ConfigError) as error:
        raise TrainingError(
            f"{path} holds a network that this version of thingstuff can't build ({error}); "
            "go on with the version that began the run, or choose another folder"
        ) from error


def prepare_folder(recipe: Recipe, resume: bool, data: InstanceDataset, segmenter: Segmenter) -> None:
    """Make the folder, or see that it holds this very run; then write the recipe into it.

    Raises:
        TrainingError: it holds another run, or a data set, or can't be written.
    """
    folder = recipe.folder
    written = folder / "recipe.json"
    content = _content(recipe)
    if data.source is not None:
        content["data_digest"] = _digest(data)
    if written.exists():
        if not resume:
            raise TrainingError(f"{folder} already holds a run; pass --resume to go on with it, or choose another folder")
        # a field that is younger than the run is not in its file and has its default, within augmentation, too
        before = _flat(_content(Recipe("", "", ""))) | _flat(_read_recipe(written))
        if before.get("data_digest", content.get("data_digest")) != content.get("data_digest"):
            raise TrainingError(
                f"{data.source} is not the annotation file that {folder} was started with: data_digest (sha256) was "
                f"{before['data_digest']}, is {content.get('data_digest')}; bring that file back, or choose another folder"
            )
        now = _flat(content)
        differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        free = {
            "steps",
            "workers",
            "cache_megabytes",
            "save_every",
            "pictures",
            "data",  # files may move; data_digest tells whether they changed
            "data_digest",
            "out",
            "backbone_weights",
            "validation_data",
            "image_dir",
            "validation_image_dir",
        }
        if wrong := [key for key in differing if key not in free]:
            told = ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in wrong)
            raise TrainingError(f"{folder} holds a run with another recipe: {told}; repeat its command, or choose another folder")
    elif folder.is_dir() and (has_instances(folder) or has_panoptic(folder) or splits_of(folder)):
        raise TrainingError(f"{folder} holds a data set, and a run would lie among its files; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(written, json.dumps(content | {"network": _network(segmenter)}, indent=1))
    except OSError as error:
        raise TrainingError(f"{folder} can't be the folder of a run: {error}; choose another folder") from error


def _network(segmenter: Segmenter) -> dict[str, Any]:
    """As `begun_network` reads it."""
    return {
        "architecture": architecture_of(segmenter.model),
        "config": to_plain(segmenter.model.config),
        "preprocessing": to_plain(segmenter.preprocessing),
    }


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe whose fields within fields are named after both, less its network: a run goes on with that whatever it is."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if key != "network":
            flat |= {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _content(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(recipe), default=_plain))


def _digest(data: InstanceDataset) -> str:
    """What tells whether annotations changed: the sha256 of their file, or, of a layout without one, of what was read."""
    assert data.source is not None
    if data.source.is_file():
        return hashlib.sha256(data.source.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for record in data:
        digest.update(repr((record.path and record.path.name, record.size)).encode())
        for found in record.objects:
            digest.update(repr((found.class_, found.is_crowd, found.mask.corner, found.mask.crop_size)).encode())
            digest.update(found.mask.counts)
    return digest.hexdigest()


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise TrainingError(f"{path} is damaged: {error}; remove the folder to start again") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{path} is damaged: it holds no recipe; remove the folder to start again")
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    raise TypeError(f"{value!r} can't be written as JSON")


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once, so that a killed run leaves the old or the new one, never half of one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def save_state(
    folder: Path, state: State, accelerator: Accelerator, model: nn.Module, average: nn.Module, optimizer: Any
) -> None:
    content = {
        "state": asdict(state),
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
    }
    partial = folder / (STATE_FILE + ".partial")
    torch.save(content, partial)
    os.replace(partial, folder / STATE_FILE)


def resume_state(folder: Path, accelerator: Accelerator, model: nn.Module, average: nn.Module, optimizer: Any) -> State:
    path = folder / STATE_FILE
    if not path.exists():
        return State()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(content["model"])
        average.load_state_dict(content["average"])
        optimizer.load_state_dict(content["optimizer"])
        if accelerator.scaler is not None and content["scaler"]:
            accelerator.scaler.load_state_dict(content["scaler"])
        state = dict(content["state"])
        if "best_ap" in state:  # of runs from before other tasks
            state["best"] = state.pop("best_ap")
        return State(**state)
    except Exception as error:  # the unpickler of a damaged file may raise anything
        raise TrainingError(
            f"{path} does not belong to this run or is broken: {error}; remove the folder to start again"
        ) from error


class Log:
    """`log.csv` and `log.jsonl`, a row each step and each validation.

    Rows after the step resumed from are dropped, and that of its validation where this is to be repeated.
    """

    COLUMNS_FILE = "log.csv"
    LINES_FILE = "log.jsonl"

    def __init__(self, folder: Path, step: int, validation_due: bool = False):
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        lines = folder / self.LINES_FILE
        if step and lines.exists():
            rows = [row for row in _rows(lines) if row["step"] <= step]
            self.rows = [row for row in rows if row["step"] < step or "loss" in row or not validation_due]

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append({key: round(value, 7) if isinstance(value, float) else value for key, value in row.items()})

    def flush(self) -> None:
        write_whole(self.folder / self.LINES_FILE, "".join(json.dumps(row) + "\n" for row in self.rows))
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        partial = self.folder / (self.COLUMNS_FILE + ".partial")
        with partial.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(partial, self.folder / self.COLUMNS_FILE)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TrainingError(f"{path}, line {number} is damaged: {error}; remove that line to go on without it") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise TrainingError(f'{path}, line {number} is damaged: it has no "step"; remove that line to go on without it')
        rows.append(row)
    return rows


def read_validation(folder: Path, parts: tuple[str, ...]) -> dict[str, Any]:
    """The last validation of a finished run, which has these parts."""
    path = folder / "validation.json"
    try:
        result = json.loads(path.read_bytes())
        found = {part: result[part] for part in parts}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged: {error}; evaluate best.safetensors beside it instead") from error
    return {"step": result.get("step"), **found}
