"""Data sets as folders: `images/` and JSON files, whole or one a split; or as Cityscapes, PASCAL VOC and LabelMe lay them out."""

from pathlib import Path
from types import ModuleType

from thingstuff.data import cityscapes, labelme, voc
from thingstuff.data.coco import read_coco
from thingstuff.data.coco_json import Problems
from thingstuff.data.panoptic import PanopticDataset, read_panoptic
from thingstuff.data.panoptic_objects import panoptic_as_objects, things_alone
from thingstuff.data.records import InstanceDataset
from thingstuff.data.whole_files import report_photo
from thingstuff.errors import AnnotationError
from thingstuff.structures.files import kind_unless_file
from thingstuff.structures.images import DEFAULT_MAX_PIXELS

LAYOUTS = (cityscapes, voc)  # of panoptic maps; each has find(folder), splits(root) and read(root, split, max_pixels)


def open_dataset(
    path: str | Path,
    split: str | None = None,
    *,
    image_dir: str | Path | None = None,
    required_images: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    problems: Problems | None = None,
) -> InstanceDataset:
    """Open a data set's objects: a folder with `images/` and `instances.json` (`instances_<split>.json`), or such a file itself.

    Of a folder that has a `panoptic.json` alone, or Cityscapes' or PASCAL VOC's layout, the objects are the things of its
    panoptic maps. These two layouts without a split give all that is annotated. Folders of LabelMe's files open as well.

    Args:
        image_dir: folder of the photos, where the data doesn't lead to them.
        required_images: ask that every photo exists and has the size of its annotations.
        problems: of LabelMe's files, is told what is wrong with some of them, which are left out.

    Raises:
        AnnotationError: no such folder, file or split, with those that there are; or what the reader finds wrong.
    """
    path = Path(path)
    if has_panoptic(path, split) and not has_instances(path, split):
        things = things_alone(panoptic_as_objects(open_panoptic(path, split, image_dir=image_dir, max_pixels=max_pixels)))
        if required_images:
            check_photos(things, max_pixels)
        return things
    if not path.exists():
        raise AnnotationError(f"{path}: does not exist; name a folder with images/ and instances.json, or an annotation file")
    if _is_labelme(path):
        _refuse_image_dir(path, image_dir)
        _refuse_split(path, split, labelme.splits(path))
        return labelme.read(path, split, required_images=required_images, max_pixels=max_pixels, problems=problems)
    if not path.is_dir():
        if split is not None:
            raise AnnotationError(f"{path}: is one file and has no split {split!r}; name its folder, or leave the split out")
        return read_coco(path, image_dir, required_images=required_images, max_pixels=max_pixels)

    file = path / ("instances.json" if split is None else f"instances_{split}.json")
    if not file.is_file():
        raise _without_file(path, file.name, "instances", "put the COCO annotations there")
    if required_images and image_dir is None and not (path / "images").is_dir():
        raise AnnotationError(
            f"{path}: has no folder images/; put the images there, or name their folder to commands that take it "
            "(--images, in training --image-dir)"
        )
    if image_dir is None and (path / "images").is_dir():
        image_dir = path / "images"
    return read_coco(file, image_dir, required_images=required_images, max_pixels=max_pixels)


def open_panoptic(
    path: str | Path,
    split: str | None = None,
    *,
    image_dir: str | Path | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    problems: Problems | None = None,
) -> PanopticDataset:
    """Open a folder with `panoptic.json` (`panoptic_<split>.json` for a split) and its PNGs, or such a file itself.

    The PNGs of a split lie in `panoptic_<split>/`, or in `panoptic/` with those of the other splits. Folders in Cityscapes' or
    PASCAL VOC's layout open as well; without a split they give all that is annotated.

    Args:
        problems: of these two layouts, is told of maps that can't be read, which are left out.

    Raises:
        AnnotationError: no such folder, file or split, with those that there are; or what the reader finds wrong.
    """
    path = Path(path)
    if not path.exists():
        raise AnnotationError(f"{path}: does not exist; name a folder with panoptic.json and panoptic/, or a panoptic file")
    if path.is_dir() and (found := _layout_of(path)):
        layout, root = found
        _refuse_split(path, split, layout.splits(root))
        _refuse_image_dir(path, image_dir)
        return layout.read(root, split, max_pixels, problems)
    if path.is_dir():
        file = path / ("panoptic.json" if split is None else f"panoptic_{split}.json")
        if not file.is_file():
            raise _without_file(path, file.name, "panoptic", "put the COCO panoptic annotations there")
        path = file
    elif split is not None:
        raise AnnotationError(f"{path}: is one file and has no split {split!r}; name its folder, or leave the split out")
    return read_panoptic(path, image_dir=image_dir, max_pixels=max_pixels)


def has_instances(path: Path, split: str | None = None) -> bool:
    """Whether a file of objects is there, or a folder has one for the split; Cityscapes and VOC have maps alone."""
    if not path.is_dir():
        return path.is_file() and not lists_segments(path)
    return not _layout_of(path) and ((path / _file_name("instances", split)).is_file() or _is_labelme(path))


def has_panoptic(path: Path, split: str | None = None) -> bool:
    """Whether panoptic maps are there, for the split where it is given."""
    if not path.is_dir():
        return path.is_file() and lists_segments(path)
    return bool(_layout_of(path)) or (path / _file_name("panoptic", split)).is_file()


def splits_of(path: Path) -> list[str]:
    """The splits of a folder, of objects or of panoptic maps."""
    if not path.is_dir():
        return []
    if found := _layout_of(path):
        layout, root = found
        return layout.splits(root)
    if _is_labelme(path):
        return labelme.splits(path)
    return sorted({split for kind in ("instances", "panoptic") for split in _json_splits(path, kind)})


def lists_segments(path: Path) -> bool:
    """Whether a file is COCO panoptic, by the one word that no other COCO file has."""
    try:
        return kind_unless_file(path) is None and b'"segments_info"' in path.read_bytes()
    except OSError:
        return False  # the reader says what is wrong with it


def check_photos(dataset: InstanceDataset, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """Ask that the photo of every record exists and has its size; headers alone are read.

    Raises:
        AnnotationError: those that don't.
    """
    problems = Problems(dataset.source or Path("the data set"))
    for record in dataset:
        report_photo(record, problems, max_pixels)
    problems.raise_if_any()


def _layout_of(folder: Path) -> tuple[ModuleType, Path] | None:
    """The foreign layout of a folder and its root; a folder with images/ is one of ours."""
    if (folder / "images").is_dir():
        return None
    return next(((layout, root) for layout in LAYOUTS if (root := layout.find(folder))), None)


def _is_labelme(path: Path) -> bool:
    return path.is_dir() and not (path / "images").is_dir() and labelme.find(path) is not None


def _refuse_split(path: Path, split: str | None, there: list[str]) -> None:
    if split is not None and split not in there:
        raise AnnotationError(f"{path}: has no split {split!r}; its splits are {', '.join(there) or 'none'}")


def _refuse_image_dir(path: Path, image_dir: str | Path | None) -> None:
    if image_dir is not None:
        raise AnnotationError(f"{path}: has its photos at places of their own; leave the image folder out")


def _file_name(kind: str, split: str | None) -> str:
    return f"{kind}.json" if split is None else f"{kind}_{split}.json"


def _json_splits(folder: Path, kind: str) -> list[str]:
    return sorted(path.stem.removeprefix(f"{kind}_") for path in folder.glob(f"{kind}_*.json"))


def _without_file(folder: Path, name: str, kind: str, advice: str) -> AnnotationError:
    splits = _json_splits(folder, kind)
    hint = f"its splits are {', '.join(splits)}" if splits else advice
    whole = f"{kind}.json"
    if name != whole and (folder / whole).is_file():
        hint += f", or leave the split out for {whole}"
    return AnnotationError(f"{folder}: has no {name}; {hint}")
