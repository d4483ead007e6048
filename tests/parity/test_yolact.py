"""YOLACT against its authors' repository and MMDetection 3.3: every array along the way, then the final result.

Tolerances are the cases' own: 1e-4 of the largest value of an array, or twenty times the difference that the original shows
between float32 and float64 where that is more.
"""

import math

import numpy as np
import pytest
import torch

AUTHORS, MMDETECTION = "yolact-r50", "mmdet-yolact-r50"
LEVELS = ("p3", "p4", "p5", "p6", "p7")


class Run:
    """One case through our network, with the original's arrays beside it."""

    def __init__(self, parity, folder):
        self.case = parity.Case(folder)
        self.raw = dict(np.load(folder / "outputs.npz").items())
        self.expected = dict(np.load(folder / "expected.npz"))
        self.segmenter = parity.load_case(self.case, "cpu")
        self.model = self.segmenter.model
        self.model.config = self.case.anchors(self.model.config)
        limits = self.case.thresholds(self.segmenter.thresholds())
        self.batch = self.case.batch(self.segmenter)
        with torch.inference_mode():
            levels = self.model.backbone(self.batch.pixels)
            self.c5, self.pyramid = levels[-1], self.model.neck(levels[1:])
            self.predictions = self.model(self.batch.pixels)
            self.segments = self.model.segments(self.predictions, self.batch.sizes, self.segmenter.categories, limits)[0]

    def assert_like(self, name, actual):
        facts = next(output for output in self.case.facts["outputs"] if output["name"] == name)
        atol = max(1e-4 * facts["abs_max"], 20 * facts["float32_vs_float64_max_abs_diff"])
        steps = facts.get("subsample", "[:]").strip("[]").split(",")
        slices = tuple(slice(None, None, int(step.strip().removeprefix("::")) if "::" in step else None) for step in steps)
        torch.testing.assert_close(actual[slices], torch.from_numpy(self.raw[name]), rtol=0, atol=atol)

    def by_level(self, rows):
        """Rows of all anchors as one map a level: (anchor number) row column."""
        parts = rows.split([len(level) for level in self.predictions.anchors])
        maps = zip(parts, self.pyramid, strict=True)
        return [part.unflatten(0, (*level.shape[-2:], 3)).permute(2, 3, 0, 1).flatten(0, 1) for part, level in maps]


@pytest.fixture(scope="module")
def authors(parity, shared_reference):
    return Run(parity, shared_reference / AUTHORS)


@pytest.fixture(scope="module")
def mmdetection(parity, shared_reference):
    return Run(parity, shared_reference / MMDETECTION)


def test_the_authors_input(authors):
    authors.assert_like("input", authors.batch.pixels[0])


@pytest.mark.parametrize("case", ["authors", "mmdetection"])
def test_backbone_and_pyramid(case, request):
    run = request.getfixturevalue(case)
    run.assert_like("c5", run.c5[0])
    for name, level in zip(LEVELS, run.pyramid, strict=True):
        run.assert_like(name, level[0])


def test_the_authors_head(authors):
    authors.assert_like("loc", authors.predictions.box_deltas[0])
    authors.assert_like("conf", authors.predictions.class_logits[0].softmax(dim=1).roll(1, dims=1))  # background first there
    authors.assert_like("coef", authors.predictions.coefficients[0])


def test_the_authors_anchors(authors):
    x1, y1, x2, y2 = (torch.cat(authors.predictions.anchors) / 550).unbind(1)
    authors.assert_like("priors", torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), dim=1))


def test_the_authors_prototypes(authors):
    authors.assert_like("proto", authors.predictions.prototypes[0].permute(1, 2, 0))


def test_mmdetections_head(mmdetection):
    for kind, rows in (
        ("cls", mmdetection.predictions.class_logits),
        ("reg", mmdetection.predictions.box_deltas),
        ("coef", mmdetection.predictions.coefficients),
    ):
        for name, level in zip(LEVELS, mmdetection.by_level(rows[0]), strict=True):
            mmdetection.assert_like(f"{kind}_{name}", level)


def test_mmdetections_prototypes(mmdetection):
    # the case calls them those before the ReLU; the array holds what comes after it
    assert mmdetection.raw["proto"].min() == 0
    mmdetection.assert_like("proto", mmdetection.predictions.prototypes[0])


@pytest.mark.parametrize(("case", "box_px"), [("authors", 1.0), ("mmdetection", 0.05)])
def test_final_result(case, box_px, request, parity):
    run = request.getfixturevalue(case)
    tolerance = {"score_abs": 1e-3, "box_px": box_px, "mask_iou": 0.99}
    _, problems = parity.recipe("compare").compare_instances(run.expected, parity.prediction(run.segments), tolerance)
    assert problems == []
    assert len(run.segments) == 100


def test_anchors_of_mmdetection_are_centred_on_half_a_stride_of_its_config(mmdetection):
    first = mmdetection.predictions.anchors[0][:3]
    widths, heights = first[:, 2] - first[:, 0], first[:, 3] - first[:, 1]
    torch.testing.assert_close(heights / widths, torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close((widths * heights).sqrt(), torch.full((3,), 24.0))
    assert math.isclose(float(first[0, 0] + first[0, 2]) / 2, 550 / 69 / 2, rel_tol=1e-5)
