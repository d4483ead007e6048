"""PanopticMap: ids and what they are."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch

from thingstuff.errors import AnnotationError, SizeError
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.masks import Mask
from thingstuff.structures.panoptic import HASHED, ColouredMap, PanopticMap, position_of
from thingstuff.structures.segments import Segments

CATEGORIES = Categories((Category(1, "cat"), Category(5, "sky", is_thing=False)))


def panoptic(ids, listed: dict[int, int], crowd=(), areas=None) -> PanopticMap:
    return PanopticMap(
        ids if isinstance(ids, torch.Tensor) else np.array(ids),
        np.array(list(listed), np.int64),
        np.array(list(listed.values()), np.int64),
        np.array([segment in crowd for segment in listed], np.bool_),
        CATEGORIES,
        None if areas is None else np.array(areas, np.int64),
    )


def test_segments_to_map_and_back_are_the_same_masks_in_the_same_order():
    masks = [Mask.from_dense(np.array([[0, 1, 1], [0, 0, 1]])), Mask.from_dense(np.array([[1, 0, 0], [1, 0, 0]]))]
    segments = Segments(
        size=(2, 3),
        categories=CATEGORIES,
        classes=np.array([1, 0]),
        scores=np.ones(2, np.float32),
        boxes=np.array([[1, 0, 3, 2], [0, 0, 1, 2]], np.float32),
        rles=tuple(masks),
        overlapping=False,
    )
    as_map = PanopticMap.from_segments(segments)
    assert as_map.ids.tolist() == [[2, 1, 1], [2, 0, 1]]
    back = as_map.to_segments()
    assert back.rles == segments.rles
    assert back.classes.tolist() == [1, 0]
    assert back.boxes.tolist() == segments.boxes.tolist()
    assert back.overlapping is False


def test_a_segment_that_others_cover_is_left_out():
    whole = Mask.from_dense(np.ones((2, 2), np.uint8))
    segments = Segments(
        size=(2, 2),
        categories=CATEGORIES,
        classes=np.array([0, 1]),
        scores=np.array([0.2, 0.9], np.float32),
        boxes=np.array([[0, 0, 2, 2], [0, 0, 2, 2]], np.float32),
        rles=(whole, whole),
    )
    assert PanopticMap.from_segments(segments).segment_ids.tolist() == [2]


def test_a_listed_segment_without_a_pixel_is_an_empty_mask():
    segments = panoptic([[7, 7], [0, 0]], {9: 0, 7: 1}).to_segments()
    assert segments.areas.tolist() == [0, 2]


@pytest.mark.parametrize("size", [(0, 0), (0, 3), (3, 0)])
def test_an_empty_image_is_an_ordinary_value(size):
    empty = panoptic(np.zeros(size, np.int32), {})
    assert len(empty.to_segments()) == 0
    assert empty.unlisted() == []


def test_boxes_of_segments_that_wrap_around_row_ends_stay_apart():
    # id 3 ends one row and starts the next: a run over the row's end is two
    segments = panoptic([[0, 0, 3], [3, 0, 0]], {3: 0}).to_segments()
    assert segments.boxes.tolist() == [[0, 0, 3, 2]]
    assert segments.rles[0].dense().tolist() == [[False, False, True], [True, False, False]]


def test_unlisted_ids_are_named():
    assert panoptic([[7, 4], [0, 2]], {7: 0}).unlisted() == [2, 4]


def test_painted_areas_are_counted():
    assert panoptic([[7, 7], [0, 2]], {2: 0, 7: 0, 5: 1}).painted_areas().tolist() == [1, 2, 0]


def test_a_tensor_gives_the_same_as_an_array():
    ids = torch.tensor([[7, 7], [0, 2]])
    assert panoptic(ids, {7: 0, 2: 1}).to_segments().rles == panoptic(ids.numpy(), {7: 0, 2: 1}).to_segments().rles


def test_positions_of_ids():
    assert position_of(np.array([0, 5, 9, 4]), np.array([9, 5])).tolist() == [0, 2, 1, 3]
    assert position_of(np.array([0, 5]), np.zeros(0, np.int64)).tolist() == [0, 1]


@pytest.mark.parametrize("count", [1, 25, HASHED - 1, HASHED, 3000])
@pytest.mark.parametrize("spread", [1, 256, 65536, 2**40])  # ids one after another, and ids that share their lower bits
def test_positions_of_any_ids(count, spread):
    random = np.random.default_rng(0)
    segment_ids = (random.permutation(count) + 1) * spread
    others = np.array([-1, 2**63 - 1, -(2**63), spread * (count + 1), spread + 1 if spread > 1 else count + 7])
    ids = np.concatenate(([0], segment_ids, others))
    expected = [*range(count + 1), *[count + 1] * len(others)]
    assert position_of(ids, segment_ids).tolist() == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.uint64])
def test_every_integer_type_is_read(dtype):
    assert panoptic(np.array([[7, 0]], dtype), {7: 0}).painted_areas().tolist() == [1]


def test_ids_too_large_for_a_signed_number_belong_to_no_segment():
    assert panoptic(np.array([[2**64 - 1, 7]], np.uint64), {7: 0}).unlisted() == [2**64 - 1]


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        (np.zeros((2, 2)), "float64"),
        (np.zeros((2, 2, 3), np.uint8), "colours"),
        (torch.zeros(2, 2), "float32"),
        (torch.zeros(2, 2, dtype=torch.bool), "bool"),
        (np.zeros((2, 2), np.bool_), "bool"),
    ],
)
def test_what_is_no_map_of_integers_is_refused(ids, what):
    with pytest.raises(SizeError, match=what):
        panoptic(ids, {})


def test_a_list_is_no_map():
    nothing = np.zeros(0, np.int64)
    with pytest.raises(SizeError, match="got list"):
        PanopticMap([[1, 2]], nothing, nothing, np.zeros(0, np.bool_), CATEGORIES)


@pytest.mark.parametrize("segment_id", [0, -3])
def test_id_0_is_void_and_no_segment(segment_id):
    with pytest.raises(AnnotationError, match=f"segment id {segment_id} can't be used"):
        panoptic([[0]], {segment_id: 0})


def test_an_id_listed_twice_is_refused():
    with pytest.raises(AnnotationError, match="segment id 7 is listed 2 times"):
        PanopticMap(np.array([[7]]), np.array([7, 7]), np.array([0, 1]), np.zeros(2, np.bool_), CATEGORIES)


def test_a_class_outside_the_categories_is_refused():
    with pytest.raises(SizeError, match="classes 2 to 2 do not fit 2 categories"):
        panoptic([[7]], {7: 2})


def test_lists_of_other_lengths_are_refused():
    with pytest.raises(SizeError, match="1 segments need crowd"):
        PanopticMap(np.array([[7]]), np.array([7]), np.array([0]), np.zeros(2, np.bool_), CATEGORIES)


def test_a_map_of_colours_is_copied_and_replaced_as_any_other():
    colours = np.array([[[1, 0, 0], [0, 1, 0]]], np.uint8)  # ids 1 and 256
    given = ColouredMap(colours, np.array([1, 256]), np.array([0, 1]), np.zeros(2, np.bool_), Categories.numbered(2))
    assert copy.copy(given).ids.tolist() == [[1, 256]]
    assert pickle.loads(pickle.dumps(given)).size == (1, 2)
    replaced = dataclasses.replace(given, classes=np.array([1, 0]))
    assert replaced.ids.tolist() == [[1, 256]]
    assert replaced.classes.tolist() == [1, 0]
    assert dataclasses.replace(given, ids=np.array([[2**40, 1]]), segment_ids=np.array([2**40, 1])).unlisted() == []
