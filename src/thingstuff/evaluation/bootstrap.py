"""Bootstrap intervals over images (Efron and Tibshirani, 1993): how far a figure would move with other images.

images -> draws of as many, with replacement -> the figure of each draw -> where 95 % of them lie

Of two runs on the same images every draw is the same for both, and it is their difference that gets an interval: what is hard for
both then cancels out. Draws follow from a seed, so that the same reports give the same digits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from thingstuff.errors import EvaluationError
from thingstuff.evaluation.matching import RECALLS, THRESHOLDS, Matches

SAMPLES = 1000
LEVEL = 0.95
FEWEST_SAMPLES, WORK = 200, 20_000_000  # draws at least; detections times draws that take a few seconds
CELLS = 1_000_000  # detections times draws that are held at once

Draws = Float64[np.ndarray, " draws"]  # NaN where a draw has nothing to find


def draw_images(images: int, samples: int = SAMPLES, seed: int = 0) -> Float64[np.ndarray, "draws images"]:
    """How often each image is drawn."""
    if images == 0:
        return np.zeros((samples, 0))
    generator = np.random.default_rng(seed)
    return generator.multinomial(images, np.full(images, 1 / images), size=samples).astype(np.float64)


def interval(values: Draws, estimate: float, images: int, level: float = LEVEL) -> tuple[float, float] | None:
    """The middle `level` of the draws, moved by as much as their median lies off the estimate, and widened as few images ask.

    A mean over classes is higher in draws that lack the rare and difficult ones, which many classes make true of nearly every
    draw; how far the draws lie apart says how far the figure would move all the same. (The bias-corrected quantiles of Efron and
    Tibshirani, 1993, section 14.3, would then be taken from the last few draws.)

    Draws of n images lie closer together than other n images would, by (n - 1) / n in variance, and know that no better than n
    images can, for which Student's t has wider quantiles than the normal distribution. Both widen the interval, after Hesterberg
    (2014, arXiv:1411.5279): 1.6 times for 5 images, 1.03 times for 60. benchmarks/ranges.py measures how often it then holds.

    Args:
        images: that have a say in the figure; below two there is no interval, nor where most draws have no value.
    """
    stated = values[~np.isnan(values)]
    if images < 2 or 2 * len(stated) <= len(values) or np.isnan(estimate):
        return None
    low, middle, high = np.quantile(stated, ((1 - level) / 2, 0.5, (1 + level) / 2))
    wider = _widening(images, level)
    return float(estimate - (middle - low) * wider), float(estimate + (high - middle) * wider)


def _widening(images: int, level: float) -> float:
    from scipy.special import ndtri, stdtrit  # takes long to import

    quantile = (1 + level) / 2
    return float((images / (images - 1)) ** 0.5 * stdtrit(images - 1, quantile) / ndtri(quantile))


@dataclass(frozen=True, eq=False)
class Drawn:
    """Figures of every draw."""

    overall: dict[str, Draws]
    per_class: Float64[np.ndarray, "draws classes"]  # of the first figure


def affordable_samples(matches: Matches) -> int:
    """1000 draws, fewer for so many predictions that they would take minutes."""
    return max(FEWEST_SAMPLES, min(SAMPLES, WORK // max(len(matches.scores), 1)))


def average_precisions(matches: Matches, weights: Float64[np.ndarray, "draws images"]) -> Drawn:
    """AP, AP50 and AP75 of every draw, over objects of all sizes: what `precision_and_recall` says, for many draws at once.

    The mean of the highest precision over 101 recalls is a sum over true positives: each gives that precision once for every one
    of the recalls between the one before it and its own.
    """
    truths = weights @ matches.truths[0]  # draw class
    per_threshold = np.where(truths > 0, 0.0, np.nan)[None].repeat(len(THRESHOLDS), axis=0)  # threshold draw class
    hits, misses = matches.outcomes
    for class_, (start, end) in enumerate(
        zip(matches.class_starts[:-1].tolist(), matches.class_starts[1:].tolist(), strict=True)
    ):
        step = max(1, CELLS // max(end - start, 1))
        for first in range(0, len(weights), step):
            draws = slice(first, first + step)
            counted = np.ascontiguousarray(weights[draws, matches.images[start:end]].T)  # detection draw
            for threshold in range(len(THRESHOLDS)):
                at = np.flatnonzero(hits[threshold, start:end])
                if len(at) == 0:
                    continue
                positives = counted[at].cumsum(axis=0)
                negatives = (counted * misses[threshold, start:end, None]).cumsum(axis=0)[at]
                whole = positives + negatives
                precision = np.divide(positives, whole, out=np.zeros(whole.shape), where=whole > 0)
                best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
                with np.errstate(invalid="ignore", divide="ignore"):
                    reached = positives / truths[draws, class_]
                recalls = np.where(positives > 0, np.searchsorted(RECALLS, reached, side="right"), 0)
                values = (best * np.diff(recalls, axis=0, prepend=0)).sum(axis=0) / len(RECALLS)
                per_threshold[threshold, draws, class_] += values  # NaN, where the draw has nothing to find, stays
    figures = {"AP": per_threshold.mean(axis=0), "AP50": per_threshold[0], "AP75": per_threshold[5]}
    return Drawn({name: _mean_of_stated(values) for name, values in figures.items()}, figures["AP"])


@dataclass(frozen=True, eq=False)
class PanopticCounts:
    """What panoptic quality adds up, of every image and class."""

    image_ids: tuple[int | str, ...]
    is_thing: tuple[bool, ...]  # of each class
    counts: Float64[np.ndarray, "images classes 4"]  # TP, FP, FN, sum of IoU

    def to_json(self) -> dict[str, Any]:
        """As lists: (image, class, TP, FP, FN, sum of IoU) rows, where there is anything."""
        images, classes = np.nonzero(self.counts.any(axis=2))
        rows = [
            [image, class_, *map(int, self.counts[image, class_, :3]), float(self.counts[image, class_, 3])]
            for image, class_ in zip(images.tolist(), classes.tolist(), strict=True)
        ]
        return {"image_ids": list(self.image_ids), "is_thing": list(self.is_thing), "rows": rows}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "PanopticCounts":
        """What `to_json` gave.

        Raises:
            EvaluationError: something else was given.
        """
        try:
            image_ids, is_thing = tuple(content["image_ids"]), tuple(map(bool, content["is_thing"]))
            counts = np.zeros((len(image_ids), len(is_thing), 4))
            for image, class_, *values in content["rows"]:
                counts[image, class_] = values
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise EvaluationError(f"the panoptic counts of a report can't be read ({error}); write the report again") from error
        return cls(image_ids, is_thing, counts)


def panoptic_qualities(counted: PanopticCounts, weights: Float64[np.ndarray, "draws images"]) -> Drawn:
    """PQ, SQ and RQ of every draw, and PQ of things and of stuff; the mean of the classes that occur in the draw."""
    sums = np.tensordot(weights, counted.counts, axes=1)  # draw class 4
    tp, fp, fn, iou_sum = np.moveaxis(sums, 2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        pq, rq = iou_sum / (tp + fp / 2 + fn / 2), tp / (tp + fp / 2 + fn / 2)
        sq = np.where(tp > 0, iou_sum / tp, np.where(np.isnan(pq), np.nan, 0.0))
    is_thing = np.array(counted.is_thing, np.bool_)
    overall = {"pq": pq, "sq": sq, "rq": rq, "Things": pq[:, is_thing], "Stuff": pq[:, ~is_thing]}
    return Drawn({name: _mean_of_stated(values) for name, values in overall.items()}, pq)


@dataclass(frozen=True, eq=False)
class SemanticCounts:
    """What IoU over pixels adds up, of every image and class."""

    image_ids: tuple[int | str, ...]
    counts: Float64[np.ndarray, "images classes 3"]  # pixels found right, annotated, and predicted where anything is annotated

    @classmethod
    def of_confusions(
        cls, image_ids: Sequence[int | str], confusions: Sequence[Int64[np.ndarray, "truth found_and_void"]], classes: int
    ) -> "SemanticCounts":
        """From the counts that `SemanticQuality.update` gives of each image."""
        counts = np.zeros((len(image_ids), classes, 3))
        for image, confusion in enumerate(confusions):
            counts[image] = class_counts(confusion)
        return cls(tuple(image_ids), counts)

    def to_json(self) -> dict[str, Any]:
        """As lists: (image, class, found right, annotated, predicted) rows, where there is anything."""
        images, classes = np.nonzero(self.counts.any(axis=2))
        rows = [
            [image, class_, *map(int, self.counts[image, class_])]
            for image, class_ in zip(images.tolist(), classes.tolist(), strict=True)
        ]
        return {"image_ids": list(self.image_ids), "classes": self.counts.shape[1], "rows": rows}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SemanticCounts":
        """What `to_json` gave.

        Raises:
            EvaluationError: something else was given.
        """
        try:
            counts = np.zeros((len(content["image_ids"]), content["classes"], 3))
            for image, class_, *values in content["rows"]:
                counts[image, class_] = values
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise EvaluationError(f"the pixel counts of a report can't be read ({error}); write the report again") from error
        return cls(tuple(content["image_ids"]), counts)


def class_counts(confusion: Int64[np.ndarray, "truth found_and_void"]) -> Float64[np.ndarray, "classes 3"]:
    """What `SemanticCounts` has of one image: all of its confusions that IoU asks for."""
    return np.stack((confusion.diagonal(), confusion.sum(axis=1), confusion[:, :-1].sum(axis=0)), axis=1).astype(np.float64)


def semantic_qualities(counted: SemanticCounts, weights: Float64[np.ndarray, "draws images"]) -> Drawn:
    """mIoU, fwIoU, pixel and mean accuracy of every draw, as `SemanticQuality.compute` has them, and the IoU of each class."""
    hits, true, predicted = np.moveaxis(np.tensordot(weights, counted.counts, axes=1), 2, 0)  # draw class
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, accuracy = hits / (true + predicted - hits), hits / true
        total = true.sum(axis=1)
        overall = {
            "mIoU": _mean_of_stated(iou),
            "fwIoU": (true * np.nan_to_num(iou)).sum(axis=1) / total,
            "pixel_accuracy": hits.sum(axis=1) / total,
            "mean_accuracy": _mean_of_stated(accuracy),
        }
    return Drawn(overall, iou)


def weights_of(
    image_ids: Sequence[int | str], common: Sequence[int | str], draws: Float64[np.ndarray, "draws common"]
) -> np.ndarray:
    """The draws of `common` images as draws of `image_ids`, which has them among others; the others are never drawn."""
    positions = {image_id: position for position, image_id in enumerate(image_ids)}
    columns: Int64[np.ndarray, " common"] = np.array([positions[image_id] for image_id in common], np.int64)
    weights = np.zeros((len(draws), len(image_ids)))
    weights[:, columns] = draws
    return weights


def _mean_of_stated(values: Float64[np.ndarray, "draws classes"]) -> Draws:
    stated = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(stated, values, 0.0).sum(axis=1) / stated.sum(axis=1)
