"""What stops a training run, or lets it go on, on two drawn images: every end has words."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import thingstuff
from thingstuff.checkpoints import backbone_weights
from thingstuff.checkpoints.files import read_header
from thingstuff.cli import main
from thingstuff.data.folders import open_dataset
from thingstuff.data.records import InstanceDataset, Record
from thingstuff.errors import AnnotationError, CheckpointError, TrainingError
from thingstuff.models.contract import Task
from thingstuff.models.mask_rcnn import MaskRCNN
from thingstuff.segmenter import Segmenter
from thingstuff.structures.segments import Segments
from thingstuff.training import Recipe, loop, run_folder, train
from thingstuff.training.stopping import Stopped
from thingstuff.training.validation import InstanceJudge


def _recipe(shapes: Path, out: Path, **changes: object) -> Recipe:
    options = {"steps": 1, "batch_size": 1, "warmup": 0, "validate_every": 100, "save_every": 1, "pictures": 0}
    start = Recipe(data=str(shapes / "instances_train.json"), model="mask-rcnn-tiny", out=str(out))
    return replace(start, **(options | changes))  # type: ignore[arg-type]


def _build(recipe: Recipe, data: InstanceDataset) -> Segmenter:
    return loop._build(recipe, loop._start_of(recipe), data, Task.INSTANCE)


def _prepare(recipe: Recipe, resume: bool = False) -> None:
    data = open_dataset(recipe.data)
    run_folder.prepare_folder(recipe, resume, data, _build(recipe, data))


@pytest.fixture
def shapes(shapes: Path) -> Path:
    """The annotation file lies beside its images, so that it can be named alone, without a validation split."""
    for image in (shapes / "images").iterdir():
        (shapes / image.name).write_bytes(image.read_bytes())
    return shapes


@pytest.fixture(autouse=True)
def _hears_ctrl_c() -> Iterator[None]:
    """As in a terminal: what a shell starts in the background ignores Ctrl-C, and so would the runs that are begun here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_training_without_accelerate_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(thingstuff, "training", raising=False)
    for name in ("thingstuff.training", "thingstuff.training.loop", "thingstuff.training.run_folder"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(["train", "--data", str(tmp_path), "--model", "mask-rcnn-tiny", "--out", str(tmp_path / "run")]) == 2
    assert 'pip install "thingstuff[train]"' in capsys.readouterr().err


def _in_two_processes(*command: str) -> subprocess.CompletedProcess[str]:
    """The end of `python COMMAND` in two processes that train together on a CPU."""
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*torchrun, *command], capture_output=True, text=True, env=environment, timeout=300)


def test_processes_know_each_other_before_training_begins(tmp_path: Path) -> None:
    script = tmp_path / "ask.py"
    script.write_text("from thingstuff.training import processes\nprint(f'{processes().num_processes} processes\\n', end='')")
    done = _in_two_processes(str(script))
    assert done.stdout.splitlines() == ["2 processes"] * 2, done.stderr


def test_two_processes_train_one_run(shapes: Path, tmp_path: Path) -> None:
    command = ["-m", "thingstuff", "train", "--data", str(shapes), "--model", "mask-rcnn-tiny", "--out", str(tmp_path / "run")]
    command += ["--steps", "2", "--batch-size", "1", "--optimizer", "muon", "--pictures", "1", "--json"]
    done = _in_two_processes(*command)
    assert done.returncode == 0, done.stderr
    assert "AP" in json.loads(done.stdout)["mask"]  # told once
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 2]
    thingstuff.load(tmp_path / "run" / "best.safetensors")


def _signalled(monkeypatch: pytest.MonkeyPatch, number: int, step: int, times: int = 1) -> None:
    """Have the process signalled in the midst of a step."""
    original = loop._finite

    def hears(terms: dict[str, torch.Tensor], targets: list, before: int) -> dict[str, float]:
        for _ in range(times if before == step - 1 else 0):
            signal.raise_signal(number)
        return original(terms, targets, before)

    monkeypatch.setattr(loop, "_finite", hears)


@pytest.mark.parametrize(("number", "code", "optimizer"), [(signal.SIGINT, 130, "adamw"), (signal.SIGTERM, 143, "muon")])
def test_a_signal_stops_a_run_after_its_step_and_resuming_ends_in_the_same_bits(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
    optimizer: str,
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    words = ["train", "--data", str(shapes), "--split", "train", "--model", "mask-rcnn-tiny", "--steps", "4", "--batch-size", "1"]
    words += ["--warmup", "0", "--validate-every", "2", "--pictures", "0"]  # and saved every 200 steps
    words += ["--optimizer", optimizer]
    assert main([*words, "--out", str(whole)]) == 0
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        _signalled(patch, number, step=2)
        assert main([*words, "--out", str(stopped)]) == code
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    (told,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("thingstuff: "))
    assert told.startswith(f"thingstuff: stopped after step 2 of 4, which {stopped} holds; the same command with --resume ")
    assert torch.load(stopped / "state.pt", weights_only=True)["state"]["step"] == 2
    assert thingstuff.load(stopped / "last.safetensors", device="cpu").categories.names == ("disk", "square")
    assert main([*words, "--out", str(stopped), "--resume"]) == 0
    expected, got = load_file(whole / "last.safetensors"), load_file(stopped / "last.safetensors")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert (whole / "log.csv").read_text() == (stopped / "log.csv").read_text()
    assert (whole / "validation.json").read_text() == (stopped / "validation.json").read_text()


@pytest.mark.parametrize("last", [False, True])
def test_a_signal_stops_a_validation_after_its_image_and_resuming_repeats_it_to_the_same_bits(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], last: bool
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    steps = 2 if last else 3
    words = ["train", "--data", str(shapes), "--validation-data", str(shapes / "instances_train.json"), "--split", "train"]
    words += ["--model", "mask-rcnn-tiny", "--steps", str(steps), "--batch-size", "1", "--warmup", "0", "--validate-every", "2"]
    assert main([*words, "--out", str(whole), "--pictures", "1"]) == 0
    judged: list[int] = []
    original = InstanceJudge.update

    def hears(self: InstanceJudge, record: Record, segments: Segments) -> None:
        judged.append(record.image_id)
        signal.raise_signal(signal.SIGINT)
        original(self, record, segments)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(InstanceJudge, "update", hears)
        assert main([*words, "--out", str(stopped), "--pictures", "1"]) == 130
    assert judged == [10]  # of two images
    told = capsys.readouterr().err
    assert f"thingstuff: stopped after step 2 of {steps}, which {stopped} holds; " in told
    assert told.endswith("goes on from there, with the validation of that step\n")
    assert not (stopped / "validation.json").exists()
    state = torch.load(stopped / "state.pt", weights_only=True)["state"]
    assert (state["step"], state["validation_due"]) == (2, True)
    assert main([*words, "--out", str(stopped), "--pictures", "1", "--resume"]) == 0
    for name in ("log.csv", "log.jsonl", "validation.json"):
        assert (whole / name).read_text() == (stopped / name).read_text(), name
    for name in ("best.safetensors", "last.safetensors"):
        expected, got = load_file(whole / name), load_file(stopped / name)
        assert all(torch.equal(expected[key], got[key]) for key in expected), name
        assert read_header(whole / name).notes == read_header(stopped / name).notes
    assert {path.name for path in (whole / "pictures").iterdir()} == {path.name for path in (stopped / "pictures").iterdir()}


def test_a_run_killed_after_a_repeated_validation_logs_it_once(shapes: Path, tmp_path: Path) -> None:
    log = run_folder.Log(tmp_path, 0)
    for row in ({"step": 1, "loss": 2.0}, {"step": 1, "mask_AP": 0.5}, {"step": 2, "loss": 1.0}, {"step": 2, "mask_AP": 0.6}):
        log.add(row)
    log.flush()
    assert run_folder.Log(tmp_path, 2, validation_due=True).rows == log.rows[:3]
    assert run_folder.Log(tmp_path, 2).rows == log.rows


def test_a_second_ctrl_c_stops_a_run_at_once(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _signalled(monkeypatch, signal.SIGINT, step=2, times=2)
    with pytest.raises(KeyboardInterrupt) as stop:
        train(_recipe(shapes, tmp_path / "run", steps=3, save_every=100))
    assert not isinstance(stop.value, Stopped)
    assert not (tmp_path / "run" / "state.pt").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_in_the_last_step_lets_the_run_end(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _signalled(monkeypatch, signal.SIGTERM, step=2)
    train(_recipe(shapes, tmp_path / "run", steps=2))
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["state"]["step"] == 2


def test_a_run_in_a_thread_trains_without_hearing_signals(shapes: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train, _recipe(shapes, tmp_path / "run")).result()
    assert (tmp_path / "run" / "last.safetensors").exists()


@contextmanager
def _running(shapes: Path, out: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run without end, in a session of its own, that has made its first steps."""
    command = [sys.executable, "-W", "ignore", "-m", "thingstuff", "train", "--data", str(shapes), "--split", "train"]
    command += ["--model", "mask-rcnn-tiny", "--out", str(out), "--steps", "100000", "--batch-size", "1"]
    command += ["--save-every", "100000", "--validate-every", "100000", *words]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stderr is not None
        told = b""
        while not re.search(rb"[1-9]\d*/100000", told):
            part = process.stderr.read1(4096)  # type: ignore[attr-defined]
            assert part, told  # else it has ended
            told += part
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def test_ctrl_c_in_a_terminal_reaches_workers_too_and_the_run_is_saved(shapes: Path, tmp_path: Path) -> None:
    with _running(shapes, tmp_path / "run", "--workers", "2") as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 130, told
    assert b"stopping after this step, or image of a validation, and saving; a second time stops at once" in told
    assert re.search(rb"thingstuff: stopped after step \d+ of 100000", told)
    assert b"Traceback" not in told
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["state"]["step"] > 0


def test_ctrl_c_ends_tee_before_the_run_which_is_saved_all_the_same(shapes: Path, tmp_path: Path) -> None:
    with _running(shapes, tmp_path / "run") as process:
        assert process.stderr is not None
        process.stderr.close()  # `thingstuff train ... 2>&1 | tee log`: nobody reads any more
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["state"]["step"] > 0


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_steps_of_a_narrow_network_are_taken_without_onednn(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, enabled = loop._finite, []

    def watched(*arguments: object) -> dict[str, float]:
        enabled.append(torch._C._get_mkldnn_enabled())
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_finite", watched)
    train(_recipe(shapes, tmp_path / "run", steps=2))
    assert enabled == [False, False]
    assert torch._C._get_mkldnn_enabled()


def test_a_batch_too_small_for_its_norms_is_an_error_with_words(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"a batch of 1 image of 32 x 32 pixels leaves a norm one value .* raise --batch-size"
    ):
        train(_recipe(shapes, tmp_path / "run", short_side=1, square=True))


def test_runs_of_one_process_may_differ_in_precision(shapes: Path, tmp_path: Path) -> None:
    for precision in ("no", "bf16", "no"):
        train(_recipe(shapes, tmp_path / precision / str(len(list(tmp_path.iterdir()))), precision=precision))
        assert loop.Accelerator().mixed_precision == precision


def test_another_precision_leaves_the_group_of_processes_alone(shapes: Path, tmp_path: Path) -> None:
    """What accelerate calls by an underscore does no more than the loop needs, in the version that is installed."""
    loop._accelerator(_recipe(shapes, tmp_path / "a"))
    group = loop.PartialState._shared_state
    assert group
    before = dict(group)
    assert loop._accelerator(_recipe(shapes, tmp_path / "b", precision="bf16")).mixed_precision == "bf16"
    assert dict(loop.PartialState._shared_state) == before
    loop._accelerator(_recipe(shapes, tmp_path / "c"))  # as the tests after this one find it


def test_a_run_that_stops_keeps_the_rows_before(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop._finite

    def stops(terms: dict[str, torch.Tensor], targets: list, step: int) -> dict[str, float]:
        return original(terms | ({"mask": terms["mask"] * float("nan")} if step == 2 else {}), targets, step)

    monkeypatch.setattr(loop, "_finite", stops)
    with pytest.raises(TrainingError, match="step 2: loss mask is nan"):
        train(_recipe(shapes, tmp_path / "run", steps=4, save_every=100))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_a_file_where_the_run_should_be_is_an_error_with_words(shapes: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(TrainingError, match="can't be the folder of a run"):
        train(_recipe(shapes, tmp_path / place))


def test_views_without_room_and_objects_without_pixels_are_refused(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(shapes), "--model", "mask-rcnn-tiny", "--steps", "1", "--out", str(tmp_path / "run")]
    assert main([*words, "--crop", "1"]) == 2
    assert "crop must be at least 32 pixels a side, got 1" in capsys.readouterr().err
    assert main([*words, "--min-pixels", "100000000"]) == 2
    assert "min_pixels is 100000000, but no object covers more than" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # where the next try would find a run


def test_a_run_does_not_lie_among_the_files_of_a_data_set(shapes: Path) -> None:
    with pytest.raises(TrainingError, match="my-data holds a data set, and a run would lie among its files"):
        train(_recipe(shapes, shapes))


def test_resuming_where_there_is_no_run_says_that_it_starts(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "run has no step of a run to go on from; the run starts at its beginning"
    train(_recipe(shapes, tmp_path / "run"), resume=True)
    assert told in capsys.readouterr().err
    train(_recipe(shapes, tmp_path / "run", steps=2), resume=True)
    assert told not in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b'{"model"', b"[]", b"\xff\xfe"])
def test_a_damaged_recipe_is_an_error_with_words(shapes: Path, tmp_path: Path, content: bytes) -> None:
    recipe = _recipe(shapes, tmp_path)
    (tmp_path / "recipe.json").write_bytes(content)
    with pytest.raises(TrainingError, match=r"recipe\.json is damaged"):
        _prepare(recipe, resume=True)


@pytest.mark.parametrize("content", [b"", b"\x80\x02garbage", b"hello", b"PK\x03\x04" + bytes(60), bytes(200)])
def test_a_damaged_state_is_an_error_with_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    model = nn.Linear(1, 1)
    with pytest.raises(TrainingError, match=r"state\.pt does not belong to this run or is broken"):
        run_folder.resume_state(tmp_path, loop.Accelerator(), model, model, torch.optim.AdamW(model.parameters()))


def test_published_weights_that_cannot_be_had_are_an_error_with_words(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(backbone_weights, "timm", SimpleNamespace(create_model=offline))
    with pytest.raises(CheckpointError, match=r"no weights for resnet18: no route to host; .* as a file"):
        train(_recipe(shapes, tmp_path / "run", backbone_weights="imagenet"))


def test_truncated_photos_are_all_named_before_training(shapes: Path, tmp_path: Path) -> None:
    broken = [shapes / "images" / name for name in ("shape-1.png", "shape-2.png")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:3000])  # their headers still tell the size
    with pytest.raises(AnnotationError, match=r"instances_train\.json: 2 problems") as error:
        train(_recipe(shapes, tmp_path / "run", data=str(shapes)))
    assert all(str(path) in str(error.value) for path in broken)
    assert not (tmp_path / "run").exists()


def test_a_file_has_no_splits(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="is one file and has no split 'val'"):
        train(_recipe(shapes, tmp_path / "run", split="val"))


def test_a_run_goes_on_with_moved_data_but_not_with_changed_data(shapes: Path, tmp_path: Path) -> None:
    first = _recipe(shapes, tmp_path / "run")
    _prepare(first)
    moved = shapes / "moved.json"
    moved.write_bytes(Path(first.data).read_bytes())
    _prepare(replace(first, data=str(moved)), resume=True)
    moved.write_text(moved.read_text() + "\n")
    with pytest.raises(TrainingError, match=r"moved\.json is not the annotation file .* data_digest"):
        _prepare(replace(first, data=str(moved)), resume=True)


def test_a_bundled_model_is_a_checkpoint_to_go_on_from_where_the_names_agree(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(shapes, tmp_path / "run")
    data = open_dataset(recipe.data)
    _build(recipe, data).save(tmp_path / "shapes.safetensors")
    monkeypatch.setattr("thingstuff.bundled.FOLDER", tmp_path)
    assert _build(replace(recipe, model="shapes"), data).categories == data.categories
    content = Path(recipe.data).read_text().replace("disk", "ball")
    Path(recipe.data).write_text(content)
    with pytest.raises(TrainingError, match=r"calls its categories \['disk', 'square'\]"):
        _build(replace(recipe, model="shapes"), open_dataset(recipe.data))


def test_norms_are_trained_where_no_weights_are_given(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model_class, config, preprocessing = loop.CATALOG["mask-rcnn-tiny"]
    frozen = replace(config, backbone=replace(config.backbone, frozen_norms=True))
    monkeypatch.setitem(loop.CATALOG, "frozen", (model_class, frozen, preprocessing))
    recipe = _recipe(shapes, tmp_path / "run", model="frozen")
    model = _build(recipe, open_dataset(recipe.data)).model
    assert isinstance(model, MaskRCNN)
    assert not model.config.backbone.frozen_norms
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "its norms are trained" in capsys.readouterr().err


def test_resuming_ends_in_the_same_bits_with_workers_and_accumulation(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(shapes, tmp_path / "killed", steps=4, accumulate=2, workers=1)
    original = loop._move_average

    def dies(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt
        original(average, model, decay, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_move_average", dies)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    train(recipe, resume=True)
    train(replace(recipe, out=str(tmp_path / "whole")))
    expected, got = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_run_goes_on_with_its_own_network_where_the_catalog_has_another(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(shapes, tmp_path / "run", steps=2, model="solo-tiny")
    model_class, config, preprocessing = loop.CATALOG["solo-tiny"]
    fewer_channels = replace(config, channels=config.channels // 2)  # weights of other shapes
    other_objects = replace(config, scale_ranges=tuple((low, 2 * high) for low, high in config.scale_ranges))
    train(recipe)
    train(replace(recipe, steps=4, out=str(tmp_path / "whole")))
    state, written = ((tmp_path / "run" / name).read_bytes() for name in ("state.pt", "recipe.json"))
    for changed in (fewer_channels, other_objects):
        (tmp_path / "run" / "state.pt").write_bytes(state)
        (tmp_path / "run" / "recipe.json").write_bytes(written)
        monkeypatch.setitem(loop.CATALOG, "solo-tiny", (model_class, changed, replace(preprocessing, short_side=64)))
        train(replace(recipe, steps=4), resume=True)
        got, whole = (thingstuff.load(tmp_path / name / "last.safetensors") for name in ("run", "whole"))
        assert (got.model.config, got.preprocessing) == (whole.model.config, whole.preprocessing)
        assert got.model.config.scale_ranges == config.scale_ranges


def test_a_run_that_stopped_before_its_first_save_starts_with_the_network_of_today(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(shapes, tmp_path / "run", model="solo-tiny")
    _prepare(recipe)
    model_class, config, preprocessing = loop.CATALOG["solo-tiny"]
    monkeypatch.setitem(loop.CATALOG, "solo-tiny", (model_class, replace(config, channels=config.channels // 2), preprocessing))
    train(recipe, resume=True)
    assert thingstuff.load(tmp_path / "run" / "last.safetensors").model.config.channels == config.channels // 2
    train(replace(recipe, steps=2), resume=True)  # which is now the run's own


def test_a_run_from_before_folders_held_the_network_goes_on_with_the_catalogs(shapes: Path, tmp_path: Path) -> None:
    recipe = _recipe(shapes, tmp_path / "run")
    train(recipe)
    content = json.loads((tmp_path / "run" / "recipe.json").read_text())
    kept = content.pop("network")
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(content))
    train(replace(recipe, steps=2), resume=True)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["network"] == kept


@pytest.mark.parametrize(
    "network",
    [[], {}, {"architecture": "yolact-3"}, {"architecture": "mask-rcnn", "config": {"colour": 1}, "preprocessing": {}}],
)
def test_a_network_that_this_version_does_not_know_is_an_error_with_words(shapes: Path, tmp_path: Path, network: object) -> None:
    recipe = _recipe(shapes, tmp_path / "run")
    train(recipe)
    content = json.loads((tmp_path / "run" / "recipe.json").read_text())
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(content | {"network": network}))
    with pytest.raises(TrainingError, match=r"recipe\.json holds a network that this version of thingstuff can't build"):
        train(replace(recipe, steps=2), resume=True)


def test_a_number_within_the_augmentation_that_is_younger_than_the_run_has_its_default(shapes: Path, tmp_path: Path) -> None:
    recipe = _recipe(shapes, tmp_path / "run")
    _prepare(recipe)
    content = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert content["augmentation"].pop("copy_paste") == 0.0
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(content))
    pasted = replace(recipe, augmentation=replace(recipe.augmentation, copy_paste=0.5))
    with pytest.raises(TrainingError, match=r"with another recipe: augmentation\.copy_paste was 0\.0, is 0\.5; repeat"):
        _prepare(pasted, resume=True)
    _prepare(recipe, resume=True)
