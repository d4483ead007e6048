"""Box arithmetic, by numbers small enough to check by hand."""

import math

import pytest
import torch
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from thingstuff.ops.boxes import (
    assign_levels,
    box_areas,
    clip_boxes,
    decode_deltas,
    encode_deltas,
    make_anchors,
    pairwise_ioa,
    pairwise_iou,
)


def boxes(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def test_areas_are_width_times_height():
    assert box_areas(boxes((1, 2, 4, 7), (3, 3, 3, 9))).tolist() == [15, 0]


def test_areas_of_bfloat16_boxes_are_computed_in_float32():
    # 1000 x 1000 in bfloat16 would give 999424
    assert box_areas(boxes((0, 0, 1000, 1000)).bfloat16()).item() == 1000 * 1000


def test_iou_and_ioa_of_a_quarter_overlap():
    a, b = boxes((0, 0, 2, 2)), boxes((1, 1, 3, 3), (0, 0, 2, 2), (2, 0, 4, 2), (1, 1, 2, 2))
    assert_close(pairwise_iou(a, b), torch.tensor([[1 / 7, 1, 0, 1 / 4]]))  # 1 / (4 + 4 - 1), all, touching edges only, 1 / 4
    assert_close(pairwise_ioa(b, a), torch.tensor([[1 / 4], [1], [0], [1]]))


def test_empty_boxes_overlap_nothing_not_even_themselves():
    empty = boxes((1, 1, 1, 1), (5, 5, 2, 2))
    assert pairwise_iou(empty, empty).tolist() == [[0, 0], [0, 0]]
    assert pairwise_ioa(empty, boxes((0, 0, 9, 9))).tolist() == [[0], [0]]
    assert pairwise_iou(boxes(), empty).shape == (0, 2)


def test_clipping_keeps_what_lies_in_the_image():
    clipped = clip_boxes(boxes((-5, -5, 4, 4), (8, 8, 30, 40), (40, 50, 60, 70)), (20, 10))
    assert clipped.tolist() == [[0, 0, 4, 4], [8, 8, 10, 20], [10, 20, 10, 20]]


def test_deltas_by_hand():
    anchor = boxes((0, 0, 10, 20))  # centre (5, 10)
    box = boxes((5, 10, 25, 20))  # centre (15, 15), 20 x 10
    expected = [[(15 - 5) / 10, (15 - 10) / 20, math.log(20 / 10), math.log(10 / 20)]]
    assert_close(encode_deltas(box, anchor), torch.tensor(expected))
    assert_close(encode_deltas(box, anchor, (10.0, 10.0, 5.0, 5.0)), torch.tensor(expected) * torch.tensor([10.0, 10, 5, 5]))
    assert_close(decode_deltas(torch.tensor(expected), anchor), box)


def test_decoding_is_torchvisions_to_the_bit():
    torch.manual_seed(0)
    anchors = torch.rand(50, 4) * 100
    anchors[:, 2:] += anchors[:, :2] + 1
    deltas = torch.randn(50, 12) * 5
    for weights in ((10.0, 10.0, 5.0, 5.0), (1.0, 1.0, 1.0, 1.0)):
        expected = BoxCoder(weights).decode_single(deltas, anchors).reshape(50, 12)
        assert torch.equal(decode_deltas(deltas, anchors, weights), expected)


def test_growth_is_cut_and_shrinking_only_where_asked():
    anchor, deltas = boxes((0, 0, 10, 10)), torch.tensor([[0.0, 0.0, 100.0, -100.0]])
    assert_close(box_areas(decode_deltas(deltas, anchor)), torch.tensor([0.0]))
    x1, y1, x2, y2 = decode_deltas(deltas, anchor, clip_small=True)[0].tolist()
    assert x2 - x1 == pytest.approx(625)  # 10 * 1000 / 16
    assert y2 - y1 == pytest.approx(0.16, rel=1e-4)  # 10 * 16 / 1000


def test_deltas_of_no_boxes():
    assert encode_deltas(boxes(), boxes()).shape == (0, 4)
    assert decode_deltas(torch.zeros(0, 320), boxes()).shape == (0, 320)


def test_levels_double_with_size():
    sides = (0, 10, 111, 112, 223, 224, 448, 5000, math.inf)
    squares = boxes(*((0, 0, side, side) for side in sides))
    assert assign_levels(squares, 2, 5, epsilon_outside=1e-6).tolist() == [2, 2, 2, 3, 3, 4, 5, 5, 5]
    # MMDetection counts its levels from 0, where 56 pixels go
    assert assign_levels(squares, 0, 3, 56, 0, epsilon_inside=1e-6).tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3]


def test_an_inverted_box_has_the_lowest_level():
    assert assign_levels(boxes((5, 0, 0, 7), (math.nan, 0, 1, 1)), 2, 5).tolist() == [2, 2]


def test_anchors_by_hand():
    (level,) = make_anchors([(1, 2)], [(8, 16)], [(4.0, 8.0)], (1.0, 4.0))
    # ratio = height / width: size 4 at ratio 4 is 2 wide and 8 high; second cell is 16 pixels to the right
    around_zero = [[-2, -2, 2, 2], [-1, -4, 1, 4], [-4, -4, 4, 4], [-2, -8, 2, 8]]
    assert level.tolist() == around_zero + [[x1 + 16, y1, x2 + 16, y2] for x1, y1, x2, y2 in around_zero]


def test_rounded_anchors_are_torchvisions():
    grids, image = [(13, 17), (7, 9)], (100, 136)
    maps = [torch.zeros(1, 1, *grid) for grid in grids]
    theirs = AnchorGenerator(((32,), (64,)), ((0.5, 1.0, 2.0),) * 2)(ImageList(torch.zeros(1, 3, *image), [image]), maps)[0]
    strides = [(image[0] // rows, image[1] // columns) for rows, columns in grids]
    ours = make_anchors(grids, strides, [(32.0,), (64.0,)], (0.5, 1.0, 2.0), rounded=True)
    assert torch.equal(torch.cat(ours), theirs)


def test_anchors_of_an_empty_grid():
    assert [len(level) for level in make_anchors([(0, 5), (2, 3)], [(8, 8), (16, 16)], [(32.0,), (64.0,)], (1.0,))] == [0, 6]
