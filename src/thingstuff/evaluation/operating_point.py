"""Where a user would cut: the score at which precision and recall balance best, and how good each image is there.

AP judges a ranking and needs no cut; counts, confusion and pictures do.
"""

from dataclasses import dataclass

import numpy as np

from thingstuff.evaluation.matching import THRESHOLDS, Matches


def best_score(matches: Matches) -> float:
    """The score from which on counting predictions gives the highest F1 at IoU 0.5, all classes together; 0 when none matches."""
    order = np.argsort(-matches.scores, kind="stable")
    scores = matches.scores[order]
    hits, misses = (outcome[0, order] for outcome in matches.outcomes)
    positives, negatives = hits.cumsum(), misses.cumsum()
    if not len(scores) or positives[-1] == 0:
        return 0.0
    f1 = 2 * positives / (positives + negatives + matches.truths[0].sum())
    f1[:-1][scores[1:] == scores[:-1]] = -1  # a cut can't divide equal scores
    return float(scores[f1.argmax()])


@dataclass(frozen=True)
class ImageSummary:
    """One image at a score."""

    tp: int  # at IoU 0.5
    fp: int
    fn: int
    quality: float | None  # F1, mean over the IoU thresholds 0.50 to 0.95; None where there is nothing to find and nothing found


def image_summaries(matches: Matches, score: float) -> dict[int, ImageSummary]:
    """Each image when predictions of at least `score` count."""
    images = len(matches.image_ids)
    truths = matches.truths[0].sum(axis=1)
    counted = matches.scores >= score
    hits, misses = (
        np.stack([np.bincount(matches.images[row & counted], minlength=images) for row in outcome])
        for outcome in matches.outcomes
    )
    whole = hits + misses + truths
    f1 = np.divide(2 * hits, whole, out=np.zeros(hits.shape), where=whole > 0)
    summaries = {}
    for position, image_id in enumerate(matches.image_ids):
        tp, fp, truth = int(hits[0, position]), int(misses[0, position]), int(truths[position])
        quality = float(f1[:, position].sum() / len(THRESHOLDS)) if whole[0, position] else None
        summaries[image_id] = ImageSummary(tp, fp, truth - tp, quality)
    return summaries
