"""The Cityscapes layout (Cordts et al., 2016, arXiv:1604.01685; ids: cityscapesScripts, helpers/labels.py).

leftImg8bit/<split>/<city>/<name>_leftImg8bit.png              photos
gtFine/<split>/<city>/<name>_gtFine_instanceIds.png            16 bits: label x 1000 + k for the k-th thing, else the label

Of a thing class, what carries its label alone is a group too close to separate: a crowd. Labels that the benchmark does not
evaluate are void.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from thingstuff.data.coco_json import Problems
from thingstuff.data.id_png import read_number_png
from thingstuff.data.layouts import read_records, segment_lists
from thingstuff.data.panoptic import PanopticDataset, PanopticRecord
from thingstuff.errors import AnnotationError
from thingstuff.structures.categories import CITYSCAPES
from thingstuff.structures.images import DEFAULT_MAX_PIXELS

LABELS = 34  # 0 "unlabeled" to 33; those that CITYSCAPES lacks are void
PHOTO, TRUTH = "_leftImg8bit.png", "_gtFine_instanceIds.png"


@dataclass(frozen=True, eq=False)
class CityscapesRecord(PanopticRecord):
    """One image; its segments keep the numbers of the PNG as ids."""

    def painted(self) -> Int32[np.ndarray, "height width"]:
        numbers = _read_numbers(self.png, self.max_pixels)
        return np.where(np.isin(numbers, self.segment_ids), numbers, 0).astype(np.int32)


def find(folder: Path) -> Path | None:
    """The folder itself, where it has this layout."""
    return folder if (folder / "gtFine").is_dir() else None


def splits(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "gtFine").iterdir() if path.is_dir())


def read(
    root: Path, split: str | None, max_pixels: int = DEFAULT_MAX_PIXELS, problems: Problems | None = None
) -> PanopticDataset:
    """The annotated images of a split, or of all of them; every PNG is decoded once, to list its segments.

    Args:
        problems: is told of those that can't be read, which are left out.

    Raises:
        AnnotationError: there is no annotation, or, where no `problems` are given, some can't be read, each named.
    """
    truths = sorted((root / "gtFine").glob(f"{split or '*'}/*/*{TRUTH}"))

    def record_of(truth: Path) -> Callable[[], PanopticRecord]:
        return lambda: _record(root, truth, max_pixels)

    if not truths:
        raise AnnotationError(f"{root}: has no gtFine/{split or '<split>'}/<city>/*{TRUTH}; put the annotations there")
    return PanopticDataset(read_records(root, [record_of(truth) for truth in truths], problems), CITYSCAPES, root)


def _record(root: Path, truth: Path, max_pixels: int) -> CityscapesRecord:
    name = truth.name.removesuffix(TRUTH)
    numbers = _read_numbers(truth, max_pixels)
    labels = dict(zip(CITYSCAPES.ids, range(len(CITYSCAPES)), strict=True))
    label_of = {number: number // 1000 if number >= 1000 else number for number in np.unique(numbers).tolist()}
    kept = [number for number, label in label_of.items() if label in labels]
    classes = [labels[label_of[number]] for number in kept]
    crowd = [number < 1000 and CITYSCAPES[class_].is_thing for number, class_ in zip(kept, classes, strict=True)]
    photo = root / "leftImg8bit" / truth.parent.parent.name / truth.parent.name / f"{name}{PHOTO}"
    return CityscapesRecord(
        name,
        truth,
        CITYSCAPES,
        *segment_lists(kept, classes, crowd),
        size=(int(numbers.shape[0]), int(numbers.shape[1])),
        path=photo if photo.is_file() else None,
        max_pixels=max_pixels,
    )


def _read_numbers(truth: Path, max_pixels: int) -> Int32[np.ndarray, "height width"]:
    numbers = read_number_png(truth, max_pixels)
    unknown = (numbers >= 1000 * LABELS) | ((numbers < 1000) & (numbers >= LABELS))
    if unknown.any():
        raise AnnotationError(
            f"{truth}: paints {numbers[unknown][0]}, which is no number of Cityscapes: a label from 0 to {LABELS - 1}, or a "
            "label x 1000 + the thing's number"
        )
    return numbers
