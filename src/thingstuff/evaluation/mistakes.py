"""What is wrong in one image: each spurious prediction and each missed object is given one kind of mistake.

pixels that predictions and objects share, which of them match -> a kind for each that doesn't -> rows to draw and to count

The kinds go back to TIDE (Bolya et al., 2020, arXiv:2008.08115, section 2.2), which knows boxes: its classification error is
our wrong class, its duplicate our duplicate, its background and its "both" our background, its missed our missed. What it calls
a localisation error is told apart here, since masks show why they don't fit: split, merged, or a coarse mask.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float64, Int64

KINDS = ("missed", "background", "duplicate", "wrong class", "split", "merged", "coarse mask")
NEAR = 0.1  # IoU from which a prediction stands for an object at all: TIDE's background threshold
HALF = 0.5  # of its pixels: a mask lies mostly in another


@dataclass(frozen=True)
class Mistake:
    """One row of what is wrong: a prediction, an object, or a pair of them, by their places in what was given."""

    kind: str  # one of KINDS
    prediction: int | None
    truth: int | None
    iou: float  # of the pair; where one stands alone, the highest that it reaches with any of the others


@dataclass(frozen=True)
class ImageMistakes:
    """What is wrong in one image. Every spurious prediction and every missed object has one kind.

    The rows say which belong together: three pieces of one object are three rows, and a prediction over two missed objects is
    two. An object that was found may stand in a row, too: beside its duplicates.
    """

    rows: list[Mistake]
    spurious: dict[int, str]  # prediction that matches nothing -> kind
    missed: dict[int, str]  # object that nothing matches -> kind
    matches: dict[int, int] = field(default_factory=dict)  # object -> the prediction that matches it

    def counts(self) -> dict[str, dict[str, int]]:
        """`{kind: {"count": rows, "spurious": predictions, "missed": objects}}`; the last two add up to all that is wrong."""
        rows, spurious = Counter(row.kind for row in self.rows), Counter(self.spurious.values())
        missed = Counter(self.missed.values())
        return {kind: {"count": rows[kind], "spurious": spurious[kind], "missed": missed[kind]} for kind in KINDS}

    def at(self, predictions: Sequence[int], objects: Sequence[int]) -> "ImageMistakes":
        """The same by other places: prediction k becomes `predictions[k]`, object k `objects[k]`."""
        return ImageMistakes(
            rows=[
                Mistake(
                    row.kind,
                    None if row.prediction is None else predictions[row.prediction],
                    None if row.truth is None else objects[row.truth],
                    row.iou,
                )
                for row in self.rows
            ],
            spurious={predictions[index]: kind for index, kind in self.spurious.items()},
            missed={objects[index]: kind for index, kind in self.missed.items()},
            matches={objects[index]: predictions[found] for index, found in self.matches.items()},
        )


@dataclass(frozen=True, eq=False)
class Scene:
    """The predictions and objects of one image that count: without what is ignored, and without crowds."""

    shared: Float64[np.ndarray, "predictions objects"]  # pixels
    ious: Float64[np.ndarray, "predictions objects"]
    areas: Float64[np.ndarray, " predictions"]  # pixels
    object_areas: Float64[np.ndarray, " objects"]  # pixels
    classes: Int64[np.ndarray, " predictions"]
    object_classes: Int64[np.ndarray, " objects"]
    found_by: Int64[np.ndarray, " objects"]  # the prediction that matches each object, -1 where it is missed
    close: Bool[np.ndarray, "predictions objects"]  # IoU high enough for a match, were the classes equal
    nested: Float64[np.ndarray, "predictions predictions"]  # how much of the first lies in the second, 0..1


def find_mistakes(scene: Scene) -> ImageMistakes:
    """Give a kind to each prediction that matches nothing, then to each object that nothing matches.

    A spurious prediction is, by the first that holds:
    - duplicate: the object it overlaps most is of its class and found already, with an IoU high enough for a match; or it lies
      mostly (by half of its pixels or more) in the prediction that found the object it stands for;
    - wrong class: the object it overlaps most has another class, with an IoU high enough for a match;
    - merged: it covers half or more of two objects of its class or several;
    - split: it lies mostly in an object of its class, in which another prediction of the class lies mostly, too, or which
      another one found, and neither of the two lies mostly in the other;
    - coarse mask: it stands for an object of its class, that is with an IoU of 0.1 or more or lying mostly in it;
    - background: it stands for no object of its class.

    A prediction stands for a missed object rather than for one that was found, then for that of highest IoU. A missed object
    has the kind of the prediction of highest IoU among those that are wrong about it; without one it is merged when a
    prediction that found another object of its class covers half or more of it, and missed otherwise.
    """
    same = scene.classes[:, None] == scene.object_classes
    inside = scene.shared / np.maximum(scene.areas, 1)[:, None]
    covered = scene.shared / np.maximum(scene.object_areas, 1)
    is_spurious = np.ones(len(scene.classes), np.bool_)
    is_spurious[scene.found_by[scene.found_by >= 0]] = False
    parts = _Parts(scene, same & (inside >= HALF), same & (covered >= HALF), same & ((scene.ious >= NEAR) | (inside >= HALF)))
    rows = [row for prediction in np.flatnonzero(is_spurious).tolist() for row in _rows_of(prediction, is_spurious, parts)]
    spurious = {row.prediction: row.kind for row in rows if row.prediction is not None}

    missed: dict[int, str] = {}
    blamed: dict[int, Mistake] = {}
    for row in rows:
        if row.truth is not None and (row.truth not in blamed or row.iou > blamed[row.truth].iou):
            blamed[row.truth] = row
    for index in np.flatnonzero(scene.found_by < 0).tolist():
        if index in blamed:
            missed[index] = blamed[index].kind
            continue
        over = np.flatnonzero(parts.covers[:, index] & ~is_spurious)
        kind, prediction, iou = "missed", None, float(scene.ious[:, index].max(initial=0.0))
        if len(over):
            prediction = int(over[scene.ious[over, index].argmax()])
            kind, iou = "merged", float(scene.ious[prediction, index])
        missed[index] = kind
        rows.append(Mistake(kind, prediction, index, iou))
    found = np.flatnonzero(scene.found_by >= 0).tolist()
    return ImageMistakes(rows, spurious, missed, {index: int(scene.found_by[index]) for index in found})


@dataclass(frozen=True, eq=False)
class _Parts:
    """How predictions and objects of one class lie in each other."""

    scene: Scene
    lies_in: Bool[np.ndarray, "predictions objects"]
    covers: Bool[np.ndarray, "predictions objects"]
    stands_for: Bool[np.ndarray, "predictions objects"]


def _rows_of(prediction: int, is_spurious: Bool[np.ndarray, " predictions"], parts: _Parts) -> list[Mistake]:
    """The rows of one spurious prediction, all of one kind."""
    scene = parts.scene
    ious, missed = scene.ious[prediction], scene.found_by < 0

    def row(kind: str, index: int) -> Mistake:
        return Mistake(kind, prediction, index, float(ious[index]))

    near = np.flatnonzero(scene.close[prediction])
    if len(near):
        best = int(near[ious[near].argmax()])
        return [row("duplicate" if scene.object_classes[best] == scene.classes[prediction] else "wrong class", best)]
    covered = np.flatnonzero(parts.covers[prediction])
    if len(covered) >= 2:
        chosen = covered[missed[covered]] if missed[covered].any() else covered[[ious[covered].argmax()]]
        return [row("merged", index) for index in chosen.tolist()]
    candidates = np.flatnonzero(parts.stands_for[prediction])
    if len(candidates) == 0:
        return [Mistake("background", prediction, None, float(ious.max(initial=0.0)))]
    order = np.lexsort((scene.shared[prediction, candidates], ious[candidates], missed[candidates]))
    best = int(candidates[order[-1]])
    lies_in = bool(parts.lies_in[prediction, best])
    if not missed[best]:
        finder = int(scene.found_by[best])
        if scene.nested[prediction, finder] >= HALF:
            return [row("duplicate", best)]
        return [row("split" if lies_in and scene.nested[finder, prediction] < HALF else "coarse mask", best)]
    others = np.flatnonzero(parts.lies_in[:, best] & is_spurious).tolist() if lies_in else []
    mutual = np.maximum(scene.nested[prediction], scene.nested[:, prediction])
    apart = [other for other in others if other != prediction and mutual[other] < HALF]
    return [row("split" if apart else "coarse mask", best)]
