"""Box losses of Mask R-CNN against numbers computed by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from thingstuff.models.catalog import CATALOG
from thingstuff.models.mask_rcnn import MaskRCNN, Predictions, _RoIs
from thingstuff.structures.preprocessing import Targets

TARGET = Targets(
    image_id=1,
    size=(64, 64),
    boxes=torch.tensor([[1.0, 2.0, 11.0, 12.0]]),  # 10 x 10, moved by (1, 2) from the first anchor and region
    classes=torch.tensor([1]),
    masks=torch.zeros(1, 64, 64, dtype=torch.bool),
    is_crowd=torch.zeros(1, dtype=torch.bool),
)
BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]])  # one on the object, one on background


def test_losses_of_the_proposals() -> None:
    model = MaskRCNN(CATALOG["mask-rcnn-tiny"][1])
    deltas = torch.tensor([[0.3, 0.2, 0.0, -0.5], [9.0, 9.0, 9.0, 9.0]])  # anchor (x y w h)
    predictions = Predictions(
        levels=(torch.zeros(1, 16, 1, 2),),
        objectness=(torch.zeros(1, 1, 1, 2),),
        anchor_deltas=(deltas.T.reshape(1, 4, 1, 2),),
        anchors=(BOXES,),
    )
    losses = model._rpn_losses(predictions, [TARGET])
    # wanted deltas 1/10, 2/10, log 1, log 1: |0.3 - 0.1| + 0 + 0 + |-0.5| = 0.7, over 2 sampled anchors
    assert losses["rpn_box"].item() == pytest.approx(0.35)
    assert losses["rpn_objectness"].item() == pytest.approx(math.log(2))


class _Fixed(nn.Module):
    def __init__(self, logits: Tensor, deltas: Tensor):
        super().__init__()
        self.logits, self.deltas = logits, deltas

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits, self.deltas


def test_losses_of_the_box_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MaskRCNN(CATALOG["mask-rcnn-tiny"][1])
    deltas = torch.full((2, 3, 4), 9.0)  # region class (x y w h)
    deltas[0, 1] = torch.tensor([1.5, 2.0, 0.0, -1.0])
    monkeypatch.setattr(model, "box_head", _Fixed(torch.zeros(2, 4), deltas.flatten(1)))
    rois = _RoIs(boxes=BOXES, classes=torch.tensor([1, 3]), matched=torch.tensor([0]))
    losses = model._box_losses(
        [torch.zeros(1, 16, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32, 64)], [rois], [TARGET]
    )
    # wanted deltas 10 * 1/10, 10 * 2/10, 5 * log 1, 5 * log 1: |1.5 - 1| + 0 + 0 + |-1| = 1.5, over 2 regions
    assert losses["box"].item() == pytest.approx(0.75)
    assert losses["class"].item() == pytest.approx(math.log(4))
