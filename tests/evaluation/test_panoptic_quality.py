"""Panoptic quality: every corner of the protocol, by numbers small enough to check by hand."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from thingstuff.data.panoptic import pairs, read_panoptic, read_panoptic_predictions
from thingstuff.errors import AnnotationError, ConfigError, EvaluationError
from thingstuff.evaluation.panoptic_quality import PanopticQuality
from thingstuff.formats.coco_panoptic import write_panoptic
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.panoptic import PanopticMap

CATEGORIES = Categories((Category(1, "cat"), Category(2, "dog"), Category(5, "sky", is_thing=False)))
CAT, DOG, SKY = range(3)


def row(*runs: tuple[int, int]) -> np.ndarray:
    """A map of one row: (id, pixels) one after another."""
    return np.concatenate([np.full(pixels, id_, np.int32) for id_, pixels in runs])[None]


def panoptic(ids: Any, listed: dict[int, int], crowd: tuple[int, ...] = (), areas: Any = None) -> PanopticMap:
    return PanopticMap(
        ids,
        np.array(list(listed), np.int64),
        np.array(list(listed.values()), np.int64),
        np.array([segment in crowd for segment in listed], np.bool_),
        CATEGORIES,
        None if areas is None else np.array(areas, np.int64),
    )


def counts(prediction: PanopticMap, truth: PanopticMap, **rules: Any) -> dict[int, tuple[int, int, int, float]]:
    image = PanopticQuality(CATEGORIES, **rules).update(prediction, truth)
    return {class_: tuple(of_class) for class_, of_class in image.per_class.items()}  # type: ignore[misc]


# Matching --------------------------------------------------------------------------------------------------------------


def test_a_match_is_counted_with_its_iou():
    # 6 of the union's 8 pixels are shared
    truth, prediction = panoptic(row((1, 7), (2, 3)), {1: CAT, 2: SKY}), panoptic(row((9, 6), (4, 4)), {9: CAT, 4: SKY})
    assert counts(prediction, truth) == {CAT: (1, 0, 0, 6 / 7), SKY: (1, 0, 0, 3 / 4)}


def test_iou_of_exactly_half_is_not_a_match():
    # 2 shared, 4 in the union; the prediction has no other pixel than the truth's
    truth, prediction = panoptic(row((1, 4), (2, 4)), {1: CAT, 2: SKY}), panoptic(row((9, 2), (4, 6)), {9: CAT, 4: SKY})
    assert counts(prediction, truth)[CAT] == (0, 1, 1, 0.0)


def test_iou_just_above_half_is_a_match():
    truth, prediction = panoptic(row((1, 5), (2, 5)), {1: CAT, 2: SKY}), panoptic(row((9, 3), (4, 7)), {9: CAT, 4: SKY})
    assert counts(prediction, truth)[CAT] == (1, 0, 0, 3 / 5)


def test_another_class_is_no_match():
    truth, prediction = panoptic(row((1, 5)), {1: CAT}), panoptic(row((1, 5)), {1: DOG})
    assert counts(prediction, truth) == {CAT: (0, 0, 1, 0.0), DOG: (0, 1, 0, 0.0)}


def test_places_and_not_ids_name_segments():
    image = PanopticQuality(CATEGORIES).update(
        panoptic(row((70, 5), (30, 3), (20, 2)), {20: DOG, 30: SKY, 70: CAT}),
        panoptic(row((9, 5), (8, 5)), {8: SKY, 9: CAT}),
        image_id=12,
    )
    assert image.matches == [(1, 0, 3 / 5), (2, 1, 1.0)]
    assert image.matched_classes == [SKY, CAT]
    assert (image.false_positives, image.false_negatives, image.ignored, image.image_id) == ([0], [], [], 12)
    assert image.pq == pytest.approx((1 + 3 / 5 + 0) / 3)


# Void ------------------------------------------------------------------------------------------------------------------


def test_void_of_the_truth_is_left_out_of_the_union():
    # 4 shared; the prediction's other 6 pixels are void: IoU 4 / 4, not 4 / 10
    truth, prediction = panoptic(row((1, 4), (0, 6)), {1: CAT}), panoptic(row((1, 10)), {1: CAT})
    assert counts(prediction, truth) == {CAT: (1, 0, 0, 1.0)}


def test_void_of_the_prediction_stays_in_the_union():
    truth, prediction = panoptic(row((1, 10)), {1: CAT}), panoptic(row((1, 4), (0, 6)), {1: CAT})
    assert counts(prediction, truth) == {CAT: (0, 1, 1, 0.0)}


def test_a_prediction_mostly_on_void_is_ignored():
    truth, prediction = panoptic(row((1, 4), (0, 6)), {1: SKY}), panoptic(row((0, 3), (1, 7)), {1: CAT})
    assert counts(prediction, truth) == {SKY: (0, 0, 1, 0.0)}


def test_a_prediction_half_on_void_counts():
    truth, prediction = panoptic(row((1, 4), (0, 4)), {1: SKY}), panoptic(row((0, 2), (1, 4), (0, 2)), {1: CAT})
    assert counts(prediction, truth)[CAT] == (0, 1, 0, 0.0)


def test_all_void_truth_ignores_every_prediction():
    quality = PanopticQuality(CATEGORIES)
    image = quality.update(panoptic(row((1, 4), (2, 4)), {1: CAT, 2: SKY}), panoptic(row((0, 8)), {}))
    assert image.ignored == [0, 1]
    assert quality.compute()["All"] == {"pq": None, "sq": None, "rq": None, "n": 0, "tp": 0, "fp": 0, "fn": 0}


def test_all_void_prediction_misses_every_truth():
    prediction, truth = panoptic(row((0, 8)), {}), panoptic(row((1, 4), (2, 4)), {1: CAT, 2: SKY})
    assert counts(prediction, truth) == {CAT: (0, 0, 1, 0.0), SKY: (0, 0, 1, 0.0)}


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_empty_image_counts_nothing(size):
    empty = panoptic(np.zeros(size, np.int32), {})
    assert counts(empty, empty) == {}
    assert counts(empty, empty, boundary=0.02) == {}


# Crowds ----------------------------------------------------------------------------------------------------------------


def test_crowd_absorbs_predictions_of_its_own_category():
    truth, prediction = (
        panoptic(row((1, 10)), {1: CAT}, crowd=(1,)),
        panoptic(row((1, 3), (2, 3), (3, 4)), dict.fromkeys((1, 2, 3), CAT)),
    )
    assert counts(prediction, truth) == {}


def test_crowd_does_not_absorb_other_categories():
    truth, prediction = panoptic(row((1, 10)), {1: CAT}, crowd=(1,)), panoptic(row((1, 10)), {1: DOG})
    assert counts(prediction, truth) == {DOG: (0, 1, 0, 0.0)}


def test_a_crowd_is_neither_matched_nor_missed():
    truth = panoptic(row((1, 10)), {1: CAT}, crowd=(1,))
    assert counts(panoptic(row((1, 10)), {1: CAT}), truth) == {}
    assert counts(panoptic(row((0, 10)), {}), truth) == {}


def test_void_and_crowd_add_up_for_one_prediction():
    # 3 of 10 pixels on void, 3 on the crowd: neither is more than half, together they are
    truth = panoptic(row((0, 3), (1, 3), (2, 4)), {1: CAT, 2: SKY}, crowd=(1,))
    assert counts(panoptic(row((1, 10)), {1: CAT}), truth) == {SKY: (0, 0, 1, 0.0)}


def test_a_crowd_stays_in_the_union_of_other_matches():
    # 5 shared of 5 + 4: crowds are not void
    truth = panoptic(row((1, 5), (2, 4)), {1: CAT, 2: CAT}, crowd=(2,))
    assert counts(panoptic(row((1, 9)), {1: CAT}), truth) == {CAT: (1, 0, 0, 5 / 9)}


def test_only_the_last_crowd_of_a_class_absorbs_by_default():
    truth = panoptic(row((1, 6), (2, 4)), {1: CAT, 2: CAT}, crowd=(1, 2))
    prediction = panoptic(row((1, 6), (2, 4)), {1: CAT, 2: CAT})
    assert counts(prediction, truth) == {CAT: (0, 1, 0, 0.0)}


def test_the_last_crowd_is_the_last_listed_not_the_largest_id():
    truth = panoptic(row((1, 6), (2, 4)), {2: CAT, 1: CAT}, crowd=(1, 2))
    image = PanopticQuality(CATEGORIES).update(panoptic(row((1, 6), (2, 4)), {1: CAT, 2: CAT}), truth)
    assert (image.ignored, image.false_positives) == ([0], [1])


def test_every_crowd_absorbs_with_last_crowd_only_off():
    truth = panoptic(row((1, 6), (2, 4)), {1: CAT, 2: CAT}, crowd=(1, 2))
    prediction = panoptic(row((1, 6), (2, 4)), {1: CAT, 2: CAT})
    assert counts(prediction, truth, last_crowd_only=False) == {}


def test_crowds_of_several_classes_each_absorb_their_own():
    truth = panoptic(row((1, 6), (2, 4)), {1: CAT, 2: DOG}, crowd=(1, 2))
    assert counts(panoptic(row((1, 6), (2, 4)), {1: CAT, 2: DOG}), truth) == {}


# Broken inputs ---------------------------------------------------------------------------------------------------------


def test_an_id_of_the_prediction_that_is_not_listed_is_named():
    with pytest.raises(EvaluationError, match="image 3: predicted segment 8 is painted in the map but not listed"):
        PanopticQuality(CATEGORIES).update(panoptic(row((1, 5), (8, 5)), {1: CAT}), panoptic(row((1, 10)), {1: CAT}), 3)


def test_a_listed_segment_of_the_prediction_that_is_not_painted_is_named():
    with pytest.raises(EvaluationError, match=r"image a\.jpg: predicted segment 8 \(and 1 more\) is listed but has no pixel"):
        PanopticQuality(CATEGORIES).update(
            panoptic(row((1, 9)), {1: CAT, 8: CAT, 9: SKY}), panoptic(row((1, 9)), {1: CAT}), "a.jpg"
        )


def test_an_id_of_the_truth_that_is_not_listed_is_named():
    with pytest.raises(EvaluationError, match="ground truth segment 8 is painted in the map but not listed"):
        PanopticQuality(CATEGORIES).update(panoptic(row((1, 9)), {1: CAT}), panoptic(row((1, 5), (8, 4)), {1: CAT}))


def test_an_unlisted_id_of_the_truth_is_neither_void_nor_segment_with_refuse_broken_truth_off():
    # the prediction's 4 pixels on id 8 stay in the union: 5 / 9
    prediction, truth = panoptic(row((1, 9)), {1: CAT}), panoptic(row((1, 5), (8, 4)), {1: CAT})
    assert counts(prediction, truth, refuse_broken_truth=False) == {CAT: (1, 0, 0, 5 / 9)}


def test_an_unpainted_segment_of_the_truth_is_missed_with_refuse_broken_truth_off():
    prediction, truth = panoptic(row((1, 9)), {1: CAT}), panoptic(row((1, 9)), {1: CAT, 8: DOG})
    assert counts(prediction, truth, refuse_broken_truth=False) == {CAT: (1, 0, 0, 1.0), DOG: (0, 0, 1, 0.0)}


def test_the_stated_area_of_the_truth_counts_by_default():
    # stated 15, painted 10: 10 / 15
    prediction, truth = panoptic(row((1, 10)), {1: CAT}), panoptic(row((1, 10)), {1: CAT}, areas=[15])
    assert counts(prediction, truth) == {CAT: (1, 0, 0, 10 / 15)}
    assert counts(prediction, truth, stated_areas=False) == {CAT: (1, 0, 0, 1.0)}


def test_a_truth_that_states_no_area_has_the_painted_one():
    assert counts(panoptic(row((1, 10)), {1: CAT}), panoptic(row((1, 10)), {1: CAT}, areas=[-1])) == {CAT: (1, 0, 0, 1.0)}


def test_a_stated_area_smaller_than_what_is_shared_is_refused():
    prediction, truth = panoptic(row((1, 10)), {1: CAT}), panoptic(row((1, 10)), {1: CAT}, areas=[9])
    with pytest.raises(EvaluationError, match="segment 1 states an area of 9 pixels and shares 10"):
        counts(prediction, truth)


def test_maps_of_other_sizes_are_refused():
    with pytest.raises(
        EvaluationError, match=r"image 4: the prediction has height and width \(1, 9\), the ground truth \(1, 10\)"
    ):
        PanopticQuality(CATEGORIES).update(panoptic(row((1, 9)), {1: CAT}), panoptic(row((1, 10)), {1: CAT}), 4)


def test_categories_are_matched_by_their_id():
    other = Categories((Category(5, "Himmel"), Category(1, "Katze")))
    prediction = PanopticMap(row((1, 6), (2, 4)), np.array([1, 2]), np.array([1, 0]), np.zeros(2, np.bool_), other)
    assert counts(prediction, panoptic(row((1, 6), (2, 4)), {1: CAT, 2: SKY})) == {CAT: (1, 0, 0, 1.0), SKY: (1, 0, 0, 1.0)}


def test_a_category_that_is_not_measured_is_named():
    other = Categories((Category(77, "fish"),))
    prediction = PanopticMap(row((4, 6)), np.array([4]), np.array([0]), np.zeros(1, np.bool_), other)
    with pytest.raises(EvaluationError, match="image 6: predicted segment 4 has category id 77"):
        PanopticQuality(CATEGORIES).update(prediction, panoptic(row((1, 6)), {1: CAT}), 6)


def test_a_refused_image_leaves_the_sums_as_they_were():
    quality = PanopticQuality(CATEGORIES)
    quality.update(panoptic(row((1, 10)), {1: CAT}), panoptic(row((1, 10)), {1: CAT}))
    before = quality.compute()
    with pytest.raises(EvaluationError):
        quality.update(panoptic(row((1, 5), (8, 5)), {1: CAT}), panoptic(row((1, 10)), {1: CAT}))
    assert quality.compute() == before


# Means -----------------------------------------------------------------------------------------------------------------


def test_a_class_without_an_example_is_left_out_of_the_mean():
    quality = PanopticQuality(CATEGORIES)
    quality.update(panoptic(row((1, 6), (2, 4)), {1: CAT, 2: SKY}), panoptic(row((1, 10)), {1: CAT}))
    result = quality.compute()
    assert result["per_class"]["dog"] == {"pq": None, "sq": None, "rq": None, "tp": 0, "fp": 0, "fn": 0, "iou_sum": 0.0}
    assert result["Things"] == {"pq": 0.6, "sq": 0.6, "rq": 1.0, "n": 1, "tp": 1, "fp": 0, "fn": 0}
    assert result["Stuff"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 1, "tp": 0, "fp": 1, "fn": 0}
    assert result["All"] == {"pq": 0.3, "sq": 0.3, "rq": 0.5, "n": 2, "tp": 1, "fp": 1, "fn": 0}


def test_a_group_without_examples_is_none_and_refused_when_asked():
    prediction = truth = panoptic(row((1, 6)), {1: CAT})
    quality = PanopticQuality(CATEGORIES)
    quality.update(prediction, truth)
    assert quality.compute()["Stuff"] == {"pq": None, "sq": None, "rq": None, "n": 0, "tp": 0, "fp": 0, "fn": 0}
    quality = PanopticQuality(CATEGORIES, refuse_empty_group=True)
    quality.update(prediction, truth)
    with pytest.raises(EvaluationError, match="Stuff: no class has a segment"):
        quality.compute()


def test_no_image_at_all_has_no_quality():
    assert PanopticQuality(CATEGORIES).compute()["All"]["pq"] is None


def test_no_category_at_all_has_no_quality():
    assert PanopticQuality(Categories(())).compute()["All"]["pq"] is None


def test_classes_of_one_name_are_told_apart_by_id():
    assert set(PanopticQuality(Categories((Category(1, "a"), Category(4, "a")))).compute()["per_class"]) == {"a (1)", "a (4)"}


# Adding up -------------------------------------------------------------------------------------------------------------


def test_ten_thousand_thirds_add_up_without_rounding():
    # a sum in floating point would drift: 2/3 is rounded once, its multiples are not
    quality = PanopticQuality(CATEGORIES)
    image = quality.compare(panoptic(row((1, 2), (0, 1)), {1: CAT}), panoptic(row((1, 3)), {1: CAT}))
    for _ in range(10_000):
        quality.add(image)
    assert quality.compute()["per_class"]["cat"]["iou_sum"] == float(10_000 * (2 / 3))


def test_merge_adds_and_reset_forgets():
    prediction, truth = panoptic(row((1, 6), (2, 4)), {1: CAT, 2: SKY}), panoptic(row((1, 7), (2, 3)), {1: CAT, 2: SKY})
    both, first, second = (PanopticQuality(CATEGORIES) for _ in range(3))
    for quality in (both, both, first, second):
        quality.update(prediction, truth)
    first.merge(second)
    assert first.compute() == both.compute()
    first.reset()
    assert first.compute() == PanopticQuality(CATEGORIES).compute()


def test_merging_other_categories_or_rules_is_refused():
    for other in (PanopticQuality(Categories.numbered(3)), PanopticQuality(CATEGORIES, last_crowd_only=False)):
        with pytest.raises(EvaluationError, match="can't be added up"):
            PanopticQuality(CATEGORIES).merge(other)


def test_many_images_give_the_same_as_one_after_the_other():
    random = np.random.default_rng(0)
    maps = [panoptic(random.integers(1, 4, (6, 7)), {1: CAT, 2: SKY, 3: DOG}) for _ in range(20)]
    one, many = PanopticQuality(CATEGORIES), PanopticQuality(CATEGORIES)
    expected = [one.update(a, b, place) for place, (a, b) in enumerate(itertools.pairwise(maps))]
    loads = ((place, lambda a=a: a, lambda b=b: b) for place, (a, b) in enumerate(itertools.pairwise(maps)))
    assert list(many.update_many(loads)) == expected
    assert many.compute() == one.compute()


def test_a_broken_png_is_named_and_those_before_it_count(tmp_path):
    categories = Categories.numbered(2)
    ids = np.array([[1, 1, 2], [1, 2, 2]])
    segments = PanopticMap(ids, np.array([1, 2]), np.array([0, 1]), np.zeros(2, np.bool_), categories)
    for name in ("truth", "found"):
        write_panoptic(tmp_path / f"{name}.json", ((place, f"{place}.jpg", segments) for place in range(8)), categories)
    broken = tmp_path / "found" / "5.png"
    broken.write_bytes(broken.read_bytes()[:45])
    truth = read_panoptic(tmp_path / "truth.json")
    found = read_panoptic_predictions(tmp_path / "found.json", truth.categories)
    images = PanopticQuality(truth.categories).update_many(pairs(found, truth))
    assert [next(images).image_id for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(AnnotationError, match=r"5\.png"):
        next(images)


# Kinds of input --------------------------------------------------------------------------------------------------------


def test_tensors_arrays_and_segments_give_the_same():
    ids, other = np.array([[1, 1, 2], [1, 3, 3]]), np.array([[1, 1, 2], [1, 2, 2]])
    prediction, truth = panoptic(ids, {1: CAT, 2: SKY, 3: DOG}), panoptic(other, {1: CAT, 2: SKY})
    as_tensors = panoptic(torch.from_numpy(ids), {1: CAT, 2: SKY, 3: DOG}), panoptic(torch.from_numpy(other), {1: CAT, 2: SKY})
    expected = PanopticQuality(CATEGORIES).update(prediction, truth)
    assert PanopticQuality(CATEGORIES).update(*as_tensors) == expected
    assert PanopticQuality(CATEGORIES).update(prediction.to_segments(), truth.to_segments()) == expected


def test_places_are_those_of_the_segments_given():
    # the first segment is covered by the second: it shows nothing and counts as nothing
    both = panoptic(row((1, 6)), {1: CAT}).to_segments()
    segments = both[[0, 0]]
    covered = type(segments)(**{**vars(segments), "scores": np.array([0.1, 0.9], np.float32)})
    image = PanopticQuality(CATEGORIES).update(covered, both)
    assert image.matches == [(1, 0, 1.0)]


def test_many_segments_are_counted_without_a_table_of_all_pairs():
    # 1500 x 1500 pairs: more than the dense table holds
    ids = np.arange(1, 1501).reshape(30, 50)
    every = panoptic(ids, dict.fromkeys(range(1, 1501), CAT))
    assert counts(every, every) == {CAT: (1500, 0, 0, 1500.0)}


def test_a_boundary_outside_its_range_is_refused():
    with pytest.raises(ConfigError, match="above 0"):
        PanopticQuality(CATEGORIES, boundary=0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("segments", [40, 1500])
def test_a_gpu_counts_the_same(segments: int):
    random = np.random.default_rng(0)
    ids, other = (random.integers(0, segments + 1, (60, 80)) for _ in range(2))
    listed = [{int(id_): int(id_) % 3 for id_ in np.unique(one) if id_} for one in (ids, other)]
    every: tuple[dict[str, Any], ...] = ({}, {"boundary": 0.02})
    for rules in every:
        expected = PanopticQuality(CATEGORIES, **rules).update(panoptic(ids, listed[0]), panoptic(other, listed[1]))
        on_gpu = torch.from_numpy(other).cuda()
        for a, b in ((ids, on_gpu), (torch.from_numpy(ids).cuda().int(), on_gpu)):
            assert PanopticQuality(CATEGORIES, **rules).update(panoptic(a, listed[0]), panoptic(b, listed[1])) == expected
