"""COCO average precision, on cases small enough to check by hand; `test_same_digits.py` has real data and other tools."""

import json

import numpy as np
import pytest

from thingstuff.data.records import InstanceDataset, Object, Record
from thingstuff.errors import ConfigError, EvaluationError
from thingstuff.evaluation.average_precision import AveragePrecision, format_table
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segments

SIZE = (100, 200)
CATEGORIES = Categories((Category(40, "dust"), Category(7, "cell")))  # ids neither sorted nor contiguous
ONE = pytest.approx(1.0)  # precision is TP / (TP + FP + machine epsilon), as pycocotools has it
PRECISIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RECALLS = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
NOTHING = dict.fromkeys((*PRECISIONS, *RECALLS))


def rectangle(x1: int, y1: int, x2: int, y2: int) -> Mask:
    return Mask.from_crop(np.ones((y2 - y1, x2 - x1), bool), (y1, x1), SIZE)


def truth(*images: list[tuple[int, Mask]], crowd: bool = False) -> InstanceDataset:
    records = []
    for number, objects in enumerate(images):
        found = tuple(
            Object(class_, tuple(map(float, mask.box)), mask, crowd, float(mask.area), index)  # pyright: ignore[reportArgumentType]
            for index, (class_, mask) in enumerate(objects)
        )
        records.append(Record(number, None, SIZE, found))
    return InstanceDataset(tuple(records), CATEGORIES)


def segments(*found: tuple[int, float, Mask], categories: Categories = CATEGORIES) -> Segments:
    return Segments(
        SIZE,
        categories,
        classes=np.array([class_ for class_, _, _ in found], np.int64),
        scores=np.array([score for _, score, _ in found], np.float32),
        boxes=np.array([mask.box for _, _, mask in found], np.float32).reshape(-1, 4),
        rles=tuple(mask for _, _, mask in found),
    )


A, B = rectangle(0, 0, 50, 50), rectangle(100, 0, 150, 50)  # 2500 pixels each: medium


def test_the_truth_itself_scores_one():
    metric = AveragePrecision(truth([(0, A), (1, B)]))
    metric.update(0, segments((0, 0.9, A), (1, 0.8, B)))
    result = metric.compute()
    for kind in ("box", "mask"):
        assert {name: result[kind][name] for name in PRECISIONS} == {**dict.fromkeys(PRECISIONS, ONE), "APs": None, "APl": None}
        assert {name: result[kind][name] for name in RECALLS} == {**dict.fromkeys(RECALLS, 1.0), "ARs": None, "ARl": None}
    assert result["per_class"] == {"dust": {"box": ONE, "mask": ONE}, "cell": {"box": ONE, "mask": ONE}}


def test_half_of_the_objects_found_scores_the_half_of_the_recalls():
    # one of two objects: precision 1 at recalls 0.00, 0.01 ... 0.50, which are 51 of 101
    metric = AveragePrecision(truth([(0, A), (0, B)]))
    metric.update(0, segments((0, 0.9, A)))
    assert metric.compute()["mask"]["AP"] == pytest.approx(51 / 101)


def test_a_mask_of_iou_0_6_counts_at_three_of_ten_thresholds():
    # 30 of 50 columns: 1500 / 2500 = 0.6, a match at 0.50, 0.55 and 0.60
    metric = AveragePrecision(truth([(0, A)]))
    metric.update(0, segments((0, 0.9, rectangle(0, 0, 30, 50))))
    result = metric.compute()["mask"]
    assert result["AP"] == pytest.approx(0.3)
    assert (result["AP50"], result["AP75"]) == (ONE, 0.0)


def test_per_class_values_belong_to_their_class_where_ids_are_not_sorted():
    metric = AveragePrecision(truth([(0, A), (1, B)]))
    metric.update(0, segments((0, 0.9, A)))
    assert metric.compute()["per_class"] == {"dust": {"box": ONE, "mask": ONE}, "cell": {"box": 0.0, "mask": 0.0}}


def test_a_class_absent_from_the_truth_has_no_value_and_does_not_count():
    metric = AveragePrecision(truth([(0, A)]))
    metric.update(0, segments((0, 0.9, A), (1, 0.9, B)))
    result = metric.compute()
    assert result["per_class"]["cell"] == {"box": None, "mask": None}
    assert result["mask"]["AP"] == ONE


def test_no_predictions_at_all_score_zero():
    metric = AveragePrecision(truth([(0, A)], []))
    assert metric.compute()["mask"]["AP"] == 0.0
    metric.update(0, Segments.empty(SIZE, CATEGORIES))
    assert metric.compute()["box"]["AP"] == 0.0


def test_an_image_without_objects_makes_what_is_found_there_false():
    # the false positive ranks first: precision at every recall is 1 / 2
    metric = AveragePrecision(truth([(0, A)], []))
    metric.update(0, segments((0, 0.8, A)))
    metric.update(1, segments((0, 0.9, B)))
    assert metric.compute()["mask"]["AP"] == pytest.approx(0.5)


def test_a_truth_of_nothing_or_of_crowds_alone_has_no_values():
    for data in (truth([]), truth(), truth([(0, A)], crowd=True)):
        metric = AveragePrecision(data)
        if len(data):
            metric.update(0, segments((0, 0.9, A)))
        result = metric.compute()
        assert result["box"] == result["mask"] == NOTHING
        assert result["per_class"]["dust"] == {"box": None, "mask": None}


def test_values_are_json_numbers_and_nulls():
    metric = AveragePrecision(truth([(0, A)]))
    assert json.loads(json.dumps(metric.compute())) == metric.compute()


def test_only_the_best_scored_max_detections_of_an_image_count():
    # the right one ranks third
    found = segments((0, 0.9, B), (0, 0.8, B), (0, 0.7, A))
    values = []
    for limit in (2, 3):
        metric = AveragePrecision(truth([(0, A)]), max_detections=limit)
        metric.update(0, found)
        values.append(metric.compute()["mask"]["AP"])
    assert values == [0.0, pytest.approx(1 / 3)]


def test_an_object_without_pixels_is_one_that_was_missed():
    data = truth([(0, A), (0, Mask.empty(SIZE))])
    metric = AveragePrecision(data)
    metric.update(0, segments((0, 0.9, A), (0, 0.8, Mask.empty(SIZE))))
    assert metric.compute()["mask"]["AP"] == pytest.approx(51 / 101)


def test_categories_that_the_truth_does_not_list_are_left_out_silently(capfd: pytest.CaptureFixture[str]):
    wider = Categories((*CATEGORIES, Category(99, "other")))
    metric = AveragePrecision(truth([(0, A)]))
    metric.update(0, segments((0, 0.9, A), (2, 0.95, A), categories=wider))
    assert metric.compute()["mask"]["AP"] == ONE
    assert capfd.readouterr() == ("", "")


def test_categories_of_equal_name_are_told_apart_by_id():
    twins = InstanceDataset((), Categories((Category(1, "cell"), Category(2, "cell"))))
    assert list(AveragePrecision(twins).compute()["per_class"]) == ["cell (1)", "cell (2)"]


def test_two_processes_merge_to_what_one_would_have_gathered():
    data = truth([(0, A)], [(0, B)])
    whole, first, second = (AveragePrecision(data) for _ in range(3))
    for metric in (whole, first):
        metric.update(0, segments((0, 0.8, A)))
    for metric in (whole, second):
        metric.update(1, segments((0, 0.9, A)))
    first.merge(second)
    assert first.compute() == whole.compute()
    with pytest.raises(EvaluationError, match="image 1: was given in two processes"):
        first.merge(second)


def test_predictions_that_do_not_belong_to_the_truth_are_refused():
    metric = AveragePrecision(truth([(0, A)]))
    with pytest.raises(EvaluationError, match="image 5: is not in the ground truth"):
        metric.update(5, segments((0, 0.9, A)))
    with pytest.raises(EvaluationError, match=r"segments have height and width \(5, 5\), the ground truth says \(100, 200\)"):
        metric.update(0, Segments.empty((5, 5), CATEGORIES))
    with pytest.raises(EvaluationError, match=r"no category id of the predictions \(1, 2, 3\) is in the ground truth \(40, 7\)"):
        metric.update(0, segments((0, 0.9, A), categories=Categories.numbered(3)))
    metric.update(0, segments((0, 0.9, A)))
    with pytest.raises(EvaluationError, match="image 0: was given twice"):
        metric.update(0, segments((0, 0.9, A)))
    with pytest.raises(ConfigError, match="max_detections"):
        AveragePrecision(truth(), max_detections=0)


def test_the_table_shows_percent_and_dashes():
    metric = AveragePrecision(truth([(0, A), (0, B)]))
    metric.update(0, segments((0, 0.9, A)))
    assert format_table(metric.compute()).splitlines() == [
        "              AP    AP50    AP75     APs     APm     APl   AR100",
        "box        50.50   50.50   50.50       -   50.50       -   50.00",
        "mask       50.50   50.50   50.50       -   50.50       -   50.00",
        "",
        "class    box AP mask AP",
        "dust      50.50   50.50",
        "cell          -       -",
    ]
