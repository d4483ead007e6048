"""COCO average precision of boxes, masks and boundaries (Lin et al., 2014, arXiv:1405.0312).

The protocol is https://cocodataset.org/#detection-eval, and that of pycocotools where the two differ:

truth, {image id: Segments} -> matches at IoU 0.50, 0.55 ... 0.95 -> precision at 101 recalls -> means
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import hotcoco
import numpy as np
from jaxtyping import Float64, Int64

from thingstuff.errors import ConfigError, EvaluationError
from thingstuff.evaluation.confusion import add_confusion, empty_confusion
from thingstuff.evaluation.matching import (
    AREAS,
    RECALLS,
    Matches,
    MatchesBuilder,
    match,
    precision_and_recall,
    stated_mean,
)
from thingstuff.evaluation.overlaps import boundary_overlaps, box_overlaps, mask_overlaps
from thingstuff.ops.boundary import boundary_width
from thingstuff.structures.categories import Categories
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segments

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
BY_FREQUENCY = {"APr": "r", "APc": "c", "APf": "f"}  # of LVIS: rare, common and frequent classes
KINDS = ("box", "mask", "boundary")


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


@dataclass(frozen=True, eq=False)
class _Found:
    """What was found in one image: the segments of categories that the truth lists, and the same as COCO results."""

    segments: Segments
    rows: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class _Accumulated:
    precision: Float64[np.ndarray, "thresholds recalls classes areas"]  # -1 where a class has no object of that area
    recall: Float64[np.ndarray, "thresholds classes areas limits"]


class AveragePrecision:
    """Gathers the segments of each image, then compares them with the truth as pycocotools does, to the same numbers.

    Of each image and class the `max_detections` best-scored segments count; pycocotools itself prints 100 whatever was asked for.
    Every image of the truth counts; one that was never given segments counts as one where nothing was found. Segments of
    categories that the truth doesn't list are left out, as pycocotools does. Small, medium and large go by the annotated area.

    Args:
        boundary: judge boundaries, too (Cheng et al., 2021, arXiv:2103.16562): their width as a share of the image's diagonal,
            0.02 in the paper. IoU is then the lesser of mask IoU and boundary IoU.
        federated: follow LVIS (Gupta et al., 2019, arXiv:1908.03195, section 2.3), whose images are annotated for some classes
            only. Each record then says `neg_category_ids` (looked for, and absent) and `not_exhaustive_category_ids` (present,
            not all annotated): segments of a class neither annotated nor negative are left out, unmatched ones of a class not
            exhaustively annotated are ignored, and `max_detections` counts all classes of an image together. Where the truth
            says how frequent its classes are (`frequencies`, "r", "c" or "f" of each), AP is given for each of these groups.
    """

    def __init__(self, truth: Truth, max_detections: int = 100, *, boundary: float | None = None, federated: bool = False):
        if max_detections < 1:
            raise ConfigError(f"max_detections must be at least 1, got {max_detections}")
        if boundary is not None:
            boundary_width((1, 1), boundary)  # refuses what is no share
        self.truth = truth
        self.max_detections = max_detections
        self.boundary = boundary
        self.federated = federated
        self.kinds = KINDS if boundary is not None else KINDS[:2]
        self._sizes = {record.image_id: record.size for record in truth.records}
        self._category_ids = set(truth.categories.ids)
        if federated:
            self._check_federated()
        self._truth_codes: dict[int, list[dict[str, Any]]] = {}
        self._found: dict[int, _Found] = {}
        self._accumulated: dict[str, _Accumulated] = {}  # of each kind, until something is added
        self._matches: dict[str, Matches] = {}

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
        kept = self._of_truth(segments)
        if self.federated and len(kept) > self.max_detections:
            kept = kept[np.sort(np.argsort(-kept.scores, kind="stable")[: self.max_detections])]
        self._found[image_id] = _Found(kept, kept.to_coco(image_id))
        self._forget()

    def merge(self, other: "AveragePrecision") -> None:
        """Take over what another process gathered on its share of the images.

        Raises:
            EvaluationError: both were given the same image.
        """
        if twice := self._found.keys() & other._found.keys():
            raise EvaluationError(f"image {min(twice)}: was given in two processes; split the images between them")
        self._found |= other._found
        self._forget()

    def reset(self) -> None:
        """Forget what was found; the truth stays."""
        self._found = {}
        self._forget()

    def compute(self) -> dict[str, Any]:
        """AP and AR of boxes and masks (and boundaries, where asked for) as fractions from 0 to 1.

        `{"box": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}, "mask": {the same},
        "per_class": {name: {"box": AP, "mask": AP}}}`. "AR100" carries the number of `max_detections`, and AR1 and AR10 are
        there when they are fewer; the federated protocol has the last alone, and "APr", "APc" and "APf" where the truth says how
        frequent classes are. None stands where the truth has nothing to find (no object, or crowds alone), where pycocotools
        says -1.
        """
        accumulated = {kind: self._accumulate(kind) for kind in self.kinds}
        return {
            **{kind: _summary(result, self._limits, self._groups) for kind, result in accumulated.items()},
            "per_class": {
                name: {kind: stated_mean(result.precision[:, :, class_, 0]) for kind, result in accumulated.items()}
                for class_, name in enumerate(self.truth.categories.distinct_names)
            },
        }

    def curves(self) -> dict[str, Any]:
        """Precision over recall, of each kind: `{"recall": [0.00, 0.01 ... 1.00], "mask": {"overall": curves, "per_class": {name:
        curves}}, ...}` with curves `{"AP": mean over the IoU thresholds, "AP50", "AP75"}`, each as many numbers as recalls.

        Precision is the highest at that recall or beyond, so that the mean of a curve is the metric that it is named after.
        None stands for the curves of a class without objects.
        """
        names = self.truth.categories.distinct_names
        curves: dict[str, Any] = {"recall": RECALLS.tolist()}
        for kind in self.kinds:
            precision = self._accumulate(kind).precision[..., 0]  # threshold recall class
            stated = [class_ for class_ in range(len(names)) if (precision[:, :, class_] > -1).all()]
            curves[kind] = {
                "overall": _curves(precision[:, :, stated].mean(axis=2)) if stated else None,
                "per_class": {
                    name: _curves(precision[:, :, class_]) if class_ in stated else None for class_, name in enumerate(names)
                },
            }
        return curves

    def matches(self, kind: str = "mask") -> Matches:
        """What became of each detection by "box", "mask" or "boundary": what bootstrap intervals are drawn from."""
        if kind not in self.kinds:
            hint = "; ask for boundary=0.02" if kind == "boundary" else ""
            raise ConfigError(f"these numbers are of {', '.join(self.kinds)}, not of {kind!r}{hint}")
        if kind not in self._matches:
            builder = MatchesBuilder(list(self._sizes), len(self.truth.categories))
            for record in self.truth.records:
                self._match_image(record, kind, builder)
            self._matches[kind] = builder.matches()
        return self._matches[kind]

    def confusion(self, score: float = 0.5, iou: float = 0.5) -> Int64[np.ndarray, "truth_and_background found_and_background"]:
        """How often an object of one class (row) was found as another (column), by masks; the last of both is background.

        Segments of at least `score` take, from the best-scored down, the free object of highest IoU from `iou` up, whatever
        its class. Objects left over count as found as background, segments left over as found in background, except those
        that lie in a crowd by that much of their pixels.
        """
        matrix = empty_confusion(len(self.truth.categories))
        for record in self.truth.records:
            rows, found_classes, scores = self._counted(record.image_id)
            order = np.argsort(-scores, kind="stable")
            order = order[scores[order] >= score]
            objects = list(record.objects)
            is_crowd = np.array([found.is_crowd for found in objects], np.bool_)
            codes = [rows[row]["segmentation"] for row in order.tolist()]
            ious = mask_overlaps(codes, self._codes(record), is_crowd)
            add_confusion(matrix, ious, found_classes[order], np.array([o.class_ for o in objects], np.int64), is_crowd, iou)
        return matrix

    @property
    def _limits(self) -> list[int]:
        """Detections of an image and class for which recall is stated, the last for precision, too."""
        fewer = [] if self.federated else [limit for limit in (1, 10) if limit < self.max_detections]
        return [*fewer, self.max_detections]

    @property
    def _groups(self) -> dict[str, list[int]]:
        """The classes of each group of LVIS's."""
        frequencies = getattr(self.truth, "frequencies", None) if self.federated else None
        if frequencies is None:
            return {}
        return {name: [class_ for class_, of in enumerate(frequencies) if of == letter] for name, letter in BY_FREQUENCY.items()}

    def _forget(self) -> None:
        self._accumulated, self._matches = {}, {}

    def _of_truth(self, segments: Segments) -> Segments:
        """The segments in the truth's categories, without their picture."""
        place = {id_: class_ for class_, id_ in enumerate(self.truth.categories.ids)}
        classes = np.array([place.get(id_, -1) for id_ in segments.categories.ids], np.int64)[segments.classes]
        kept = replace(segments, image=None)[classes >= 0]
        return replace(kept, categories=self.truth.categories, classes=classes[classes >= 0])

    def _check_federated(self) -> None:
        for record in self.truth.records:
            for name in ("neg_category_ids", "not_exhaustive_category_ids"):
                ids = getattr(record, name, None)
                if ids is None:
                    raise EvaluationError(f"image {record.image_id}: has no {name}; the federated protocol needs LVIS's file")
                if unknown := set(ids) - self._category_ids:
                    raise EvaluationError(f"image {record.image_id}: {name} holds {min(unknown)}, no category of this data")

    def _accumulate(self, kind: str) -> _Accumulated:
        if kind not in self._accumulated:
            self._accumulated[kind] = self._by_own_matches(kind) if kind == "boundary" else self._by_hotcoco(kind)
        return self._accumulated[kind]

    def _by_own_matches(self, kind: str) -> _Accumulated:
        matches = self.matches(kind)
        of_areas = [precision_and_recall(matches, area) for area in range(len(AREAS))]
        recalls = [[precision_and_recall(matches, area, limit)[1] for limit in self._limits[:-1]] for area in range(len(AREAS))]
        return _Accumulated(
            np.stack([precision for precision, _ in of_areas], axis=-1),
            np.stack(
                [np.stack([*fewer, recall], axis=-1) for fewer, (_, recall) in zip(recalls, of_areas, strict=True)], axis=-2
            ),
        )

    def _by_hotcoco(self, kind: str) -> _Accumulated:
        # masks without bbox, so that a mask's size class follows its own area; this is how the COCO server and detectron2 do it
        key, iou_type = {"box": ("bbox", "bbox"), "mask": ("segmentation", "segm")}[kind]
        wanted = ("image_id", "category_id", "score", key)
        given = (self._found[image_id].rows for image_id in self._sizes if image_id in self._found)
        rows = [{name: row[name] for name in wanted} for of_image in given for row in of_image]
        truth = self._truth_as_coco()
        evaluation = hotcoco.COCOeval(truth, truth.load_res(rows), iou_type, lvis_style=self.federated)
        evaluation.params.img_ids = list(self._sizes)
        evaluation.params.cat_ids = sorted(self.truth.categories.ids)
        evaluation.params.max_dets = self._limits
        evaluation.evaluate()
        evaluation.accumulate()
        assert evaluation.eval is not None
        order = np.argsort(np.argsort(self.truth.categories.ids))  # of each class, its place among the sorted ids
        return _Accumulated(evaluation.eval["precision"][..., -1][:, :, order], evaluation.eval["recall"][:, order])

    def _codes(self, record: TruthRecord) -> list[dict[str, Any]]:
        """Run-length code of each object in an image."""
        if record.image_id not in self._truth_codes:
            self._truth_codes[record.image_id] = [found.mask.to_coco() for found in record.objects]
        return self._truth_codes[record.image_id]

    def _truth_as_coco(self) -> hotcoco.COCO:
        images, annotations = [], []
        for record in self.truth.records:
            height, width = record.size
            images.append({"id": record.image_id, "height": height, "width": width})
            if self.federated:
                for name in ("neg_category_ids", "not_exhaustive_category_ids"):
                    images[-1][name] = list(getattr(record, name))
            for found, code in zip(record.objects, self._codes(record), strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # ours: pycocotools takes a match with id 0 for none
                        "image_id": record.image_id,
                        "category_id": self.truth.categories[found.class_].id,
                        "iscrowd": int(found.is_crowd),
                        "area": found.area,
                        "bbox": _coco_box(found.box),
                        "segmentation": code,
                    }
                )
        return hotcoco.COCO({"images": images, "annotations": annotations, "categories": self.truth.categories.to_coco()})

    def _match_image(self, record: TruthRecord, kind: str, builder: MatchesBuilder) -> None:
        objects = list(record.objects)
        truths = np.array([found.class_ for found in objects], np.int64)
        rows, classes, scores = self._counted(record.image_id)
        segments = self._found[record.image_id].segments if rows else None
        present = set(truths.tolist())
        ids = self.truth.categories.ids
        open_ended = set()
        found_classes = set(classes.tolist())
        if self.federated:
            negative = set(getattr(record, "neg_category_ids"))  # noqa: B009
            found_classes = {class_ for class_ in found_classes if class_ in present or ids[class_] in negative}
            open_ended = set(getattr(record, "not_exhaustive_category_ids"))  # noqa: B009
        for class_ in sorted(present | found_classes):
            chosen = np.flatnonzero(classes == class_)
            chosen = chosen[np.argsort(-scores[chosen], kind="stable")][: self.max_detections]
            places = np.flatnonzero(truths == class_).tolist()
            own = [objects[index] for index in places]
            is_crowd = np.array([found.is_crowd for found in own], np.bool_)
            if kind == "box":
                boxes = [rows[index]["bbox"] for index in chosen]
                ious = box_overlaps(boxes, [_coco_box(found.box) for found in own], is_crowd)
                areas = np.array([width * height for _, _, width, height in boxes], np.float64)
            else:
                masks = [segments.rles[index] for index in chosen] if segments is not None else []
                codes = [rows[index]["segmentation"] for index in chosen]
                ious = mask_overlaps(codes, [self._codes(record)[index] for index in places], is_crowd)
                areas = np.array([mask.area for mask in masks], np.float64)
                if kind == "boundary":
                    assert self.boundary is not None
                    ious = boundary_overlaps(masks, [found.mask for found in own], is_crowd, ious, self.boundary)
            object_areas = np.array([found.area for found in own], np.float64)
            bits, counts = match(ious, areas, object_areas, is_crowd, all_annotated=ids[class_] not in open_ended)
            builder.add(record.image_id, class_, scores[chosen], bits, counts)

    def _counted(self, image_id: int) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
        """COCO results, classes and scores of one image."""
        if image_id not in self._found:
            return [], np.zeros(0, np.int64), np.zeros(0)
        found = self._found[image_id]
        return found.rows, found.segments.classes, found.segments.scores.astype(np.float64)


def _summary(result: _Accumulated, limits: Sequence[int], groups: dict[str, list[int]]) -> dict[str, float | None]:
    """`METRICS`, AP of groups of classes, and the average recalls."""
    precision, recall = result.precision, result.recall
    values = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0], *(precision[..., area] for area in (1, 2, 3))]
    return {
        **{metric: stated_mean(value) for metric, value in zip(METRICS, values, strict=True)},
        **{group: stated_mean(precision[:, :, classes, 0]) for group, classes in groups.items()},
        **{f"AR{limit}": stated_mean(recall[:, :, 0, index]) for index, limit in enumerate(limits)},
        **{f"AR{name[0]}": stated_mean(recall[:, :, area, -1]) for area, name in enumerate(AREAS) if area > 0},
    }


def _curves(precision: Float64[np.ndarray, "thresholds recalls"]) -> dict[str, list[float]]:
    return {"AP": precision.mean(axis=0).tolist(), "AP50": precision[0].tolist(), "AP75": precision[5].tolist()}


def _coco_box(box: tuple[float, float, float, float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")


def format_table(result: dict[str, Any], max_detections: int = 100, *, federated: bool = False) -> str:
    """What `AveragePrecision.compute` gives, as lines to print: percent, with a dash where there is nothing to find.

    The last column is AR of all areas; a number of detections other than COCO's 100 is stated in a line of its own.
    """
    kinds = [kind for kind in KINDS if kind in result]
    metrics = [name for name in (*METRICS, *BY_FREQUENCY, f"AR{max_detections}") if name in result[kinds[0]]]
    each = "each image" if federated else "each image and class"
    lines = [f"the {max_detections} best-scored detections of {each} count"] if federated or max_detections != 100 else []
    lines += ["".join([f"{'':<8}", *(f"{metric:>8}" for metric in metrics)])]
    lines += ["".join([f"{kind:<8}", *(_percent(result[kind][metric]) for metric in metrics)]) for kind in kinds]
    per_class = result["per_class"]
    width = max([len("class"), *map(len, per_class)]) + 2
    lines += ["", "".join([f"{'class':<{width}}", *(f"{f'{kind} AP':>{_column(kind)}}" for kind in kinds)])]
    for name, row in per_class.items():
        lines.append("".join([f"{name:<{width}}", *(f"{_percent(row[kind]):>{_column(kind)}}" for kind in kinds)]))
    return "\n".join(lines)


def _column(kind: str) -> int:
    return max(8, len(kind) + 4)  # " AP" and a space before


def _percent(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{100 * value:8.2f}"
