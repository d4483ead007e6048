"""`thingstuff evaluate` for panoptic maps: panoptic quality, boundary PQ, mIoU, and a report of them."""

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from thingstuff.cli.arguments import given, reading
from thingstuff.cli.judge_things import ThingsJudge, judges_things
from thingstuff.cli.judged import Judged, Worst, about, photo_path, pictures_wanted
from thingstuff.cli.report_files import legible, photo
from thingstuff.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from thingstuff.data.panoptic import ImageId, PanopticDataset, PanopticRecord
    from thingstuff.evaluation.panoptic_matching import ClassCounts
    from thingstuff.evaluation.report import Picture
    from thingstuff.models.contract import Task
    from thingstuff.segmenter import Segmenter
    from thingstuff.structures.panoptic import PanopticMap

BOUNDARY = 0.02  # width of boundaries as a share of the image's diagonal (Cheng et al., 2021, section 4)
GROUPS = ("All", "Things", "Stuff")


def judge_panoptic(arguments: argparse.Namespace, segmenter: "Segmenter | None") -> Judged:
    """Compare a model's panoptic maps, or without a model a file's, with those of a data set."""
    from thingstuff.evaluation.panoptic_mistakes import PanopticMistakes
    from thingstuff.evaluation.panoptic_quality import PanopticQuality
    from thingstuff.evaluation.semantic import SemanticQuality
    from thingstuff.models.contract import Task

    data = open_maps(arguments)
    if segmenter is None and (arguments.max_detections is not None or arguments.score is not None):
        raise ConfigError("--score and --max-detections go with objects that have scores; a panoptic map has each pixel once")
    quality, boundary = PanopticQuality(data.categories), PanopticQuality(data.categories, boundary=BOUNDARY)
    semantic, mistakes = SemanticQuality(data.categories), PanopticMistakes(quality)
    counts: dict[ImageId, dict[int, ClassCounts]] = {}
    qualities: dict[ImageId, float | None] = {}
    lowest = Worst(pictures_wanted(arguments))
    failed = 0
    things = None
    if segmenter is None:
        maps = _of_file(arguments, data)
    else:
        things = judges_things(arguments, data, segmenter)
        maps = maps_of_model(arguments, data, segmenter, Task.PANOPTIC, things)
    for record, prediction in maps:
        if isinstance(prediction, ImageError):
            print(f"thingstuff: {prediction}", file=sys.stderr)
            failed += 1
            prediction = no_segments(record, data)
        truth = record.panoptic_map()
        row = quality.update(prediction, truth, record.image_id)
        wrong = mistakes.update(prediction, truth, record.image_id, row)
        counts[record.image_id] = row.per_class
        qualities[record.image_id] = own = _quality_of_all(row.per_class)
        lowest.offer(record.image_id, own, len(row.false_positives) + len(row.false_negatives), (prediction, wrong.rows))
        boundary.update(prediction, truth, record.image_id)
        semantic.update(class_map(prediction, data), class_map(truth, data), record.image_id)
    result = _result(quality.compute(), boundary.compute(), semantic.compute())
    table = format_table(result)

    def report() -> "tuple[dict[str, Any], list[Picture]]":
        values = {**about(arguments, len(data), failed), **result, "errors": mistakes.compute()}
        return _report(arguments, data, values, counts, qualities, lowest)

    if things is not None:
        result, table = things.add_to(result, table)
    return Judged(result, table, report, failed)


def _quality_of_all(per_class: "dict[int, ClassCounts]") -> float | None:
    """PQ of one image's segments, whatever their class; None where there are none."""
    tp, fp, fn, iou_sum = (sum(column) for column in zip(*per_class.values(), strict=True)) if per_class else (0, 0, 0, 0.0)
    whole = tp + fp / 2 + fn / 2
    return iou_sum / whole if whole else None


def open_maps(arguments: argparse.Namespace) -> "PanopticDataset":
    """The data to compare with.

    Raises:
        ConfigError: no image is annotated, or they are said to be annotated for some classes only.
    """
    from thingstuff.data.folders import open_panoptic

    limits = given(max_pixels=arguments.max_pixels)
    data = open_panoptic(arguments.data, arguments.split, image_dir=arguments.images, **limits)
    if not len(data):
        raise ConfigError(f"{data.source}: has no annotation of any image, so there is nothing to compare with")
    if arguments.federated:
        raise ConfigError("--federated goes with LVIS's objects; panoptic maps are annotated throughout")
    return data


def _result(quality: dict[str, Any], boundary: dict[str, Any], semantic: dict[str, Any]) -> dict[str, Any]:
    """What `--json` prints: groups apart from classes, and what each metric says of a class in one row."""
    return {
        "pq": {group: quality[group] for group in GROUPS},
        "boundary_pq": {group: boundary[group] for group in GROUPS},
        "semantic": {key: value for key, value in semantic.items() if key != "per_class"},
        "per_class": {
            name: {**row, "boundary_pq": boundary["per_class"][name]["pq"], "iou": semantic["per_class"][name]["iou"]}
            for name, row in quality["per_class"].items()
        },
    }


def no_segments(record: "PanopticRecord", data: "PanopticDataset") -> "PanopticMap":
    import numpy as np

    from thingstuff.structures.panoptic import PanopticMap

    none = np.zeros(0, np.int64)
    size = record.size or record.panoptic_map().size
    return PanopticMap(np.zeros(size, np.int32), none, none, none.astype(np.bool_), data.categories)


def class_map(segments: "PanopticMap", data: "PanopticDataset") -> Any:
    """The class of each pixel in the data's categories, -1 for void and for ids that are not listed."""
    import numpy as np

    own = {category_id: class_ for class_, category_id in enumerate(data.categories.ids)}
    classes = [own[segments.categories.ids[class_]] for class_ in segments.classes.tolist()]
    return np.array([-1, *classes, -1], np.int64)[segments.index_map()]


# Predictions ----------------------------------------------------------------------------------------------------------


def _of_file(
    arguments: argparse.Namespace, data: "PanopticDataset"
) -> "Iterator[tuple[PanopticRecord, PanopticMap | ImageError]]":
    from thingstuff.data.panoptic import pairs, read_panoptic_predictions

    for option in ("device", "batch_size"):
        if getattr(arguments, option) not in (None, 1):
            raise ConfigError(f"--{option.replace('_', '-')} goes with --model; predictions from a file are made already")
    predictions = read_panoptic_predictions(arguments.predictions, data.categories, **given(max_pixels=arguments.max_pixels))
    loaders = {image_id: prediction for image_id, prediction, _ in pairs(predictions, data)}
    if len(loaders) < len(predictions):
        others = len(predictions) - len(loaders)
        print(f"thingstuff: {others} predicted images are not in {data.source} and do not count", file=sys.stderr)
    return ((record, loaders[record.image_id]()) for record in _with_bar(data))


def maps_of_model(
    arguments: argparse.Namespace,
    data: "PanopticDataset",
    segmenter: "Segmenter",
    task: "Task",
    things: "ThingsJudge | None" = None,
) -> "Iterator[tuple[PanopticRecord, PanopticMap | ImageError]]":
    """The maps, none of which is kept, and the objects of the same images to the judge of things."""
    from thingstuff.cli.predictions import in_categories, matched_classes
    from thingstuff.structures.panoptic import PanopticMap

    paths = [photo_path(arguments, record.path) for record in data]
    if missing := [record.image_id for record, path in zip(data, paths, strict=True) if path is None]:
        raise ConfigError(f"{data.source}: the photo of image {missing[0]} isn't there; name the folder of photos: --images DIR")
    classes = matched_classes(segmenter.categories, data.categories)
    limits = [segmenter.thresholds(score_threshold=arguments.score, task=task), *([things.limits] if things else [])]
    options = {"batch_size": arguments.batch_size, **reading(arguments)}

    def predicted() -> "Iterator[tuple[PanopticRecord, PanopticMap | ImageError]]":
        for record, (_, answer) in zip(_with_bar(data), segmenter.stream_by(limits, paths, **options), strict=True):
            if isinstance(answer, ImageError):
                yield record, answer
                continue
            if things is not None:
                things.update(record.image_id, answer[1])
            yield record, PanopticMap.from_segments(in_categories(answer[0], data.categories, classes))

    return predicted()


def _with_bar(data: "PanopticDataset") -> "Iterator[PanopticRecord]":
    from tqdm import tqdm

    return iter(tqdm(data, total=len(data), desc="evaluate", unit="image", disable=None))


# The report -----------------------------------------------------------------------------------------------------------


def _report(
    arguments: argparse.Namespace,
    data: "PanopticDataset",
    values: dict[str, Any],
    per_image: "dict[ImageId, dict[int, ClassCounts]]",
    quality: "dict[ImageId, float | None]",
    lowest: Worst,
) -> "tuple[dict[str, Any], list[Picture]]":
    import numpy as np

    from thingstuff.evaluation.bootstrap import PanopticCounts
    from thingstuff.evaluation.comparison import intervals
    from thingstuff.evaluation.report import Picture

    counts = np.zeros((len(per_image), len(data.categories), 4))
    for position, per_class in enumerate(per_image.values()):
        for class_, of_class in per_class.items():
            counts[position, class_] = of_class
    objects = (counts[:, :, 0] + counts[:, :, 2]).sum(axis=0)
    sums = counts.sum(axis=1)  # image 4
    names = list(values["per_class"])
    records = data.by_image_id
    report = {
        **values,
        "objects": int(objects.sum()),
        "classes": {
            name: {"objects": int(number), "is_thing": category.is_thing}
            for name, number, category in zip(names, objects, data.categories, strict=True)
        },
        "per_image": {
            "image_ids": list(per_image),
            "names": [photo_name(records[image_id]) for image_id in per_image],
            "quality": list(quality.values()),
            **{key: sums[:, column].astype(int).tolist() for column, key in enumerate(("tp", "fp", "fn"))},
            "pq": PanopticCounts(tuple(per_image), tuple(category.is_thing for category in data.categories), counts).to_json(),
        },
    }
    report["intervals"] = intervals(report)

    pictures = []
    for image_id, (prediction, mistakes) in lowest.shown().items():
        record = records[image_id]
        truth = record.panoptic_map()
        pictures.append(
            Picture(
                photo_name(record),
                photo(photo_path(arguments, record.path), truth.size, **reading(arguments)),
                truth.to_segments(),
                prediction.to_segments(),
                mistakes,
                frozenset(np.flatnonzero(truth.crowd).tolist()),
                quality[image_id],
            )
        )
    return report, pictures


def photo_name(record: "PanopticRecord") -> str:
    return legible(record.path.name if record.path else record.png.name)


def format_table(result: dict[str, Any]) -> str:
    """The figures as lines to print: percent, with a dash where there is nothing to find."""
    lines = [f"{'':<10}{'PQ':>8}{'SQ':>8}{'RQ':>8}{'classes':>9}{'TP':>8}{'FP':>8}{'FN':>8}{'boundary PQ':>13}"]
    for group in GROUPS:
        row, boundary = result["pq"][group], result["boundary_pq"][group]["pq"]
        figures = "".join(percent(row[key]) for key in ("pq", "sq", "rq"))
        lines.append(f"{group:<10}{figures}{row['n']:>9}{row['tp']:>8}{row['fp']:>8}{row['fn']:>8}{percent(boundary):>13}")
    semantic = result["semantic"]
    words = {"mIoU": "mIoU", "fwIoU": "fwIoU", "pixel_accuracy": "pixel accuracy"}
    lines += ["", ", ".join(f"{word} {percent(semantic[key]).strip()}" for key, word in words.items())]
    width = max([len("class"), *map(len, result["per_class"])]) + 2
    lines += ["", f"{'class':<{width}}{'PQ':>8}{'SQ':>8}{'RQ':>8}{'TP':>8}{'FP':>8}{'FN':>8}"]
    for name, row in result["per_class"].items():
        figures = "".join(percent(row[key]) for key in ("pq", "sq", "rq"))
        lines.append(f"{name:<{width}}{figures}{row['tp']:>8}{row['fp']:>8}{row['fn']:>8}")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{100 * value:8.2f}"
