"""Kinds of mistakes: one scene of rectangles for each, then what they cost, then real data."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thingstuff.data.coco import read_coco
from thingstuff.errors import ConfigError, EvaluationError
from thingstuff.evaluation.average_precision import AveragePrecision
from thingstuff.evaluation.instance_mistakes import InstanceMistakes
from thingstuff.evaluation.mistakes import KINDS, ImageMistakes, Mistake
from thingstuff.evaluation.panoptic_mistakes import PanopticMistakes
from thingstuff.evaluation.panoptic_quality import PanopticQuality
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.masks import Mask
from thingstuff.structures.panoptic import PanopticMap
from thingstuff.structures.segments import Segments

SIZE = (40, 200)
CATEGORIES = Categories((Category(1, "cat"), Category(2, "dog"), Category(3, "grass", is_thing=False)))
CAT, DOG, GRASS = range(3)
Row = tuple[int, int, int]  # class, and the columns that it fills: from, to


def segments(*rows: Row, scores: tuple[float, ...] | None = None) -> Segments:
    """Rectangles of all 40 rows; scores from 0.9 down unless given."""
    masks = [Mask.from_crop(np.ones((SIZE[0], right - left), bool), (0, left), SIZE) for _, left, right in rows]
    return Segments(
        SIZE,
        CATEGORIES,
        classes=np.array([class_ for class_, _, _ in rows], np.int64),
        scores=np.array(scores or [0.9 - 0.1 * index for index in range(len(rows))], np.float32),
        boxes=np.array([mask.box for mask in masks], np.float32).reshape(-1, 4),
        rles=tuple(masks),
    )


def mistakes_of(found: Segments, truth: Segments, *crowds: int) -> ImageMistakes:
    is_crowd = np.isin(np.arange(len(truth)), crowds)
    return InstanceMistakes(CATEGORIES).update(1, found, truth, is_crowd)


def test_what_matches_is_no_mistake():
    mistakes = mistakes_of(segments((CAT, 0, 50), (DOG, 60, 100)), segments((DOG, 60, 100), (CAT, 0, 50)))
    assert (mistakes.rows, mistakes.spurious, mistakes.missed) == ([], {}, {})
    assert mistakes.matches == {0: 1, 1: 0}


def test_an_object_without_any_prediction_is_missed():
    mistakes = mistakes_of(segments((CAT, 0, 50)), segments((CAT, 0, 50), (CAT, 100, 150)))
    assert mistakes.rows == [Mistake("missed", None, 1, 0.0)]
    assert (mistakes.spurious, mistakes.missed) == ({}, {1: "missed"})


def test_a_prediction_where_nothing_is_annotated_is_background():
    mistakes = mistakes_of(segments((CAT, 0, 50), (CAT, 100, 150)), segments((CAT, 0, 50)))
    assert mistakes.rows == [Mistake("background", 1, None, 0.0)]


def test_a_prediction_that_grazes_an_object_is_background_and_the_object_missed():
    # 4 of 96 columns are shared: IoU 0.04, below 0.1
    mistakes = mistakes_of(segments((CAT, 46, 96)), segments((CAT, 0, 50)))
    assert mistakes.rows == [
        Mistake("background", 0, None, 4 / 96),
        Mistake("missed", None, 0, 4 / 96),
    ]


def test_a_second_prediction_of_a_found_object_is_a_duplicate():
    mistakes = mistakes_of(segments((CAT, 0, 50), (CAT, 0, 45)), segments((CAT, 0, 50)))
    assert mistakes.rows == [Mistake("duplicate", 1, 0, 0.9)]


def test_a_small_prediction_inside_the_one_that_found_the_object_is_a_duplicate():
    mistakes = mistakes_of(segments((CAT, 0, 50), (CAT, 10, 20)), segments((CAT, 0, 50)))
    assert mistakes.rows == [Mistake("duplicate", 1, 0, 0.2)]


def test_another_class_in_the_right_place_is_one_row_for_both():
    mistakes = mistakes_of(segments((DOG, 0, 45)), segments((CAT, 0, 50)))
    assert mistakes.rows == [Mistake("wrong class", 0, 0, 0.9)]
    assert (mistakes.spurious, mistakes.missed) == ({0: "wrong class"}, {0: "wrong class"})


def test_another_class_on_a_found_object_is_a_wrong_class_of_the_prediction_alone():
    mistakes = mistakes_of(segments((CAT, 0, 50), (DOG, 0, 45)), segments((CAT, 0, 50)))
    assert (mistakes.spurious, mistakes.missed) == ({1: "wrong class"}, {})


def test_another_class_with_a_poor_overlap_is_background():
    # TIDE's "both": neither the class nor the place
    mistakes = mistakes_of(segments((DOG, 0, 20)), segments((CAT, 0, 50)))
    assert (mistakes.spurious, mistakes.missed) == ({0: "background"}, {0: "missed"})


def test_an_object_found_in_pieces_is_split():
    mistakes = mistakes_of(segments((CAT, 0, 20), (CAT, 20, 36), (CAT, 36, 50)), segments((CAT, 0, 50)))
    assert mistakes.spurious == {0: "split", 1: "split", 2: "split"}
    assert mistakes.missed == {0: "split"}
    assert [(row.prediction, row.truth) for row in mistakes.rows] == [(0, 0), (1, 0), (2, 0)]


def test_the_rest_of_an_object_whose_larger_piece_matches_is_split():
    mistakes = mistakes_of(segments((CAT, 0, 35), (CAT, 35, 50)), segments((CAT, 0, 50)))
    assert mistakes.rows == [Mistake("split", 1, 0, 0.3)]


def test_two_predictions_of_the_same_part_are_no_split():
    mistakes = mistakes_of(segments((CAT, 0, 20), (CAT, 1, 20)), segments((CAT, 0, 50)))
    assert mistakes.spurious == {0: "coarse mask", 1: "coarse mask"}


def test_objects_found_as_one_are_merged():
    mistakes = mistakes_of(segments((CAT, 0, 100)), segments((CAT, 0, 33), (CAT, 33, 66), (CAT, 66, 100)))
    assert mistakes.spurious == {0: "merged"}
    assert mistakes.missed == {0: "merged", 1: "merged", 2: "merged"}
    assert [(row.prediction, row.truth) for row in mistakes.rows] == [(0, 0), (0, 1), (0, 2)]


def test_an_object_swallowed_by_the_match_of_a_larger_one_is_merged():
    mistakes = mistakes_of(segments((CAT, 0, 70)), segments((CAT, 0, 50), (CAT, 50, 70)))
    assert (mistakes.spurious, mistakes.missed) == ({}, {1: "merged"})
    assert mistakes.rows == [Mistake("merged", 0, 1, 20 / 70)]


def test_objects_of_another_class_are_not_merged():
    mistakes = mistakes_of(segments((CAT, 0, 70)), segments((CAT, 0, 50), (DOG, 50, 70)))
    assert mistakes.missed == {1: "missed"}


def test_a_mask_that_overlaps_its_object_too_little_is_coarse():
    # 20 of 50 columns: IoU 0.4
    mistakes = mistakes_of(segments((CAT, 0, 20)), segments((CAT, 0, 50)))
    assert mistakes.rows == [Mistake("coarse mask", 0, 0, 0.4)]
    assert mistakes.missed == {0: "coarse mask"}


def test_a_speck_inside_its_object_is_a_coarse_mask():
    # IoU 0.04, but nothing else is there that it could stand for
    assert mistakes_of(segments((CAT, 10, 12)), segments((CAT, 0, 50))).spurious == {0: "coarse mask"}


def test_a_coarse_mask_beside_a_found_object_leaves_the_object_found():
    mistakes = mistakes_of(segments((CAT, 0, 50), (CAT, 40, 80)), segments((CAT, 0, 50)))
    assert (mistakes.spurious, mistakes.missed) == ({1: "coarse mask"}, {})


def test_a_coarse_mask_stands_for_the_missed_object_before_the_found_one():
    # IoU 20 / 60 with the found one, 10 / 70 with the missed one
    mistakes = mistakes_of(segments((CAT, 0, 50), (CAT, 30, 60)), segments((CAT, 0, 50), (CAT, 50, 100)))
    assert mistakes.rows == [Mistake("coarse mask", 1, 1, 10 / 70)]


def test_predictions_in_a_crowd_and_crowds_without_predictions_are_no_mistakes():
    mistakes = mistakes_of(segments((CAT, 100, 120), (CAT, 120, 130)), segments((CAT, 100, 150), (DOG, 0, 50)), 0, 1)
    assert mistakes.rows == []


def test_places_are_those_that_were_given_where_some_do_not_count():
    metric = InstanceMistakes(CATEGORIES, max_detections=1)
    found = segments((CAT, 0, 50), (CAT, 0, 50), (DOG, 60, 70), scores=(0.2, 0.9, 0.5))
    truth = segments((CAT, 150, 200), (CAT, 0, 50), (DOG, 60, 100))
    mistakes = metric.update(1, found, truth, np.array([True, False, False]))
    assert mistakes.matches == {1: 1}
    assert mistakes.rows == [Mistake("coarse mask", 2, 2, 0.25)]


def test_nothing_predicted_and_nothing_annotated_are_ordinary():
    nothing = segments()
    assert mistakes_of(nothing, nothing).rows == []
    assert mistakes_of(nothing, segments((CAT, 0, 5))).missed == {0: "missed"}
    assert mistakes_of(segments((CAT, 0, 5)), nothing).spurious == {0: "background"}


# Costs in AP ----------------------------------------------------------------------------------------------------------


def computed(found: Segments, truth: Segments) -> dict[str, object]:
    metric = InstanceMistakes(CATEGORIES)
    metric.update(1, found, truth)
    return metric.compute()


def test_a_duplicate_costs_what_it_takes_from_precision():
    # ranked right, duplicate, right: precision at recalls above 1 / 2 is 2 / 3, without the duplicate 1
    found = segments((CAT, 0, 50), (CAT, 0, 45), (CAT, 100, 150))
    result = computed(found, segments((CAT, 0, 50), (CAT, 100, 150)))
    assert (result["metric"], result["truths"], result["predictions"], result["matched"]) == ("AP50", 2, 3, 2)
    assert result["value"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    costs = {kind: row["cost"] for kind, row in result["kinds"].items()}  # pyright: ignore[reportAttributeAccessIssue]
    assert costs == {kind: pytest.approx((50 / 3) / 101 if kind == "duplicate" else 0.0) for kind in KINDS}


def test_a_missed_object_costs_the_recalls_it_takes_away():
    result = computed(segments((CAT, 0, 50)), segments((CAT, 0, 50), (CAT, 100, 150)))
    missed = result["kinds"]["missed"]  # pyright: ignore[reportIndexIssue]
    assert missed == {"count": 1, "spurious": 0, "missed": 1, "cost": pytest.approx(50 / 101)}


def test_a_wrong_class_put_right_helps_both_classes():
    # cat: one of two found; dog: found, below one that is a cat
    found = segments((CAT, 0, 50), (DOG, 60, 100), (DOG, 150, 200))
    truth = segments((CAT, 0, 50), (CAT, 60, 100), (DOG, 150, 200))
    result = computed(found, truth)
    assert result["value"] == pytest.approx((51 / 101 + 1 / 2) / 2)
    wrong = result["kinds"]["wrong class"]  # pyright: ignore[reportIndexIssue]
    assert wrong == {"count": 1, "spurious": 1, "missed": 1, "cost": pytest.approx(1 - (51 / 101 + 1 / 2) / 2)}


def costs_of(found: Segments, truth: Segments) -> tuple[float, dict[str, float]]:
    """AP50, and what each kind costs of it, where it costs anything."""
    result: dict[str, Any] = computed(found, truth)
    return result["value"], {kind: row["cost"] for kind, row in result["kinds"].items() if row["cost"]}


def test_background_costs_precision_where_it_ranks_above_what_is_right():
    # wrong, right, right: the best precision is 2 / 3, at the end
    found = segments((CAT, 150, 200), (CAT, 0, 50), (CAT, 60, 100))
    value, costs = costs_of(found, segments((CAT, 0, 50), (CAT, 60, 100)))
    assert value == pytest.approx(2 / 3)
    assert costs == {"background": pytest.approx(1 / 3)}


def test_background_below_everything_right_costs_nothing():
    found = segments((CAT, 0, 50), (CAT, 150, 200))
    assert costs_of(found, segments((CAT, 0, 50))) == (pytest.approx(1), {})


def test_a_split_object_put_right_is_found_with_the_score_of_its_best_piece():
    # three pieces, then a right one: precision 1 / 4 up to a recall of 1 / 2, 51 of 101 recalls
    found = segments((CAT, 0, 20), (CAT, 20, 36), (CAT, 36, 50), (CAT, 100, 150))
    value, costs = costs_of(found, segments((CAT, 0, 50), (CAT, 100, 150)))
    assert value == pytest.approx(51 / 4 / 101)
    assert costs == {"split": pytest.approx(1 - 51 / 4 / 101)}


def test_merged_objects_put_right_are_all_found():
    # one over three objects, then a right one: precision 1 / 2 up to a recall of 1 / 4, 26 of 101 recalls
    found = segments((CAT, 0, 100), (CAT, 150, 200))
    value, costs = costs_of(found, segments((CAT, 0, 33), (CAT, 33, 66), (CAT, 66, 100), (CAT, 150, 200)))
    assert value == pytest.approx(26 / 2 / 101)
    assert costs == {"merged": pytest.approx(1 - 26 / 2 / 101)}


def test_an_object_swallowed_by_a_match_costs_its_recalls():
    value, costs = costs_of(segments((CAT, 0, 70)), segments((CAT, 0, 50), (CAT, 50, 70)))
    assert value == pytest.approx(51 / 101)
    assert costs == {"merged": pytest.approx(50 / 101)}


def test_a_coarse_mask_costs_the_object_and_its_place_in_the_ranking():
    # IoU 20 / 50, ranked first: precision 1 / 2 up to a recall of 1 / 2
    value, costs = costs_of(segments((CAT, 0, 20), (CAT, 100, 150)), segments((CAT, 0, 50), (CAT, 100, 150)))
    assert value == pytest.approx(51 / 2 / 101)
    assert costs == {"coarse mask": pytest.approx(1 - 51 / 2 / 101)}


def test_a_wrong_class_put_right_takes_the_score_that_the_wrong_one_had():
    # cat: background 0.8, right 0.6, and 0.9 once the dog is put right; dogs are not in the truth and have no AP
    found = segments((DOG, 60, 100), (CAT, 150, 200), (CAT, 0, 50), scores=(0.9, 0.8, 0.6))
    value, costs = costs_of(found, segments((CAT, 0, 50), (CAT, 60, 100)))
    assert value == pytest.approx(51 / 2 / 101)
    # right, background, right: precision 1, then 2 / 3
    assert costs["wrong class"] == pytest.approx((51 + 50 * 2 / 3) / 101 - 51 / 2 / 101)
    # without the background, one of two is found
    assert costs["background"] == pytest.approx(51 / 101 - 51 / 2 / 101)


def test_a_class_whose_last_object_was_missed_counts_as_1_once_it_is_put_right():
    value, costs = costs_of(segments((CAT, 0, 50)), segments((CAT, 0, 50), (DOG, 60, 100)))
    assert (value, costs) == (pytest.approx(0.5), {"missed": pytest.approx(0.5)})


def test_it_counts_as_0_while_anything_spurious_is_predicted_for_it():
    metric = InstanceMistakes(CATEGORIES)
    metric.update(1, segments((CAT, 0, 50), (DOG, 150, 200)), segments((CAT, 0, 50), (DOG, 60, 100)))
    # either alone wins nothing, both together all there is
    assert [metric.fixed(kinds) for kinds in ((), ("missed",), ("background",))] == [pytest.approx(0.5)] * 3
    assert metric.fixed(("missed", "background")) == pytest.approx(1)


def test_predictions_of_all_images_stand_in_one_ranking():
    metric = InstanceMistakes(CATEGORIES)
    metric.update(2, segments((CAT, 0, 50), scores=(0.5,)), segments((CAT, 0, 50)))
    metric.update(1, segments((CAT, 0, 50), scores=(0.6,)), segments())  # nothing is there
    result = metric.compute()
    assert result["value"] == pytest.approx(1 / 2)
    assert result["kinds"]["background"]["cost"] == pytest.approx(1 / 2)


def perturbed(size: tuple[int, int], categories: Categories, truth: Segments, random: np.random.Generator) -> Segments:
    """Predictions with every kind of mistake."""
    found: list[tuple[int, Mask]] = []
    for class_, mask in zip(truth.classes.tolist(), truth.rles, strict=True):
        crop, (top, left) = mask.crop(), mask.corner
        choice = random.random()
        if choice < 0.1 or not mask.area:
            continue
        shift = random.integers(-4, 5, 2)
        if choice < 0.2:
            class_ = int(random.integers(len(categories)))
        if choice < 0.4:
            middle = crop.shape[1] // 2 + 1
            found.append((class_, Mask.from_crop(crop[:, :middle], mask.corner, size)))
            found.append((class_, Mask.from_crop(crop[:, middle:], (top, left + middle), size)))
        elif choice < 0.5:
            grown = np.ones((crop.shape[0] * 2, crop.shape[1] * 2), bool)
            found.append((class_, Mask.from_crop(grown, mask.corner, size)))
        else:
            found += [(class_, Mask.from_crop(crop, (top + int(shift[0]), left + int(shift[1])), size))] * int(choice < 0.6) + [
                (class_, mask)
            ]
    found = [(class_, mask) for class_, mask in found if mask.area]
    return Segments(
        size,
        categories,
        classes=np.array([class_ for class_, _ in found], np.int64),
        scores=random.random(len(found)).astype(np.float32).round(2),  # some of them equal
        boxes=np.array([mask.box for _, mask in found], np.float32).reshape(-1, 4),
        rles=tuple(mask for _, mask in found),
    )


@pytest.mark.parametrize(("name", "step"), [("coco-mini", 12), ("balloon", 1), ("pennfudan", 5)])
def test_on_real_data_every_one_has_one_kind_the_value_is_ap50_and_all_put_right_is_1(shared_data: Path, name: str, step: int):
    data = read_coco(shared_data / name / "instances_val.json", required_images=False)
    data = type(data)(data.records[::step], data.categories)
    random = np.random.default_rng(0)
    metric, halves = InstanceMistakes(data.categories), [InstanceMistakes(data.categories) for _ in range(2)]
    precision = AveragePrecision(data)
    spurious = missed = 0
    for number, record in enumerate(data):
        truth = Segments(
            record.size,
            data.categories,
            classes=np.array([found.class_ for found in record.objects], np.int64),
            scores=np.ones(len(record.objects), np.float32),
            boxes=np.array([found.box for found in record.objects], np.float32).reshape(-1, 4),
            rles=tuple(found.mask for found in record.objects),
        )
        crowd = np.array([found.is_crowd for found in record.objects], np.bool_)
        found = perturbed(record.size, data.categories, truth[~crowd], random)
        precision.update(record.image_id, found)
        mistakes = metric.update(record.image_id, found, truth, crowd)
        halves[number % 2].update(record.image_id, found, truth, crowd)
        assert mistakes.missed.keys() == set(np.flatnonzero(~crowd).tolist()) - mistakes.matches.keys()
        assert not mistakes.spurious.keys() & set(mistakes.matches.values())
        kinds_of: dict[int, set[str]] = {}
        for row in mistakes.rows:
            if row.prediction in mistakes.spurious:
                kinds_of.setdefault(row.prediction, set()).add(row.kind)
        assert {place: {kind} for place, kind in mistakes.spurious.items()} == kinds_of
        spurious, missed = spurious + len(mistakes.spurious), missed + len(mistakes.missed)
    result = metric.compute()
    assert result["value"] == pytest.approx(precision.compute()["mask"]["AP50"], abs=1e-12)
    assert metric.fixed(KINDS) == 1.0
    numbers = result["kinds"].values()
    assert (sum(row["spurious"] for row in numbers), sum(row["missed"] for row in numbers)) == (spurious, missed)
    assert (spurious, missed) == (result["predictions"] - result["matched"], result["truths"] - result["matched"])
    halves[0].merge(halves[1])
    assert halves[0].compute() == result


def test_what_does_not_belong_together_is_refused():
    metric = InstanceMistakes(CATEGORIES)
    metric.update(1, segments(), segments())
    with pytest.raises(EvaluationError, match="image 1: was given twice"):
        metric.update(1, segments(), segments())
    with pytest.raises(EvaluationError, match="image 2: segments have height and width"):
        metric.update(2, segments(), Segments.empty((5, 5), CATEGORIES))
    with pytest.raises(EvaluationError, match="image 2: segments and truth must both have the categories"):
        metric.update(2, segments(), Segments.empty(SIZE, Categories.numbered(3)))
    other = InstanceMistakes(CATEGORIES)
    other.update(1, segments(), segments())
    with pytest.raises(EvaluationError, match="image 1: was given in two processes"):
        metric.merge(other)
    with pytest.raises(EvaluationError, match="another max_detections"):
        metric.merge(InstanceMistakes(CATEGORIES, 5))
    with pytest.raises(ConfigError, match="max_detections"):
        InstanceMistakes(CATEGORIES, 0)


def test_a_truth_of_nothing_has_no_value_and_no_costs():
    result = computed(segments((CAT, 0, 5)), segments())
    assert result["value"] is None
    assert result["kinds"]["background"] == {"count": 1, "spurious": 1, "missed": 0, "cost": None}  # pyright: ignore


# Panoptic -------------------------------------------------------------------------------------------------------------


def panoptic(*rows: Row, void: tuple[int, int] | None = None, crowd: tuple[int, ...] = ()) -> PanopticMap:
    """Segment k + 1 fills the columns of row k."""
    ids = np.zeros(SIZE, np.int64)
    for index, (_, left, right) in enumerate(rows):
        ids[:, left:right] = index + 1
    count = len(rows)
    classes = np.array([class_ for class_, _, _ in rows], np.int64)
    return PanopticMap(ids, np.arange(1, count + 1), classes, np.isin(np.arange(count), crowd), CATEGORIES)


def test_panoptic_kinds_are_those_of_instances_with_pqs_matches():
    truth = panoptic((GRASS, 0, 60), (CAT, 60, 100), (CAT, 100, 120), (DOG, 120, 160), (DOG, 160, 200))
    found = panoptic((GRASS, 0, 25), (GRASS, 25, 50), (CAT, 50, 120), (CAT, 120, 160), (DOG, 160, 178))
    mistakes = PanopticMistakes(PanopticQuality(CATEGORIES)).update(found, truth)
    assert mistakes.matches == {1: 2}  # 40 / 70
    assert mistakes.spurious == {0: "split", 1: "split", 3: "wrong class", 4: "coarse mask"}
    assert mistakes.missed == {0: "split", 2: "merged", 3: "wrong class", 4: "coarse mask"}


def test_an_iou_of_exactly_half_is_a_coarse_mask_in_pq():
    mistakes = PanopticMistakes(PanopticQuality(CATEGORIES)).update(panoptic((CAT, 0, 50)), panoptic((CAT, 0, 100)))
    assert mistakes.rows == [Mistake("coarse mask", 0, 0, 0.5)]


def test_predictions_on_void_or_on_a_crowd_of_their_class_are_no_mistakes():
    truth = panoptic((CAT, 0, 50), (CAT, 100, 150), crowd=(1,))
    found = panoptic((CAT, 0, 50), (DOG, 60, 90), (CAT, 100, 120))
    assert PanopticMistakes(PanopticQuality(CATEGORIES)).update(found, truth).rows == []


def test_costs_in_pq_by_hand():
    # cat: one match of IoU 0.8, one missed, so PQ = 0.8 / 1.5; dog: spurious only, PQ = 0
    metric = PanopticMistakes(PanopticQuality(CATEGORIES))
    metric.update(panoptic((CAT, 0, 40), (DOG, 150, 200)), panoptic((CAT, 0, 50), (CAT, 60, 100), (GRASS, 100, 200)))
    result = metric.compute()
    assert (result["metric"], result["truths"], result["predictions"], result["matched"]) == ("PQ", 3, 2, 1)
    assert result["value"] == pytest.approx((0.8 / 1.5 + 0 + 0) / 3)
    kinds = result["kinds"]
    # missed: cat becomes 1.8 / 2; grass becomes 1, for a dog on half of it is no reason to call it anything but missed
    assert kinds["missed"] == {"count": 2, "spurious": 0, "missed": 2, "cost": pytest.approx((0.9 + 0 + 1) / 3 - 0.8 / 4.5)}
    assert kinds["background"]["cost"] == pytest.approx((0.8 / 1.5 + 0) / 2 - 0.8 / 4.5)
    assert result["inexact masks"] == {"count": 1, "cost": pytest.approx(0.2 / 1.5 / 3)}
    assert metric.fixed(KINDS) == pytest.approx((1.8 / 2 + 1) / 2)
    assert metric.fixed(KINDS, exact_masks=True) == 1.0


def random_map(random: np.random.Generator) -> PanopticMap:
    edges = [0, *sorted(random.choice(np.arange(1, 200), 8, replace=False).tolist()), 200]
    rows = [(int(random.integers(3)), left, right) for left, right in pairwise(edges)]
    return panoptic(*[row for row in rows if random.random() < 0.9])


def test_panoptic_counts_are_pqs_the_value_is_pq_and_all_put_right_is_1():
    random = np.random.default_rng(0)
    metric = PanopticQuality(CATEGORIES)
    whole, halves = PanopticMistakes(metric), [PanopticMistakes(metric) for _ in range(2)]
    for number in range(20):
        found, truth = random_map(random), random_map(random)
        quality = metric.update(found, truth, number)
        mistakes = whole.update(found, truth, number, quality)
        halves[number % 2].update(found, truth)
        assert sorted(mistakes.spurious) == sorted(quality.false_positives)
        assert sorted(mistakes.missed) == sorted(quality.false_negatives)
    result, everything = whole.compute(), metric.compute()["All"]
    assert result["value"] == pytest.approx(everything["pq"], abs=1e-12)
    numbers = result["kinds"].values()
    assert (sum(row["spurious"] for row in numbers), sum(row["missed"] for row in numbers)) == (
        everything["fp"],
        everything["fn"],
    )
    assert whole.fixed(KINDS, exact_masks=True) == pytest.approx(1.0)
    halves[0].merge(halves[1])
    assert halves[0].compute()["kinds"] == {
        kind: {**row, "cost": pytest.approx(row["cost"], abs=1e-12)} for kind, row in result["kinds"].items()
    }


def test_panoptic_segments_keep_their_places_where_some_are_covered():
    # the first prediction is covered by the second, which scores higher
    found = segments((CAT, 0, 50), (CAT, 0, 50), (DOG, 100, 150), scores=(0.5, 0.9, 0.8))
    mistakes = PanopticMistakes(PanopticQuality(CATEGORIES)).update(found, panoptic((CAT, 0, 50)))
    assert (mistakes.matches, mistakes.spurious) == ({0: 1}, {})  # the dog lies on void
    mistakes = PanopticMistakes(PanopticQuality(CATEGORIES)).update(found, panoptic((CAT, 0, 50), (GRASS, 50, 200)))
    assert mistakes.spurious == {2: "background"}


def test_mistakes_by_boundaries_are_refused():
    with pytest.raises(EvaluationError, match="without boundary"):
        PanopticMistakes(PanopticQuality(CATEGORIES, boundary=0.02))


def test_no_segment_at_all_has_no_value():
    metric = PanopticMistakes(PanopticQuality(CATEGORIES))
    metric.update(panoptic(), panoptic())
    result = metric.compute()
    assert result["value"] is None
    assert all(row["cost"] is None for row in result["kinds"].values())
