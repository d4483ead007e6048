"""MaskFormer: shapes, its own losses by hand, gradients, empty images, export. What it shares is tested with Mask2Former."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.export import Dim

from thingstuff.errors import ConfigError
from thingstuff.models.catalog import MASKFORMER_TINY
from thingstuff.models.contract import Task
from thingstuff.models.mask_classification import PostProcessing, Predictions, Thresholds
from thingstuff.models.maskformer import MaskFormer, MaskFormerConfig
from thingstuff.structures.categories import Categories
from thingstuff.structures.preprocessing import ImageSize

from .scenes import assert_two_at_once_are_as_each_alone, bright_and_dark, image_sizes, learn_by_heart, rectangles

TWO_AND_ONE = Categories.numbered(2, 1)  # two kinds of things, one of stuff
WITH_ENCODER = {"encoder_layers": 1, "encoder_width": 32}


def _model(**changes: Any) -> MaskFormer:
    torch.manual_seed(0)
    return MaskFormer(replace(MASKFORMER_TINY, **changes))


@pytest.mark.parametrize("changes", [{}, WITH_ENCODER])
def test_every_layer_says_a_class_and_a_mask_of_each_query(changes: dict[str, Any]) -> None:
    predictions = _model(**changes).eval()(torch.zeros(2, 3, 64, 96))
    assert predictions.class_logits.shape == (2, 2, 12, 4)  # after each of two layers; three classes and none
    assert predictions.mask_embeddings.shape == (2, 2, 12, 16)
    assert predictions.pixel_embeddings.shape == (2, 16, 16, 24)


@pytest.mark.parametrize("changes", [{}, WITH_ENCODER])
def test_every_trained_parameter_gets_a_gradient(changes: dict[str, Any]) -> None:
    model = _model(**changes).train()
    targets = [rectangles([[8, 8, 40, 40], [50, 20, 90, 60]], [0, 2]), rectangles([[0, 0, 30, 30]], [1])]
    losses = model.losses(torch.randn(2, 3, 64, 96), targets)
    assert set(losses) == set(MaskFormer.loss_weights)
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("crowd", [False, True])
def test_an_image_without_segments_trains_its_queries_to_be_none(crowd: bool) -> None:
    model = _model().train()
    target = rectangles([[8, 8, 40, 40]], [1], crowd=[True]) if crowd else rectangles([], [])
    losses = model.losses(torch.randn(1, 3, 64, 96), [target])
    torch.stack(list(losses.values())).sum().backward()
    assert losses["class"] > 0
    assert losses["mask"] == losses["dice"] == 0


def test_losses_by_hand() -> None:
    """Two queries with even odds everywhere, one target on the left half, on cells of which it fills a whole number."""
    model = _model()
    predictions = Predictions(torch.zeros(2, 1, 2, 4), torch.zeros(2, 1, 2, 4), torch.randn(1, 4, 16, 24))
    model.forward = lambda images: predictions  # type: ignore[method-assign]
    losses = model.losses(torch.zeros(1, 3, 64, 96), [rectangles([[0, 0, 48, 64]], [1])])
    # two layers, each: log 4; half the cells a quarter and half three quarters of (1/2)^2 log 2; overlap of 192 cells by 1/2
    assert losses["class"].item() == pytest.approx(2 * math.log(4))
    assert losses["mask"].item() == pytest.approx(2 * 0.5 * 0.25 * math.log(2))
    assert losses["dice"].item() == pytest.approx(2 * (1 - (2 * 96 + 1) / (192 + 192 + 1)))


def test_losses_are_those_of_each_layer_alone_summed() -> None:
    """Images with a crowd, with nothing, with more targets than queries, and with a mask that was cut away."""
    torch.manual_seed(0)
    said = Predictions(torch.randn(3, 4, 5, 4), torch.randn(3, 4, 5, 4), torch.randn(4, 4, 16, 24))
    boxes = [[8 * i, 4 * i, 8 * i + 24, 4 * i + 20] for i in range(8)]
    cut = rectangles(boxes[:2], [0, 2])
    cut.masks[0] = False
    targets = [
        rectangles(boxes[:3], [0, 1, 2], crowd=[False, True, False]),
        rectangles([], []),
        rectangles(boxes, [0, 1, 2, 0, 1, 2, 0, 1]),
        cut,
    ]
    model = _model(queries=5)

    def losses_of(predictions: Predictions) -> dict[str, torch.Tensor]:
        model.forward = lambda images: predictions  # type: ignore[method-assign]
        return model.losses(torch.zeros(4, 3, 64, 96), targets)

    layers = [Predictions(said.class_logits[[i]], said.mask_embeddings[[i]], said.pixel_embeddings) for i in range(3)]
    apart = [losses_of(layer) for layer in layers]
    for name, loss in losses_of(said).items():
        torch.testing.assert_close(loss, sum(layer[name] for layer in apart))


def test_losses_of_a_batch_are_means_over_its_masks() -> None:
    """Even odds everywhere; one target in a first image, three in a second that fills a quarter of the batch's size."""
    model = _model()
    predictions = Predictions(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), torch.randn(2, 4, 16, 24))
    model.forward = lambda images: predictions  # type: ignore[method-assign]
    small = rectangles([[0, 0, 48, 32], [0, 0, 24, 32], [0, 16, 48, 32]], [0, 1, 2])
    small = replace(small, size=(32, 48), masks=small.masks[:, :32, :48])
    losses = model.losses(torch.zeros(2, 3, 64, 96), [rectangles([[0, 0, 48, 64]], [0]), small])
    cells = (192, 96, 48, 48)  # of 384
    focal = [(0.25 * count + 0.75 * (384 - count)) / 384 * 0.25 * math.log(2) for count in cells]
    assert losses["class"].item() == pytest.approx(math.log(4))
    assert losses["mask"].item() == pytest.approx(sum(focal) / 4)
    assert losses["dice"].item() == pytest.approx(sum(1 - (count + 1) / (192 + count + 1) for count in cells) / 4)


def test_the_cost_of_a_match_is_its_losses_with_their_weights() -> None:
    model = _model()
    predictions = Predictions(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), torch.zeros(1, 4, 16, 24))
    costs = model._costs(predictions, 0, rectangles([[0, 0, 48, 64]], [1]), (64, 96))
    # minus 1/4 for the class, 20 times the focal loss, the dice loss: as in the losses by hand
    expected = -1 / 4 + 20 * 0.5 * 0.25 * math.log(2) + (1 - (2 * 96 + 1) / (192 + 192 + 1))
    torch.testing.assert_close(costs, torch.full((1, 2, 1), expected))


def test_a_target_smaller_than_a_cell_has_a_share_of_it() -> None:
    model = _model().train()
    losses = model.losses(torch.randn(1, 3, 64, 96), [rectangles([[1, 1, 2, 3]], [0])])
    assert losses["mask"] > 0
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("task", Task)
def test_a_batch_of_two_equals_two_batches_of_one(task: Task) -> None:
    assert_two_at_once_are_as_each_alone(_model(**WITH_ENCODER), TWO_AND_ONE, Thresholds(task, merge_score=0.0, overlap=0.0))


@pytest.mark.parametrize(("unpadded", "pixels"), [(True, 3), (False, 2)])
def test_masks_of_an_image_that_was_not_padded_end_where_it_does(unpadded: bool, pixels: int) -> None:
    """Two cells of 4 pixels for a row of 5: logits -1 and 2 lie at pixels 1 and 3 1/2 of it, or at 2 and 6 of the padded 8."""
    model = _model(classes=1, mask_channels=1, post_processing=PostProcessing(only_sure=False, unpadded=unpadded))
    said = Predictions(
        torch.tensor([9.0, 0.0]).reshape(1, 1, 1, 2), torch.ones(1, 1, 1, 1), torch.tensor([-1.0, 2.0]).reshape(1, 1, 1, 2)
    )
    [found] = model.segments(said, [ImageSize((1, 5), (1, 5))], Categories.numbered(1), Thresholds(Task.INSTANCE))
    # 0 is reached a third of the way from cell to cell: at 1 1/4 + 5/6 of five pixels, at 2 + 4/3 of eight
    assert found.masks()[0].sum() == pixels


def test_an_export_keeps_the_predictions_at_other_image_sizes() -> None:
    model = _model(**WITH_ENCODER).eval()
    sizes = {"images": {0: Dim("batch", min=1), 2: Dim.AUTO, 3: Dim.AUTO}}
    with torch.no_grad():
        exported = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=sizes).module()
        image = torch.randn(1, 3, 96, 128)
        found, expected = exported(image), model(image)
    torch.testing.assert_close(found.class_logits, expected.class_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.mask_embeddings, expected.mask_embeddings, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"classes": 0}, {"channels": 48}, {"decoder_layers": 0}, {"encoder_layers": -1}, {"dropout": 1.0}]
)
def test_a_config_without_a_network_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        MaskFormerConfig(**changes)


def test_overfitting_one_image_finds_its_things_and_its_stuff() -> None:
    torch.manual_seed(0)
    model = _model(dropout=0.0)
    image = bright_and_dark()
    target = rectangles([[10, 10, 40, 40], [50, 20, 90, 60], [0, 0, 96, 64]], [0, 1, 2])
    target.masks[2] = ~target.masks[:2].any(dim=0)
    learn_by_heart(model, image, target, steps=150, learning_rate=2e-3, largest_gradient=5.0)
    with torch.no_grad():
        (segments,) = model.segments(model(image), image_sizes(), TWO_AND_ONE, Thresholds(merge_score=0.5))
    assert sorted(segments.classes.tolist()) == [0, 1, 2]
    for class_, mask in zip(segments.classes.tolist(), segments.masks(), strict=True):
        truth = target.masks[class_].numpy()
        assert (mask & truth).sum() / (mask | truth).sum() > 0.7
