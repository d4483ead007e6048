"""Matches kept for bootstrap intervals, curves, confusion, boundary AP and the federated protocol."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import pytest
from hotcoco import mask as coco_rle

from thingstuff.data.coco import read_coco
from thingstuff.data.records import InstanceDataset, Object, Record
from thingstuff.errors import ConfigError, EvaluationError
from thingstuff.evaluation.average_precision import AveragePrecision, format_table
from thingstuff.evaluation.matching import AREAS, THRESHOLDS, Matches, average_precision_of, precision_and_recall
from thingstuff.ops.boundary import boundary_of
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segments

SIZE = (100, 200)
CATEGORIES = Categories((Category(40, "dust"), Category(7, "cell"), Category(9, "rock")))  # ids not sorted
DUST, CELL, ROCK = range(3)
KINDS = ("box", "mask", "boundary")


def rectangle(x1: int, y1: int, x2: int, y2: int) -> Mask:
    return Mask.from_crop(np.ones((y2 - y1, x2 - x1), bool), (y1, x1), SIZE)


A, B, C = rectangle(0, 0, 50, 50), rectangle(100, 0, 150, 50), rectangle(0, 60, 50, 100)


def annotated(class_: int, mask: Mask, is_crowd: bool = False) -> Object:
    x1, y1, x2, y2 = map(float, mask.box)
    return Object(class_, (x1, y1, x2, y2), mask, is_crowd, float(mask.area), 1)


def truth(*images: list[Object]) -> InstanceDataset:
    return InstanceDataset(tuple(Record(id_, None, SIZE, tuple(objects)) for id_, objects in enumerate(images)), CATEGORIES)


def segments(*found: tuple[int, float, Mask], size: tuple[int, int] = SIZE, categories: Categories = CATEGORIES) -> Segments:
    return Segments(
        size,
        categories,
        classes=np.array([class_ for class_, _, _ in found], np.int64),
        scores=np.array([score for _, score, _ in found], np.float32),
        boxes=np.array([mask.box for _, _, mask in found], np.float32).reshape(-1, 4),
        rles=tuple(mask for _, _, mask in found),
    )


def perturbed(record: Record, categories: Categories, random: np.random.Generator) -> Segments:
    """Shifted, doubled, dropped, of another class, with scores that are often equal; some inside crowds."""
    found = []
    for wanted in record.objects:
        for _ in range(int(random.integers(0, 3)) if wanted.mask.area else 0):
            top, left = (int(place) for place in np.array(wanted.mask.corner) + random.integers(-3, 4, 2))
            class_ = wanted.class_ if random.random() < 0.9 else int(random.integers(len(categories)))
            found.append((class_, round(float(random.random()), 1), Mask.from_crop(wanted.mask.crop(), (top, left), record.size)))
    return segments(*found, size=record.size, categories=categories)


@pytest.fixture(scope="module")
def real(shared_data: Path) -> tuple[InstanceDataset, dict[int, Segments]]:
    """Some images of coco-mini, those with crowds among them, and predictions made of their truth."""
    data = read_coco(shared_data / "coco-mini" / "instances_val.json", required_images=False)
    chosen = [r for r in data if any(found.is_crowd for found in r.objects)][:4] + list(data.records[::9])
    records = tuple({record.image_id: record for record in chosen}.values())
    random = np.random.default_rng(1)
    return replace(data, records=records), {record.image_id: perturbed(record, data.categories, random) for record in records}


def judged(
    data: InstanceDataset, found: dict[int, Segments], limit: int = 100, boundary: float | None = 0.02
) -> AveragePrecision:
    metric = AveragePrecision(data, limit, boundary=boundary)
    for image_id, given in found.items():
        metric.update(image_id, given)
    return metric


@pytest.mark.parametrize("limit", [100, 1])
def test_precision_and_recall_from_matches_are_hotcocos_for_every_area(
    real: tuple[InstanceDataset, dict[int, Segments]], limit: int
):
    metric = judged(*real, limit, boundary=None)
    for kind in metric.kinds:
        expected = metric._by_hotcoco(kind)
        assert 0.1 < expected.precision[expected.precision > -1].mean() < 0.9
        for area in range(len(AREAS)):
            precision, recall = precision_and_recall(metric.matches(kind), area)
            np.testing.assert_array_equal(precision, expected.precision[..., area])
            np.testing.assert_array_equal(recall, expected.recall[:, :, area, -1])


def test_ap_from_matches_is_the_ap_computed(real: tuple[InstanceDataset, dict[int, Segments]]):
    metric = judged(*real)
    result = metric.compute()
    for kind in KINDS:
        again = Matches.from_json(json.loads(json.dumps(metric.matches(kind).to_json())))
        expected = {name: pytest.approx(result[kind][name], abs=1e-12) for name in ("AP", "AP50", "AP75")}
        assert average_precision_of(metric.matches(kind)) == average_precision_of(again) == expected


def test_an_image_drawn_twice_counts_as_two_images(real: tuple[InstanceDataset, dict[int, Segments]]):
    data, found = real
    drawn = np.random.default_rng(0).choice([record.image_id for record in data], len(data))
    random = np.random.default_rng(2)  # equal scores would rank image by image in one, copy by copy in the other
    found = {
        image_id: replace(given, scores=random.permutation(len(given)).astype(np.float32) + random.random(dtype=np.float32))
        for image_id, given in found.items()
    }
    copies = tuple(replace(data.record_of(image_id), image_id=copy) for copy, image_id in enumerate(drawn.tolist()))
    of_copies = {copy: found[image_id] for copy, image_id in enumerate(drawn.tolist())}
    expected = judged(replace(data, records=copies), of_copies, boundary=None).compute()["mask"]
    stated = average_precision_of(judged(data, found, boundary=None).matches("mask"), drawn)
    assert stated == {name: pytest.approx(expected[name], abs=1e-12) for name in ("AP", "AP50", "AP75")}


def test_a_draw_without_anything_to_find_has_no_values():
    metric = judged(truth([annotated(DUST, A)], []), {0: segments((DUST, 0.9, A))})
    assert average_precision_of(metric.matches(), [1, 1]) == {"AP": None, "AP50": None, "AP75": None}
    assert average_precision_of(metric.matches(), []) == {"AP": None, "AP50": None, "AP75": None}
    assert average_precision_of(metric.matches(), [0, 1])["AP"] == pytest.approx(1.0)
    with pytest.raises(EvaluationError, match="image 7: is not among the 2 images"):
        average_precision_of(metric.matches(), [0, 7])


def test_matches_of_nothing_are_ordinary():
    matches = judged(truth([annotated(DUST, A)]), {}).matches("box")
    assert average_precision_of(matches) == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    assert average_precision_of(judged(truth(), {}).matches()) == {"AP": None, "AP50": None, "AP75": None}


@pytest.mark.parametrize("damage", [{"truths": "x"}, {"classes": [0, 0, 0]}, {"images": [9]}, {"scores": None}])
def test_damaged_matches_of_a_report_are_refused(damage: dict[str, Any]):
    content = judged(truth([annotated(DUST, A)]), {0: segments((DUST, 0.9, A))}).matches().to_json()
    with pytest.raises(EvaluationError, match="matches of a report can't be read"):
        Matches.from_json({**content, **damage})


def test_new_predictions_are_seen_after_numbers_were_asked_for():
    metric = judged(truth([annotated(DUST, A)]), {})
    assert metric.compute()["mask"]["AP"] == average_precision_of(metric.matches())["AP"] == 0.0
    metric.update(0, segments((DUST, 0.9, A)))
    assert metric.compute()["mask"]["AP"] == average_precision_of(metric.matches())["AP"] == pytest.approx(1.0)
    metric.reset()
    assert metric.compute()["mask"]["AP"] == 0.0


# Boundary AP ----------------------------------------------------------------------------------------------------------


def slow_boundary_ap(data: InstanceDataset, found: dict[int, Segments], class_: int, threshold: float) -> float | None:
    """The paper's definition, pixel by pixel: dense masks, dense boundaries, one loop."""
    rows, objects = [], 0
    for record in sorted(data, key=lambda record: record.image_id):  # which decides between equal scores
        wanted = [one for one in record.objects if one.class_ == class_]
        objects += sum(not one.is_crowd for one in wanted)
        free = [True] * len(wanted)
        given = found[record.image_id]
        mine = [place for place in np.argsort(-given.scores, kind="stable") if given.classes[place] == class_]
        with_boundary = [(mask := one.mask.dense(), boundary_of(mask)) for one in wanted] if mine else []
        for place in mine:
            mask = given.rles[place].dense()
            outline = boundary_of(mask)
            best, chosen = threshold, -1
            for index, one in enumerate(wanted):
                ious = []
                for p, q in zip((mask, outline), with_boundary[index], strict=True):
                    union = p.sum() if one.is_crowd else (p | q).sum()
                    ious.append((p & q).sum() / union if union else 0.0)
                free_or_crowd = free[index] or one.is_crowd
                if chosen >= 0 and not wanted[chosen].is_crowd and one.is_crowd:
                    continue
                if free_or_crowd and min(ious) >= (best if chosen < 0 or wanted[chosen].is_crowd == one.is_crowd else threshold):
                    best, chosen = min(ious), index
            if chosen < 0 or not wanted[chosen].is_crowd:
                rows.append((float(given.scores[place]), chosen >= 0))
            if chosen >= 0:
                free[chosen] = False
    if objects == 0:
        return None
    rows.sort(key=lambda row: -row[0])
    hits = np.cumsum([hit for _, hit in rows])
    precisions = [(hit / (index + 1), hit / objects) for index, hit in enumerate(hits)]
    return float(np.mean([max((p for p, r in precisions if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]))


def test_boundary_ap_is_what_a_slow_loop_over_pixels_gives(real: tuple[InstanceDataset, dict[int, Segments]]):
    data, found = real
    metric = judged(data, found)
    _, precision = metric.compute(), metric._accumulate("boundary").precision
    objects = np.bincount([one.class_ for record in data for one in record.objects], minlength=80)
    for class_ in np.argsort(-objects, kind="stable")[:4].tolist():
        for index in (0, 6):
            expected = slow_boundary_ap(data, found, class_, float(THRESHOLDS[index]))
            assert precision[index, :, class_, 0].mean() == pytest.approx(expected, abs=1e-9)


def test_boundary_ap_is_stricter_than_mask_ap_with_a_large_object_cut_short():
    # 100 x 190 of 100 x 200: mask IoU 0.95 matches at all ten. The boundary is 4 wide (2 % of a diagonal of 224): truth
    # 20000 - 92 * 192 = 2336, prediction 19000 - 92 * 182 = 2256, shared 2256 - 4 * 92 = 1888: IoU 1888 / 2704 = 0.698
    metric = judged(truth([annotated(DUST, rectangle(0, 0, 200, 100))]), {0: segments((DUST, 0.9, rectangle(0, 0, 190, 100)))})
    result = metric.compute()
    assert result["mask"]["AP"] == pytest.approx(1.0)
    assert result["boundary"]["AP"] == pytest.approx(0.4)  # at 0.50, 0.55, 0.60 and 0.65
    assert result["per_class"]["dust"]["boundary"] == pytest.approx(0.4)
    assert format_table(result).splitlines()[3].split() == ["boundary", "40.00", "100.00", "0.00", "-", "-", "40.00", "40.00"]


def test_boundaries_cost_nothing_unless_asked_for():
    metric = judged(truth([annotated(DUST, A)]), {}, boundary=None)
    assert "boundary" not in metric.compute()
    with pytest.raises(ConfigError, match=r"not of 'boundary'; ask for boundary=0\.02"):
        metric.matches("boundary")
    with pytest.raises(ConfigError, match="share of the image's diagonal"):
        AveragePrecision(truth(), boundary=2.0)


# Recall, curves and confusion -----------------------------------------------------------------------------------------


def test_recalls_are_named_after_the_number_of_detections():
    metric = judged(truth([annotated(DUST, A), annotated(DUST, B)]), {0: segments((DUST, 0.9, A), (DUST, 0.8, B))}, limit=5)
    result = metric.compute()["mask"]
    assert (result["AR1"], result["AR5"], "AR10" in result) == (0.5, 1.0, False)
    table = format_table(metric.compute(), 5).splitlines()
    assert table[0] == "the 5 best-scored detections of each image and class count"
    assert table[1].split()[-1] == "AR5"


def test_the_mean_of_a_curve_is_its_metric():
    metric = judged(truth([annotated(DUST, A), annotated(CELL, B)]), {0: segments((DUST, 0.9, rectangle(0, 0, 30, 50)))})
    result, curves = metric.compute(), metric.curves()
    assert curves["recall"][:3] == [0.0, 0.01, 0.02]
    for kind in KINDS:
        assert {name: np.mean(line) for name, line in curves[kind]["overall"].items()} == {
            name: pytest.approx(result[kind][name]) for name in ("AP", "AP50", "AP75")
        }
        assert np.mean(curves[kind]["per_class"]["dust"]["AP"]) == pytest.approx(result["per_class"]["dust"][kind])
        assert curves[kind]["per_class"]["rock"] is None
    assert json.loads(json.dumps(curves)) == curves
    assert judged(truth([]), {}).curves()["mask"]["overall"] is None


def test_confusion_counts_objects_in_rows_and_predictions_in_columns():
    data = truth([annotated(DUST, A), annotated(CELL, B), annotated(CELL, C)])
    found = segments((ROCK, 0.9, A), (DUST, 0.8, A), (CELL, 0.7, B), (CELL, 0.4, C))
    # dust taken for rock, the right dust after it in background, one cell found, the other below the score
    expected = [[0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert judged(data, {0: found}).confusion(score=0.5).tolist() == expected


def test_a_crowd_absorbs_what_is_found_in_it_and_is_counted_nowhere():
    metric = judged(truth([annotated(DUST, A, is_crowd=True)]), {0: segments((DUST, 0.9, rectangle(0, 0, 9, 9)), (CELL, 0.8, A))})
    assert metric.confusion().sum() == 0


def test_confusion_is_hotcocos_where_there_is_no_crowd(real: tuple[InstanceDataset, dict[int, Segments]]):
    data, found = real
    records = tuple(replace(r, objects=tuple(one for one in r.objects if not one.is_crowd)) for r in data)
    metric = judged(replace(data, records=records), found)
    rows = [row for record in records for row in found[record.image_id].to_coco(record.image_id)]
    coco = metric._truth_as_coco()
    given = coco.load_res([{key: row[key] for key in ("image_id", "category_id", "score", "segmentation")} for row in rows])
    expected = hotcoco.COCOeval(coco, given, "segm").confusion_matrix(iou_thr=0.5, max_det=1000, min_score=0.5)
    assert expected["cat_ids"] == list(data.categories.ids)
    np.testing.assert_array_equal(metric.confusion(score=0.5), expected["matrix"])


# The federated protocol of LVIS ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FederatedRecord(Record):
    neg_category_ids: tuple[int, ...] = ()
    not_exhaustive_category_ids: tuple[int, ...] = ()


def federated(negative: tuple[int, ...], open_ended: tuple[int, ...], *objects: Object, limit: int = 300) -> AveragePrecision:
    data = InstanceDataset((FederatedRecord(0, None, SIZE, objects, negative, open_ended),), CATEGORIES)
    return AveragePrecision(data, limit, boundary=0.02, federated=True)


def test_classes_neither_annotated_nor_negative_are_left_out():
    # dust at 0.9 is a false positive only where the image was searched for dust
    other = Record(1, None, SIZE, (annotated(DUST, A),))
    for negative, expected in (((), 1.0), ((40,), 0.5)):
        records = (
            FederatedRecord(0, None, SIZE, (annotated(CELL, A),), negative),
            FederatedRecord(other.image_id, None, SIZE, other.objects),
        )
        metric = AveragePrecision(InstanceDataset(records, CATEGORIES), 300, boundary=0.02, federated=True)
        metric.update(0, segments((DUST, 0.9, A)))
        metric.update(1, segments((DUST, 0.8, A)))
        result = metric.compute()
        assert [result["per_class"]["dust"][kind] for kind in KINDS] == [pytest.approx(expected)] * 3
        assert [key for key in result["mask"] if key.startswith("AR")] == ["AR300", "ARs", "ARm", "ARl"]


def test_unmatched_predictions_of_a_class_not_all_annotated_are_ignored():
    for open_ended, expected in (((), 0.5), ((40,), 1.0)):
        metric = federated((), open_ended, annotated(DUST, A))
        metric.update(0, segments((DUST, 0.9, B), (DUST, 0.8, A)))
        assert [metric.compute()[kind]["AP50"] for kind in KINDS] == [pytest.approx(expected)] * 3
        assert average_precision_of(metric.matches("mask"))["AP50"] == pytest.approx(expected)


def test_the_limit_of_the_federated_protocol_is_over_all_classes_of_an_image():
    metric = federated((40, 9), (), annotated(CELL, A), limit=2)
    metric.update(0, segments((CELL, 0.5, A), (DUST, 0.9, B), (ROCK, 0.8, B)))
    assert metric.compute()["mask"]["AP"] == 0.0


def test_rare_common_and_frequent_classes_have_an_ap_of_their_own():
    # dust is found, of two cells one is (51 of 101 recalls, see above), no rock is: AP 1, 51 / 101 and 0
    objects = (annotated(DUST, A), annotated(CELL, A), annotated(CELL, B), annotated(ROCK, C))
    data = InstanceDataset((FederatedRecord(0, None, SIZE, objects),), CATEGORIES, frequencies=("f", "f", "r"))
    metric = AveragePrecision(data, 300, boundary=0.02, federated=True)
    metric.update(0, segments((DUST, 0.9, A), (CELL, 0.8, B)))
    result = metric.compute()
    for kind in KINDS:
        assert result[kind]["APr"] == 0.0
        assert result[kind]["APc"] is None  # no class is common
        assert result[kind]["APf"] == pytest.approx((1 + 51 / 101) / 2)
    table = format_table(result, 300, federated=True).splitlines()
    assert table[0] == "the 300 best-scored detections of each image count"
    assert table[1].split() == ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR300"]
    assert table[2].split()[7:10] == ["0.00", "-", "75.25"]


def test_groups_of_frequency_are_the_federated_protocols_alone():
    data = replace(truth([annotated(DUST, A)]), frequencies=("r", "c", "f"))
    assert "APr" not in judged(data, {}).compute()["mask"]


def test_the_federated_protocol_asks_for_what_lvis_files_say():
    with pytest.raises(EvaluationError, match="image 0: has no neg_category_ids"):
        AveragePrecision(truth([]), federated=True)
    with pytest.raises(EvaluationError, match="image 0: not_exhaustive_category_ids holds 5, no category of this data"):
        federated((), (5,))


def test_own_matches_are_hotcocos_under_the_federated_protocol(real: tuple[InstanceDataset, dict[int, Segments]]):
    data, found = real
    random = np.random.default_rng(3)
    ids = np.array(data.categories.ids)
    records = []
    for record in data:
        objects = tuple(one for one in record.objects if not one.is_crowd)  # LVIS has none
        present = {data.categories[one.class_].id for one in objects}
        negative = tuple(id_ for id_ in random.choice(ids, 40, replace=False).tolist() if id_ not in present)
        open_ended = tuple(id_ for id_ in sorted(present) if random.random() < 0.4)
        records.append(FederatedRecord(record.image_id, None, record.size, objects, negative, open_ended))
    metric = AveragePrecision(replace(data, records=tuple(records)), 300, federated=True)
    for image_id, given in found.items():
        metric.update(image_id, given)
    for kind in metric.kinds:
        expected, own = metric._by_hotcoco(kind), metric._by_own_matches(kind)
        np.testing.assert_array_equal(own.precision, expected.precision)
        np.testing.assert_array_equal(own.recall, expected.recall)


def test_hotcocos_mask_iou_with_a_crowd_is_the_share_inside_it():
    # what overlaps.py relies on
    assert coco_rle.iou([A.to_coco()], [rectangle(0, 0, 100, 100).to_coco()], [True]).tolist() == [[1.0]]
