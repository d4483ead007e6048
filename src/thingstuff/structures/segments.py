"""`Segments`: the one result of every model and the one input of every metric, picture and format."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Int32, Int64

from thingstuff.errors import AnnotationError, ImageError, MaskError, SizeError
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.masks import Mask


@dataclass(frozen=True)
class Segment:
    """One segment of an image."""

    category: Category
    score: float  # 0..1
    box: tuple[float, float, float, float]  # x1 y1 x2 y2 in pixels, right and bottom exclusive
    mask: Mask

    @property
    def area(self) -> int:
        """Number of pixels of the mask."""
        return self.mask.area

    @property
    def is_thing(self) -> bool:
        return self.category.is_thing


@dataclass(frozen=True, eq=False)
class Segments:
    """What was found in one image, or annotated in it. No segments at all is an ordinary value."""

    size: tuple[int, int]  # (height, width) of the image
    categories: Categories
    classes: np.ndarray  # int64 (segments,), index into categories
    scores: np.ndarray  # float32 (segments,)
    boxes: np.ndarray  # float32 (segments, 4), x1 y1 x2 y2 in pixels, right and bottom exclusive
    rles: tuple[Mask, ...]  # the masks, as run lengths of their crops
    overlapping: bool = True  # False: the masks tile the image and share no pixel (panoptic)
    image: np.ndarray | None = None  # uint8 (height, width, 3) RGB, the picture itself, for show and save

    def __post_init__(self) -> None:
        count = len(self.rles)
        for name, wanted_type, wanted_shape in (
            ("classes", np.int64, (count,)),
            ("scores", np.float32, (count,)),
            ("boxes", np.float32, (count, 4)),
        ):
            values = getattr(self, name)
            if values.shape != wanted_shape or values.dtype != wanted_type:
                raise SizeError(
                    f"{count} masks need {name} of type {np.dtype(wanted_type)} and shape {wanted_shape}, "
                    f"got {values.dtype} and {values.shape}"
                )
        if count and (self.classes.min() < 0 or self.classes.max() >= len(self.categories)):
            raise SizeError(f"classes {self.classes.min()} to {self.classes.max()} do not fit {len(self.categories)} categories")
        for position, mask in enumerate(self.rles):
            if mask.size != self.size:
                raise SizeError(f"mask {position} belongs to an image of size {mask.size}, these segments to one of {self.size}")
        if self.image is not None and self.image.shape != (*self.size, 3):
            raise SizeError(f"the picture has shape {self.image.shape}, these segments belong to an image of size {self.size}")

    @classmethod
    def empty(cls, size: tuple[int, int], categories: Categories, overlapping: bool = True) -> "Segments":
        """Nothing found."""
        return cls(
            size=size,
            categories=categories,
            classes=np.zeros(0, np.int64),
            scores=np.zeros(0, np.float32),
            boxes=np.zeros((0, 4), np.float32),
            rles=(),
            overlapping=overlapping,
        )

    @classmethod
    def from_coco(cls, results: Sequence[Mapping[str, Any]], size: tuple[int, int], categories: Categories) -> "Segments":
        """The COCO results or annotations of one image: RLE or polygons, score 1 and the mask's own box where none is given.

        Raises:
            AnnotationError: an entry lacks its category or its mask, or names a category id that does not exist.
            SizeError: a mask belongs to an image of another size.
        """
        masks, classes, boxes, scores = [], [], [], []
        for position, result in enumerate(results):
            mask = _mask_from_coco(result, size, position)
            masks.append(mask)
            classes.append(categories.class_of(_field(result, "category_id", position)))
            scores.append(_number(result.get("score", 1.0), "score", position))
            boxes.append(_box_from_coco(result["bbox"], position) if result.get("bbox") is not None else mask.box)
        return cls(
            size=size,
            categories=categories,
            classes=np.array(classes, np.int64),
            scores=np.array(scores, np.float32),
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            rles=tuple(masks),
        )

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results, ready for JSON: image_id, category_id, score, bbox (x y width height) and segmentation (RLE)."""
        ids = self.categories.ids
        return [
            {
                "image_id": image_id,
                "category_id": ids[class_],
                "score": score,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": mask.to_coco(),
            }
            for class_, score, (x1, y1, x2, y2), mask in zip(
                self.classes.tolist(), self.scores.tolist(), self.boxes.tolist(), self.rles, strict=True
            )
        ]

    def __len__(self) -> int:
        return len(self.rles)

    def __iter__(self) -> Iterator[Segment]:
        return (self[position] for position in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Segment: ...

    @overload
    def __getitem__(self, index: "slice | Sequence[int] | np.ndarray") -> "Segments": ...

    def __getitem__(self, index: Any) -> "Segment | Segments":
        """A position gives a `Segment`; a slice, positions or one boolean for each segment give `Segments`."""
        if isinstance(index, (int, np.integer)):
            x1, y1, x2, y2 = self.boxes[index].tolist()
            return Segment(
                self.categories[int(self.classes[index])], float(self.scores[index]), (x1, y1, x2, y2), self.rles[index]
            )
        chosen = np.arange(len(self))[index if isinstance(index, slice) else _index_array(index, len(self))]
        return Segments(
            size=self.size,
            categories=self.categories,
            classes=self.classes[chosen],
            scores=self.scores[chosen],
            boxes=self.boxes[chosen],
            rles=tuple(self.rles[position] for position in chosen),
            overlapping=self.overlapping,
            image=self.image,
        )

    def above(self, score: float) -> "Segments":
        """The segments whose score is greater than this."""
        return self[self.scores > score]

    @property
    def is_thing(self) -> Bool[np.ndarray, " segments"]:
        return np.array([category.is_thing for category in self.categories], np.bool_)[self.classes]

    @property
    def areas(self) -> Int64[np.ndarray, " segments"]:
        """Pixels of each mask."""
        return np.array([mask.area for mask in self.rles], np.int64)

    def panoptic_map(self) -> Int32[np.ndarray, "height width"]:
        """Segment ids, 1 for the first, 0 for void. Where masks overlap the higher score wins, the earlier segment if equal."""
        return self._paint(np.arange(1, len(self) + 1, dtype=np.int32), background=0)

    def semantic_map(self) -> Int64[np.ndarray, "height width"]:
        """The class of each pixel, -1 for void. Where masks overlap the higher score wins, the earlier segment if equal."""
        return self._paint(self.classes, background=-1)

    def masks(self) -> Bool[np.ndarray, "segments height width"]:
        """All masks as booleans: one byte for each pixel of the image and segment."""
        return np.stack([mask.dense() for mask in self.rles]) if self.rles else np.zeros((0, *self.size), np.bool_)

    def show(self) -> None:
        """Open the picture with the segments drawn on it in the system's viewer."""
        self._drawn().show()

    def save(self, path: "str | Path") -> None:
        """Write the picture with the segments drawn on it; the suffix of `path` says the format."""
        drawn = self._drawn()
        try:
            drawn.save(path)
        except (OSError, ValueError) as error:
            raise ImageError(f"{path}: can't be written ({error})") from error

    def __repr__(self) -> str:
        names = Counter(self.categories.names[class_] for class_ in self.classes.tolist())
        found = ", ".join(f"{count} {name}" for name, count in names.most_common()) or "none"
        return f"Segments({self.size[0]}x{self.size[1]}: {found})"

    def _paint(self, values: np.ndarray, background: int) -> np.ndarray:
        painted = np.full(self.size, background, values.dtype)
        # painted from the lowest score up, so that the highest stays on top
        for position in np.argsort(-self.scores, kind="stable")[::-1]:
            mask = self.rles[position]
            (top, left), (height, width) = mask.corner, mask.crop_size
            painted[top : top + height, left : left + width][mask.crop()] = values[position]
        return painted

    def _drawn(self) -> Any:
        from PIL import Image

        from thingstuff import visuals  # drawing needs more than a value should; it is loaded when asked for

        if self.image is None:
            raise ImageError("these segments carry no picture to draw on; set one with dataclasses.replace(segments, image=...)")
        return Image.fromarray(visuals.overlay(self.image, self, legend=not self.overlapping))


def _index_array(index: Any, count: int) -> np.ndarray:
    array = np.asarray(index)
    if array.size == 0 and array.dtype != np.bool_:
        array = array.astype(np.int64)  # an empty list has no type of its own
    if array.ndim != 1 or not (array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer)):
        raise SizeError(f"segments are chosen by positions or by booleans in one dimension, got {array.dtype} {array.shape}")
    if array.dtype == np.bool_ and len(array) != count:
        raise SizeError(f"{count} segments need as many booleans to choose among them, got {len(array)}")
    return array


def _field(result: Mapping[str, Any], key: str, position: int) -> Any:
    if key not in result:
        raise AnnotationError(f'results[{position}] has no "{key}"')
    return result[key]


def _number(value: Any, key: str, position: int) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise AnnotationError(f'results[{position}]: "{key}" must be a finite number, got {value!r}')
    return float(value)


def _box_from_coco(box: Any, position: int) -> tuple[float, float, float, float]:
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        raise AnnotationError(f'results[{position}]: "bbox" must be [x, y, width, height], got {box!r:.80}')
    x, y, width, height = (_number(value, "bbox", position) for value in box)
    return x, y, x + width, y + height


def _mask_from_coco(result: Mapping[str, Any], size: tuple[int, int], position: int) -> Mask:
    segmentation = _field(result, "segmentation", position)
    try:
        mask = Mask.from_polygons(segmentation, size) if isinstance(segmentation, list) else Mask.from_coco(segmentation)
    except MaskError as error:
        raise MaskError(f"results[{position}]: {error}") from error
    if mask.size != size:
        raise SizeError(f"results[{position}]: the mask belongs to an image of size {mask.size}, the image has {size}")
    return mask
