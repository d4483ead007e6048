"""Pairing detections with objects as pycocotools does, kept so compactly that an average precision can be had again and again.

IoUs of an image and class, detections by descending score -> `match` -> `Matches` of all images -> `precision_and_recall`

Bootstrap intervals need the average precision of thousands of draws of images; from `Matches` each takes milliseconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt16

from thingstuff.errors import EvaluationError

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # IoU of a match; bit 0 stands for 0.50, bit 9 for 0.95
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = ("all", "small", "medium", "large")
AREA_LIMITS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))  # pixels, both ends included
_EVERY_THRESHOLD = (1 << len(THRESHOLDS)) - 1


@dataclass(frozen=True, eq=False)
class Matches:
    """What became of every detection that counts, by class, then descending score, then image, then rank.

    A detection is a true positive at the thresholds where it is matched and not ignored, a false positive at those where it
    is neither. Ignored are matches with a crowd or with an object of another area, and what is unmatched and itself of
    another area. The areas are `AREAS`, or the first alone where it was read from JSON.
    """

    image_ids: tuple[int, ...]  # in ascending order
    truths: Int64[np.ndarray, "areas images classes"]  # objects to find, crowds not counted
    images: Int32[np.ndarray, " detections"]  # index into image_ids
    classes: Int32[np.ndarray, " detections"]
    ranks: Int32[np.ndarray, " detections"]  # place by score among those of its image and class, from 0
    scores: Float64[np.ndarray, " detections"]
    matched: UInt16[np.ndarray, "areas detections"]  # one bit for each IoU threshold
    ignored: UInt16[np.ndarray, "areas detections"]

    @cached_property
    def outcomes(self) -> tuple[Bool[np.ndarray, "thresholds detections"], Bool[np.ndarray, "thresholds detections"]]:
        """True positives and false positives among objects of all areas."""
        return self.outcomes_of(0)

    def outcomes_of(
        self, area: int
    ) -> tuple[Bool[np.ndarray, "thresholds detections"], Bool[np.ndarray, "thresholds detections"]]:
        """True positives and false positives among objects of one of `AREAS`."""
        bits = np.uint16(1) << np.arange(len(THRESHOLDS), dtype=np.uint16)[:, None]
        return ((self.matched[area] & ~self.ignored[area]) & bits) != 0, ((self.matched[area] | self.ignored[area]) & bits) == 0

    @cached_property
    def class_starts(self) -> Int64[np.ndarray, " classes_and_one"]:
        """Where each class begins among the detections, and where the last one ends."""
        return np.searchsorted(self.classes, np.arange(self.truths.shape[2] + 1)).astype(np.int64)

    @cached_property
    def positions(self) -> dict[int, int]:
        """Of each image id, its place in `image_ids`."""
        return {image_id: position for position, image_id in enumerate(self.image_ids)}

    def to_json(self) -> dict[str, Any]:
        """All that average precision over objects of every area needs, as lists: truths are (image, class, objects) triples."""
        images, classes = np.nonzero(self.truths[0])
        return {
            "image_ids": list(self.image_ids),
            "class_count": self.truths.shape[2],
            "truths": np.stack((images, classes, self.truths[0, images, classes]), axis=1).tolist(),
            **{name: getattr(self, name).tolist() for name in ("images", "classes", "ranks", "scores")},
            **{name: getattr(self, name)[0].tolist() for name in ("matched", "ignored")},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Matches":
        """What `to_json` gave.

        Raises:
            EvaluationError: something else was given.
        """
        try:
            image_ids = tuple(content["image_ids"])
            truths = np.zeros((1, len(image_ids), content["class_count"]), np.int64)
            images, classes, counts = np.array(content["truths"], np.int64).reshape(-1, 3).T
            truths[0, images, classes] = counts
            found = cls(
                image_ids,
                truths,
                **{name: np.array(content[name], np.int32) for name in ("images", "classes", "ranks")},
                scores=np.array(content["scores"], np.float64),
                **{name: np.array(content[name], np.uint16)[None] for name in ("matched", "ignored")},
            )
            lengths = {values.shape[-1] for values in (found.classes, found.ranks, found.scores, found.matched, found.ignored)}
            if lengths != {len(found.images)} or (len(found.images) and not 0 <= found.images.max() < len(image_ids)):
                raise ValueError("its lists do not fit each other")
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise EvaluationError(f"the matches of a report can't be read ({error}); write the report again") from error
        return found


class MatchesBuilder:
    """Gathers the matches of one image and class after the other into `Matches`."""

    def __init__(self, image_ids: Sequence[int], classes: int):
        self._positions = {image_id: position for position, image_id in enumerate(sorted(image_ids))}
        self._truths = np.zeros((len(AREAS), len(image_ids), classes), np.int64)
        self._keys: list[np.ndarray] = []  # image class rank, of each detection
        self._scores: list[np.ndarray] = []
        self._bits: list[np.ndarray] = []  # matched and ignored, of each area

    def add(
        self,
        image_id: int,
        class_: int,
        scores: Float64[np.ndarray, " detections"],
        bits: UInt16[np.ndarray, "matched_ignored areas detections"],
        truths: Int64[np.ndarray, " areas"],
    ) -> None:
        """Add the detections of an image and class, by descending score, with what `match` says of them."""
        image = self._positions[image_id]
        self._truths[:, image, class_] = truths
        count = len(scores)
        self._keys.append(np.stack((np.full(count, image), np.full(count, class_), np.arange(count))))
        self._scores.append(scores)
        self._bits.append(bits)

    def matches(self) -> Matches:
        images, classes, ranks = np.concatenate([np.zeros((3, 0), np.int64), *self._keys], axis=1).astype(np.int32)
        scores = np.concatenate([np.zeros(0), *self._scores])
        matched, ignored = np.concatenate([np.zeros((2, len(AREAS), 0), np.uint16), *self._bits], axis=2)
        order = np.lexsort((ranks, images, -scores, classes))
        return Matches(
            tuple(self._positions),
            self._truths,
            images[order],
            classes[order],
            ranks[order],
            scores[order],
            matched[:, order],
            ignored[:, order],
        )


def match(
    ious: Float64[np.ndarray, "detections objects"],
    detection_areas: Float64[np.ndarray, " detections"],
    object_areas: Float64[np.ndarray, " objects"],
    is_crowd: Bool[np.ndarray, " objects"],
    all_annotated: bool = True,
) -> tuple[UInt16[np.ndarray, "matched_ignored areas detections"], Int64[np.ndarray, " areas"]]:
    """Match the detections of one image and class, by descending score, to its objects, for every area and IoU threshold.

    Each takes the free object of highest IoU, the later one where equal; those of the area come before those that are
    ignored (crowds, which any number of detections may match, and objects of another area). Areas are in pixels.

    Args:
        all_annotated: False where the image's annotators stopped before the last object of this class (LVIS): what is
            unmatched then is ignored.

    Returns:
        One bit for each IoU threshold: where a detection is matched, where it is ignored; and the objects to find.
    """
    limits = np.array(AREA_LIMITS)
    low, high = limits[:, :1], limits[:, 1:]
    other_area = (object_areas < low) | (object_areas > high)
    unwanted = other_area | is_crowd  # area object
    bits = np.zeros((2, len(AREAS), len(ious)), np.uint16)
    thresholds = THRESHOLDS.tolist()
    crowds, skipped = is_crowd.tolist(), unwanted.tolist()
    taken = [[bytearray(ious.shape[1]) for _ in thresholds] for _ in AREAS]
    above = ious >= thresholds[0]
    for detection in np.flatnonzero(above.any(axis=1)).tolist():
        near = np.flatnonzero(above[detection])
        candidates = sorted(zip(ious[detection, near].tolist(), near.tolist(), strict=True), reverse=True)
        for area, skip in enumerate(skipped):
            # a stable sort: wanted objects first, each kind from the best IoU down
            ranked = sorted(candidates, key=lambda candidate, skip=skip: skip[candidate[1]])
            matched = ignored = 0
            for bit, threshold in enumerate(thresholds):
                free = taken[area][bit]
                for iou, index in ranked:
                    if iou >= threshold and (not free[index] or crowds[index]):
                        free[index] = 1
                        matched |= 1 << bit
                        ignored |= skip[index] << bit
                        break
            bits[0, area, detection], bits[1, area, detection] = matched, ignored
    outside = (detection_areas < low) | (detection_areas > high)  # area detection
    if not all_annotated:
        outside[:] = True
    bits[1] |= np.where(outside, ~bits[0] & np.uint16(_EVERY_THRESHOLD), np.uint16(0))
    return bits, (~unwanted).sum(axis=1)


def precision_and_recall(
    matches: Matches, area: int = 0, limit: int | None = None, weights: Float64[np.ndarray, " images"] | None = None
) -> tuple[Float64[np.ndarray, "thresholds recalls classes"], Float64[np.ndarray, "thresholds classes"]]:
    """Highest precision at each of `RECALLS` or beyond it, and the recall reached; -1 for a class without any object.

    Args:
        limit: detections of an image and class that count; all where None.
        weights: how often each image counts; once where None.
    """
    objects = (matches.truths[area].sum(axis=0) if weights is None else weights @ matches.truths[area]).astype(np.float64)
    starts, ends = matches.class_starts[:-1], matches.class_starts[1:]
    counted = None if weights is None else weights[matches.images]
    if limit is not None:
        counted = (matches.ranks < limit) * (1.0 if counted is None else counted)
    # running counts over all classes, to be reckoned from where each begins; whole numbers, so that nothing is rounded
    hits, misses = (_running(outcome, counted) for outcome in (matches.outcomes if area == 0 else matches.outcomes_of(area)))
    hits_before, misses_before = hits[:, starts], misses[:, starts]  # threshold class
    stated = objects > 0
    found = hits[:, ends] - hits_before
    recall = np.where(stated, found / np.where(stated, objects, 1), -1.0)

    thresholds, classes, count = len(THRESHOLDS), len(objects), hits.shape[1] - 1
    of_detection = matches.classes
    positives = hits[:, 1:] - hits_before[:, of_detection]
    negatives = misses[:, 1:] - misses_before[:, of_detection]
    precisions = np.zeros(thresholds * count + 1)  # one more, for ranges that end with the last detection
    np.divide(positives, negatives + positives + np.spacing(1), out=precisions[:-1].reshape(thresholds, count))

    # of each threshold, class and recall: the detection that reaches it, and the best precision from there to that of the next
    needed = _least_count(objects)  # class recall
    reached = np.stack([np.searchsorted(hits[t, 1:], hits_before[t, :, None] + needed) for t in range(thresholds)])
    edges = np.concatenate((reached, np.broadcast_to(ends[:, None], (thresholds, classes, 1))), axis=2)
    edges = edges.clip(starts[:, None], ends[:, None])
    in_reach = edges[..., :-1] < ends[:, None]
    edges += count * np.arange(thresholds)[:, None, None]
    best = (
        np.maximum.reduceat(precisions, edges.ravel()).reshape(edges.shape)[..., :-1] if edges.size else np.zeros(in_reach.shape)
    )
    best = np.maximum.accumulate(np.where(in_reach, best, 0.0)[..., ::-1], axis=2)[..., ::-1]
    return np.where(stated[:, None], best, -1.0).transpose(0, 2, 1), recall


def _running(outcome: Bool[np.ndarray, "thresholds detections"], counted: np.ndarray | None) -> np.ndarray:
    """Sums of all detections before each one, and of all of them: one column more."""
    sums = np.zeros((outcome.shape[0], outcome.shape[1] + 1))
    np.cumsum(outcome if counted is None else outcome * counted, axis=1, out=sums[:, 1:])
    return sums


def _least_count(objects: Float64[np.ndarray, " classes"]) -> Float64[np.ndarray, "classes recalls"]:
    """True positives needed for each of `RECALLS`, compared as pycocotools does: the least count / objects >= recall."""
    total = np.maximum(objects, 1)[:, None]
    count = np.ceil(RECALLS * total)
    count -= (count - 1) / total >= RECALLS
    return count + (count / total < RECALLS)


def average_precision_of(matches: Matches, image_ids: Sequence[int] | np.ndarray | None = None) -> dict[str, float | None]:
    """AP, AP50 and AP75 over objects of every area, of these images: an image named twice counts twice, as in a bootstrap draw.

    None stands where these images have nothing to find.

    Raises:
        EvaluationError: an image id is not among those of the matches.
    """
    weights = None
    if image_ids is not None:
        try:
            drawn = [matches.positions[image_id] for image_id in np.asarray(image_ids).tolist()]
        except KeyError as error:
            raise EvaluationError(f"image {error}: is not among the {len(matches.image_ids)} images of these matches") from None
        weights = np.bincount(np.array(drawn, np.int64), minlength=len(matches.image_ids)).astype(np.float64)
    precision, _ = precision_and_recall(matches, weights=weights)
    return {"AP": stated_mean(precision), "AP50": stated_mean(precision[0]), "AP75": stated_mean(precision[5])}


def stated_mean(values: np.ndarray) -> float | None:
    """The mean of what is not -1; None where nothing is left."""
    stated = values[values > -1]
    return float(stated.mean()) if stated.size else None
