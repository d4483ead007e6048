"""Mask2Former: shapes, masked attention, segments of each task and losses checked by hand, gradients, empty images, export."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from thingstuff.errors import ConfigError
from thingstuff.models import mask2former
from thingstuff.models.catalog import CATALOG, MASK2FORMER_TINY
from thingstuff.models.contract import Task
from thingstuff.models.mask2former import Mask2Former, Mask2FormerConfig, Sampling, _inside
from thingstuff.models.mask_classification import (
    Convention,
    PostProcessing,
    Predictions,
    Thresholds,
    _nearest_masks,
    _nearest_masks_of_many,
    share_out,
)
from thingstuff.models.transformer import Attention, sine_positions
from thingstuff.ops.points import uncertain_points
from thingstuff.structures.categories import Categories

from .scenes import assert_two_at_once_are_as_each_alone, bright_and_dark, image_sizes, learn_by_heart, rectangles

TWO_AND_ONE = Categories.numbered(2, 1)  # two kinds of things, one of stuff


def _model(**changes: Any) -> Mask2Former:
    torch.manual_seed(0)
    return Mask2Former(replace(MASK2FORMER_TINY, **changes))


def _says(masks: list[torch.Tensor], probabilities: list[list[float]], sure: float = 8.0) -> Predictions:
    """Predictions of one image whose queries have these masks (booleans at stride 4) and class probabilities, none last."""
    stacked = torch.stack(masks).float()  # queries height width
    return Predictions(
        class_logits=torch.tensor(probabilities).log()[None, None],
        mask_embeddings=torch.eye(len(masks))[None, None],
        pixel_embeddings=(sure * (2 * stacked - 1))[None],
    )


def _area(x1: int, y1: int, x2: int, y2: int, size: tuple[int, int] = (16, 24)) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


# Shapes and parts


def test_every_layer_says_a_class_and_a_mask_of_each_query() -> None:
    predictions = _model().eval()(torch.zeros(2, 3, 64, 96))
    assert predictions.class_logits.shape == (4, 2, 12, 4)  # before and after each of three layers; three classes and none
    assert predictions.mask_embeddings.shape == (4, 2, 12, 16)
    assert predictions.pixel_embeddings.shape == (2, 16, 16, 24)


def test_masks_are_products_of_embeddings() -> None:
    model = _model().eval()
    with torch.no_grad():
        predictions = model(torch.randn(2, 3, 64, 96))
        everything = torch.einsum("lbqc,bchw->lbqhw", predictions.mask_embeddings, predictions.pixel_embeddings)
        torch.testing.assert_close(model.mask_logits(predictions, 1), everything[-1, 1])
        torch.testing.assert_close(model.mask_logits(predictions, 1, torch.tensor([3, 0]), layer=1), everything[1, 1, [3, 0]])


def test_a_query_looks_inside_its_mask_or_everywhere_when_that_is_empty() -> None:
    pixels = torch.tensor([[[1.0, -1.0, -2.0]]])
    seen = _inside(torch.tensor([[[1.0], [-1.0], [0.0]]]), pixels)
    assert seen[0].tolist() == [[True, False, False], [False, True, True], [True, True, True]]
    assert _inside(torch.tensor([[[1.0]]]), -pixels.abs()).all()


def test_a_masked_key_changes_nothing() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2)
    queries, keys = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    seen = torch.ones(1, 3, 5, dtype=torch.bool)
    seen[0, 0, 4] = False
    changed = keys.clone()
    changed[0, 4] += 10
    before, after = attention(queries, keys, keys, seen), attention(queries, changed, changed, seen)
    torch.testing.assert_close(before[0, 0], after[0, 0])
    assert not torch.allclose(before[0, 1], after[0, 1])


def test_attention_is_torchs_own() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(8, 2), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.inputs.weight)
        theirs.out_proj.weight.copy_(ours.output.weight)
    queries, keys, values = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    torch.testing.assert_close(ours(queries, keys, values), theirs(queries, keys, values)[0])


def test_positions_are_waves_of_y_then_of_x() -> None:
    positions = sine_positions(torch.zeros(1, 1, 2, 4), 8)[0].unflatten(0, (2, 4))
    # the first row of two ends at half the map, the third column of four at three quarters; wavelengths 1 and 100
    y, x = math.pi, 1.5 * math.pi
    expected = [math.sin(y), math.cos(y), math.sin(y / 100), math.cos(y / 100)]
    expected += [math.sin(x), math.cos(x), math.sin(x / 100), math.cos(x / 100)]
    torch.testing.assert_close(positions[0, 2], torch.tensor(expected), atol=1e-5, rtol=0)


def test_fresh_offsets_point_away_from_the_cell_one_cell_further_each() -> None:
    attention = _model(points=2, heads=4).pixel_decoder.layers[0].attention
    offsets = attention.offsets.bias.detach().reshape(4, 3, 2, 2)  # heads levels points (x y)
    right, below = offsets[0, 1], offsets[1, 2]
    torch.testing.assert_close(right, torch.tensor([[1.0, 0.0], [2.0, 0.0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(below, torch.tensor([[0.0, 1.0], [0.0, 2.0]]), atol=1e-6, rtol=0)


# Panoptic segments


def test_each_pixel_goes_to_the_query_that_claims_it_most() -> None:
    predictions = _says([_area(0, 0, 12, 16), _area(8, 0, 24, 16)], [[0.9, 0.02, 0.02, 0.06], [0.02, 0.02, 0.95, 0.01]])
    (segments,) = _model().segments(predictions, image_sizes(), TWO_AND_ONE, Thresholds(overlap=0.5))
    assert segments.overlapping is False
    assert segments.classes.tolist() == [0, 2]
    np.testing.assert_allclose(segments.scores, [0.9, 0.95], atol=1e-6)
    # the second is surer of the columns that both claim: 8 cells for the first, 16 for the second, 64 x 4 pixels a column
    assert segments.areas.sum() == 64 * 96
    assert segments.areas[0] == pytest.approx(8 * 256, abs=2 * 64)
    assert (segments.panoptic_map()[:, 0] == 1).all()
    assert (segments.panoptic_map()[:, 40] == 2).all()


def test_a_query_unsure_of_its_class_or_of_no_object_takes_no_part() -> None:
    everywhere = _area(0, 0, 24, 16)
    predictions = _says([everywhere] * 3, [[0.7, 0.1, 0.1, 0.1], [0.02, 0.02, 0.02, 0.94], [0.82, 0.06, 0.06, 0.06]])
    (segments,) = _model().segments(predictions, image_sizes(), TWO_AND_ONE)
    assert segments.scores.tolist() == [pytest.approx(0.82)]
    (segments,) = _model().segments(predictions, image_sizes(), TWO_AND_ONE, Thresholds(merge_score=0.9))
    assert len(segments) == 0
    assert segments.overlapping is False


def test_a_query_left_with_too_little_of_its_mask_is_void() -> None:
    masks = [_area(0, 0, 24, 16), _area(0, 0, 12, 16)]
    predictions = _says(masks, [[0.85, 0.05, 0.05, 0.05], [0.02, 0.95, 0.02, 0.01]])
    (segments,) = _model().segments(predictions, image_sizes(), TWO_AND_ONE, Thresholds(overlap=0.6))
    assert segments.classes.tolist() == [1]  # half of the first one's is gone, and what is left of it stays void
    (segments,) = _model().segments(predictions, image_sizes(), TWO_AND_ONE, Thresholds(overlap=0.4))
    assert sorted(segments.classes.tolist()) == [0, 1]


def test_queries_of_one_kind_of_stuff_are_one_segment_and_things_stay_apart() -> None:
    masks = [_area(0, 0, 8, 16), _area(8, 0, 16, 16), _area(16, 0, 24, 16)]
    stuff, thing = [0.02, 0.02, 0.9, 0.06], [0.9, 0.02, 0.02, 0.06]
    (segments,) = _model().segments(_says(masks, [stuff, thing, stuff]), image_sizes(), TWO_AND_ONE)
    assert segments.classes.tolist() == [2, 0]
    (segments,) = _model().segments(_says(masks, [thing, stuff, thing]), image_sizes(), TWO_AND_ONE)
    assert segments.classes.tolist() == [0, 2, 0]


def test_pixels_that_nobody_is_sure_of_are_void() -> None:
    predictions = _says([_area(0, 0, 8, 16)], [[0.9, 0.04, 0.04, 0.02]])
    (segments,) = _model().segments(predictions, image_sizes(), TWO_AND_ONE, Thresholds(overlap=0.1))
    assert segments.areas[0] == pytest.approx(8 * 256, abs=64 * 2)
    # MaskFormer gives all of them to the one that claims them most
    unsure = _model(post_processing=PostProcessing(only_sure=False))
    (segments,) = unsure.segments(predictions, image_sizes(), TWO_AND_ONE, Thresholds(overlap=0.1))
    assert segments.areas[0] == 64 * 96


def test_with_hugging_face_the_own_mask_is_where_score_times_probability_is_high() -> None:
    predictions = _says([_area(0, 0, 24, 8), _area(0, 8, 24, 16)], [[0.45, 0.2, 0.2, 0.15], [0.9, 0.04, 0.04, 0.02]])
    limits = Thresholds(merge_score=0.3, overlap=0.5)
    (segments,) = _model().segments(predictions, image_sizes(), TWO_AND_ONE, limits)
    assert len(segments) == 2
    theirs = _model(post_processing=PostProcessing(Convention.HUGGING_FACE))
    (segments,) = theirs.segments(predictions, image_sizes(), TWO_AND_ONE, limits)
    np.testing.assert_allclose(segments.scores, [0.9], atol=1e-6)  # 0.45 reaches one half nowhere


def test_padding_is_cut_off_and_the_rest_brought_to_the_original() -> None:
    predictions = _says([_area(0, 0, 12, 16), _area(12, 0, 24, 16)], [[0.9, 0.04, 0.04, 0.02], [0.04, 0.9, 0.04, 0.02]])
    (segments,) = _model().segments(predictions, image_sizes(input_=(64, 72), original=(128, 144)), TWO_AND_ONE)
    assert segments.size == (128, 144)
    left, right = (segments.classes == 0).nonzero()[0][0], (segments.classes == 1).nonzero()[0][0]
    assert segments.boxes[left].tolist() == pytest.approx([0, 0, 96, 128], abs=2)  # 12 cells of 4 pixels, twice as large
    assert segments.boxes[right].tolist() == pytest.approx([96, 0, 144, 128], abs=2)


# Instances and semantic maps


def test_instances_are_pairs_of_a_query_and_a_thing_by_class_and_mask_probability() -> None:
    predictions = _says([_area(0, 0, 12, 16), _area(8, 0, 24, 16)], [[0.5, 0.3, 0.1, 0.1], [0.05, 0.05, 0.8, 0.1]])
    (segments,) = _model().segments(predictions, image_sizes(), TWO_AND_ONE, Thresholds(Task.INSTANCE))
    assert segments.overlapping
    assert segments.classes.tolist()[:2] == [0, 1]  # of the first query; the second's best is stuff
    assert sorted(segments.classes.tolist()) == [0, 0, 1, 1]
    inside = 1 / (1 + math.exp(-8))
    np.testing.assert_allclose(segments.scores[:2], [0.5 * inside, 0.3 * inside], rtol=0.05)  # edges are less sure
    assert (segments.boxes[0] == segments.boxes[1]).all()
    (segments,) = _model().segments(predictions, image_sizes(), TWO_AND_ONE, Thresholds(Task.INSTANCE, score=0.4))
    assert segments.classes.tolist() == [0]
    (segments,) = _model().segments(predictions, image_sizes(), TWO_AND_ONE, Thresholds(Task.INSTANCE, detections=2))
    assert segments.classes.tolist() == [0]  # of the best two pairs one is stuff


def test_instances_without_a_pixel_are_dropped() -> None:
    predictions = _says([_area(0, 0, 0, 0), _area(0, 0, 9, 9)], [[0.9, 0.04, 0.04, 0.02], [0.6, 0.2, 0.1, 0.1]])
    (segments,) = _model().segments(predictions, image_sizes(), TWO_AND_ONE, Thresholds(Task.INSTANCE, detections=3))
    assert segments.classes.tolist() == [0, 1]
    assert (segments.areas > 0).all()


def test_with_hugging_face_stuff_may_be_an_instance() -> None:
    predictions = _says([_area(0, 0, 24, 16)], [[0.1, 0.1, 0.7, 0.1]])
    theirs = _model(post_processing=PostProcessing(Convention.HUGGING_FACE, mask_side=32))
    (segments,) = theirs.segments(predictions, image_sizes(), TWO_AND_ONE, Thresholds(Task.INSTANCE, score=0.5))
    assert segments.classes.tolist() == [2]
    assert segments.areas.tolist() == [64 * 96]


@pytest.mark.parametrize("convention", Convention)
def test_a_semantic_map_sums_queries_by_class_and_covers_the_image(convention: Convention) -> None:
    masks = [_area(0, 0, 12, 16), _area(0, 0, 12, 16), _area(0, 0, 24, 16)]
    # on the left 0.4 + 0.4 of class 0 against 0.6 of class 1; on the right class 1 alone
    predictions = _says(masks, [[0.4, 0.1, 0.1, 0.4], [0.4, 0.1, 0.1, 0.4], [0.1, 0.6, 0.2, 0.1]])
    model = _model(post_processing=PostProcessing(convention))
    (segments,) = model.segments(predictions, image_sizes(original=(128, 192)), TWO_AND_ONE, Thresholds(Task.SEMANTIC))
    assert segments.overlapping is False
    assert segments.classes.tolist() == [0, 1]
    assert segments.areas.sum() == 128 * 192
    labels = segments.semantic_map()
    assert (labels[:, :90] == 0).all()
    assert (labels[:, 102:] == 1).all()
    # left: 0.9 of 0.9 + 0.8 + 0.4; right: 0.6 of 0.1 + 0.6 + 0.2
    np.testing.assert_allclose(segments.scores, [0.9 / 2.1, 0.6 / 0.9], atol=0.02)


@pytest.mark.parametrize("task", Task)
def test_a_batch_of_two_equals_two_batches_of_one(task: Task) -> None:
    assert_two_at_once_are_as_each_alone(_model(), TWO_AND_ONE, Thresholds(task, merge_score=0.0, overlap=0.0))


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("convention", Convention)
def test_an_image_of_one_pixel_works(task: Task, convention: Convention) -> None:
    model = _model(
        post_processing=PostProcessing(convention, mask_side=24 if convention is Convention.HUGGING_FACE else None)
    ).eval()
    with torch.no_grad():
        predictions = model(torch.zeros(1, 3, 32, 32))
    (segments,) = model.segments(predictions, image_sizes(1, (1, 1), (1, 1)), TWO_AND_ONE, Thresholds(task, merge_score=0.0))
    assert segments.size == (1, 1)


@pytest.mark.parametrize("convention", Convention)
def test_leaving_out_queries_that_cannot_win_changes_nothing(convention: Convention) -> None:
    """Against the rules applied to whole maps at image size."""
    random = torch.Generator().manual_seed(0)
    logits = functional.interpolate(6 * torch.randn(1, 9, 4, 6, generator=random), size=(16, 24), mode="bicubic")[0]
    scores = 0.5 + 0.5 * torch.rand(9, generator=random)
    steps = [((64, 96), (60, 90)), ((151, 207), (151, 207))]
    how = PostProcessing(convention)
    maps = logits if convention is Convention.ORIGINAL else logits.sigmoid()
    whole = functional.interpolate(maps[None], size=(64, 96), mode="bilinear")[..., :60, :90]
    whole = functional.interpolate(whole, size=(151, 207), mode="bilinear")[0]
    whole = whole.sigmoid() if convention is Convention.ORIGINAL else whole
    claims = whole * scores[:, None, None]
    which = claims.argmax(dim=0)
    found = share_out(maps, steps, scores, (151, 207), 0.5, how)
    assert (found.won == torch.bincount(which.flatten(), minlength=9).numpy()).mean() > 0.7  # but for a pixel on an edge
    assert abs(found.won - torch.bincount(which.flatten(), minlength=9).numpy()).max() <= 2
    inside = (whole if convention is Convention.ORIGINAL else claims) >= 0.5
    assert abs(found.own - inside.flatten(1).sum(dim=1).numpy()).max() <= 2
    if convention is Convention.ORIGINAL:
        which = torch.where(inside.gather(0, which[None])[0], which, -1)
    assert (found.queries == which.numpy()).mean() > 0.999


def test_masks_that_are_no_numbers_do_no_harm() -> None:
    predictions = _says([_area(0, 0, 12, 16)] * 2, [[0.9, 0.02, 0.02, 0.06], [0.02, 0.9, 0.02, 0.06]])
    broken = replace(predictions, pixel_embeddings=torch.full_like(predictions.pixel_embeddings, float("nan")))
    for task in Task:
        (segments,) = _model().segments(broken, image_sizes(), TWO_AND_ONE, Thresholds(task))
        assert segments.size == (64, 96)


# Losses


def _answers(predictions: Predictions, **changes: Any) -> Mask2Former:
    """A model that says this whatever the image."""
    model = _model(**changes)
    model.forward = lambda images: predictions  # type: ignore[method-assign]
    return model


def test_losses_by_hand() -> None:
    """Two queries with even odds everywhere, one target on the left half, points anywhere."""
    predictions = Predictions(torch.zeros(2, 1, 2, 4), torch.zeros(2, 1, 2, 4), torch.randn(1, 4, 16, 24))
    model = _answers(predictions, sampling=Sampling(points=20_000))
    torch.manual_seed(0)
    losses = model.losses(torch.zeros(1, 3, 64, 96), [rectangles([[0, 0, 48, 64]], [1])])
    # two layers, each: log 4 whatever the weights; log 2; overlap 1/4 of the points against 1/2 and 1/2 of them
    assert losses["class"].item() == pytest.approx(2 * math.log(4))
    assert losses["mask"].item() == pytest.approx(2 * math.log(2))
    assert losses["dice"].item() == pytest.approx(2 * (1 - 2 * 0.25 / (0.5 + 0.5)), abs=0.02)


EVENLY = Sampling(points=20_000, importance=0.0)  # points anywhere: a target has its share of them


def test_losses_of_a_batch_are_means_over_its_masks() -> None:
    """Even odds everywhere; one target in a first image, three in a second that fills a quarter of the batch's size."""
    model = _answers(Predictions(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), torch.randn(2, 4, 16, 24)), sampling=EVENLY)
    one, three = [[0, 0, 48, 64]], [[0, 0, 48, 32], [0, 0, 24, 32], [0, 16, 48, 32]]
    torch.manual_seed(0)
    losses = model.losses(torch.zeros(2, 3, 64, 96), [rectangles(one, [0]), rectangles(three, [0, 1, 2], size=(32, 48))])
    dice = [1 - 2 * share * 0.5 / (share + 0.5) for share in (1 / 2, 1 / 4, 1 / 8, 1 / 8)]
    assert losses["class"].item() == pytest.approx(math.log(4))
    assert losses["mask"].item() == pytest.approx(math.log(2))
    assert losses["dice"].item() == pytest.approx(sum(dice) / 4, abs=0.01)


PROCESS = """
import sys
import torch
from thingstuff.models.catalog import MASK2FORMER_TINY
from thingstuff.models.mask2former import Mask2Former
from thingstuff.models.mask_classification import Predictions
from thingstuff.structures.preprocessing import Targets

rank, file = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
model = Mask2Former(MASK2FORMER_TINY)
even_odds = Predictions(torch.zeros(1, 1, 6, 4), torch.zeros(1, 1, 6, 4), torch.randn(1, 4, 16, 24))
model.forward = lambda images: even_odds
for masks in ((1, 5), (1, 0)):
    here = masks[rank]
    target = Targets(
        image_id=1,
        size=(64, 96),
        boxes=torch.tensor([[0.0, 0.0, 96.0, 64.0]]).repeat(here, 1),
        classes=torch.zeros(here, dtype=torch.int64),
        masks=torch.ones(here, 64, 96, dtype=torch.bool),
        is_crowd=torch.zeros(here, dtype=torch.bool),
    )
    print(model.losses(torch.zeros(1, 3, 64, 96), [target])["mask"].item())
torch.distributed.destroy_process_group()
"""


def test_every_process_divides_by_the_mean_number_of_masks(tmp_path: Path) -> None:
    """Each mask has a loss of log 2. One here and five there are three on average; one and none count as one."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        found.append([float(line) / math.log(2) for line in output.splitlines()])
    assert found[0] == pytest.approx([1 / 3, 1])
    assert found[1] == pytest.approx([5 / 3, 0])


def test_targets_are_matched_where_they_lie_in_the_padded_batch() -> None:
    """An image that fills a quarter of the batch: stretched over all of it, its left half would be the first query's."""
    said = _says([_area(0, 0, 12, 16), _area(6, 0, 12, 8), _area(0, 0, 6, 8)], [[0.3, 0.3, 0.3, 0.1]] * 3)
    target = rectangles([[0, 0, 24, 32], [24, 0, 48, 32]], [0, 1], size=(32, 48))
    torch.manual_seed(0)
    losses = _answers(said, sampling=EVENLY).losses(torch.zeros(1, 3, 64, 96), [target])
    assert losses["dice"] < 0.2


def test_dice_decides_where_masks_are_wrong_in_as_many_pixels() -> None:
    """Of 48 cells one query has all and 40 too many, the other 8: dice 0.29 and 0.71. The class alone speaks for the other."""
    said = _says([_area(8, 4, 19, 12), _area(8, 4, 9, 12)], [[0.3, 0.3, 0.3, 0.1], [0.6, 0.1, 0.2, 0.1]])
    torch.manual_seed(0)
    losses = _answers(said, sampling=EVENLY).losses(torch.zeros(1, 3, 64, 96), [rectangles([[32, 16, 56, 48]], [0])])
    assert losses["dice"].item() == pytest.approx(1 - 2 * 48 / (48 + 88), abs=0.06)


def test_uncertain_points_are_searched_in_pieces_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    said = _says([_area(0, 0, 12, 16), _area(12, 0, 24, 16)], [[0.3, 0.3, 0.3, 0.1]] * 2)
    target = rectangles([[0, 0, 48, 64], [48, 0, 96, 64]], [0, 1])
    whole = _answers(said).losses(torch.zeros(1, 3, 64, 96), [target])
    searched = []

    def search(logits_at: Any, maps: int, *numbers: Any, **more: Any) -> torch.Tensor:
        searched.append(maps)
        return uncertain_points(logits_at, maps, *numbers, **more)

    monkeypatch.setattr(mask2former, "uncertain_points", search)
    monkeypatch.setattr(mask2former, "SEARCHED", 1)
    pieces = _answers(said).losses(torch.zeros(1, 3, 64, 96), [target])
    assert {name: loss.item() for name, loss in pieces.items()} == pytest.approx(
        {name: loss.item() for name, loss in whole.items()}, abs=0.05
    )
    assert searched == [1, 1]


def test_the_cost_of_a_match_is_its_losses_with_their_weights() -> None:
    """Even odds everywhere and a target that fills the image, so that it does not matter where the points are."""
    model = _answers(Predictions(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), torch.zeros(1, 4, 16, 24)))
    costs = model._costs(model(torch.zeros(1)), 0, rectangles([[0, 0, 96, 64]], [1]), (64, 96))
    # minus 2 x 1/4 for the class, 5 log 2 for the mask, 5 x (1 - 2/3) for dice: half of all points against all
    torch.testing.assert_close(costs, torch.full((1, 2, 1), -2 / 4 + 5 * math.log(2) + 5 / 3), atol=0.05, rtol=0)


def test_the_mask_decides_where_dice_would_have_the_other() -> None:
    """A query that misses a twentieth of the image for sure costs 5 x 1 + 5 x 0.05, one unsure everywhere 5 x 0.31 + 5 x 0.27."""
    sure = torch.where(_area(0, 0, 12, 16), 20.0, -20.0)
    sure[:10, :2] *= -1  # 20 of 384 cells
    unsure = torch.where(_area(0, 0, 12, 16), 1.0, -1.0)
    said = Predictions(torch.zeros(1, 1, 2, 4), torch.eye(2)[None, None], torch.stack([sure, unsure])[None])
    torch.manual_seed(0)
    losses = _answers(said, sampling=EVENLY).losses(torch.zeros(1, 3, 64, 96), [rectangles([[0, 0, 48, 64]], [0])])
    assert losses["mask"].item() == pytest.approx(math.log(1 + math.exp(-1)), abs=0.03)


def test_no_object_weighs_a_tenth() -> None:
    class_logits = torch.tensor([[[[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]]])
    predictions = Predictions(class_logits, torch.zeros(1, 1, 2, 4), torch.zeros(1, 4, 16, 24))
    losses = _answers(predictions).losses(torch.zeros(1, 3, 64, 96), [rectangles([[0, 0, 48, 64]], [0])])
    matched = math.log(math.exp(2) + 3) - 2  # the first query, which is likelier to be class 0
    left_over = math.log(math.e + 3) - 1
    assert losses["class"].item() == pytest.approx((matched + 0.1 * left_over) / 1.1)


def test_queries_are_matched_by_class_and_mask_together() -> None:
    left, right = _area(0, 0, 12, 16), _area(12, 0, 24, 16)
    predictions = _says([right, left], [[0.3, 0.3, 0.3, 0.1], [0.3, 0.3, 0.3, 0.1]])
    target = rectangles([[0, 0, 48, 64], [48, 0, 96, 64]], [0, 1])
    losses = _answers(predictions).losses(torch.zeros(1, 3, 64, 96), [target])
    # each mask found its own; only where the two meet are points unsure, and it is there that most of them lie
    assert losses["dice"].item() < 0.3
    swapped = _answers(_says([left, left], [[0.3, 0.3, 0.3, 0.1]] * 2)).losses(torch.zeros(1, 3, 64, 96), [target])
    assert swapped["dice"].item() > 0.4


def test_every_trained_parameter_gets_a_gradient() -> None:
    model = _model().train()
    targets = [rectangles([[8, 8, 40, 40], [50, 20, 90, 60]], [0, 2]), rectangles([[0, 0, 30, 30]], [1])]
    losses = model.losses(torch.randn(2, 3, 64, 96), targets)
    assert set(losses) == set(Mask2Former.loss_weights)
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert without == []
    zero = [name for name, parameter in model.named_parameters() if parameter.grad is not None and not parameter.grad.any()]
    # timm starts the last norm of each block at zero, and all heads of deformable attention begin alike wherever they are
    assert [name for name in zero if not name.startswith("backbone.")] == ["pixel_decoder.level_embeddings"]


@pytest.mark.parametrize("crowd", [False, True])
def test_an_image_without_segments_trains_its_queries_to_be_none(crowd: bool) -> None:
    model = _model().train()
    target = rectangles([[8, 8, 40, 40]], [1], crowd=[True]) if crowd else rectangles([], [])
    losses = model.losses(torch.randn(1, 3, 64, 96), [target])
    torch.stack(list(losses.values())).sum().backward()
    assert losses["class"] > 0
    assert losses["mask"] == losses["dice"] == 0
    without = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert without == []


def test_a_target_whose_mask_was_cut_away_is_left_out() -> None:
    target = rectangles([[8, 8, 40, 40], [1, 1, 9, 9]], [1, 0])
    target.masks[1] = False
    predictions = Predictions(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), torch.zeros(1, 4, 16, 24))
    torch.manual_seed(0)
    with_it = _answers(predictions).losses(torch.zeros(1, 3, 64, 96), [target])
    torch.manual_seed(0)
    alone = _answers(predictions).losses(torch.zeros(1, 3, 64, 96), [rectangles([[8, 8, 40, 40]], [1])])
    assert {name: loss.item() for name, loss in with_it.items()} == {name: loss.item() for name, loss in alone.items()}


def test_more_segments_than_queries_train() -> None:
    random = np.random.default_rng(0)
    boxes = [[int(x), int(y), int(x) + 6, int(y) + 6] for x, y in random.uniform(0, 1, (200, 2)) * (88, 56)]
    losses = _model().train().losses(torch.randn(1, 3, 64, 96), [rectangles(boxes, [0] * 200)])
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())


def test_a_network_that_gives_no_numbers_gives_losses_that_say_so() -> None:
    predictions = Predictions(torch.zeros(1, 1, 2, 4), torch.full((1, 1, 2, 4), float("nan")), torch.ones(1, 4, 16, 24))
    losses = _answers(predictions).losses(torch.zeros(1, 3, 64, 96), [rectangles([[0, 0, 48, 64], [48, 0, 96, 64]], [0, 1])])
    assert losses["mask"].isnan()  # which the training loop names, with the images
    infinite = replace(predictions, mask_embeddings=torch.full((1, 1, 2, 4), float("inf")))
    losses = _answers(infinite).losses(torch.zeros(1, 3, 64, 96), [rectangles([[0, 0, 48, 64]], [0])])
    assert not losses["mask"].isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_under_autocast_are_those_in_32_bits(dtype: torch.dtype) -> None:
    """Seven eighths of 12,544 points at a logit of 9 are more than float16 holds: the best query would lose its target."""
    said = _says([_area(21, 0, 24, 16), _area(0, 0, 21, 16)], [[0.3, 0.3, 0.3, 0.1]] * 2, sure=8.3)
    said = Predictions(said.class_logits.to(dtype), (1.1 * said.mask_embeddings).to(dtype), said.pixel_embeddings.to(dtype))
    model, target = _answers(said, sampling=Sampling()), rectangles([[0, 0, 84, 64]], [0])
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype):
        losses = model.losses(torch.zeros(1, 3, 64, 96), [target])
    torch.manual_seed(0)
    expected = model.losses(torch.zeros(1, 3, 64, 96), [target])
    assert losses["dice"] < 0.3  # of the points, most lie where the mask ends
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], atol=1e-6, rtol=1e-6)


# Configs


def test_the_task_follows_from_the_categories() -> None:
    tasks = {
        Task.PANOPTIC: TWO_AND_ONE,
        Task.INSTANCE: Categories.numbered(4),
        Task.SEMANTIC: Categories.numbered(0, 4),
    }
    for task, categories in tasks.items():
        config = Mask2Former.config_for(Mask2FormerConfig(), categories)
        assert (config.classes, config.thresholds.task) == (len(categories), task)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 0},
        {"queries": 0},
        {"channels": 100},
        {"channels": 48},
        {"query_channels": 100, "heads": 8},
        {"decoder_layers": -1},
        {"no_object": 0.0},
    ],
)
def test_a_config_without_a_network_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        Mask2FormerConfig(**changes)


def test_numbers_out_of_range_are_refused() -> None:
    for changes in ({"score": 2.0}, {"detections": 0}, {"overlap": -0.1}, {"mask": 1.5}, {"merge_score": float("nan")}):
        with pytest.raises(ConfigError):
            Thresholds(**changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="points"):
        Sampling(points=0)
    for side in (0, 4097):
        with pytest.raises(ConfigError, match="mask_side must lie from 1 to 4096"):
            PostProcessing(mask_side=side)


def test_the_light_network_fits_into_16_megabytes_in_16_bits() -> None:
    with torch.device("meta"):
        model = Mask2Former(CATALOG["mask2former-lite0"][1])
    assert sum(parameter.numel() for parameter in model.parameters()) <= 8_000_000


# Whole networks


def test_export_keeps_the_predictions() -> None:
    model = _model().eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        exported = torch.export.export(model, (image,)).module()(image)
        expected = model(image)
    torch.testing.assert_close(exported.class_logits, expected.class_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(exported.mask_embeddings, expected.mask_embeddings, atol=1e-4, rtol=1e-4)


TRACED = """
import torch
from torch.export import Dim, export
from thingstuff.models.catalog import CATALOG

model_class, config, _ = CATALOG["mask2former-tiny"]
torch.manual_seed(0)
model, image, other = model_class(config).eval(), torch.randn(2, 3, 64, 96), torch.randn(1, 3, 96, 128)
with torch.no_grad():
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exported = export(model, (image,), dynamic_shapes={"images": {0: Dim("batch", min=1), 2: Dim.AUTO, 3: Dim.AUTO}}).module()
    for traced, images in ((compiled, image), (exported, image), (exported, other)):
        found, expected = traced(images), model(images)
        torch.testing.assert_close(found.class_logits, expected.class_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.mask_embeddings, expected.mask_embeddings, atol=1e-4, rtol=1e-4)
"""


def test_it_compiles_as_one_graph_and_exports_with_anyimage_sizes(tmp_path: Path) -> None:
    # in a process of its own: tracing cannot pass through the shape checker that the other tests run under
    script = tmp_path / "traced.py"
    script.write_text(TRACED)
    without_checker = {**os.environ, "JAXTYPING_DISABLE": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=without_checker, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "convnext_atto", "regnetx_002"])
def test_any_backbone_with_four_levels_will_do(backbone: str) -> None:
    swin = {"original_windows": True, "level_norms": True} if backbone.startswith("swin") else {}
    options = (("embed_dim", 32), ("depths", (1, 1, 1, 1)), ("num_heads", (1, 2, 4, 8))) if swin else ()
    config = replace(MASK2FORMER_TINY.backbone, name=backbone, options=options, **swin)
    predictions = _model(backbone=config).eval()(torch.zeros(1, 3, 64, 96))
    assert predictions.pixel_embeddings.shape == (1, 16, 16, 24)


def test_overfitting_one_image_finds_its_things_and_its_stuff() -> None:
    torch.manual_seed(0)
    model = _model()
    image = bright_and_dark()
    target = rectangles([[10, 10, 40, 40], [50, 20, 90, 60], [0, 0, 96, 64]], [0, 1, 2])
    target.masks[2] = ~target.masks[:2].any(dim=0)
    learn_by_heart(model, image, target, steps=150, learning_rate=2e-3, largest_gradient=5.0)
    with torch.no_grad():
        (segments,) = model.segments(model(image), image_sizes(), TWO_AND_ONE, Thresholds(merge_score=0.5))
    assert sorted(segments.classes.tolist()) == [0, 1, 2]
    for class_, mask in zip(segments.classes.tolist(), segments.masks(), strict=True):
        truth = target.masks[class_].numpy()
        assert (mask & truth).sum() / (mask | truth).sum() > 0.8


def test_masks_enlarged_many_at_once_are_those_enlarged_one_by_one() -> None:
    logits = torch.randn(20, 6, 9, generator=torch.Generator().manual_seed(0))  # more than go together
    logits[3] = -1.0
    one_by_one = list(_nearest_masks(logits, (12, 27)))
    together = list(_nearest_masks_of_many(logits, np.arange(12) // 2, np.arange(27) // 3))
    assert [mask for mask, _ in together] == [mask for mask, _ in one_by_one]
    assert [mean for _, mean in together] == pytest.approx([mean for _, mean in one_by_one], abs=1e-5)
    assert together[3][0].area == 0
