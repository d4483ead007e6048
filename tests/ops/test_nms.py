"""Non-maximum suppression, by hand and against torchvision's kernel."""

import math

import pytest
import torch
import torchvision

from thingstuff.ops.boxes import pairwise_iou
from thingstuff.ops.nms import batched_nms, fast_nms, nms


def random_boxes(count: int, seed: int, crowded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=random) * torch.tensor([1300.0, 800.0, 150.0, 150.0])
    if crowded:
        boxes = boxes[torch.randint(max(1, count // 25), (count,), generator=random)]
        boxes = boxes + 10 * torch.randn(count, 4, generator=random)
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].abs()
    scores = (torch.rand(count, generator=random) * 200).round() / 200  # many equal scores
    return boxes, scores


def test_the_best_of_overlapping_boxes_stays():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 1, 10, 11], [50, 50, 60, 60]])  # first two: IoU 90 / 110
    assert nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist() == [1, 2]


def test_a_box_suppressed_does_not_suppress():
    # neighbours overlap by 6 of 14, IoU 0.43; the outer two by 2 of 18
    boxes = torch.tensor([[0.0, 0, 10, 1], [4, 0, 14, 1], [8, 0, 18, 1]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.4).tolist() == [0, 2]


def test_iou_equal_to_the_threshold_does_not_suppress():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 5, 10, 10]])  # IoU exactly 0.5 with the first
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1, 2]
    assert nms(boxes, scores, math.nextafter(0.5, 0)).tolist() == [0]


def test_a_threshold_that_float32_cannot_hold_is_taken_exactly():
    # IoU = 3 / 10; the float32 nearest to it is above the number 0.3, and is so for the reference kernel
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.3).tolist() == torchvision.ops.nms(boxes, scores, 0.3).tolist() == [0]


def test_equal_scores_rank_by_index():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1) + torch.tensor([[0.0], [0], [100], [0]])
    assert nms(boxes, torch.ones(4), 0.5).tolist() == [0, 2]


def test_scores_that_are_not_numbers_rank_last():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)
    assert nms(boxes, torch.tensor([math.nan, -math.inf, 0.1, math.inf]), 0.5).tolist() == [3]
    assert nms(boxes[:2], torch.tensor([math.nan, -5.0]), 0.5).tolist() == [1]
    apart = boxes + 20 * torch.arange(4)[:, None]
    assert nms(apart, torch.tensor([math.nan, -1.0, math.inf, 0.1]), 0.5).tolist() == [2, 3, 1, 0]


def test_empty_and_broken_boxes_neither_suppress_nor_are_suppressed():
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [math.nan, 0, 9, 9], [0, 0, 9, 9], [0, 0, math.inf, 9]])
    assert nms(boxes, torch.arange(5).flip(0).float(), 0.1).tolist() == [0, 1, 2, 3, 4]


def test_nothing_in_nothing_out():
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
    assert batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.5).tolist() == []


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 0.95])
def test_equals_torchvision(crowded: bool, threshold: float):
    for count in (1, 2, 3, 50, 511, 512, 513, 1500):
        boxes, scores = random_boxes(count, count, crowded)
        assert nms(boxes, scores, threshold).tolist() == torchvision.ops.nms(boxes, scores, threshold).tolist()


def test_half_precision_boxes_are_compared_in_float32():
    boxes, scores = random_boxes(300, 1, crowded=True)
    boxes = boxes.bfloat16()
    assert nms(boxes, scores, 0.5).tolist() == torchvision.ops.nms(boxes.float(), scores, 0.5).tolist()


def test_double_precision():
    boxes, scores = random_boxes(300, 2, crowded=True)
    boxes = boxes.double() + 1e-9
    assert nms(boxes, scores.double(), 0.5).tolist() == torchvision.ops.nms(boxes, scores.double(), 0.5).tolist()


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_groups_do_not_compete(threshold: float):
    boxes, scores = random_boxes(1200, 3, crowded=True)
    groups = torch.randint(-2, 7, (1200,), generator=torch.Generator().manual_seed(0))
    kept = [index for group in groups.unique() for index in _within(groups == group, boxes, scores, threshold)]
    expected = sorted(kept, key=lambda index: (-scores[index].item(), index))
    assert batched_nms(boxes, scores, groups, threshold).tolist() == expected


def _within(chosen: torch.Tensor, boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    indices = chosen.nonzero().flatten()
    return indices[torchvision.ops.nms(boxes[indices], scores[indices], threshold)].tolist()


def test_groups_far_apart_lose_no_precision():
    # moving groups apart by the largest coordinate would round these boxes to whole multiples of 64 pixels
    boxes = torch.tensor([[1e8, 0, 1e8 + 64, 1], [0.25, 0, 0.75, 1], [0.5, 0, 1, 1]])
    assert batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 5, 5]), 0.5).tolist() == [0, 1, 2]


def test_a_long_chain_of_overlaps():
    # every box suppresses the next: kept are 0, 2, 4, ...
    start = torch.arange(3000) * 5.0
    boxes = torch.stack((start, torch.zeros(3000), start + 10, torch.ones(3000)), dim=1)
    scores = torch.linspace(1, 0, 3000)
    assert nms(boxes, scores, 0.3).tolist() == list(range(0, 3000, 2))


# Fast NMS

CHAIN = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])  # IoU of neighbours 6 / 14 = 0.43, of the ends 2 / 18


def test_fast_nms_lets_a_suppressed_box_suppress():
    scores = torch.tensor([[0.9], [0.8], [0.7]])
    kept, classes, found = fast_nms(CHAIN, scores, 0.4, 200)
    assert kept.tolist() == [0]  # the third goes because of the second, though that is gone itself
    assert nms(CHAIN, scores[:, 0], 0.4).tolist() == [0, 2]
    assert (classes.tolist(), found.tolist()) == ([0], [pytest.approx(0.9)])


def test_fast_nms_is_within_classes_or_across_them():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.0, 0.7]])
    kept, classes, _ = fast_nms(CHAIN[:2], scores[:2], 0.4, 200)
    assert list(zip(kept.tolist(), classes.tolist(), strict=True)) == [(0, 0), (1, 1)]
    kept, classes, _ = fast_nms(CHAIN, scores, 0.4, 200, cross_class=True)
    assert list(zip(kept.tolist(), classes.tolist(), strict=True)) == [(0, 0)]


def test_fast_nms_compares_the_best_candidates_alone():
    boxes = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]])
    kept, _, found = fast_nms(boxes, torch.tensor([[0.3], [0.9], [0.6]]), 0.5, 2)
    assert kept.tolist() == [1, 2]
    assert found.tolist() == pytest.approx([0.9, 0.6])


@pytest.mark.parametrize("cross_class", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
def test_fast_nms_of_nothing_is_nothing(shape, cross_class):
    for part in fast_nms(torch.zeros(shape[0], 4), torch.zeros(shape), 0.5, 10, cross_class=cross_class):
        assert len(part) == 0


def test_fast_nms_equals_its_definition(monkeypatch):
    monkeypatch.setattr("thingstuff.ops.nms.FAST_PAIRS", 500)  # several chunks of classes
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + 5 + torch.rand(60, 2, generator=generator) * 10], dim=1)
    scores = torch.rand(60, 7, generator=generator)
    kept, classes, found = fast_nms(boxes, scores, 0.5, 15, min_score=0.3)
    wanted = set()
    for class_ in range(7):
        order = scores[:, class_].argsort(descending=True)[:15]
        ious = pairwise_iou(boxes[order], boxes[order])
        for rank, box in enumerate(order.tolist()):
            if scores[box, class_] > 0.3 and not (ious[:rank, rank] > 0.5).any():
                wanted.add((box, class_))
    assert set(zip(kept.tolist(), classes.tolist(), strict=True)) == wanted
    assert (found.diff() <= 0).all()
    assert found.tolist() == scores[kept, classes].tolist()


@pytest.mark.parametrize("classes", [1, 2])
def test_a_score_of_nan_suppresses_nobody_in_fast_nms(classes: int) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 8.9]])
    scores = torch.zeros(3, classes)
    scores[:, 0] = torch.tensor([float("nan"), 0.9, 0.8])
    kept, _, found = fast_nms(boxes, scores, 0.5, candidates=2, min_score=0.1)
    assert kept.tolist() == [1]
    assert found.tolist() == pytest.approx([0.9])
