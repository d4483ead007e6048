"""Mistakes of instance segmentation and what each kind costs in AP at IoU 0.5 (after TIDE, Bolya et al., 2020, arXiv:2008.08115).

Segments of an image -> matches as AP has them -> `find_mistakes` -> AP with one kind put right, less AP as it is
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from thingstuff.errors import ConfigError, EvaluationError
from thingstuff.evaluation.matching import RECALLS, THRESHOLDS
from thingstuff.evaluation.mistakes import KINDS, ImageMistakes, Scene, find_mistakes
from thingstuff.evaluation.overlaps import mask_overlaps
from thingstuff.structures.categories import Categories
from thingstuff.structures.segments import Segments

MATCH = float(THRESHOLDS[0])  # IoU of a match: 0.5
_HIT, _IGNORED = -1, -2  # in place of a kind


class InstanceMistakes:
    """Gathers the mistakes of each image, matched as mask AP at IoU 0.5 matches them: greedily, by descending score.

    What a kind costs is how much AP50 would rise if its mistakes alone were put right, as TIDE does it: spurious predictions
    of that kind are taken away; a missed object is found, with the highest score of the predictions that were wrong about it;
    where there is none, it is taken out of the truth. A class whose last object goes that way counts as 1, or as 0 while
    anything spurious is predicted for it. Costs of several kinds do not add up: mistakes hide each other.

    Args:
        max_detections: of each image and class the best-scored count, as in AP.
    """

    def __init__(self, categories: Categories, max_detections: int = 100):
        if max_detections < 1:
            raise ConfigError(f"max_detections must be at least 1, got {max_detections}")
        self.categories = categories
        self.max_detections = max_detections
        self.reset()

    def reset(self) -> None:
        """Forget every image."""
        self._objects = np.zeros(len(self.categories), np.int64)
        self._counts = np.zeros((len(KINDS), 3), np.int64)  # rows, spurious predictions, missed objects
        self._removed = np.zeros((len(KINDS), len(self.categories)), np.int64)  # missed objects that nothing was wrong about
        self._predictions: dict[int, np.ndarray] = {}  # of each image: score class outcome, a kind or hit or ignored
        self._findable: dict[int, np.ndarray] = {}  # of each image: score class kind, of missed objects to be found

    def update(
        self,
        image_id: int,
        prediction: Segments,
        truth: Segments,
        is_crowd: Bool[np.ndarray, " objects"] | None = None,
    ) -> ImageMistakes:
        """Add one image, and give its mistakes. Predictions that match a crowd, and those beyond `max_detections`, have none.

        Raises:
            EvaluationError: sizes or categories differ, or the image was given before.
        """
        if image_id in self._predictions:
            raise EvaluationError(f"image {image_id}: was given twice; give all its segments at once")
        if prediction.size != truth.size:
            raise EvaluationError(
                f"image {image_id}: segments have height and width {prediction.size}, the ground truth says {truth.size}"
            )
        if prediction.categories != self.categories or truth.categories != self.categories:
            raise EvaluationError(
                f"image {image_id}: segments and truth must both have the categories that mistakes are counted for"
            )
        crowd = np.zeros(len(truth), np.bool_) if is_crowd is None else is_crowd
        codes = [mask.to_coco() for mask in prediction.rles]
        ious = mask_overlaps(codes, [mask.to_coco() for mask in truth.rles], crowd)
        found_by, outcome = self._match(prediction, truth, crowd, ious)

        counted, objects = np.flatnonzero(outcome == _HIT), np.flatnonzero(~crowd)
        place = np.full(len(prediction) + 1, -1)  # one more, at -1: objects that nothing matches
        place[counted] = np.arange(len(counted))
        areas, object_areas = (part.areas.astype(np.float64) for part in (prediction[counted], truth[objects]))
        of_pairs, own = ious[np.ix_(counted, objects)], [codes[index] for index in counted.tolist()]
        mistakes = find_mistakes(
            Scene(
                shared=np.rint(of_pairs * (areas[:, None] + object_areas) / (1 + of_pairs)),  # IoU = shared / (sum - shared)
                ious=of_pairs,
                areas=areas,
                object_areas=object_areas,
                classes=prediction.classes[counted],
                object_classes=truth.classes[objects],
                found_by=place[found_by[objects]],
                close=of_pairs >= MATCH,
                # against a crowd, COCO's IoU is the share of the first mask that lies in the second
                nested=mask_overlaps(own, own, np.ones(len(own), np.bool_)),
            )
        )
        mistakes = mistakes.at(counted.tolist(), objects.tolist())
        self._add(image_id, prediction, truth.classes, objects, outcome, mistakes)
        return mistakes

    def merge(self, other: "InstanceMistakes") -> None:
        """Take over what another process gathered on its share of the images.

        Raises:
            EvaluationError: both were given the same image, or count differently.
        """
        if (other.categories, other.max_detections) != (self.categories, self.max_detections):
            raise EvaluationError("mistakes of other categories or another max_detections can't be added up; make both alike")
        if twice := self._predictions.keys() & other._predictions.keys():
            raise EvaluationError(f"image {min(twice)}: was given in two processes; split the images between them")
        self._predictions |= other._predictions
        self._findable |= other._findable
        self._objects, self._counts = self._objects + other._objects, self._counts + other._counts
        self._removed = self._removed + other._removed

    def compute(self) -> dict[str, Any]:
        """`{"metric": "AP50", "value", "truths", "predictions", "matched", "kinds": {kind: numbers}}`; the numbers of a kind are
        "count", "spurious", "missed" and "cost".

        "count" is rows of `ImageMistakes`; "spurious" and "missed" add up to the predictions and objects without a match.
        Costs are fractions from 0 to 1, and they and the value are None where the truth has nothing to find.
        """
        outcomes = self._stacked(self._predictions)[:, 2]
        value = self.fixed(())
        return {
            "metric": "AP50",
            "value": value,
            "truths": int(self._objects.sum()),
            "predictions": int((outcomes != _IGNORED).sum()),
            "matched": int((outcomes == _HIT).sum()),
            "kinds": {
                kind: {
                    **dict(zip(("count", "spurious", "missed"), counts, strict=True)),
                    "cost": None if value is None else (self.fixed((kind,)) or 0.0) - value,
                }
                for kind, counts in zip(KINDS, self._counts.tolist(), strict=True)
            },
        }

    def fixed(self, kinds: Collection[str]) -> float | None:
        """AP50 with the mistakes of these kinds put right; as it is without any; 1 with all of `KINDS`."""
        numbers = [KINDS.index(kind) for kind in kinds]
        predictions, findable = self._stacked(self._predictions), self._stacked(self._findable)
        predictions = predictions[(predictions[:, 2] != _IGNORED) & ~np.isin(predictions[:, 2], numbers)]
        findable = findable[np.isin(findable[:, 2], numbers)]
        findable[:, 2] = _HIT
        rows = np.concatenate((findable, predictions))
        rows = rows[np.argsort(-rows[:, 0], kind="stable")]
        objects = self._objects - self._removed[numbers].sum(axis=0)
        values = [
            _average_precision(rows[rows[:, 1] == class_, 2] == _HIT, int(objects[class_]))
            for class_ in np.flatnonzero(self._objects).tolist()
        ]
        return float(np.mean(values)) if values else None

    def _match(
        self, prediction: Segments, truth: Segments, crowd: Bool[np.ndarray, " objects"], ious: Float64[np.ndarray, "p o"]
    ) -> tuple[Int64[np.ndarray, " objects"], Int64[np.ndarray, " predictions"]]:
        """The prediction that matches each object (-1: none), and whether a prediction counts (_HIT) or not (_IGNORED)."""
        found_by = np.full(len(truth), -1)
        outcome = np.full(len(prediction), _HIT)
        seen = np.zeros(len(self.categories), np.int64)
        for row in np.argsort(-prediction.scores, kind="stable").tolist():
            class_ = prediction.classes[row]
            seen[class_] += 1
            reached = (ious[row] >= MATCH) & (truth.classes == class_)
            free = reached & ~crowd & (found_by < 0)
            if seen[class_] > self.max_detections:
                outcome[row] = _IGNORED
            elif free.any():
                # the later of equals, as pycocotools has it
                found_by[len(truth) - 1 - int(np.where(free, ious[row], -1.0)[::-1].argmax())] = row
            elif (reached & crowd).any():
                outcome[row] = _IGNORED
        return found_by, outcome

    def _add(
        self,
        image_id: int,
        prediction: Segments,
        truth_classes: Int64[np.ndarray, " objects_and_crowds"],
        objects: Int64[np.ndarray, " objects"],
        outcome: Int64[np.ndarray, " predictions"],
        mistakes: ImageMistakes,
    ) -> None:
        outcome = outcome.copy()
        for index, kind in mistakes.spurious.items():
            outcome[index] = KINDS.index(kind)
        self._objects += np.bincount(truth_classes[objects], minlength=len(self.categories))
        self._counts += np.array([list(counts.values()) for counts in mistakes.counts().values()])
        findable = []
        for index, kind in mistakes.missed.items():
            wrong = [row.prediction for row in mistakes.rows if (row.truth, row.kind) == (index, kind)]
            scores = [float(prediction.scores[place]) for place in wrong if place is not None]
            if scores:
                findable.append((max(scores), float(truth_classes[index]), float(KINDS.index(kind))))
            else:
                self._removed[KINDS.index(kind), truth_classes[index]] += 1
        self._predictions[image_id] = np.stack((prediction.scores, prediction.classes, outcome), axis=1).astype(np.float64)
        self._findable[image_id] = np.array(findable, np.float64).reshape(-1, 3)

    def _stacked(self, of_images: dict[int, np.ndarray]) -> Float64[np.ndarray, "rows 3"]:
        """All images by ascending id, as pycocotools takes them."""
        return np.concatenate([np.zeros((0, 3)), *(of_images[image_id] for image_id in sorted(of_images))])


def _average_precision(hits: Bool[np.ndarray, " predictions"], objects: int) -> float:
    """Of one class, predictions by descending score."""
    if objects == 0:
        return 0.0 if len(hits) else 1.0
    found = np.cumsum(hits)
    precision = found / (np.arange(1, len(hits) + 1) + np.spacing(1))
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(found / objects, RECALLS)].mean())
