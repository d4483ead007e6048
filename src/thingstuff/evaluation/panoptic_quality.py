"""Panoptic quality (Kirillov et al., 2019, arXiv:1801.00868, section 4) and boundary PQ (Cheng et al., 2021, arXiv:2103.16562).

(prediction, truth) of each image -> matches -> per class TP, FP, FN, sum of IoU -> PQ = SQ x RQ -> means over classes
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int64

from thingstuff.errors import EvaluationError
from thingstuff.evaluation.panoptic_matching import ImageQuality, Match, Rules, match_segments
from thingstuff.structures.categories import Categories
from thingstuff.structures.panoptic import PanopticMap
from thingstuff.structures.segments import Segments

UNIT = 2**53  # of an IoU: every float in (0.5, 1] is a whole number of 1 / UNIT
LOW_BITS = 27  # of a sum in units that travel in a number of their own, since 64 bits hold no more than 1024 whole IoUs

TP, FP, FN, IOU = range(4)  # of the state; IOU is the sum in units


class PanopticQuality:
    """Adds up TP, FP, FN and IoU of each class over images, and gives PQ, SQ and RQ.

    The state is four whole numbers for each class: memory does not grow with the images, and shards add up to the same digits in
    any order, because IoUs are added exactly (in units of 2^-53) and rounded once, at the end.

    The defaults give the numbers of panopticapi, the tool that published numbers come from. Where it does something by accident,
    a keyword of its own gives the other behaviour:

    Args:
        categories: classes to report; segments of other categories (by category id) are refused.
        last_crowd_only: of several crowds of one class in an image, only the last one listed absorbs unmatched predictions (as
            panopticapi, which keeps one crowd per class in a dict). False: pixels on any crowd of its class count.
        stated_areas: a true segment's area is what its file states, where it states one, and not what is painted (as
            panopticapi). False: pixels are counted. The two agree on files without mistakes.
        refuse_broken_truth: a truth that paints an id it does not list, or lists one it does not paint, is an error. False: as
            panopticapi, the first is neither void nor a segment and the second is a missed segment. Predictions with such
            mistakes are refused either way, as panopticapi does.
        refuse_empty_group: `compute` raises where a group (all, things or stuff) has no class with an example, as panopticapi,
            which divides by zero. False, the default: such a group is None.
        boundary: width of boundaries as a share of the image's diagonal (0.02 in the paper): pairs match by the lesser of mask
            IoU and boundary IoU. None: plain PQ.
    """

    def __init__(
        self,
        categories: Categories,
        *,
        last_crowd_only: bool = True,
        stated_areas: bool = True,
        refuse_broken_truth: bool = True,
        refuse_empty_group: bool = False,
        boundary: float | None = None,
    ):
        self.categories = categories
        self.rules = Rules(last_crowd_only, stated_areas, refuse_broken_truth, boundary)
        self.refuse_empty_group = refuse_empty_group
        self.reset()

    def reset(self) -> None:
        """Forget every image."""
        self._state = [[0, 0, 0, 0] for _ in self.categories]
        self._is_total = False

    def update(
        self, prediction: PanopticMap | Segments, truth: PanopticMap | Segments, image_id: int | str | None = None
    ) -> ImageQuality:
        """Add one image, and give what was found in it.

        Raises:
            EvaluationError: sizes differ, a segment's category is unknown, or a map contradicts its list of segments.
        """
        self._refuse_when_total()
        quality = self.compare(prediction, truth, image_id)
        self.add(quality)
        return quality

    def compare(
        self, prediction: PanopticMap | Segments, truth: PanopticMap | Segments, image_id: int | str | None = None
    ) -> ImageQuality:
        """What `update` gives, without adding it; safe to call from several threads or processes at once."""
        predicted, annotated = _as_map(prediction), _as_map(truth)
        quality = match_segments(
            predicted,
            annotated,
            self._classes_of(predicted, image_id, "predicted"),
            self._classes_of(annotated, image_id, "ground truth"),
            self.rules,
            image_id,
        )
        return _places_of_segments(quality, prediction, predicted, truth, annotated)

    def add(self, quality: ImageQuality) -> None:
        """Add what `compare` gave."""
        self._refuse_when_total()
        for class_, counts in quality.per_class.items():
            state = self._state[class_]
            state[TP] += counts.tp
            state[FP] += counts.fp
            state[FN] += counts.fn
        for class_, match in zip(quality.matched_classes, quality.matches, strict=True):
            self._state[class_][IOU] += int(match.iou * UNIT)  # exact: a power of two changes the exponent alone

    def update_many(
        self,
        pairs: Iterable[tuple[int | str | None, Callable[[], PanopticMap | Segments], Callable[[], PanopticMap | Segments]]],
    ) -> Iterator[ImageQuality]:
        """Add images given as (image id, function that loads the prediction, function that loads the truth), in their order.

        Memory does not grow with their number. Threads would not make it faster: PNGs are decoded holding the interpreter.
        """
        self._refuse_when_total()
        for image_id, prediction, truth in pairs:
            yield self.update(prediction(), truth(), image_id)

    def merge(self, other: "PanopticQuality") -> None:
        """Add what another accumulator gathered, of other images.

        Raises:
            EvaluationError: it has other categories or other rules.
        """
        self._refuse_when_total()
        if other.categories != self.categories or other.rules != self.rules:
            raise EvaluationError("panoptic qualities of other categories or other rules can't be added up; make them alike")
        for state, more in zip(self._state, other._state, strict=True):
            state[:] = [one + another for one, another in zip(state, more, strict=True)]

    def synchronize(self) -> None:
        """Add up over the processes of torch.distributed, in every one of them; nothing where there is one process alone.

        After it this holds the total, to be computed or reset, so that no image is added or counted twice.

        Raises:
            EvaluationError: the processes have other categories or other rules.
        """
        import torch
        import torch.distributed as distributed

        self._refuse_when_total()
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return
        device = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else torch.device("cpu")
        mark = zlib.crc32(repr((self.categories, self.rules)).encode())
        marks = torch.tensor([mark, -mark], device=device)
        distributed.all_reduce(marks, distributed.ReduceOp.MAX)
        if marks.tolist() != [mark, -mark]:
            raise EvaluationError("the processes measure panoptic quality by other categories or other rules; make them alike")
        # 36 bits above the lower 27 stay below 2^63 for 2^36 matches of a class, over all processes
        rows = [[tp, fp, fn, iou >> LOW_BITS, iou & ((1 << LOW_BITS) - 1)] for tp, fp, fn, iou in self._state]
        state = torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 5)
        distributed.all_reduce(state)
        self._state = [[tp, fp, fn, (high << LOW_BITS) + low] for tp, fp, fn, high, low in state.tolist()]
        self._is_total = True

    def compute(self) -> dict[str, Any]:
        """PQ, SQ, RQ as fractions from 0 to 1, and the counts behind them.

        `{"All": {"pq", "sq", "rq", "n", "tp", "fp", "fn"}, "Things": {the same}, "Stuff": {the same}, "per_class": {name:
        {"pq", "sq", "rq", "tp", "fp", "fn", "iou_sum"}}}`. A class without an example on either side is None and left out of
        the means; `n` counts the others. In a group without any of them pq, sq and rq are None.

        Raises:
            EvaluationError: a group is empty, where `refuse_empty_group` asks for it.
        """
        rows = [_of_class(*counts) for counts in self._state]
        groups = {
            "All": rows,
            "Things": [row for row, category in zip(rows, self.categories, strict=True) if category.is_thing],
            "Stuff": [row for row, category in zip(rows, self.categories, strict=True) if not category.is_thing],
        }
        return {
            **{name: self._mean(name, group) for name, group in groups.items()},
            "per_class": dict(zip(self.categories.distinct_names, rows, strict=True)),
        }

    def _mean(self, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        stated = [row for row in rows if row["pq"] is not None]
        if self.refuse_empty_group and not stated:
            raise EvaluationError(f"{name}: no class has a segment, in the ground truth or predicted, so that there is no mean")
        mean: dict[str, Any] = {}
        for measure in ("pq", "sq", "rq"):
            total = 0.0
            for row in stated:  # one after another, as panopticapi adds them; sum() compensates for rounding from Python 3.12 on
                total += row[measure]
            mean[measure] = total / len(stated) if stated else None
        return {**mean, "n": len(stated), **{count: sum(row[count] for row in rows) for count in ("tp", "fp", "fn")}}

    def _classes_of(self, segments: PanopticMap, image_id: int | str | None, what: str) -> Int64[np.ndarray, " segments"]:
        """The classes of segments as this metric numbers them."""
        if segments.categories is self.categories or segments.categories == self.categories:
            return segments.classes
        own = {category_id: class_ for class_, category_id in enumerate(self.categories.ids)}
        table = np.array([own.get(category_id, -1) for category_id in segments.categories.ids], np.int64)
        classes = table[segments.classes]
        if len(classes) and classes.min() < 0:
            segment = int(np.argmin(classes))
            where = "the image" if image_id is None else f"image {image_id}"
            raise EvaluationError(
                f"{where}: {what} segment {segments.segment_ids[segment]} has category id "
                f"{segments.categories.ids[segments.classes[segment]]}, which is not among the categories measured; "
                "add it there or leave it out"
            )
        return classes

    def _refuse_when_total(self) -> None:
        if self._is_total:
            raise EvaluationError("this holds the total over all processes; compute it, and reset before adding more")


def _of_class(tp: int, fp: int, fn: int, iou: int) -> dict[str, Any]:
    iou_sum = iou / UNIT  # whole numbers: rounded once
    stated = tp + fp + fn > 0
    examples = tp + 0.5 * fp + 0.5 * fn
    return {
        "pq": iou_sum / examples if stated else None,
        "sq": (iou_sum / tp if tp else 0.0) if stated else None,
        "rq": tp / examples if stated else None,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "iou_sum": iou_sum,
    }


def _as_map(segments: PanopticMap | Segments) -> PanopticMap:
    return segments if isinstance(segments, PanopticMap) else PanopticMap.from_segments(segments)


def _places_of_segments(
    quality: ImageQuality, prediction: object, predicted: PanopticMap, truth: object, annotated: PanopticMap
) -> ImageQuality:
    """Places among the `Segments` that were given; some of them show no pixel and have none in the map."""
    if prediction is predicted and truth is annotated:
        return quality
    of_prediction = range(len(predicted)) if prediction is predicted else (predicted.segment_ids - 1).tolist()
    of_truth = range(len(annotated)) if truth is annotated else (annotated.segment_ids - 1).tolist()
    return replace(
        quality,
        matches=[Match(of_prediction[match.prediction], of_truth[match.truth], match.iou) for match in quality.matches],
        false_positives=[of_prediction[place] for place in quality.false_positives],
        false_negatives=[of_truth[place] for place in quality.false_negatives],
        ignored=[of_prediction[place] for place in quality.ignored],
    )
