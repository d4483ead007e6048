"""Two runs on the same images: what is better, by how much, and whether other images would have said the same.

report.json of A and of B -> the images of both -> the same draws of them for both -> differences with their intervals
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from thingstuff.errors import EvaluationError
from thingstuff.evaluation.bootstrap import (
    SAMPLES,
    Drawn,
    PanopticCounts,
    SemanticCounts,
    affordable_samples,
    average_precisions,
    draw_images,
    interval,
    panoptic_qualities,
    semantic_qualities,
    weights_of,
)
from thingstuff.evaluation.matching import Matches

FORMAT = 1  # of report.json
NAMES = {
    "instances": (
        ("mask", "AP", "mask AP"),
        ("mask", "AP50", "mask AP50"),
        ("mask", "AP75", "mask AP75"),
        ("box", "AP", "box AP"),
    ),
    "panoptic": (
        *(("pq", "pq", "PQ"), ("pq", "sq", "SQ"), ("pq", "rq", "RQ"), ("pq", "Things", "PQ of things")),
        ("pq", "Stuff", "PQ of stuff"),
    ),
    "semantic": (
        ("semantic", "mIoU", "mIoU"),
        ("semantic", "fwIoU", "fwIoU"),
        ("semantic", "pixel_accuracy", "pixel accuracy"),
        ("semantic", "mean_accuracy", "mean accuracy"),
    ),
}
OF_CLASSES = {"instances": "mask", "panoptic": "pq", "semantic": "semantic"}  # what classes are told apart by
ENOUGH_IMAGES = 5  # with a class; of fewer, draws know too little to give its figure an interval
CHANGED = 20  # images whose quality changed most that are named, of each direction


def task_of(report: Mapping[str, Any]) -> str:
    """ "panoptic", "semantic" or "instances"."""
    if report.get("pq") is not None:
        return "panoptic"
    return "semantic" if report.get("semantic") is not None else "instances"


def intervals(report: Mapping[str, Any], samples: int | None = None, seed: int = 0) -> dict[str, Any]:
    """95 % intervals of a report's main figures: `{"mask": {"AP": [low, high], ...}, "samples"}`, from its rows per image."""
    if samples is None:
        samples = _affordable(report)
    found: dict[str, Any] = {"samples": samples}
    alone = _drawn(report, None, 0, seed)
    for kind, drawn in _drawn(report, None, samples, seed).items():
        images = len(report["per_image"]["image_ids"])
        reaches = {name: interval(values, float(alone[kind].overall[name][0]), images) for name, values in drawn.overall.items()}
        found[kind] = {name: [max(reach[0], 0.0), min(reach[1], 1.0)] for name, reach in reaches.items() if reach is not None}
    return found


def compare(a: Mapping[str, Any], b: Mapping[str, Any], samples: int | None = None, seed: int = 0) -> dict[str, Any]:
    """How B differs from A, on the images that both were judged on.

    `{"a", "b": {"name", "images"}, "images", "samples", "task", "metrics": [{"name", "a", "b", "difference", "low", "high",
    "better"}], "per_class": [the same], "errors": {kind: {"a", "b"}}, "changed": [{"name", "a", "b"}]}`: fractions; `better` is
    the share of draws in which B is ahead. Differences are B less A; low, high and better are None where too few images have it.

    Raises:
        EvaluationError: a report is of another kind, other classes or no common image, or its rows can't be read.
    """
    for report in (a, b):
        if report.get("format") != FORMAT or "per_image" not in report:
            raise EvaluationError("this is no report.json of thingstuff evaluate, or one of another version; write it again")
    if task_of(a) != task_of(b):
        raise EvaluationError(f"one report is of {task_of(a)}, the other of {task_of(b)}; they have no figure in common")
    if list(a["per_class"]) != list(b["per_class"]):
        only = sorted(set(a["per_class"]) ^ set(b["per_class"]))
        raise EvaluationError(f"the reports have different classes ({', '.join(only[:5])}); judge both on the same data")
    task = task_of(a)
    ids_b = set(b["per_image"]["image_ids"])
    common = [image_id for image_id in a["per_image"]["image_ids"] if image_id in ids_b]
    if not common:
        raise EvaluationError("the reports have no image in common; judge both on the same data")

    if samples is None:
        samples = min(_affordable(a), _affordable(b))
    draws = [_drawn(report, common, samples, seed) for report in (a, b)]
    points = [_drawn(report, common, 0, seed) for report in (a, b)]
    metrics = []
    for kind, key, name in NAMES[task]:
        if all(kind in drawn for drawn in draws):
            metrics.append(_row(name, len(common), *(drawn[kind].overall[key] for drawn in (*draws, *points))))
    main = OF_CLASSES[task]
    seen = _images_of_classes(a, main, set(common))
    per_class = [
        _row(name, int(seen[class_]), *(drawn[main].per_class[:, class_] for drawn in (*draws, *points)), few=ENOUGH_IMAGES)
        for class_, name in enumerate(a["per_class"])
    ]
    return {
        "format": FORMAT,
        "task": task,
        "a": _about(a),
        "b": _about(b),
        "images": len(common),
        "samples": samples,
        "metrics": metrics,
        "per_class": [row for row in per_class if row["difference"] is not None],
        "errors": _errors(a, b),
        "changed": _changed(a, b, set(common)),
    }


def _about(report: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("model", "predictions", "data", "split", "images", "max_detections")
    return {key: report[key] for key in keys if report.get(key) is not None}


def _drawn(report: Mapping[str, Any], common: list[int] | None, samples: int, seed: int) -> dict[str, Drawn]:
    """Figures of every draw, by kind; with no samples the one of the images as they are."""
    rows = report["per_image"]
    ids = rows["image_ids"] if common is None else common
    draws = draw_images(len(ids), samples, seed) if samples else np.ones((1, len(ids)))
    found: dict[str, Drawn] = {}
    if rows.get("pq"):
        counted = PanopticCounts.from_json(rows["pq"])
        found["pq"] = panoptic_qualities(counted, weights_of(counted.image_ids, ids, draws))
    if rows.get("semantic"):
        counted = SemanticCounts.from_json(rows["semantic"])
        found["semantic"] = semantic_qualities(counted, weights_of(counted.image_ids, ids, draws))
    for kind in ("mask", "box"):
        if rows.get(kind):
            matches = Matches.from_json(rows[kind])
            found[kind] = average_precisions(matches, weights_of(matches.image_ids, ids, draws))
    return found


def _affordable(report: Mapping[str, Any]) -> int:
    rows = report["per_image"]
    return affordable_samples(Matches.from_json(rows["mask"])) if rows.get("mask") else SAMPLES


def _row(
    name: str, images: int, a: np.ndarray, b: np.ndarray, alone_a: np.ndarray, alone_b: np.ndarray, *, few: int = 0
) -> dict[str, Any]:
    """A figure of every draw of A and of B, and its one value on the images as they are; no interval of fewer than `few`."""
    value_a, value_b = float(alone_a[0]), float(alone_b[0])
    stated = {"a": None if np.isnan(value_a) else value_a, "b": None if np.isnan(value_b) else value_b}
    row: dict[str, Any] = {"name": name, **stated, "difference": None, "low": None, "high": None, "better": None}
    if None in stated.values():
        return row
    row["difference"] = value_b - value_a
    reach = None if images < few else interval(b - a, value_b - value_a, images)
    if reach is None:
        return row
    differences = (b - a)[~np.isnan(b - a)]
    better = float((differences > 0).mean() + (differences == 0).mean() / 2)
    return {**row, "low": max(reach[0], -1.0), "high": min(reach[1], 1.0), "better": better}


def _images_of_classes(report: Mapping[str, Any], kind: str, common: set[Any]) -> np.ndarray:
    """In how many of the common images each class has something to find."""
    if kind == "pq":
        counted = PanopticCounts.from_json(report["per_image"]["pq"])
        present, ids = counted.counts[:, :, 0] + counted.counts[:, :, 2] > 0, counted.image_ids
    elif kind == "semantic":
        counted = SemanticCounts.from_json(report["per_image"]["semantic"])
        present, ids = counted.counts[:, :, 1] > 0, counted.image_ids
    else:
        matches = Matches.from_json(report["per_image"][kind])
        present, ids = matches.truths[0] > 0, matches.image_ids
    return present[np.array([image_id in common for image_id in ids], np.bool_)].sum(axis=0)


def _errors(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    if not a.get("errors") or not b.get("errors"):
        return {}
    kinds = dict.fromkeys([*a["errors"]["kinds"], *b["errors"]["kinds"]])
    return {
        kind: {side: report["errors"]["kinds"].get(kind, {}).get("count", 0) for side, report in (("a", a), ("b", b))}
        for kind in kinds
    }


def _changed(a: Mapping[str, Any], b: Mapping[str, Any], common: set[int]) -> list[dict[str, Any]]:
    """The images whose quality differs most, the best news for B first."""
    of_b = dict(zip(b["per_image"]["image_ids"], b["per_image"]["quality"], strict=True))
    rows = a["per_image"]
    found = [
        {"name": name, "a": quality, "b": of_b[image_id]}
        for image_id, name, quality in zip(rows["image_ids"], rows["names"], rows["quality"], strict=True)
        if image_id in common and quality is not None and of_b[image_id] is not None
    ]
    found.sort(key=lambda row: row["a"] - row["b"])
    gains = [row for row in found if row["b"] > row["a"]][:CHANGED]
    losses = [row for row in found if row["b"] < row["a"]][-CHANGED:]
    return gains + losses


def format_comparison(comparison: Mapping[str, Any]) -> str:
    """The differences as lines to print: percent, with a star where the interval leaves out zero."""
    width = max([16, *(len(row["name"]) for row in comparison["metrics"])]) + 2
    lines = [f"{'':<{width}}{'A':>8}{'B':>8}{'B - A':>9}   95 % interval"]
    for row in comparison["metrics"]:
        if row["difference"] is None:
            continue
        sure = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
        reach = "-" if row["low"] is None else f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f}"
        numbers = f"{100 * row['a']:8.2f}{100 * row['b']:8.2f}{100 * row['difference']:+9.2f}"
        lines.append(f"{row['name']:<{width}}{numbers}   {reach}{' *' if sure else ''}")
    lines += ["", f"{comparison['images']} images, {comparison['samples']} bootstrap samples; * the interval leaves out zero"]
    return "\n".join(lines)
