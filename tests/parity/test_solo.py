"""SOLO and SOLOv2 against MMDetection 3.3: every array along the way, then the final result.

The weights are drawn from each parameter's name (tests/reference/weights.py), so that only outputs had to be stored. Tolerances
are the cases' own: twenty times the difference that the original shows between float32 and float64, or 1e-4 of the largest value.
"""

import numpy as np
import pytest
import torch

from thingstuff.models.solo import cell_scores

CASES = ("mmdet-solo-r50", "mmdet-solov2-r50", "mmdet-solov2-light-r50")


class Run:
    """One case through our network, with the original's arrays beside it."""

    def __init__(self, parity, folder):
        self.case = parity.Case(folder)
        self.expected = dict(np.load(folder / "expected.npz"))
        self.raw = dict(np.load(folder / "outputs.npz").items())
        segmenter = parity.load_case(self.case, "cpu")
        self.model = segmenter.model
        batch = self.case.batch(segmenter)
        with torch.inference_mode():
            features = self.model.backbone(batch.pixels)
            self.c5, self.pyramid = features[-1], self.model.neck(features)
            self.predictions = self.model(batch.pixels)
            limits = self.case.thresholds(segmenter.thresholds())
            self.segments = self.model.segments(self.predictions, batch.sizes, segmenter.categories, limits)[0]

    def assert_like(self, name, actual):
        facts = next(output for output in self.case.facts["outputs"] if output["name"] == name)
        atol = max(1e-4 * facts["abs_max"], 20 * facts["float32_vs_float64_max_abs_diff"])
        steps = facts.get("subsample", "[::1]").strip("[]").split(",")
        slices = tuple(slice(None, None, int(step.strip().removeprefix("::"))) for step in steps)
        torch.testing.assert_close(torch.as_tensor(actual)[slices], torch.from_numpy(self.raw[name]), rtol=0, atol=atol)

    def levels(self):
        """Number, side and cells of each level's grid."""
        starts = self.model.config.level_starts
        return [(level, side, torch.arange(side * side) + starts[level]) for level, side in enumerate(self.model.config.grids)]


@pytest.fixture(scope="module", params=CASES)
def run(request, parity, shared_reference):
    return Run(parity, shared_reference / request.param)


def test_backbone_and_pyramid(run):
    run.assert_like("c5", run.c5[0])
    for level, name in zip(run.pyramid, ("p2", "p3", "p4", "p5", "p6"), strict=True):
        run.assert_like(name, level[0])


def test_scores_of_the_cells(run):
    scores = cell_scores(run.predictions.categories)[0]
    for level, side, cells in run.levels():
        grid = scores[cells].unflatten(0, (side, side))  # rows columns classes
        run.assert_like(f"cls_{level}", grid.permute(2, 0, 1) if "mask_0" in run.raw else grid)


@torch.inference_mode()
def test_masks_of_the_cells(run):
    for level, _, cells in run.levels():
        if "mask_0" in run.raw:
            run.assert_like(f"mask_{level}", run.model.masks_of_cells(run.predictions, 0, cells))
        else:
            run.assert_like(f"kernel_{level}", run.predictions.kernels[level][0])
    if "mask_0" not in run.raw:
        run.assert_like("mask_feature", run.predictions.mask_feature[0])


def test_scores_after_matrix_nms(run):
    # the case's own tolerance: a pixel whose probability is one half to the last bit changes a mask's mean by as much as 3e-4
    np.testing.assert_allclose(run.segments.scores, run.raw["det_scores"], rtol=0, atol=1e-3)


def test_final_result(parity, run):
    tolerance = {"score_abs": 1e-3, "box_px": 0.05, "mask_iou": 0.99}
    _, problems = parity.recipe("compare").compare_instances(run.expected, parity.prediction(run.segments), tolerance)
    assert problems == []
