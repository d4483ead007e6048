"""Mask R-CNN against torchvision 0.29, detectron2 0.6 and MMDetection 3.3: every array along the way, then the final result.

The weights are drawn from each parameter's name (tests/reference/weights.py), so that only outputs had to be stored. Tolerances
are the cases' own: twenty times the difference that the original shows between float32 and float64, or 1e-4 of the largest value.

What is decided by a comparison (which proposals suppress which, which pixels are inside) is compared in float64: float32 rounds
by the machine and the number of its threads, and a decision within that rounding falls one way or the other.
"""

import copy

import numpy as np
import pytest
import torch

TORCHVISION = ("torchvision-maskrcnn-r50-fpn", "torchvision-maskrcnn-r50-fpn-v2")
OTHERS = ("detectron2-mask-rcnn-r50-fpn", "mmdet-mask-rcnn-r50-fpn")


class Run:
    """One case through our network, with the original's arrays beside it."""

    def __init__(self, parity, folder):
        self.case = parity.Case(folder)
        self.expected = dict(np.load(folder / "expected.npz"))
        self.raw = dict(np.load(folder / "outputs.npz").items())
        self.segmenter = parity.load_case(self.case, "cpu")
        self.model = self.segmenter.model
        self.limits = self.case.thresholds(self.segmenter.thresholds())
        self.batch = self.case.batch(self.segmenter)
        self.size = self.batch.sizes[0]
        with torch.inference_mode():
            self.c5 = self.model.backbone(self.batch.pixels)[-1]
            self.predictions = self.model(self.batch.pixels)
            self.segments = self.model.segments(self.predictions, self.batch.sizes, self.segmenter.categories, self.limits)[0]
            self.in_float64()

    def in_float64(self):
        """The same network without rounding: what is decided there does not depend on the machine."""
        exact, limits = copy.deepcopy(self.model).double(), self.limits
        predictions = exact(self.batch.pixels.double())
        self.exact_segments = exact.segments(predictions, self.batch.sizes, self.segmenter.categories, limits)[0]
        [(self.proposals, self.proposal_logits)] = exact.proposals(
            *(predictions, [self.size.input], limits.proposals_per_level, limits.proposals),
            *(limits.proposal_nms, limits.proposal_min_size),
        )

    def in_the_input(self, boxes):
        """Boxes of the original image in pixels of the network's input."""
        (height, width), (input_height, input_width) = self.size.original, self.size.input
        return boxes * np.array([input_width / width, input_height / height] * 2)

    @torch.inference_mode()
    def box_head(self, proposals):
        regions = self.model.pool(self.predictions.levels, [torch.from_numpy(proposals)], self.model.config.box_pool)
        return self.model.box_head(regions)

    @torch.inference_mode()
    def mask_logits(self, boxes, classes):
        regions = self.model.pool(self.predictions.levels, [torch.from_numpy(boxes).float()], self.model.config.mask_pool)
        return self.model.mask_head(regions)[torch.arange(len(boxes)), torch.from_numpy(classes)]


def assert_near(actual, expected, atol):
    torch.testing.assert_close(torch.as_tensor(actual).float(), torch.from_numpy(np.asarray(expected)), rtol=0, atol=atol)


def assert_same_boxes(actual, expected, atol):
    """Every box has its like in the other set: proposals whose scores differ in the last bit may swap places."""
    assert len(actual) == len(expected)
    distances = torch.cdist(torch.as_tensor(actual).double(), torch.from_numpy(expected).double(), p=float("inf"))
    assert distances.amin(dim=0).max() <= atol
    assert distances.amin(dim=1).max() <= atol


def assert_same_instances(parity, run, score_abs, box_px, mask_iou):
    tolerance = {"score_abs": score_abs, "box_px": box_px, "mask_iou": mask_iou}
    compare = parity.recipe("compare").compare_instances
    _, problems = compare(run.expected, parity.prediction(run.exact_segments), tolerance)
    assert problems == []
    # float32: all but the few small masks and boxes where a decision was as close as its rounding
    _, problems = compare(run.expected, parity.prediction(run.segments), tolerance)
    assert len(problems) <= 0.05 * len(run.expected["scores"]), problems


# torchvision


@pytest.fixture(scope="module", params=TORCHVISION)
def torchvision_run(request, parity, shared_reference):
    return Run(parity, shared_reference / request.param)


def test_torchvision_input(torchvision_run):
    # the order of dividing by 255 and by the std changes the last bits of values up to 2.7
    assert_near(torchvision_run.batch.pixels[0, :, ::16, ::16], torchvision_run.raw["input_stride16"], 2e-5)


def test_torchvision_pyramid(torchvision_run):
    atol = torchvision_run.case.facts["tolerances"]["fpn_abs"]
    names = ("fpn_0_c8_s16", "fpn_1_c8_s8", "fpn_2_c8_s4", "fpn_3_c8_s2", "fpn_pool_c8_s1")
    for level, name, step in zip(torchvision_run.predictions.levels, names, (16, 8, 4, 2, 1), strict=True):
        assert_near(level[0, ::8, ::step, ::step], torchvision_run.raw[name], atol)


def test_torchvision_rpn_maps(torchvision_run):
    tolerances, raw = torchvision_run.case.facts["tolerances"], torchvision_run.raw
    predictions = torchvision_run.predictions
    for level, step in enumerate((8, 4, 2, 1, 1)):
        objectness, deltas = predictions.objectness[level][0], predictions.anchor_deltas[level][0]
        assert_near(objectness[:, ::step, ::step], raw[f"rpn_objectness_{level}_s{step}"], tolerances["rpn_objectness_abs"])
        assert_near(deltas[:, ::step, ::step], raw[f"rpn_deltas_{level}_s{step}"], tolerances["rpn_deltas_abs"])


def test_torchvision_proposals(torchvision_run):
    atol = torchvision_run.case.facts["tolerances"]["proposals_px"]
    assert_same_boxes(torchvision_run.proposals, torchvision_run.raw["proposals"], atol)


def test_torchvision_box_head_on_the_originals_proposals(torchvision_run):
    tolerances, raw = torchvision_run.case.facts["tolerances"], torchvision_run.raw
    classes, deltas = torchvision_run.box_head(raw["proposals"])
    # background is first there and last here; its own box deltas are not kept here
    assert_near(classes[::4].roll(1, dims=1), raw["box_class_logits"], tolerances["box_class_logits_abs"])
    assert_near(deltas[::8], raw["box_deltas_stride8"][:, 4:], tolerances["box_deltas_abs"])


def test_torchvision_mask_head_on_the_originals_boxes(torchvision_run):
    raw = torchvision_run.raw
    # the case's "boxes_resized_image" holds the boxes in the original image too
    logits = torchvision_run.mask_logits(torchvision_run.in_the_input(raw["boxes"]), raw["labels"] - 1)
    assert_near(
        logits, raw["mask_logits_of_label"].astype(np.float32), torchvision_run.case.facts["tolerances"]["mask_logits_abs"]
    )


def test_torchvision_final_result(parity, torchvision_run):
    tolerances = torchvision_run.case.facts["tolerances"]
    assert_same_instances(parity, torchvision_run, tolerances["scores_abs"], tolerances["boxes_px"], tolerances["mask_min_iou"])


# detectron2 and MMDetection


@pytest.fixture(scope="module", params=OTHERS)
def other_run(request, parity, shared_reference):
    return Run(parity, shared_reference / request.param)


def expected_of(run, name):
    """A raw array with its tolerance, and the slices of the whole array that it is."""
    facts = next(output for output in run.case.facts["outputs"] if output["name"] == name)
    atol = max(1e-4 * facts["abs_max"], 20 * facts["float32_vs_float64_max_abs_diff"])
    steps = facts.get("subsample", "[:]").strip("[]").split(",")
    slices = tuple(slice(None, None, int(step.strip().removeprefix("::") or 1) if "::" in step else None) for step in steps)
    return run.raw[name], atol, slices


def assert_like_output(run, name, actual):
    expected, atol, slices = expected_of(run, name)
    assert_near(actual[slices], expected, atol)


def test_other_backbone_and_pyramid(other_run):
    assert_like_output(other_run, "c5", other_run.c5[0])
    for level, name in zip(other_run.predictions.levels, ("p2", "p3", "p4", "p5", "p6"), strict=True):
        assert_like_output(other_run, name, level[0])


def test_other_rpn_maps(other_run):
    for level in range(5):
        assert_like_output(other_run, f"rpn_cls_p{level + 2}", other_run.predictions.objectness[level][0])
        assert_like_output(other_run, f"rpn_reg_p{level + 2}", other_run.predictions.anchor_deltas[level][0])


def test_other_proposals_and_their_scores(other_run):
    boxes, atol, _ = expected_of(other_run, "proposals")
    assert_same_boxes(other_run.proposals, boxes, atol)
    if "proposal_logits" in other_run.raw:
        assert_like_output(other_run, "proposal_logits", other_run.proposal_logits)
    else:
        assert_like_output(other_run, "proposal_scores", other_run.proposal_logits.sigmoid())


def test_other_box_head_on_the_originals_proposals(other_run):
    classes, deltas = other_run.box_head(other_run.raw["proposals"])
    assert_like_output(other_run, "roi_cls", classes)
    assert_like_output(other_run, "roi_reg", deltas)


def test_other_mask_head_on_the_originals_boxes(other_run):
    if "mask_logits" not in other_run.raw:
        return  # detectron2's case stores the pasted masks alone, compared below
    logits = other_run.mask_logits(other_run.in_the_input(other_run.raw["det_boxes"]), other_run.raw["det_labels"])
    assert_like_output(other_run, "mask_logits", logits)


def test_other_final_result(parity, other_run):
    assert_same_instances(parity, other_run, score_abs=1e-3, box_px=0.05, mask_iou=0.99)
