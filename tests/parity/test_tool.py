"""tools/parity.py as it is used: one line a case, exit code 1 on a misfit."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from thingstuff.models.mask_rcnn import MaskRCNNConfig, Thresholds
from thingstuff.structures.preprocessing import ImageSize, Preprocessing, Resize

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


def test_a_misfit_of_float32_alone_is_rounding_and_the_line_says_it(parity, reference, monkeypatch, capsys):
    expected = dict(np.load(reference / CASE / "expected.npz"))
    asked = []

    def run_case(case, device, dtype=torch.float32):
        asked.append(dtype)
        scores = expected["scores"].copy()
        scores[0] += 2e-3 if dtype == torch.float32 else 0
        return expected | {"scores": scores}

    monkeypatch.setattr(parity, "run_case", run_case)
    assert parity.main([str(reference / CASE)]) == 0
    assert asked == [torch.float32, torch.float64]
    line = capsys.readouterr().out
    assert line.startswith(f"fits  {CASE}  ")
    assert "in float64, as float32 rounds otherwise than the original (instance " in line


def test_a_float32_that_gives_nonsense_is_a_misfit_whatever_float64_gives(parity, reference, monkeypatch, capsys):
    expected = dict(np.load(reference / CASE / "expected.npz"))
    monkeypatch.setattr(parity, "run_case", lambda *_: expected | {"scores": np.full(100, np.nan, np.float32)})
    assert parity.main([str(reference / CASE)]) == 1
    assert capsys.readouterr().out.startswith(f"MISFIT  {CASE}  ")


def test_float64_runs_in_float64(parity, reference):
    case = parity.Case(reference / CASE)
    exact = parity.run_case(case, "cpu", torch.float64)
    _, problems = parity.recipe("compare").compare(case.folder, exact)
    assert problems == []
    assert np.abs(exact["scores"] - parity.run_case(case, "cpu")["scores"]).max() > 0


def test_a_family_that_does_not_exist_here_is_said_to_be_unsupported(parity, tmp_path, capsys):
    folder = tmp_path / "cascade"
    folder.mkdir()
    facts = {"peer": "mmdetection", "image": "images/none.png"}
    (folder / "case.json").write_text(json.dumps(facts))
    (folder / "keys.json").write_text(
        json.dumps({"neck.lateral_convs.0.conv.weight": [4, 4, 1, 1], "roi_head.bbox_head.0.fc_cls.weight": [4, 4]})
    )
    assert parity.main([str(folder)]) == 1
    assert (
        "Cascade R-CNN or HTC (MMDetection, seen by roi_head.bbox_head.0.fc_cls.weight) is not supported yet"
        in capsys.readouterr().out
    )


def test_a_case_without_a_model_is_said_to_be_unsupported(parity, tmp_path, capsys):
    (tmp_path / "case.json").write_text("{}")
    assert parity.main([str(tmp_path)]) == 1
    assert "not supported yet" in capsys.readouterr().out


def test_a_folder_that_is_no_case_is_said_to_be_none(parity, tmp_path, capsys):
    assert parity.main([str(tmp_path)]) == 1
    assert "has no case.json; not supported yet" in capsys.readouterr().out


def test_a_folder_that_does_not_exist_is_wrong_use(parity, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        parity.main([str(tmp_path / "nowhere")])
    assert stop.value.code == 2
    assert "nowhere is no folder" in capsys.readouterr().err


def test_a_case_is_found_from_inside_its_folder(parity, tmp_path, monkeypatch):
    folder = tmp_path / "a-case"
    folder.mkdir()
    (folder / "case.json").write_text("{}")
    monkeypatch.chdir(folder)
    case = parity.Case(Path("."))
    assert (case.name, case.folder.parent) == ("a-case", tmp_path)


def case_with(parity, folder, facts):
    folder.mkdir(exist_ok=True)
    (folder / "case.json").write_text(json.dumps(facts))
    return parity.Case(folder)


@pytest.mark.parametrize(
    ("size", "limits", "wanted"),
    [
        ((300, 451), (480, 1333), (480, 721)),
        ((400, 600), (800, 1000), (666, 1000)),
        ((300, 451), (333, 333), (221, 333)),
        ((451, 300), (480, 1333), (721, 480)),
    ],
)
@pytest.mark.parametrize("words", ["short side is {0} and the long side at most {1}", None])
def test_the_input_has_the_size_that_the_case_states(parity, tmp_path, size, limits, wanted, words):
    own = Preprocessing(short_side=800, long_side=1333, resize=Resize.TORCHVISION)
    Image.new("RGB", (size[1], size[0]), (200, 10, 90)).save(tmp_path / "image.png")
    facts = {"resized_hw": wanted} | ({"words": words.format(*limits)} if words else {})
    case = case_with(parity, tmp_path / "case", {"image": "image.png", "preprocessing": facts})
    if words:
        assert case.scaled(own).input_size(*size) == wanted
    batch = case.batch(SimpleNamespace(preprocessing=own))
    assert batch.sizes[0] == ImageSize(wanted, size)
    assert tuple(batch.pixels.shape[-2:]) == tuple(-(-side // 32) * 32 for side in wanted)


def test_limits_of_the_sides_are_found_under_each_peers_names(parity, tmp_path):
    for facts in (
        {"preprocessing": {"peer_scale_setting": [667, 400]}},
        {"config": {"min_size": 400, "max_size": 667}},
        {"preprocessing": {"resize": "shortest edge to 400, longest at most 667: Pillow bilinear"}},
        {"preprocessing": {"words": "bilinear so that the short side is 400 and the long side at most 667, output floor"}},
    ):
        found = case_with(parity, tmp_path / "case", facts).scaled(Preprocessing())
        assert (found.short_side, found.long_side) == (400, 667)
    assert case_with(parity, tmp_path / "case", {}).scaled(Preprocessing()) == Preprocessing()


def test_anchors_that_a_case_states_are_the_models(parity, tmp_path):
    stated = {"anchor_sizes": [[16], [32], [64], [128], [256]], "anchor_ratios": [[0.25, 1, 4]] * 5}
    found = case_with(parity, tmp_path / "case", {"config": stated}).anchors(MaskRCNNConfig())
    assert found == MaskRCNNConfig(anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0), anchor_ratios=(0.25, 1.0, 4.0))
    for wrong in ({"anchor_sizes": [[16, 32]] * 5}, {"anchor_ratios": [0.5, 1]}, {"anchor_sizes": [32, 64]}):
        with pytest.raises(ValueError, match=r"anchor_.* supported"):
            case_with(parity, tmp_path / "case", {"config": wrong}).anchors(MaskRCNNConfig())


def thresholds_of(parity, folder, facts):
    folder.mkdir(exist_ok=True)
    (folder / "case.json").write_text(json.dumps(facts))
    return parity.Case(folder).thresholds(Thresholds())


def test_thresholds_are_found_under_each_peers_names(parity, tmp_path):
    torchvision = {
        "config": {
            **{
                "rpn_pre_nms_top_n": 300,
                "rpn_post_nms_top_n": 200,
                "rpn_nms_thresh": 0.6,
                "rpn_min_box_size": 0.01,
                "rpn_score_thresh": 0.1,
            },
            **{"box_score_thresh": 0.3, "box_nms_thresh": 0.4, "detections_per_image": 7, "box_min_size": 0.02},
        },
        "mask_threshold": 0.45,
    }
    expected = Thresholds(300, 200, 0.6, 0.01, 0.3, 0.4, 7, 0.02, 0.45, proposal_score=0.1)
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
