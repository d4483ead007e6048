"""`thingstuff data check`: everything that is wrong with a data set, a line each."""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from thingstuff.cli.arguments import given, named_path, positive, shown
from thingstuff.errors import AnnotationError, ConfigError

Check = Callable[[], list[str]]  # what is wrong


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="DATA", type=named_path, help="folder in a layout that train and evaluate read, or an annotation file"
    )
    parser.add_argument("--split", metavar="NAME", help="check this split alone (all that there are)")
    parser.add_argument(
        "--images", metavar="DIR", type=named_path, help="folder of the photos, where the data doesn't lead to them"
    )
    parser.add_argument("--no-images", action="store_true", help="leave the photos alone: the annotations are all there is")
    parser.add_argument("--max-pixels", metavar="N", type=positive, help="refuse images and maps of more pixels (200 million)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.epilog = "The exit code is 0 where nothing is wrong, 1 where something is, 2 where there is no data set."


def run_check(arguments: argparse.Namespace) -> int:
    if arguments.images is not None and not arguments.images.is_dir():
        raise ConfigError(f"{arguments.images}: does not exist; give --images the folder of the photos")
    found: list[dict[str, Any]] = []
    for path, check in _checks(arguments):
        try:
            problems = check()
        except AnnotationError as error:  # nothing of it can be read
            problems = [str(error).removeprefix(f"{path}: ")]
        found.append({"file": shown(path), "problems": problems})
        if not arguments.json:
            for problem in problems:
                print(f"{shown(path)}: {problem}")
            count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "nothing is wrong"
            print(f"{shown(path)}: {count}")
    if arguments.json:
        print(json.dumps({"files": found}))
    return 1 if any(part["problems"] for part in found) else 0


def _checks(arguments: argparse.Namespace) -> Iterator[tuple[Path, Check]]:
    """Each annotation file, or a folder of another layout, with what checks it.

    Raises:
        AnnotationError: there is nothing of that name to check.
    """
    from thingstuff.data.coco import check_coco
    from thingstuff.data.folders import has_instances, has_panoptic, lists_segments, open_dataset, splits_of
    from thingstuff.data.panoptic_check import check_panoptic

    data, options = arguments.data, {"image_dir": arguments.images, **given(max_pixels=arguments.max_pixels)}
    photos = {"required_images": not arguments.no_images}
    split: str | None
    files = []
    if data.is_file() and arguments.split is None:
        files = [data]
    elif data.is_dir():
        for split in [None, *splits_of(data)] if arguments.split is None else [arguments.split]:
            ending = "" if split is None else f"_{split}"
            files += [file for kind in ("instances", "panoptic") if (file := data / f"{kind}{ending}.json").is_file()]
    for file in files:
        if lists_segments(file) or file.stem.split("_")[0] == "panoptic":  # by its name where it lists none
            yield file, lambda file=file: check_panoptic(file, **photos, **options)
        else:
            yield file, lambda file=file: check_coco(file, **photos, **options)
    if files:
        return
    if data.is_dir() and has_panoptic(data, arguments.split):
        yield data, lambda: _check_maps(arguments, options)
    elif data.is_dir() and has_instances(data, arguments.split):
        own = [None] if any(data.glob("*.json")) else []
        for split in [*own, *splits_of(data)] if arguments.split is None else [arguments.split]:
            yield data / (split or ""), lambda split=split: _check_objects(arguments, split, options)
    else:
        open_dataset(data, arguments.split)  # says what is missing


def _check_maps(arguments: argparse.Namespace, options: dict[str, Any]) -> list[str]:
    """Of Cityscapes' or PASCAL VOC's layout."""
    from tqdm import tqdm

    from thingstuff.data.coco_json import Problems
    from thingstuff.data.folders import open_panoptic
    from thingstuff.data.panoptic_check import check_record, report_photos

    problems = Problems(arguments.data, limit=None)
    data = open_panoptic(arguments.data, arguments.split, problems=problems, **options)
    for record in tqdm(data, desc="check maps", unit="image", disable=None):
        for problem in check_record(record):
            problems.add(problem)
    if not arguments.no_images:
        report_photos(data, problems, **given(max_pixels=arguments.max_pixels))
    return problems.kept


def _check_objects(arguments: argparse.Namespace, split: str | None, options: dict[str, Any]) -> list[str]:
    """Of LabelMe's layout."""
    from thingstuff.data.coco_json import Problems
    from thingstuff.data.folders import open_dataset
    from thingstuff.data.whole_files import report_broken

    problems = Problems(arguments.data, limit=None)
    data = open_dataset(arguments.data, split, required_images=not arguments.no_images, problems=problems, **options)
    if not arguments.no_images:
        report_broken(data, problems, **given(max_pixels=arguments.max_pixels))
    return problems.kept
