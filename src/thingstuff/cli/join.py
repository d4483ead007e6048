"""`thingstuff data join`: several data sets, of objects or of panoptic maps, as one folder."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from thingstuff.cli.arguments import named_path
from thingstuff.errors import ConfigError

if TYPE_CHECKING:
    from thingstuff.structures.panoptic import PanopticMap


def add_join_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        metavar="DIR",
        nargs="+",
        type=named_path,
        help="folders with images/ and instances_<split>.json or panoptic_<split>.json",
    )
    parser.add_argument("--out", metavar="DIR", type=named_path, required=True, help="the new folder")
    parser.add_argument(
        "--categories",
        metavar="NAME",
        nargs="+",
        help="keep these alone (all; then every data set must have the same); images without any stay, as negatives",
    )
    parser.add_argument("--splits", metavar="NAME", nargs="+", help="splits to join (those that all folders have)")
    parser.epilog = "Where all folders have panoptic maps and no --categories are named, the maps are joined too."


def run_join(arguments: argparse.Namespace) -> int:
    folders: dict[Path, Path] = {}
    for folder in arguments.data:
        if (other := folders.setdefault(folder.resolve(), folder)) is not folder:
            raise ConfigError(f"{folder} is the same folder as {other}; name each data set once")
    panoptic = _common_splits(arguments.data, "panoptic")
    if panoptic and arguments.categories is None:
        _join_panoptic(arguments, arguments.splits or [split for split in panoptic if split] or [None])
    else:
        common: list[str | None] = [split for split in _common_splits(arguments.data, "instances") if split]
        if not arguments.splits and not common:
            _refuse_without_data(arguments.data)
        _join_objects(arguments, arguments.splits or common or [None])
    return 0


def _refuse_without_data(folders: list[Path]) -> None:
    """Raises ConfigError where a folder can't be opened without a split."""
    from thingstuff.data.folders import has_instances, has_panoptic, splits_of

    if all(has_instances(folder) or has_panoptic(folder) for folder in folders):
        return
    told = []
    for folder in folders:
        splits = ", ".join(splits_of(folder))
        whole = has_instances(folder) or has_panoptic(folder)
        if not folder.exists():
            raise ConfigError(f"{folder}: does not exist; name folders with images/ and annotations")
        told.append(f"{folder} has {f'the splits {splits}' if splits else 'one set without splits' if whole else 'no data set'}")
    raise ConfigError(f"there is no split that all have: {'; '.join(told)}; leave out what is no data set, or rename splits")


def _tell_of_same_images(paths: Iterable[Path | None]) -> None:
    """A line on stderr where an image stands in the joined set twice: learnt twice, or learnt and validated on."""
    from thingstuff.data.join import same_files

    if pairs := same_files(path for path in paths if path is not None):
        more = f", and {len(pairs) - 1} more images are there more than once" if len(pairs) > 1 else ""
        print(f"thingstuff: {pairs[0][1]} is the same image as {pairs[0][0]}{more}; each is kept", file=sys.stderr)


def _common_splits(folders: list[Path], kind: str) -> list[str | None]:
    """Splits that every folder has, train before val before others; None stands for the file without one."""
    found = []
    for folder in folders:
        names = [file.stem.removeprefix(kind) for file in folder.glob(f"{kind}*.json")]
        found.append({name.removeprefix("_") or None for name in names if not name or name.startswith("_")})
    common = set.intersection(*found)
    return sorted(common, key=lambda split: (split != "train", split != "val", split or ""))


def _join_objects(arguments: argparse.Namespace, splits: list[str | None]) -> None:
    from thingstuff.cli.data import new_folder
    from thingstuff.data.folders import open_dataset
    from thingstuff.data.join import coco_content, copy_images, join
    from thingstuff.data.records import InstanceDataset
    from thingstuff.formats.coco import write_json

    parts = {split: join([open_dataset(folder, split) for folder in arguments.data], arguments.categories) for split in splits}
    # ids and file names must differ between the splits, too
    whole = join(list(parts.values()))
    with new_folder(arguments.out, "--out") as out:
        names = copy_images(whole.records, out / "images")
        _tell_of_same_images(record.path for record in whole)
        start = 0
        for split, part in parts.items():
            records = whole.records[start : start + len(part)]
            file = out / ("instances.json" if split is None else f"instances_{split}.json")
            write_json(file, coco_content(InstanceDataset(records, whole.categories), names[start : start + len(part)]))
            start += len(part)
            objects = sum(len(record.objects) for record in records)
            empty = sum(not record.objects for record in records)
            print(f"{file}: {len(records)} images, {objects} objects, {empty} images without any")


def _join_panoptic(arguments: argparse.Namespace, splits: list[str | None]) -> None:
    import numpy as np

    from thingstuff.cli.data import new_folder
    from thingstuff.cli.data_files import write_panoptic_split
    from thingstuff.data.folders import open_panoptic
    from thingstuff.data.join import copy_images, shared_categories
    from thingstuff.data.records import Record
    from thingstuff.errors import AnnotationError

    parts = {split: [open_panoptic(folder, split) for folder in arguments.data] for split in splits}
    datasets = [dataset for part in parts.values() for dataset in part]
    categories = shared_categories([(dataset.source, dataset.categories) for dataset in datasets])
    rows = [(dataset, record) for dataset in datasets for record in dataset]
    without_photo = [(dataset.source, record.image_id) for dataset, record in rows if record.path is None]
    if without_photo:
        source, image_id = without_photo[0]
        raise AnnotationError(f"{source}: the photo of image {image_id} was not found; put it into the folder images beside it")
    names: list[str] = []
    ids = [record.image_id for _, record in rows]
    kept_ids = len(set(ids)) == len(ids) and all(isinstance(id_, int) for id_ in ids)

    def maps(first: int, count: int) -> "Iterator[tuple[int, str, PanopticMap]]":
        for place in range(first, first + count):
            dataset, record = rows[place]
            classes = np.array([categories.names.index(name) for name in dataset.categories.names], np.int64)
            found = record.panoptic_map()
            image_id = int(record.image_id) if kept_ids else place + 1
            yield image_id, names[place], replace(found, classes=classes[found.classes], categories=categories)

    start = 0
    with new_folder(arguments.out, "--out") as out:
        names += copy_images([Record(place, record.path, (0, 0)) for place, (_, record) in enumerate(rows)], out / "images")
        _tell_of_same_images(record.path for _, record in rows)
        for split, part in parts.items():
            count = sum(map(len, part))
            written = write_panoptic_split(out, split, maps(start, count), categories)
            start += count
            segments = sum(len(record.objects) for record in written)
            where = out if split is None else f"{out}, split {split}"
            print(f"{where}: {count} images, {segments} segments, {len(categories)} categories")
