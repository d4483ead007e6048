"""The stored arrays of torchvision's detection operators, case by case; float32 on a CPU."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from thingstuff.ops.boxes import assign_levels, clip_boxes, decode_deltas, encode_deltas, make_anchors, pairwise_iou
from thingstuff.ops.nms import batched_nms, nms
from thingstuff.ops.paste import paste_soft
from thingstuff.ops.roi_align import multilevel_roi_align, roi_align, roi_pool

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # torchvision itself is up to 2e-5 from float64 where thousands of terms add up to 20


class Reference:
    def __init__(self, folder: Path):
        self.cases = {case["name"]: case for case in json.loads((folder / "case.json").read_text())["cases"]}
        self._arrays = np.load(folder / "outputs.npz")

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self._arrays[name])

    def cotangent(self, name: str, like: torch.Tensor) -> torch.Tensor:
        random = np.random.RandomState(zlib.crc32(f"{name}.cotangent".encode()))
        return torch.from_numpy(random.standard_normal(like.shape).astype(np.float32))


@pytest.fixture(scope="module")
def reference(shared_reference: Path) -> Reference:
    return Reference(shared_reference / "torchvision-ops")


def check_with_gradient(reference: Reference, name: str, operator: Any, *arguments: Any) -> None:
    features = reference["input"].clone().requires_grad_()
    out = operator(features, reference["rois"], *arguments)
    assert_close(out, reference[f"{name}.out"], **CLOSE)
    (out * reference.cotangent(name, out)).sum().backward()
    assert_close(features.grad, reference[f"{name}.grad_input"], **CLOSE)


@pytest.mark.parametrize("traced", [False, True])
def test_roi_align(reference: Reference, monkeypatch: pytest.MonkeyPatch, traced: bool):
    if traced:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    cases = [case for case in reference.cases.values() if case["op"] == "roi_align"]
    assert len(cases) == 12
    for case in cases:
        settings = (tuple(case["output_size"]), case["spatial_scale"], case["sampling_ratio"], case["aligned"])
        check_with_gradient(reference, case["name"], roi_align, *settings)
    assert roi_align(reference["input"], torch.zeros(0, 5), 7).shape == reference["roi_align_empty.out"].shape


def test_roi_pool(reference: Reference):
    for name in ("roi_pool_0", "roi_pool_1"):
        case = reference.cases[name]
        check_with_gradient(reference, name, roi_pool, tuple(case["output_size"]), case["spatial_scale"])


def test_nms(reference: Reference):
    boxes, scores, labels = (reference[f"nms.{part}"] for part in ("boxes", "scores", "labels"))
    for threshold in (0.3, 0.5, 0.7):
        assert torch.equal(nms(boxes, scores, threshold), reference[f"nms_{threshold}.keep"])
        assert torch.equal(batched_nms(boxes, scores, labels, threshold), reference[f"batched_nms_{threshold}.keep"])
    assert torch.equal(nms(reference["nms_exact.boxes"], reference["nms_exact.scores"], 0.5), reference["nms_exact_0.5.keep"])


def test_box_iou_and_clipping(reference: Reference):
    boxes = reference["nms.boxes"]
    # where both boxes are empty the original divides 0 by 0; ours do not overlap
    assert_close(pairwise_iou(boxes[:40], boxes[:40]), reference["box_iou.out"].nan_to_num(0), **CLOSE)
    clipped = reference["clip_boxes.out"]
    assert torch.equal(clip_boxes(boxes, (int(clipped[:, 3].max()), int(clipped[:, 2].max()))), clipped)


def test_paste(reference: Reference):
    height, width = reference.cases["paste"]["image_hw"]
    pasted = paste_soft(reference["paste.masks"][:, 0], reference["paste.boxes"], (height, width), "integer")
    assert_close(pasted, reference["paste.out"][:, 0], **CLOSE)


def test_multilevel_roi_align(reference: Reference):
    levels = [reference[f"msroi.feature_{level}"] for level in range(4)]
    boxes = [reference["msroi.boxes_0"], reference["msroi.boxes_1"]]
    rois = torch.cat([torch.cat((torch.full((len(b), 1), image), b), dim=1) for image, b in enumerate(boxes)])
    level_of_roi = assign_levels(rois[:, 1:], 2, 5, epsilon_outside=1e-6) - 2
    assert torch.equal(level_of_roi, reference["msroi.levels"])
    out = multilevel_roi_align(levels, rois, level_of_roi, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 7, 2)
    assert_close(out, reference["msroi.out"], atol=1e-5, rtol=1e-4)  # the original is 1.3e-5 from float64 here


def test_box_coder(reference: Reference):
    proposals, deltas = reference["coder.proposals"], reference["coder.deltas"]
    for name, weights in (("coder_w10", (10.0, 10.0, 5.0, 5.0)), ("coder_w1", (1.0, 1.0, 1.0, 1.0))):
        assert_close(decode_deltas(deltas, proposals, weights), reference[f"{name}.decoded"], **CLOSE)
    decoded = reference["coder_w1.decoded"]
    solid = (proposals[:, 2:] > proposals[:, :2]).all(dim=1) & (decoded[:, 2:] > decoded[:, :2]).all(dim=1)
    encoded = encode_deltas(decoded[solid], proposals[solid], (10.0, 10.0, 5.0, 5.0))
    assert_close(encoded, reference["coder_w10.encoded"], **CLOSE)


def test_anchors(reference: Reference):
    case = reference.cases["anchors"]
    height, width = case["padded_image_hw"]
    grids = [(rows, columns) for rows, columns in case["grids_hw"]]
    strides = [(height // rows, width // columns) for rows, columns in grids]
    sizes = [tuple(float(size) for size in level) for level in case["sizes"]]
    anchors = make_anchors(grids, strides, sizes, tuple(float(ratio) for ratio in case["ratios"]), rounded=True)
    assert torch.equal(torch.cat(anchors), reference["anchors.out"])
