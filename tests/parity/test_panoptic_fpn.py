"""Panoptic FPN against detectron2 0.6 and MMDetection 3.3: every array along the way, then instances and panoptic map.

The weights are drawn from each parameter's name (tests/reference/weights.py), so that only outputs had to be stored. Tolerances
are the cases' own: twenty times the difference that the original shows between float32 and float64, or 1e-4 of the largest value.
What is decided by a comparison is compared in float64, as in test_mask_rcnn.py.
"""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from thingstuff.models.contract import Task
from thingstuff.models.panoptic_fpn import STRIDES, PanopticFPN

CASES = ("detectron2-panoptic-fpn-r50", "mmdet-panoptic-fpn-r50")
MERGE = "detectron2-panoptic-merge"
VOID = {"detectron2": 0, "mmdetection": 133}  # in the originals' own maps


class Run:
    """One case through our network, with the original's arrays beside it."""

    def __init__(self, parity, folder):
        self.case = parity.Case(folder)
        self.expected = dict(np.load(folder / "expected.npz"))
        self.raw = dict(np.load(folder / "outputs.npz").items())
        self.segmenter = parity.load_case(self.case, "cpu")
        self.model = self.segmenter.model
        batch = self.case.batch(self.segmenter)
        self.size = batch.sizes[0]
        with torch.inference_mode():
            self.c5 = self.model.backbone(batch.pixels)[-1]
            self.predictions = self.model(batch.pixels)
            self.found = self.segments(self.model, self.predictions, batch)
            exact, limits = copy.deepcopy(self.model).double(), self.limits(Task.INSTANCE)
            predictions = exact(batch.pixels.double())
            self.exact = self.segments(exact, predictions, batch)
            [(self.proposals, self.proposal_logits)] = exact.proposals(
                *(predictions, [self.size.input], limits.proposals_per_level, limits.proposals),
                *(limits.proposal_nms, limits.proposal_min_size),
            )

    def segments(self, model, predictions, batch):
        categories = self.segmenter.categories
        return {task: model.segments(predictions, batch.sizes, categories, self.limits(task))[0] for task in Task}

    def limits(self, task):
        return self.case.thresholds(self.segmenter.thresholds(task=task), task)

    def facts(self, name):
        return next(output for output in self.case.facts["outputs"] if output["name"] == name)

    def assert_like(self, name, actual):
        facts = self.facts(name)
        atol = max(1e-4 * facts["abs_max"], 20 * facts["float32_vs_float64_max_abs_diff"])
        steps = facts.get("subsample", "[::1]").strip("[]").split(",")
        slices = tuple(slice(None, None, int(step.strip().removeprefix("::")) if "::" in step else None) for step in steps)
        torch.testing.assert_close(torch.as_tensor(actual).float()[slices], torch.from_numpy(self.raw[name]), rtol=0, atol=atol)

    def peers_channels(self, logits):
        """detectron2 has things first."""
        return logits.roll(1, dims=0) if self.case.peer == "detectron2" else logits

    @torch.inference_mode()
    def box_head(self, proposals):
        return self.model.box_head(self.model.pool(self.predictions.levels, [torch.from_numpy(proposals)], 7))

    @torch.inference_mode()
    def mask_logits(self, boxes, classes):
        (height, width), (input_height, input_width) = self.size.original, self.size.input
        boxes = boxes * np.array([input_width / width, input_height / height] * 2)
        regions = self.model.pool(self.predictions.levels, [torch.from_numpy(boxes).float()], 14)
        return self.model.mask_head(regions)[torch.arange(len(boxes)), torch.from_numpy(classes)]


@pytest.fixture(scope="module", params=CASES)
def run(request, parity, shared_reference):
    return Run(parity, shared_reference / request.param)


def test_the_file_alone_says_what_it_is(run):
    assert type(run.model) is PanopticFPN
    assert (run.model.config.things, run.model.config.stuff) == (80, 53)
    assert run.segmenter.categories.names[79:81] == ("toothbrush", "banner")


def test_backbone_and_pyramid(run):
    run.assert_like("c5", run.c5[0])
    for level, name in zip(run.predictions.levels, ("p2", "p3", "p4", "p5", "p6"), strict=True):
        run.assert_like(name, level[0])


def test_rpn_maps(run):
    for level in range(5):
        run.assert_like(f"rpn_cls_p{level + 2}", run.predictions.objectness[level][0])
        run.assert_like(f"rpn_reg_p{level + 2}", run.predictions.anchor_deltas[level][0])


def test_proposals(run):
    # proposals whose scores differ in the last bit may swap places
    expected = torch.from_numpy(run.raw["proposals"]).double()
    assert len(run.proposals) == len(expected)
    distances = torch.cdist(run.proposals.double(), expected, p=float("inf"))
    assert distances.amin(dim=0).max() <= 0.05
    if "proposal_logits" in run.raw:
        run.assert_like("proposal_logits", run.proposal_logits)
    else:
        run.assert_like("proposal_scores", run.proposal_logits.sigmoid())


def test_box_head_on_the_originals_proposals(run):
    classes, deltas = run.box_head(run.raw["proposals"])
    run.assert_like("roi_cls", classes)
    run.assert_like("roi_reg", deltas)


def test_mask_head_on_the_originals_boxes(run):
    run.assert_like("mask_logits", run.mask_logits(run.raw["det_boxes"], run.raw["det_labels"]))


def test_semantic_logits_at_the_stride_of_p2(run):
    if "semantic_logits_stride4" not in run.raw:
        return  # MMDetection's case stores those at image size alone, compared below
    run.assert_like("semantic_logits_stride4", run.peers_channels(run.predictions.semantic_logits[0]))


def test_semantic_logits_at_image_size_and_the_map_that_is_made_without_them(run):
    logits = run.predictions.semantic_logits
    padded = tuple(side * STRIDES[0] for side in logits.shape[-2:])
    height, width = run.size.input
    full = functional.interpolate(logits, size=padded, mode="bilinear", align_corners=False)[..., :height, :width]
    full = functional.interpolate(full, size=run.size.original, mode="bilinear", align_corners=False)[0]
    run.assert_like("semantic_logits", run.peers_channels(full))

    stuff = full.argmax(dim=0).numpy()
    found = run.found[Task.SEMANTIC].semantic_map()
    # 53 are things, which are void or have an instance's class; the two round differently where two classes are equal to 1e-5
    assert ((found != stuff + 80) & (stuff != 53)).mean() < 1e-4
    assert ((found >= 80) & (stuff == 53)).mean() < 1e-4


def test_instances(parity, run):
    tolerance = {"score_abs": 1e-3, "box_px": 0.05, "mask_iou": 0.99}
    compare = parity.recipe("compare").compare_instances
    _, problems = compare(run.expected, parity.prediction(run.exact[Task.INSTANCE]), tolerance)
    assert problems == []
    _, problems = compare(run.expected, parity.prediction(run.found[Task.INSTANCE]), tolerance)
    assert len(problems) <= 5, problems


def test_panoptic_map(parity, run):
    compare = parity.recipe("compare").compare_panoptic
    _, problems = compare(run.expected, parity.prediction(run.exact[Task.PANOPTIC], Task.PANOPTIC), {"segment_iou": 0.98})
    assert problems == []
    segments = run.found[Task.PANOPTIC]
    assert not segments.overlapping
    found = parity.prediction(segments, Task.PANOPTIC)
    # the case's own measure, on the original's own map: equal pixels, by the segment they belong to
    theirs, ours = run.raw["panoptic"], found["panoptic_map"]
    assert set(np.unique(ours)) <= {0, *found["panoptic_ids"].tolist()}
    pairs, counts = np.unique(np.stack([theirs.ravel(), ours.ravel()]), axis=1, return_counts=True)
    best = {}
    for (peer, own), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        is_void = peer == VOID[run.case.peer]
        if is_void == (own == 0):
            best[peer] = max(best.get(peer, 0), count)
    assert sum(best.values()) / theirs.size >= 0.995


def test_things_come_by_descending_score_and_then_stuff_by_class(run):
    segments = run.found[Task.PANOPTIC]
    things = int(segments.is_thing.sum())
    assert segments.is_thing[:things].all()
    assert (np.diff(segments.scores[:things]) <= 0).all()
    assert (np.diff(segments.classes[things:]) > 0).all()


def test_the_merge_alone_under_four_sets_of_thresholds(parity, shared_reference):
    case = parity.Case(shared_reference / MERGE)
    assert parity.is_merge(case)
    summaries, problems = parity.check_merge(case)
    assert problems == []
    assert len(summaries) == 4


def test_a_merge_that_differs_is_a_misfit(parity, shared_reference, capsys, monkeypatch):
    folder = shared_reference / MERGE
    assert parity.main([str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"fits  {MERGE}  panoptic_0: segments 8 expected, 8 given; worst IoU 1.0000")
    monkeypatch.setattr(parity, "merge_panoptic", lambda *args, **limits: iter(()))
    assert parity.main([str(folder)]) == 1
    assert capsys.readouterr().out.startswith(f"MISFIT  {MERGE}  ")
