"""Mask2Former against MMDetection 3.3 and transformers 5.23: every array along the way, then each task's final result.

The weights are drawn from each parameter's name (tests/reference/weights.py), so that only outputs had to be stored. Tolerances
are the cases' own. Masked attention cuts logits at 0, and a pixel that falls on the other side there moves a query slightly: the
cases allow a few outliers.
"""

import numpy as np
import pytest
import torch

from thingstuff.models.contract import Task

pytestmark = pytest.mark.filterwarnings("ignore:.*by their number they are taken for COCO's things and stuff")
MMDETECTION = ("mmdet-mask2former-r50", "mmdet-mask2former-swin-t")


class Run:
    """One case through our network, with the original's arrays beside it."""

    def __init__(self, parity, folder):
        self.parity, self.case = parity, parity.Case(folder)
        self.expected = dict(np.load(folder / "expected.npz"))
        self.raw = dict(np.load(folder / "outputs.npz").items())
        self.segmenter = parity.load_case(self.case, "cpu")
        self.model = self.segmenter.model
        self.batch = self.case.batch(self.segmenter)
        with torch.inference_mode():
            self.levels = self.model.backbone(self.batch.pixels)
            self.predictions = self.model(self.batch.pixels)

    def result(self, task):
        limits = self.case.thresholds(self.segmenter.thresholds(task=task), task)
        with torch.inference_mode():
            found = self.model.segments(self.predictions, self.batch.sizes, self.segmenter.categories, limits)[0]
        return self.parity.prediction(found, task)

    def assert_like(self, name, actual):
        facts = next(output for output in self.case.facts["outputs"] if output["name"] == name)
        atol = max(1e-4 * facts["abs_max"], 20 * facts["float32_vs_float64_max_abs_diff"])
        steps = facts.get("subsample", "[::1]").strip("[]").split(",")
        slices = tuple(slice(None, None, int(step.strip().removeprefix("::"))) for step in steps)
        torch.testing.assert_close(torch.as_tensor(actual)[slices], torch.from_numpy(self.raw[name]), rtol=0, atol=atol)


@pytest.fixture(scope="module", params=MMDETECTION)
def run(request, parity, shared_reference):
    return Run(parity, shared_reference / request.param)


def test_levels_of_the_backbone(run):
    for number, level in enumerate(run.levels):
        run.assert_like(f"backbone_{number}", level[0])


@pytest.mark.parametrize("layer", [0, 3, 6, 9])
def test_classes_and_masks_after_a_layer(run, layer):
    run.assert_like(f"query_cls_{layer}", run.predictions.class_logits[layer, 0])
    run.assert_like(f"query_mask_{layer}", run.model.mask_logits(run.predictions, 0, layer=layer))


def test_instances(run):
    found = run.result(Task.INSTANCE)
    tolerance = {"score_abs": 1e-3, "box_px": 0.05, "mask_iou": 0.99}
    assert run.parity.recipe("compare").compare_instances(run.expected, found, tolerance)[1] == []


def test_the_panoptic_map_pixel_by_pixel(run):
    found = run.result(Task.PANOPTIC)
    labels = np.array([133, *found["panoptic_labels"]])
    same_label = labels[found["panoptic_map"]] == run.raw["panoptic"] % 1000
    assert same_label.mean() > 0.995
    assert run.parity.recipe("compare").compare_panoptic(run.expected, found, {"segment_iou": 0.99})[1] == []
