"""Whole training runs on two drawn images: results, resuming in the same bits, and what stops a run."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import thingstuff
from thingstuff.errors import CheckpointError, ConfigError, TrainingError
from thingstuff.models.mask_rcnn import MaskRCNN
from thingstuff.training import Recipe, train

OPTIONS = {"steps": 6, "batch_size": 2, "warmup": 2, "validate_every": 3, "save_every": 1, "pictures": 1}


def _recipe(shapes: Path, out: Path, **changes: object) -> Recipe:
    return replace(Recipe(data=str(shapes), model="mask-rcnn-tiny", out=str(out), **OPTIONS), **changes)  # type: ignore[arg-type]


def test_a_run_leaves_weights_log_validation_and_pictures(shapes: Path, tmp_path: Path) -> None:
    result = train(_recipe(shapes, tmp_path / "run"))
    run = tmp_path / "run"
    assert {"AP", "AP50"} <= set(result["mask"])
    assert {path.name for path in (run / "pictures").iterdir()} == {"step_000003_30.png", "step_000006_30.png"}
    with (run / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["1", "2", "3", "3", "4", "5", "6", "6"]  # a validation has its own row
    assert float(rows[0]["mask"]) > 0
    for name in ("best.safetensors", "last.safetensors"):
        segmenter = thingstuff.load(run / name)
        assert segmenter.categories.names == ("disk", "square")
        segmenter.predict(shapes / "images" / "shape-1.png")


def test_a_killed_run_resumes_to_the_same_bits(shapes: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = 40
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "thingstuff",
        "train",
        "--data",
        str(shapes),
        "--model",
        "mask-rcnn-tiny",
        "--out",
        str(killed),
    ]
    for name, value in (OPTIONS | {"steps": steps, "validate_every": 100, "save_every": 2}).items():
        command += ["--" + name.replace("_", "-"), str(value)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | threads)
    give_up = time.monotonic() + 120
    while not (killed / "state.pt").exists() and time.monotonic() < give_up:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    recipe = _recipe(shapes, killed, steps=steps, validate_every=100, save_every=2)
    before = torch.load(killed / "state.pt", weights_only=True)["state"]["step"]
    assert 0 < before < steps
    train(recipe, resume=True)
    train(replace(recipe, out=str(whole)))
    expected, got = load_file(whole / "last.safetensors"), load_file(killed / "last.safetensors")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert (whole / "log.csv").read_text() == (killed / "log.csv").read_text()


def test_a_finished_run_resumed_tells_its_last_validation(shapes: Path, tmp_path: Path) -> None:
    first = train(_recipe(shapes, tmp_path / "run", steps=3))
    again = train(_recipe(shapes, tmp_path / "run", steps=3), resume=True)
    assert again["mask"] == first["mask"]


def test_a_folder_with_a_run_is_not_overwritten(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    with pytest.raises(TrainingError, match="already holds a run; pass --resume"):
        train(_recipe(shapes, tmp_path / "run"))


def test_resuming_with_another_recipe_names_what_differs(shapes: Path, tmp_path: Path) -> None:
    train(_recipe(shapes, tmp_path / "run", steps=1, validate_every=100))
    with pytest.raises(TrainingError, match=r"batch_size was 2, is 1, learning_rate was"):
        train(
            replace(_recipe(shapes, tmp_path / "run", steps=1, validate_every=100), batch_size=1, learning_rate=0.5), resume=True
        )


def test_the_backbone_learns_at_its_share_of_the_rate(shapes: Path, tmp_path: Path) -> None:
    """AdamW's first step moves a weight by the learning rate, whatever its gradient, unless that is about nothing."""
    start = tmp_path / "start" / "last.safetensors"
    train(_recipe(shapes, start.parent, steps=1, validate_every=100))
    once = _recipe(
        shapes, tmp_path / "run", steps=1, validate_every=100, model=str(start), weight_decay=0.0, ema=0.0, backbone_rate=0.1
    )
    train(once)
    before, after = load_file(start), load_file(tmp_path / "run" / "last.safetensors")
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before if name.endswith(".weight")}
    rate = once.learning_rate_at(0)
    for is_backbone, factor in ((True, 0.1), (False, 1.0)):
        most = max(value for name, value in moved.items() if name.startswith("backbone.") is is_backbone)
        assert most == pytest.approx(factor * rate, rel=0.02)  # the rounding of weights of about 1 is 0.005 of the smaller


def test_muon_moves_matrices_alike_in_all_directions_and_nadamw_the_rest(shapes: Path, tmp_path: Path) -> None:
    start = tmp_path / "start" / "last.safetensors"
    train(_recipe(shapes, start.parent, steps=1, validate_every=100))
    changes = {"weight_decay": 0.0, "ema": 0.0, "optimizer": "muon"}
    once = _recipe(shapes, tmp_path / "run", steps=1, validate_every=100, model=str(start), **changes)
    train(once)
    before, after = load_file(start), load_file(tmp_path / "run" / "last.safetensors")
    rate = once.learning_rate_at(0)
    for name in ("box_head.fcs.0.weight", "neck.output.0.conv.weight", "backbone.body.layer2.0.conv1.weight"):
        moved = (after[name] - before[name]).double().flatten(1)
        # were all singular values 1, the root mean square of what is moved would be 0.2 of the rate, as of AdamW's updates
        singular = torch.linalg.svdvals(moved) / (0.2 * rate * max(moved.shape) ** 0.5)
        assert singular[0] < 1.5, name
        assert singular[len(singular) // 2] > 0.5, name
    bias = after["box_head.fcs.0.bias"] - before["box_head.fcs.0.bias"]
    # NAdam's first step: its mean of gradients is 0.1 of the gradient, and of the 0.9 and 0.1 that it adds of mean and gradient
    # all is divided by 0.1: 0.9 + 1 rates
    assert bias.abs().max().item() == pytest.approx(1.9 * rate, rel=0.02)


def test_frozen_levels_of_a_checkpoint_stay_and_the_rest_learns(shapes: Path, tmp_path: Path) -> None:
    start = tmp_path / "start" / "last.safetensors"
    train(_recipe(shapes, start.parent, steps=1, validate_every=100))
    frozen = _recipe(shapes, tmp_path / "run", steps=1, validate_every=100, model=str(start), ema=0.0, freeze_levels=1)
    train(frozen)
    train(replace(frozen, steps=2), resume=True)
    before, after = load_file(start), load_file(tmp_path / "run" / "last.safetensors")
    same = {name for name, value in before.items() if torch.equal(value, after[name]) and value.is_floating_point()}
    first = ("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1")
    assert same == {name for name, value in before.items() if name.startswith(first) and value.is_floating_point()}


def test_levels_of_random_weights_are_not_frozen(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="starts from random weights, which would never learn; give --backbone-weights"):
        train(_recipe(shapes, tmp_path / "run", freeze_levels=1))
    assert not (tmp_path / "run").exists()


def test_a_run_from_before_the_backbone_had_a_rate_goes_on_at_the_common_one(shapes: Path, tmp_path: Path) -> None:
    older, whole = tmp_path / "older", tmp_path / "whole"
    train(_recipe(shapes, older, steps=2, validate_every=100))
    content = json.loads((older / "recipe.json").read_text())
    assert content.pop("backbone_rate") == 1.0
    (older / "recipe.json").write_text(json.dumps(content))
    state = torch.load(older / "state.pt", weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        assert group.pop("factor") == 1.0
    torch.save(state, older / "state.pt")

    longer = _recipe(shapes, older, steps=4, validate_every=100)
    with pytest.raises(TrainingError, match=r"another recipe: backbone_rate was 1\.0, is 0\.1; repeat its command"):
        train(replace(longer, backbone_rate=0.1), resume=True)
    train(longer, resume=True)
    train(_recipe(shapes, whole, steps=2, validate_every=100))
    train(replace(longer, out=str(whole)), resume=True)
    assert (older / "log.csv").read_text() == (whole / "log.csv").read_text()


def test_a_broken_state_is_an_error_with_words(shapes: Path, tmp_path: Path) -> None:
    recipe = _recipe(shapes, tmp_path / "run", steps=1, validate_every=100)
    train(recipe)
    (tmp_path / "run" / "state.pt").write_bytes(b"PK not a state")
    with pytest.raises(TrainingError, match=r"state\.pt does not belong to this run or is broken"):
        train(recipe, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MaskRCNN.losses

    def broken(self: MaskRCNN, images: torch.Tensor, targets: list) -> dict[str, torch.Tensor]:
        return original(self, images, targets) | {"mask": images.sum() * float("nan")}

    monkeypatch.setattr(MaskRCNN, "losses", broken)
    with pytest.raises(TrainingError, match=r"step 0: loss mask is nan on the images with id (10, 20|20, 10)"):
        train(_recipe(shapes, tmp_path / "run"))


def test_weights_of_losses_must_be_known(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"loss_weights names \['maks'\]"):
        train(_recipe(shapes, tmp_path / "run", loss_weights=(("maks", 2.0),)))
    assert not (tmp_path / "run").exists()  # where the next try would find a run


def test_an_unknown_model_lists_the_known_ones(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mask-rcnn-r500 is neither a file nor a model to train; these are: mask-rcnn-r50, "):
        train(_recipe(shapes, tmp_path / "run", model="mask-rcnn-r500"))


def test_a_data_set_without_objects_has_nothing_to_learn(shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "instances_train.json").read_text())
    (shapes / "instances_train.json").write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(TrainingError, match="nothing to learn"):
        train(_recipe(shapes, tmp_path / "run"))


def test_splits_with_other_categories_do_not_mix(shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "instances_val.json").read_text())
    content["categories"].append({"id": 8, "name": "star"})
    (shapes / "instances_val.json").write_text(json.dumps(content))
    with pytest.raises(TrainingError, match=r"has the category ids \[4, 7, 8\]"):
        train(_recipe(shapes, tmp_path / "run"))


def test_training_goes_on_from_a_checkpoint_of_the_same_categories(shapes: Path, tmp_path: Path, tiny_model: Path) -> None:
    train(_recipe(shapes, tmp_path / "first", steps=1, validate_every=100))
    train(_recipe(shapes, tmp_path / "second", steps=1, validate_every=100, model=str(tmp_path / "first" / "last.safetensors")))
    with pytest.raises(TrainingError, match=r"knows the category ids \[4, 7, 9\]"):
        train(_recipe(shapes, tmp_path / "third", model=str(tiny_model)))


def test_backbone_weights_must_fit(shapes: Path, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match=r"does not hold a resnet18: .*bn1\.weight is missing"):
        train(_recipe(shapes, tmp_path / "run", backbone_weights=str(tmp_path / "wrong.pth")))


def test_accumulating_two_batches_of_one_steps_as_often_as_asked(shapes: Path, tmp_path: Path) -> None:
    train(_recipe(shapes, tmp_path / "run", batch_size=1, accumulate=2, steps=2, validate_every=100))
    rows = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows if "learning_rate" in row] == [1, 2]


def test_square_images_are_stretched_in_training_and_afterwards(shapes: Path, tmp_path: Path) -> None:
    train(_recipe(shapes, tmp_path / "run", steps=1, short_side=64, square=True))
    preprocessing = thingstuff.load(tmp_path / "run" / "last.safetensors", device="cpu").preprocessing
    assert preprocessing.input_size(90, 120) == (64, 64)
