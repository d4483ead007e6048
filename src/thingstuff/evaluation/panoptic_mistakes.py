"""Mistakes of panoptic segmentation and what each kind costs in PQ (Kirillov et al., 2019, arXiv:1801.00868, section 4).

Prediction and truth of an image -> matches as PQ has them -> `find_mistakes` -> PQ with one kind put right, less PQ as it is
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Int64

from thingstuff.errors import EvaluationError
from thingstuff.evaluation.mistakes import KINDS, ImageMistakes, Scene, find_mistakes
from thingstuff.evaluation.panoptic_matching import ImageQuality, shared_pixels
from thingstuff.evaluation.panoptic_quality import PanopticQuality
from thingstuff.structures.panoptic import PanopticMap
from thingstuff.structures.segments import Segments

_TP, _FP, _FN, _IOU = range(4)  # columns of what is added up of each class


class PanopticMistakes:
    """Gathers the mistakes of each image, matched as the given metric matches them; plain PQ, not boundary PQ.

    What a kind costs is how much PQ would rise if its mistakes alone were put right: spurious predictions of that kind are
    taken away, and each missed segment is found by an exact mask (of a wrong class: by the mask that it had). With all kinds
    put right RQ is 1; what PQ then lacks is that matched masks are inexact, whose cost is stated beside the kinds. Costs of
    several kinds do not add up.
    """

    def __init__(self, metric: PanopticQuality):
        if metric.rules.boundary is not None:
            raise EvaluationError("mistakes are told by whole masks; give a PanopticQuality without boundary")
        self.metric = metric
        self.reset()

    def reset(self) -> None:
        """Forget every image."""
        classes = len(self.metric.categories)
        self._sums = np.zeros((classes, 4))
        self._inexact = 0
        self._counts = np.zeros((len(KINDS), 3), np.int64)  # rows, spurious predictions, missed segments
        self._changes = np.zeros((len(KINDS), classes, 4))  # of the sums, with a kind put right

    def update(
        self,
        prediction: PanopticMap | Segments,
        truth: PanopticMap | Segments,
        image_id: int | str | None = None,
        quality: ImageQuality | None = None,
    ) -> ImageMistakes:
        """Add one image, and give its mistakes. Predictions mostly on void or on a crowd of their class have none.

        Args:
            quality: what `metric.update` or `metric.compare` said of the same two, where that is known already.
        """
        if quality is None:
            quality = self.metric.compare(prediction, truth, image_id)
        predicted, annotated = _as_map(prediction), _as_map(truth)
        classes, object_classes = self._classes_of(predicted), self._classes_of(annotated)
        # the places of `quality` are those of what was given: Segments may hold some that show no pixel
        places, object_places = _places(prediction, predicted), _places(truth, annotated)
        counted = [places[match.prediction] for match in quality.matches] + [places[place] for place in quality.false_positives]
        objects = [object_places[match.truth] for match in quality.matches]
        objects += [object_places[place] for place in quality.false_negatives]
        matched = len(quality.matches)

        shared = shared_pixels(annotated, predicted)
        pixels = np.zeros((len(predicted) + 2, len(annotated) + 2))  # first void, last what isn't listed
        pixels[shared.prediction, shared.truth] = shared.pixels
        areas, object_areas = pixels.sum(axis=1) - pixels[:, 0], pixels.sum(axis=0)
        rows, columns = np.array(counted, np.int64) + 1, np.array(objects, np.int64) + 1
        pixels, areas, object_areas = pixels[np.ix_(rows, columns)], areas[rows], object_areas[columns]
        ious = pixels / np.maximum(areas[:, None] + object_areas - pixels, 1)
        mistakes = find_mistakes(
            Scene(
                shared=pixels,
                ious=ious,
                areas=areas,
                object_areas=object_areas,
                classes=classes[rows - 1],
                object_classes=object_classes[columns - 1],
                found_by=np.where(np.arange(len(columns)) < matched, np.arange(len(columns)), -1),
                close=ious > 0.5,
                nested=np.zeros((len(rows), len(rows))),  # segments share no pixel
            )
        )
        self._add(quality, mistakes, classes[rows - 1], object_classes[columns - 1])
        shown, shown_objects = {own: given for given, own in places.items()}, {own: given for given, own in object_places.items()}
        return mistakes.at([shown[place] for place in counted], [shown_objects[place] for place in objects])

    def merge(self, other: "PanopticMistakes") -> None:
        """Add what another one gathered, of other images.

        Raises:
            EvaluationError: it counts other categories, or by other rules.
        """
        if (other.metric.categories, other.metric.rules) != (self.metric.categories, self.metric.rules):
            raise EvaluationError("mistakes of other categories or other rules can't be added up; make them alike")
        self._sums, self._changes = self._sums + other._sums, self._changes + other._changes
        self._counts, self._inexact = self._counts + other._counts, self._inexact + other._inexact

    def compute(self) -> dict[str, Any]:
        """`{"metric": "PQ", "value", "truths", "predictions", "matched", "kinds": {kind: its numbers}, "inexact masks": {"count",
        "cost"}}`, numbers "count", "spurious", "missed" and "cost".

        "count" is rows of `ImageMistakes`; "spurious" and "missed" add up to PQ's FP and FN. Costs are fractions from 0 to 1,
        and they and the value are None where there is no segment at all.
        """
        value = self.fixed(())
        tp, fp, fn, _ = self._sums.sum(axis=0).tolist()

        def cost(kinds: Collection[str], exact: bool = False) -> float | None:
            return None if value is None else (self.fixed(kinds, exact) or 0.0) - value

        return {
            "metric": "PQ",
            "value": value,
            "truths": round(tp + fn),
            "predictions": round(tp + fp),
            "matched": round(tp),
            "kinds": {
                kind: {**dict(zip(("count", "spurious", "missed"), counts, strict=True)), "cost": cost((kind,))}
                for kind, counts in zip(KINDS, self._counts.tolist(), strict=True)
            },
            "inexact masks": {"count": self._inexact, "cost": cost((), exact=True)},
        }

    def fixed(self, kinds: Collection[str], exact_masks: bool = False) -> float | None:
        """PQ over all classes with the mistakes of these kinds put right; as it is without any.

        A class of which nothing remains leaves the mean, as one without examples does; 1 where no class remains.
        """
        sums = self._sums + self._changes[[KINDS.index(kind) for kind in kinds]].sum(axis=0)
        if exact_masks:
            sums[:, _IOU] = sums[:, _TP]
        examples = sums[:, _TP] + 0.5 * sums[:, _FP] + 0.5 * sums[:, _FN]
        stated = examples > 0
        if not stated.any():
            return 1.0 if self._sums.any() else None
        return float((sums[stated, _IOU] / examples[stated]).mean())

    def _add(
        self,
        quality: ImageQuality,
        mistakes: ImageMistakes,
        classes: Int64[np.ndarray, " predictions"],
        object_classes: Int64[np.ndarray, " objects"],
    ) -> None:
        for class_, counts in quality.per_class.items():
            self._sums[class_] += counts
        self._inexact += sum(match.iou < 1 for match in quality.matches)
        self._counts += np.array([list(counts.values()) for counts in mistakes.counts().values()])
        for index, kind in mistakes.spurious.items():
            self._changes[KINDS.index(kind), classes[index], _FP] -= 1
        for index, kind in mistakes.missed.items():
            ious = [row.iou for row in mistakes.rows if (row.truth, row.kind) == (index, kind)]
            change = self._changes[KINDS.index(kind), object_classes[index]]
            change[_FN] -= 1
            change[_TP] += 1
            change[_IOU] += max(ious) if kind == "wrong class" else 1.0

    def _classes_of(self, segments: PanopticMap) -> Int64[np.ndarray, " segments"]:
        """As the metric numbers them; what it can't place, it has refused."""
        own = {id_: class_ for class_, id_ in enumerate(self.metric.categories.ids)}
        return np.array([own.get(id_, -1) for id_ in segments.categories.ids], np.int64)[segments.classes]


def _as_map(segments: PanopticMap | Segments) -> PanopticMap:
    return segments if isinstance(segments, PanopticMap) else PanopticMap.from_segments(segments)


def _places(given: PanopticMap | Segments, as_map: PanopticMap) -> dict[int, int]:
    """Of each place in what was given, the one in its map."""
    own = range(len(as_map)) if given is as_map else (as_map.segment_ids - 1).tolist()
    return {place: index for index, place in enumerate(own)}
