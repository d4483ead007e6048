"""Which predictions belong to which image of a data set: those a model makes of it, or those of a file from any program."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thingstuff.cli.arguments import reading
from thingstuff.errors import ConfigError, EvaluationError, ImageError

if TYPE_CHECKING:
    from thingstuff.data.records import InstanceDataset, Record
    from thingstuff.formats.coco import ImageResults
    from thingstuff.segmenter import Segmenter
    from thingstuff.structures.categories import Categories
    from thingstuff.structures.segments import Segments


def predictions_of(
    arguments: argparse.Namespace, data: "InstanceDataset", segmenter: "Segmenter | None"
) -> "Iterator[tuple[Record, Segments | ImageError]]":
    """Images of the data with what was found in them, in the data's categories: by the model, or else in the file."""
    return _of_file(arguments, data) if segmenter is None else _of_model(arguments, data, segmenter)


def _of_model(
    arguments: argparse.Namespace, data: "InstanceDataset", segmenter: "Segmenter"
) -> "Iterator[tuple[Record, Segments | ImageError]]":
    """Each image of the data with what the model finds in it."""
    from tqdm import tqdm

    classes = matched_classes(segmenter.categories, data.categories)
    answers = _stream(segmenter, arguments, data)
    for record, answer in tqdm(zip(data, answers, strict=True), total=len(data), desc="evaluate", unit="image", disable=None):
        yield record, answer if isinstance(answer, ImageError) else in_categories(answer, data.categories, classes)


def _stream(segmenter: "Segmenter", arguments: argparse.Namespace, data: "InstanceDataset") -> "Iterator[Segments | ImageError]":
    found = segmenter.stream(
        [record.path for record in data],
        score_threshold=segmenter.thresholds().score if arguments.score is None else arguments.score,
        task="instance",
        max_detections=arguments.max_detections,
        batch_size=arguments.batch_size,
        **reading(arguments),
    )
    return (answer for _, answer in found)


def matched_classes(own: "Categories", data: "Categories") -> list[int]:
    """For each class of a model the class of the data, -1 where it has none: by name, or by place for a model without names.

    Raises:
        EvaluationError: they share no category.
    """
    if own.names == type(own).numbered(len(own)).names and len(own) == len(data):
        return list(range(len(data)))
    classes = {name: class_ for class_, name in enumerate(data.names)}
    matched = [classes.get(name, -1) for name in own.names]
    if max(matched, default=-1) < 0:
        raise EvaluationError(f"the model finds {_some(own.names)}, the data has {_some(data.names)}; there is no name in both")
    return matched


def in_categories(segments: "Segments", categories: "Categories", classes: list[int]) -> "Segments":
    """The segments in the data's categories; those it doesn't have are left out."""
    import numpy as np

    matched = np.array(classes, dtype=np.int64)[segments.classes]
    kept = segments[matched >= 0]
    return replace(kept, categories=categories, classes=matched[matched >= 0])


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# Predictions from a file ----------------------------------------------------------------------------------------------


def _of_file(arguments: argparse.Namespace, data: "InstanceDataset") -> "Iterator[tuple[Record, Segments | ImageError]]":
    """Each image of the data that the file has predictions for."""
    from thingstuff.formats.coco import read_results

    for option in ("device", "batch_size"):
        if getattr(arguments, option) not in (None, 1):
            raise ConfigError(f"--{option.replace('_', '-')} goes with --model; predictions from a file are made already")
    results = read_results(arguments.predictions)
    lowest = -float("inf") if arguments.score is None else arguments.score
    for record, image in matched_images(results, data, arguments.predictions):
        rows = [row for row in image.rows if row["score"] >= lowest]
        yield record, replace(image, rows=tuple(rows)).segments(record.size, data.categories)


def matched_images(results: "list[ImageResults]", data: "InstanceDataset", source: Path) -> "list[tuple[Record, ImageResults]]":
    """Results with the image they belong to: by file name where they give one and the data has it, else by image id.

    Categories that the data doesn't have are left out, and so are other images, both with a note on stderr: predictions for a
    whole folder can be judged on one split of it. So are images of the data without a result counted there.

    Raises:
        EvaluationError: no image, or no category, is in both; or two results belong to one image.
    """
    by_name: dict[str, list[Record]] = defaultdict(list)
    for record in data:
        if record.path is not None:
            by_name[record.path.name].append(record)
    by_id = {record.image_id: record for record in data}
    by_name_alone = all(image.file_name is not None for image in results) and any(_of_name(image, by_name) for image in results)

    pairs: list[tuple[Record, ImageResults]] = []
    taken: set[int] = set()
    known = set(data.categories.ids)
    rows = left_out = 0
    for image in results:
        record = _of_name(image, by_name) if by_name_alone else by_id.get(image.image_id)  # type: ignore[arg-type]
        if record is None:
            continue
        if record.image_id in taken:
            raise EvaluationError(f"{source}: has two sets of predictions for {image.file_name or image.image_id}")
        taken.add(record.image_id)
        kept = tuple(row for row in image.rows if row["category_id"] in known)
        rows, left_out = rows + len(image.rows), left_out + len(image.rows) - len(kept)
        pairs.append((record, replace(image, rows=kept)))

    if results and not pairs:
        first = results[0].file_name or results[0].image_id
        raise EvaluationError(
            f"{source}: none of its {len(results)} images is in {data.source}, for instance {first}; name their data"
        )
    if rows and left_out == rows:
        raise EvaluationError(
            f"{source}: none of its category ids is in {data.source}, which has {_some(map(str, data.categories.ids))}"
        )
    for record, image in pairs:
        if image.file_name is not None and record.path is not None and Path(image.file_name).name != record.path.name:
            print(
                f"thingstuff: {source} is matched by image ids: {image.image_id} is {image.file_name} there and "
                f"{record.path.name} in {data.source}; make sure that the predictions are of these images",
                file=sys.stderr,
            )
            break
    if len(pairs) < len(results):
        print(
            f"thingstuff: {len(results) - len(pairs)} predicted images are not in {data.source} and do not count", file=sys.stderr
        )
    if len(pairs) < len(data):  # images where nothing was found have no row, so that this may be as it should
        print(
            f"thingstuff: {source} names {len(pairs)} of the {len(data)} images of {data.source}; "
            f"the other {len(data) - len(pairs)} count as images where nothing was found",
            file=sys.stderr,
        )
    if left_out:
        print(f"thingstuff: {left_out} predictions of categories that {data.source} lacks do not count", file=sys.stderr)
    return pairs


def _of_name(image: "ImageResults", by_name: "dict[str, list[Record]]") -> "Record | None":
    """The image whose path ends in the results' file name, when there is exactly one."""
    if image.file_name is None:
        return None
    parts = Path(image.file_name).parts
    matches = [record for record in by_name.get(parts[-1] if parts else "", []) if _ends_alike(record, parts)]
    return matches[0] if len(matches) == 1 else None


def _ends_alike(record: "Record", parts: tuple[Any, ...]) -> bool:
    assert record.path is not None
    own = record.path.parts
    length = min(len(own), len(parts))
    return own[-length:] == parts[-length:]
