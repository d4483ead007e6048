"""SOLO and SOLOv2 against MMDetection 3.3: every array along the way, then the final result; and the same arrays once more, under
the names that the authors' repository and AdelaiDet have for them.

The weights are drawn from each parameter's name (tests/reference/weights.py), so that only outputs had to be stored. Tolerances
are the cases' own: twenty times the difference that the original shows between float32 and float64, or 1e-4 of the largest value.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import thingstuff
from thingstuff.models.solo import cell_scores
from thingstuff.segmenter import Segmenter

CASES = ("mmdet-solo-r50", "mmdet-solov2-r50", "mmdet-solov2-light-r50")


class Run:
    """One case through our network, with the original's arrays beside it."""

    def __init__(self, parity, folder, segmenter=None):
        self.case = parity.Case(folder)
        self.expected = dict(np.load(folder / "expected.npz"))
        self.raw = dict(np.load(folder / "outputs.npz").items())
        segmenter = segmenter or parity.load_case(self.case, "cpu")
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


def assert_scores(run):
    scores = cell_scores(run.predictions.categories)[0]
    for level, side, cells in run.levels():
        grid = scores[cells].unflatten(0, (side, side))  # rows columns classes
        run.assert_like(f"cls_{level}", grid.permute(2, 0, 1) if "mask_0" in run.raw else grid)


@torch.inference_mode()
def assert_masks(run):
    for level, _, cells in run.levels():
        if "mask_0" in run.raw:
            run.assert_like(f"mask_{level}", run.model.masks_of_cells(run.predictions, 0, cells))
        else:
            run.assert_like(f"kernel_{level}", run.predictions.kernels[level][0])
    if "mask_0" not in run.raw:
        run.assert_like("mask_feature", run.predictions.mask_feature[0])


def test_scores_of_the_cells(run):
    assert_scores(run)


def test_masks_of_the_cells(run):
    assert_masks(run)


def test_scores_after_matrix_nms(run):
    # the case's own tolerance: a pixel whose probability is one half to the last bit changes a mask's mean by as much as 3e-4
    np.testing.assert_allclose(run.segments.scores, run.raw["det_scores"], rtol=0, atol=1e-3)


def test_final_result(parity, run):
    tolerance = {"score_abs": 1e-3, "box_px": 0.05, "mask_iou": 0.99}
    _, problems = parity.recipe("compare").compare_instances(run.expected, parity.prediction(run.segments), tolerance)
    assert problems == []


# The same arrays under other names, from MMDetection's names by those of each repository's code: mmdet/models/anchor_heads and
# mask_heads of WXinlong/SOLO, adet/modeling/solov2/solov2.py and detectron2's ResNet and FPN
_FEATURE = r"mask_head\.mask_feature_head\."
AUTHORS = [
    (_FEATURE + r"conv_pred\.", "mask_feat_head.conv_pred.0."),
    (_FEATURE, "mask_feat_head."),
    (r"mask_head\.cls_convs", "bbox_head.cate_convs"),
    (r"mask_head\.mask_convs", "bbox_head.ins_convs"),
    (r"mask_head\.kernel_convs", "bbox_head.kernel_convs"),
    (r"mask_head\.conv_cls", "bbox_head.solo_cate"),
    (r"mask_head\.conv_mask_list", "bbox_head.solo_ins_list"),
    (r"mask_head\.conv_kernel", "bbox_head.solo_kernel"),
]
ADELAIDET = [
    *((rf"{_FEATURE}conv_pred\.{part}\.", f"mask_head.conv_pred.{place}.") for place, part in enumerate(("conv", "gn"))),
    *((rf"{_FEATURE}(.+\.conv\d)\.{part}\.", rf"mask_head.\1.{place}.") for place, part in enumerate(("conv", "gn"))),
    *((rf"mask_head\.cls_convs\.{i}\.conv\.", f"ins_head.cate_tower.{3 * i}.") for i in range(4)),
    *((rf"mask_head\.cls_convs\.{i}\.gn\.", f"ins_head.cate_tower.{3 * i + 1}.") for i in range(4)),
    *((rf"mask_head\.kernel_convs\.{i}\.conv\.", f"ins_head.kernel_tower.{3 * i}.") for i in range(4)),
    *((rf"mask_head\.kernel_convs\.{i}\.gn\.", f"ins_head.kernel_tower.{3 * i + 1}.") for i in range(4)),
    (r"mask_head\.conv_cls", "ins_head.cate_pred"),
    (r"mask_head\.conv_kernel", "ins_head.kernel_pred"),
    *((rf"neck\.lateral_convs\.{i}\.conv", f"backbone.fpn_lateral{i + 2}") for i in range(4)),
    *((rf"neck\.fpn_convs\.{i}\.conv", f"backbone.fpn_output{i + 2}") for i in range(4)),
    (r"^backbone\.conv1\.", "backbone.bottom_up.stem.conv1."),
    (r"^backbone\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    *((rf"^backbone\.layer{i}\.", f"backbone.bottom_up.res{i + 1}.") for i in (1, 2, 3, 4)),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"downsample\.0\.", "shortcut."),
    (r"downsample\.1\.", "shortcut.norm."),
]
OTHERS = [*((case, "authors") for case in CASES), *((case, "adelaidet") for case in CASES[1:])]


@pytest.fixture(scope="module", params=OTHERS, ids="-".join)
def other(request, parity, shared_reference, tmp_path_factory):
    case, library = request.param
    arrays = parity.recipe("weights").load_case(str(shared_reference / case))
    state = {}
    for name, array in arrays.items():
        if library == "adelaidet" and name.endswith("num_batches_tracked"):
            continue  # its norms are frozen
        for pattern, replacement in AUTHORS if library == "authors" else ADELAIDET:
            name = re.sub(pattern, replacement, name)
        state[name] = torch.from_numpy(np.asarray(array))
    if library == "adelaidet":  # reads BGR
        stem = "backbone.bottom_up.stem.conv1.weight"
        state[stem] = state[stem].flip(1)
    path = tmp_path_factory.mktemp(library) / "model.pth"
    torch.save({"state_dict": state}, path)
    found = thingstuff.load(path, "cpu")
    original = parity.load_case(parity.Case(shared_reference / case), "cpu")
    model = found.model
    if library == "adelaidet":  # its stride stands elsewhere in a block, of which no array tells
        assert model.config.backbone.stride_in_1x1
        config = replace(model.config, backbone=replace(model.config.backbone, stride_in_1x1=False))
        model = type(model)(config)
        model.load_state_dict(found.model.state_dict())
    return Run(parity, shared_reference / case, Segmenter(model, found.categories, original.preprocessing))


def test_scores_of_the_cells_from_another_layout(other):
    assert_scores(other)


def test_masks_of_the_cells_from_another_layout(other):
    assert_masks(other)
