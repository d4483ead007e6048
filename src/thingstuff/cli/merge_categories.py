"""`thingstuff data merge-categories`: a panoptic data set in fewer, broader categories."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from thingstuff.cli.arguments import given, named_path, positive
from thingstuff.errors import AnnotationError, ConfigError

if TYPE_CHECKING:
    from thingstuff.data.merge import Merging
    from thingstuff.data.panoptic import PanopticDataset
    from thingstuff.structures.panoptic import PanopticMap

BROAD = "coco-broad"  # the mapping that comes with the package


def add_merge_categories_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="DATA", type=named_path, help="folder with panoptic.json or panoptic_<split>.json, or such a file"
    )
    parser.add_argument(
        "mapping", metavar="MAPPING", help=f'JSON file {{"new name": ["old name", ...]}}; "{BROAD}" has COCO\'s 133 in a dozen'
    )
    parser.add_argument("--out", metavar="DIR", type=named_path, required=True, help="the new folder")
    parser.add_argument(
        "--images", metavar="DIR", type=named_path, help="folder of the photos, where the data doesn't lead to them"
    )
    parser.add_argument("--splits", metavar="NAME", nargs="+", help="splits to take (all that there are)")
    parser.add_argument("--max-pixels", metavar="N", type=positive, help="refuse maps of more pixels (200 million)")
    parser.epilog = (
        'Things stay apart and crowds crowds; stuff of one new category is one segment. "*" stands for what no other line names, '
        '"void" takes what is to be left unlabelled, and {"isthing": 0, "from": [...]} says what a mixed category is.'
    )


def run_merge_categories(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from thingstuff.cli.data import new_folder
    from thingstuff.cli.data_files import write_panoptic_split
    from thingstuff.data.folders import open_panoptic, splits_of
    from thingstuff.data.join import copy_images
    from thingstuff.data.merge import COCO_BROAD, merged, read_merging
    from thingstuff.data.records import Record

    splits: list[str | None] = list(arguments.splits or splits_of(arguments.data)) or [None]
    options = {"image_dir": arguments.images, **given(max_pixels=arguments.max_pixels)}
    parts = {split: open_panoptic(arguments.data, split, **options) for split in splits}
    mapping = COCO_BROAD if arguments.mapping == BROAD and not Path(BROAD).exists() else arguments.mapping
    mergings = {split: read_merging(mapping, part.categories) for split, part in parts.items()}
    first = next(iter(mergings.values()))
    if other := next((split for split, merging in mergings.items() if merging.categories != first.categories), None):
        raise ConfigError(f"{arguments.data}: the split {other} would have other categories than {splits[0]}; merge them apart")

    records = [record for part in parts.values() for record in part]
    if not any(mergings[split].classes[class_] >= 0 for split, part in parts.items() for each in part for class_ in each.classes):
        raise ConfigError(f"{mapping}: all segments of {arguments.data} become void, so nothing is left; name what is to be kept")
    paths = [record.path for record in records]
    if None in paths and (arguments.images is not None or any(paths)):
        lost = records[paths.index(None)].image_id
        where = arguments.images or arguments.data
        raise AnnotationError(f"{where}: has no photo of image {lost}; put it there, or name the folder of all with --images")
    ids = [record.image_id for record in records]
    if len(set(ids)) < len(ids) or not all(isinstance(id_, int) for id_ in ids):
        ids = list(range(1, len(records) + 1))
    out: Path = arguments.out
    with_photos = [Record(int(id_), path, (0, 0)) for id_, path in zip(ids, paths, strict=True) if path is not None]
    copied: dict[Path | None, str] = {}
    bar = tqdm(total=len(records), desc="merge", unit="image", disable=None)

    def maps(part: "PanopticDataset", merging: "Merging", first: int) -> "Iterator[tuple[int, str, PanopticMap]]":
        for place, record in enumerate(part, start=first):
            name = copied[record.path] if record.path is not None else record.png.name
            yield int(ids[place]), name, merged(record.panoptic_map(), merging)
            bar.update()

    start = 0
    with new_folder(out, "--out"), bar:
        copied |= zip((record.path for record in with_photos), copy_images(with_photos, out / "images"), strict=True)
        for split, part in parts.items():
            written = write_panoptic_split(out, split, maps(part, mergings[split], start), first.categories)
            start += len(part)
            segments = sum(len(record.objects) for record in written)
            where = out if split is None else f"{out}, split {split}"
            bar.write(f"{where}: {len(part)} images, {segments} segments, {len(first.categories)} categories")
    if not with_photos:
        print(f"no photos were found, so {out / 'images'} is empty; name their folder with --images")
    return 0
