"""The strict validator of panoptic files: every inconsistency between the JSON file and its PNGs, with image and segment."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from tqdm import tqdm

from thingstuff.data.coco_json import Problems, read_json, report_shared_names
from thingstuff.data.panoptic import PanopticRecord, read_content
from thingstuff.data.whole_files import report_broken, report_photo
from thingstuff.errors import AnnotationError
from thingstuff.structures.images import DEFAULT_MAX_PIXELS
from thingstuff.structures.panoptic import tight_boxes


def check_panoptic(
    path: str | Path,
    png_dir: str | Path | None = None,
    image_dir: str | Path | None = None,
    *,
    required_images: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> list[str]:
    """Everything that is wrong with a COCO panoptic file, a line each; nothing is wrong where the list is empty.

    Besides what `read_panoptic` refuses: ids painted but not listed, listed but not painted, areas and boxes that differ from
    what is painted (a box, x y width height, is tight), images without an annotation, PNGs that no annotation names.

    Args:
        required_images: ask of the photos what training does: that they exist, have their size and are whole.

    Raises:
        AnnotationError: the file can't be read at all, or isn't JSON.
    """
    path = Path(path)
    content = read_json(path)
    problems = Problems(path, limit=None)
    dataset = read_content(content, path, png_dir, image_dir, max_pixels, problems)
    found = problems.kept
    if dataset is not None:
        report_shared_names(dataset.categories, problems)
    for record in tqdm(dataset or (), desc="check maps", unit="image", disable=None):
        found += check_record(record)
    listed, annotated = content.get("images"), content.get("annotations")
    if isinstance(listed, list) and isinstance(annotated, list):
        with_annotation = {str(entry.get("image_id")) for entry in annotated if isinstance(entry, dict)}
        for entry in listed:
            if isinstance(entry, dict) and "id" in entry and str(entry["id"]) not in with_annotation:
                found.append(f"image {entry['id']}: has no annotation; add one, with no segments if nothing is there")
    if dataset is not None and not len(dataset) and not found:
        found.append("has no annotation of any image, so there is nothing to learn from or to compare with; add some")
    if dataset is not None and len(dataset):
        named = {record.png for record in dataset}
        for folder in {record.png.parent for record in dataset}:
            if folder.name == path.stem:  # a folder of its own, not shared with other splits
                found += [f"{png}: no annotation names it" for png in sorted(folder.glob("*.png")) if png not in named]
    if required_images:
        report_photos(dataset or (), problems, max_pixels)
    return found


def report_photos(records: Iterable[PanopticRecord], problems: Problems, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """Tell of photos that don't exist, have another size than their maps, or aren't whole."""
    there = [record for record in records if report_photo(record, problems, max_pixels)]
    report_broken(there, problems, max_pixels=max_pixels)


def check_record(record: PanopticRecord) -> Iterator[str]:
    """What is wrong between the segments that a record lists and those that its PNG paints."""
    where = f"image {record.image_id}"
    try:
        painted = record.panoptic_map()
    except AnnotationError as error:
        yield str(error) if str(error).startswith(where) else f"{where}: {error}"
        return
    for unlisted in painted.unlisted():
        yield f"{where}: segment {unlisted} is painted in {record.png.name} but not in segments_info; add it or paint it void"
    areas = painted.painted_areas()
    boxes = _tight_boxes(painted.index_map(), len(painted))
    for place, segment_id in enumerate(record.segment_ids.tolist()):
        if areas[place] == 0:
            yield f"{where}: segment {segment_id} is in segments_info but not painted in {record.png.name}; paint or remove it"
            continue
        if record.areas[place] not in (-1, areas[place]):
            yield f"{where}: segment {segment_id} states an area of {record.areas[place]} pixels, {areas[place]} are painted"
        if not np.isnan(record.boxes[place]).any() and (record.boxes[place] != boxes[place]).any():
            stated = [int(side) if side == int(side) else side for side in record.boxes[place].tolist()]
            yield f"{where}: segment {segment_id} states the bbox {stated}, what is painted has {boxes[place].tolist()}"


def _tight_boxes(index: Int64[np.ndarray, "height width"], count: int) -> Int64[np.ndarray, "segments 4"]:
    """x y width height of each segment."""
    boxes = tight_boxes(index, count)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
