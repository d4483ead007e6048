"""Two reports side by side: common images, the same draws for both, and no interval where images are too few."""

from typing import Any

import numpy as np
import pytest

from thingstuff.errors import EvaluationError
from thingstuff.evaluation.bootstrap import PanopticCounts, SemanticCounts
from thingstuff.evaluation.comparison import compare, format_comparison, intervals
from thingstuff.evaluation.report import render_comparison


def report(tp: list[int], rare: int = 0, ids: list[int] | None = None) -> dict[str, Any]:
    """Images with 10 true lamps each, of which so many are found exactly; `rare` images have an owl, too, that is found."""
    ids = ids or list(range(1, len(tp) + 1))
    counts = np.zeros((len(tp), 2, 4))
    for image, found in enumerate(tp):
        counts[image, 0] = found, 0, 10 - found, found
        counts[image, 1] = (1, 0, 0, 1) if image < rare else 0
    per_image = {"image_ids": ids, "names": [f"{id_}.png" for id_ in ids], "quality": [found / 10 for found in tp]}
    per_image["pq"] = PanopticCounts(tuple(ids), (True, True), counts).to_json()
    return {"format": 1, "data": "d", "images": len(tp), "pq": {}, "per_class": {"lamp": {}, "owl": {}}, "per_image": per_image}


def row_of(comparison: dict[str, Any], name: str, part: str = "metrics") -> dict[str, Any]:
    return next(row for row in comparison[part] if row["name"] == name)


def test_what_is_hard_for_both_cancels_out():
    hard = [1, 9, 2, 8, 1, 9, 3, 7, 2, 8]
    comparison = compare(report(hard), report([found + 1 for found in hard]), samples=200)
    row = row_of(comparison, "PQ")
    # 50 of 100 found: 50 / (50 + 25) = 2/3; 60 of 100: 60 / (60 + 20) = 3/4
    assert (row["a"], row["b"]) == (pytest.approx(2 / 3), pytest.approx(3 / 4))
    assert row["low"] > 0  # surely better, although the ranges of the two overlap by far
    assert row["better"] == 1
    assert intervals(report(hard), samples=200)["pq"]["pq"][1] > 0.75
    assert " *" in format_comparison(comparison)


def test_class_maps_are_compared_by_their_pixels():
    def of_pixels(right: list[int]) -> dict[str, Any]:
        """Images of 10 pixels of lamp, of which so many are found and the rest taken for owl."""
        confusions = [np.array([[found, 10 - found, 0], [0, 0, 0]]) for found in right]
        ids = tuple(range(len(right)))
        values = report(right, ids=list(ids))
        values["per_image"] |= {"pq": None, "semantic": SemanticCounts.of_confusions(ids, confusions, 2).to_json()}
        return {**values, "pq": None, "semantic": {}}

    comparison = compare(of_pixels([1, 9, 2, 8, 5, 5]), of_pixels([2, 10, 3, 9, 6, 6]), samples=100)
    assert comparison["task"] == "semantic"
    row = row_of(comparison, "pixel accuracy")
    assert (row["a"], row["b"]) == (pytest.approx(30 / 60), pytest.approx(36 / 60))
    assert row["low"] > 0
    lamp, owl = comparison["per_class"]
    assert (lamp["a"], lamp["b"]) == (pytest.approx(0.5), pytest.approx(0.6))
    assert owl["low"] is None  # in no image
    assert "IoU, from the largest gain" in render_comparison(comparison)
    with pytest.raises(EvaluationError, match="one report is of semantic, the other of panoptic"):
        compare(of_pixels([1]), report([1]))


def test_only_images_of_both_count():
    comparison = compare(report([5, 5, 5], ids=[1, 2, 3]), report([5, 5, 9], ids=[1, 2, 4]), samples=50)
    assert comparison["images"] == 2
    assert row_of(comparison, "PQ")["difference"] == 0


def test_a_class_in_few_images_has_a_difference_and_no_interval():
    comparison = compare(report([5] * 6, rare=4), report([6] * 6, rare=4), samples=50)
    assert row_of(comparison, "owl", "per_class")["difference"] == 0
    assert row_of(comparison, "owl", "per_class")["low"] is None
    assert row_of(comparison, "lamp", "per_class")["low"] is not None


def test_two_images_say_little_and_one_says_nothing():
    row = row_of(compare(report([5, 6]), report([6, 9]), samples=50), "PQ")
    # more is found in both, but of two images Student's t has its quantiles at 12.7 standard errors
    assert row["low"] < 0 < row["difference"] < row["high"]
    row = row_of(compare(report([5]), report([6]), samples=50), "PQ")
    assert row["difference"] > 0
    assert row["low"] is None
    assert intervals(report([5]), samples=50)["pq"] == {}


def test_a_figure_that_one_run_lacks_has_no_difference():
    row = row_of(compare(report([5] * 6), report([6] * 6), samples=50), "PQ of stuff")
    assert (row["a"], row["difference"], row["low"]) == (None, None, None)


def test_images_that_changed_most_are_named_gains_first():
    changed = compare(report([5, 5, 5, 5]), report([6, 9, 5, 1]), samples=10)["changed"]
    assert [row["name"] for row in changed] == ["2.png", "1.png", "4.png"]


def test_the_same_reports_give_the_same_digits():
    a, b = report([1, 5, 9, 4]), report([2, 5, 9, 3])
    assert compare(a, b, samples=30) == compare(a, b, samples=30)


def test_reports_of_other_classes_are_refused():
    with pytest.raises(EvaluationError, match="different classes"):
        compare(report([5]), {**report([5]), "per_class": {"lamp": {}}})
