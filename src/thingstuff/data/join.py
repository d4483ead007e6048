"""Several data sets as one: categories matched by name, image and annotation ids made unique, files copied to one folder."""

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from thingstuff.data.panoptic_objects import number_annotations
from thingstuff.data.records import InstanceDataset, Object, Record
from thingstuff.errors import AnnotationError
from thingstuff.structures.categories import Categories


def join(datasets: Sequence[InstanceDataset], categories: Sequence[str] | None = None) -> InstanceDataset:
    """All images of all data sets, with the objects of the named categories; images without any are kept, as negatives.

    Category ids and their order are those of the first data set. Image ids stay as they are unless two are equal, in which case
    all are counted anew; so are annotation ids.

    Args:
        categories: names that every data set must have. None: all have the same names, and all are kept. A category that one of
            them does not annotate would be taught as background there, so it can't be joined.

    Raises:
        AnnotationError: a data set lacks a category or names two alike.
    """
    kept = shared_categories([(dataset.source, dataset.categories) for dataset in datasets], categories)
    records = [record for dataset in datasets for record in _in_categories(dataset, kept)]
    if len({record.image_id for record in records}) < len(records):
        records = [replace(record, image_id=number) for number, record in enumerate(records, start=1)]
    return InstanceDataset(number_annotations(records), kept, datasets[0].source)


def shared_categories(sources: Sequence[tuple[Path | None, Categories]], categories: Sequence[str] | None = None) -> Categories:
    """The categories of joined data sets, as the first one numbers them; arguments and errors as `join` has them."""
    if not sources:
        raise AnnotationError("there is no data set to join; name at least one")
    for source, own in sources:
        repeated = [name for name, times in Counter(own.names).items() if times > 1]
        if repeated:
            raise AnnotationError(f"{source}: calls two categories {repeated[0]!r}, which can't be matched by name")
    first = sources[0][1]
    wanted = list(first.names) if categories is None else list(dict.fromkeys(categories))
    for source, own in sources:
        lacking = [name for name in wanted if name not in own.names]
        more = [name for name in own.names if name not in wanted] if categories is None else []
        if lacking or more:
            shared = sorted(set.intersection(*(set(each.names) for _, each in sources)))
            which = f"has no category {lacking[0]!r}" if lacking else f"also has the category {more[0]!r}"
            raise AnnotationError(f"{source}: {which}; all of them have {', '.join(shared) or 'none'}: name those to keep")
        kinds = {category.name: category.is_thing for category in own}
        if differing := [
            category.name for category in first if category.name in wanted and kinds[category.name] != category.is_thing
        ]:
            raise AnnotationError(f"{source}: {differing[0]!r} is a thing in one data set and stuff in another")
    return Categories(tuple(category for category in first if category.name in wanted))


def _in_categories(dataset: InstanceDataset, kept: Categories) -> list[Record]:
    class_of = {name: class_ for class_, name in enumerate(kept.names)}
    classes = [class_of.get(name) for name in dataset.categories.names]
    records = []
    for record in dataset:
        pairs = [(found, classes[found.class_]) for found in record.objects]
        objects = tuple(replace(found, class_=class_) for found, class_ in pairs if class_ is not None)
        records.append(replace(record, objects=objects))
    return records


def copy_images(records: Sequence[Record], folder: Path) -> list[str]:
    """Copy the images into a folder and return their names there, which are their own unless two are the same.

    Raises:
        AnnotationError: a record has no file, or copying fails.
    """
    names: list[str] = []
    taken: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        if record.path is None:
            raise AnnotationError(f"image {record.image_id}: has no file to copy; open the data set with its images")
        name, number = record.path.name, 1
        while name.casefold() in taken:  # some file systems ignore case
            number += 1
            name = f"{record.path.stem}-{number}{record.path.suffix}"
        taken.add(name.casefold())
        names.append(name)
        try:
            shutil.copyfile(record.path, folder / name)
        except OSError as error:
            raise AnnotationError(f"{record.path}: can't be copied to {folder / name}: {error.strerror or error}") from error
    return names


def same_files(paths: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Files that hold the same bytes as an earlier one: the earlier, and this one."""
    by_length: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        by_length[path.stat().st_size].append(path)
    pairs: list[tuple[Path, Path]] = []
    for group in by_length.values():
        first: dict[bytes, Path] = {}
        for path in group if len(group) > 1 else ():
            digest = hashlib.sha256(path.read_bytes()).digest()
            if digest in first:
                pairs.append((first[digest], path))
            first.setdefault(digest, path)
    return pairs


def coco_content(dataset: InstanceDataset, names: Sequence[str]) -> dict[str, list[dict]]:
    """The COCO instance file of a data set whose images have these file names; masks are compressed RLE."""
    images = [
        {"id": record.image_id, "file_name": name, "height": record.size[0], "width": record.size[1]}
        for record, name in zip(dataset, names, strict=True)
    ]
    annotations = [_annotation(record, found, dataset.categories) for record in dataset for found in record.objects]
    return {"images": images, "annotations": annotations, "categories": dataset.categories.to_coco()}


def _annotation(record: Record, found: Object, categories: Categories) -> dict:
    x1, y1, x2, y2 = found.box
    return {
        "id": found.annotation_id,
        "image_id": record.image_id,
        "category_id": categories.ids[found.class_],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": found.area,
        "iscrowd": int(found.is_crowd),
        "segmentation": found.mask.to_coco(),
    }
