"""tools/parity.py as it is used: one line a case, exit code 1 on a misfit."""

import json
import shutil

import numpy as np
import pytest

from thingstuff.models.mask_rcnn import Thresholds

CASE = "mmdet-mask-rcnn-r50-fpn"  # the one with the smallest input


@pytest.fixture(scope="module")
def changed_case(tmp_path_factory, reference):
    """A copy of the case that a test may change, with its image where the case says."""
    folder = tmp_path_factory.mktemp("cases")
    shutil.copytree(reference / CASE, folder / CASE)
    shutil.copytree(reference / "images", folder / "images")
    return folder / CASE


def test_a_case_fits_and_a_changed_expectation_does_not(parity, changed_case, capsys):
    assert parity.main(["--device", "cpu", str(changed_case)]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"fits  {CASE}  instances 100 expected, 100 given")
    assert line.count("\n") == 1

    expected = dict(np.load(changed_case / "expected.npz"))
    expected["labels"][0] = (expected["labels"][0] + 1) % 80
    np.savez(changed_case / "expected.npz", **expected)
    assert parity.main(["--device", "cpu", str(changed_case)]) == 1
    line = capsys.readouterr().out
    assert line.startswith(f"MISFIT  {CASE}  ")
    assert "is missing; extra instance" in line
    assert line.count("\n") == 1


def test_a_family_that_does_not_exist_here_is_said_to_be_unsupported(parity, tmp_path, capsys):
    folder = tmp_path / "solo"
    folder.mkdir()
    facts = {"peer": "mmdetection", "image": "images/none.png"}
    (folder / "case.json").write_text(json.dumps(facts))
    (folder / "keys.json").write_text(json.dumps({"mask_head.cls_convs.0.conv.weight": [4, 4, 3, 3]}))
    assert parity.main([str(folder)]) == 1
    assert (
        "SOLO or SOLOv2 (MMDetection, seen by mask_head.cls_convs.0.conv.weight) is not supported yet" in capsys.readouterr().out
    )


def test_a_case_without_a_model_is_said_to_be_unsupported(parity, tmp_path, capsys):
    (tmp_path / "case.json").write_text("{}")
    assert parity.main([str(tmp_path)]) == 1
    assert "not supported yet" in capsys.readouterr().out


def test_a_folder_that_is_no_case_is_wrong_use(parity, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        parity.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "it has no case.json" in capsys.readouterr().err


def thresholds_of(parity, folder, facts):
    folder.mkdir(exist_ok=True)
    (folder / "case.json").write_text(json.dumps(facts))
    return parity.Case(folder).thresholds(Thresholds())


def test_thresholds_are_found_under_each_peers_names(parity, tmp_path):
    torchvision = {
        "config": {
            **{"rpn_pre_nms_top_n": 300, "rpn_post_nms_top_n": 200, "rpn_nms_thresh": 0.6, "rpn_min_box_size": 0.01},
            **{"box_score_thresh": 0.3, "box_nms_thresh": 0.4, "detections_per_image": 7, "box_min_size": 0.02},
        },
        "mask_threshold": 0.45,
    }
    expected = Thresholds(300, 200, 0.6, 0.01, 0.3, 0.4, 7, 0.02, 0.45)
    assert thresholds_of(parity, tmp_path / "a", torchvision) == expected
    mmdet = {
        "config": {"rpn_test": "300 best per level, NMS 0.6 per level, 200 best overall, min size 2"},
        "postprocessing": {
            **{"score_thr": 0.3, "nms": "per class, IoU 0.4, after decoding", "max_per_img": 7, "mask_thr": 0.45},
        },
    }
    assert thresholds_of(parity, tmp_path / "b", mmdet) == Thresholds(300, 200, 0.6, 2.0, 0.3, 0.4, 7, 0.0, 0.45)
    detectron2 = {
        "config": {"rpn": "3x3 conv ReLU; PRE_NMS_TOPK 300 per level, POST_NMS_TOPK 200, NMS 0.6 per level, box weights 1"},
        "postprocessing": {
            **{"score_thresh": 0.3, "nms": "per class, IoU 0.4", "max_per_image": 7},
            "mask_paste": "sigmoid, bilinear sampling at pixel centres, >= 0.45",
        },
    }
    assert thresholds_of(parity, tmp_path / "c", detectron2) == Thresholds(300, 200, 0.6, 0.0, 0.3, 0.4, 7, 0.0, 0.45)


def test_the_cases_of_the_repository_are_those_beside_it(reference, shared_reference):
    for path in sorted(reference.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.read_bytes() == (shared_reference / path.relative_to(reference)).read_bytes(), path
