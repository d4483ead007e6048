"""Hold this library to reference cases: do we give the answer that the original implementation gave?

    python tools/parity.py [--device D] CASE_DIR ...

A case is a folder with case.json, keys.json and expected.npz; images it names are relative to the folder that holds its folder.
For each case this fills the weights, writes them as a checkpoint file in the peer's own layout, loads that file with
thingstuff.load alone, runs the case's image at the case's thresholds and compares the result: in float32 as users run it, and
where that misfits, in float64, which says whether more than rounding differs. A case may also be without a model: things and
stuff to merge, with the inputs in its outputs.npz. One line a case; exit code 0 when every case fits, 1 when one does not, 2 for
wrong use.
"""

import argparse
import importlib.util
import json
import pickle
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

import thingstuff
from thingstuff.models.contract import Task
from thingstuff.ops.panoptic_merge import merge_panoptic
from thingstuff.segmenter import Segmenter
from thingstuff.structures.images import read_image
from thingstuff.structures.preprocessing import ImageBatch, Preprocessing
from thingstuff.structures.segments import Segments

REFERENCE = Path(__file__).resolve().parents[1] / "tests" / "reference"


def recipe(name: str) -> ModuleType:
    """`weights` or `compare`, the two scripts that come with the reference cases."""
    spec = importlib.util.spec_from_file_location(f"reference_{name}", REFERENCE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(REFERENCE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Case:
    """A case folder: what was run, with what weights, on what image."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.facts: dict[str, Any] = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        self.name = str(self.facts.get("name", self.folder.name))
        peer = self.facts.get("peer", "")
        self.peer = str(peer.get("package", "") if isinstance(peer, Mapping) else peer)
        self.preprocessing: dict[str, Any] = self.facts.get("preprocessing") or {}

    def section(self, name: str) -> dict[str, Any]:
        found = self.facts.get(name)
        return found if isinstance(found, dict) else {}

    # The checkpoint

    def write_checkpoint(self, folder: Path) -> Path:
        """The case's weights as the peer's own tools store them."""
        arrays = recipe("weights").load_case(str(self.folder))
        if self.peer == "detectron2":
            path = folder / "model_final.pkl"
            content = {"model": arrays | self._pixel_statistics(), "__author__": "Detectron2 Model Zoo"}
            path.write_bytes(pickle.dumps(content))
        elif self.peer == "transformers":
            path = folder / "model.safetensors"
            save_file(arrays, path)
        else:
            path = folder / "model.pth"
            state: dict[str, Any] = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
            if self.peer.startswith("mmdet"):
                state = {"meta": {"cfg": self._config_text()}, "state_dict": state}
            torch.save(state, path)
        return path

    def _pixel_statistics(self) -> dict[str, np.ndarray]:
        """The two buffers that the zoo's files hold besides the parameters."""
        mean = self.preprocessing.get(
            "pixel_mean_bgr", self.preprocessing.get("pixel_mean_rgb", self.preprocessing.get("pixel_mean"))
        )
        std = self.preprocessing.get("pixel_std")
        if not mean or not std:
            return {}
        return {name: np.float32(values).reshape(3, 1, 1) for name, values in (("pixel_mean", mean), ("pixel_std", std))}

    def _config_text(self) -> str:
        """The config that MMDetection stores beside the weights, as far as the case tells it."""
        model: dict[str, Any] = {"backbone": {"style": "caffe" if self._moves_stride() else "pytorch"}}
        mean_rgb, mean_bgr = self.preprocessing.get("mean_rgb"), self.preprocessing.get("mean_bgr")
        std = self.preprocessing.get("std_rgb") or self.preprocessing.get("std_bgr") or self.preprocessing.get("std")
        if std and (mean_rgb or mean_bgr):
            model["data_preprocessor"] = {"mean": mean_rgb or mean_bgr, "std": std, "bgr_to_rgb": mean_rgb is not None}
        words = str(self.section("config").get("anchors", ""))
        if match := _OCTAVE.search(words):  # YOLACT's
            bases, octave, ratios, strides = ([_as_number(part) for part in group.split()] for group in match.groups())
            model["bbox_head"] = {
                "anchor_generator": {
                    **{"base_sizes": bases, "octave_base_scale": octave[0], "ratios": ratios, "strides": strides},
                    "centers": [(stride / 2, stride / 2) for stride in strides],
                }
            }
        if grids := self.section("config").get("grid_sizes"):
            model["mask_head"] = {"num_grids": grids}
        return f"model = {model!r}\n"

    def _moves_stride(self) -> bool:
        words = str(self.section("config").get("backbone", "")).lower()
        return "caffe" in words or "first 1x1" in words

    # The input

    def image(self) -> tuple[np.ndarray, tuple[int, int], bool]:
        """The picture, the (height, width) of the original, and whether the picture still has to be resized."""
        original = self.folder.parent / str(self.facts["image"])
        resized = self.folder / "input.png"
        if resized.exists():
            return read_image(resized), self._original_size(original), False
        picture = read_image(original)
        height, width = picture.shape[:2]
        as_it_is = str(self.preprocessing.get("resize", "")).lower().startswith("none")
        return picture, (int(height), int(width)), not as_it_is

    def _original_size(self, path: Path) -> tuple[int, int]:
        stated = self.facts.get("image_size_hw") or self.section("expected").get("image_size_hw")
        height, width = stated or read_image(path).shape[:2]
        return int(height), int(width)

    def batch(self, segmenter: Segmenter) -> ImageBatch:
        """The case's image as the network's input, at the size that the case states."""
        picture, original, to_resize = self.image()
        wanted = self.preprocessing.get("resized_hw") or self.preprocessing.get("unpadded_input_size")
        if not wanted and self.preprocessing.get("padding") == "none":
            wanted = (self.preprocessing.get("input_size") or [])[-2:]
        preprocessing = self.scaled(segmenter.preprocessing)
        if to_resize and wanted and preprocessing.input_size(*original) != tuple(wanted):
            height, width = wanted
            preprocessing = resizing_to(preprocessing, (int(height), int(width)))
        batch = preprocessing.batch([picture], resize=to_resize, original_sizes=[original])
        if wanted and batch.sizes[0].input != tuple(wanted):
            raise ValueError(f"the case's input is {tuple(wanted)}, this library's {batch.sizes[0].input}")
        return batch

    def scaled(self, own: Preprocessing) -> Preprocessing:
        """The model's preprocessing with the limits of the sides that the case states."""
        for place in (self.preprocessing, self.section("config"), self.facts):
            sides: Any = place.get("peer_scale_setting") or (place.get("min_size"), place.get("max_size"))
            for text in (place.get("words"), place.get("resize")):
                match = _SIDES.search(text) if isinstance(text, str) else None
                sides = (int(match[1]), int(match[2])) if match else sides
            if len(sides) == 2 and all(_figure(side) for side in sides):
                return replace(own, short_side=int(min(sides)), long_side=int(max(sides)))
        return own

    # The anchors

    def anchors(self, own: Any) -> Any:
        """The model's config with the anchors that the case states; files of weights do not hold them. Some models have none.

        Raises:
            ValueError: anchors that this library's networks can't have.
        """
        config = self.section("config")
        if not hasattr(own, "anchor_sizes"):
            return own
        if "prior_scales_px" in config:
            return replace(own, **self._priors())
        sizes, ratios = config.get("anchor_sizes"), config.get("anchor_ratios")
        if sizes is not None:
            sizes = [size if isinstance(size, list) else [size] for size in sizes]
            if len(sizes) != len(own.anchor_sizes) or any(len(level) != 1 for level in sizes):
                raise ValueError(f"anchor_sizes {sizes}: one size for each of P2..P6 is all that is supported yet")
            own = replace(own, anchor_sizes=tuple(float(level[0]) for level in sizes))
        if ratios is not None:
            levels = (
                [tuple(map(float, level)) for level in ratios] if isinstance(ratios[0], list) else [tuple(map(float, ratios))]
            )
            if any(level != levels[0] for level in levels) or len(levels[0]) != len(own.anchor_ratios):
                raise ValueError(
                    f"anchor_ratios {ratios}: the same {len(own.anchor_ratios)} on every level are all that is supported here"
                )
            own = replace(own, anchor_ratios=levels[0])
        return own

    def _priors(self) -> dict[str, Any]:
        """YOLACT's anchors as its repository states them: sizes of each level in pixels, ratios of width to height."""
        config = self.section("config")
        levels = [level if isinstance(level, list) else [level] for level in config["prior_scales_px"]]
        stated: dict[str, Any] = {
            "anchor_sizes": tuple(float(level[0]) for level in levels),
            "anchor_scales": tuple(scale / levels[0][0] for scale in levels[0]),
        }
        ratios = config.get("aspect_ratios")
        while isinstance(ratios, list) and ratios and isinstance(ratios[0], list):
            ratios = ratios[0]
        if ratios:
            stated["anchor_ratios"] = tuple(1 / ratio for ratio in ratios)
        if "square_anchors" in config:
            stated["square_anchors"] = re.search(r"\bfalse\b", str(config["square_anchors"]).lower()) is None
        return stated

    # The thresholds

    def thresholds(self, own: Any, task: Task = Task.INSTANCE) -> Any:
        """The model's own limits with those that the case states, under any of the peers' names for them.

        Each family has a dataclass of limits; of the settings below, those that it has a field for are looked for. What the
        case states for the task alone comes last.
        """
        stated: dict[str, Any] = {}
        known = {field.name for field in fields(own)}
        named = known - {"score"} if "cell_score" in known else known  # SOLO's score_thr is that of its cells
        if "task" in known:
            stated["task"] = task
        postprocessing = self.section("postprocessing")
        of_task = postprocessing.get(task.value)
        places = (self.section("config"), postprocessing, self.facts, of_task if isinstance(of_task, dict) else {})
        for place in places:
            for field, names, number in (row for row in _NAMES if row[0] in named):
                for figure in (_figure(place.get(name)) for name in names):
                    if figure is not None:
                        stated[field] = number(figure)
            for key, text in place.items():
                for field, keys, pattern, number in (row for row in _PHRASES if row[0] in known):
                    match = re.search(pattern, text, re.IGNORECASE) if key in keys and isinstance(text, str) else None
                    if match:
                        stated[field] = number(next(group for group in match.groups() if group))
        return replace(own, **stated)


@dataclass(frozen=True)
class _ResizingTo(Preprocessing):
    size: tuple[int, int] = (0, 0)  # height, width

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size


def resizing_to(own: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    """The same in everything but the size, which is this (height, width) whatever the image's."""
    return _ResizingTo(**{field.name: getattr(own, field.name) for field in fields(own)}, size=size)


def _as_number(words: str) -> float:
    """A number, or a fraction as in 550/69."""
    above, _, below = words.partition("/")
    return float(above) / float(below or 1)


# YOLACT's anchors in words: base sizes, the scale of all of them, ratios and strides
_OCTAVE = re.compile(r"base sizes ([\d. ]+?) times octave scale ([\d.]+),.*? ratios [^\d]*([\d. ]+?), strides ([\d./ ]+)")

_Number = Callable[[Any], Any]

# The limits of the short and the long side in words
_SIDES = re.compile(r"short(?:est)? (?:side|edge)\D{0,12}(\d+)\D{0,30}long(?:est)?\D{0,20}(\d+)", re.IGNORECASE)

# A field of a family's Thresholds and the names of the peers' settings for it
_NAMES: tuple[tuple[str, tuple[str, ...], _Number], ...] = (
    ("proposals_per_level", ("rpn_pre_nms_top_n", "rpn_nms_pre"), int),
    ("proposals", ("rpn_post_nms_top_n", "rpn_max_per_img"), int),
    ("proposal_nms", ("rpn_nms_thresh",), float),
    ("proposal_min_size", ("rpn_min_box_size",), float),
    ("proposal_score", ("rpn_score_thresh",), float),
    ("score", ("box_score_thresh", "score_thr", "score_thresh", "score_threshold", "threshold"), float),
    ("nms", ("box_nms_thresh", "nms_thr", "nms_thresh", "nms_threshold", "nms"), float),
    ("detections", ("detections_per_image", "max_per_img", "max_per_image", "max_num_detections"), int),
    ("anchor_score", ("conf_thresh",), float),
    ("anchors_per_level", ("nms_pre",), int),
    ("class_candidates", ("top_k", "nms_top_k"), int),
    ("box_min_size", ("box_min_size",), float),
    ("mask", ("mask_thr", "mask_thr_binary", "mask_threshold"), float),
    ("cell_score", ("score_thr", "score_thresh", "score_threshold"), float),
    ("merge_score", ("object_mask_thr", "threshold", "instances_confidence_threshold", "instances_score_thresh"), float),
    ("overlap", ("iou_thr", "overlap_mask_area_threshold", "overlap_threshold", "mask_overlap"), float),
    ("stuff_area", ("stuff_area_limit", "stuff_area_thresh"), int),
)
# A field, the settings that state it in words, and the words
_PHRASES: tuple[tuple[str, tuple[str, ...], str, _Number], ...] = (
    ("proposals_per_level", ("rpn", "rpn_test"), r"PRE_NMS_TOPK (\d+)|(\d+) best per level", int),
    ("proposals", ("rpn", "rpn_test"), r"POST_NMS_TOPK (\d+)|(\d+) best overall", int),
    ("proposal_nms", ("rpn", "rpn_test"), r"\bNMS ([\d.]*\d)", float),
    ("proposal_min_size", ("rpn", "rpn_test"), r"min size ([\d.]*\d)", float),
    ("nms", ("nms",), r"IoU ([\d.]*\d)", float),
    ("class_candidates", ("nms",), r"top_k (\d+)", int),
    ("cross_class", ("nms",), r"(cross[- ]class|class[- ]agnostic)", bool),
    ("overlap", ("panoptic",), r"more than ([\d.]*\d) of their area", float),
    ("stuff_area", ("panoptic",), r"areas below (\d+)", int),
    ("mask", ("mask_paste",), r">=? ([\d.]*\d)", float),
    ("candidates", ("matrix_nms",), r"nms_pre (\d+)", int),
    ("sigma", ("matrix_nms",), r"sigma ([\d.]*\d)", float),
    ("score", ("matrix_nms",), r"(?:filter|update)_thr ([\d.]*\d)", float),
    ("kernel", ("matrix_nms",), r"(gaussian|linear)", str),
)


def _figure(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def load_case(case: Case, device: str | None) -> Segmenter:
    """The network of a case, by way of a file in the peer's layout."""
    with tempfile.TemporaryDirectory() as folder:
        return thingstuff.load(case.write_checkpoint(Path(folder)), device)


def prediction(segments: Segments, task: Task = Task.INSTANCE) -> dict[str, np.ndarray]:
    """Segments in the form that compare.py reads."""
    if task is Task.SEMANTIC:
        return {"semantic_map": segments.semantic_map()}
    if task is Task.PANOPTIC:
        return {
            "panoptic_map": segments.panoptic_map(),
            "panoptic_ids": np.arange(1, len(segments) + 1),
            "panoptic_labels": segments.classes,
        }
    return {
        "boxes": segments.boxes,
        "scores": segments.scores,
        "labels": segments.classes,
        "masks_rle": np.array([mask.to_coco()["counts"] for mask in segments.rles], dtype=str),
    }


ROUNDED = 0.05  # of the instances and segments: more misfits than that are no rounding
# What expected.npz holds for each task
_RESULTS = ((Task.INSTANCE, "masks_rle"), (Task.PANOPTIC, "panoptic_map"), (Task.SEMANTIC, "semantic_map"))


def run_case(case: Case, device: str | None, dtype: torch.dtype = torch.float32) -> dict[str, np.ndarray]:
    """Every result that the case expects, in the form that compare.py reads."""
    segmenter = load_case(case, device)
    segmenter.model.config = case.anchors(segmenter.model.config)
    segmenter.model.to(dtype)
    batch = case.batch(segmenter)
    batch = replace(batch, pixels=batch.pixels.to(dtype))
    found: dict[str, np.ndarray] = {}
    with np.load(case.folder / "expected.npz") as expected:
        wanted = [task for task, name in _RESULTS if name in expected]
    for task in wanted:
        limits = case.thresholds(segmenter.thresholds(task=task), task)
        found |= prediction(segmenter.segment(batch, thresholds=limits)[0], task)
    return found


def compare_case(case: Case, device: str | None) -> tuple[list[str], list[str]]:
    """Summary and misfits of a case with a model, in float32 as users run it.

    float32 rounds by the machine's kernels and the number of its threads, and one pixel of a mask of fifty is 2 % of its IoU. So
    few misfits of float32 count only where float64, which leaves no rounding but the original's own, is a misfit too.
    """
    compare = recipe("compare").compare
    summaries, problems = compare(case.folder, run_case(case, device))
    with np.load(case.folder / "expected.npz") as expected:
        results = sum(len(expected[name]) for name in ("masks_rle", "panoptic_ids") if name in expected)
    if 0 < len(problems) <= max(3, ROUNDED * results):  # one pixel of a segment of a panoptic map makes three
        rounding = f"in float64, as float32 rounds otherwise than the original ({problems[0]})"
        summaries, problems = compare(case.folder, run_case(case, device, torch.float64))
        summaries = [*summaries, *([] if problems else [rounding])]
    return summaries, problems


def is_merge(case: Case) -> bool:
    """Whether a case is without a model: masks of things and a map of stuff, merged under several sets of thresholds."""
    inputs = [entry.get("name") for entry in case.facts.get("inputs", []) if isinstance(entry, dict)]
    return {"labels", "scores", "masks", "semantic"} <= set(inputs)


def check_merge(case: Case) -> tuple[list[str], list[str]]:
    """Summary and misfits of such a case, which is exact. Segments of the peer's without a pixel don't exist here."""
    with np.load(case.folder / "outputs.npz") as file:
        arrays = dict(file.items())
    height, width = arrays["semantic"].shape
    masks = np.unpackbits(arrays["masks"], axis=1)[:, : height * width].reshape(-1, height, width).astype(bool)
    order = np.argsort(-arrays["scores"], kind="stable")
    stuff = arrays["semantic"].astype(np.int16) - 1  # 0 means things there
    summaries, problems = [], []
    for output in case.facts["outputs"]:
        parts = merge_panoptic(
            ((masks[thing], (0, 0)) for thing in order),
            arrays["scores"][order].tolist(),
            stuff,
            score=output["instances_score_thresh"],
            overlap=output["overlap_threshold"],
            stuff_area=output["stuff_area_thresh"],
        )
        painted, labels = np.zeros((height, width), np.int32), []
        for number, part in enumerate(parts, start=1):
            (top, left), (rows, columns) = part.corner, part.crop.shape
            painted[top : top + rows, left : left + columns][part.crop] = number
            label = int(arrays["labels"][order[part.index]]) if part.is_thing else part.index + 1
            labels.append(_merged_label(part.is_thing, label))
        segments = [segment for segment in output["segments"] if segment["pixels"]]
        expected = {
            "panoptic_map": arrays[output["name"]],
            "panoptic_ids": [segment["id"] for segment in segments],
            "panoptic_labels": [_merged_label(segment["isthing"], segment["category_id"]) for segment in segments],
        }
        got = {"panoptic_map": painted, "panoptic_ids": range(1, len(labels) + 1), "panoptic_labels": labels}
        summary, found = recipe("compare").compare_panoptic(expected, got, {"segment_iou": 1.0})
        summaries.append(f"{output['name']}: {summary}")
        problems += [f"{output['name']}: {problem}" for problem in found]
    return summaries, problems


def _merged_label(is_thing: bool, number: int) -> int:
    """One number for things and stuff, which are counted apart in such a case."""
    return number if is_thing else -number


def check(folder: Path, device: str | None) -> Iterator[str]:
    """The misfits of one case, after one line about it."""
    start = time.perf_counter()
    name, summaries, problems = folder.resolve().name, [], []
    try:
        if not (folder / "case.json").is_file():
            raise ValueError("has no case.json; not supported yet")
        case = Case(folder)
        name = case.name
        if is_merge(case):
            summaries, problems = check_merge(case)
        elif not (folder / "keys.json").exists() or "image" not in case.facts:
            raise ValueError("not a model on an image; not supported yet")
        else:
            summaries, problems = compare_case(case, device)
    except Exception as error:  # whatever goes wrong with one case is its misfit, and the other cases still run
        problems = [" ".join(f"{type(error).__name__}: {error}".split())]
    words = "; ".join([*summaries, *problems[:3], *([f"... {len(problems)} misfits"] if len(problems) > 3 else [])])
    print(f"{'MISFIT' if problems else 'fits'}  {name}  {words}  ({time.perf_counter() - start:.1f} s)", flush=True)
    yield from problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="where the networks run: cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE_DIR")
    options = parser.parse_args(arguments)
    for folder in options.cases:
        if not folder.is_dir():
            parser.error(f"{folder} is no folder")
    # the reference was computed in full float32
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    misfits = [problem for folder in options.cases for problem in check(folder, options.device)]
    return 1 if misfits else 0


if __name__ == "__main__":
    sys.exit(main())
