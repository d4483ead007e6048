"""One split of a panoptic data set in the layout that every command reads: panoptic.json, its PNGs, and instances.json."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thingstuff.data.records import InstanceDataset
    from thingstuff.structures.categories import Categories
    from thingstuff.structures.panoptic import PanopticMap


def write_panoptic_split(
    out: Path, split: str | None, images: "Iterator[tuple[int, str, PanopticMap]]", categories: "Categories"
) -> "InstanceDataset":
    """Write maps and what they say of things, one image at a time; the segments come back as objects.

    `out` gets `panoptic_<split>.json`, the folder `panoptic_<split>` of PNGs and `instances_<split>.json`, or the same without
    a split. Photos are the caller's work.

    Args:
        images: image id, the photo's file name, and the map.
    """
    from thingstuff.data.join import coco_content
    from thingstuff.data.panoptic_objects import number_annotations, objects_of, things_alone
    from thingstuff.data.records import InstanceDataset, Record
    from thingstuff.formats.coco import write_json
    from thingstuff.formats.coco_panoptic import write_panoptic

    ending = "" if split is None else f"_{split}"
    records: list[Record] = []
    names: list[str] = []

    def noted() -> "Iterator[tuple[int, str, PanopticMap]]":
        for image_id, name, panoptic in images:
            records.append(Record(image_id, None, panoptic.size, objects_of(panoptic, name)))
            names.append(name)
            yield image_id, name, panoptic

    write_panoptic(out / f"panoptic{ending}.json", noted(), categories)
    written = InstanceDataset(number_annotations(records), categories)
    write_json(out / f"instances{ending}.json", coco_content(things_alone(written), names))
    return written
