"""`PanopticMap`: one segment id for each pixel and what the segments are, as panoptic files and panoptic quality have it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, UInt8, UInt32

from thingstuff.errors import AnnotationError, SizeError
from thingstuff.structures.categories import Categories
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segments

VOID = 0  # the id of pixels that belong to no segment
LARGEST_ID = 256**3 - 1  # that a colour holds, in three bytes
LARGEST = 2**63 - 1  # number that 64 bits hold, and no segment's id
HASHED = 128  # ids up to which each gets a slot of its own, in a table of one to four times their square
FACTORS = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)))  # odd


@dataclass(frozen=True, eq=False)
class PanopticMap:
    """The segments of one image as a map of ids; no segment at all, and a map that is void throughout, are ordinary values.

    The map may lie on a GPU, where panoptic quality is counted. Whether every id of the map is listed, and every listed one
    painted, takes a pass over the pixels and is left to `unlisted` and to those who count anyway.
    """

    ids: Any  # (height, width) integers, a numpy array or a tensor; 0 is void
    segment_ids: np.ndarray  # int64 (segments,), each 1 or more and different from the others
    classes: np.ndarray  # int64 (segments,), index into categories
    crowd: np.ndarray  # bool (segments,): a region of things too many to separate
    categories: Categories
    areas: np.ndarray | None = None  # int64 (segments,), pixels as a file states them, -1 where it states none; None: no file

    def __post_init__(self) -> None:
        if not (hasattr(self.ids, "shape") and len(self.ids.shape) == 2 and _holds_integers(self.ids)):
            shape = getattr(self.ids, "shape", None)
            found = type(self.ids).__name__ if shape is None else f"{self.ids.dtype} {tuple(shape)}"
            raise SizeError(
                f"a panoptic map is a (height, width) array of integers, got {found}; "
                "turn colours into ids first (R + 256 G + 65536 B)"
            )
        self._check_segments()

    def _check_segments(self) -> None:
        count = len(self.segment_ids)
        wanted: list[tuple[str, Any]] = [("segment_ids", np.int64), ("classes", np.int64), ("crowd", np.bool_)]
        for name, wanted_type in wanted + ([("areas", np.int64)] if self.areas is not None else []):
            values = getattr(self, name)
            if values.shape != (count,) or values.dtype != wanted_type:
                raise SizeError(
                    f"{count} segments need {name} of type {np.dtype(wanted_type)} and shape {(count,)}, "
                    f"got {values.dtype} and {values.shape}"
                )
        if count == 0:
            return
        if self.segment_ids.min() < 1:
            raise AnnotationError(f"segment id {self.segment_ids.min()} can't be used: ids count from 1, and 0 is void")
        if self.classes.min() < 0 or self.classes.max() >= len(self.categories):
            raise SizeError(f"classes {self.classes.min()} to {self.classes.max()} do not fit {len(self.categories)} categories")
        if len(set(self.segment_ids.tolist())) < count:
            ids, times = np.unique(self.segment_ids, return_counts=True)
            raise AnnotationError(f"segment id {ids[times > 1][0]} is listed {times.max()} times; list each segment once")

    @staticmethod
    def from_segments(segments: Segments) -> "PanopticMap":
        """Segment k of `segments` gets id k + 1; one that shows no pixel, because others cover it, is left out.

        Where masks overlap the higher score wins, as in `Segments.panoptic_map`.
        """
        ids = segments.panoptic_map()
        shown = np.flatnonzero(np.bincount(ids.ravel(), minlength=len(segments) + 1)[1:])
        return PanopticMap(ids, shown + 1, segments.classes[shown], np.zeros(len(shown), np.bool_), segments.categories)

    def to_segments(self) -> Segments:
        """The segments in their order, with score 1; crowds are like the others, one without a pixel is an empty mask."""
        index = self.numpy().index_map()
        boxes = tight_boxes(index, len(self))
        masks = tuple(
            Mask.from_crop(index[top:bottom, left:right] == segment + 1, (top, left), self.size)
            for segment, (left, top, right, bottom) in enumerate(boxes.tolist())
        )
        return Segments(
            size=self.size,
            categories=self.categories,
            classes=self.classes,
            scores=np.ones(len(self), np.float32),
            boxes=boxes.astype(np.float32),
            rles=masks,
            overlapping=False,
        )

    def __len__(self) -> int:
        return len(self.segment_ids)

    def __repr__(self) -> str:
        return f"PanopticMap({self.size[0]}x{self.size[1]}, {len(self)} segments)"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return int(self.ids.shape[0]), int(self.ids.shape[1])

    def numpy(self) -> "PanopticMap":
        """The same with the map as a numpy array; itself when it is one."""
        if isinstance(self.ids, np.ndarray):
            return self
        ids = self.ids.detach().cpu().numpy()
        return PanopticMap(ids, self.segment_ids, self.classes, self.crowd, self.categories, self.areas)

    def index_map(self) -> Int64[np.ndarray, "height width"]:
        """For each pixel 0 for void, k + 1 for segment k, and the number of segments + 1 for ids that are not listed."""
        return position_of(np.asarray(self.numpy().ids), self.segment_ids)

    def semantic_map(self) -> Int64[np.ndarray, "height width"]:
        """The class of each pixel, -1 for void and for ids that are not listed."""
        return np.array([-1, *self.classes.tolist(), -1], np.int64)[self.index_map()]

    def painted_areas(self) -> Int64[np.ndarray, " segments"]:
        """Pixels of each segment, counted."""
        return np.bincount(self.index_map().ravel(), minlength=len(self) + 2)[1 : len(self) + 1]

    def unlisted(self) -> list[int]:
        """Ids that are in the map and belong to no segment, void aside; sorted."""
        ids = np.asarray(self.numpy().ids)
        return np.unique(ids[self.index_map() > len(self)]).tolist()


class ColouredMap(PanopticMap):
    """A map as a PNG paints it. Its ids are made when first asked for: panoptic quality compares the colours themselves."""

    colours: UInt8[np.ndarray, "height width 3"]  # R + 256 G + 65536 B

    def __new__(cls, *values: Any, **named: Any) -> Any:
        # dataclasses.replace names the ids, and gets an ordinary map of them
        return PanopticMap(*values, **named) if "ids" in named else super().__new__(cls)

    def __init__(
        self,
        colours: UInt8[np.ndarray, "height width 3"],
        segment_ids: np.ndarray,
        classes: np.ndarray,
        crowd: np.ndarray,
        categories: Categories,
        areas: np.ndarray | None = None,
    ):
        assert colours.dtype == np.uint8
        assert colours.shape[2:] == (3,)
        # by the dictionary, as the others are frozen; ids, which theirs are, come later
        vars(self).update(
            colours=colours, segment_ids=segment_ids, classes=classes, crowd=crowd, categories=categories, areas=areas
        )
        self._check_segments()

    @cached_property
    def ids(self) -> UInt32[np.ndarray, "height width"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ids_of_colours(self.colours)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.colours.shape[0], self.colours.shape[1]


def ids_of_colours(colours: UInt8[np.ndarray, "height width channels"]) -> UInt32[np.ndarray, "height width"]:
    """R + 256 G + 65536 B of RGB or RGBA."""
    colours, (height, width, channels) = np.ascontiguousarray(colours), colours.shape
    if channels == 4:
        return colours.view("<u4")[..., 0] & np.uint32(LARGEST_ID)
    # a pixel and the byte behind it, read as one number in one pass; the last pixel has no byte behind it
    ids = np.empty(height * width, "<u4")
    ids[:-1] = np.ndarray(height * width - 1, "<u4", colours.data, strides=(channels,))
    ids[-1:].view(np.uint8)[:channels] = colours[-1, -1]
    ids &= np.uint32(LARGEST_ID)
    return ids.reshape(height, width)


def position_of(ids: Integer[np.ndarray, "*shape"], segment_ids: Int64[np.ndarray, " segments"]) -> Int64[np.ndarray, "*shape"]:
    """For each id 0 for void, k + 1 for `segment_ids[k]`, and the number of segments + 1 for any other."""
    values = ids.astype(np.int64, copy=False)
    other = len(segment_ids) + 1
    listed = np.empty(other, np.int64)
    listed[0], listed[1:] = VOID, segment_ids
    for factor in FACTORS if other <= HASHED else ():
        # a slot for each id, found without a search: the upper bits of id x factor, mod 2^64
        shift = np.uint64(64 - 2 * other.bit_length())
        slots = _slots(listed, factor, shift)
        keys, positions = np.full((2, 1 << 2 * other.bit_length()), other)
        keys[slots] = listed
        if (keys.take(slots) == listed).all():
            positions[slots] = np.arange(other)
            place = _slots(values, factor, shift)
            break
    else:
        keys, positions = np.empty((2, other + 1), np.int64)
        positions[:other] = listed.argsort()
        # the largest number, which no id may be, ends the row, so that every search ends inside
        keys[:other], keys[other], positions[other] = listed.take(positions[:other]), LARGEST, other
        place = keys.searchsorted(values)
    found = positions.take(place)
    if (unlisted := keys.take(place) != values).any():
        found[unlisted] = other
    return found


def _slots(ids: Int64[np.ndarray, "*shape"], factor: np.uint64, shift: np.uint64) -> Int64[np.ndarray, "*shape"]:
    slots = ids.view(np.uint64) * factor
    slots >>= shift
    return slots.view(np.int64)


def _holds_integers(values: Any) -> bool:
    if isinstance(values, np.ndarray):
        return bool(np.issubdtype(values.dtype, np.integer))
    return not (values.is_floating_point() or values.is_complex() or str(values.dtype) == "torch.bool")


def tight_boxes(index: Integer[np.ndarray, "height width"], count: int) -> Int64[np.ndarray, "segments 4"]:
    """Tight x1 y1 x2 y2 of each segment, right and bottom exclusive; zeros for one without a pixel."""
    height, width = index.shape
    boxes = np.array([[width, height, 0, 0]], np.int64).repeat(count + 2, axis=0)
    flat = index.ravel()
    # runs of one segment within a row: far fewer than pixels
    change = np.ones(flat.size, np.bool_)
    change[1:] = flat[1:] != flat[:-1]
    change[:: max(width, 1)] = True
    starts = np.flatnonzero(change)
    ends = np.append(starts[1:], flat.size) - 1
    segment, row = flat[starts], starts // max(width, 1)
    np.minimum.at(boxes[:, 0], segment, starts % max(width, 1))
    np.minimum.at(boxes[:, 1], segment, row)
    np.maximum.at(boxes[:, 2], segment, ends % max(width, 1) + 1)
    np.maximum.at(boxes[:, 3], segment, row + 1)
    boxes[boxes[:, 2] == 0] = 0
    return boxes[1 : count + 1]
