"""Data sets as folders: `images/` and `instances.json`, or one annotation file for each split."""

from pathlib import Path

from thingstuff.data.coco import read_coco
from thingstuff.data.records import InstanceDataset
from thingstuff.errors import AnnotationError
from thingstuff.structures.images import DEFAULT_MAX_PIXELS


def open_dataset(
    path: str | Path, split: str | None = None, *, required_images: bool = True, max_pixels: int = DEFAULT_MAX_PIXELS
) -> InstanceDataset:
    """Open a folder with `images/` and `instances.json` (`instances_<split>.json` for a split), or such a file itself.

    Raises:
        AnnotationError: no such folder, file or split, with those that there are; or what `read_coco` finds wrong.
    """
    path = Path(path)
    if not path.exists():
        raise AnnotationError(f"{path}: does not exist; name a folder with images/ and instances.json, or an annotation file")
    if not path.is_dir():
        if split is not None:
            raise AnnotationError(f"{path}: is one file and has no split {split!r}; name its folder, or leave the split out")
        return read_coco(path, required_images=required_images, max_pixels=max_pixels)

    file = path / ("instances.json" if split is None else f"instances_{split}.json")
    if not file.is_file():
        there = sorted(found.name for found in path.glob("instances*.json"))
        splits = [name.removeprefix("instances_").removesuffix(".json") for name in there if name != "instances.json"]
        hint = f"its splits are {', '.join(splits)}" if splits else "put the COCO annotations there"
        if split is not None and "instances.json" in there:
            hint += ", or leave the split out for instances.json"
        raise AnnotationError(f"{path}: has no {file.name}; {hint}")
    if required_images and not (path / "images").is_dir():
        raise AnnotationError(f"{path}: has no folder images/; put the images there")
    image_dir = path / "images" if (path / "images").is_dir() else None
    return read_coco(file, image_dir, required_images=required_images, max_pixels=max_pixels)
