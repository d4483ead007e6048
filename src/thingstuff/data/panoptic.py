"""COCO panoptic annotations and predictions (Kirillov et al., 2019; layout: https://cocodataset.org/#format-data, part 4).

A JSON file lists the segments of each image, a PNG per image paints their ids: R + 256 G + 65536 B, 0 for void. The PNGs lie in
the folder named like the JSON file without its ending, as panopticapi has it. Pixels are decoded when asked for, image by image.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from thingstuff.data.coco_json import (
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
    shown,
)
from thingstuff.data.id_png import png_size, read_colours
from thingstuff.errors import AnnotationError, SizeError
from thingstuff.structures.categories import Categories
from thingstuff.structures.images import DEFAULT_MAX_PIXELS
from thingstuff.structures.panoptic import LARGEST_ID, ColouredMap, PanopticMap, ids_of_colours

ImageId = int | str
_Row = tuple[int, bool, int, tuple[float, ...]]  # of a segment: class, crowd, area, box
NO_BOX = (np.nan, np.nan, np.nan, np.nan)


@dataclass(frozen=True, eq=False)
class PanopticRecord:
    """One image of a panoptic file: its listed segments, and where they are painted."""

    image_id: ImageId
    png: Path
    categories: Categories
    segment_ids: np.ndarray  # int64 (segments,), in the file's order
    classes: np.ndarray  # int64 (segments,), index into categories
    crowd: np.ndarray  # bool (segments,)
    areas: np.ndarray  # int64 (segments,), pixels as the file states them, -1 where it states none
    boxes: np.ndarray  # float64 (segments, 4), x y width height as the file states them, NaN where it states none
    size: tuple[int, int] | None = None  # (height, width) of the image and of the PNG, by its header
    path: Path | None = None  # the photo, where it was found
    photo: str | None = None  # its name without folder and ending, where a file of predictions says it
    max_pixels: int = DEFAULT_MAX_PIXELS

    def panoptic_map(self) -> PanopticMap:
        """The map, decoded now and not kept.

        Raises:
            AnnotationError: the PNG can't be read, holds no ids, or has another size than the image.
        """
        painted = self.painted()
        size = int(painted.shape[0]), int(painted.shape[1])
        if self.size is not None and size != self.size:
            raise AnnotationError(
                f"image {self.image_id}: {self.png} has {pixels(size)}, the image {pixels(self.size)}; "
                "paint the map at the size of the image"
            )
        kind = ColouredMap if painted.ndim == 3 else PanopticMap
        return kind(painted, self.segment_ids, self.classes, self.crowd, self.categories, self.areas)

    def painted(self) -> np.ndarray:
        """The segment id of each pixel, 0 for void, or its RGB, as the PNG has it; layouts that paint otherwise override this."""
        colours = read_colours(self.png, self.max_pixels)
        return colours if colours.shape[2] == 3 else ids_of_colours(colours)


@dataclass(frozen=True, eq=False)
class PanopticDataset:
    """Images with panoptic annotations, or predictions, and the categories their classes index."""

    records: tuple[PanopticRecord, ...]
    categories: Categories
    source: Path  # the file, or the folder of a layout without one; named in errors

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[PanopticRecord]:
        return iter(self.records)

    def __getitem__(self, index: int) -> PanopticRecord:
        return self.records[index]

    def __repr__(self) -> str:
        segments = sum(len(record.segment_ids) for record in self.records)
        return f"PanopticDataset({len(self.records)} images, {segments} segments, {len(self.categories)} categories)"

    @cached_property
    def by_image_id(self) -> dict[ImageId, PanopticRecord]:
        return {record.image_id: record for record in self.records}


@contextmanager
def _without_collections() -> Iterator[None]:
    """Have Python look for no garbage meanwhile: reading makes none, and looks at all that is read take as long as reading it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collections()
def read_panoptic(
    path: str | Path,
    png_dir: str | Path | None = None,
    image_dir: str | Path | None = None,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> PanopticDataset:
    """Read a COCO panoptic file. No pixel is decoded; PNGs must be there and have the size that the file gives the image.

    PNGs lie in `png_dir`; without it in the folder named like the file without its ending, or else in `panoptic` beside it.
    Photos, which pictures of results need and metrics do not, lie in `image_dir`, or else in `images` beside the file.

    Raises:
        AnnotationError: everything that is wrong with the file, image and segment named (line and column where it isn't JSON).
    """
    path = Path(path)
    content = read_json(path)
    problems = Problems(path)
    dataset = read_content(content, path, png_dir, image_dir, max_pixels, problems)
    problems.raise_if_any()
    assert dataset is not None
    return dataset


@_without_collections()
def read_panoptic_predictions(
    path: str | Path, categories: Categories, png_dir: str | Path | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> PanopticDataset:
    """Read predictions in COCO's panoptic format: "annotations" alone is enough. Category ids are those of `categories`.

    Raises:
        AnnotationError: as `read_panoptic`.
    """
    path = Path(path)
    content = read_json(path)
    problems = Problems(path)
    folder = _png_folder(path, png_dir, max_pixels, problems)
    records = _read_annotations(content, categories, None, folder, problems) if folder else []
    problems.raise_if_any()
    photos = _photos(content)
    return PanopticDataset(tuple(replace(record, photo=photos.get(record.image_id)) for record in records), categories, path)


def _photos(content: dict[str, Any]) -> dict[Any, str]:
    """The photo's name of each image id, as far as a file of predictions lists them; it need not."""
    listed = content.get("images")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return {
        entry["id"]: PureWindowsPath(entry["file_name"]).stem  # knows both separators
        for entry in entries
        if isinstance(entry.get("id"), int | str) and isinstance(entry.get("file_name"), str)
    }


def pairs(
    predictions: PanopticDataset, truth: PanopticDataset
) -> Iterator[tuple[ImageId, Callable[[], PanopticMap], Callable[[], PanopticMap]]]:
    """Each image of the truth with what loads its two maps, for `PanopticQuality.update_many`.

    Where the predictions list the photos that they are of, as `thingstuff predict` has it, each belongs to the image whose
    photo has that name; else to the image with its id, as with panopticapi; and where ids do not find one for every image, to the
    image that its PNG is named like. Predictions for other images are left out, as panopticapi does.

    Raises:
        AnnotationError: an image has no prediction.
        SizeError: a prediction has another size than its image, by the headers of the PNGs.
    """
    of_image = _by_name({record: record.photo for record in predictions}, truth) or predictions.by_image_id
    if any(record.image_id not in of_image for record in truth):
        of_image = _by_name({record: record.png.stem for record in predictions}, truth) or of_image
    if missing := [record.image_id for record in truth if record.image_id not in of_image]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise AnnotationError(
            f"{predictions.source}: has no prediction for image {missing[0]}{more}; list an image where nothing was found "
            "with no segments and a PNG of void"
        )
    for record in truth:
        predicted = of_image[record.image_id]
        if record.size is not None and predicted.size is not None and predicted.size != record.size:
            raise SizeError(
                f"{predictions.source}: image {record.image_id}: {predicted.png} has {pixels(predicted.size)}, the image "
                f"{pixels(record.size)}; predict at the size of the image"
            )
    return ((record.image_id, of_image[record.image_id].panoptic_map, record.panoptic_map) for record in truth)


def _by_name(names: dict[PanopticRecord, str | None], truth: PanopticDataset) -> dict[ImageId, PanopticRecord] | None:
    """The prediction of each image of the truth by names; None where names are lacking or don't tell all of them apart."""
    named = {name: record for record, name in names.items() if name is not None}
    stems = [(record.path or record.png).stem for record in truth]
    if len(named) < len(names) or len(set(stems)) < len(stems) or not named.keys() >= set(stems):
        return None
    return {record.image_id: named[stem] for record, stem in zip(truth, stems, strict=True)}


# The JSON file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Image:
    size: tuple[int, int] | None  # None where its entry is broken, which has been reported
    path: Path | None


def read_content(
    content: dict[str, Any],
    path: Path,
    png_dir: str | Path | None,
    image_dir: str | Path | None,
    max_pixels: int,
    problems: Problems,
) -> PanopticDataset | None:
    """What `read_panoptic` gives of a file's content; each thing wrong is reported and left out, None where nothing is left."""
    categories = read_categories(content, problems)
    images = _read_images(content, _photo_folder(path, image_dir, max_pixels), problems)
    folder = _png_folder(path, png_dir, max_pixels, problems)
    if categories is None or folder is None:
        return None
    return PanopticDataset(tuple(_read_annotations(content, categories, images, folder, problems)), categories, path)


def _png_folder(path: Path, png_dir: str | Path | None, max_pixels: int, problems: Problems) -> ImageFolder | None:
    candidates = [path.with_suffix(""), path.with_name("panoptic")] if png_dir is None else [Path(png_dir)]
    for candidate in candidates:
        if candidate.is_dir():
            return ImageFolder(candidate, True, max_pixels)
    problems.add(f"the folder {candidates[0]} does not exist; put the PNGs there, or name their folder")
    return None


def _photo_folder(path: Path, image_dir: str | Path | None, max_pixels: int) -> ImageFolder:
    if image_dir is not None and not Path(image_dir).is_dir():
        raise AnnotationError(f"{path}: the image folder {image_dir} does not exist; name the folder that holds the images")
    return ImageFolder(Path(image_dir) if image_dir is not None else path.parent / "images", False, max_pixels)


def _read_images(content: dict[str, Any], folder: ImageFolder, problems: Problems) -> dict[ImageId, _Image]:
    images: dict[ImageId, _Image] = {}
    for image_id, image, where in listed_images(content, _image_id, problems):
        images[image_id] = _Image(None, None)  # so that its annotations aren't reported as homeless
        try:
            size = declared_size(image, folder.max_pixels, where)
            photo = folder.path_of(image.get("file_name"), where)
            images[image_id] = _Image(size, photo if photo is not None and photo.is_file() else None)
        except Problem as problem:
            problems.add(str(problem))
    return images


def _read_annotations(
    content: dict[str, Any],
    categories: Categories,
    images: dict[ImageId, _Image] | None,
    folder: ImageFolder,
    problems: Problems,
) -> list[PanopticRecord]:
    listed = content.get("annotations")
    if not isinstance(listed, list):
        problems.add("'annotations' is missing or isn't a list; give each image an entry with its segments_info")
        return []
    records: dict[ImageId, PanopticRecord] = {}
    for index, annotation in enumerate(listed):
        where = f"annotations[{index}]"
        try:
            if not isinstance(annotation, dict):
                raise Problem(f"{where}: is {shown(annotation)}, not an object")
            image_id = _image_id(annotation, "image_id", where)
            if image_id in records:
                raise Problem(f"{where}: image {image_id} has an earlier annotation; give all its segments in one")
            if images is not None and image_id not in images:
                raise Problem(f"{where}: image_id {image_id!r} is no image of this file; add the image or remove the annotation")
            where = f"image {image_id}"
            image = images[image_id] if images is not None else _Image(None, None)
            png = folder.path_of(annotation.get("file_name"), where)
            assert png is not None
            stored = png_size(png, folder.max_pixels)
            if image.size is not None and stored != image.size:
                raise Problem(f"{where}: {png} has {pixels(stored)}, the image {pixels(image.size)}; paint it at that size")
            segments = _read_segments(annotation.get("segments_info"), categories, where, problems)
            records[image_id] = PanopticRecord(
                image_id, png, categories, *segments, size=stored, path=image.path, max_pixels=folder.max_pixels
            )
        except Problem as problem:
            problems.add(str(problem))
        except AnnotationError as error:
            problems.add(f"{where}: {error}")
    return list(records.values())


def _read_segments(listed: Any, categories: Categories, where: str, problems: Problems) -> tuple[Any, ...]:
    """segment_ids, classes, crowd, areas, boxes; what is wrong with a segment is reported."""
    if not isinstance(listed, list):
        raise Problem(f"{where}: 'segments_info' is {shown(listed)}, must be a list with an object for each segment")
    if (sound := _sound_segments(listed, categories)) is not None:
        return sound
    rows: dict[int, _Row] = {}
    for index, segment in enumerate(listed):
        here = f"{where}: segments_info[{index}]"
        try:
            if not isinstance(segment, dict):
                raise Problem(f"{here}: is {shown(segment)}, not an object")
            segment_id = integer(segment, "id", here)
            here = f"{where}: segment {segment_id}"
            if not 1 <= segment_id <= LARGEST_ID:
                raise Problem(f"{here}: its id must be from 1 to {LARGEST_ID}; 0 is void, and larger ids have no colour")
            if segment_id in rows:
                raise Problem(f"{here}: is listed twice; list each segment once")
            rows[segment_id] = (0, False, -1, NO_BOX)  # listed, whatever else is wrong with it
            rows[segment_id] = _read_segment(segment, categories, here)
        except Problem as problem:
            problems.add(str(problem))
    classes, crowd, areas, boxes = zip(*rows.values(), strict=True) if rows else ((), (), (), ())
    return (
        np.array(list(rows), np.int64),
        np.array(classes, np.int64),
        np.array(crowd, np.bool_),
        np.array(areas, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
    )


def _sound_segments(listed: list[dict[str, Any]], categories: Categories) -> tuple[Any, ...] | None:
    """What `_read_segments` gives of a list as files nearly always have it, in half the time; None for any other."""
    count = len(listed)
    try:
        ids, category_ids = [segment["id"] for segment in listed], [segment["category_id"] for segment in listed]
        crowd = [segment.get("iscrowd", 0) for segment in listed]
        areas, boxes = [segment["area"] for segment in listed], [segment["bbox"] for segment in listed]
        sides = [side for box in boxes for side in box]
        lists = {*map(type, boxes)} <= {list} and {*map(len, boxes)} <= {4}
        whole = {*map(type, ids), *map(type, category_ids), *map(type, crowd), *map(type, areas)} <= {int}  # true isn't
        if not (lists and whole and {*map(type, sides)} <= {int, float} and {*crowd} <= {0, 1} and len({*ids}) == count):
            return None
        found = (
            np.array(ids, np.int64),
            np.array([categories.class_of(category_id) for category_id in category_ids], np.int64),
            np.array(crowd, np.bool_),
            np.array(areas, np.int64),
            np.array(sides, np.float64).reshape(-1, 4),
        )
    except (AttributeError, KeyError, TypeError, OverflowError, AnnotationError):
        return None
    in_range = count == 0 or (1 <= min(ids) <= max(ids) <= LARGEST_ID and min(areas) >= 0 and abs(found[4]).max() < 2.0**63)
    return found if in_range else None


def _read_segment(segment: dict[str, Any], categories: Categories, where: str) -> _Row:
    category_id = integer(segment, "category_id", where)
    try:
        class_ = categories.class_of(category_id)
    except AnnotationError as error:
        raise Problem(f"{where}: {error}") from error
    is_crowd = segment.get("iscrowd", 0)
    if is_crowd not in (0, 1, None):
        raise Problem(f"{where}: 'iscrowd' is {shown(is_crowd)}, must be 0 or 1")
    area, box = segment.get("area"), segment.get("bbox")
    if area is not None:
        area = as_integer(area)
        if area is None or area < 0:
            raise Problem(f"{where}: 'area' is {shown(segment['area'])}, must be a whole number of pixels, or left out")
    if box is not None and not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        raise Problem(f"{where}: 'bbox' is {shown(box)}, must be [x, y, width, height], or left out")
    return class_, is_crowd == 1, -1 if area is None else area, NO_BOX if box is None else tuple(map(float, box))


def _image_id(entry: dict[str, Any], key: str, where: str) -> ImageId:
    """Numbers are read however written, other texts as they are: Cityscapes names its images."""
    value = entry.get(key)
    number = as_integer(value)
    if number is not None and not isinstance(value, str):
        return number
    if isinstance(value, str) and value:
        return value
    raise Problem(f"{where}: {key!r} is {shown(value) if key in entry else 'missing'}; give it a whole number or a text")
