"""Which boxes the libraries keep that differ in nothing but that."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from thingstuff.models.catalog import MASK_RCNN_TINY
from thingstuff.models.mask_rcnn import Detections, MaskRCNN, Predictions, Thresholds
from thingstuff.structures.categories import Categories
from thingstuff.structures.preprocessing import ImageSize


def model_with(**changes: object) -> MaskRCNN:
    return MaskRCNN(replace(MASK_RCNN_TINY, **changes)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(("drops", "classes"), [(True, [1]), (False, [0, 1])])
def test_a_detection_without_area_is_dropped_or_returned_with_an_empty_mask(drops: bool, classes: list[int]) -> None:
    boxes = torch.tensor([[64.0, 10, 64, 30], [10, 10, 30, 30]])
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]))
    size = ImageSize((64, 64), (64, 64))
    result = model_with(drop_empty_boxes=drops)._paste(found, torch.full((2, 28, 28), 9.0), size, Categories.numbered(3), 0.5)
    assert result.classes.tolist() == classes
    assert [segment.area for segment in result] == [0, 400][-len(classes) :]


@pytest.mark.parametrize(("inclusive", "kept"), [(False, [False, True]), (True, [True, True])])
def test_a_side_of_exactly_the_least_size(inclusive: bool, kept: list[bool]) -> None:
    boxes = torch.tensor([[0.0, 0, 2, 5], [0, 0, 3, 5]])
    assert model_with(min_size_inclusive=inclusive)._large_enough(boxes, 2.0).tolist() == kept


def test_proposals_below_the_objectness_limit_are_left_out() -> None:
    model = model_with()
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    predictions = Predictions(
        levels=(torch.zeros(1, 16, 1, 2),),
        objectness=(torch.tensor([0.0, 2.0]).reshape(1, 1, 1, 2),),  # probabilities 0.5 and 0.88
        anchor_deltas=(torch.zeros(1, 4, 1, 2),),
        anchors=(anchors,),
    )
    for limit, count in ((0.0, 2), (0.5, 2), (0.6, 1), (0.9, 0)):
        [(boxes, logits)] = model.proposals(predictions, [(64, 64)], 10, 10, 0.7, 0.0, limit)
        assert len(boxes) == len(logits) == count
    np.testing.assert_array_equal(boxes.shape, (0, 4))
    assert Thresholds().proposal_score == 0
