"""YOLACT: shapes, losses added up by hand, gradients, empty images, rating of masks, export."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from thingstuff.errors import ConfigError
from thingstuff.models import yolact
from thingstuff.models.catalog import CATALOG, YOLACT_TINY
from thingstuff.models.fpn import Extra
from thingstuff.models.yolact import Sampling, Thresholds, Yolact, YolactConfig
from thingstuff.structures.categories import Categories
from thingstuff.structures.preprocessing import Targets

from .scenes import image_sizes, rectangles

THREE = Categories.numbered(3)
LOW = Thresholds(score=0.0, detections=20)


def _model(**changes: object) -> Yolact:
    torch.manual_seed(0)
    return Yolact(replace(YOLACT_TINY, **changes))  # type: ignore[arg-type]


# Predictions


def test_predictions_have_a_row_for_each_anchor_and_prototypes_at_twice_p3() -> None:
    predictions = _model().eval()(torch.zeros(2, 3, 64, 96))
    anchors = 3 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1)
    assert predictions.class_logits.shape == (2, anchors, 4)
    assert predictions.box_deltas.shape == (2, anchors, 4)
    assert predictions.coefficients.shape == (2, anchors, YOLACT_TINY.prototypes)
    assert predictions.prototypes.shape == (2, YOLACT_TINY.prototypes, 16, 24)
    assert predictions.prototypes.min() >= 0
    assert predictions.coefficients.abs().max() <= 1
    assert predictions.padded_size.tolist() == [64, 96]


def test_anchors_are_centred_on_cells_with_their_ratios() -> None:
    model = _model(anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0), anchor_ratios=(1.0, 4.0), square_anchors=False)
    first, second = model.eval()(torch.zeros(1, 3, 64, 96)).anchors[0][:2].tolist()
    # the first cell of P3 is 8 x 8 pixels; 16 x 16 = 256 square pixels, and 32 high by 8 wide has as many
    assert first == [-4, -4, 12, 12]
    assert second == [0, -12, 8, 20]


def test_square_anchors_are_as_high_as_wide() -> None:
    model = _model(anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0), anchor_ratios=(4.0,), square_anchors=True)
    assert model.eval()(torch.zeros(1, 3, 64, 96)).anchors[0][0].tolist() == [0, 0, 8, 8]


def test_stated_strides_hold_whatever_the_inputs_size() -> None:
    model = _model(anchor_strides=(7.5, 15.0, 30.0, 60.0, 120.0), anchor_ratios=(1.0,), anchor_scales=(1.0,))
    x1, _, x2, _ = model.eval()(torch.zeros(1, 3, 64, 96)).anchors[0][1].tolist()
    assert (x1 + x2) / 2 == 1.5 * 7.5


@pytest.mark.parametrize("name", ["yolact-tiny", "yolact-lite0", "yolact-lite2"])
@pytest.mark.parametrize("side", [320, 352])  # P6 has 5 x 64 pixels of the one, 6 cells of 58.7 of the other
def test_small_networks_have_the_anchors_of_p6_where_its_convolutions_look_for_every_input(name, side) -> None:
    kind, config, _ = CATALOG[name]
    x1, y1, x2, y2 = kind(config).eval()(torch.zeros(1, 3, side, side)).anchors[3][-1].tolist()
    cells = math.ceil(side / 64)
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((64 * (cells - 0.5), 64 * (cells - 0.5)))


# Segments


def test_segments_are_in_pixels_of_the_original_image_by_descending_score() -> None:
    model = _model().eval()
    (segments,) = model.segments(model(torch.randn(1, 3, 64, 96)), image_sizes(original=(128, 192)), THREE, LOW)
    assert len(segments) == 20
    assert segments.size == (128, 192)
    assert (np.diff(segments.scores) <= 0).all()
    assert segments.boxes[:, 2].max() > 96  # twice the input's size
    # a crop reaches one prototype cell (8 pixels here) beyond its box, and resizing half a cell more
    for segment in segments:
        if segment.area:
            x1, y1, x2, y2 = segment.mask.box
            assert x1 >= segment.box[0] - 20
            assert y1 >= segment.box[1] - 20
            assert x2 <= segment.box[2] + 20
            assert y2 <= segment.box[3] + 20


def test_padding_changes_nothing_but_what_the_network_sees() -> None:
    """Prototypes cover the padded input; masks are those of the part that the image fills."""
    model = _model().eval()
    prototypes = torch.zeros(1, YOLACT_TINY.prototypes, 16, 24)
    prototypes[0, 0, :, :12] = 1.0  # the left half of 96 pixels
    predictions = replace(model(torch.zeros(1, 3, 64, 96)), prototypes=prototypes)
    anchors = torch.cat(predictions.anchors)
    anchor = int(((anchors[:, 0] + anchors[:, 2]) / 2 - 28).abs().argmin())
    logits, deltas = torch.zeros_like(predictions.class_logits), torch.zeros_like(predictions.box_deltas)
    logits[..., -1] = 20.0
    logits[0, anchor, 1] = 40.0
    x1, y1, x2, y2 = anchors[anchor].tolist()
    weights = YOLACT_TINY.box_weights  # a box of the whole input
    deltas[0, anchor] = torch.tensor(
        [
            weights[0] * (48 - (x1 + x2) / 2) / (x2 - x1),
            weights[1] * (32 - (y1 + y2) / 2) / (y2 - y1),
            weights[2] * math.log(96 / (x2 - x1)),
            weights[3] * math.log(64 / (y2 - y1)),
        ]
    )
    coefficients = torch.zeros_like(predictions.coefficients)
    coefficients[0, anchor, 0] = 1.0
    predictions = replace(predictions, class_logits=logits, box_deltas=deltas, coefficients=coefficients)
    # sigmoid(0) is exactly the threshold, which is not above it: the right half is out
    (segments,) = model.segments(predictions, image_sizes(input_=(64, 56), original=(128, 112)), THREE, Thresholds(score=0.9))
    assert segments.classes.tolist() == [1]
    # between the centres of cells 11 and 12 the mask falls to the threshold: at 50 pixels of the input, whose pixel 49 is above
    # it and reaches to 50.5, which is 101 in the original
    assert segments.rles[0].box == (0, 0, 101, 128)
    assert segments.boxes[0].tolist() == pytest.approx([0, 0, 112, 128], abs=1e-3)


def test_masks_reach_beyond_their_boxes_by_the_margin() -> None:
    model = _model().eval()
    predictions = model(torch.zeros(1, 3, 64, 96))
    anchors = torch.cat(predictions.anchors)
    anchor = int((anchors - torch.tensor([32.0, 24.0, 48.0, 40.0])).abs().sum(dim=1).argmin())
    x1, y1, x2, y2 = anchors[anchor].tolist()
    logits = torch.zeros_like(predictions.class_logits)
    logits[..., -1], logits[0, anchor, 1] = 20.0, 40.0
    predictions = replace(
        predictions,
        class_logits=logits,
        box_deltas=torch.zeros_like(predictions.box_deltas),
        coefficients=torch.ones_like(predictions.coefficients),
        prototypes=torch.ones_like(predictions.prototypes),  # masks would fill the image
    )
    widths = []
    for margin in (0.0, 0.5):
        (segments,) = model.segments(predictions, image_sizes(), THREE, Thresholds(score=0.9, crop_margin=margin))
        assert segments.boxes[0].tolist() == pytest.approx([x1, y1, x2, y2], abs=1e-3)  # boxes are left as they are
        left, _, right, _ = segments.rles[0].box
        widths.append((x1 - left, right - x2))
    gained = np.subtract(widths[1], widths[0])
    assert np.allclose(gained, (x2 - x1) / 2, atol=8)  # to a prototype cell, 8 pixels here


def test_a_batch_of_two_equals_two_batches_of_one() -> None:
    model = _model().eval()
    images = torch.randn(2, 3, 64, 96)
    together = model.segments(model(images), image_sizes(2), THREE, LOW)
    for image, expected in zip(images, together, strict=True):
        (alone,) = model.segments(model(image[None]), image_sizes(), THREE, LOW)
        np.testing.assert_allclose(alone.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(alone.boxes, expected.boxes, atol=1e-3)


def test_nothing_found_is_an_ordinary_result() -> None:
    for changes in ({}, {"mask_rating_channels": (4, 8)}):
        model = _model(**changes).eval()
        (segments,) = model.segments(model(torch.zeros(1, 3, 64, 96)), image_sizes(), THREE, Thresholds(anchor_score=0.999999))
        assert len(segments) == 0
        assert segments.size == (64, 96)


def test_an_image_of_one_pixel_works() -> None:
    model = _model().eval()
    (segments,) = model.segments(model(torch.zeros(1, 3, 32, 32)), image_sizes(input_=(1, 1), original=(1, 1)), THREE, LOW)
    assert segments.size == (1, 1)


def test_levels_give_no_more_anchors_than_allowed() -> None:
    model = _model().eval()
    predictions = model(torch.randn(1, 3, 64, 96))
    probabilities = predictions.class_logits[0].softmax(dim=1)[:, :-1]
    levels = [len(level) for level in predictions.anchors]
    kept = model._anchors_kept(probabilities.clone(), levels, replace(LOW, anchors_per_level=5))
    of_first = kept[kept < levels[0]]
    best = probabilities[: levels[0]].amax(dim=1).topk(5).indices
    assert sorted(of_first.tolist()) == sorted(best.tolist())
    assert len(kept) == 5 * 4 + 3  # P7 has one cell of three anchors


def test_whole_pixel_boxes_are_cut_as_in_the_original() -> None:
    boxes = torch.tensor([[3.9, -2.5, 20.2, 99.0], [-30.0, 5.0, -2.5, 9.0]])
    # the second lies outside: its right edge stays where it is
    assert yolact._whole_pixels(boxes, (50, 60)).tolist() == [[3, 0, 20, 50], [0, 5, -2, 9]]
    model = _model(whole_pixel_boxes=True).eval()
    (segments,) = model.segments(model(torch.randn(1, 3, 64, 96)), image_sizes(), THREE, LOW)
    assert (segments.boxes == np.floor(segments.boxes)).all()


def test_ratings_multiply_scores_and_set_the_order() -> None:
    model = _model(mask_rating_channels=(4, 8)).eval()
    plain = _model().eval()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("mask_rating")})
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for parameter in model.mask_rating.parameters():
            parameter.zero_()
        model.mask_rating.classes.bias.copy_(torch.tensor([0.5, 0.25, 1.0]))
    (rated,) = model.segments(model(image), image_sizes(), THREE, LOW)
    (before,) = plain.segments(plain(image), image_sizes(), THREE, LOW)
    wanted = np.sort(before.scores * np.array([0.5, 0.25, 1.0], np.float32)[before.classes])[::-1]
    np.testing.assert_allclose(rated.scores, wanted, rtol=1e-5)


# Losses


def test_every_trained_parameter_gets_a_gradient() -> None:
    model = _model(mask_rating_channels=(4, 8), anchor_sizes=(16.0, 24.0, 48.0, 64.0, 96.0)).train()
    losses = model.losses(
        torch.randn(2, 3, 64, 96), [rectangles([[8, 8, 40, 40], [50, 20, 90, 60]], [0, 2]), rectangles([[0, 0, 30, 30]], [1])]
    )
    assert set(losses) == {"class", "box", "mask", "semantic", "mask_rating"}
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("targets", [rectangles([], []), rectangles([[0, 0, 96, 64]], [1], crowd=[True])])
def test_without_objects_background_is_learnt_and_nothing_of_boxes_and_masks(targets: Targets) -> None:
    losses = _model(mask_rating_channels=(4,)).train().losses(torch.randn(1, 3, 64, 96), [targets])
    assert losses["box"] == losses["mask"] == losses["mask_rating"] == 0
    assert losses["class"] > 0


ANCHORS = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.5], [0, 0, 10, 2], [60, 0, 66, 10]])


def test_anchors_between_the_thresholds_are_left_out_and_each_object_has_its_best() -> None:
    target = rectangles([[0, 0, 10, 10], [60, 0, 90, 10]], [2, 1])
    match = yolact._match(ANCHORS, target, Sampling(), background=3)
    # IoU with the first object: 1, 0.5, 0.45, 0.2, 0; with the second 0.2 for the last, its best all the same
    assert match.classes.tolist() == [2, 2, -1, 3, 1]
    assert match.objects[match.is_positive].tolist() == [0, 0, 1]


def test_two_objects_with_one_best_anchor_get_one_each() -> None:
    target = rectangles([[0, 0, 10, 10], [0, 0, 10, 10]], [0, 1])
    match = yolact._match(ANCHORS, target, Sampling(), background=3)
    assert match.classes[:2].tolist() == [0, 1]  # the second object has the next best anchor


def test_what_lies_in_a_crowd_is_no_negative() -> None:
    target = rectangles([[0, 0, 10, 10], [55, 0, 70, 10]], [0, 1], crowd=[False, True])
    match = yolact._match(ANCHORS, target, Sampling(), background=3)
    assert match.classes.tolist() == [0, 0, -1, 3, -1]


def test_class_loss_takes_the_hardest_negatives_three_for_each_positive() -> None:
    # background logits of the negatives; the other logits are 0
    logits = torch.zeros(6, 3)
    logits[:, 2] = torch.tensor([0.0, 3.0, 1.0, 2.0, 4.0, 5.0])
    logits[0, 1] = 1.0
    match = yolact._Matches(torch.tensor([1, 2, 2, 2, 2, -1]), torch.zeros(6, dtype=torch.int64), 2)
    # positive: log(e^0 + e^1 + e^0) - 1; negatives with background logit 1, 2 and 3 are the three hardest of four
    wanted = math.log(2 + math.e) - 1 + sum(math.log(2 + math.exp(b)) - b for b in (1, 2, 3))
    assert float(yolact._class_loss(logits, match, Sampling())) == pytest.approx(wanted, rel=1e-6)


def test_class_loss_without_positives_still_has_negatives() -> None:
    match = yolact._Matches(torch.full((50,), 2), torch.zeros(50, dtype=torch.int64), 2)
    # 32 negatives of three equal logits
    assert float(yolact._class_loss(torch.zeros(50, 3), match, Sampling())) == pytest.approx(32 * math.log(3), rel=1e-6)


def test_semantic_loss_is_a_mean_over_cells_summed_over_classes() -> None:
    target = rectangles([[0, 0, 8, 8]], [1], size=(16, 16))
    logits = torch.zeros(2, 2, 2)
    logits[1, 0, 0] = 2.0  # the one cell that is set
    # seven cells of log 2 and one of log(1 + e^-2), over 4 cells
    wanted = (7 * math.log(2) + math.log(1 + math.exp(-2))) / 4
    assert float(yolact._semantic_loss(logits, target, (16, 16))) == pytest.approx(wanted, rel=1e-6)


def test_semantic_loss_asks_nothing_within_a_crowd_of_the_class() -> None:
    target = rectangles([[0, 0, 8, 16]], [1], crowd=[True], size=(16, 16))
    # of eight cells the crowd covers two of its class
    assert float(yolact._semantic_loss(torch.zeros(2, 2, 2), target, (16, 16))) == pytest.approx(6 * math.log(2) / 4, rel=1e-6)


def test_mask_loss_is_divided_by_the_area_of_the_box() -> None:
    model = _model()
    target = rectangles([[16, 16, 32, 48], [8, 8, 24, 24]], [0, 1], size=(64, 64))
    prototypes = torch.zeros(YOLACT_TINY.prototypes, 16, 16)  # cells of 4 pixels
    coefficients = torch.zeros(2, YOLACT_TINY.prototypes)
    loss, rating = model._mask_losses(prototypes, coefficients, torch.tensor([0, 1]), target, (64, 64))
    # every cell costs log 2; a crop has one cell more on each side: 6 x 10 of 4 x 8, and 6 x 6 of 4 x 4
    assert float(loss) == pytest.approx((60 / 32 + 36 / 16) * math.log(2), rel=1e-6)
    assert rating == 0


def test_mask_targets_are_the_share_of_each_cell_that_is_covered() -> None:
    masks = torch.zeros(2, 6, 10, dtype=torch.bool)
    masks[1, :2, 1:7] = True  # of cells of 4 x 4 pixels: 6, 6 and none of 16 above, none below
    share = yolact._covered(masks, torch.tensor([1]), (8, 12), (2, 3))
    assert share.tolist() == [[[6 / 16, 6 / 16, 0], [0, 0, 0]]]


def test_few_masks_stand_for_all() -> None:
    model = _model(sampling=Sampling(masks=2))
    target = rectangles([[16, 16, 32, 48]], [0], size=(64, 64))
    prototypes, coefficients = torch.zeros(YOLACT_TINY.prototypes, 16, 16), torch.zeros(6, YOLACT_TINY.prototypes)
    loss, _ = model._mask_losses(prototypes, coefficients, torch.zeros(6, dtype=torch.int64), target, (64, 64))
    assert float(loss) == pytest.approx(6 * 60 / 32 * math.log(2), rel=1e-6)


def test_rating_loss_is_smooth_l1_to_the_masks_iou() -> None:
    model = _model(mask_rating_channels=(4,))
    with torch.no_grad():
        for parameter in model.mask_rating.parameters():
            parameter.zero_()
        model.mask_rating.classes.bias.fill_(0.25)
    truth = torch.zeros(2, 16, 16, dtype=torch.bool)
    truth[0, :8, :8] = True
    truth[1, :2, :2] = True  # too small to count
    masks = torch.zeros(2, 16, 16)
    masks[:, :8, :4] = 0.9
    # IoU 32 / 64, so (0.5 - 0.25)^2 / 2
    assert model._rating_loss(masks, truth, torch.tensor([0, 1])).item() == pytest.approx(0.25**2 / 2, rel=1e-6)


def test_box_loss_by_hand() -> None:
    model = _model(anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0), anchor_ratios=(1.0,), anchor_scales=(1.0,)).train()
    with torch.no_grad():
        model.head.deltas.weight.zero_()
        model.head.deltas.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 3.0]))
    # cell (3, 3) of P3 has the anchor 20 20 36 36, and the object is that anchor; its neighbours overlap it by a third
    losses = model.losses(torch.zeros(1, 3, 64, 96), [rectangles([[20, 20, 36, 36]], [0])])
    assert losses["box"].item() == pytest.approx(3.0 - 0.5, rel=1e-5)


# Elsewhere

# in a process of its own: the exporter can't trace the checker of shapes
EXPORT = """
import torch
from thingstuff.models.catalog import YOLACT_TINY
from thingstuff.models.yolact import Yolact

torch.manual_seed(0)
model = Yolact(YOLACT_TINY).eval()
images = torch.randn(1, 3, 64, 96)
with torch.no_grad():
    expected = model(images)
    got = torch.export.export(model, (images,)).module()(images)
for name in ("class_logits", "box_deltas", "coefficients", "prototypes", "padded_size"):
    torch.testing.assert_close(getattr(got, name), getattr(expected, name))
"""


def test_the_network_exports() -> None:
    environment = os.environ | {"JAXTYPING_DISABLE": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", EXPORT], check=True, env=environment, timeout=300)


def _cuda() -> bool:
    return torch.cuda.is_available()


@pytest.mark.gpu
@pytest.mark.skipif("not _cuda()", reason="needs a CUDA device")
def test_forward_losses_and_segments_on_cuda_equal_the_cpu() -> None:
    model = _model(mask_rating_channels=(4, 8)).eval()
    images = torch.randn(2, 3, 64, 96)
    expected = model(images)
    here = model.segments(expected, image_sizes(2), THREE, LOW)
    model.cuda()
    torch.testing.assert_close(model(images.cuda()).class_logits.cpu(), expected.class_logits, rtol=1e-3, atol=1e-3)
    there = model.segments(model(images.cuda()), image_sizes(2), THREE, LOW)
    np.testing.assert_allclose(there[0].scores, here[0].scores, atol=1e-3)
    targets = [rectangles([[8, 8, 40, 40], [8, 8, 40, 40]], [0, 1]), rectangles([], [])]
    losses = model.train().losses(images.cuda(), [target.to("cuda") for target in targets])
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())


# Configs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor_sizes": (8.0,)}, "one number for each of P3..P7"),
        ({"anchor_strides": (8.0,)}, "one number for each of P3..P7"),
        ({"anchor_ratios": ()}, "at least one number"),
        ({"anchor_ratios": (0.0,)}, "positive and finite"),
        ({"prototypes": 0}, "prototypes must be at least 1"),
        ({"head_convs": -1}, "must not be negative"),
        ({"extra_levels": Extra.POOLED}, "from_pyramid or from_backbone"),
    ],
)
def test_configs_that_no_network_has_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        YolactConfig(**changes)


def test_thresholds_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="nms must lie from 0 to 1"):
        Thresholds(nms=2.0)
    with pytest.raises(ConfigError, match="crop_margin must lie from 0 to 1"):
        Thresholds(crop_margin=-0.1)
    with pytest.raises(ConfigError, match="must be at least 1"):
        Thresholds(anchors_per_level=0)
    with pytest.raises(ConfigError, match="rising"):
        Sampling(anchor_iou=(0.6, 0.5))
    with pytest.raises(ConfigError, match="at least 1"):
        Sampling(masks=0)


def test_the_catalog_has_it_published_light_and_tiny() -> None:
    assert {"yolact-r50", "yolact-r101", "yolact-lite0", "yolact-tiny"} <= CATALOG.keys()
    _, config, preprocessing = CATALOG["yolact-r50"]
    assert preprocessing.input_size(480, 640) == (550, 550)
    assert config.anchor_sizes == (24, 48, 96, 192, 384)
