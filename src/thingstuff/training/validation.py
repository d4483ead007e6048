"""What a validation measures, says and shows: the one place where tasks differ in training.

Segments of each image -> judge -> figures -> a row of the log, a line to read, the number that the best weights maximise
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from thingstuff.data.panoptic_objects import map_of
from thingstuff.data.records import InstanceDataset, Record
from thingstuff.evaluation import average_precision
from thingstuff.evaluation.average_precision import AveragePrecision
from thingstuff.evaluation.panoptic_quality import PanopticQuality
from thingstuff.evaluation.semantic import SemanticQuality
from thingstuff.models.contract import Task
from thingstuff.structures.panoptic import PanopticMap
from thingstuff.structures.segments import Segments
from thingstuff.training.recipe import Recipe

LOWEST_SCORE = 0.05  # of instances that validation looks at: average precision is over all scores
SHOWN_SCORE = 0.5  # from which instances are drawn
GROUPS = ("All", "Things", "Stuff")


class Judge(ABC):
    """Adds up one task's figures over images; every process of a run has one for its share, merged at the end."""

    parts: ClassVar[tuple[str, ...]]  # of the result
    best: ClassVar[str]  # what the checkpoint's notes call the figure that is maximised

    def __init__(self, data: InstanceDataset, recipe: Recipe):
        self.data = data
        self.recipe = recipe

    def limits(self) -> dict[str, Any]:
        """What `Segmenter.stream` is asked for, besides the task."""
        return {}

    @abstractmethod
    def update(self, record: Record, segments: Segments) -> None:
        """Add an image."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Add another judge's images."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """The figures: fractions from 0 to 1, None where there is nothing to find."""

    @classmethod
    @abstractmethod
    def figure(cls, result: dict[str, Any]) -> float:
        """The number that the best weights have most of."""

    @classmethod
    @abstractmethod
    def row(cls, result: dict[str, Any]) -> dict[str, Any]:
        """The columns of the log."""

    @classmethod
    @abstractmethod
    def table(cls, result: dict[str, Any]) -> str:
        """The figures as lines to print."""

    def shown(self, segments: Segments) -> Segments:
        """What of a prediction is drawn."""
        return segments

    def truth(self, record: Record) -> Segments:
        """What is annotated, to be drawn beside the prediction."""
        return map_of(record, self.data.categories).to_segments()


class InstanceJudge(Judge):
    """Average precision of masks."""

    parts = ("box", "mask", "per_class")
    best = "best_mask_ap"

    def __init__(self, data: InstanceDataset, recipe: Recipe):
        super().__init__(data, recipe)
        self.precision = AveragePrecision(data, recipe.max_detections)

    def limits(self) -> dict[str, Any]:
        return {"score_threshold": LOWEST_SCORE, "max_detections": self.recipe.max_detections}

    def update(self, record: Record, segments: Segments) -> None:
        self.precision.update(record.image_id, segments)

    def merge(self, other: "InstanceJudge") -> None:
        self.precision.merge(other.precision)

    def compute(self) -> dict[str, Any]:
        return self.precision.compute()

    @classmethod
    def figure(cls, result: dict[str, Any]) -> float:
        return result["mask"]["AP"] or 0.0

    @classmethod
    def row(cls, result: dict[str, Any]) -> dict[str, Any]:
        return {"box_AP": result["box"]["AP"], **{f"mask_{name}": value for name, value in result["mask"].items()}}

    @classmethod
    def table(cls, result: dict[str, Any]) -> str:
        return average_precision.format_table(result)

    def shown(self, segments: Segments) -> Segments:
        return segments.above(SHOWN_SCORE)

    def truth(self, record: Record) -> Segments:
        objects = [found for found in record.objects if not found.is_crowd]
        return Segments(
            size=record.size,
            categories=self.data.categories,
            classes=np.array([found.class_ for found in objects], dtype=np.int64),
            scores=np.ones(len(objects), dtype=np.float32),
            boxes=np.array([found.box for found in objects], dtype=np.float32).reshape(-1, 4),
            rles=tuple(found.mask for found in objects),
        )


class SemanticJudge(Judge):
    """Mean IoU of classes."""

    parts = ("semantic", "per_class")
    best = "best_miou"

    def __init__(self, data: InstanceDataset, recipe: Recipe):
        super().__init__(data, recipe)
        self.semantic = SemanticQuality(data.categories)

    def update(self, record: Record, segments: Segments) -> None:
        self.semantic.update(segments.semantic_map(), map_of(record, self.data.categories).semantic_map(), record.image_id)

    def merge(self, other: "SemanticJudge") -> None:
        self.semantic.merge(other.semantic)

    def compute(self) -> dict[str, Any]:
        semantic = self.semantic.compute()
        per_class = semantic.pop("per_class")
        return {"semantic": semantic, "per_class": per_class}

    @classmethod
    def figure(cls, result: dict[str, Any]) -> float:
        return result["semantic"]["mIoU"] or 0.0

    @classmethod
    def row(cls, result: dict[str, Any]) -> dict[str, Any]:
        return {name: result["semantic"][name] for name in ("mIoU", "fwIoU", "pixel_accuracy")}

    @classmethod
    def table(cls, result: dict[str, Any]) -> str:
        return _table(cls.row(result), "IoU", {name: row["iou"] for name, row in result["per_class"].items()})


class PanopticJudge(SemanticJudge):
    """Panoptic quality, and the mean IoU of the same maps."""

    parts = ("pq", "semantic", "per_class")
    best = "best_pq"

    def __init__(self, data: InstanceDataset, recipe: Recipe):
        super().__init__(data, recipe)
        self.quality = PanopticQuality(data.categories)

    def update(self, record: Record, segments: Segments) -> None:
        truth = map_of(record, self.data.categories)
        found = PanopticMap.from_segments(segments)
        self.quality.update(found, truth, record.image_id)
        self.semantic.update(found.semantic_map(), truth.semantic_map(), record.image_id)

    def merge(self, other: "PanopticJudge") -> None:
        super().merge(other)
        self.quality.merge(other.quality)

    def compute(self) -> dict[str, Any]:
        semantic, quality = super().compute(), self.quality.compute()
        classes = {name: {**row, "iou": semantic["per_class"][name]["iou"]} for name, row in quality["per_class"].items()}
        return {"pq": {group: quality[group] for group in GROUPS}, "semantic": semantic["semantic"], "per_class": classes}

    @classmethod
    def figure(cls, result: dict[str, Any]) -> float:
        return result["pq"]["All"]["pq"] or 0.0

    @classmethod
    def row(cls, result: dict[str, Any]) -> dict[str, Any]:
        quality = result["pq"]
        groups = {"PQ_things": quality["Things"]["pq"], "PQ_stuff": quality["Stuff"]["pq"]}
        return {**{key.upper(): quality["All"][key] for key in ("pq", "sq", "rq")}, **groups, "mIoU": result["semantic"]["mIoU"]}

    @classmethod
    def table(cls, result: dict[str, Any]) -> str:
        return _table(cls.row(result), "PQ", {name: row["pq"] for name, row in result["per_class"].items()})


JUDGES: dict[Task, type[Judge]] = {
    Task.INSTANCE: InstanceJudge,
    Task.PANOPTIC: PanopticJudge,
    Task.SEMANTIC: SemanticJudge,
}


def table(result: dict[str, Any]) -> str:
    """A validation's figures as lines to print, whatever the task was."""
    return next(judge for judge in JUDGES.values() if set(judge.parts) <= result.keys()).table(result)


def in_words(row: dict[str, Any]) -> str:
    """A row of the log on one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value or 0:.4f}" for name, value in row.items())


def _table(whole: dict[str, float | None], name: str, per_class: dict[str, float | None]) -> str:
    width = max(len("class"), *map(len, per_class)) + 2 if per_class else len("class")
    lines = [", ".join(f"{word.replace('_', ' ')} {_percent(value).strip()}" for word, value in whole.items()), ""]
    lines += [f"{'class':<{width}}{name:>8}", *(f"{class_:<{width}}{_percent(value)}" for class_, value in per_class.items())]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{100 * value:8.2f}"
