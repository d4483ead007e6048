"""Panoptic FPN: the semantic branch and its loss by hand, what each task gives, images of every kind, gradients, export."""

import math
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from thingstuff.errors import ConfigError
from thingstuff.models import panoptic_fpn
from thingstuff.models.catalog import CATALOG, PANOPTIC_FPN_TINY
from thingstuff.models.contract import Task
from thingstuff.models.fpn import Norm
from thingstuff.models.mask_rcnn import Detections, MaskRCNN
from thingstuff.models.panoptic_fpn import PanopticFPN, PanopticFPNConfig, Predictions, Thresholds, upsampled_cross_entropy
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.preprocessing import ImageSize, Targets

from .scenes import bright_and_dark, image_sizes, learn_by_heart, rectangles

# classes 0 and 2 are things 0 and 1; class 1 is stuff 0
THREE = Categories((Category(1, "cat"), Category(2, "sky", is_thing=False), Category(3, "dog")))
LOW = Thresholds(proposals_per_level=50, proposals=50, score=0.0, detections=20, merge_score=0.0, stuff_area=0)


def _model(**changes: object) -> PanopticFPN:
    torch.manual_seed(0)
    return PanopticFPN(replace(PANOPTIC_FPN_TINY, **changes))  # type: ignore[arg-type]


# The network


def test_predictions_hold_the_semantic_logits_at_the_stride_of_p2_things_last() -> None:
    predictions = _model().eval()(torch.zeros(2, 3, 64, 96))
    assert [tuple(level.shape[-2:]) for level in predictions.levels] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert predictions.semantic_logits.shape == (2, 2, 16, 24)  # one kind of stuff, and things


def test_the_semantic_branch_has_a_convolution_for_each_halving_and_one_for_p2() -> None:
    branch = _model().semantic_branch
    assert [len(convs) for convs in branch.levels] == [1, 1, 2, 3]  # type: ignore[arg-type]
    assert branch.levels[3][0].conv.weight.shape == (64, 16, 3, 3)  # type: ignore[index, union-attr]
    assert branch.levels[3][2].conv.weight.shape == (64, 64, 3, 3)  # type: ignore[index, union-attr]


def test_the_semantic_branch_adds_up_what_each_level_says() -> None:
    """Convolutions that copy the first channel and no norm: constant levels of 1, 2, 4 and 8 add up to 15 everywhere."""
    branch = _model(semantic_norm=Norm.NONE).semantic_branch
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.zero_()
        for module in branch.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[0, 0, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1
    pyramid = [torch.full((1, 16, 16 >> level, 24 >> level), float(1 << level)) for level in range(4)]
    logits = branch([*pyramid, torch.full((1, 16, 1, 2), 100.0)])  # P6 has no part in it
    torch.testing.assert_close(logits[:, 0], torch.full((1, 16, 24), 15.0))
    torch.testing.assert_close(logits[:, 1], torch.zeros(1, 16, 24))


def test_heads_on_boxes_count_things_alone() -> None:
    model = _model()
    assert (model.config.classes, model.config.things, model.config.stuff) == (3, 2, 1)
    assert model.box_head.classes.out_features == 3  # two kinds of things and background
    assert model.box_head.deltas.out_features == 8
    assert model.mask_head.logits.out_channels == 2
    assert (model.config.class_of_thing, model.config.class_of_stuff) == ((0, 2), (1,))


def test_the_networks_parts_are_mask_rcnns() -> None:
    shapes = {name: tensor.shape for name, tensor in _model().state_dict().items()}
    alone = MaskRCNN(CATALOG["mask-rcnn-tiny"][1].__class__(**_instance_values())).state_dict()
    assert {name: tensor.shape for name, tensor in alone.items()} == {
        name: shape for name, shape in shapes.items() if not name.startswith("semantic_branch.")
    }


def _instance_values() -> dict[str, object]:
    config = CATALOG["mask-rcnn-tiny"][1]
    return {**vars(config), "classes": 2}


# What each task gives


def _says(
    model: PanopticFPN, semantic_logits: Tensor, monkeypatch: pytest.MonkeyPatch, things: list[tuple[list[float], float, int]]
) -> Predictions:
    """Predictions of which the boxes (box, score, thing) and the semantic logits are known; masks fill their boxes."""
    predictions = model(torch.zeros(1, 3, 64, 96))
    found = Detections(
        torch.tensor([box for box, _, _ in things]).reshape(-1, 4),
        torch.tensor([score for _, score, _ in things]),
        torch.tensor([thing for _, _, thing in things], dtype=torch.int64),
    )
    monkeypatch.setattr(model, "boxes", lambda predictions, sizes, limits: [found])
    monkeypatch.setattr(
        model, "mask_logits", lambda levels, detections: [torch.full((len(each.boxes), 28, 28), 9.0) for each in detections]
    )
    return replace(predictions, semantic_logits=semantic_logits)


def _left_sky_right_things() -> Tensor:
    logits = torch.zeros(1, 2, 16, 24)
    logits[:, 0, :, :12], logits[:, 1, :, 12:] = 2.0, 2.0
    return logits


# on the border, on sky alone, and one that the first has taken too much of
SCENE = [([40.0, 0, 60, 20], 0.9, 1), ([4.0, 40, 24, 60], 0.7, 0), ([40.0, 0, 64, 24], 0.6, 0), ([70.0, 40, 90, 60], 0.4, 0)]


def test_panoptic_things_lie_on_stuff_and_the_rest_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model().eval()
    predictions = _says(model, _left_sky_right_things(), monkeypatch, SCENE)
    limits = Thresholds(stuff_area=64)
    (segments,) = model.segments(predictions, image_sizes(), THREE, limits)
    # the third has 576 pixels, 400 of them taken: more than a half; the fourth is scored below merge_score
    assert segments.classes.tolist() == [2, 0, 1]
    assert [round(score, 6) for score in segments.scores.tolist()[:2]] == [0.9, 0.7]
    # sky: the left half, 48 x 64, less 8 x 20 and 20 x 20; equal logits at its edge go to the sky
    assert segments.areas.tolist() == [400, 400, 48 * 64 - 160 - 400]
    assert not segments.overlapping
    assert segments.masks().sum(axis=0).max() == 1
    panoptic = segments.panoptic_map()
    assert panoptic[10, 50] == 1
    assert panoptic[50, 10] == 2
    assert panoptic[30, 10] == 3
    assert panoptic[50, 80] == 0
    np.testing.assert_array_equal(segments.boxes[:2], [[40, 0, 60, 20], [4, 40, 24, 60]])
    assert segments.scores[2] == pytest.approx(1 / (1 + math.exp(-2)))  # softmax of 2 and 0


def test_each_number_of_the_merge_may_be_changed_for_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model().eval()
    predictions = _says(model, _left_sky_right_things(), monkeypatch, SCENE)

    def areas(**limits: float) -> list[int]:
        (segments,) = model.segments(predictions, image_sizes(), THREE, Thresholds(**{"stuff_area": 64, **limits}))  # type: ignore[arg-type]
        return segments.areas.tolist()

    # 176 of the third's pixels are free, and 8 x 4 of them are sky's
    assert areas(overlap=0.7) == [400, 400, 176, 2512 - 32]
    assert areas(merge_score=0.4) == [400, 400, 400, 2512]
    assert areas(merge_score=0.8) == [400, 2912]
    assert areas(stuff_area=2512) == [400, 400, 2512]
    assert areas(stuff_area=2513) == [400, 400]


def test_things_that_the_semantic_branch_sees_are_void_where_no_box_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model().eval()
    logits = torch.zeros(1, 2, 16, 24)
    logits[:, 1] = 1.0
    (segments,) = model.segments(_says(model, logits, monkeypatch, []), image_sizes(), THREE, Thresholds(stuff_area=0))
    assert len(segments) == 0
    assert (segments.panoptic_map() == 0).all()
    assert not segments.overlapping


def test_instances_are_mask_rcnns_with_the_classes_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model().eval()
    predictions = _says(model, _left_sky_right_things(), monkeypatch, SCENE)
    (segments,) = model.segments(predictions, image_sizes(), THREE, Thresholds(task=Task.INSTANCE))
    assert segments.classes.tolist() == [2, 0, 0, 0]
    assert segments.areas.tolist() == [400, 400, 576, 400]
    assert segments.overlapping
    assert segments.is_thing.all()


def test_semantic_segments_are_the_branchs_own_and_things_tell_what_its_things_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model().eval()
    predictions = _says(model, _left_sky_right_things(), monkeypatch, SCENE)
    (segments,) = model.segments(predictions, image_sizes(), THREE, Thresholds(task=Task.SEMANTIC))
    assert segments.classes.tolist() == [0, 1, 2]
    assert not segments.overlapping
    semantic = segments.semantic_map()
    assert (semantic[:, :48] == 1).all()  # all of the sky, whatever lies on it
    # right of it the first thing's 12 x 20 pixels, what the third has besides, no matter how little, and void
    assert (semantic[:20, 48:60] == 2).all()
    assert segments.areas.tolist() == [16 * 24 - 12 * 20, 48 * 64, 12 * 20]
    assert (semantic[40:, 48:] == -1).all()
    np.testing.assert_allclose(segments.scores[[0, 2]], [0.6, 0.9])
    np.testing.assert_array_equal(segments.boxes[2], [48, 0, 60, 20])


def test_semantic_segments_of_one_class_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model().eval()
    things = [([60.0, 0, 70, 10], 0.9, 0), ([80.0, 0, 90, 10], 0.7, 0)]
    predictions = _says(model, _left_sky_right_things(), monkeypatch, things)
    (segments,) = model.segments(predictions, image_sizes(), THREE, Thresholds(task=Task.SEMANTIC))
    assert segments.classes.tolist() == [0, 1]
    assert segments.areas.tolist() == [200, 48 * 64]
    np.testing.assert_array_equal(segments.boxes[0], [60, 0, 90, 10])


def test_the_map_is_that_of_the_original_image_less_the_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model().eval()
    logits = torch.zeros(1, 2, 16, 24)
    logits[:, 0] = 1.0
    logits[:, :, 10:] = torch.tensor([0.0, 9.0]).reshape(1, 2, 1, 1)  # the padding looks like things
    sizes = image_sizes(input_=(40, 96), original=(80, 192))
    (segments,) = model.segments(_says(model, logits, monkeypatch, [([10.0, 10, 20, 20], 0.9, 0)]), sizes, THREE, Thresholds())
    assert segments.size == (80, 192)
    assert segments.areas[0] == 400  # twice as high, twice as wide
    np.testing.assert_array_equal(segments.boxes[0], [20, 20, 40, 40])
    # the last rows lie between a cell of sky and one of padding
    assert (segments.semantic_map()[:70] >= 0).all()


@pytest.mark.parametrize("task", Task)
def test_a_batch_of_two_equals_two_batches_of_one(task: Task) -> None:
    model = _model().eval()
    images = torch.randn(2, 3, 64, 96)
    limits = replace(LOW, task=task)
    together = model.segments(model(images), image_sizes(2), THREE, limits)
    assert sum(len(segments) for segments in together) > 1
    for image, expected in zip(images, together, strict=True):
        (alone,) = model.segments(model(image[None]), image_sizes(), THREE, limits)
        np.testing.assert_allclose(alone.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(alone.boxes, expected.boxes, atol=1e-3 if task is Task.INSTANCE else 1)
        np.testing.assert_array_equal(alone.classes, expected.classes)


def test_the_default_task_is_the_configs() -> None:
    model = _model().eval()
    predictions = model(torch.randn(1, 3, 64, 96))
    assert not model.segments(predictions, image_sizes(), THREE)[0].overlapping
    model.config = replace(model.config, thresholds=replace(LOW, task=Task.INSTANCE))
    assert model.segments(predictions, image_sizes(), THREE)[0].overlapping


@pytest.mark.parametrize("task", Task)
def test_an_image_of_one_pixel_works(task: Task) -> None:
    model = _model().eval()
    sizes = image_sizes(input_=(1, 1), original=(1, 1))
    (segments,) = model.segments(model(torch.zeros(1, 3, 32, 32)), sizes, THREE, replace(LOW, task=task))
    assert segments.size == (1, 1)


def test_the_score_of_stuff_that_is_largest_nowhere_is_its_largest_probability() -> None:
    logits = torch.zeros(3, 8, 8)
    logits[1] = 3.0
    logits[0, :, 4:] = 1.0
    size = ImageSize((32, 32), (64, 64))
    scores = panoptic_fpn._stuff_scores(logits, size)
    denominators = (1 + math.exp(3) + 1, math.e + math.exp(3) + 1)
    assert scores[1].item() == pytest.approx((math.exp(3) / denominators[0] + math.exp(3) / denominators[1]) / 2)
    assert scores[0].item() == pytest.approx(math.e / denominators[1])
    # the right half, which is padding here, does not count
    assert panoptic_fpn._stuff_scores(logits, ImageSize((32, 16), (64, 32)))[1].item() == pytest.approx(
        math.exp(3) / denominators[0]
    )


def test_nms_across_classes_keeps_one_of_two_boxes_on_one_thing() -> None:
    model = _model().eval()
    proposals = torch.tensor([[10.0, 10, 50, 50], [11.0, 11, 51, 51]])
    logits = torch.tensor([[5.0, 0, 0], [0, 4.0, 0]])
    deltas = torch.zeros(2, 8)
    for cross_class, kept in ((False, [0, 1]), (True, [0])):
        limits = Thresholds(score=0.5, cross_class=cross_class)
        assert model.detections(logits, deltas, proposals, (64, 96), limits).classes.tolist() == kept


# Losses


def test_every_trained_parameter_gets_a_gradient() -> None:
    model = _model().train()
    losses = model.losses(
        torch.randn(2, 3, 64, 96),
        [rectangles([[8, 8, 40, 40], [50, 20, 90, 60], [0, 60, 96, 64]], [0, 2, 1]), rectangles([[0, 0, 30, 30]], [2])],
    )
    assert set(losses) == {"rpn_objectness", "rpn_box", "class", "box", "mask", "semantic"} == set(PanopticFPN.loss_weights)
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert without == []


def test_the_weight_of_the_semantic_loss_is_the_papers() -> None:
    assert PanopticFPN.loss_weights["semantic"] == 0.5


def test_the_semantic_truth_is_painted_from_the_segments() -> None:
    targets = rectangles(
        [[0, 0, 4, 2], [4, 0, 8, 2], [0, 2, 4, 4], [4, 2, 6, 4]], [1, 0, 2, 0], [False, False, False, True], (4, 8)
    )
    truth = _model().semantic_truth([targets, rectangles([], [], size=(4, 8))], (5, 9))
    # sky is the first channel, things of both kinds and crowds of them the last; void and padding are -1
    assert truth[0].tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 1, -1],
        [0, 0, 0, 0, 1, 1, 1, 1, -1],
        [1, 1, 1, 1, 1, 1, -1, -1, -1],
        [1, 1, 1, 1, 1, 1, -1, -1, -1],
        [-1, -1, -1, -1, -1, -1, -1, -1, -1],
    ]
    assert (truth[1] == -1).all()


def test_the_semantic_loss_by_hand() -> None:
    """Logits of 2 for sky and 0 for things everywhere: -log p is log(1 + exp -2) on sky and 2 more on things."""
    model = _model()
    logits = torch.zeros(1, 2, 16, 24)
    logits[:, 0] = 2.0
    predictions = replace(model(torch.zeros(1, 3, 64, 96)), semantic_logits=logits)
    # a quarter of the pixels that count is a thing's; the right half of the image is void
    targets = [rectangles([[0, 0, 48, 48], [0, 48, 48, 64]], [1, 0])]
    loss = model._semantic_loss(predictions, torch.zeros(1, 3, 64, 96), targets)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)) + 2 / 4, abs=1e-5)


def test_pixels_of_all_images_count_alike() -> None:
    model = _model()
    logits = torch.zeros(2, 2, 16, 24)
    logits[:, 0] = 2.0
    predictions = replace(model(torch.zeros(2, 3, 64, 96)), semantic_logits=logits)
    targets = [rectangles([[0, 0, 96, 63]], [1]), rectangles([[0, 0, 96, 1]], [0])]  # 63 rows of sky, one of a thing
    loss = model._semantic_loss(predictions, torch.zeros(2, 3, 64, 96), targets)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)) + 2 / 64, abs=1e-5)


def test_instance_losses_see_things_alone() -> None:
    things = _model()._things(rectangles([[8, 8, 40, 40], [0, 0, 96, 8], [50, 20, 90, 60]], [2, 1, 0], [False, False, True]))
    assert things.classes.tolist() == [1, 0]
    assert things.boxes.tolist() == [[8, 8, 40, 40], [50, 20, 90, 60]]
    assert things.is_crowd.tolist() == [False, True]
    assert things.masks.sum(dim=(1, 2)).tolist() == [32 * 32, 40 * 40]


@pytest.mark.parametrize(
    ("targets", "zero"),
    [
        (rectangles([[0, 0, 96, 64]], [1]), {"rpn_box", "box", "mask"}),  # stuff alone
        (rectangles([], []), {"rpn_box", "box", "mask", "semantic"}),  # void alone
        (rectangles([[8, 8, 40, 40]], [0], [True]), {"rpn_box", "box", "mask"}),  # a crowd alone
    ],
    ids=["stuff", "void", "crowd"],
)
def test_images_without_a_thing_to_find_train_what_they_can(targets: Targets, zero: set[str]) -> None:
    model = _model().train()
    losses = model.losses(torch.randn(1, 3, 64, 96), [targets])
    assert {name for name, loss in losses.items() if loss == 0} == zero
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()


def test_overfitting_one_image_finds_its_segments() -> None:
    model = _model()
    image = bright_and_dark()
    target = rectangles([[10, 10, 40, 40], [50, 20, 90, 60]], [0, 2])
    sky = ~target.masks.any(dim=0)
    target = replace(
        target,
        boxes=torch.cat([target.boxes, torch.tensor([[0.0, 0, 96, 64]])]),
        classes=torch.tensor([0, 2, 1]),
        masks=torch.cat([target.masks, sky[None]]),
        is_crowd=torch.zeros(3, dtype=torch.bool),
    )
    learn_by_heart(model, image, target, steps=300, learning_rate=2e-3, largest_gradient=1.0)
    (segments,) = model.segments(model(image), image_sizes(), THREE, Thresholds(stuff_area=64))
    assert sorted(segments.classes.tolist()) == [0, 1, 2]
    for segment, class_ in zip(segments, segments.classes.tolist(), strict=True):
        truth, found = target.masks[[0, 2, 1].index(class_)].numpy(), segment.mask.dense()
        assert (truth & found).sum() / (truth | found).sum() > 0.8


# Configs


def test_a_config_for_a_data_sets_categories_knows_which_are_things() -> None:
    config = PanopticFPN.config_for(PANOPTIC_FPN_TINY, Categories((*THREE, Category(9, "sea", is_thing=False))))
    assert (config.classes, config.is_thing) == (4, (True, False, True, False))
    assert (config.things, config.stuff) == (2, 2)
    assert replace(config, classes=3, is_thing=PANOPTIC_FPN_TINY.is_thing) == PANOPTIC_FPN_TINY


@pytest.mark.parametrize("is_thing", [True, False])
def test_a_data_set_of_things_or_stuff_alone_is_refused(is_thing: bool) -> None:
    with pytest.raises(ConfigError, match="at least one class of things and one of stuff, got"):
        PanopticFPN.config_for(PANOPTIC_FPN_TINY, Categories((Category(1, "a", is_thing), Category(2, "b", is_thing))))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": 4}, "is_thing needs an entry for each of the 4 classes, got 3"),
        ({"semantic_channels": 48}, "semantic_channels must be at least 1, and a multiple of 32 for group norm, got 48"),
        ({"semantic_channels": 0}, "semantic_channels"),
        ({"anchor_sizes": (8.0, 16.0)}, "anchor_sizes"),
    ],
)
def test_a_config_no_network_can_have_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(PANOPTIC_FPN_TINY, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overlap": 1.5}, "overlap must lie from 0 to 1"),
        ({"merge_score": -0.1}, "merge_score must lie from 0 to 1"),
        ({"stuff_area": -1}, "stuff_area must not be negative"),
        ({"score": 2.0}, "score must lie from 0 to 1"),
    ],
)
def test_a_threshold_outside_its_range_is_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Thresholds(**changes)  # type: ignore[arg-type]


def test_norms_of_the_semantic_branch_are_those_of_the_config() -> None:
    for norm, kind in ((Norm.NONE, nn.Identity), (Norm.BATCH, nn.BatchNorm2d), (Norm.GROUP, nn.GroupNorm)):
        branch = _model(semantic_norm=norm).semantic_branch
        assert all(type(conv.norm) is kind for convs in branch.levels for conv in convs)  # type: ignore[union-attr]


def test_the_light_network_fits_16_megabytes_in_16_bits() -> None:
    kind, config, _ = CATALOG["panoptic-fpn-lite0"]
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in kind(config).parameters())
    assert parameters <= 8_000_000
    assert isinstance(config, PanopticFPNConfig)
    assert config.classes == 133


EXPORT = """
import torch
from thingstuff.models.catalog import PANOPTIC_FPN_TINY
from thingstuff.models.panoptic_fpn import PanopticFPN
model = PanopticFPN(PANOPTIC_FPN_TINY).eval()
images = torch.randn(1, 3, 64, 96)
with torch.no_grad():
    expected = model(images)
    got = torch.export.export(model, (images,)).module()(images)
for one, other in zip(expected.levels + expected.objectness + expected.anchors, got.levels + got.objectness + got.anchors):
    torch.testing.assert_close(one, other)
torch.testing.assert_close(expected.semantic_logits, got.semantic_logits)
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
    targets = [rectangles([[8, 8, 40, 40], [0, 44, 96, 64]], [0, 1]), rectangles([], [])]
    expected = model(images).semantic_logits
    here = {task: model.segments(model(images), image_sizes(2), THREE, replace(LOW, task=task)) for task in Task}
    model.cuda()
    torch.testing.assert_close(model(images.cuda()).semantic_logits.cpu(), expected, rtol=1e-3, atol=1e-3)
    for task, found in here.items():
        there = model.segments(model(images.cuda()), image_sizes(2), THREE, replace(LOW, task=task))
        np.testing.assert_allclose(there[0].scores, found[0].scores, atol=1e-3)
        assert (there[0].semantic_map() == found[0].semantic_map()).mean() > 0.99
    losses = model.train().losses(images.cuda(), [target.to("cuda") for target in targets])
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())


def _enlarged(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    logits = functional.interpolate(logits.float(), size=truth.shape[-2:], mode="bilinear", align_corners=False)
    return functional.cross_entropy(logits, truth, ignore_index=-1, reduction="sum")


@pytest.mark.parametrize("size", [(5, 7), (20, 28), (17, 31), (3, 2), (1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_upsampled_cross_entropy_and_its_gradient_are_those_of_enlarged_logits(
    size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    random = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn((3, 6, 5, 7), generator=random)).to(memory_format=memory_format).requires_grad_()
    truth = torch.randint(-1, 6, (3, *size), generator=random)
    found, wanted = upsampled_cross_entropy(logits, truth), _enlarged(logits, truth)
    torch.testing.assert_close(found, wanted)
    [gradient], [wanted_gradient] = (torch.autograd.grad(loss * 0.7, logits) for loss in (found, wanted))
    torch.testing.assert_close(gradient, wanted_gradient)


def test_upsampled_cross_entropy_of_half_precision_is_found_in_float32_under_autocast() -> None:
    logits = torch.randn((2, 4, 6, 8), generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    truth = torch.randint(-1, 4, (2, 24, 32), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = upsampled_cross_entropy(logits, truth)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, _enlarged(logits, truth))
    [gradient] = torch.autograd.grad(found, logits)
    assert gradient.dtype == torch.bfloat16
    [wanted] = torch.autograd.grad(_enlarged(logits, truth), logits)
    torch.testing.assert_close(gradient, wanted)


def test_upsampled_cross_entropy_of_nothing_but_void_is_zero_and_so_is_its_gradient() -> None:
    logits = torch.full((1, 3, 2, 2), 7.0, requires_grad=True)
    loss = upsampled_cross_entropy(logits, torch.full((1, 8, 8), -1))
    assert loss == 0
    [gradient] = torch.autograd.grad(loss, logits)
    assert not gradient.any()


def test_upsampled_cross_entropy_is_finite_for_any_logit() -> None:
    logits = torch.tensor([1e4, -1e4, 0.0]).reshape(1, 3, 1, 1).requires_grad_()
    loss = upsampled_cross_entropy(logits, torch.ones((1, 4, 4), dtype=torch.int64))
    assert float(loss.detach()) == pytest.approx(16 * 2e4)
    [gradient] = torch.autograd.grad(loss, logits)
    assert gradient.flatten().tolist() == pytest.approx([16, -16, 0])


def test_upsampled_cross_entropy_keeps_nothing_of_the_enlarged_size() -> None:
    logits = torch.randn((2, 8, 4, 4), generator=torch.Generator().manual_seed(0), requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(tensor.numel()), tensor)[1], lambda held: held):
        upsampled_cross_entropy(logits, torch.zeros((2, 64, 64), dtype=torch.int64))
    assert kept == [logits.numel()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_upsampled_cross_entropy_rounds_a_gradient_of_16_bits_once(dtype: torch.dtype) -> None:
    logits = torch.randn((1, 3, 1, 1), generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    truth = torch.zeros((1, 300, 300), dtype=torch.int64)  # of which the sum is beyond float16
    [gradient] = torch.autograd.grad(upsampled_cross_entropy(logits, truth) * 0.3 / truth.numel(), logits)
    wanted = 0.3 * (logits.detach().float().softmax(dim=1).flatten() - torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(gradient.flatten(), wanted.to(dtype))


def test_upsampled_cross_entropy_of_no_image() -> None:
    logits = torch.zeros((0, 3, 2, 2), requires_grad=True)
    loss = upsampled_cross_entropy(logits, torch.zeros((0, 8, 8), dtype=torch.int64))
    assert loss == 0
    [gradient] = torch.autograd.grad(loss, logits)
    assert gradient.shape == (0, 3, 2, 2)


def test_upsampled_cross_entropy_holds_the_maps_of_no_more_images_than_there_are_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    enlarge, made = functional.interpolate, []

    def watched(*arguments: Any, **options: Any) -> Tensor:
        assert all(map_() is None for map_ in made)
        enlarged = enlarge(*arguments, **options)
        assert len(enlarged) <= 2
        made.append(weakref.ref(enlarged.untyped_storage()))
        return enlarged

    monkeypatch.setattr(functional, "interpolate", watched)
    logits = torch.randn((5, 8, 4, 4), generator=torch.Generator().manual_seed(0), requires_grad=True)
    upsampled_cross_entropy(logits, torch.zeros((5, 64, 64), dtype=torch.int64))
    assert len(made) == 3


def test_upsampled_cross_entropy_refuses_a_class_that_is_not_there() -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        upsampled_cross_entropy(torch.zeros((1, 3, 2, 2)), torch.full((1, 4, 4), 3))
