"""`thingstuff evaluate` for objects with scores: average precision, and a report of it."""

import argparse
import sys
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from thingstuff.cli.arguments import given, reading
from thingstuff.cli.judged import Judged, about, photo_path, pictures_wanted, worst
from thingstuff.cli.predictions import predictions_of
from thingstuff.cli.report_files import legible, photo
from thingstuff.errors import ConfigError, ImageError

if TYPE_CHECKING:
    import numpy as np

    from thingstuff.data.records import InstanceDataset, Record
    from thingstuff.evaluation.average_precision import AveragePrecision
    from thingstuff.evaluation.mistakes import ImageMistakes
    from thingstuff.evaluation.report import Picture
    from thingstuff.segmenter import Segmenter
    from thingstuff.structures.segments import Segments

COUNTED = 100  # best-scored objects of an image and class that count, as COCO has it
COUNTED_FEDERATED = 300  # of an image, as LVIS has it
BOUNDARY = 0.02  # width of boundaries as a share of the image's diagonal (Cheng et al., 2021, section 4)


def judge_instances(arguments: argparse.Namespace, segmenter: "Segmenter | None") -> Judged:
    """Compare a model's objects, or without one a file's, with those of a data set."""
    from thingstuff.data.folders import open_dataset
    from thingstuff.evaluation.average_precision import AveragePrecision, format_table

    limits = given(max_pixels=arguments.max_pixels)
    where = {"image_dir": arguments.images, "required_images": arguments.model is not None}
    data = open_dataset(arguments.data, arguments.split, **where, **limits)
    if not len(data):
        raise ConfigError(f"{data.source}: has no image, so there is nothing to compare with")
    max_detections = arguments.max_detections or (COUNTED_FEDERATED if arguments.federated else COUNTED)
    precision = AveragePrecision(data, max_detections, boundary=BOUNDARY, federated=arguments.federated)
    found: dict[int, Segments] = {}
    failed = 0
    for record, answer in predictions_of(arguments, data, segmenter):
        if isinstance(answer, ImageError):
            print(f"thingstuff: {answer}", file=sys.stderr)
            failed += 1
        else:
            precision.update(record.image_id, answer)
            found[record.image_id] = replace(answer, image=None)
    result = precision.compute()

    def report() -> "tuple[dict[str, Any], list[Picture]]":
        first = {**about(arguments, len(data), failed), "max_detections": max_detections, "score": arguments.score}
        return _report(arguments, data, precision, {**first, **result}, found)

    return Judged(result, format_table(result, max_detections, federated=arguments.federated), report, failed)


def _report(
    arguments: argparse.Namespace,
    data: "InstanceDataset",
    precision: "AveragePrecision",
    values: dict[str, Any],
    found: "dict[int, Segments]",
) -> "tuple[dict[str, Any], list[Picture]]":
    from thingstuff.evaluation.comparison import intervals
    from thingstuff.evaluation.operating_point import best_score, image_summaries
    from thingstuff.evaluation.report import Picture

    matches = precision.matches("mask")
    score = best_score(matches)
    summaries = image_summaries(matches, score)
    names = data.categories.distinct_names
    objects = Counter(item.class_ for record in data for item in record.objects if not item.is_crowd)
    errors, of_images = None, {}
    if not arguments.federated:  # where classes are left unannotated, nobody can say what is a mistake
        errors, of_images = _mistakes(data, found, score, values["max_detections"])
    per_image = {
        "image_ids": list(summaries),
        "names": [_name(data.record_of(image_id)) for image_id in summaries],
        **{key: [getattr(row, key) for row in summaries.values()] for key in ("quality", "tp", "fp", "fn")},
        "mask": matches.to_json(),
        "box": precision.matches("box").to_json(),
    }
    confusion = {"score": score, "iou": 0.5, "classes": names, "counts": precision.confusion(score).tolist()}
    report = {
        **values,
        "federated": arguments.federated,
        "objects": sum(objects.values()),
        "classes": {name: {"objects": objects[class_], "is_thing": True} for class_, name in enumerate(names)},
        "curves": precision.curves(),
        "errors": errors,
        "confusion": None if arguments.federated else confusion,
        "per_image": per_image,
    }
    report["intervals"] = intervals(report)

    pictures = []
    qualities = {image_id: row.quality for image_id, row in summaries.items()}
    wrong = {image_id: row.fp + row.fn for image_id, row in summaries.items()}
    for image_id in worst(qualities, wrong, 0 if arguments.federated else pictures_wanted(arguments)):
        record = data.record_of(image_id)
        picture = photo(photo_path(arguments, record.path), record.size, **reading(arguments))
        truth, is_crowd = _truth(record, data)
        prediction = _counted(found, record, data, score)
        crowds = frozenset(is_crowd.nonzero()[0].tolist())
        rows = of_images[image_id].rows
        pictures.append(Picture(_name(record), picture, truth, prediction, rows, crowds, summaries[image_id].quality))
    return report, pictures


def _mistakes(
    data: "InstanceDataset", found: "dict[int, Segments]", score: float, max_detections: int
) -> "tuple[dict[str, Any], dict[int, ImageMistakes]]":
    """What kinds of mistakes there are: counted where a user would cut, their costs, as AP, over every score."""
    from thingstuff.evaluation.instance_mistakes import InstanceMistakes

    above, every = (InstanceMistakes(data.categories, max_detections) for _ in range(2))
    of_images = {}
    for record in data:
        truth, is_crowd = _truth(record, data)
        of_images[record.image_id] = above.update(record.image_id, _counted(found, record, data, score), truth, is_crowd)
        every.update(record.image_id, _counted(found, record, data, 0.0), truth, is_crowd)
    counts, costs = above.compute(), every.compute()
    kinds = {kind: {**row, "cost": costs["kinds"][kind]["cost"]} for kind, row in counts["kinds"].items()}
    chosen = {"score": score, "score_is": "where precision and recall at IoU 0.5 balance best (highest F1)"}
    return {**counts, "metric": costs["metric"], "value": costs["value"], **chosen, "kinds": kinds}, of_images


def _counted(found: "dict[int, Segments]", record: "Record", data: "InstanceDataset", score: float) -> "Segments":
    """What was found in an image with at least this score."""
    from thingstuff.structures.segments import Segments

    segments = found.get(record.image_id)
    return Segments.empty(record.size, data.categories) if segments is None else segments[segments.scores >= score]


def _truth(record: "Record", data: "InstanceDataset") -> "tuple[Segments, np.ndarray]":
    """What is annotated in an image, with score 1, and which of it are crowds."""
    import numpy as np

    from thingstuff.structures.segments import Segments

    objects = record.objects
    segments = Segments(
        size=record.size,
        categories=data.categories,
        classes=np.array([item.class_ for item in objects], np.int64),
        scores=np.ones(len(objects), np.float32),
        boxes=np.array([item.box for item in objects], np.float32).reshape(-1, 4),
        rles=tuple(item.mask for item in objects),
    )
    return segments, np.array([item.is_crowd for item in objects], np.bool_)


def _name(record: "Record") -> str:
    return legible(record.path.name if record.path else f"image {record.image_id}")
