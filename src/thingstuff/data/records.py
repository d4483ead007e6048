"""What every reader of instance annotations gives: images by name and size, and their objects as crop-relative masks.

No pixel is held here: a data set of any size costs what its run-length codes cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from thingstuff.errors import AnnotationError
from thingstuff.structures.categories import Categories
from thingstuff.structures.masks import Mask


@dataclass(frozen=True)
class Object:
    """One annotated object, or a crowd of them, of one image."""

    class_: int  # index into the data set's Categories
    box: tuple[float, float, float, float]  # as annotated, pixels x1 y1 x2 y2; the mask's own box where the file gives none
    mask: Mask  # empty where the annotation covers no pixel
    is_crowd: bool
    area: float  # as annotated, pixels; the mask's own area where the file gives none
    annotation_id: int


@dataclass(frozen=True)
class Record:
    """One image of a data set, with its objects; an image without objects is an ordinary value."""

    image_id: int
    path: Path | None  # None only where images were not asked for
    size: tuple[int, int]  # (height, width) in pixels, EXIF orientation applied
    objects: tuple[Object, ...] = ()
    # what LVIS's files say (Gupta et al., 2019, arXiv:1908.03195, section 2.3): category ids looked for and found absent, and
    # those whose objects are not all annotated; None in other files
    neg_category_ids: tuple[int, ...] | None = None
    not_exhaustive_category_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class InstanceDataset:
    """Images with annotated objects and the categories their classes index."""

    records: tuple[Record, ...]
    categories: Categories
    source: Path | None = None  # the annotation file, named in errors
    # of each class whether few, some or many images of LVIS's training set show it: "r", "c", "f"; None in other files
    frequencies: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def __repr__(self) -> str:
        objects = sum(len(record.objects) for record in self.records)
        return f"InstanceDataset({len(self.records)} images, {objects} objects, {len(self.categories)} categories)"

    @cached_property
    def _by_image_id(self) -> dict[int, Record]:
        return {record.image_id: record for record in self.records}

    def record_of(self, image_id: int) -> Record:
        """The record with the data set's own image id.

        Raises:
            AnnotationError: no image has this id.
        """
        if image_id not in self._by_image_id:
            raise AnnotationError(f"{self.source or 'the data set'}: no image has id {image_id!r}")
        return self._by_image_id[image_id]
