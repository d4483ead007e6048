"""COCO instance annotations (Lin et al., 2014, arXiv:1405.0312; layout: https://cocodataset.org/#format-data).

What is wrong with a file is gathered over the whole file and raised as one AnnotationError, so that it is repaired in one go.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from thingstuff.data.coco_json import (
    PROBLEMS_SHOWN,
    ImageFolder,
    Problem,
    Problems,
    as_integer,
    declared_size,
    integer,
    is_number,
    listed_images,
    pixels,
    read_categories,
    read_json,
    report_shared_names,
    shown,
)
from thingstuff.data.records import InstanceDataset, Object, Record
from thingstuff.data.whole_files import report_broken
from thingstuff.errors import AnnotationError, ThingstuffError
from thingstuff.structures.categories import Categories
from thingstuff.structures.images import DEFAULT_MAX_PIXELS
from thingstuff.structures.masks import Mask

FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")  # what LVIS's files say of an image
FREQUENCIES = ("r", "c", "f")  # and of a category: rare, common, frequent


def read_coco(
    path: str | Path, image_dir: str | Path | None = None, *, required_images: bool = True, max_pixels: int = DEFAULT_MAX_PIXELS
) -> InstanceDataset:
    """Read a COCO instance file: polygons, both forms of RLE, crowds; images without objects are kept, in the file's order.

    Images lie in `image_dir`; without it in the folder `images` beside the file, or else beside the file itself. Objects that
    cover no pixel, or whose bbox has no area, are kept (evaluation counts them, as pycocotools does) and named in one warning.

    Args:
        required_images: ask that every image exists and has the size that the file says; False leaves the images alone,
            for judging predictions without them.
        max_pixels: of one image; larger declared sizes are refused before any mask is made.

    Raises:
        AnnotationError: everything that is wrong with the file, with ids (and line and column where it isn't JSON).
    """
    path = Path(path)
    content = read_json(path)
    problems = Problems(path)
    dataset, without_area = _read_content(content, path, image_dir, required_images, max_pixels, problems)
    problems.raise_if_any()
    assert dataset is not None
    if without_area:
        warnings.warn(
            f"{path}: {len(without_area)} annotations cover no pixel or have a bbox without area, ids {_listed(without_area)}; "
            "training leaves out those without pixels, evaluation counts them",
            stacklevel=2,
        )
    return dataset


def check_coco(
    path: str | Path, image_dir: str | Path | None = None, *, required_images: bool = True, max_pixels: int = DEFAULT_MAX_PIXELS
) -> list[str]:
    """Everything that is wrong with a COCO instance file, a line each; nothing is wrong where the list is empty.

    It is what `read_coco`, with the same arguments, refuses, to the last problem, and the objects of which it warns; and of the
    images, unless they are left alone, those that are truncated, which training refuses; and that there is nothing to find.

    Raises:
        AnnotationError: the file can't be read at all, or isn't JSON.
    """
    path = Path(path)
    problems = Problems(path, limit=None)
    dataset, without_area = _read_content(read_json(path), path, image_dir, required_images, max_pixels, problems)
    if required_images:
        report_broken(dataset or (), problems, max_pixels=max_pixels)
    if dataset is not None:
        report_shared_names(dataset.categories, problems)
        _report_shared_files(dataset, problems)
    if dataset is None or problems.count:
        pass  # what is wrong may be why there is nothing
    elif not len(dataset):
        problems.add("has no image, so there is nothing to learn from or to compare with; list some in 'images'")
    elif not any(not found.is_crowd for record in dataset for found in record.objects):
        problems.add("has no object that is not a crowd, so there is nothing to learn or to find; annotate some")
    return problems.kept + [
        f"annotation {id_}: covers no pixel, or has a bbox without area; draw it, or remove it" for id_ in without_area
    ]


def _report_shared_files(dataset: InstanceDataset, problems: Problems) -> None:
    """Tell of photos that are listed twice: each would be learnt from with the other's objects as background."""
    first: dict[Path, int] = {}
    for record in dataset:
        if record.path is not None and first.setdefault(record.path, record.image_id) != record.image_id:
            problems.add(
                f"images {first[record.path]} and {record.image_id} are both of {record.path.name}; "
                "list it once, with the objects of both"
            )


def _read_content(
    content: dict[str, Any],
    path: Path,
    image_dir: str | Path | None,
    required_images: bool,
    max_pixels: int,
    problems: Problems,
) -> tuple[InstanceDataset | None, list[int]]:
    """What the file says, None without its categories, and the annotations without area; each thing wrong is reported."""
    if image_dir is None:
        image_dir = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    elif required_images and not Path(image_dir).is_dir():
        raise AnnotationError(f"{path}: the image folder {image_dir} does not exist; name the folder that holds the images")

    categories = read_categories(content, problems)
    frequencies = _read_frequencies(content["categories"], problems) if categories else None
    images = _read_images(content, ImageFolder(Path(image_dir), required_images, max_pixels), problems)
    annotations = content.get("annotations")
    if not isinstance(annotations, list):
        problems.add("'annotations' is missing or isn't a list; a file without objects says \"annotations\": []")
        annotations = []
    objects: dict[int, list[Object]] = {image_id: [] for image_id in images}
    seen: set[int] = set()
    without_area: list[int] = []
    for index, annotation in enumerate(annotations):
        try:
            image_id, found, has_area = _read_object(annotation, index, images, categories, seen)
        except Problem as problem:
            problems.add(str(problem))
            continue
        objects[image_id].append(found)
        if not has_area:
            without_area.append(found.annotation_id)
    if categories is None:
        return None, without_area
    records = tuple(replace(record, objects=tuple(objects[image_id])) for image_id, record in images.items())
    return InstanceDataset(records, categories, path, frequencies), without_area


def _listed(ids: list[int]) -> str:
    more = f" and {len(ids) - PROBLEMS_SHOWN} more" if len(ids) > PROBLEMS_SHOWN else ""
    return ", ".join(map(str, ids[:PROBLEMS_SHOWN])) + more


def _read_frequencies(categories: list[dict[str, Any]], problems: Problems) -> tuple[str, ...] | None:
    """ "frequency" of each category, where one of them states it."""
    if not any("frequency" in category for category in categories):
        return None
    for category in categories:
        if category.get("frequency") not in FREQUENCIES:
            stated = f"is {shown(category['frequency'])}" if "frequency" in category else "is missing, others have it"
            problems.add(f'category {category["id"]}: \'frequency\' {stated}; give "r", "c" or "f", or leave it out of all')
    return tuple(category.get("frequency", "") for category in categories)


def _read_images(content: dict[str, Any], folder: ImageFolder, problems: Problems) -> dict[int, Record]:
    records: dict[int, Record] = {}
    for image_id, image, where in listed_images(content, integer, problems):
        # entered even where the rest is wrong, so that its annotations aren't reported as homeless as well
        records[image_id] = Record(image_id, None, (0, 0))
        try:
            size = declared_size(image, folder.max_pixels, where)
            path = folder.path_of(image.get("file_name"), where)
            if folder.required:
                assert path is not None
                folder.check_size(path, size, where)
            absent, not_exhaustive = (_category_ids(image, key, where) for key in FEDERATED)
            records[image_id] = Record(image_id, path, size, (), absent, not_exhaustive)
        except Problem as problem:
            problems.add(str(problem))
    return records


def _read_object(
    annotation: Any, index: int, images: dict[int, Record], categories: Categories | None, seen: set[int]
) -> tuple[int, Object, bool]:
    """(image id, object, whether it has an area)."""
    where = f"annotations[{index}]"
    if not isinstance(annotation, dict):
        raise Problem(f"{where}: is {shown(annotation)}, not an object")
    annotation_id = integer(annotation, "id", where)
    if annotation_id in seen:
        raise Problem(f"{where}: id {annotation_id} is taken by an earlier annotation; ids must differ")
    seen.add(annotation_id)
    where = f"annotation {annotation_id}"
    image_id = integer(annotation, "image_id", where)
    if image_id not in images:
        raise Problem(f"{where}: image_id {image_id} is no image of this file; add the image or remove the annotation")
    where = f"annotation {annotation_id} (image {image_id})"
    category_id = integer(annotation, "category_id", where)
    is_crowd = annotation.get("iscrowd", 0)
    if is_crowd not in (0, 1, "0", "1", None):  # False and True, 0.0 and 1.0 equal these
        raise Problem(f"{where}: 'iscrowd' is {shown(is_crowd)}, must be 0 or 1")
    class_ = 0
    if categories is not None:
        try:
            class_ = categories.class_of(category_id)
        except ThingstuffError as error:
            raise Problem(f"{where}: category_id {category_id} is not among the file's categories; add it there") from error
    size = images[image_id].size
    if size == (0, 0):  # its image is broken and has been reported
        return image_id, Object(class_, (0.0, 0.0, 0.0, 0.0), Mask.empty((1, 1)), False, 0.0, annotation_id), True
    mask = _read_mask(annotation.get("segmentation"), size, where)
    box = _read_box(annotation.get("bbox"), where)
    area = annotation.get("area")
    if area is not None and not is_number(area, at_least=0.0):
        raise Problem(f"{where}: 'area' is {shown(area)}; give the pixels it covers, or leave it out")
    box_has_area = box is None or (box[2] > box[0] and box[3] > box[1])
    found = Object(
        class_,
        tuple(map(float, mask.box)) if box is None else box,  # pyright: ignore[reportArgumentType]
        mask,
        is_crowd in (1, "1"),
        float(mask.area if area is None else area),
        annotation_id,
    )
    return image_id, found, mask.area > 0 and box_has_area


def _read_box(box: Any, where: str) -> tuple[float, float, float, float] | None:
    if box is None or box == []:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)) or box[2] < 0 or box[3] < 0:
        raise Problem(f"{where}: 'bbox' is {shown(box)}, must be [x, y, width, height]; correct it or leave it out")
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height


def _read_mask(segmentation: Any, size: tuple[int, int], where: str) -> Mask:
    if segmentation is None or segmentation == []:
        raise Problem(f"{where}: has no segmentation, only a box; draw its mask or remove the annotation")
    make: Callable[[], Mask]
    if isinstance(segmentation, dict):
        stated = segmentation.get("size")
        if not isinstance(stated, list) or [as_integer(side) for side in stated] != list(size):
            raise Problem(f"{where}: its RLE has size {shown(stated)}, but the image is {list(size)} (height, width)")
        counts = segmentation.get("counts")
        if not isinstance(counts, str | list):
            raise Problem(f"{where}: its RLE has counts {shown(counts)}; give a compressed string or a list of run lengths")
        make = lambda: Mask.from_coco({"size": list(size), "counts": counts})  # noqa: E731
    elif isinstance(segmentation, list):
        if all(map(is_number, segmentation)):
            segmentation = [segmentation]  # one polygon, its list of polygons left out: what it means is plain
        for part, polygon in enumerate(segmentation):
            _check_polygon(polygon, size, f"{where}: polygon {part}")
        outlines = [[float(value) for value in polygon] for polygon in segmentation]
        make = lambda: Mask.from_polygons(outlines, size)  # noqa: E731
    else:
        raise Problem(f"{where}: 'segmentation' is {shown(segmentation)}; give polygons or an RLE")
    try:
        return make()
    except ThingstuffError as error:
        raise Problem(f"{where}: {error}") from error


def _check_polygon(polygon: Any, size: tuple[int, int], where: str) -> None:
    if not isinstance(polygon, list) or not all(map(is_number, polygon)):
        raise Problem(f"{where} is {shown(polygon)}, must be a flat list of numbers x, y, x, y, ...")
    if len(polygon) < 6 or len(polygon) % 2:
        raise Problem(f"{where} has {len(polygon)} numbers; it needs at least three points of x and y")
    height, width = size
    # drawing a polygon costs what its edges are long, so points far outside are refused and not drawn
    if (
        min(polygon[0::2]) < -width
        or max(polygon[0::2]) > 2 * width
        or min(polygon[1::2]) < -height
        or max(polygon[1::2]) > 2 * height
    ):
        raise Problem(f"{where} reaches further outside the image of {pixels(size)} than the image is large; correct its points")


def _category_ids(image: dict[str, Any], key: str, where: str) -> tuple[int, ...] | None:
    ids = image.get(key)
    if ids is None:
        return None
    if not isinstance(ids, list) or None in (whole := [as_integer(id_) for id_ in ids]):
        raise Problem(f"{where}: {key!r} is {shown(ids)}, must be a list of category ids")
    return tuple(id_ for id_ in whole if id_ is not None)
