"""LabelMe's annotations (Russell et al., 2008, doi 10.1007/s11263-007-0090-8; the files are those of wkentaro/labelme).

<folder>/<name>.json beside its photo, one for each image: {"imagePath", "imageHeight", "imageWidth", "shapes": [{"label",
"points", "group_id", "shape_type"}]}. `labels.txt`, in the folder or above it, lists the labels, one a line.

Shapes of one label and group are one object. Polygons follow COCO's rasteriser, as the files of LabelMe's own converter do.
"""

import base64
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thingstuff.data.coco_json import ImageFolder, Problem, Problems, as_integer, declared_size, is_number, read_json, shown
from thingstuff.data.layouts import in_threads
from thingstuff.data.records import InstanceDataset, Object, Record
from thingstuff.errors import AnnotationError, ThingstuffError
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.images import DEFAULT_MAX_PIXELS
from thingstuff.structures.masks import Mask

LABELS = "labels.txt"
IGNORED = ("__ignore__", "_background_")  # labels of no object
LOOKED_AT = 2**20  # bytes of a file that tell what it is
CIRCLE_POINTS = 64  # corners of the polygon that stands for a circle


def find(folder: Path) -> Path | None:
    """The folder itself, where its first JSON file is one of LabelMe's, or that of a folder in it is."""
    return folder if _is_annotated(folder) or splits(folder) else None


def splits(folder: Path) -> list[str]:
    """Folders with annotations of their own."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and _is_annotated(path))


def read(
    folder: Path,
    split: str | None,
    *,
    required_images: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    problems: Problems | None = None,
) -> InstanceDataset:
    """The objects of a folder, or of the one in it that a split names; image ids count from 1 in the order of the names.

    Args:
        problems: is told everything that is wrong, file and shape named; such files are left out.

    Raises:
        AnnotationError: everything that is wrong, where no `problems` are given.
    """
    root = folder if split is None else folder / split
    files = sorted(root.glob("*.json"))
    labels = _labels(root)
    told = Problems(root) if problems is None else problems

    def attempt(file: Path) -> "_Image | str":
        try:
            return _read_image(file, root, required_images, max_pixels)
        except (Problem, AnnotationError) as error:
            return str(error) if str(error).startswith(str(file)) else f"{file.name}: {error}"

    images = []
    for result in in_threads(attempt, files, "read annotations"):
        if isinstance(result, str):
            told.add(result)
        else:
            images.append(result)
    if labels is None:
        seen = sorted({label for image in images for label, _ in image[2]})
        labels = dict(zip(seen, range(1, len(seen) + 1), strict=True))
    categories = Categories(tuple(Category(id_, label) for label, id_ in labels.items()))
    records, next_id = [], 1
    for image_id, (path, size, found) in enumerate(images, start=1):
        objects = []
        for label, mask in found:
            if label not in labels:
                told.add(f"image {image_id} ({path and path.name}): the label {label!r} is not in {LABELS}; add it there")
                continue
            box = tuple(map(float, mask.box))
            class_ = categories.class_of(labels[label])
            objects.append(Object(class_, box, mask, False, float(mask.area), next_id))  # type: ignore[arg-type]
            next_id += 1
        records.append(Record(image_id, path, size, tuple(objects)))
    if problems is None:
        told.raise_if_any()
    return InstanceDataset(tuple(records), categories, root)


_Image = tuple[Path | None, tuple[int, int], list[tuple[str, Mask]]]  # photo, (height, width), objects by label


def _is_annotated(folder: Path) -> bool:
    """By the words that LabelMe's files begin with and COCO's do not have; nothing is parsed."""
    first = next(iter(sorted(folder.glob("*.json"))), None)
    try:
        if first is None or not first.is_file():
            return False
        with open(first, "rb") as file:
            head = file.read(LOOKED_AT)
    except OSError:
        return False
    return b'"shapes"' in head and b'"annotations"' not in head


def _labels(folder: Path) -> dict[str, int] | None:
    """Category ids of the labels, by their place in labels.txt: 1 for the first that is an object's."""
    for file in (folder / LABELS, folder.parent / LABELS):
        if file.is_file():
            try:
                lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
            except (OSError, ValueError) as error:
                raise AnnotationError(f"{file}: can't be read: {error}; it lists the labels, one a line") from error
            names = [line for line in lines if line and line not in IGNORED]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise AnnotationError(f"{file}: lists {twice!r} twice; list it once")
            return {name: number for number, name in enumerate(names, start=1)}
    return None


def _read_image(file: Path, root: Path, required: bool, max_pixels: int) -> _Image:
    content = read_json(file)
    sides = {"height": content.get("imageHeight"), "width": content.get("imageWidth")}
    size = declared_size(sides, max_pixels, "the image")
    folder = ImageFolder(root, required, max_pixels)
    path = folder.path_of(content.get("imagePath"), "the image")
    if required:
        assert path is not None
        folder.check_size(path, size, "the image")
    listed = content.get("shapes")
    if not isinstance(listed, list):
        raise Problem(f"'shapes' is {shown(listed)}, must be a list")
    parts: dict[tuple[str, object], list[Mask]] = {}  # by label and group, in the file's order
    for number, shape in enumerate(listed):
        where = f"shapes[{number}]"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"]:
            raise Problem(f"{where}: has no label; give it one")
        if shape["label"] in IGNORED:
            continue
        group = shape.get("group_id")
        if group is not None and as_integer(group) is None:
            raise Problem(f"{where}: 'group_id' is {shown(group)}, must be a whole number or null")
        mask = _mask(shape, size, f"{where} ({shape['label']})")
        parts.setdefault((shape["label"], ("alone", number) if group is None else as_integer(group)), []).append(mask)
    return path, size, [(label, Mask.union(masks)) for (label, _), masks in parts.items()]


def _mask(shape: dict[str, Any], size: tuple[int, int], where: str) -> Mask:
    kind, points = shape.get("shape_type", "polygon"), shape.get("points")
    wanted = {"polygon": (3, math.inf), "rectangle": (2, 2), "circle": (2, 2), "mask": (2, 2)}
    if kind not in wanted:
        raise Problem(f"{where}: is a {shown(kind)}, which has no area; objects are {', '.join(wanted)}")
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point)) for point in points
    ):
        raise Problem(f"{where}: 'points' is {shown(points)}, must be a list of [x, y]")
    least, most = wanted[kind]
    if not least <= len(points) <= most:
        raise Problem(f"{where}: a {kind} of {len(points)} points; it has {least}{'' if most == least else ' or more'}")
    reach = max(size)
    if any(not -reach <= side <= 2 * reach for point in points for side in point):
        raise Problem(f"{where}: reaches further outside the image than the image is large; correct its points")
    if kind == "mask":
        return _stored_mask(shape.get("mask"), points, size, where)
    (x1, y1), (x2, y2) = map(float, points[0]), map(float, points[1])
    outline = [coordinate for point in points for coordinate in map(float, point)]
    if kind == "rectangle":
        outline = [x1, y1, x2, y1, x2, y2, x1, y2]
    elif kind == "circle":  # its centre, and a point on it
        radius = math.hypot(x2 - x1, y2 - y1)
        angles = [2 * math.pi * step / CIRCLE_POINTS for step in range(CIRCLE_POINTS)]
        outline = [value for angle in angles for value in (x1 + radius * math.cos(angle), y1 + radius * math.sin(angle))]
    try:
        return Mask.from_polygons([outline], size)
    except ThingstuffError as error:
        raise Problem(f"{where}: {error}") from error


def _stored_mask(encoded: Any, points: list[Any], size: tuple[int, int], where: str) -> Mask:
    """A mask that the file holds as a PNG in base 64, its corners being the points."""
    (x1, y1), (x2, y2) = ((round(x), round(y)) for x, y in points)
    height, width = y2 - y1 + 1, x2 - x1 + 1
    try:
        with Image.open(BytesIO(base64.b64decode(encoded, validate=True)), formats=("PNG",)) as image:
            if (image.height, image.width) != (height, width):
                raise Problem(
                    f"{where}: its mask has {image.width} x {image.height} pixels, its points enclose {width} x {height}"
                )
            crop = np.asarray(image.convert("L")) > 0
    except Problem:
        raise
    except Exception as error:  # Pillow raises many kinds on broken files
        raise Problem(f"{where}: its mask can't be read: {error}; it is a PNG in base 64") from error
    return Mask.from_crop(crop, (y1, x1), size)
