"""Segments to and from COCO's results format (https://cocodataset.org/#format-results), and one document per image.

Results are a list of `{"image_id", "category_id", "score", "bbox": [x, y, width, height], "segmentation": RLE}`, one row for each
segment of all images. Rows written here carry "file_name" as well, since images outside a data set have no id of their own.

A document is `{"image": {"file_name", "width", "height"}, "segments": [{"category", "category_id", "is_thing", "score", "bbox",
"area", "segmentation": RLE}]}`. Boxes and areas are in pixels.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thingstuff.errors import AnnotationError, ConfigError, ThingstuffError
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.files import kind_unless_file
from thingstuff.structures.segments import Segments

ImageId = int | str


@dataclass(frozen=True)
class ImageResults:
    """What a results file says of one image: rows as COCO has them, still in its own category ids."""

    image_id: ImageId
    file_name: str | None  # None where the file gives none, as most programs' files
    rows: tuple[dict[str, Any], ...]

    def segments(self, size: tuple[int, int], categories: Categories) -> Segments:
        """The rows as Segments of an image of (height, width).

        Raises:
            AnnotationError: a row does not fit the size or the categories; the image is named.
        """
        try:
            return Segments.from_coco(list(self.rows), size, categories)
        except ThingstuffError as error:
            raise AnnotationError(f"predictions of image {self.file_name or self.image_id}: {error}") from error


def image_ids(file_names: Sequence[str]) -> list[int]:
    """An id for each image: the number in its name where every name is a number of its own, as COCO's are; else 1, 2, 3 ..."""
    stems = [Path(name).stem for name in file_names]
    if all(stem.isascii() and stem.isdigit() and len(stem) <= 15 for stem in stems) and len(set(map(int, stems))) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(stems) + 1))


def results(segments: Segments, image_id: ImageId, file_name: str | None = None) -> list[dict[str, Any]]:
    """COCO results rows of one image."""
    name = {} if file_name is None else {"file_name": file_name}
    return [
        {"image_id": image_id, **name, **{key: value for key, value in row.items() if key != "image_id"}}
        for row in segments.to_coco(0)
    ]


def document(segments: Segments, file_name: str) -> dict[str, Any]:
    """One image's segments with their category names, for programs that read one image at a time."""
    height, width = segments.size
    rows = [
        {
            "category": segment.category.name,
            "category_id": segment.category.id,
            "is_thing": segment.category.is_thing,
            "score": row["score"],
            "bbox": row["bbox"],
            "area": segment.area,
            "segmentation": row["segmentation"],
        }
        for segment, row in zip(segments, segments.to_coco(0), strict=True)
    ]
    return {"image": {"file_name": file_name, "width": width, "height": height}, "segments": rows}


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON whole or not at all: a reader never sees half a file.

    Raises:
        ConfigError: the file can't be written.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ConfigError(f"{path}: can't be written ({error.strerror or error})") from error


def read_document(path: str | Path) -> tuple[str, Segments]:
    """The file name and the segments of a document; its categories are those that occur in it.

    Raises:
        AnnotationError: the file is not such a document.
    """
    content = _read(path)
    try:
        image, rows = content["image"], content["segments"]
        size = int(image["height"]), int(image["width"])
        categories = {
            row["category_id"]: Category(row["category_id"], row["category"], row.get("is_thing", True)) for row in rows
        }
        return image["file_name"], Segments.from_coco(rows, size, Categories(tuple(categories.values())))
    except (KeyError, TypeError, ValueError, ThingstuffError) as error:
        raise AnnotationError(f"{path}: not a document of one image's segments: {_reason(error)}") from error


def read_results(path: str | Path) -> list[ImageResults]:
    """The rows of a COCO results file, gathered by image, in the order in which images first occur.

    Raises:
        AnnotationError: the file is not a results file, or a row lacks what it needs; the row is named.
    """
    content = _read(path)
    if isinstance(content, Mapping) and "annotations" in content:
        raise AnnotationError(
            f"{path}: holds annotations, not predictions; give it as the data, and as predictions a list of results"
        )
    if not isinstance(content, list):
        raise AnnotationError(f"{path}: predictions are a list of results, one for each segment, not {type(content).__name__}")
    gathered: dict[ImageId, list[dict[str, Any]]] = {}
    for number, row in enumerate(content):
        _check_row(row, f"{path}: row {number}")
        gathered.setdefault(row["image_id"], []).append(row)
    return [ImageResults(image_id, _only_name(rows, path), tuple(rows)) for image_id, rows in gathered.items()]


def _only_name(rows: Iterable[Mapping[str, Any]], path: str | Path) -> str | None:
    names = {row.get("file_name") for row in rows}
    if len(names) > 1:
        raise AnnotationError(f"{path}: one image_id has several file names ({', '.join(map(str, sorted(map(str, names))))})")
    return names.pop()


def _check_row(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise AnnotationError(f"{where}: is {type(row).__name__}, not an object")
    for key in ("image_id", "category_id", "score"):
        if key not in row:
            raise AnnotationError(f"{where}: has no '{key}'")
    if not isinstance(row["image_id"], int | str) or isinstance(row["image_id"], bool):
        raise AnnotationError(f"{where}: image_id must be a whole number or a text, got {row['image_id']!r}")
    if not isinstance(row["category_id"], int) or isinstance(row["category_id"], bool):
        raise AnnotationError(f"{where}: category_id must be a whole number, got {row['category_id']!r}")
    if not isinstance(row["score"], int | float) or isinstance(row["score"], bool) or not math.isfinite(row["score"]):
        raise AnnotationError(f"{where}: score must be a number, got {row['score']!r}")
    if not isinstance(row.get("file_name"), str | None):
        raise AnnotationError(f"{where}: file_name must be a text, got {row['file_name']!r}")
    if "segmentation" not in row:
        raise AnnotationError(f"{where}: has no 'segmentation'; masks are needed, boxes alone are not enough")


def _read(path: str | Path) -> Any:
    try:
        if kind := kind_unless_file(Path(path)):
            raise AnnotationError(f"{path}: can't be read: is {kind}; name a file of predictions")
        text = Path(path).read_bytes()
        if not text:
            raise AnnotationError(f"{path}: is empty (0 bytes); a file of no predictions holds []")
        return json.loads(text)
    except OSError as error:
        raise AnnotationError(f"{path}: can't be read ({error.strerror or error})") from error
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # not text at all, or nested beyond reason
        raise AnnotationError(f"{path}: not JSON ({error})") from error


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
