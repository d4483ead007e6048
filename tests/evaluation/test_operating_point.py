"""The score at which a user would cut, and images there."""

import numpy as np

from thingstuff.evaluation.matching import Matches
from thingstuff.evaluation.operating_point import best_score, image_summaries

EVERY = 1023  # matched at all ten thresholds
HALF = 31  # at 0.50 to 0.70


def of_one_class(rows: list[tuple[int, float, int]], objects: list[int]) -> Matches:
    """Rows of (image, score, matched bits), by descending score."""
    images, scores, bits = zip(*rows, strict=True) if rows else ((), (), ())
    matched = np.array(bits, np.uint16)[None].repeat(4, axis=0)
    return Matches(
        tuple(range(len(objects))),
        np.array(objects, np.int64)[None, :, None].repeat(4, axis=0),
        np.array(images, np.int32),
        np.zeros(len(rows), np.int32),
        np.zeros(len(rows), np.int32),
        np.array(scores, np.float64),
        matched,
        np.zeros_like(matched),
    )


def test_the_best_score_balances_precision_and_recall():
    # F1 from 0.9: 2/(1+2) = 0.67; from 0.7: 4/(2+2) = 1; from 0.3: 4/(3+2) = 0.8
    assert best_score(of_one_class([(0, 0.9, EVERY), (0, 0.7, EVERY), (0, 0.3, 0)], [2])) == 0.7


def test_equal_scores_are_cut_together():
    # from 0.9: 2/(1+1) with the first alone, but a cut at 0.9 takes both: 2/(2+1)
    assert best_score(of_one_class([(0, 0.9, EVERY), (0, 0.9, 0), (0, 0.2, 0)], [1])) == 0.9


def test_without_any_match_every_prediction_counts():
    assert best_score(of_one_class([(0, 0.9, 0)], [1])) == 0
    assert best_score(of_one_class([], [1])) == 0


def test_an_image_has_its_counts_and_its_mean_f1():
    found = image_summaries(of_one_class([(0, 0.9, HALF), (1, 0.8, EVERY), (1, 0.6, 0), (1, 0.1, EVERY)], [1, 2, 0]), 0.5)
    assert (found[0].tp, found[0].fp, found[0].fn, found[0].quality) == (1, 0, 0, 0.5)  # matched at 5 of 10 thresholds
    assert (found[1].tp, found[1].fp, found[1].fn, found[1].quality) == (1, 1, 1, 0.5)  # 2 / (2 + 1 + 1)
    assert found[2].quality is None
