"""Panoptic quality against what panopticapi itself gave for 64 hard images, stored in tests/reference/panopticapi-pq."""

import json
from pathlib import Path

import pytest

from thingstuff.data.panoptic import pairs, read_panoptic, read_panoptic_predictions
from thingstuff.evaluation.panoptic_quality import PanopticQuality

CASE = Path(__file__).parents[1] / "reference" / "panopticapi-pq"

# panopticapi adds IoUs one after another in floating point, we add them exactly: some 25 IoUs below 1 may differ by a few units
# of the last place, and nothing else may
ROUNDING = 1e-14


@pytest.fixture(scope="module")
def expected():
    return json.loads((CASE / "result.json").read_text())


@pytest.fixture(scope="module")
def measured():
    truth = read_panoptic(CASE / "truth.json")
    quality = PanopticQuality(truth.categories)
    images = list(quality.update_many(pairs(read_panoptic_predictions(CASE / "prediction.json", truth.categories), truth)))
    return truth, quality, images


def test_groups_equal_panopticapi(measured, expected):
    _, quality, _ = measured
    result = quality.compute()
    for group, values in expected["groups"].items():
        assert result[group]["n"] == values["n"]
        for measure in ("pq", "sq", "rq"):
            assert result[group][measure] == pytest.approx(values[measure], abs=ROUNDING)


def test_counts_of_every_class_equal_panopticapi(measured, expected):
    truth, quality, _ = measured
    per_class = quality.compute()["per_class"]
    assert len(expected["per_class"]) == len(truth.categories)
    for category in truth.categories:
        ours, theirs = per_class[category.name], expected["per_class"][str(category.id)]
        assert {key: ours[key] for key in ("tp", "fp", "fn")} == {key: theirs[key] for key in ("tp", "fp", "fn")}
        assert ours["iou_sum"] == pytest.approx(theirs["iou_sum"], abs=ROUNDING)


def test_counts_of_every_image_equal_panopticapi(measured, expected):
    truth, _, images = measured
    rows = expected["per_image"]["rows"]
    assert len(images) == len(rows) == 64
    for image, row in zip(images, rows, strict=True):
        ours = {str(truth.categories.ids[class_]): list(counts) for class_, counts in image.per_class.items()}
        assert ours.keys() == row.keys()
        for category_id, counts in row.items():
            assert ours[category_id][:3] == counts[:3]
            assert ours[category_id][3] == pytest.approx(counts[3], abs=ROUNDING)


def test_another_crowd_rule_gives_other_numbers_here(measured, expected):
    # image 34 has two crowds of one class: without it the case would not show what last_crowd_only does
    truth, _, _ = measured
    quality = PanopticQuality(truth.categories, last_crowd_only=False)
    list(quality.update_many(pairs(read_panoptic_predictions(CASE / "prediction.json", truth.categories), truth)))
    assert quality.compute()["All"]["pq"] > expected["groups"]["All"]["pq"]
