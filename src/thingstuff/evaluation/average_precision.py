"""COCO average precision of boxes and masks (Lin et al., 2014, arXiv:1405.0312; protocol: https://cocodataset.org/#detection-eval).

truth, {image id: Segments} -> matches at IoU 0.50, 0.55 ... 0.95 -> precision at 101 recalls -> means
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import hotcoco
import numpy as np

from thingstuff.errors import ConfigError, EvaluationError
from thingstuff.structures.categories import Categories
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segments

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
AREAS = ("all", "small", "medium", "large")  # limits 32 x 32 and 96 x 96 pixels


@runtime_checkable
class TruthObject(Protocol):
    """One annotated object, as `thingstuff.data.records.Object` is."""

    @property
    def class_(self) -> int: ...
    @property
    def box(self) -> tuple[float, float, float, float]: ...
    @property
    def mask(self) -> Mask: ...
    @property
    def is_crowd(self) -> bool: ...
    @property
    def area(self) -> float: ...


@runtime_checkable
class TruthRecord(Protocol):
    """One annotated image, as `thingstuff.data.records.Record` is."""

    @property
    def image_id(self) -> int: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def objects(self) -> Sequence[TruthObject]: ...


@runtime_checkable
class Truth(Protocol):
    """Annotated images, as `thingstuff.data.records.InstanceDataset` is."""

    @property
    def records(self) -> Sequence[TruthRecord]: ...
    @property
    def categories(self) -> Categories: ...


class AveragePrecision:
    """Gathers the segments of each image, then compares them with the truth as pycocotools does, to the same numbers.

    Of each image and class the `max_detections` best-scored segments count; pycocotools itself prints 100 whatever was asked for.
    Every image of the truth counts; one that was never given segments counts as one where nothing was found. Segments of
    categories that the truth doesn't list are left out, as pycocotools does. Small, medium and large go by the annotated area.
    """

    def __init__(self, truth: Truth, max_detections: int = 100):
        if max_detections < 1:
            raise ConfigError(f"max_detections must be at least 1, got {max_detections}")
        self.truth = truth
        self.max_detections = max_detections
        self._sizes = {record.image_id: record.size for record in truth.records}
        self._category_ids = set(truth.categories.ids)
        self._found: dict[int, list[dict[str, Any]]] = {}  # COCO results of each image

    def update(self, image_id: int, segments: Segments) -> None:
        """Add what was found in one image.

        Raises:
            EvaluationError: the truth has no such image, or of another size; it was given before; or no category is shared.
        """
        if image_id not in self._sizes:
            raise EvaluationError(f"image {image_id}: is not in the ground truth; are these predictions of another split?")
        if image_id in self._found:
            raise EvaluationError(f"image {image_id}: was given twice; give all its segments at once")
        if segments.size != self._sizes[image_id]:
            raise EvaluationError(
                f"image {image_id}: segments have height and width {segments.size}, the ground truth says {self._sizes[image_id]}"
            )
        if len(segments) and self._category_ids.isdisjoint(segments.categories.ids):
            raise EvaluationError(
                f"image {image_id}: no category id of the predictions ({_some(segments.categories.ids)}) is in the ground truth "
                f"({_some(self.truth.categories.ids)}); was the model trained on another data set?"
            )
        self._found[image_id] = [row for row in segments.to_coco(image_id) if row["category_id"] in self._category_ids]

    def merge(self, other: "AveragePrecision") -> None:
        """Take over what another process gathered on its share of the images.

        Raises:
            EvaluationError: both were given the same image.
        """
        if twice := self._found.keys() & other._found.keys():
            raise EvaluationError(f"image {min(twice)}: was given in two processes; split the images between them")
        self._found |= other._found

    def compute(self) -> dict[str, Any]:
        """AP of boxes and masks as fractions from 0 to 1.

        `{"box": {"AP", "AP50", "AP75", "APs", "APm", "APl"}, "mask": {the same}, "per_class": {name: {"box": AP, "mask": AP}}}`.
        None stands where the truth has nothing to find (no object, or crowds alone), where pycocotools says -1.
        """
        truth = self._truth_as_coco()
        found = [row for image_id in self._sizes for row in self._found.get(image_id, [])]
        boxes = [{key: row[key] for key in ("image_id", "category_id", "score", "bbox")} for row in found]
        # without bbox, so that a mask's size class follows its own area; this is how the COCO server and detectron2 do it
        masks = [{key: row[key] for key in ("image_id", "category_id", "score", "segmentation")} for row in found]
        precisions = {"box": self._precision(truth, boxes, "bbox"), "mask": self._precision(truth, masks, "segm")}
        return {
            **{kind: _summary(precision) for kind, precision in precisions.items()},
            "per_class": {
                name: {kind: _mean(precision[:, :, class_, 0]) for kind, precision in precisions.items()}
                for class_, name in enumerate(_distinct_names(self.truth.categories))
            },
        }

    def _truth_as_coco(self) -> hotcoco.COCO:
        images, annotations = [], []
        for record in self.truth.records:
            height, width = record.size
            images.append({"id": record.image_id, "height": height, "width": width})
            for found in record.objects:
                x1, y1, x2, y2 = found.box
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # ours: pycocotools takes a match with id 0 for none
                        "image_id": record.image_id,
                        "category_id": self.truth.categories[found.class_].id,
                        "iscrowd": int(found.is_crowd),
                        "area": found.area,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "segmentation": found.mask.to_coco(),
                    }
                )
        return hotcoco.COCO({"images": images, "annotations": annotations, "categories": self.truth.categories.to_coco()})

    def _precision(self, truth: hotcoco.COCO, found: list[dict[str, Any]], kind: str) -> np.ndarray:
        """iou recall class area, in the order of our classes; -1 where a class has no object of that area."""
        evaluation = hotcoco.COCOeval(truth, truth.load_res(found), kind)
        evaluation.params.img_ids = list(self._sizes)
        evaluation.params.cat_ids = sorted(self.truth.categories.ids)
        evaluation.params.max_dets = [self.max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        assert evaluation.eval is not None
        order = np.argsort(np.argsort(self.truth.categories.ids))  # of each class, its place among the sorted ids
        return evaluation.eval["precision"][..., 0][:, :, order]


def _summary(precision: np.ndarray) -> dict[str, float | None]:
    """`METRICS` of iou recall class area."""
    of_area = {name: precision[:, :, :, index] for index, name in enumerate(AREAS)}
    values = (of_area["all"], of_area["all"][0], of_area["all"][5], of_area["small"], of_area["medium"], of_area["large"])
    return {metric: _mean(value) for metric, value in zip(METRICS, values, strict=True)}


def _mean(precision: np.ndarray) -> float | None:
    stated = precision[precision > -1]
    return float(stated.mean()) if stated.size else None


def _distinct_names(categories: Categories) -> list[str]:
    times = Counter(categories.names)
    return [f"{item.name} ({item.id})" if times[item.name] > 1 else item.name for item in categories]


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")


def format_table(result: dict[str, Any]) -> str:
    """What `AveragePrecision.compute` gives, as lines to print: percent, with a dash where there is nothing to find."""
    lines = ["".join([f"{'':<8}", *(f"{metric:>8}" for metric in METRICS)])]
    lines += ["".join([f"{kind:<8}", *(_percent(result[kind][metric]) for metric in METRICS)]) for kind in ("box", "mask")]
    per_class = result["per_class"]
    width = max([len("class"), *map(len, per_class)]) + 2
    lines += ["", f"{'class':<{width}}{'box AP':>8}{'mask AP':>8}"]
    lines += [f"{name:<{width}}{_percent(row['box'])}{_percent(row['mask'])}" for name, row in per_class.items()]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{100 * value:8.2f}"
