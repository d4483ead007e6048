"""What the readers of COCO's JSON files share: the file, its categories and images, and everything wrong with it gathered.

A problem with one entry is raised as `Problem` and caught at that entry, so that all of a file's problems end in one error.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PureWindowsPath
from stat import S_ISREG
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

from thingstuff.errors import AnnotationError, ThingstuffError
from thingstuff.structures.categories import Categories
from thingstuff.structures.files import kind_unless_file

_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
PROBLEMS_SHOWN = 20  # of one file, in one message; the rest are counted
EXIF_ORIENTATION = 0x0112
EXIF_TURNED = (5, 6, 7, 8)  # orientations that swap height and width

Id = TypeVar("Id")  # of an image: a number, in panoptic files a text as well


TRUTH = "an object with 'images', 'annotations' and 'categories'"


def read_json(path: Path, wanted: str = TRUTH) -> dict[str, Any]:
    """The JSON object in a file (UTF-8, or UTF-16/32 as JSON allows, with or without a byte order mark).

    Args:
        wanted: what it should be, for the message where it is no object.

    Raises:
        AnnotationError: not there, not readable, not JSON (with line and column), or not an object.
    """
    try:
        if kind := kind_unless_file(path):
            raise AnnotationError(f"{path}: can't be read: is {kind}; name a file, {wanted}")
        text = path.read_bytes()
        if not text:
            raise AnnotationError(f"{path}: is empty (0 bytes), not {wanted}")
        content = json.loads(text)
    except OSError as error:
        raise AnnotationError(f"{path}: can't be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not text: {error.reason} at byte {error.start}; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists nested thousands deep
        raise AnnotationError(f"{path}: not JSON that can be read: {error}") from error
    if isinstance(content, list) and wanted == TRUTH:
        raise AnnotationError(
            f"{path}: holds a list, as files of predictions do; the ground truth is an object with 'images' in it"
        )
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: holds {_KINDS.get(type(content), 'nothing')}, not {wanted}")
    return content


class Problem(Exception):
    """One thing wrong with one entry of the file."""


@dataclass
class Problems:
    """What is wrong with a file; the first `limit` problems are kept, the rest are counted."""

    path: Path
    limit: int | None = PROBLEMS_SHOWN
    kept: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, text: str) -> None:
        self.count += 1
        if self.limit is None or len(self.kept) < self.limit:
            self.kept.append(text)

    def raise_if_any(self) -> None:
        if self.count == 1:
            raise AnnotationError(f"{self.path}: {self.kept[0]}")
        if self.count:
            more = [f"... and {self.count - len(self.kept)} more"] if self.count > len(self.kept) else []
            raise AnnotationError("\n  ".join([f"{self.path}: {self.count} problems", *self.kept, *more]))


def read_categories(content: dict[str, Any], problems: Problems) -> Categories | None:
    """The categories that a file lists; None where one is broken, which is reported."""
    listed = content.get("categories")
    if not isinstance(listed, list) or not listed:
        problems.add('\'categories\' is missing or empty; list each as {"id": 1, "name": "..."}')
        return None
    named = []
    for index, category in enumerate(listed):
        where = f"categories[{index}]"
        try:
            if not isinstance(category, dict):
                raise Problem(f"{where}: is {shown(category)}, not an object")
            if not isinstance(category.get("name"), str) or not category["name"]:
                raise Problem(f"{where}: 'name' is {shown(category.get('name'))}; give it one")
            named.append({**category, "id": integer(category, "id", where)})
        except Problem as problem:
            problems.add(str(problem))
    if len(named) < len(listed):
        return None
    try:
        return Categories.from_coco(named)
    except ThingstuffError as error:
        problems.add(str(error))
        return None


def report_shared_names(categories: Categories, problems: Problems) -> None:
    """Tell of categories of one name: data sets are joined, and models matched with them, by names."""
    first: dict[str, int] = {}
    for category in categories:
        if category.name in first:
            problems.add(
                f"categories {first[category.name]} and {category.id} are both called {category.name!r}; "
                "give each a name of its own, or make them one"
            )
        first.setdefault(category.name, category.id)


def listed_images(
    content: dict[str, Any], id_of: Callable[[dict[str, Any], str, str], Id], problems: Problems
) -> Iterator[tuple[Id, dict[str, Any], str]]:
    """Each entry of "images" whose id could be read (by entry, key and place) and is new: id, entry, and its name in messages.

    The others are reported.
    """
    listed = content.get("images")
    if not isinstance(listed, list):
        problems.add(
            '\'images\' is missing or isn\'t a list; list each as {"id": 1, "file_name": ..., "height": ..., "width": ...}'
        )
        return
    seen: set[Id] = set()
    for index, image in enumerate(listed):
        where = f"images[{index}]"
        try:
            if not isinstance(image, dict):
                raise Problem(f"{where}: is {shown(image)}, not an object")
            image_id = id_of(image, "id", where)
            if image_id in seen:
                raise Problem(f"{where}: id {image_id!r} is taken by an earlier image; ids must differ")
        except Problem as problem:
            problems.add(str(problem))
            continue
        seen.add(image_id)
        yield image_id, image, f"image {image_id}"


def declared_size(image: dict[str, Any], max_pixels: int, where: str) -> tuple[int, int]:
    """(height, width) that an entry of "images" states; nothing has been made of that size yet."""
    size = (integer(image, "height", where), integer(image, "width", where))
    if min(size) < 1:
        raise Problem(f"{where}: declared {pixels(size)}; height and width must be at least 1")
    if size[0] * size[1] > max_pixels:
        raise Problem(
            f"{where}: declared {pixels(size)}, more than the limit of {max_pixels:,} pixels; "
            "correct the size or raise the limit (--max-pixels, in Python max_pixels)"
        )
    return size


@dataclass(frozen=True)
class ImageFolder:
    """Where the files that entries name lie."""

    folder: Path
    required: bool  # every file must exist; False leaves them alone
    max_pixels: int  # of one image; larger ones are refused before anything is made of their size

    @cached_property
    def resolved(self) -> Path:
        return self.folder.resolve()

    def path_of(self, file_name: Any, where: str) -> Path | None:
        """The file inside the folder; refuses names that lead out of it, by dots, from the root or over a link."""
        if file_name is None and not self.required:
            return None
        if not isinstance(file_name, str) or not file_name:
            raise Problem(f"{where}: 'file_name' is {shown(file_name)}; name the image's file")
        pure = PureWindowsPath(file_name)  # knows both separators, and drives
        if pure.anchor or ".." in pure.parts or "\0" in file_name:
            raise Problem(f"{where}: file_name {file_name!r} leads out of the image folder; give a path inside {self.folder}")
        path = self.folder.joinpath(*pure.parts)
        if self.required:
            try:
                if len(pure.parts) == 1 and S_ISREG(path.lstat().st_mode):
                    return path  # nearly always: no link on the way
            except OSError:
                pass  # said below
            try:
                inside = path.resolve().is_relative_to(self.resolved)
                exists = path.is_file()
            except (OSError, RuntimeError) as error:  # a name too long, links in a circle
                raise Problem(f"{where}: file_name {shown(file_name)} can't be looked up: {error}") from error
            if not inside:
                raise Problem(
                    f"{where}: file_name {file_name!r} is a link out of the image folder {self.folder}; copy the image there"
                )
            if not exists:
                raise Problem(
                    f"{where}: {path} does not exist; put it there, name the folder of the photos (--images, in training "
                    "--image-dir), or remove the image from the file"
                )
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
            raise Problem(f"{where}: {path} is not an image; replace it") from error
        except Exception as error:  # Pillow's readers raise many kinds on broken headers
            raise Problem(f"{where}: {path} can't be read: {error}; replace it") from error
        actual = (stored[1], stored[0]) if turned else stored
        if actual != size:
            hint = " once its EXIF orientation is applied" if turned else ""
            raise Problem(
                f"{where}: declared {pixels(size)}, but {path.name} has {pixels(actual)}{hint}; correct the size or the image"
            )


def is_number(value: Any, at_least: float = -(2.0**63)) -> bool:
    """Finite and of a size that 64 bits hold; true and false are none."""
    return type(value) in (int, float) and at_least <= value < 2**63


def as_integer(value: Any) -> int | None:
    """Whole numbers however written: 12, 12.0, "12"; None for anything else."""
    if type(value) is int and -(2**63) <= value < 2**63:
        return value  # nearly always, and there are many
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            return None
    return int(value) if is_number(value) and value == int(value) else None


def integer(entry: dict[str, Any], key: str, where: str) -> int:
    """The whole number that an entry must have under a key."""
    value = as_integer(entry.get(key))
    if value is None:
        stated = f"is {shown(entry[key])}, must be a whole number" if key in entry else "is missing"
        raise Problem(f"{where}: {key!r} {stated}")
    return value


def pixels(size: tuple[int, int]) -> str:
    """A size (height, width) for a message."""
    return f"{size[1]} x {size[0]} pixels (width x height)"


def shown(value: Any) -> str:
    """A value short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
