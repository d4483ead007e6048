"""Bootstrap draws of average precision and panoptic quality, and their intervals."""

import json

import numpy as np
import pytest

from thingstuff.errors import EvaluationError
from thingstuff.evaluation import bootstrap
from thingstuff.evaluation.bootstrap import (
    PanopticCounts,
    SemanticCounts,
    average_precisions,
    draw_images,
    interval,
    panoptic_qualities,
    semantic_qualities,
    weights_of,
)
from thingstuff.evaluation.matching import Matches, average_precision_of
from thingstuff.evaluation.semantic import SemanticQuality
from thingstuff.structures.categories import Categories


def made_up(images: int = 12, classes: int = 3, detections: int = 80) -> Matches:
    """Matches as an evaluation leaves them: by class, then descending score; the last class has no object."""
    rng = np.random.default_rng(3)
    truths = np.zeros((4, images, classes), np.int64)
    truths[:, :, :-1] = rng.integers(0, 4, (images, classes - 1))
    of_class, scores = np.sort(rng.integers(0, classes, detections)), rng.random(detections).round(2)
    order = np.lexsort((-scores, of_class))
    matched = ((1 << rng.integers(0, 11, detections)) - 1).astype(np.uint16)
    ignored = np.where(rng.random(detections) < 0.1, matched, 0).astype(np.uint16)
    return Matches(
        tuple(range(100, 100 + images)),
        truths,
        rng.integers(0, images, detections).astype(np.int32),
        of_class[order].astype(np.int32),
        np.zeros(detections, np.int32),
        scores[order],
        matched[None].repeat(4, axis=0),
        ignored[None].repeat(4, axis=0),
    )


@pytest.mark.parametrize("cells", [bootstrap.CELLS, 100])  # all draws at once, and few at a time
def test_many_draws_at_once_give_what_each_gives_alone(monkeypatch, cells):
    monkeypatch.setattr(bootstrap, "CELLS", cells)
    matches = made_up()
    weights = draw_images(12, samples=9)
    drawn = average_precisions(matches, weights)
    for position, row in enumerate(weights.astype(int)):
        alone = average_precision_of(matches, np.repeat(matches.image_ids, row))
        for name, value in alone.items():  # sums in another order differ in the last digits
            assert drawn.overall[name][position] == pytest.approx(value, abs=1e-12)


def test_a_class_without_objects_has_no_value_in_any_draw():
    drawn = average_precisions(made_up(), draw_images(12, samples=5))
    assert np.isnan(drawn.per_class[:, -1]).all()
    assert not np.isnan(drawn.per_class[:, 0]).any()


def test_a_draw_has_as_many_images_and_the_same_seed_gives_the_same():
    draws = draw_images(7, samples=20, seed=5)
    assert (draws.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(draws, draw_images(7, samples=20, seed=5))
    assert (draws != draw_images(7, samples=20, seed=6)).any()


def test_the_interval_is_the_middle_95_percent_where_draws_lie_evenly():
    assert interval(np.arange(1001.0), 500.0, images=10**9) == pytest.approx((25.0, 975.0))


def test_the_interval_moves_to_where_the_estimate_lies():
    # half of the draws are below 500, which is 300 more than the estimate
    assert interval(np.arange(1001.0), 200.0, images=10**9) == pytest.approx((-275.0, 675.0))


def test_the_interval_of_few_images_is_wider():
    # square root of 8 / 7, times the quantile of Student's t with 7 degrees of freedom by that of the normal distribution
    wider = (8 / 7) ** 0.5 * 2.36462 / 1.95996
    assert interval(np.arange(1001.0), 500.0, images=8) == pytest.approx((500 - 475 * wider, 500 + 475 * wider), rel=1e-4)


def test_one_image_has_no_interval():
    assert interval(np.arange(1001.0), 500.0, images=1) is None


@pytest.mark.parametrize("name", ["pq", "sq", "rq"])
def test_intervals_hold_what_they_promise_where_most_classes_are_rare(name):
    # a world of images, three classes in most of them and fifty in a few; sets of 60 are judged, and each gives its interval
    rng = np.random.default_rng(0)
    presence = np.concatenate((np.full(3, 0.7), rng.uniform(0.005, 0.05, 50)))
    skill = rng.uniform(0.2, 0.9, 53)
    segments = (rng.random((400, 53)) < presence) * rng.integers(1, 4, (400, 53))
    found = rng.binomial(segments, skill)
    missed = segments - found
    world = np.stack((found, missed, missed, found * rng.uniform(0.6, 0.95, (400, 53))), axis=-1)

    def figures(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
        counted = PanopticCounts(tuple(range(len(images))), (True,) * 53, world[images])
        return panoptic_qualities(counted, weights).overall[name]

    sets = rng.integers(0, 400, (300, 60))
    judged = np.array([figures(images, np.ones((1, 60)))[0] for images in sets])
    held = 0
    for images, estimate in zip(sets[:100], judged, strict=False):
        reach = interval(figures(images, draw_images(60, 200)), float(estimate), 60)
        assert reach is not None
        held += reach[0] <= judged.mean() <= reach[1]
    assert held >= 85  # of 100: near 95, as good as draws of 60 images know


def test_intervals_of_eight_images_hold_nearly_what_they_promise():
    # one class, of which each image has 1 to 5 segments, in hard and in easy images
    rng = np.random.default_rng(0)
    segments = rng.integers(1, 6, 2000)
    found = rng.binomial(segments, rng.beta(4, 2, 2000))
    world = np.stack((found, segments - found, segments - found, 0.8 * found), axis=-1)[:, None]

    def quality(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return panoptic_qualities(PanopticCounts(tuple(range(8)), (True,), world[images]), weights).overall["pq"]

    sets = rng.integers(0, 2000, (300, 8))
    judged = np.array([quality(images, np.ones((1, 8)))[0] for images in sets])
    reaches = [interval(quality(images, draw_images(8, 200)), float(own), 8) for images, own in zip(sets, judged, strict=True)]
    held = sum(reach is not None and reach[0] <= judged.mean() <= reach[1] for reach in reaches)
    assert held >= 0.92 * 300  # plain quantiles hold 0.89


def test_there_is_no_interval_where_most_draws_have_nothing_to_find():
    assert interval(np.array([0.5, np.nan, np.nan]), 0.5, 9) is None
    assert interval(np.array([0.5, 0.5, np.nan]), 0.5, 9) == (0.5, 0.5)
    assert interval(np.zeros(0), 0.5, 9) is None


def test_panoptic_quality_of_a_draw_is_computed_from_sums():
    counts = np.zeros((2, 2, 4))
    counts[0, 0] = 1, 0, 0, 0.8  # image 1: one match of class 0
    counts[1, 0] = 0, 1, 1, 0.0  # image 2: class 0 once spurious and once missed
    counts[1, 1] = 1, 0, 0, 0.6
    counted = PanopticCounts((1, 2), (True, False), counts)
    drawn = panoptic_qualities(counted, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]))
    # both images: class 0 is 0.8 / (1 + 1/2 + 1/2) = 0.4, class 1 is 0.6; image 1 twice: 0.8; image 2 twice: 0 and 0.6
    np.testing.assert_allclose(drawn.overall["pq"], [0.5, 0.8, 0.3])
    np.testing.assert_allclose(drawn.overall["Things"], [0.4, 0.8, 0.0])
    np.testing.assert_allclose(drawn.overall["Stuff"], [0.6, np.nan, 0.6])
    np.testing.assert_allclose(drawn.overall["sq"], [0.7, 0.8, 0.3])


def test_panoptic_counts_survive_json():
    counts = np.zeros((2, 3, 4))
    counts[1, 2] = 3, 1, 0, 2.1234567890123
    read = PanopticCounts.from_json(json.loads(json.dumps(PanopticCounts((5, "six"), (True, True, False), counts).to_json())))
    assert (read.image_ids, read.is_thing) == ((5, "six"), (True, True, False))
    np.testing.assert_array_equal(read.counts, counts)


def test_pixel_figures_of_a_draw_are_computed_from_sums():
    # first image: 3 of 4 pixels of class 0 are found, the last is taken for class 1; second image: 2 of 2 pixels of class 1
    confusions = [np.array([[3, 1, 0], [0, 0, 0]]), np.array([[0, 0, 0], [0, 2, 0]])]
    counted = SemanticCounts.of_confusions((7, 8), confusions, 2)
    assert SemanticCounts.from_json(json.loads(json.dumps(counted.to_json()))).counts.tolist() == counted.counts.tolist()
    drawn = semantic_qualities(counted, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]))
    # both: IoU 3/4 and 2/3; the first twice: 6/8 and, predicted alone, 0; the second twice: none and 4/4
    assert drawn.per_class[0].tolist() == pytest.approx([3 / 4, 2 / 3])
    assert drawn.overall["mIoU"] == pytest.approx([17 / 24, 3 / 8, 1])
    assert drawn.overall["fwIoU"] == pytest.approx([(4 * 3 / 4 + 2 * 2 / 3) / 6, 3 / 4, 1])
    assert drawn.overall["pixel_accuracy"] == pytest.approx([5 / 6, 3 / 4, 1])
    assert drawn.overall["mean_accuracy"] == pytest.approx([7 / 8, 3 / 4, 1])


def test_pixel_figures_of_a_draw_are_those_of_the_metric():
    random = np.random.default_rng(0)
    quality = SemanticQuality(Categories.numbered(3))
    maps = random.integers(-1, 3, (2, 5, 4, 6))
    counted = SemanticCounts.of_confusions(range(5), [quality.update(*pair) for pair in zip(*maps, strict=True)], 3)
    drawn, alone = semantic_qualities(counted, np.ones((1, 5))), quality.compute()
    for name, values in drawn.overall.items():
        assert values[0] == pytest.approx(alone[name], abs=1e-12)


def test_rows_that_are_no_counts_are_refused():
    with pytest.raises(EvaluationError, match="pixel counts of a report can't be read"):
        SemanticCounts.from_json({"image_ids": [1], "classes": 2, "rows": [[3, 0, 1, 1, 1]]})
    with pytest.raises(EvaluationError, match="write the report again"):
        PanopticCounts.from_json({"image_ids": [1], "is_thing": [True], "rows": [[0, 5, 1, 1, 1, 1.0]]})


def test_images_outside_both_runs_are_never_drawn():
    np.testing.assert_array_equal(weights_of([4, 5, 6], [6, 4], np.array([[2.0, 0.0]])), [[0, 0, 2]])
