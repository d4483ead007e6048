import json
import pickle
import tracemalloc

import numpy as np
import pycocotools.mask as pycoco
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from thingstuff.errors import MaskError, SizeError
from thingstuff.structures.masks import MAX_PIXELS, Mask, Polygon, mask_ious

# 3 rows, 4 columns; by columns: 0 0 0 | 0 1 1 | 1 1 0 | 0 0 0, so the counts are 4 off, 4 on, 4 off
SMALL = np.array([[0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0]], np.bool_)
RING = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], np.bool_)

unhurried = settings(deadline=None, max_examples=40)  # machines that run tests in parallel are slow at times
dense_masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9))
filled_masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


def pycoco_code(dense: np.ndarray) -> str:
    return pycoco.encode(np.asfortranarray(dense.astype(np.uint8)))["counts"].decode()


# --- values ---


def test_a_mask_holds_the_tight_crop_of_its_pixels():
    mask = Mask.from_dense(SMALL)
    assert mask.size == (3, 4)
    assert mask.corner == (0, 1)
    assert mask.crop_size == (3, 2)
    assert mask.box == (1, 0, 3, 3)
    assert mask.area == 4
    np.testing.assert_array_equal(mask.crop(), SMALL[:, 1:3])
    np.testing.assert_array_equal(mask.dense(), SMALL)
    assert repr(mask) == "Mask(3x4, area=4, box=(1, 0, 3, 3))"


def test_an_empty_mask_is_an_ordinary_value():
    mask = Mask.empty((3, 4))
    assert mask == Mask.from_dense(np.zeros((3, 4), np.bool_))
    assert (mask.area, mask.box, mask.crop_size) == (0, (0, 0, 0, 0), (0, 0))
    assert mask.to_coco_uncompressed() == {"size": [3, 4], "counts": [12]}
    assert mask.to_polygons() == []
    assert mask.to_coco_polygons() == []
    assert mask.crop().shape == (0, 0)
    assert not mask.dense().any()


def test_an_image_without_pixels_has_only_the_empty_mask():
    mask = Mask.from_dense(np.zeros((0, 5), np.bool_))
    assert mask == Mask.empty((0, 5))
    assert Mask.from_coco(mask.to_coco()) == mask
    assert Mask.from_polygons([[0, 0, 1, 0, 1, 1]], (0, 5)) == mask


@unhurried
@given(dense_masks)
def test_equal_pixels_are_equal_values_whatever_they_came_from(dense: np.ndarray):
    mask = Mask.from_dense(dense)
    assert Mask.from_coco(mask.to_coco()) == mask
    assert Mask.from_coco(mask.to_coco_uncompressed()) == mask
    assert Mask.from_polygons(mask.to_polygons(), mask.size) == mask
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert hash(Mask.from_dense(dense.copy())) == hash(mask)


@unhurried
@given(dense_masks)
def test_dense_area_and_box_are_those_of_the_pixels(dense: np.ndarray):
    mask = Mask.from_dense(dense)
    np.testing.assert_array_equal(mask.dense(), dense)
    assert mask.area == dense.sum()
    rows, columns = np.nonzero(dense)
    assert mask.box == ((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, 0, 0))


def test_integers_count_as_set_unless_0_in_any_memory_layout():
    assert Mask.from_dense(SMALL.astype(np.uint8) * 255) == Mask.from_dense(SMALL)
    assert Mask.from_dense(SMALL.astype(np.int64) * -256) == Mask.from_dense(SMALL)
    assert Mask.from_dense(np.asfortranarray(SMALL)) == Mask.from_dense(SMALL)
    assert Mask.from_dense(SMALL[::-1, ::-1][::-1, ::-1]) == Mask.from_dense(SMALL)


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.float32), np.zeros((1, 2, 2), np.bool_), np.zeros(4, np.bool_)])
def test_probabilities_and_stacks_are_no_mask(array: np.ndarray):
    with pytest.raises(MaskError, match="height x width array of booleans or integers"):
        Mask.from_dense(array)


# --- crops ---


@unhurried
@given(filled_masks, st.integers(-15, 15), st.integers(-15, 15), st.integers(0, 12), st.integers(0, 12))
def test_a_crop_that_sticks_out_of_the_image_is_cut_off(crop: np.ndarray, top: int, left: int, height: int, width: int):
    canvas = np.zeros((60, 60), np.bool_)  # the image with 20 pixels around it
    canvas[20 + top : 20 + top + crop.shape[0], 20 + left : 20 + left + crop.shape[1]] = crop
    expected = canvas[20 : 20 + height, 20 : 20 + width]
    assert Mask.from_crop(crop, (top, left), (height, width)) == Mask.from_dense(expected)


def test_a_small_object_in_a_huge_image_costs_what_the_object_costs():
    size = (30_000, 30_000)  # 900 MB as a dense mask
    crop = np.ones((20, 20), np.bool_)
    tracemalloc.start()
    mask = Mask.from_crop(crop, (29_000, 15_000), size)
    code = mask.to_coco()
    assert Mask.from_coco(code) == mask
    assert mask.area == 400
    assert mask.box == (15_000, 29_000, 15_020, 29_020)
    assert Mask.from_polygons(mask.to_polygons(), size) == mask
    assert Mask.from_polygons(mask.to_coco_polygons(), size) == mask
    assert mask.iou(Mask.from_crop(crop, (29_010, 15_000), size)) == pytest.approx(200 / 600)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    # 20 columns of 20 pixels; the first begins after 15,000 columns of 30,000 and 29,000 rows
    assert mask.to_coco_uncompressed()["counts"][:3] == [15_000 * 30_000 + 29_000, 20, 29_980]


def test_a_crop_declared_outside_its_image_is_refused():
    with pytest.raises(MaskError, match=r"a crop of 2 x 2 at \(2, 0\) leaves its image of 3 x 3"):
        Mask((3, 3), (2, 0), (2, 2), b"04")
    with pytest.raises(MaskError, match="add up to 4 pixels where 9 are declared"):
        Mask((3, 3), (0, 0), (3, 3), b"04")


# --- COCO run-length code ---


def test_counts_run_down_the_columns_and_begin_with_off():
    assert Mask.from_dense(SMALL).to_coco_uncompressed() == {"size": [3, 4], "counts": [4, 4, 4]}
    assert Mask.from_dense(np.ones((2, 3), np.bool_)).to_coco_uncompressed() == {"size": [2, 3], "counts": [0, 6]}


@unhurried
@given(filled_masks)
def test_code_is_that_of_pycocotools(dense: np.ndarray):
    code = Mask.from_dense(dense).to_coco()
    assert code == {"size": list(dense.shape), "counts": pycoco_code(dense)}
    assert json.loads(json.dumps(code)) == code


def test_code_of_large_counts_is_that_of_pycocotools():
    dense = np.zeros((700, 900), np.bool_)
    dense[3:650, 5:880:7] = True
    mask = Mask.from_dense(dense)
    assert mask.to_coco()["counts"] == pycoco_code(dense)
    assert Mask.from_coco(mask.to_coco()) == mask


def test_counts_of_zero_length_and_bytes_are_accepted():
    expected = Mask.from_dense(SMALL)
    assert Mask.from_coco({"size": [3, 4], "counts": [4, 2, 0, 2, 4]}) == expected
    assert Mask.from_coco({"size": (3, 4), "counts": np.array([4, 4, 4, 0])}) == expected
    assert Mask.from_coco({"size": [3, 4], "counts": expected.to_coco()["counts"].encode()}) == expected


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([4, 4, 3], "add up to 11 pixels where 12 are declared"),
        ([4, 4, 5], "add up to 13 pixels where 12 are declared"),
        ([], "add up to 0 pixels where 12 are declared"),
        ("", "add up to 0 pixels where 12 are declared"),
        ([-4, 12, 4], "must be 0 to 4294967295, got -4 to 12"),
        ([2**40, 1], "must be 0 to 4294967295"),
        ([2**70, 1], "integers that fit 32 bits"),
        ([4.0, 4.0, 4.0], "must be integers"),
        (["4", "4", "4"], "must be integers"),
        ([[4], [4, 4]], "must be integers"),
        ([True, False], "must be integers"),
        (None, "a text or a list of integers, got NoneType"),
        ({"4": 4}, "a text or a list of integers, got dict"),
        ("44 4", "holds b' ' at position 2"),
        ("444\x7f", "holds b'\\\\x7f' at position 3"),
        ("44é", "no base-32 digit"),
        ("44T", "truncated"),
        ("4" + "o" * 8 + "0", "more than 32 bits"),
        ("0" + "ooooooO" * 2 + "0", "negative count|add up to|more than 32"),
        ("o" * 6 + "?" + "0" * 3, "add up to [0-9,]+ pixels where 12"),
        ("4440OO00", "negative count|add up to"),  # O is -1: differences that lead below 0
    ],
)
def test_broken_counts_are_refused_with_the_reason(counts: object, message: str):
    with pytest.raises(MaskError, match=message):
        Mask.from_coco({"size": [3, 4], "counts": counts})


@pytest.mark.parametrize("size", [None, [3], [3, 4, 1], [3.0, 4.0], ["3", "4"], [True, 4], "34", {"h": 3}])
def test_a_broken_size_is_refused(size: object):
    with pytest.raises(MaskError, match='"size"'):
        Mask.from_coco({"size": size, "counts": [12]})


@pytest.mark.parametrize("rle", [None, [12], "d", {"size": [3, 4]}, {"counts": [12]}])
def test_what_is_no_run_length_code_is_refused(rle: object):
    with pytest.raises(MaskError, match='an object with "size"'):
        Mask.from_coco(rle)


@pytest.mark.parametrize("size", [[-1, 5], [2**32, 1], [10**6, 10**6], [2**70, 2**70]])
def test_an_impossible_size_is_refused_without_allocating_it(size: list[int]):
    tracemalloc.start()
    with pytest.raises(MaskError, match="outside what masks can hold"):
        Mask.from_coco({"size": size, "counts": [12]})
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_the_largest_size_that_coco_can_hold_works_on_runs():
    mask = Mask.from_coco({"size": [1, MAX_PIXELS], "counts": [MAX_PIXELS - 1, 1]})
    assert mask.box == (MAX_PIXELS - 1, 0, MAX_PIXELS, 1)
    assert Mask.from_coco(mask.to_coco()) == mask


@unhurried
@given(st.integers(0, 20), st.integers(0, 20), st.binary(max_size=12) | st.text(max_size=12))
def test_any_text_is_either_a_mask_or_a_mask_error(height: int, width: int, counts: "bytes | str"):
    try:
        mask = Mask.from_coco({"size": [height, width], "counts": counts})
    except MaskError:
        return
    assert mask.dense().sum() == mask.area
    assert Mask.from_coco(mask.to_coco()) == mask


# --- polygons ---


def test_the_outline_of_a_pixel_is_its_four_edges_clockwise():
    mask = Mask.from_crop(np.ones((1, 1), np.bool_), (2, 3), (9, 9))
    (polygon,) = mask.to_polygons()
    assert polygon.holes == ()
    assert polygon.outer.tolist() == [[3, 2], [4, 2], [4, 3], [3, 3]]
    assert mask.to_coco_polygons() == [[3, 2, 4, 2, 4, 3, 3, 3]]


def test_a_ring_has_one_outer_outline_and_one_hole():
    mask = Mask.from_dense(RING)
    (polygon,) = mask.to_polygons()
    assert polygon.outer.tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]]
    assert sorted(polygon.holes[0].tolist()) == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert Mask.from_polygons([polygon], (3, 3)) == mask
    assert Mask.from_polygons([Polygon(polygon.outer)], (3, 3)).area == 9


def test_pixels_that_touch_at_a_corner_are_two_parts():
    mask = Mask.from_dense(np.eye(2, dtype=np.bool_))
    assert len(mask.to_polygons()) == 2
    assert len(Mask.from_dense(np.eye(2, dtype=np.bool_)[::-1]).to_polygons()) == 2
    assert Mask.from_polygons(mask.to_coco_polygons(), (2, 2)) == mask


def test_an_island_in_a_hole_is_a_part_of_its_own():
    dense = np.pad(np.pad(np.ones((1, 1), np.bool_), 1), 1, constant_values=True)  # 5 x 5: frame, gap, dot
    outer, dot = sorted(Mask.from_dense(dense).to_polygons(), key=lambda polygon: -len(polygon.holes))
    assert (len(outer.holes), len(dot.holes)) == (1, 0)
    assert dot.outer.tolist() == [[2, 2], [3, 2], [3, 3], [2, 3]]


def test_two_holes_side_by_side_belong_to_the_same_part():
    dense = np.ones((3, 7), np.bool_)
    dense[1, [1, 3, 5]] = False
    (polygon,) = Mask.from_dense(dense).to_polygons()
    assert len(polygon.holes) == 3


@unhurried
@given(dense_masks)
def test_every_hole_lies_inside_the_outline_it_belongs_to(dense: np.ndarray):
    mask = Mask.from_dense(dense)
    polygons = mask.to_polygons()
    assert sum(Mask.from_polygons([polygon], mask.size).area for polygon in polygons) == mask.area
    for polygon in polygons:
        filled = Mask.from_polygons([Polygon(polygon.outer)], mask.size).dense()
        for hole in polygon.holes:
            assert filled[Mask.from_polygons([Polygon(hole)], mask.size).dense()].all()


@unhurried
@given(dense_masks)
def test_coco_polygons_give_the_mask_back_and_refuse_holes(dense: np.ndarray):
    mask = Mask.from_dense(dense)
    polygons = mask.to_polygons()
    if any(polygon.holes for polygon in polygons):
        with pytest.raises(MaskError, match=r"can't express the \d+ hole\(s\).*write RLE instead.*fill_holes=True"):
            mask.to_coco_polygons()
        filled = Mask.from_polygons([Polygon(polygon.outer) for polygon in polygons], mask.size)
        assert Mask.from_polygons(mask.to_coco_polygons(fill_holes=True), mask.size) == filled
    else:
        flat = mask.to_coco_polygons()
        assert Mask.from_polygons(flat, mask.size) == mask
        if flat:  # and for COCO's own tools
            theirs = pycoco.merge(pycoco.frPyObjects(flat, *mask.size))
            assert theirs["counts"].decode() == mask.to_coco()["counts"]


coordinates = st.floats(-8, 30) | st.integers(-8, 30).map(float) | st.integers(-16, 60).map(lambda half: half / 2)
flat_polygons = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8).map(
    lambda points: [value for point in points for value in point]
)


@unhurried
@given(st.lists(flat_polygons, min_size=1, max_size=3), st.integers(1, 24), st.integers(1, 24))
def test_flat_polygons_are_filled_as_pycocotools_fills_them(polygons: list[list[float]], height: int, width: int):
    theirs = pycoco.merge(pycoco.frPyObjects(polygons, height, width))
    mask = Mask.from_polygons(polygons, (height, width))
    assert mask.to_coco()["counts"] == theirs["counts"].decode()


@unhurried
@given(flat_polygons, st.integers(0, 24), st.integers(0, 24))
def test_a_polygon_sets_the_pixels_whose_centre_it_holds(flat: list[float], height: int, width: int):
    points = np.array(flat).reshape(-1, 2)
    points = np.round(points * 4) / 4 + 1 / 16  # no vertex on a centre line, so that no centre lies on an edge's end
    dense = Mask.from_polygons([Polygon(points)], (height, width)).dense()
    for row in range(height):
        for column in range(width):
            x, y, inside, on_edge = column + 0.5, row + 0.5, False, False
            for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
                if (x1 > x) != (x2 > x):
                    crossing = y1 + (x - x1) * (y2 - y1) / (x2 - x1)
                    on_edge |= abs(crossing - y) < 1e-9
                    inside ^= crossing < y
            assert on_edge or dense[row, column] == inside


def test_parts_of_both_kinds_are_united():
    square = [0.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0, 2.0]
    ring = Polygon(np.array([[3.0, 0.0], [6.0, 0.0], [6.0, 3.0], [3.0, 3.0]]), (np.array([[4.0, 1.0], [5, 1], [5, 2], [4, 2]]),))
    mask = Mask.from_polygons([square, ring], (3, 6))
    assert mask.area == 4 + 8
    np.testing.assert_array_equal(mask.dense()[:, 3:], RING)


def test_no_polygon_at_all_is_the_empty_mask():
    assert Mask.from_polygons([], (3, 4)) == Mask.empty((3, 4))
    assert Mask.from_polygons([[100, 100, 110, 100, 110, 110]], (3, 4)) == Mask.empty((3, 4))


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([], "three points or more"),
        ([0, 0, 1, 1], "three points or more.*got 4 values"),  # COCO's tools would take four values for a box
        ([0, 0, 1, 1, 2, 2, 3], "three points or more.*got 7 values"),
        ([0, 0, 1, float("nan"), 2, 2], "no finite number"),
        ([0, 0, 1, float("inf"), 2, 2], "no finite number"),
        ([0, 0, 1, None, 2, 2], "a list of numbers"),
        ("000111", "a list of numbers"),
        (["0", "0", "1", "1", "2", "2"], "a list of numbers"),
        ([[0, 0], [1, 1], [2]], "a list of numbers"),
        (5, "a list of numbers|three points"),
        ([0, 0, 1e12, 0, 1e12, 1e12], "over the limit of 4,000,000; its coordinates are not pixels"),
    ],
)
def test_a_broken_polygon_is_refused_with_the_reason(polygon: object, message: str):
    with pytest.raises(MaskError, match=message):
        Mask.from_polygons([polygon], (10, 10))


# --- overlap ---


def test_the_iou_of_two_squares_is_the_shared_third():
    dense = np.zeros((2, 2, 4), np.bool_)
    dense[0, :, :2] = dense[1, :, 1:3] = True  # 2 columns each, 1 shared: 2 / 6 pixels
    first, second = Mask.from_dense(dense[0]), Mask.from_dense(dense[1])
    assert first.iou(second) == pytest.approx(1 / 3)
    assert first.iou(first) == 1
    assert first.iou(Mask.empty((2, 4))) == 0
    assert Mask.empty((2, 4)).iou(Mask.empty((2, 4))) == 0


@unhurried
@given(st.lists(arrays(np.bool_, (6, 7)), max_size=4), st.lists(arrays(np.bool_, (6, 7)), max_size=4))
def test_mask_ious_are_those_of_the_dense_masks(first: list[np.ndarray], second: list[np.ndarray]):
    ious = mask_ious([Mask.from_dense(dense) for dense in first], [Mask.from_dense(dense) for dense in second])
    assert ious.shape == (len(first), len(second))
    for row, a in enumerate(first):
        for column, b in enumerate(second):
            assert ious[row, column] == pytest.approx((a & b).sum() / max(1, (a | b).sum()))


def test_masks_of_different_images_have_no_iou():
    with pytest.raises(SizeError, match="2 x 2, 3 x 3"):
        Mask.empty((2, 2)).iou(Mask.empty((3, 3)))
