"""`thingstuff evaluate --task semantic`: IoU and accuracy of class maps, and a report of them.

Of things a class map tells no two apart, so that no segment counts: nothing here is matched, and there is no PQ.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from thingstuff.cli.arguments import reading
from thingstuff.cli.judge_panoptic import class_map, maps_of_model, no_segments, open_maps, percent, photo_name
from thingstuff.cli.judged import Judged, Worst, about, photo_path, pictures_wanted
from thingstuff.cli.report_files import photo
from thingstuff.errors import ImageError

if TYPE_CHECKING:
    import numpy as np

    from thingstuff.data.panoptic import ImageId, PanopticDataset
    from thingstuff.evaluation.report import Picture
    from thingstuff.segmenter import Segmenter
    from thingstuff.structures.panoptic import PanopticMap
    from thingstuff.structures.segments import Segments

FIGURES = {"mIoU": "mIoU", "fwIoU": "fwIoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy"}


def judge_semantic(arguments: argparse.Namespace, segmenter: "Segmenter") -> Judged:
    """Compare a model's class maps with those of a data set."""
    from thingstuff.evaluation.bootstrap import class_counts
    from thingstuff.evaluation.semantic import SemanticQuality
    from thingstuff.models.contract import Task

    data = open_maps(arguments)
    quality = SemanticQuality(data.categories)
    counts: dict[ImageId, np.ndarray] = {}  # of each class alone: images times classes squared don't fit
    qualities: dict[ImageId, float | None] = {}
    lowest = Worst(pictures_wanted(arguments))
    failed = 0
    for record, prediction in maps_of_model(arguments, data, segmenter, Task.SEMANTIC):
        if isinstance(prediction, ImageError):
            print(f"thingstuff: {prediction}", file=sys.stderr)
            failed += 1
            prediction = no_segments(record, data)
        truth = class_map(record.panoptic_map(), data)
        confusion = quality.update(class_map(prediction, data), truth, record.image_id)
        counts[record.image_id] = class_counts(confusion)
        qualities[record.image_id] = own = _mean_iou(counts[record.image_id])
        lowest.offer(record.image_id, own, int(confusion.sum() - confusion.diagonal().sum()), prediction)
    figures = quality.compute()
    result = {
        "semantic": {key: value for key, value in figures.items() if key != "per_class"},
        "per_class": {name: {"iou": row["iou"]} for name, row in figures["per_class"].items()},
    }

    def report() -> "tuple[dict[str, Any], list[Picture]]":
        values = {**about(arguments, len(data), failed), **result}
        return _report(arguments, data, values, quality.confusion(), counts, qualities, lowest)

    return Judged(result, format_table(result), report, failed)


def _mean_iou(counts: "np.ndarray") -> float | None:
    """Of one image, over the classes that are anywhere in it."""
    hits, true, predicted = counts[counts.any(axis=1)].T
    return float((hits / (true + predicted - hits)).mean()) if len(hits) else None


def _report(
    arguments: argparse.Namespace,
    data: "PanopticDataset",
    values: dict[str, Any],
    confusion: "np.ndarray",
    of_images: "dict[ImageId, np.ndarray]",
    quality: "dict[ImageId, float | None]",
    lowest: Worst,
) -> "tuple[dict[str, Any], list[Picture]]":
    import numpy as np

    from thingstuff.evaluation.bootstrap import SemanticCounts
    from thingstuff.evaluation.comparison import intervals
    from thingstuff.evaluation.report import Picture

    ids, names, records = list(of_images), list(values["per_class"]), data.by_image_id
    counts = SemanticCounts(tuple(ids), np.stack(list(of_images.values())))
    pixels = counts.counts.sum(axis=0)[:, 1].astype(int).tolist()
    report = {
        **values,
        "classes": {
            name: {"pixels": number, "is_thing": category.is_thing}
            for name, number, category in zip(names, pixels, data.categories, strict=True)
        },
        "confusion": {"classes": names, "counts": confusion.tolist()},
        "per_image": {
            "image_ids": ids,
            "names": [photo_name(records[image_id]) for image_id in ids],
            "quality": list(quality.values()),
            "semantic": counts.to_json(),
        },
    }
    report["intervals"] = intervals(report)

    pictures = []
    for image_id, prediction in lowest.shown().items():
        record = records[image_id]
        truth = record.panoptic_map()
        photograph = photo(photo_path(arguments, record.path), truth.size, **reading(arguments))
        annotated, found = _regions(truth, data), _regions(prediction, data)
        pictures.append(Picture(photo_name(record), photograph, annotated, found, [], quality=quality[image_id]))
    return report, pictures


def _regions(segments: "PanopticMap", data: "PanopticDataset") -> "Segments":
    """The pixels of each class as one segment."""
    import numpy as np

    from thingstuff.structures.panoptic import PanopticMap

    ids = class_map(segments, data) + 1  # void is -1, and 0 in maps of ids
    shown = np.unique(ids[ids > 0])
    return PanopticMap(ids, shown, shown - 1, np.zeros(len(shown), np.bool_), data.categories).to_segments()


def format_table(result: dict[str, Any]) -> str:
    """The figures as lines to print: percent, with a dash for a class that is nowhere."""
    lines = [", ".join(f"{word} {percent(result['semantic'][key]).strip()}" for key, word in FIGURES.items())]
    width = max([len("class"), *map(len, result["per_class"])]) + 2
    lines += ["", f"{'class':<{width}}{'IoU':>8}"]
    return "\n".join(lines + [f"{name:<{width}}{percent(row['iou'])}" for name, row in result["per_class"].items()])
