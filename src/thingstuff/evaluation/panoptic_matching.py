"""Which segments of one image match, for panoptic quality (Kirillov et al., 2019, arXiv:1801.00868, sections 4.1 and 4.2).

two id maps -> pixels shared by each pair of segments -> IoU of pairs of one class -> matches, spurious, missed, ignored

Pixels are counted once, over both maps together: on a processor by pieces in which neither map changes, which in photos are
dozens of times fewer than pixels; on a GPU pixel by pixel, where the maps lie. Nothing is done segment by segment.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer, UInt8

from thingstuff.errors import ConfigError, EvaluationError
from thingstuff.ops.boundary import boundary_of_segments
from thingstuff.structures.panoptic import VOID, ColouredMap, PanopticMap, ids_of_colours, position_of

DENSE_CELLS = 1 << 20  # pairs of segments up to which the shared pixels are counted in one table
OTHER = -1  # the id given to what is neither void nor boundary


@dataclass(frozen=True)
class Rules:
    """How segments are compared; what each means is said at `PanopticQuality`."""

    last_crowd_only: bool = True
    stated_areas: bool = True
    refuse_broken_truth: bool = True
    boundary: float | None = None

    def __post_init__(self) -> None:
        if self.boundary is not None and not 0 < self.boundary <= 1:
            raise ConfigError(
                f"boundary is the width of boundaries as a share of the image's diagonal, above 0 and at most 1, "
                f"got {self.boundary}"
            )


class ClassCounts(NamedTuple):
    """What one class did in one image."""

    tp: int
    fp: int
    fn: int
    iou_sum: float  # of the matches


class Match(NamedTuple):
    """One pair of segments, by their places in the prediction and in the truth."""

    prediction: int
    truth: int
    iou: float  # above 0.5; the lesser of mask and boundary IoU where boundaries are asked for


@dataclass(frozen=True)
class ImageQuality:
    """One image's share of panoptic quality. Segments go by their place (from 0) in the `PanopticMap` or `Segments` given."""

    image_id: int | str | None
    per_class: dict[int, ClassCounts]  # class -> counts; classes that neither side has are left out
    matches: list[Match]
    matched_classes: list[int]  # of each match
    false_positives: list[int]  # predictions that match nothing
    false_negatives: list[int]  # truths that nothing matches
    ignored: list[int]  # predictions that match nothing and lie mostly on void or on a crowd of their class

    @property
    def pq(self) -> float | None:
        """Mean PQ of the classes in this image; None where nothing counts."""
        qualities = [counts.iou_sum / (counts.tp + counts.fp / 2 + counts.fn / 2) for counts in self.per_class.values()]
        return sum(qualities) / len(qualities) if qualities else None


class Overlaps(NamedTuple):
    """Pixels shared by truth and prediction. Index 0 is void, k + 1 segment k, the last one ids that are not listed."""

    truth: Int64[np.ndarray, " pairs"]  # index of each pair that shares a pixel; pairs are sorted
    prediction: Int64[np.ndarray, " pairs"]
    pixels: Int64[np.ndarray, " pairs"]


def match_segments(
    prediction: PanopticMap,
    truth: PanopticMap,
    prediction_classes: Int64[np.ndarray, " predicted"],
    truth_classes: Int64[np.ndarray, " annotated"],
    rules: Rules,
    image_id: int | str | None = None,
) -> ImageQuality:
    """Pair the segments of one image: of one class, with IoU > 0.5, void pixels of the truth left out of the union.

    Such a pair is unique, so nothing is ranked. A prediction that matches nothing and has more than half of its pixels on void
    or on a crowd of its class is ignored. The classes are given apart, as the caller numbers them.

    Raises:
        EvaluationError: the maps differ in size; or one contradicts its list of segments. Image and segment are named.
    """
    where = "the image" if image_id is None else f"image {image_id}"
    if prediction.size != truth.size:
        raise EvaluationError(
            f"{where}: the prediction has height and width {prediction.size}, the ground truth {truth.size}; "
            "resize the prediction to the image, without mixing ids"
        )
    shared = shared_pixels(truth, prediction)
    truth_areas = np.bincount(shared.truth, shared.pixels, len(truth) + 2).astype(np.int64)
    areas = np.bincount(shared.prediction, shared.pixels, len(prediction) + 2).astype(np.int64)
    _check_painted(prediction, areas, f"{where}: predicted")
    if rules.refuse_broken_truth:
        _check_painted(truth, truth_areas, f"{where}: ground truth")
    if rules.stated_areas and truth.areas is not None:
        truth_areas[1:-1] = np.where(truth.areas < 0, truth_areas[1:-1], truth.areas)

    # classes and crowds by index: void and unlisted ids belong to none
    truth_class, class_ = np.full(len(truth_areas), -1), np.full(len(areas), -2)
    truth_class[1:-1], class_[1:-1] = truth_classes, prediction_classes
    crowd = np.zeros(len(truth_areas), np.bool_)
    crowd[1:-1] = truth.crowd
    on_void = _per_prediction(shared, shared.truth == 0, len(areas))
    alike = truth_class[shared.truth] == class_[shared.prediction]

    pairs = np.flatnonzero(alike & ~crowd[shared.truth])
    of_truth, of_prediction, pixels = shared.truth[pairs], shared.prediction[pairs], shared.pixels[pairs]
    _check_stated(pixels, truth_areas[of_truth], truth.segment_ids[of_truth - 1], where)
    iou = pixels / (areas[of_prediction] + truth_areas[of_truth] - pixels - on_void[of_prediction])
    if rules.boundary is not None:
        iou = np.minimum(iou, _boundary_iou(prediction, truth, of_truth, of_prediction, rules.boundary))
    matched = iou > 0.5
    of_truth, of_prediction, iou = of_truth[matched], of_prediction[matched], iou[matched]

    absorbed = on_void
    if truth.crowd.any():
        absorbing = _last_of_class(crowd, truth_class) if rules.last_crowd_only else crowd
        absorbed = on_void + _per_prediction(shared, alike & absorbing[shared.truth], len(areas))
    is_ignored = 2 * absorbed > areas
    found, unmatched = np.ones(len(truth_areas), np.bool_), np.ones(len(areas), np.bool_)
    found[1:-1], found[of_truth] = crowd[1:-1], True
    unmatched[[0, -1]], unmatched[of_prediction] = False, False
    missed, spurious = np.flatnonzero(~found), np.flatnonzero(unmatched & ~is_ignored)
    return ImageQuality(
        image_id=image_id,
        per_class=_per_class(truth_class[of_truth], iou, class_[spurious], truth_class[missed]),
        matches=list(map(Match, (of_prediction - 1).tolist(), (of_truth - 1).tolist(), iou.tolist())),
        matched_classes=truth_class[of_truth].tolist(),
        false_positives=(spurious - 1).tolist(),
        false_negatives=(missed - 1).tolist(),
        ignored=(np.flatnonzero(unmatched & is_ignored) - 1).tolist(),
    )


def shared_pixels(truth: PanopticMap, prediction: PanopticMap) -> Overlaps:
    """The pixels of each pair of segments of two maps of one size; maps that came as colours are compared as colours."""
    if not (isinstance(truth, ColouredMap) and isinstance(prediction, ColouredMap)):
        return overlaps(truth.ids, prediction.ids, truth.segment_ids, prediction.segment_ids)
    ends, lengths = _pieces_of_colours(truth.colours, prediction.colours)
    truth_ids, prediction_ids = (
        ids_of_colours(one.colours.reshape(1, -1, 3).take(ends, axis=1)).ravel() for one in (truth, prediction)
    )
    return _count(truth_ids, prediction_ids, lengths, truth.segment_ids, prediction.segment_ids)


def overlaps(
    truth_ids: Integer[Any, "height width"],
    prediction_ids: Integer[Any, "height width"],
    truth_segments: Int64[np.ndarray, " annotated"],
    prediction_segments: Int64[np.ndarray, " predicted"],
) -> Overlaps:
    """Count the pixels of each pair of ids; on the GPU when one of the maps lies there."""
    assert tuple(truth_ids.shape) == tuple(prediction_ids.shape)
    if getattr(truth_ids, "is_cuda", False) or getattr(prediction_ids, "is_cuda", False):
        columns = len(prediction_segments) + 2
        cells = (len(truth_segments) + 2) * columns
        codes, pixels = _count_on_gpu(truth_ids, prediction_ids, truth_segments, prediction_segments, cells)
        return Overlaps(codes // columns, codes % columns, pixels.astype(np.int64))
    truth, prediction = _as_numpy(truth_ids).ravel(), _as_numpy(prediction_ids).ravel()
    ends, lengths = _pieces(truth, prediction)
    return _count(truth.take(ends), prediction.take(ends), lengths, truth_segments, prediction_segments)


def _count(
    truth_ids: Integer[np.ndarray, " pieces"],
    prediction_ids: Integer[np.ndarray, " pieces"],
    lengths: Int64[np.ndarray, " pieces"],
    truth_segments: Int64[np.ndarray, " annotated"],
    prediction_segments: Int64[np.ndarray, " predicted"],
) -> Overlaps:
    """The pixels of each pair of ids, of pieces that have one each."""
    columns = len(prediction_segments) + 2
    cells = (len(truth_segments) + 2) * columns
    codes = position_of(truth_ids, truth_segments)
    codes *= columns
    codes += position_of(prediction_ids, prediction_segments)
    if cells <= DENSE_CELLS:
        table = np.bincount(codes, lengths, minlength=cells)  # whole numbers below 2^53: exact as floats
        codes = np.flatnonzero(table)
        pixels = table[codes]
    else:
        codes, inverse = np.unique(codes, return_inverse=True)
        pixels = np.bincount(inverse, lengths, minlength=len(codes))
    return Overlaps(codes // columns, codes % columns, pixels.astype(np.int64))


def _pieces(
    truth: Integer[np.ndarray, " pixels"], prediction: Integer[np.ndarray, " pixels"]
) -> tuple[Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"]]:
    """Pieces in which neither map changes, where rows are laid end to end: the last pixel of each, and its pixels."""
    changes = np.ones(truth.size, np.bool_)  # the last pixel ends a piece; a map of no pixels has none
    changed = changes[:-1]
    np.not_equal(truth[1:], truth[:-1], out=changed)
    changed |= prediction[1:] != prediction[:-1]
    (ends,) = changes.nonzero()
    return ends, _lengths(ends)


def _pieces_of_colours(
    truth: UInt8[np.ndarray, "height width 3"], prediction: UInt8[np.ndarray, "height width 3"]
) -> tuple[Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"]]:
    """The same of colours, in passes over bytes, dozens of which a processor takes at once, and over pixels where they change."""
    last = truth.size - 3
    changes = np.empty(-(-truth.size // 24) * 24, np.uint8)  # of 8 pixels 24 bytes, or three numbers of 64 bits
    changes[last : last + 3], changes[last + 3 :] = 1, 0  # the last pixel ends a piece
    changed, before, after = changes[:last], slice(-3), slice(3, None)
    truth, prediction = truth.reshape(-1), prediction.reshape(-1)
    np.bitwise_xor(truth[after], truth[before], out=changed)
    changed |= prediction[after] ^ prediction[before]
    numbers = changes.view(np.uint64).reshape(-1, 3)
    (eights,) = ((numbers[:, 0] | numbers[:, 1] | numbers[:, 2]) != 0).nonzero()
    colours = changes.reshape(-1, 24).take(eights, axis=0).reshape(-1, 3)  # of the pixels of these eights alone
    (ends,) = ((colours[:, 0] | colours[:, 1] | colours[:, 2]) != 0).nonzero()
    ends = (eights.take(ends >> 3) << 3) + (ends & 7)
    return ends, _lengths(ends)


def _lengths(ends: Int64[np.ndarray, " pieces"]) -> Int64[np.ndarray, " pieces"]:
    lengths = ends.copy()
    lengths[1:] -= ends[:-1]
    lengths[:1] += 1  # pixels count from 0
    return lengths


def _count_on_gpu(truth_ids: Any, prediction_ids: Any, truth_segments: Any, prediction_segments: Any, cells: int) -> Any:
    """Codes of the pairs that occur, sorted, and their pixels, counted where the maps lie."""
    import torch

    device = prediction_ids.device if getattr(prediction_ids, "is_cuda", False) else truth_ids.device

    def positions(ids: Any, segment_ids: np.ndarray) -> Any:  # as position_of
        values = (torch.from_numpy(ids.astype(np.int64)) if isinstance(ids, np.ndarray) else ids).to(device, torch.int64).ravel()
        order = np.argsort(segment_ids)
        if len(order) == 0:
            return (values != VOID).long()
        in_order = torch.from_numpy(segment_ids[order]).to(device)
        index = torch.from_numpy(order + 1).to(device)
        place = torch.searchsorted(in_order, values).clamp_(max=len(order) - 1)
        return torch.where(in_order[place] == values, index[place], (values != VOID) * (len(order) + 1))

    codes = positions(truth_ids, truth_segments) * (len(prediction_segments) + 2) + positions(prediction_ids, prediction_segments)
    if cells <= DENSE_CELLS:
        table = torch.bincount(codes, minlength=cells).cpu().numpy()
        occurring = np.flatnonzero(table)
        return occurring, table[occurring]
    occurring, pixels = torch.unique(codes, return_counts=True)
    return occurring.cpu().numpy(), pixels.cpu().numpy()


def _as_numpy(ids: Any) -> np.ndarray:
    return ids if isinstance(ids, np.ndarray) else ids.detach().cpu().numpy()


def _per_prediction(shared: Overlaps, chosen: Bool[np.ndarray, " pairs"], count: int) -> Int64[np.ndarray, " indices"]:
    """Pixels that each prediction has in the chosen pairs."""
    return np.bincount(shared.prediction[chosen], shared.pixels[chosen], count).astype(np.int64)


def _last_of_class(crowd: Bool[np.ndarray, " indices"], classes: Int64[np.ndarray, " indices"]) -> Bool[np.ndarray, " indices"]:
    """Of the crowds of each class the one listed last."""
    last = np.zeros_like(crowd)
    positions = np.flatnonzero(crowd)[::-1]
    last[positions[np.unique(classes[positions], return_index=True)[1]]] = True
    return last


def _boundary_iou(
    prediction: PanopticMap,
    truth: PanopticMap,
    of_truth: Int64[np.ndarray, " pairs"],
    of_prediction: Int64[np.ndarray, " pairs"],
    share: float,
) -> Float64[np.ndarray, " pairs"]:
    """IoU of the boundary regions of pairs (Cheng et al., 2021, arXiv:2103.16562, section 4), void of the truth left out.

    As in the authors' tool, what is void stays void, whatever boundary of a prediction lies on it.
    """
    outlined = []
    for one in (truth, prediction):
        ids = one.ids.astype(np.int64) if isinstance(one.ids, np.ndarray) else one.ids.long().clone()  # copies either way
        ids[(ids != VOID) & ~boundary_of_segments(ids, share)] = OTHER
        outlined.append(ids)
    shared = overlaps(outlined[0], outlined[1], truth.segment_ids, prediction.segment_ids)
    columns = len(prediction) + 2
    truth_areas = np.bincount(shared.truth, shared.pixels, len(truth) + 2)
    areas = np.bincount(shared.prediction, shared.pixels, columns) - _per_prediction(shared, shared.truth == 0, columns)
    codes, wanted = shared.truth * columns + shared.prediction, of_truth * columns + of_prediction
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    pixels = np.where(codes[place] == wanted, shared.pixels[place], 0)
    return pixels / (truth_areas[of_truth] + areas[of_prediction] - pixels)


def _per_class(matched: Any, iou: Any, spurious: Any, missed: Any) -> dict[int, ClassCounts]:
    counts: dict[int, list[Any]] = {}
    for class_, value in zip(matched.tolist(), iou.tolist(), strict=True):
        of_class = counts.setdefault(class_, [0, 0, 0, 0.0])
        of_class[0] += 1
        of_class[3] += value
    for place, classes in ((1, spurious), (2, missed)):
        for class_ in classes.tolist():
            counts.setdefault(class_, [0, 0, 0, 0.0])[place] += 1
    return {class_: ClassCounts(*counts[class_]) for class_ in sorted(counts)}


def _check_painted(segments: PanopticMap, areas: Int64[np.ndarray, " indices"], where: str) -> None:
    """Every id of the map is listed and every listed one painted."""
    if areas[-1]:
        unlisted = segments.unlisted()
        more = f" (and {len(unlisted) - 1} more)" if len(unlisted) > 1 else ""
        raise EvaluationError(
            f"{where} segment {unlisted[0]}{more} is painted in the map but not listed; list it, or repaint it as void (0)"
        )
    if not areas[1:-1].all():
        unpainted = np.flatnonzero(areas[1:-1] == 0)
        more = f" (and {len(unpainted) - 1} more)" if len(unpainted) > 1 else ""
        raise EvaluationError(
            f"{where} segment {segments.segment_ids[unpainted[0]]}{more} is listed but has no pixel in the map; "
            "paint it or remove it"
        )


def _check_stated(
    pixels: Int64[np.ndarray, " pairs"], areas: Int64[np.ndarray, " pairs"], ids: Int64[np.ndarray, " pairs"], where: str
) -> None:
    """No segment shares more pixels with a prediction than it has; one could only by an area that its file misstates."""
    if (pixels > areas).any():
        pair = np.argmax(pixels > areas)
        raise EvaluationError(
            f"{where}: ground truth segment {ids[pair]} states an area of {areas[pair]} pixels and shares {pixels[pair]} "
            "with one prediction; correct the area, or count painted pixels (stated_areas=False)"
        )
