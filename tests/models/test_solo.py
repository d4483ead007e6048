"""SOLO, Decoupled SOLO and SOLOv2: shapes, grid cells and losses checked by hand, gradients, empty images, export."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from thingstuff.data.loader import collate
from thingstuff.data.transforms import Sample
from thingstuff.errors import ConfigError
from thingstuff.models import solo
from thingstuff.models.catalog import CATALOG, DECOUPLED_SOLO_TINY, SOLO_TINY, SOLOV2_TINY
from thingstuff.models.solo import SOLO, GridConfig, SOLOConfig, Thresholds, assign_grid_cells, cell_scores, local_maxima
from thingstuff.models.solov2 import SOLOv2, SOLOv2Config
from thingstuff.segmenter import Segmenter
from thingstuff.structures.categories import Categories
from thingstuff.structures.preprocessing import Preprocessing, Targets

from .scenes import image_sizes, rectangles

THREE = Categories.numbered(3)
CONFIGS = {
    "solo": SOLO_TINY,
    "decoupled": DECOUPLED_SOLO_TINY,
    "decoupled light": replace(DECOUPLED_SOLO_TINY, shared_convs=True),
    "solov2": SOLOV2_TINY,
}
CLASSES = {type(config): model for model, config, _ in CATALOG.values() if isinstance(config, GridConfig)}
LOW = Thresholds(score=0.0, cell_score=0.0, mask=0.3, detections=20)


def _model(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = replace(CONFIGS[name], **changes)
    model = CLASSES[type(config)](config)
    with torch.no_grad():  # a fresh network gives all cells the same score, and masks without a shape
        for layer in _last_layers(model):
            layer.weight.mul_(50)
    return model


def _last_layers(model: Any) -> list[Any]:
    if isinstance(model, SOLOv2):
        return [model.categories, model.kernels]
    return [model.categories, *(model.kernels if isinstance(model, SOLO) else [*model.columns, *model.rows])]


def _grids(target: Targets, padded: tuple[int, int], **changes: Any) -> list[torch.Tensor]:
    """The object of each cell, a table for each level."""
    config = GridConfig(**changes)
    cells = assign_grid_cells(target, padded, config).objects
    parts = cells.split([side * side for side in config.grids])
    return [part.view(side, side) for part, side in zip(parts, config.grids, strict=True)]


# Shapes


@pytest.mark.parametrize("name", CONFIGS)
def test_each_level_has_the_classes_of_its_grid(name: str) -> None:
    predictions = _model(name).eval()(torch.zeros(2, 3, 64, 96))
    assert [tuple(level.shape) for level in predictions.categories] == [(2, 3, side, side) for side in SOLO_TINY.grids]


def test_masks_are_made_at_strides_4_4_8_16_16() -> None:
    strides = [(16, 24), (16, 24), (8, 12), (4, 6), (4, 6)]
    predictions = _model("solo").eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape[-2:]) for level in predictions.mask_features] == strides
    decoupled = _model("decoupled").eval()(torch.zeros(1, 3, 64, 96))
    sides = SOLO_TINY.grids
    wanted = [(1, side, *size) for side, size in zip(sides, strides, strict=True)]
    assert [tuple(level.shape) for level in decoupled.columns] == [tuple(level.shape) for level in decoupled.rows] == wanted
    solov2 = _model("solov2").eval()(torch.zeros(1, 3, 64, 96))
    assert tuple(solov2.mask_feature.shape) == (1, SOLOV2_TINY.kernel_channels, 16, 24)
    assert [tuple(level.shape[-2:]) for level in solov2.kernels] == [(side, side) for side in sides]


@pytest.mark.parametrize("name", CONFIGS)
def test_masks_of_cells_come_in_the_order_asked_for(name: str) -> None:
    model = _model(name).eval()
    starts = model.config.level_starts
    with torch.no_grad():
        predictions = model(torch.randn(1, 3, 64, 96))
        cells = torch.tensor([starts[4], 0, starts[1] + 3, 1, starts[5] - 1])
        masks = model.masks_of_cells(predictions, 0, cells)
        assert masks.shape == (5, 16, 24)
        for mask, cell in zip(masks, cells, strict=True):
            torch.testing.assert_close(model.masks_of_cells(predictions, 0, cell[None])[0], mask)
        assert model.masks_of_cells(predictions, 0, cells[:0]).shape == (0, 16, 24)


def test_coordinates_run_from_minus_one_to_one_x_first() -> None:
    x, y = solo.coordinates(torch.zeros(1, 7, 3, 5))[0]
    assert x[0].tolist() == x[2].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert y[:, 0].tolist() == y[:, 4].tolist() == [-1.0, 0.0, 1.0]


def test_a_decoupled_mask_is_the_product_of_its_column_and_its_row() -> None:
    model = _model("decoupled").eval()
    with torch.no_grad():
        predictions = model(torch.randn(1, 3, 64, 96))
        side = model.config.grids[2]
        mask = model.level_masks(predictions, 0, 2, torch.tensor([2 * side + 1]))[0]
    expected = predictions.columns[2][0, 1].sigmoid() * predictions.rows[2][0, 2].sigmoid()
    torch.testing.assert_close(mask, expected)


# From cells to instances


def test_a_score_stays_where_none_above_or_to_the_left_is_higher() -> None:
    scores = torch.tensor([[[[0.1, 0.9, 0.2], [0.3, 0.4, 0.8], [0.5, 0.2, 0.8]]]])
    # 0.2 has 0.9 to its left; 0.3 has 0.1 above; 0.4 and the 0.8 beside it have 0.9 above; the last 0.8 has its equal above
    expected = [[0.1, 0.9, 0.0], [0.3, 0.0, 0.0], [0.5, 0.0, 0.8]]
    torch.testing.assert_close(local_maxima(scores)[0, 0], torch.tensor(expected))


def test_cells_are_numbered_level_by_level_row_by_row() -> None:
    levels = [torch.full((1, 1, 2, 2), -9.0), torch.full((1, 1, 1, 1), 3.0)]
    levels[0][0, 0, 1, 0] = 2.0
    probabilities = cell_scores(levels)[0, :, 0]
    assert probabilities.argsort(descending=True)[:2].tolist() == [4, 2]


@pytest.mark.parametrize("name", CONFIGS)
def test_segments_are_in_pixels_of_the_original_image_by_descending_score(name: str) -> None:
    model = _model(name).eval()
    (segments,) = model.segments(model(torch.randn(1, 3, 64, 96)), image_sizes(original=(128, 192)), THREE, LOW)
    assert 0 < len(segments) <= 20
    assert segments.size == (128, 192)
    assert (np.diff(segments.scores) <= 0).all()
    assert segments.boxes[:, 2].max() > 96  # twice the input's size
    for segment in segments:
        assert segment.area > 0
        assert tuple(segment.box) == segment.mask.box


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_of_two_equals_two_batches_of_one(name: str) -> None:
    model = _model(name).eval()
    images = torch.randn(2, 3, 64, 96)
    together = model.segments(model(images), image_sizes(2), THREE, LOW)
    for image, expected in zip(images, together, strict=True):
        (alone,) = model.segments(model(image[None]), image_sizes(), THREE, LOW)
        np.testing.assert_allclose(alone.scores, expected.scores, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_higher_score_gives_the_beginning_of_the_same_list(name: str) -> None:
    model = _model(name).eval()
    predictions = model(torch.randn(1, 3, 64, 96))
    limits = replace(LOW, detections=1000, candidates=100_000)
    (everything,) = model.segments(predictions, image_sizes(), THREE, limits)
    middle = float(everything.scores[len(everything) // 2])
    (half,) = model.segments(predictions, image_sizes(), THREE, replace(limits, score=middle))
    assert len(half) == (everything.scores > middle).sum()
    np.testing.assert_allclose(half.scores, everything.scores[: len(half)], atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_found_is_an_ordinary_result(name: str) -> None:
    model = _model(name).eval()
    (segments,) = model.segments(model(torch.zeros(1, 3, 64, 96)), image_sizes(), THREE, Thresholds(score=0.9999))
    assert len(segments) == 0
    assert segments.size == (64, 96)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_input_without_pixels_in_it_but_one_works(name: str) -> None:
    model = _model(name).eval()
    (segments,) = model.segments(model(torch.zeros(1, 3, 32, 32)), image_sizes(input_=(1, 1), original=(1, 1)), THREE, LOW)
    assert segments.size == (1, 1)


def test_masks_without_a_pixel_in_the_image_are_dropped_unless_asked_for() -> None:
    counts = []
    for drop_empty in (True, False):
        model = _model("solov2", drop_empty=drop_empty).eval()
        torch.manual_seed(1)
        predictions = model(torch.randn(1, 3, 64, 96))
        (segments,) = model.segments(predictions, image_sizes(input_=(1, 1), original=(1, 1)), THREE, LOW)
        counts.append(len(segments))
        assert (segments.areas == 0).any() != drop_empty
    assert counts[0] < counts[1]


def test_a_small_mask_is_dropped_by_the_stride_of_its_level() -> None:
    """Masks of 9 pixels at stride 4: more than 8, the stride of the first two levels, and no more than 16 and 32."""
    model = _model("solov2").eval()
    with torch.no_grad():
        predictions = model(torch.randn(1, 3, 64, 96))
        feature = torch.full_like(predictions.mask_feature, -1.0)
        feature[..., 3:6, 3:6] = 1.0
        categories = tuple(torch.full_like(level, -9.0) for level in predictions.categories)
        for level in categories:
            level[0, 0, 0, 0] = 2.0
        kernels = tuple(torch.ones_like(level) for level in predictions.kernels)
        limits = Thresholds(kernel="linear", score=0.0)
        cells, _, _ = model._choose(
            replace(predictions, categories=categories, kernels=kernels, mask_feature=feature),
            0,
            cell_scores(categories)[0],
            limits,
        )
    assert cells.tolist() == [0]  # the second level's repeats it exactly, which the linear kernel leaves no score


# Grid cells of objects


def test_an_object_has_the_cells_in_the_middle_of_its_box() -> None:
    # 160 x 160 pixels, 16 cells a side of 10 pixels; centre (45, 75), reach 0.1 * 40 = 4 across, 0.1 * 110 = 11 down
    levels = _grids(rectangles([[25, 20, 65, 130]], [0], size=(160, 160)), (160, 160), grids=(16, 16, 16, 16, 16))
    rows, columns = (levels[0] == 0).nonzero().unbind(1)
    assert sorted(set(rows.tolist())) == [6, 7, 8]  # 64 to 86
    assert sorted(set(columns.tolist())) == [4]  # 41 to 49
    assert len(rows) == 3


def test_at_most_one_cell_beyond_the_centres_own() -> None:
    (level, *_) = _grids(
        rectangles([[0, 0, 160, 160]], [0], size=(160, 160)), (160, 160), grids=(32, 1, 1, 1, 1), scale_ranges=((1.0, 999.0),) * 5
    )
    assert (level == 0).nonzero().tolist() == [[row, column] for row in (15, 16, 17) for column in (15, 16, 17)]


def test_an_object_smaller_than_a_cell_has_one_cell() -> None:
    levels = _grids(rectangles([[31, 31, 32, 32]], [0]), (64, 96), grids=(8, 4, 4, 4, 4))
    assert (levels[0] == 0).nonzero().tolist() == [[3, 2]]  # cells of 8 x 12 pixels
    assert all((level == -1).all() for level in levels[1:])


def test_an_object_trains_every_level_whose_range_its_scale_falls_in() -> None:
    # the root of 100 * 25 is 50: between 1 and 96, and between 48 and 192
    levels = _grids(rectangles([[10, 10, 110, 35]], [0], size=(128, 128)), (128, 128))
    assert [bool((level == 0).any()) for level in levels] == [True, True, False, False, False]


def test_the_first_and_the_last_range_are_open() -> None:
    ranges = ((4.0, 8.0), (6.0, 12.0), (10.0, 16.0), (14.0, 20.0), (18.0, 30.0))
    target = rectangles([[0, 0, 2, 2], [0, 0, 64, 64]], [0, 0])
    levels = _grids(target, (64, 96), scale_ranges=ranges)
    assert [sorted(set(level.flatten().tolist())) for level in levels] == [[-1, 0], [-1], [-1], [-1], [-1, 1]]


def test_of_two_objects_in_one_cell_the_smaller_has_it_in_any_order() -> None:
    boxes = [[20.0, 20, 44, 44], [30.0, 30, 34, 34]]
    for order in ([0, 1], [1, 0]):
        levels = _grids(rectangles([boxes[index] for index in order], [0, 0]), (64, 96), grids=(4, 4, 4, 4, 4))
        assert levels[0][2, 1] == order.index(1)  # both centres at (32, 32), cells of 16 x 24 pixels


def test_the_centre_is_that_of_the_mask_and_not_of_the_box() -> None:
    target = rectangles([[0, 0, 64, 64]], [0])
    target.masks[0, :, 8:] = False
    (level, *_) = _grids(target, (64, 96), grids=(12, 1, 1, 1, 1), scale_ranges=((1.0, 999.0),) * 5, centre=0.0)
    assert (level == 0).nonzero().tolist() == [[6, 0]]  # x 4, y 32; cells of 5.33 x 8 pixels


def test_the_grid_divides_the_padded_image() -> None:
    target = rectangles([[0, 0, 64, 64]], [0], size=(64, 64))
    (level, *_) = _grids(target, (128, 128), grids=(4, 1, 1, 1, 1), centre=0.0)
    assert (level == 0).nonzero().tolist() == [[1, 1]]


def test_a_crowd_is_neither_positive_nor_negative_but_for_the_objects_in_it() -> None:
    target = rectangles([[0, 0, 48, 64], [20, 28, 28, 36]], [0, 1], crowd=[True, False])
    config = GridConfig(grids=(4, 1, 1, 1, 1))
    cells = assign_grid_cells(target, (64, 96), config)
    ignored, objects = cells.ignored[:16].view(4, 4), cells.objects[:16].view(4, 4)
    # cells of 16 x 24 pixels; the object's centre (24, 32) is the corner of four
    assert (objects == 1).nonzero().tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    assert (objects >= 0).sum() == 4
    assert ignored.nonzero().tolist() == [[0, 0], [0, 1], [3, 0], [3, 1]]


def test_an_object_whose_mask_was_cut_away_has_no_cell() -> None:
    target = rectangles([[10, 10, 40, 40]], [0])
    target.masks[0] = False
    assert all((level == -1).all() for level in _grids(target, (64, 96)))


# Losses


@pytest.mark.parametrize("name", CONFIGS)
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    model = _model(name).train()
    losses = model.losses(
        torch.randn(2, 3, 64, 96), [rectangles([[8, 8, 40, 40], [50, 20, 90, 60]], [0, 2]), rectangles([[0, 0, 30, 30]], [1])]
    )
    assert set(losses) == {"category", "mask"}
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_without_objects_trains_the_categories_alone(name: str) -> None:
    model = _model(name).train()
    losses = model.losses(torch.randn(1, 3, 64, 96), [rectangles([], [])])
    torch.stack(list(losses.values())).sum().backward()
    assert losses["category"] > 0
    assert losses["mask"] == 0
    without = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert without == []


def test_a_crowd_over_all_of_the_image_leaves_nothing_to_learn() -> None:
    losses = _model("solov2").train().losses(torch.randn(1, 3, 64, 96), [rectangles([[0, 0, 96, 64]], [1], crowd=[True])])
    assert losses["category"] == losses["mask"] == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_of_even_odds_add_up_by_hand(name: str) -> None:
    """Last layers at zero: every class and every pixel has probability 1/2 (decoupled masks 1/4), whatever the image."""
    ranges = ((1.0, 100.0), (100.0, 200.0), (200.0, 300.0), (300.0, 400.0), (400.0, 500.0))
    model = _model(name, grids=(4, 1, 1, 1, 1), scale_ranges=ranges).train()
    with torch.no_grad():
        for layer in _last_layers(model):
            layer.weight.zero_()
            layer.bias.zero_()
    # one object of 16 x 16 pixels around the middle of a cell of 16 x 24: its own cell of the 20, on the first level alone
    losses = model.losses(torch.randn(1, 3, 64, 96), [rectangles([[28, 16, 44, 32]], [1])])
    positive, negative = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    # 20 cells and 3 classes, one of which is positive, over one positive cell plus one
    assert losses["category"].item() == pytest.approx((positive + 59 * negative) / 2, rel=1e-5)
    # 16 x 24 cells of 4 pixels a side, 4 x 4 of them covered whole
    pixel = 0.5 if name in ("solo", "solov2") else 0.25
    assert losses["mask"].item() == pytest.approx(1 - 2 * 16 * pixel / (384 * pixel**2 + 16 + 0.002), rel=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_gives_the_same_alone_and_beside_larger_ones(name: str) -> None:
    segmenter = Segmenter(_model(name).eval(), Categories.numbered(3), Preprocessing(short_side=0), name=name)
    random = np.random.default_rng(0)
    photos = [random.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((60, 90), (96, 70), (64, 96))]
    low = Thresholds(score=0.0, cell_score=0.0, detections=5)
    together = segmenter.segment(segmenter.preprocessing.batch(photos), thresholds=low)
    for photo, found in zip(photos, together, strict=True):
        (alone,) = segmenter.segment(segmenter.preprocessing.batch([photo]), thresholds=low)
        np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-4)
        np.testing.assert_allclose(found.boxes, alone.boxes)


@pytest.mark.parametrize("name", CONFIGS)
def test_grids_divide_each_image_of_a_batch_not_its_padding(name: str) -> None:
    model = _model(name).train()
    heads, seen = model.heads, []

    def look(pyramid: list[torch.Tensor]) -> Any:
        seen.append([tuple(level.shape[-2:]) for level in pyramid])
        return heads(pyramid)

    model.heads = look
    targets = [rectangles([[10, 10, 40, 40]], [0], size=size) for size in ((64, 96), (90, 70), (60, 80))]
    losses = model.losses(torch.randn(3, 3, 96, 96), targets)
    # 64 x 96 and 60 x 80 are both 64 x 96 when padded alone, 90 x 70 is the whole batch's 96 x 96
    assert seen == [[(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)], [(24, 24), (12, 12), (6, 6), (3, 3), (2, 2)]]
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("multiple", [1, 32, 48])
def test_grids_divide_an_image_alike_in_training_and_in_prediction_whatever_it_is_padded_to(multiple: int) -> None:
    model = _model("solo")
    segmenter = Segmenter(model, Categories.numbered(3), Preprocessing(short_side=0, pad_multiple=multiple))
    heads, seen = model.heads, []

    def look(pyramid: list[torch.Tensor]) -> Any:
        seen.append([tuple(level.shape[-2:]) for level in pyramid])
        return heads(pyramid)

    model.heads = look
    samples = [
        Sample(np.zeros((*size, 3), np.uint8), rectangles([[10, 10, 40, 40]], [0], size=size)) for size in ((60, 90), (100, 49))
    ]
    batch, targets = collate(samples, segmenter.preprocessing)
    segmenter.segment(batch)
    predicted = seen.copy()
    seen.clear()
    model.train().losses(batch.pixels, targets)
    assert seen == predicted
    # 60 x 90 as it is, as 64 x 96 and as 96 x 96
    assert seen[0][0] == {1: (15, 23), 32: (16, 24), 48: (24, 24)}[multiple]


def test_an_object_smaller_than_a_mask_pixel_still_has_a_target() -> None:
    losses = _model("solov2").train().losses(torch.randn(1, 3, 64, 96), [rectangles([[31, 31, 32, 32]], [0])])
    assert 0 < losses["mask"] <= 1


@pytest.mark.parametrize("name", CONFIGS)
def test_five_hundred_objects_in_one_image_train(name: str) -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 1, (500, 2)) * (80, 48)
    boxes = [[x, y, x + 4, y + 4] for x, y in corners.tolist()]
    model = _model(name, mask_samples=64).train()
    seen = []
    level_masks = model.level_masks

    def count(*arguments: Any) -> torch.Tensor:
        seen.append(len(arguments[3]))
        return level_masks(*arguments)

    model.level_masks = count
    losses = model.losses(torch.randn(1, 3, 64, 96), [rectangles(boxes, [0] * 500)])
    torch.stack(list(losses.values())).sum().backward()
    assert sum(seen) == 64
    assert all(loss.isfinite() for loss in losses.values())


# Configs


@pytest.mark.parametrize(
    "changes",
    [
        {"grids": (40, 36)},
        {"grids": (40, 36, 24, 16, 0)},
        {"grids": (4000, 36, 24, 16, 12)},
        {"head_channels": 100},
        {"classes": 0},
        {"scale_ranges": ((1.0, 96.0),)},
        {"scale_ranges": ((96.0, 1.0),) * 5},
        {"centre": 2.0},
    ],
)
def test_a_config_without_a_network_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        SOLOConfig(**changes)


def test_thresholds_out_of_range_are_refused() -> None:
    for changes in ({"score": 2.0}, {"candidates": 0}, {"sigma": 0.0}, {"mask": -0.1}):
        with pytest.raises(ConfigError):
            Thresholds(**changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="kernel_channels"):
        SOLOv2Config(kernel_channels=100)


# Whole networks


@pytest.mark.parametrize("name", CONFIGS)
def test_export_keeps_the_predictions(name: str) -> None:
    model = _model(name).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        exported = torch.export.export(model, (image,)).module()(image)
        for ours, theirs in zip(model(image).categories, exported.categories, strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_overfitting_one_image_finds_its_objects(name: str) -> None:
    torch.manual_seed(0)
    config = replace(CONFIGS[name], classes=2)
    model = CLASSES[type(config)](config).train()
    image = torch.zeros(1, 3, 64, 96)
    image[:, :, 10:40, 10:40], image[:, :, 20:60, 50:90] = 2.0, -2.0
    target = rectangles([[10, 10, 40, 40], [50, 20, 90, 60]], [0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for step in range(200):
        torch.manual_seed(step)
        optimizer.zero_grad()
        losses = model.losses(image, [target])
        (losses["category"] + 3 * losses["mask"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    model.eval()
    for norm in model.modules():  # 200 steps are too few for running statistics
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.train()
    (segments,) = model.segments(model(image), image_sizes(), Categories.numbered(2), Thresholds(score=0.4))
    assert sorted(segments.classes.tolist()) == [0, 1]
    for segment in segments:
        x1, y1, x2, y2 = target.boxes[int(segment.category.id) - 1].tolist()
        truth = np.zeros((64, 96), bool)
        truth[int(y1) : int(y2), int(x1) : int(x2)] = True
        mask = segment.mask.dense()
        assert (mask & truth).sum() / (mask | truth).sum() > 0.9  # edges within the masks' pixels of 4 x 4 included
