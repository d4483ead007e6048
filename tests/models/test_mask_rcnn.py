"""Mask R-CNN: shapes, losses checked by hand, gradients, empty images, export."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from thingstuff.errors import ConfigError
from thingstuff.models import mask_rcnn
from thingstuff.models.catalog import CATALOG, MASK_RCNN_TINY
from thingstuff.models.contract import Model
from thingstuff.models.mask_rcnn import MaskRCNN, Sampling, Thresholds
from thingstuff.structures.categories import Categories

from .scenes import bright_and_dark, image_sizes, learn_by_heart, rectangles

THREE = Categories.numbered(3)
LOW = Thresholds(proposals_per_level=50, proposals=50, score=0.0, detections=20)


def _model(**changes: object) -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(replace(MASK_RCNN_TINY, **changes))  # type: ignore[arg-type]


def test_predictions_hold_five_levels_with_their_anchors() -> None:
    predictions = _model().eval()(torch.zeros(2, 3, 64, 96))
    assert [tuple(level.shape) for level in predictions.levels] == [
        (2, 16, 16, 24), (2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3), (2, 16, 1, 2)
    ]  # fmt: skip
    assert predictions.objectness[0].shape == (2, 3, 16, 24)
    assert predictions.anchor_deltas[0].shape == (2, 12, 16, 24)
    assert [len(anchors) for anchors in predictions.anchors] == [16 * 24 * 3, 8 * 12 * 3, 4 * 6 * 3, 2 * 3 * 3, 1 * 2 * 3]


def test_segments_are_in_pixels_of_the_original_image_by_descending_score() -> None:
    model = _model().eval()
    predictions = model(torch.randn(1, 3, 64, 96))
    (segments,) = model.segments(predictions, image_sizes(original=(128, 192)), THREE, LOW)
    assert len(segments) == 20
    assert segments.size == (128, 192)
    assert (np.diff(segments.scores) <= 0).all()
    assert segments.boxes[:, 2].max() > 96  # twice the input's size
    for segment in segments:  # the mask never leaves its box by more than the pixel the box's edge cuts
        if segment.area:
            x1, y1, x2, y2 = segment.mask.box
            assert x1 >= segment.box[0] - 1
            assert y1 >= segment.box[1] - 1
            assert x2 <= segment.box[2] + 1
            assert y2 <= segment.box[3] + 1


def test_an_image_without_a_proposal_has_no_segments() -> None:
    model = _model().eval()
    with torch.no_grad():
        for parameter in model.rpn.parameters():
            parameter.fill_(torch.nan)
    (segments,) = model.segments(model(torch.randn(1, 3, 64, 96)), image_sizes(), THREE, LOW)
    assert len(segments) == 0


def test_a_batch_of_two_equals_two_batches_of_one() -> None:
    model = _model().eval()
    images = torch.randn(2, 3, 64, 96)
    together = model.segments(model(images), image_sizes(2), THREE, LOW)
    for image, expected in zip(images, together, strict=True):
        (alone,) = model.segments(model(image[None]), image_sizes(), THREE, LOW)
        np.testing.assert_allclose(alone.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(alone.boxes, expected.boxes, atol=1e-3)


def test_nothing_found_is_an_ordinary_result() -> None:
    model = _model().eval()
    (segments,) = model.segments(model(torch.zeros(1, 3, 64, 96)), image_sizes(), THREE, Thresholds(score=0.999999))
    assert len(segments) == 0
    assert segments.size == (64, 96)


def test_an_input_without_pixels_in_it_but_one_works() -> None:
    model = _model().eval()
    (segments,) = model.segments(model(torch.zeros(1, 3, 32, 32)), image_sizes(input_=(1, 1), original=(1, 1)), THREE, LOW)
    assert segments.size == (1, 1)


def test_every_trained_parameter_gets_a_gradient() -> None:
    model = _model().train()
    losses = model.losses(
        torch.randn(2, 3, 64, 96), [rectangles([[8, 8, 40, 40], [50, 20, 90, 60]], [0, 2]), rectangles([[0, 0, 30, 30]], [1])]
    )
    assert set(losses) == {"rpn_objectness", "rpn_box", "class", "box", "mask"}
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert without == []


@pytest.mark.parametrize(
    "changes", [{"class_agnostic_boxes": True}, {"class_agnostic_masks": True}, {"box_convs": 2, "box_channels": 16}]
)
def test_variants_of_the_heads_train_and_predict(changes: dict[str, object]) -> None:
    model = _model(**changes)
    losses = model.train().losses(torch.randn(1, 3, 64, 96), [rectangles([[8, 8, 40, 40]], [2])])
    assert all(loss.isfinite() for loss in losses.values())
    model.eval()
    assert len(model.segments(model(torch.randn(1, 3, 64, 96)), image_sizes(), THREE, LOW)[0]) == 20


def test_an_image_without_objects_trains_the_background_alone() -> None:
    model = _model().train()
    losses = model.losses(torch.randn(1, 3, 64, 96), [rectangles([], [])])
    torch.stack(list(losses.values())).sum().backward()
    assert losses["class"] > 0
    assert losses["rpn_objectness"] > 0
    assert losses["rpn_box"] == losses["box"] == losses["mask"] == 0


def test_an_image_with_crowds_alone_has_nothing_positive() -> None:
    losses = _model().train().losses(torch.randn(1, 3, 64, 96), [rectangles([[0, 0, 96, 64]], [1], crowd=[True])])
    assert losses["rpn_box"] == losses["box"] == losses["mask"] == 0


def test_what_lies_in_a_crowd_is_no_negative() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50], [5, 0, 15, 10]])
    target = rectangles([[0, 0, 10, 20], [40, 40, 50, 50]], [0, 0], crowd=[True, False])
    labels, matched = mask_rcnn._match(boxes, target, 0.3, 0.7, 0.5, keep_best=True)
    # the first lies in the crowd whole, the third by half; the second is the other object itself
    assert labels.tolist() == [-1, 1, -1]
    assert matched[1] == 1


def test_anchors_between_the_thresholds_are_ignored_but_an_objects_best_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 2], [60, 0, 66, 10]])
    target = rectangles([[0, 0, 10, 10], [60, 0, 70, 10]], [0, 1])
    # IoU with the first object: 1, 0.5, 0.2, 0; with the second: 0, 0, 0, 0.6, which is its best
    labels, matched = mask_rcnn._match(boxes, target, 0.3, 0.7, 0.5, keep_best=True)
    assert labels.tolist() == [1, -1, 0, 1]
    assert matched.tolist()[::3] == [0, 1]


def test_sampling_keeps_the_share_of_positives() -> None:
    labels = torch.tensor([1] * 50 + [0] * 50 + [-1] * 50)
    positive, negative = mask_rcnn._sample(labels, 40, 0.25)
    assert len(positive) == 10
    assert len(negative) == 30
    assert (labels[positive] == 1).all()
    assert (labels[negative] == 0).all()


def test_mask_targets_are_the_share_of_each_cell_that_is_covered() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :, :3] = True  # the three left columns
    cells = mask_rcnn._crop_masks(mask, torch.tensor([0]), torch.tensor([[0.0, 0, 8, 8]]), 4)
    assert cells[0, 0].tolist() == [1.0, 0.5, 0.0, 0.0]  # cells of two columns: both, one, none, none


def test_losses_of_a_known_case_add_up_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero weights in the last layers: every logit is 0, so each loss is a logarithm of 2 or of the number of classes."""
    model = _model(sampling=Sampling(anchors=8, rois=8)).train()
    with torch.no_grad():
        for layer in (
            model.rpn.objectness,
            model.rpn.deltas,
            model.box_head.classes,
            model.box_head.deltas,
            model.mask_head.logits,
        ):
            layer.weight.zero_()
            layer.bias.zero_()  # type: ignore[union-attr]
    losses = model.losses(torch.randn(1, 3, 64, 96), [rectangles([[8, 8, 40, 40]], [1])])
    assert losses["rpn_objectness"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert losses["class"].item() == pytest.approx(math.log(4), abs=1e-6)  # three classes and background
    assert losses["mask"].item() == pytest.approx(math.log(2), abs=1e-6)


def test_overfitting_one_image_finds_its_objects() -> None:
    model = _model(classes=2)
    image = bright_and_dark()
    target = rectangles([[10, 10, 40, 40], [50, 20, 90, 60]], [0, 1])
    learn_by_heart(model, image, target, steps=160, learning_rate=1e-3, largest_gradient=1.0)
    (segments,) = model.segments(model(image), image_sizes(), Categories.numbered(2), Thresholds(score=0.5))
    assert sorted(segments.classes.tolist()) == [0, 1]
    for segment in segments:
        truth = target.masks[segment.category.id - 1].numpy()
        found = segment.mask.dense()
        assert (truth & found).sum() / (truth | found).sum() > 0.8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": 0}, "classes"),
        ({"anchor_sizes": (8.0, 16.0)}, "anchor_sizes"),
        ({"anchor_ratios": ()}, "anchor_ratios"),
        ({"box_fcs": 0}, "box_fcs"),
    ],
)
def test_a_config_no_network_can_have_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(MASK_RCNN_TINY, **changes)  # type: ignore[arg-type]


def test_every_catalog_entry_builds() -> None:
    for model_class, config, preprocessing in CATALOG.values():
        with torch.device("meta"):
            assert isinstance(model_class(config), Model)
        assert preprocessing.short_side > 0


EXPORT = """
import torch
from thingstuff.models.catalog import MASK_RCNN_TINY
from thingstuff.models.mask_rcnn import MaskRCNN
model = MaskRCNN(MASK_RCNN_TINY).eval()
images = torch.randn(1, 3, 64, 96)
with torch.no_grad():
    expected = model(images)
    got = torch.export.export(model, (images,)).module()(images)
for one, other in zip(expected.levels + expected.objectness + expected.anchors, got.levels + got.objectness + got.anchors):
    torch.testing.assert_close(one, other)
"""


def test_the_network_exports() -> None:
    environment = os.environ | {"JAXTYPING_DISABLE": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", EXPORT], check=True, env=environment, timeout=300)


def _cuda() -> bool:
    return torch.cuda.is_available()


@pytest.mark.gpu
@pytest.mark.skipif("not _cuda()", reason="needs a CUDA device")
def test_forward_losses_and_segments_on_cuda_equal_the_cpu() -> None:
    model = _model().eval()
    images = torch.randn(2, 3, 64, 96)
    targets = [rectangles([[8, 8, 40, 40]], [0]), rectangles([], [])]
    expected: Tensor = model(images).levels[0]
    here = model.segments(model(images), image_sizes(2), THREE, LOW)
    model.cuda()
    torch.testing.assert_close(model(images.cuda()).levels[0].cpu(), expected, rtol=1e-3, atol=1e-3)
    there = model.segments(model(images.cuda()), image_sizes(2), THREE, LOW)
    np.testing.assert_allclose(there[0].scores, here[0].scores, atol=1e-3)
    losses = model.train().losses(images.cuda(), [target.to("cuda") for target in targets])
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
