"""`thingstuff data`: make data sets, drawn or out of others, in the layout that every command reads."""

import argparse
from collections.abc import Callable
from pathlib import Path

from thingstuff.cli.make_shapes import add_make_shapes_arguments, run_make_shapes
from thingstuff.cli.merge_categories import add_merge_categories_arguments, run_merge_categories
from thingstuff.errors import ConfigError


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, (words, add_arguments, run) in VERBS.items():
        verb = verbs.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        add_arguments(verb)
        verb.set_defaults(run_verb=run)


def run_data(arguments: argparse.Namespace) -> int:
    return arguments.run_verb(arguments)


# join -----------------------------------------------------------------------------------------------------------------


def _add_join_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DIR", nargs="+", type=Path, help="folders with images/ and instances_<split>.json")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the new folder")
    parser.add_argument(
        "--categories",
        metavar="NAME",
        nargs="+",
        help="keep these alone (all; then every data set must have the same); images without any stay, as negatives",
    )
    parser.add_argument("--splits", metavar="NAME", nargs="+", help="splits to join (those that all folders have)")


def _run_join(arguments: argparse.Namespace) -> int:
    from thingstuff.data.folders import open_dataset
    from thingstuff.data.join import coco_content, copy_images, join
    from thingstuff.data.records import InstanceDataset
    from thingstuff.formats.coco import write_json

    splits: list[str | None] = list(arguments.splits or _common_splits(arguments.data)) or [None]
    out = new_folder(arguments.out)
    parts = {split: join([open_dataset(folder, split) for folder in arguments.data], arguments.categories) for split in splits}
    # ids and file names must differ between the splits, too
    whole = join(list(parts.values()))
    names = copy_images(whole.records, out / "images")
    start = 0
    for split, part in parts.items():
        records = whole.records[start : start + len(part)]
        joined = InstanceDataset(records, whole.categories)
        file = out / ("instances.json" if split is None else f"instances_{split}.json")
        write_json(file, coco_content(joined, names[start : start + len(part)]))
        start += len(part)
        objects = sum(len(record.objects) for record in records)
        empty = sum(not record.objects for record in records)
        print(f"{file}: {len(records)} images, {objects} objects, {empty} images without any")
    return 0


def _common_splits(folders: list[Path]) -> list[str]:
    """Splits that every folder has, in the first one's order: train before val before others."""
    found = [
        {file.name.removeprefix("instances_").removesuffix(".json") for file in folder.glob("instances_*.json")}
        for folder in folders
    ]
    return sorted(set.intersection(*found), key=lambda split: (split != "train", split != "val", split))


def new_folder(path: Path) -> Path:
    """Raises ConfigError where there is something already: images of two data sets in one folder could not be told apart."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} is not empty; give a new folder to --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: can't be made a folder for the data ({error.strerror or error})") from error
    return path


VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "make-shapes": ("draw little landscapes with things in them, and their truth", add_make_shapes_arguments, run_make_shapes),
    "join": ("join several data sets to one, with the objects of some categories", _add_join_arguments, _run_join),
    "merge-categories": (
        "make a panoptic data set of fewer, broader categories",
        add_merge_categories_arguments,
        run_merge_categories,
    ),
}
