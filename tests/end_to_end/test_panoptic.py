"""Panoptic networks from drawn scenes to figures: train, predict, evaluate, as a user types them."""

import gc
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import thingstuff
from thingstuff import cli
from thingstuff.cli import judge_panoptic, judge_semantic
from thingstuff.data.id_png import read_id_png
from thingstuff.data.panoptic_check import check_panoptic
from thingstuff.data.shapes import CATEGORIES
from thingstuff.models.catalog import CATALOG
from thingstuff.models.contract import Task
from thingstuff.structures.panoptic import PanopticMap
from thingstuff.training import Recipe, train

FAMILIES = [name for name in ("panoptic-fpn-tiny", "mask2former-tiny", "maskformer-tiny") if name in CATALOG]
OPTIONS = {"steps": 2, "batch_size": 2, "warmup": 1, "validate_every": 2, "save_every": 1, "pictures": 1, "short_side": 64}


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "set"
    assert run("data", "make-shapes", folder, "--images", 5, "--size", "96x72", "--seed", 1, "--splits", "train=3,val=2") == 0
    return folder


def recipe(scenes: Path, out: Path, **changes: object) -> Recipe:
    start = Recipe(data=str(scenes), model="mask2former-tiny", out=str(out), **OPTIONS)  # type: ignore[arg-type]
    return replace(start, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def weights(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has seen four images: it finds little, but always the same."""
    run_folder = tmp_path_factory.mktemp("run") / "run"
    train(recipe(scenes, run_folder))
    return run_folder / "best.safetensors"


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize(
    ("task", "parts", "columns"),
    [
        ("panoptic", {"pq", "semantic", "per_class"}, {"PQ", "SQ", "RQ", "PQ_things", "PQ_stuff", "mIoU"}),
        ("instance", {"box", "mask", "per_class"}, {"box_AP", "mask_AP", "mask_AP50"}),
        ("semantic", {"semantic", "per_class"}, {"mIoU", "fwIoU", "pixel_accuracy"}),
    ],
)
def test_every_family_trains_on_every_task(scenes: Path, tmp_path: Path, model: str, task: str, parts: set, columns: set):
    result = train(recipe(scenes, tmp_path / "run", model=model, task=task))
    assert set(result) == parts
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 2]
    assert columns <= rows[-1].keys()
    segmenter = thingstuff.load(tmp_path / "run" / "best.safetensors")
    assert segmenter.task is Task(task)  # what it was trained for is what it gives unasked
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == 1
    assert train(recipe(scenes, tmp_path / "run", model=model, task=task), resume=True).keys() - {"step"} == parts


def test_the_task_is_the_models_where_the_data_has_it(scenes: Path, tmp_path: Path):
    assert "pq" in train(recipe(scenes, tmp_path / "both"))
    for path in scenes.glob("instances_*.json"):
        (tmp_path / "objects").mkdir(exist_ok=True)
        (tmp_path / "objects" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "objects" / "images").symlink_to(scenes / "images")
    assert "mask" in train(recipe(tmp_path / "objects", tmp_path / "alone"))
    assert "mask" in train(recipe(scenes, tmp_path / "mask-rcnn", model="mask-rcnn-tiny"))


def test_what_a_task_needs_is_told(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ("train", "--data", scenes / "instances_train.json", "--image-dir", scenes / "images", "--out", tmp_path / "run")
    assert run(*words, "--model", "mask2former-tiny", "--task", "panoptic") == 2
    assert "has no panoptic maps, which the task panoptic needs" in capsys.readouterr().err
    assert run(*words, "--model", "mask-rcnn-tiny", "--task", "panoptic") == 2
    assert "mask-rcnn-tiny gives instance segments, not panoptic" in capsys.readouterr().err
    assert run(*words, "--model", "mask-rcnn-tiny", "--task", "everything") == 2
    assert "'everything' is none of instance, panoptic, semantic" in capsys.readouterr().err


def test_photos_may_lie_elsewhere(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for split in ("train", "val"):
        (tmp_path / f"panoptic_{split}").symlink_to(scenes / f"panoptic_{split}")
        (tmp_path / f"panoptic_{split}.json").write_bytes((scenes / f"panoptic_{split}.json").read_bytes())
    words = (
        "train",
        "--data",
        tmp_path,
        "--model",
        "mask2former-tiny",
        "--out",
        tmp_path / "run",
        "--steps",
        1,
        "--batch-size",
        1,
    )
    assert run(*words) == 2
    assert "the photo of image 1 isn't there" in capsys.readouterr().err
    assert run(*words, "--image-dir", scenes / "images", "--short-side", 64) == 0
    assert "PQ" in capsys.readouterr().out


def test_runs_from_before_tasks_go_on(scenes: Path, tmp_path: Path):
    """Their recipe names no task, and their state calls the best figure best_ap."""
    import torch

    start = recipe(scenes, tmp_path / "run", model="mask-rcnn-tiny", steps=1, validate_every=1)
    train(start)
    path = tmp_path / "run" / "recipe.json"
    content = json.loads(path.read_text())
    for key in ("task", "image_dir", "validation_image_dir"):
        del content[key]
    path.write_text(json.dumps(content))
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    state["state"]["best_ap"] = state["state"].pop("best")
    torch.save(state, tmp_path / "run" / "state.pt")
    assert "mask" in train(replace(start, steps=2), resume=True)


def test_two_processes_judge_one_validation(scenes: Path, tmp_path: Path):
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "thingstuff", "train", "--data", str(scenes), "--model", "mask2former-tiny", "--out", str(tmp_path / "run")]
    command += ["--steps", "1", "--batch-size", "1", "--pictures", "1", "--short-side", "64", "--json"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    maps = json.loads((scenes / "panoptic_val.json").read_text())["annotations"]
    segments = sum(len(row["segments_info"]) for row in maps)
    assert told["pq"]["All"]["tp"] + told["pq"]["All"]["fn"] == segments  # of both processes' images, each once


# Prediction -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def predicted(scenes: Path, weights: Path, tmp_path: Path) -> Path:
    assert run("predict", scenes / "images", "--model", weights, "--out", tmp_path / "results", "--score", 0) == 0
    return tmp_path / "results"


def test_each_image_gets_a_picture_its_segments_and_its_map(predicted: Path):
    names = {path.name for path in predicted.iterdir()}
    stems = [f"scene-{number:06d}" for number in range(1, 6)]
    assert names == {
        *(f"{stem}{ending}" for stem in stems for ending in (".png", ".json", ".panoptic.png")),
        *("predictions.json", "panoptic.json", "panoptic"),
    }
    listed = {
        row["file_name"]: row["segments_info"] for row in json.loads((predicted / "panoptic.json").read_text())["annotations"]
    }
    for stem in stems:
        ids = read_id_png(predicted / f"{stem}.panoptic.png")
        np.testing.assert_array_equal(ids, read_id_png(predicted / "panoptic" / f"{stem}.png"))
        segments = json.loads((predicted / f"{stem}.json").read_text())["segments"]
        for row in listed[f"{stem}.png"]:
            assert np.count_nonzero(ids == row["id"]) == row["area"] == segments[row["id"] - 1]["area"]
            assert segments[row["id"] - 1]["category_id"] == row["category_id"]
    assert check_panoptic(predicted / "panoptic.json") == []


def test_predictions_score_one_against_themselves(predicted: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    words = ("evaluate", "--predictions", predicted / "panoptic.json", "--data", predicted / "panoptic.json", "--json")
    assert run(*words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pq"]["All"]["n"] > 0
    assert result["pq"]["All"]["pq"] == 1
    assert result["semantic"]["mIoU"] == 1


def test_predictions_of_a_folder_are_judged_by_the_names_of_its_photos(
    scenes: Path, predicted: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The ids that predict gives are its own: here they are those of other images."""
    content = json.loads((predicted / "panoptic.json").read_text())
    number = {image["id"]: 6 - image["id"] for image in content["images"]}
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        image["id"], annotation["image_id"] = number[image["id"]], number[annotation["image_id"]]
    (predicted / "panoptic.json").write_text(json.dumps(content))
    capsys.readouterr()
    of = ("--data", scenes, "--split", "val", "--json")
    assert run("evaluate", "--predictions", predicted / "panoptic.json", *of) == 0
    by_file = json.loads(capsys.readouterr().out)
    assert run("evaluate", "--model", weights, *of, "--score", 0) == 0
    by_model = json.loads(capsys.readouterr().out)
    assert by_file["pq"] == by_model["pq"]
    assert by_file["semantic"] == by_model["semantic"]


@pytest.mark.parametrize(("task", "has_maps"), [("instance", False), ("semantic", True)])
def test_another_task_may_be_asked_for(scenes: Path, weights: Path, tmp_path: Path, task: str, has_maps: bool):
    words = ("predict", scenes / "images" / "scene-000001.jpg", "--model", weights, "--out", tmp_path / "out")
    assert run(*words, "--task", task) == 0
    assert (tmp_path / "out" / "panoptic.json").exists() == has_maps
    assert (tmp_path / "out" / "scene-000001.panoptic.png").exists() == has_maps


def test_a_task_that_the_model_does_not_know_writes_nothing(
    scenes: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("predict", scenes / "images", "--model", tiny_model, "--out", tmp_path / "out", "--task", "panoptic") == 2
    assert "gives instance segments, not 'panoptic'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_somebodys_truth_is_not_overwritten(scenes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    (out / "panoptic").mkdir(parents=True)
    (out / "panoptic" / "a.png").write_bytes(b"mine")
    words = ("predict", scenes / "images" / "scene-000001.jpg", "--model", weights, "--out", out)
    assert run(*words) == 2
    assert "out/panoptic is there and was not written by predict" in capsys.readouterr().err
    (out / "panoptic.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert run(*words) == 2
    assert "panoptic.json is there and was not written by predict" in capsys.readouterr().err
    (out / "panoptic.json").unlink()
    (out / "panoptic" / "a.png").unlink()
    assert run(*words) == 0
    assert run(*words) == 0  # its own results it writes anew


# Evaluation -----------------------------------------------------------------------------------------------------------


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run("evaluate", *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_a_panoptic_model_is_judged_on_maps_and_on_its_things(scenes: Path, weights: Path, tmp_path: Path, capsys):
    result = evaluated(capsys, "--model", weights, "--data", scenes, "--split", "val", "--out", tmp_path / "report")
    assert list(result) == ["box", "mask", "pq", "boundary_pq", "semantic", "per_class"]
    assert set(result["per_class"]) == set(CATEGORIES.names)
    assert {"mask", "pq", "iou"} <= result["per_class"]["circle"].keys()
    assert "mask" not in result["per_class"]["sky"]
    assert (tmp_path / "report" / "report.html").exists()
    alone = evaluated(capsys, "--model", weights, "--data", scenes, "--split", "val", "--task", "instance")
    assert alone["mask"] == result["mask"]
    assert alone["box"] == result["box"]
    assert run("evaluate", "--model", weights, "--data", scenes, "--split", "val") == 0
    told = capsys.readouterr().out
    for word in ("PQ", "SQ", "RQ", "mIoU", "mask", "AP50"):
        assert word in told


def test_things_are_those_of_the_maps_where_there_are_no_instances(scenes: Path, weights: Path, tmp_path: Path, capsys):
    for name in ("panoptic_val", "images"):
        (tmp_path / name).symlink_to(scenes / name)
    (tmp_path / "panoptic_val.json").write_bytes((scenes / "panoptic_val.json").read_bytes())
    of_maps = evaluated(capsys, "--model", weights, "--data", tmp_path, "--split", "val")
    assert of_maps == evaluated(capsys, "--model", weights, "--data", scenes, "--split", "val")


def test_a_model_is_judged_on_class_maps_when_asked(scenes: Path, weights: Path, capsys):
    result = evaluated(capsys, "--model", weights, "--data", scenes, "--split", "val", "--task", "semantic")
    assert set(result) == {"semantic", "per_class"}
    assert set(result["per_class"]["sky"]) == {"iou"}
    assert run("evaluate", "--model", weights, "--data", scenes, "--split", "val", "--task", "semantic") == 0
    assert capsys.readouterr().out.startswith("mIoU ")


@pytest.mark.parametrize(("task", "judge"), [("panoptic", judge_panoptic), ("semantic", judge_semantic)])
def test_only_the_maps_that_the_report_shows_are_kept(
    scenes: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, judge: ModuleType
):
    made, kept, from_segments, report = [], [], PanopticMap.from_segments, judge._report

    def remembered(segments: Any) -> PanopticMap:
        made.append(weakref.ref(one := from_segments(segments)))
        return one

    def counted(*arguments: Any) -> Any:
        gc.collect()
        kept.append(sum(one() is not None for one in made))
        return report(*arguments)

    monkeypatch.setattr(PanopticMap, "from_segments", remembered)
    monkeypatch.setattr(judge, "_report", counted)
    words = ("evaluate", "--model", weights, "--data", scenes, "--split", "train", "--task", task, "--out", tmp_path / "a")
    for pictures in (0, 2):
        assert run(*words, "--pictures", pictures) == 0
    assert len(made) == 2 * 3
    assert kept == [0, 2]


def test_the_report_of_class_maps_knows_no_segment(scenes: Path, weights: Path, tmp_path: Path, capsys):
    words = ("evaluate", "--model", weights, "--data", scenes, "--split", "val", "--task", "semantic", "--out", tmp_path / "a")
    assert run(*words) == 0
    capsys.readouterr()
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert not {"pq", "boundary_pq", "errors"} & report.keys()
    assert set(report["semantic"]) == {"mIoU", "fwIoU", "pixel_accuracy", "mean_accuracy", "n"}
    assert set(report["per_class"]["sky"]) == {"iou"}
    assert len(report["per_image"]["quality"]) == report["images"]
    low, high = report["intervals"]["semantic"]["mIoU"]
    assert low <= report["semantic"]["mIoU"] <= high
    annotated = sum(about["pixels"] for about in report["classes"].values())
    assert sum(map(sum, report["confusion"]["counts"])) == annotated
    page = (tmp_path / "a" / "report.html").read_text()
    assert "fwIoU" in page
    assert "PQ" not in page
    assert "mask AP" not in page
    assert run("evaluate", "--compare", tmp_path / "a", tmp_path / "a", "--out", tmp_path / "both") == 0
    told = capsys.readouterr().out
    assert "pixel accuracy" in told
    assert "+0.00" in told
