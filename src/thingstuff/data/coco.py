"""COCO instance annotations (Lin et al., 2014, arXiv:1405.0312; layout: https://cocodataset.org/#format-data).

What is wrong with a file is gathered over the whole file and raised as one AnnotationError, so that it is repaired in one go.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from thingstuff.data.records import InstanceDataset, Object, Record
from thingstuff.errors import AnnotationError, ThingstuffError
from thingstuff.structures.categories import Categories
from thingstuff.structures.images import DEFAULT_MAX_PIXELS
from thingstuff.structures.masks import Mask

PROBLEMS_SHOWN = 20  # of one file, in one message; the rest are counted
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")  # what LVIS's files say of an image
EXIF_ORIENTATION = 0x0112
EXIF_TURNED = (5, 6, 7, 8)  # orientations that swap height and width


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
    if image_dir is None:
        image_dir = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    elif required_images and not Path(image_dir).is_dir():
        raise AnnotationError(f"{path}: the image folder {image_dir} does not exist; name the folder that holds the images")

    problems = _Problems(path)
    categories = _read_categories(content, problems)
    images = _read_images(content, _ImageFolder(Path(image_dir), required_images, max_pixels), problems)
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
        except _Problem as problem:
            problems.add(str(problem))
            continue
        objects[image_id].append(found)
        if not has_area:
            without_area.append(found.annotation_id)
    problems.raise_if_any()
    assert categories is not None
    if without_area:
        warnings.warn(
            f"{path}: {len(without_area)} annotations cover no pixel or have a bbox without area, ids {_listed(without_area)}; "
            "training leaves out those without pixels, evaluation counts them",
            stacklevel=2,
        )
    records = tuple(replace(record, objects=tuple(objects[image_id])) for image_id, record in images.items())
    return InstanceDataset(records, categories, path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file (UTF-8, or UTF-16/32 as JSON allows, with or without a byte order mark).

    Raises:
        AnnotationError: not there, not readable, not JSON (with line and column), or not an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise AnnotationError(f"{path}: can't be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not text: {error.reason} at byte {error.start}; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists nested thousands deep
        raise AnnotationError(f"{path}: not JSON that can be read: {error}") from error
    if isinstance(content, list):
        raise AnnotationError(
            f"{path}: holds a list, as files of predictions do; the ground truth is an object with 'images' in it"
        )
    if not isinstance(content, dict):
        raise AnnotationError(
            f"{path}: holds {type(content).__name__}, not an object with 'images', 'annotations' and 'categories'"
        )
    return content


class _Problem(Exception):
    """One thing wrong with one entry of the file."""


@dataclass
class _Problems:
    path: Path
    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, text: str) -> None:
        self.count += 1
        if len(self.shown) < PROBLEMS_SHOWN:
            self.shown.append(text)

    def raise_if_any(self) -> None:
        if self.count == 1:
            raise AnnotationError(f"{self.path}: {self.shown[0]}")
        if self.count:
            more = [f"... and {self.count - len(self.shown)} more"] if self.count > len(self.shown) else []
            raise AnnotationError("\n  ".join([f"{self.path}: {self.count} problems", *self.shown, *more]))


def _listed(ids: list[int]) -> str:
    more = f" and {len(ids) - PROBLEMS_SHOWN} more" if len(ids) > PROBLEMS_SHOWN else ""
    return ", ".join(map(str, ids[:PROBLEMS_SHOWN])) + more


def _read_categories(content: dict[str, Any], problems: _Problems) -> Categories | None:
    listed = content.get("categories")
    if not isinstance(listed, list) or not listed:
        problems.add('\'categories\' is missing or empty; list each as {"id": 1, "name": "..."}')
        return None
    named = []
    for index, category in enumerate(listed):
        where = f"categories[{index}]"
        try:
            if not isinstance(category, dict):
                raise _Problem(f"{where}: is {_shown(category)}, not an object")
            if not isinstance(category.get("name"), str) or not category["name"]:
                raise _Problem(f"{where}: 'name' is {_shown(category.get('name'))}; give it one")
            named.append({**category, "id": _integer(category, "id", where)})
        except _Problem as problem:
            problems.add(str(problem))
    if len(named) < len(listed):
        return None
    try:
        return Categories.from_coco(named)
    except ThingstuffError as error:
        problems.add(str(error))
        return None


@dataclass(frozen=True)
class _ImageFolder:
    folder: Path
    required: bool
    max_pixels: int

    @cached_property
    def resolved(self) -> Path:
        return self.folder.resolve()

    def path_of(self, file_name: Any, where: str) -> Path | None:
        """The file inside the folder; refuses names that lead out of it, by dots, from the root or over a link."""
        if file_name is None and not self.required:
            return None
        if not isinstance(file_name, str) or not file_name:
            raise _Problem(f"{where}: 'file_name' is {_shown(file_name)}; name the image's file")
        pure = PureWindowsPath(file_name)  # knows both separators, and drives
        if pure.anchor or ".." in pure.parts or "\0" in file_name:
            raise _Problem(f"{where}: file_name {file_name!r} leads out of the image folder; give a path inside {self.folder}")
        path = self.folder.joinpath(*pure.parts)
        if self.required:
            try:
                inside = path.resolve().is_relative_to(self.resolved)
                exists = path.is_file()
            except (OSError, RuntimeError) as error:  # a name too long, links in a circle
                raise _Problem(f"{where}: file_name {_shown(file_name)} can't be looked up: {error}") from error
            if not inside:
                raise _Problem(
                    f"{where}: file_name {file_name!r} is a link out of the image folder {self.folder}; copy the image there"
                )
            if not exists:
                raise _Problem(f"{where}: {path} does not exist; put it there or remove the image from the file")
        return path

    def check_size(self, path: Path, size: tuple[int, int], where: str) -> None:
        """Compare the declared size with the one in the file's header; no pixel is decoded."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    stored = (image.height, image.width)
                    # asking a PNG for EXIF that its header doesn't hold decodes all of it
                    has_exif = image.format != "PNG" or "exif" in image.info
                    turned = has_exif and image.getexif().get(EXIF_ORIENTATION) in EXIF_TURNED
        except Image.DecompressionBombError:
            return  # more pixels than Pillow opens unasked: read_image has the limit, and names it
        except UnidentifiedImageError as error:
            raise _Problem(f"{where}: {path} is not an image; replace it") from error
        except Exception as error:  # Pillow's readers raise many kinds on broken headers
            raise _Problem(f"{where}: {path} can't be read: {error}; replace it") from error
        actual = (stored[1], stored[0]) if turned else stored
        if actual != size:
            hint = " once its EXIF orientation is applied" if turned else ""
            raise _Problem(
                f"{where}: declared {_pixels(size)}, but {path.name} has {_pixels(actual)}{hint}; correct the size or the image"
            )


def _read_images(content: dict[str, Any], folder: _ImageFolder, problems: _Problems) -> dict[int, Record]:
    listed = content.get("images")
    if not isinstance(listed, list):
        problems.add(
            '\'images\' is missing or isn\'t a list; list each as {"id": 1, "file_name": ..., "height": ..., "width": ...}'
        )
        return {}
    records: dict[int, Record] = {}
    for index, image in enumerate(listed):
        where = f"images[{index}]"
        try:
            if not isinstance(image, dict):
                raise _Problem(f"{where}: is {_shown(image)}, not an object")
            image_id = _integer(image, "id", where)
            where = f"image {image_id}"
            if image_id in records:
                raise _Problem(f"images[{index}]: id {image_id} is taken by an earlier image; ids must differ")
            # entered even where the rest is wrong, so that its annotations aren't reported as homeless as well
            records[image_id] = Record(image_id, None, (0, 0))
            size = (_integer(image, "height", where), _integer(image, "width", where))
            if min(size) < 1:
                raise _Problem(f"{where}: declared {_pixels(size)}; height and width must be at least 1")
            if size[0] * size[1] > folder.max_pixels:
                raise _Problem(
                    f"{where}: declared {_pixels(size)}, more than the limit of {folder.max_pixels:,} pixels; "
                    "correct the size or raise max_pixels"
                )
            path = folder.path_of(image.get("file_name"), where)
            if folder.required:
                assert path is not None
                folder.check_size(path, size, where)
            absent, not_exhaustive = (_category_ids(image, key, where) for key in FEDERATED)
            records[image_id] = Record(image_id, path, size, (), absent, not_exhaustive)
        except _Problem as problem:
            problems.add(str(problem))
    return records


def _read_object(
    annotation: Any, index: int, images: dict[int, Record], categories: Categories | None, seen: set[int]
) -> tuple[int, Object, bool]:
    """(image id, object, whether it has an area)."""
    where = f"annotations[{index}]"
    if not isinstance(annotation, dict):
        raise _Problem(f"{where}: is {_shown(annotation)}, not an object")
    annotation_id = _integer(annotation, "id", where)
    if annotation_id in seen:
        raise _Problem(f"{where}: id {annotation_id} is taken by an earlier annotation; ids must differ")
    seen.add(annotation_id)
    where = f"annotation {annotation_id}"
    image_id = _integer(annotation, "image_id", where)
    if image_id not in images:
        raise _Problem(f"{where}: image_id {image_id} is no image of this file; add the image or remove the annotation")
    where = f"annotation {annotation_id} (image {image_id})"
    category_id = _integer(annotation, "category_id", where)
    is_crowd = annotation.get("iscrowd", 0)
    if is_crowd not in (0, 1, "0", "1", None):  # False and True, 0.0 and 1.0 equal these
        raise _Problem(f"{where}: 'iscrowd' is {_shown(is_crowd)}, must be 0 or 1")
    class_ = 0
    if categories is not None:
        try:
            class_ = categories.class_of(category_id)
        except ThingstuffError as error:
            raise _Problem(f"{where}: category_id {category_id} is not among the file's categories; add it there") from error
    size = images[image_id].size
    if size == (0, 0):  # its image is broken and has been reported
        return image_id, Object(class_, (0.0, 0.0, 0.0, 0.0), Mask.empty((1, 1)), False, 0.0, annotation_id), True
    mask = _read_mask(annotation.get("segmentation"), size, where)
    box = _read_box(annotation.get("bbox"), where)
    area = annotation.get("area")
    if area is not None and not _is_number(area, at_least=0.0):
        raise _Problem(f"{where}: 'area' is {_shown(area)}; give the pixels it covers, or leave it out")
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
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or box[2] < 0 or box[3] < 0:
        raise _Problem(f"{where}: 'bbox' is {_shown(box)}, must be [x, y, width, height]; correct it or leave it out")
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height


def _read_mask(segmentation: Any, size: tuple[int, int], where: str) -> Mask:
    if segmentation is None or segmentation == []:
        raise _Problem(f"{where}: has no segmentation, only a box; draw its mask or remove the annotation")
    make: Callable[[], Mask]
    if isinstance(segmentation, dict):
        stated = segmentation.get("size")
        if not isinstance(stated, list) or [_as_integer(side) for side in stated] != list(size):
            raise _Problem(f"{where}: its RLE has size {_shown(stated)}, but the image is {list(size)} (height, width)")
        counts = segmentation.get("counts")
        if not isinstance(counts, str | list):
            raise _Problem(f"{where}: its RLE has counts {_shown(counts)}; give a compressed string or a list of run lengths")
        make = lambda: Mask.from_coco({"size": list(size), "counts": counts})  # noqa: E731
    elif isinstance(segmentation, list):
        if all(map(_is_number, segmentation)):
            segmentation = [segmentation]  # one polygon, its list of polygons left out: what it means is plain
        for part, polygon in enumerate(segmentation):
            _check_polygon(polygon, size, f"{where}: polygon {part}")
        outlines = [[float(value) for value in polygon] for polygon in segmentation]
        make = lambda: Mask.from_polygons(outlines, size)  # noqa: E731
    else:
        raise _Problem(f"{where}: 'segmentation' is {_shown(segmentation)}; give polygons or an RLE")
    try:
        return make()
    except ThingstuffError as error:
        raise _Problem(f"{where}: {error}") from error


def _check_polygon(polygon: Any, size: tuple[int, int], where: str) -> None:
    if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
        raise _Problem(f"{where} is {_shown(polygon)}, must be a flat list of numbers x, y, x, y, ...")
    if len(polygon) < 6 or len(polygon) % 2:
        raise _Problem(f"{where} has {len(polygon)} numbers; it needs at least three points of x and y")
    height, width = size
    # drawing a polygon costs what its edges are long, so points far outside are refused and not drawn
    if (
        min(polygon[0::2]) < -width
        or max(polygon[0::2]) > 2 * width
        or min(polygon[1::2]) < -height
        or max(polygon[1::2]) > 2 * height
    ):
        raise _Problem(
            f"{where} reaches further outside the image of {_pixels(size)} than the image is large; correct its points"
        )


def _is_number(value: Any, at_least: float = -(2.0**63)) -> bool:
    """Finite and of a size that 64 bits hold; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and at_least <= value < 2**63


def _as_integer(value: Any) -> int | None:
    """Whole numbers however written: 12, 12.0, "12"; None for anything else."""
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            return None
    return int(value) if _is_number(value) and value == int(value) else None


def _integer(entry: dict[str, Any], key: str, where: str) -> int:
    value = _as_integer(entry.get(key))
    if value is None:
        stated = f"is {_shown(entry[key])}, must be a whole number" if key in entry else "is missing"
        raise _Problem(f"{where}: {key!r} {stated}")
    return value


def _category_ids(image: dict[str, Any], key: str, where: str) -> tuple[int, ...] | None:
    ids = image.get(key)
    if ids is None:
        return None
    if not isinstance(ids, list) or None in (whole := [_as_integer(id_) for id_ in ids]):
        raise _Problem(f"{where}: {key!r} is {_shown(ids)}, must be a list of category ids")
    return tuple(id_ for id_ in whole if id_ is not None)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} pixels (width x height)"


def _shown(value: Any) -> str:
    """A value short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
