"""The PASCAL VOC layout (Everingham et al., 2010, doi 10.1007/s11263-009-0275-4; the development kit, section 2).

VOC20xx/JPEGImages/<name>.jpg                  photos
VOC20xx/SegmentationObject/<name>.png          palette: k for the k-th object, 0 background, 255 void, which outlines the objects
VOC20xx/SegmentationClass/<name>.png           palette: the class, likewise
VOC20xx/ImageSets/Segmentation/<split>.txt     names
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from thingstuff.data.coco_json import Problems
from thingstuff.data.id_png import read_number_png
from thingstuff.data.layouts import read_records, segment_lists
from thingstuff.data.panoptic import ImageId, PanopticDataset, PanopticRecord
from thingstuff.errors import AnnotationError
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.images import DEFAULT_MAX_PIXELS

_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC = Categories(
    (
        *(Category(number, name, supercategory="object") for number, name in enumerate(_NAMES, start=1)),
        Category(0, "background", is_thing=False),
    )
)
"""The 20 things, classes 0 to 19 (category ids 1 to 20), and the background as stuff, which mean IoU counts as a class."""

BACKGROUND, VOID = 0, 255  # numbers of the PNGs
BACKGROUND_ID = 256  # as a segment, after every object


@dataclass(frozen=True, eq=False)
class VOCRecord(PanopticRecord):
    """One image; its objects keep the numbers of the PNG as ids."""

    def painted(self) -> Int32[np.ndarray, "height width"]:
        numbers = read_number_png(self.png, self.max_pixels)
        return np.where(numbers == VOID, 0, np.where(numbers == BACKGROUND, BACKGROUND_ID, numbers)).astype(np.int32)


def find(folder: Path) -> Path | None:
    """The folder VOC20xx: this one, or the one in it; None where there is none.

    Raises:
        AnnotationError: several years lie in the folder.
    """
    if (folder / "SegmentationObject").is_dir():
        return folder
    years = sorted(found.parent for found in folder.glob("VOC*/SegmentationObject") if found.is_dir())
    if len(years) > 1:
        raise AnnotationError(f"{folder}: holds {', '.join(year.name for year in years)}; name one of these folders")
    return years[0] if years else None


def splits(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "ImageSets" / "Segmentation").glob("*.txt"))


def read(
    root: Path, split: str | None, max_pixels: int = DEFAULT_MAX_PIXELS, problems: Problems | None = None
) -> PanopticDataset:
    """The images of a split, or all that have a SegmentationObject PNG; each is decoded once, to list its objects.

    Args:
        problems: is told of those that can't be read, which are left out.

    Raises:
        AnnotationError: there is no annotation, or, where no `problems` are given, some can't be read, each named.
    """
    if split is None:
        names = sorted(path.stem for path in (root / "SegmentationObject").glob("*.png"))
    else:
        names = _read_names(root / "ImageSets" / "Segmentation" / f"{split}.txt")

    def record_of(name: str) -> Callable[[], PanopticRecord]:
        return lambda: _record(root, name, max_pixels)

    if not names:
        raise AnnotationError(f"{root}: has no image {f'of the split {split}' if split else 'in SegmentationObject'}")
    return PanopticDataset(read_records(root, [record_of(name) for name in names], problems), VOC, root)


def _read_names(file: Path) -> list[str]:
    try:
        names = file.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise AnnotationError(f"{file}: can't be read: {error}; it lists the images of a split") from error
    for name in names:
        if name != Path(name).name or "\\" in name or "\0" in name or name in (".", ".."):
            raise AnnotationError(f"{file}: {name!r} is no name of an image; give it without folders and ending")
    if len(set(names)) < len(names):
        raise AnnotationError(f"{file}: lists {next(name for name in names if names.count(name) > 1)} twice; list it once")
    return names


def _record(root: Path, name: str, max_pixels: int) -> VOCRecord:
    png, class_png = (root / folder / f"{name}.png" for folder in ("SegmentationObject", "SegmentationClass"))
    objects, classes = read_number_png(png, max_pixels), read_number_png(class_png, max_pixels)
    if objects.shape != classes.shape:
        raise AnnotationError(f"{class_png}: has another size than {png}; replace one of them")
    numbers = [number for number in np.unique(objects).tolist() if number not in (BACKGROUND, VOID)]
    found = [_class_of(classes[objects == number], number, png, class_png) for number in numbers]
    if (objects == BACKGROUND).any():
        numbers.append(BACKGROUND_ID)
        found.append(VOC.class_of(BACKGROUND))
    photo = root / "JPEGImages" / f"{name}.jpg"
    return VOCRecord(
        _image_id(name),
        png,
        VOC,
        *segment_lists(numbers, found, [False] * len(numbers)),
        size=(int(objects.shape[0]), int(objects.shape[1])),
        path=photo if photo.is_file() else None,
        max_pixels=max_pixels,
    )


def _class_of(values: np.ndarray, number: int, png: Path, class_png: Path) -> int:
    """The class that most of an object's pixels have in the class map."""
    values = values[(values != BACKGROUND) & (values != VOID)]
    if not len(values):
        raise AnnotationError(f"{class_png}: has no class where {png.name} in {png.parent.name} paints object {number}")
    label = int(np.bincount(values).argmax())
    if label > len(_NAMES):
        raise AnnotationError(f"{class_png}: paints {label}; classes are 1 to {len(_NAMES)}, 0 is background and {VOID} void")
    return VOC.class_of(label)


def _image_id(name: str) -> ImageId:
    """The number in the name, 2007_000032 as 2007000032, as COCO's conversions of VOC have it; else the name."""
    digits = name.replace("_", "")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 15 else name
