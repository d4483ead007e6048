"""Panoptic quality beside torchmetrics', hotcoco's and panopticapi's algorithm: one run, same inputs.

    python benchmarks/evaluation.py > benchmarks/results/evaluation.md

Inputs are drawn: pairs of 480 x 640 maps of 25 overlapping ellipses and rectangles in 20 classes, the prediction being the truth
moved by a few pixels. panopticapi is not on the package index; what stands here for it does what its tool does for each image,
written anew: np.unique over the predicted ids and over paired ids, and loops over segments and pairs in dicts. It is given what
the tool has once colours are ids (unsigned 32 bits, areas in the truth's rows), and runs in one process, where the tool starts
one for each core. Turns alternate between the contestants, so that a busy machine slows all alike; times are medians of them.
Beside the time on the clock stands the time of the processor, over all threads, which other programs disturb less. From files
hotcoco works in a thread for each core, ours in one. The larger set of files is the same ones, listed again and again under
other image ids. torchmetrics gets the first 4 pairs (its PQ is theirs, and forgives what lies on void of the prediction),
everything else all of them.

np.unique sorts, and NumPy sorts with AVX-512 where there is AVX-512, which takes several times as long as without on some
processors (AMD's Zen 4); panopticapi's best time is then that with NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL".
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import torch
import torchmetrics
from hotcoco.panoptic import PanopticEval
from PIL import Image
from torchmetrics.detection import PanopticQuality as TorchmetricsQuality

from thingstuff.data.panoptic import pairs, read_panoptic, read_panoptic_predictions
from thingstuff.evaluation.panoptic_quality import PanopticQuality
from thingstuff.formats.coco_panoptic import write_panoptic
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.panoptic import PanopticMap

HEIGHT, WIDTH, SHAPES, CLASSES = 480, 640, 25, 20
TORCHMETRICS_IMAGES = 4  # of them: it takes half a second for each
CATEGORIES = Categories(tuple(Category(id_, f"class {id_}", is_thing=id_ % 2 == 0) for id_ in range(1, CLASSES + 1)))
Pair = tuple[PanopticMap, PanopticMap]  # prediction, truth
Contestants = dict[str, tuple[Callable[[], float], int]]  # what is timed, and the images it goes through


def draw(random: np.random.Generator) -> Pair:
    ids = np.zeros((HEIGHT, WIDTH), np.int64)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for place, id_ in enumerate(random.choice(2**24 - 1, SHAPES, replace=False) + 1):
        row, column = random.integers(0, HEIGHT - 40), random.integers(0, WIDTH - 40)
        height, width = random.integers(20, 200, 2)
        if place % 2:
            ids[((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 < 0.4] = id_
        else:
            ids[row : row + height, column : column + width] = id_
    moved = np.roll(ids, tuple(random.integers(-6, 7, 2)), (0, 1))
    return _listed(moved.astype(np.int32)), _listed(ids.astype(np.int32))


def _listed(ids: np.ndarray) -> PanopticMap:
    shown = np.unique(ids[ids > 0]).astype(np.int64)
    return PanopticMap(ids, shown, shown % CLASSES, np.zeros(len(shown), np.bool_), CATEGORIES)


# panopticapi's algorithm ----------------------------------------------------------------------------------------------

Rows = list[dict[str, Any]]


def panopticapi_counts(
    counts: dict[int, list[float]], truth: np.ndarray, found: np.ndarray, rows: Rows, found_rows: Rows, known: set[int]
) -> None:
    """Add one image to {category id: [tp, fp, fn, sum of IoU]}."""
    annotated = {row["id"]: row for row in rows}
    predicted = {row["id"]: row for row in found_rows}
    unpainted = {row["id"] for row in found_rows}
    for id_, area in zip(*np.unique(found, return_counts=True), strict=True):
        if id_ not in predicted:
            if id_ == 0:
                continue
            raise KeyError(f"segment {id_} is not listed")
        predicted[id_]["area"] = area
        unpainted.remove(id_)
        if predicted[id_]["category_id"] not in known:
            raise KeyError(f"segment {id_} is of no known category")
    if unpainted:
        raise KeyError(f"segments {unpainted} are not painted")
    shared = {}
    combined = truth.astype(np.uint64) * 2**24 + found.astype(np.uint64)
    for code, pixels in zip(*np.unique(combined, return_counts=True), strict=True):
        shared[(code // 2**24, code % 2**24)] = pixels
    matched_truth, matched = set(), set()
    for (t, p), pixels in shared.items():
        if t not in annotated or p not in predicted or annotated[t]["iscrowd"] == 1:
            continue
        if annotated[t]["category_id"] != predicted[p]["category_id"]:
            continue
        iou = pixels / (predicted[p]["area"] + annotated[t]["area"] - pixels - shared.get((0, p), 0))
        if iou > 0.5:
            of_class = counts.setdefault(annotated[t]["category_id"], [0, 0, 0, 0.0])
            of_class[0] += 1
            of_class[3] += iou
            matched_truth.add(t)
            matched.add(p)
    crowds = {}
    for t, row in annotated.items():
        if t in matched_truth:
            continue
        if row["iscrowd"] == 1:
            crowds[row["category_id"]] = t
        else:
            counts.setdefault(row["category_id"], [0, 0, 0, 0.0])[2] += 1
    for p, row in predicted.items():
        if p in matched:
            continue
        ignored = shared.get((0, p), 0)
        if row["category_id"] in crowds:
            ignored += shared.get((crowds[row["category_id"]], p), 0)
        if ignored / row["area"] <= 0.5:
            counts.setdefault(row["category_id"], [0, 0, 0, 0.0])[1] += 1


def panopticapi_quality(counts: dict[int, list[float]]) -> float:
    return sum(iou / (tp + 0.5 * fp + 0.5 * fn) for tp, fp, fn, iou in counts.values()) / len(counts)


def panopticapi_files(truth: Path, found: Path) -> float:
    counts: dict[int, list[float]] = {}
    predicted = {entry["image_id"]: entry for entry in json.loads(found.read_text())["annotations"]}
    content = json.loads(truth.read_text())
    known = {category["id"] for category in content["categories"]}
    for entry in content["annotations"]:
        maps = []
        for path, image in ((truth, entry), (found, predicted[entry["image_id"]])):
            colours = np.array(Image.open(path.with_suffix("") / image["file_name"]), dtype=np.uint32)
            maps.append(colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2])
        found_rows = predicted[entry["image_id"]]["segments_info"]
        panopticapi_counts(counts, maps[0], maps[1], entry["segments_info"], found_rows, known)
    return panopticapi_quality(counts)


def rows_of(panoptic: PanopticMap) -> Rows:
    return [
        {"id": id_, "category_id": CATEGORIES.ids[class_], "iscrowd": 0, "area": area}
        for id_, class_, area in zip(
            panoptic.segment_ids.tolist(), panoptic.classes.tolist(), panoptic.painted_areas().tolist(), strict=True
        )
    ]


# Contests -------------------------------------------------------------------------------------------------------------


def from_tensors(drawn: list[Pair]) -> Contestants:
    """What each is given lies ready in the form it takes; its own counting is timed."""
    tensors = [(_with_tensor(found), _with_tensor(truth)) for found, truth in drawn]
    listed = [
        (truth.ids.astype(np.uint32), found.ids.astype(np.uint32), rows_of(truth), rows_of(found)) for found, truth in drawn
    ]
    classed = [(_as_classes(found)[None], _as_classes(truth)[None]) for found, truth in drawn[:TORCHMETRICS_IMAGES]]

    def ours() -> float:
        quality = PanopticQuality(CATEGORIES)
        for prediction, truth in tensors:
            quality.update(prediction, truth)
        return quality.compute()["All"]["pq"]

    def torchmetrics_own() -> float:
        things = {place for place, category in enumerate(CATEGORIES) if category.is_thing}
        # stuff as things too: it would join pieces of one class, which the others keep apart
        quality = TorchmetricsQuality(things=things | set(range(CLASSES)), stuffs=set(), allow_unknown_preds_category=True)
        for prediction, truth in classed:
            quality.update(prediction, truth)
        return float(quality.compute())

    known = set(CATEGORIES.ids)

    def panopticapi() -> float:
        counts: dict[int, list[float]] = {}
        for truth, found, rows, found_rows in listed:
            panopticapi_counts(counts, truth, found, rows, found_rows, known)
        return panopticapi_quality(counts)

    every = len(drawn)
    return {
        "thingstuff": (ours, every),
        "panopticapi's algorithm": (panopticapi, every),
        "torchmetrics": (torchmetrics_own, len(classed)),
    }


def _with_tensor(panoptic: PanopticMap) -> PanopticMap:
    ids = torch.from_numpy(np.asarray(panoptic.ids))
    return PanopticMap(ids, panoptic.segment_ids, panoptic.classes, panoptic.crowd, panoptic.categories)


def _as_classes(panoptic: PanopticMap) -> torch.Tensor:
    index = panoptic.index_map()
    return torch.from_numpy(np.stack((np.concatenate(([CLASSES], panoptic.classes))[index], index), axis=-1))


def from_files(truth: Path, found: Path, images: int) -> Contestants:
    def ours() -> float:
        return _measure(truth, found)["All"]["pq"]

    def hotcoco_own() -> float:
        evaluation = PanopticEval(truth, found)
        evaluation.evaluate()
        return evaluation.results()["All"]["pq"]

    return {
        "thingstuff": (ours, images),
        "hotcoco": (hotcoco_own, images),
        "panopticapi's algorithm": (lambda: panopticapi_files(truth, found), images),
    }


def _measure(truth: Path, found: Path, images: int | None = None) -> dict[str, Any]:
    data = read_panoptic(truth)
    quality = PanopticQuality(data.categories)
    predictions = read_panoptic_predictions(found, data.categories)
    for place, _ in enumerate(quality.update_many(pairs(predictions, data)), start=1):
        if place == images:
            break
    return quality.compute()


def list_again(path: Path, times: int) -> Path:
    """The same PNGs as a set of so many times as many images."""
    content = json.loads(path.read_text())
    images = 1 + max(entry["image_id"] for entry in content["annotations"])
    for key, name in (("images", "id"), ("annotations", "image_id")):
        entries = content.get(key, [])
        content[key] = [{**entry, name: entry[name] + images * copy} for copy in range(times) for entry in entries]
    longer = path.with_name(f"{path.stem}-{times}.json")
    longer.write_text(json.dumps(content))
    longer.with_suffix("").symlink_to(path.with_suffix(""))
    return longer


def contest(contestants: Contestants, turns: int) -> Iterator[tuple[str, float, float, float]]:
    """name, seconds an image on the clock and of the processor (medians), PQ."""
    clock: dict[str, list[float]] = {name: [] for name in contestants}
    processor: dict[str, list[float]] = {name: [] for name in contestants}
    quality = {}
    for _ in range(turns):
        for name, (run, images) in contestants.items():
            gc.collect()
            began, worked = time.perf_counter(), time.process_time()
            quality[name] = run()
            clock[name].append((time.perf_counter() - began) / images)
            processor[name].append((time.process_time() - worked) / images)
    for name in contestants:
        yield name, statistics.median(clock[name]), statistics.median(processor[name]), quality[name]


def table(title: str, rows: list[tuple[str, float, float, float]], asked: dict[str, float]) -> None:
    print(f"\n## {title}\n\n| | PQ | ms an image | against ours | of processor | against ours | asked |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    _, our_clock, our_processor, _ = rows[0]
    for name, clock, processor, quality in rows:
        wanted = f"{asked[name]:g}" if name in asked else ""
        print(
            f"| {name} | {quality:.6f} | {1000 * clock:.2f} | {clock / our_clock:.2f} | {1000 * processor:.2f} "
            f"| {processor / our_processor:.2f} | {wanted} |"
        )


def memory(truth: Path, found: Path, counts: tuple[int, ...]) -> list[tuple[int, float]]:
    """(images, MiB at most) that measuring so many of the files takes, above what the list of segments takes."""
    peaks = []
    for images in counts:
        gc.collect()
        tracemalloc.start()
        _measure(truth, found, images)
        peaks.append((images, tracemalloc.get_traced_memory()[1] / 2**20))
        tracemalloc.stop()
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--copies", type=int, default=10, help="of each file, in the larger set")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    random = np.random.default_rng(0)
    drawn = [draw(random) for _ in range(arguments.images)]
    print("# Panoptic quality\n\n" + "\n".join((__doc__ or "").split("\n\n")[2:]).strip())
    without = f", without {disabled}" if (disabled := os.environ.get("NPY_DISABLE_CPU_FEATURES")) else ""
    print(
        f"\nPython {platform.python_version()}, numpy {np.__version__}{without}, torch {torch.__version__}, torchmetrics "
        f"{torchmetrics.__version__}, hotcoco {hotcoco.__version__}; {arguments.images} pairs, {arguments.turns} turns."  # pyright: ignore
    )
    rows = list(contest(from_tensors(drawn), arguments.turns))
    table("From tensors, no file read", rows, {"torchmetrics": 10, "panopticapi's algorithm": 5})
    with tempfile.TemporaryDirectory() as folder:
        truth, found = Path(folder) / "truth.json", Path(folder) / "found.json"
        write_panoptic(truth, ((place, f"{place}.jpg", pair[1]) for place, pair in enumerate(drawn)), CATEGORIES)
        write_panoptic(found, ((place, f"{place}.jpg", pair[0]) for place, pair in enumerate(drawn)), CATEGORIES)
        del drawn
        images = arguments.images * arguments.copies
        table("From PNG files", list(contest(from_files(truth, found, arguments.images), arguments.turns)), {"hotcoco": 1})
        larger = from_files(list_again(truth, arguments.copies), list_again(found, arguments.copies), images)
        del larger["panopticapi's algorithm"]  # which takes minutes, and the same for each image
        table(f"From {images} pairs of PNG files", list(contest(larger, arguments.turns)), {})
        print("\n## Memory, from PNG files\n\n| images | MiB at most |\n| --- | --- |")
        for images, mebibytes in memory(truth, found, (arguments.images // 8, arguments.images // 2, arguments.images)):
            print(f"| {images} | {mebibytes:.1f} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
