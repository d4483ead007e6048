"""The command as a user types it. Most run in this process, since every new one takes seconds to import torch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import thingstuff
from thingstuff import cli
from thingstuff.cli import predict
from thingstuff.errors import ConfigError
from thingstuff.formats import coco


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


# The command itself ---------------------------------------------------------------------------------------------------


def test_help_answers_without_importing_torch():
    code = (
        "import sys; from thingstuff.cli import main; codes = [main([*words, '--help']) for words in "
        "([], ['predict'], ['evaluate'], ['train'], ['models'])]; "
        'sys.exit(f\'{codes} {sorted(sys.modules.keys() & {"torch", "numpy", "PIL"})}\')'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[0, 0, 0, 0, 0] []"
    assert "thingstuff predict" in done.stdout


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "thingstuff", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "thingstuff")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["predict", "a.png"], "the following arguments are required: --out"),
        (["predict", "a.png", "--out", "x", "--score", "2"], "argument --score: 2 does not lie from 0 to 1"),
        (["predict", "a.png", "--out", "x", "--batch-size", "0"], "argument --batch-size: 0 is below 1"),
        (["predict", "a.png", "--out", "x", "--max-pixels", "many"], "argument --max-pixels: 'many' is not a whole number"),
        (["predict", "a.png", "--out", "x", "--bit-depth", "7"], "--bit-depth: '7' is not a whole number from 8 to 16"),
        (["predict", "a.png", "--out", "x", "--batch-size", "1025"], "--batch-size: 1025 is above 1024"),
        (["predict", "a.png", "--out", ""], 'argument --out: is empty; name a file or folder ("." is the current folder)'),
        (["train", "--data", "d", "--model", "m", "--out", ""], "argument --out: is empty"),
        (["train", "--data", "d", "--model", "m", "--out", "r", "--batch-size", "100000"], "100000 is above 1024"),
        (["train", "--data", "d", "--model", "m", "--out", "r", "--short-side", "100000"], "--short-side: 100000 is above 8192"),
        (["train", "--data", "d", "--model", "m", "--out", "r", "--long-side", "8193"], "--long-side: 8193 is above 8192"),
        (["train", "--data", "d", "--model", "m", "--out", "r", "--warmup", "-1"], "argument --warmup: -1 is below 0"),
        (["train", "--data", "d", "--model", "m", "--out", "r", "--loss-weights", "mask"], "'mask' has no weight; give it one"),
        (["predict", "", "--out", "out"], "argument IMAGE: is empty; name a file or folder"),
        (["predict", "a.png", "--out", "out", "--model", ""], "argument --model: is empty"),
        (["evaluate", "--data", "d"], "one of the arguments --model --predictions --compare is required"),
        (["evaluate", "--data", "d", "--model", "m", "--predictions", "p"], "not allowed with argument --model"),
        (["train", "--data", "d", "--model", "m"], "the following arguments are required: --out"),
        (["train", "--data", "d", "--model", "m", "--out", "r", "--learning-rate", "0"], "0 is not a number above 0"),
    ],
)
def test_wrong_words_exit_with_2_and_say_why(capsys, words, message):
    assert run(*words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), 1, "out of memory"),
    ],
)
def test_what_stops_the_work_ends_in_words(capsys, monkeypatch, error, code, message):
    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(predict, "find_inputs", stop)
    assert run("predict", "a.png", "--out", "x") == code
    assert message in capsys.readouterr().err


# Predict --------------------------------------------------------------------------------------------------------------


def test_predict_does_a_folder_and_names_what_it_cannot_read(photos: Path, tiny_model: Path, tmp_path: Path, capsys):
    out = tmp_path / "deep" / "results"
    assert run("predict", photos, "--model", tiny_model, "--out", out, "--score", 0.2, "--batch-size", 2) == 1
    told = capsys.readouterr()
    assert told.out.startswith("3 images: ")
    assert "2 failed" in told.out
    assert f"{photos / 'empty.png'}: is empty (0 bytes)" in told.err
    assert f"{photos / 'cut.png'}: " in told.err
    assert "Traceback" not in told.err
    assert {path.name for path in out.iterdir()} == {
        *("a.png", "a.json", "b.png", "b.json", "dot.png", "dot.json"),
        "predictions.json",
    }
    with Image.open(out / "b.png") as picture:
        assert picture.size == (8 * 96, 8 * 72)  # enlarged by the most that is allowed
    name, segments = coco.read_document(out / "b.json")
    assert (name, segments.size) == ("b.png", (72, 96))
    assert len(segments) > 0
    results = {image.file_name: image for image in coco.read_results(out / "predictions.json")}
    np.testing.assert_array_equal(results["b.png"].segments((72, 96), segments.categories).scores, segments.scores)


def test_predict_prints_one_json_object(photos: Path, tiny_model: Path, tmp_path: Path, capsys):
    words = (
        "predict",
        photos / "b.png",
        photos / "a.JPG",
        photos / "none.png",
        "--model",
        tiny_model,
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert run(*words, "--score", 0.2, "--max-detections", 3) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["images"] == 2
    assert summary["segments"] == sum(summary["counts"].values()) <= 6
    assert summary["failed"] == [
        {"image": str(photos / "none.png"), "error": f"{photos / 'none.png'}: no such file or folder"},
    ]
    assert summary["images_per_second"] > 0


def test_predict_refuses_an_image_over_the_limit_and_does_the_rest(photos: Path, tiny_model: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert run("predict", photos / "b.png", photos / "dot.png", "--model", tiny_model, "--out", out, "--max-pixels", "1_000") == 1
    assert "6,912 pixels is over the limit of 1,000" in capsys.readouterr().err
    assert (out / "dot.png").exists()


def test_predict_with_nothing_found_writes_empty_results(photos: Path, tiny_model: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert run("predict", photos / "b.png", "--model", tiny_model, "--out", out, "--score", 1) == 0
    assert "nothing found" in capsys.readouterr().out
    assert json.loads((out / "predictions.json").read_text()) == []
    assert json.loads((out / "b.json").read_text())["segments"] == []


def test_predict_keeps_apart_images_of_one_stem(photos: Path, tiny_model: Path, tmp_path: Path):
    other = tmp_path / "more"
    other.mkdir()
    for name in ("b.png", "B.jpg"):
        Image.new("RGB", (20, 10)).save(other / name)
    out = tmp_path / "out"
    assert run("predict", photos / "b.png", other, "--model", tiny_model, "--out", out) == 0
    names = {path.name: coco.read_document(path)[0] for path in out.glob("[bB]*.json")}
    assert names == {"b.json": "photos/b.png", "B-2.json": "more/B.jpg", "b-3.json": "more/b.png"}
    assert {path.stem for path in out.glob("*.png")} == {"b", "B-2", "b-3"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda photos: [photos / "none.png"], "no image found: .*none.png: no such file or folder"),
        (lambda photos: [photos.parent], "no images in this folder"),
        (lambda photos: [photos / "*.tif"], "no image matches this pattern"),
    ],
)
def test_predict_without_any_image_is_wrong_use(photos: Path, tmp_path: Path, capsys, make, message):
    assert run("predict", *make(photos), "--model", "unused", "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=message):
        predict.find_inputs([str(word) for word in make(photos)])
    assert "no image found" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["b.json", "predictions.json"])
@pytest.mark.parametrize("content", [b'{"version": "5.0", "shapes": []}', b"not JSON", b'[{"image_id": 1}]', b"\xff", b"7"])
def test_predict_does_not_write_over_json_of_others(photos: Path, capsys, name: str, content: bytes):
    out = photos.parent / "out"
    out.mkdir()
    (out / name).write_bytes(content)
    assert run("predict", photos, "--model", "unused", "--out", out) == 2
    assert f"{name} is there and was not written by predict" in capsys.readouterr().err
    assert (out / name).read_bytes() == content


def test_predict_does_not_write_over_its_images(photos: Path, capsys):
    before = (photos / "b.png").read_bytes()
    assert run("predict", photos, "--model", "unused", "--out", photos) == 2
    assert "photos is the folder of a.JPG; the pictures would lie among the images" in capsys.readouterr().err
    assert run("predict", photos / "*.JPG", "--model", "unused", "--out", photos) == 2
    assert "the pictures would lie among the images" in capsys.readouterr().err
    assert run("predict", photos / "b.png", "--model", "unused", "--out", photos) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert (photos / "b.png").read_bytes() == before


def test_predict_does_not_write_over_a_picture_that_is_called_like_its_own(photos: Path, capsys):
    (photos / "a.png").write_bytes((photos / "b.png").read_bytes())
    before = (photos / "a.png").read_bytes()
    assert run("predict", photos / "a.JPG", "--model", "unused", "--out", photos) == 2
    assert "a.png is there and was not written by predict; give another folder to --out" in capsys.readouterr().err
    assert (photos / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("pattern", "out", "found"),
    [
        ("**/*.png", "out", True),
        ("**", "out/deep", True),
        ("**/b*", "new/out", True),
        ("*/*.png", "../out", False),  # beside the folder, not in it
        ("*.png", "out", False),  # which looks into no folder below
        ("**/*.JPG", "out", False),  # pictures are PNGs
        ("**/b.png", ".hidden", False),
    ],
)
def test_predict_sees_that_a_pattern_would_find_its_pictures_before_there_are_any(
    photos: Path, capsys, monkeypatch: pytest.MonkeyPatch, pattern: str, out: str, found: bool
):
    monkeypatch.chdir(photos)
    (photos / "c").mkdir()
    Image.new("RGB", (4, 4)).save(photos / "c" / "c.png")
    for word in (pattern, str(photos / pattern)):
        assert run("predict", word, "--model", "unused", "--out", out) == 2
        said = capsys.readouterr().err
        assert (f"{word} would find the pictures in {out} and take them for images the next time" in said) == found
        assert ("unused" in said) == (not found)  # went on, to find no such model
    assert not (photos / out).exists()


def test_an_image_named_by_itself_may_have_its_results_beside_it(photos: Path, tiny_model: Path, monkeypatch):
    monkeypatch.chdir(photos)
    assert run("predict", "./a.JPG", "--model", tiny_model, "--out", ".") == 0
    assert (photos / "a.png").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [("no-such-model", "no-such-model is neither a bundled model"), ("photos/notes.txt", "notes.txt"), ("photos", "photos")],
)
def test_an_unusable_model_is_named_without_a_traceback(photos: Path, tmp_path: Path, monkeypatch, capsys, model, message):
    monkeypatch.chdir(tmp_path)
    assert run("predict", "photos/b.png", "--model", model, "--out", "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("thingstuff: ")
    assert message in error


def test_a_link_that_leads_nowhere_is_named_and_the_others_go_on(photos: Path, tiny_model: Path, tmp_path: Path, capsys):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b.png").symlink_to(photos / "b.png")
    (tmp_path / "links" / "gone.png").symlink_to("elsewhere.png")
    (tmp_path / "links" / "circle.png").symlink_to("circle.png")
    assert run("predict", tmp_path / "links", "--model", tiny_model, "--out", tmp_path / "out") == 1
    told = capsys.readouterr()
    assert "gone.png: is a link to elsewhere.png, which isn't there" in told.err
    assert "circle.png: can't be opened" in told.err
    assert "1 image: " in told.out
    assert (tmp_path / "out" / "b.png").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("data", "check", "PIPE"),
        ("evaluate", "--predictions", "PIPE", "--data", "PIPE", "--json"),
        ("evaluate", "--compare", "PIPE", "PIPE"),
        ("train", "--data", "PIPE", "--model", "mask-rcnn-tiny", "--out", "run"),
        ("data", "check", "/dev/zero"),
    ],
)
def test_a_pipe_or_device_in_place_of_annotations_is_refused_without_waiting_for_it(tmp_path: Path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("PIPE")
    assert run(*words) in (1, 2)
    told = capsys.readouterr()
    assert re.search(r"(PIPE|zero): can't be read: is a (named pipe|device); name a file", told.out + told.err)


def test_a_pipe_among_the_inputs_is_named_and_the_others_go_on(photos: Path, tiny_model: Path, tmp_path: Path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    words = (photos / "b.png", tmp_path / "pipe.png", "/dev/zero")
    assert run("predict", *words, "--model", tiny_model, "--out", tmp_path / "out") == 1
    told = capsys.readouterr()
    assert "pipe.png: is a named pipe, not an image file" in told.err
    assert "/dev/zero: is a device, not an image file" in told.err
    assert "1 image: " in told.out
    assert (tmp_path / "out" / "b.png").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("CUDA error: device is busy\nFor debugging pass CUDA_LAUNCH_BLOCKING=1.", "CUDA error: device is busy"),
        ("Found no NVIDIA driver on your system. Please check that you have one", "Found no NVIDIA driver on your system"),
        ("", "RuntimeError"),
    ],
)
def test_of_the_reason_that_a_device_is_not_available_the_first_sentence_is_told(words: str, reason: str):
    from thingstuff.segmenter import _reason

    assert _reason(RuntimeError(words)) == reason


@pytest.mark.parametrize("device", ["abacus", "", "cuda:99", "xla", "hpu", "meta"])  # of "meta" nothing comes back
def test_an_unusable_device_is_named_in_one_line_beside_those_that_there_are(
    photos: Path, tiny_model: Path, tmp_path: Path, capsys, device: str
):
    from thingstuff.segmenter import _devices

    assert _devices()[0] == "cpu"
    assert run("predict", photos / "b.png", "--model", tiny_model, "--out", tmp_path / "out", "--device", device) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"thingstuff: device '{device}' is not available (")
    assert told.endswith(f"); devices here: {', '.join(_devices())}\n")
    assert len(told.splitlines()) == 1


def test_an_output_folder_that_is_a_file_is_named(photos: Path, tiny_model: Path, capsys):
    assert run("predict", photos / "b.png", "--model", tiny_model, "--out", photos / "notes.txt") == 2
    assert "notes.txt: can't be made a folder" in capsys.readouterr().err


@pytest.mark.filterwarnings("default::thingstuff.errors.ImageWarning")
def test_predict_tells_of_images_of_fewer_bits_and_of_several_pages(photos: Path, tiny_model: Path, tmp_path: Path, capsys):
    scans = tmp_path / "scans"
    scans.mkdir()
    with Image.open(photos / "b.png") as photo:
        grey = np.asarray(photo.convert("L"))
        photo.save(scans / "stack.tif", save_all=True, append_images=[photo, photo])
        photo.convert("L").save(scans / "8-bit.png")
    twelve = grey.astype(np.uint16) * 16  # up to 220 * 16 = 3520
    for number in range(12):
        Image.fromarray(twelve + np.uint16(number)).save(scans / f"deep-{number:02}.png")
    words = ("predict", scans, "--model", tiny_model, "--score", 0.2, "--out")
    assert run(*words, tmp_path / "out") == 0
    told = capsys.readouterr().err
    assert "deep-00.png: no 16-bit sample exceeds" in told
    assert "so it is read as 12-bit data" in told
    assert "--bit-depth" in told
    assert told.count("bit data") == 10  # the others have a line together
    assert told.count("more images have a warning of this kind, each with numbers of its own; they are not named") == 1
    assert told.count("stack.tif: has more than one page (or frame); the first is read") == 1
    first, plain = (json.loads((tmp_path / "out" / f"{stem}.json").read_text())["segments"] for stem in ("deep-00", "8-bit"))
    assert first == plain
    assert run(*words, tmp_path / "told", "--bit-depth", 12) == 0
    assert "bit data" not in capsys.readouterr().err
    assert json.loads((tmp_path / "told" / "deep-00.json").read_text())["segments"] == plain
    assert run(*words, tmp_path / "dim", "--bit-depth", 10) == 1
    assert "more than the 1023 of 10 bits" in capsys.readouterr().err


@pytest.mark.filterwarnings("default::thingstuff.errors.ImageWarning")
def test_training_and_evaluation_read_images_as_prediction_does(shapes: Path, tiny_model: Path, tmp_path: Path, capsys):
    for path in (shapes / "images").iterdir():
        with Image.open(path) as photo:
            Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 16).save(path)
    words = ("--data", shapes, "--model", tiny_model, "--split", "val", "--json")
    assert run("evaluate", *words) == 0
    assert "12-bit data" in capsys.readouterr().err
    assert run("evaluate", *words, "--bit-depth", 12) == 0
    assert "12-bit data" not in capsys.readouterr().err
    words = ("train", "--data", shapes, "--model", "mask-rcnn-tiny", "--steps", 1, "--batch-size", 2, "--pictures", 0, "--out")
    assert run(*words, tmp_path / "guessed") == 0
    assert capsys.readouterr().err.count("12-bit data") == 1  # told once of all images
    assert thingstuff.load(tmp_path / "guessed" / "last.safetensors").preprocessing.bit_depth == 12
    seen = ("predict", shapes / "images", "--model", tmp_path / "guessed" / "last.safetensors", "--out", tmp_path / "seen")
    assert run(*seen) == 0
    assert "bit data" not in capsys.readouterr().err  # nothing is guessed any more
    assert run(*words, tmp_path / "shallow", "--bit-depth", 10) == 2
    assert "more than the 1023 of 10 bits" in capsys.readouterr().err
    assert not (tmp_path / "shallow").exists()
    assert run(*words, tmp_path / "given", "--bit-depth", 12) == 0
    assert "12-bit data" not in capsys.readouterr().err
    assert json.loads((tmp_path / "given" / "recipe.json").read_text())["bit_depth"] == 12
    assert run(*words, tmp_path / "full", "--bit-depth", 16) == 0
    assert thingstuff.load(tmp_path / "full" / "last.safetensors").preprocessing.bit_depth == 16


# Inputs and their names -----------------------------------------------------------------------------------------------


def test_folders_and_patterns_give_images_and_files_give_themselves(photos: Path):
    def found(*words: str) -> list[str]:
        return [each.path.name for each in predict.find_inputs(words)[0]]

    assert found(str(photos)) == ["a.JPG", "b.png", "cut.png", "dot.png", "empty.png"]
    assert found(str(photos / "*o*")) == ["dot.png"]
    assert found(str(photos.parent / "**" / "d*")) == ["dot.png"]
    assert found(str(photos / "notes.txt"), str(photos / ".hidden.png")) == ["notes.txt", ".hidden.png"]
    assert found(str(photos / "b.png"), str(photos / "b*"), str(photos / "." / "b.png")) == ["b.png"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path: Path):
    path = tmp_path / "scan [3].png"
    path.touch()
    (each,), missing = predict.find_inputs([str(path)])
    assert (each.path, missing) == (path, [])


@pytest.mark.parametrize(
    ("paths", "stems"),
    [
        (["x/a.png", "x/b.png"], ["a", "b"]),
        (["x/a.png", "x/a.jpg", "y/a.png"], ["a", "a-2", "a-3"]),
        (["x/a.png", "x/A.png"], ["a", "A-2"]),
        (["x/a.png", "x/a-2.png", "y/a.png"], ["a", "a-2", "a-3"]),
        (["x/a.png", "y/a.png", "x/a-2.png"], ["a", "a-3", "a-2"]),
        (["x/predictions.png"], ["predictions-2"]),  # predictions.json holds the results of all
        (["x/a.b.png"], ["a.b"]),
    ],
)
def test_no_two_images_share_a_stem(paths, stems):
    assert [each.stem for each in predict.named([Path(path) for path in paths])] == stems


def test_file_names_are_relative_to_the_folder_that_holds_all():
    assert [each.file_name for each in predict.named([Path("x/a.png"), Path("x/y/b.png")])] == ["a.png", "y/b.png"]
    assert [each.image_id for each in predict.named([Path("x/0012.png"), Path("x/3.png")])] == [12, 3]


# Evaluate -------------------------------------------------------------------------------------------------------------


def test_evaluate_agrees_on_a_model_and_on_the_file_of_its_predictions(shapes: Path, tiny_model: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert run("predict", shapes / "images", "--model", tiny_model, "--out", out, "--score", 0.05) == 0
    capsys.readouterr()
    words = ("evaluate", "--data", shapes, "--split", "val", "--json", "--score", 0.05)
    assert run(*words, "--model", tiny_model, "--batch-size", 2, "--out", tmp_path / "result.json") == 0
    told = capsys.readouterr()
    of_model = json.loads(told.out)
    assert json.loads((tmp_path / "result.json").read_text()) == of_model
    assert run(*words, "--predictions", out / "predictions.json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == of_model
    assert "2 predicted images are not in" in told.err  # those of the other split
    assert "bird" not in told.out  # a class the data does not have
    assert set(of_model) == {"box", "mask", "boundary", "per_class"}
    assert set(of_model["per_class"]) == {"disk", "square"}


def perfect(shapes: Path, split: str = "val") -> list[dict]:
    content = json.loads((shapes / f"instances_{split}.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    rows = []
    for annotation in content["annotations"]:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            from pycocotools import mask

            (code,) = mask.frPyObjects(segmentation, 72, 96)
            segmentation = {"size": code["size"], "counts": code["counts"].decode()}
        row = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        rows.append({**row, "score": 0.9, "segmentation": segmentation, "file_name": names[annotation["image_id"]]})
    return rows


def test_perfect_predictions_score_1(shapes: Path, tmp_path: Path, capsys):
    (tmp_path / "p.json").write_text(json.dumps(perfect(shapes)))
    assert run("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes / "instances_val.json", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mask"]["AP"] == result["box"]["AP"] == pytest.approx(1)
    assert result["per_class"]["disk"]["mask"] == pytest.approx(1)


def test_predictions_without_file_names_go_by_image_id(shapes: Path, tmp_path: Path, capsys):
    rows = [{key: value for key, value in row.items() if key != "file_name"} for row in perfect(shapes)]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    assert run("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes, "--split", "val") == 0
    assert "100.00" in capsys.readouterr().out


def test_file_names_count_more_than_ids(shapes: Path, tmp_path: Path, capsys):
    ids = {30: 40, 40: 30}  # as a program numbers images that it does not know
    rows = [{**row, "image_id": ids[row["image_id"]]} for row in perfect(shapes)]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    assert run("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes, "--split", "val", "--json") == 0
    assert json.loads(capsys.readouterr().out)["mask"]["AP"] == pytest.approx(1)


def test_evaluate_needs_no_images_for_predictions_from_a_file(shapes: Path, tmp_path: Path):
    (tmp_path / "p.json").write_text(json.dumps(perfect(shapes)))
    for image in (shapes / "images").iterdir():
        image.unlink()
    assert run("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes, "--split", "val") == 0


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({"image_id": 77, "file_name": "other.png"}, [], "none of its 1 images is in"),
        ({"category_id": 99}, [], "none of its category ids is in"),
        ({}, ["--device", "cpu"], "--device goes with --model"),
        ({}, ["--split", "test"], "instances_test.json"),
    ],
)
def test_predictions_that_do_not_belong_to_the_data_are_refused(shapes: Path, tmp_path: Path, capsys, change, words, message):
    (tmp_path / "p.json").write_text(json.dumps([{**row, **change} for row in perfect(shapes)]))
    assert run("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes, "--split", "val", *words) == 2
    assert message in capsys.readouterr().err


def test_two_sets_of_predictions_for_one_image_are_refused(shapes: Path, tmp_path: Path, capsys):
    rows = perfect(shapes)
    (tmp_path / "p.json").write_text(json.dumps([*rows, {**rows[0], "image_id": 5}]))
    assert run("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes, "--split", "val") == 2
    assert "two sets of predictions for shape-3.png" in capsys.readouterr().err


def test_a_model_for_other_categories_is_refused(tiny_model: Path, shapes: Path, capsys):
    content = json.loads((shapes / "instances_val.json").read_text())
    content["categories"] = [{"id": 4, "name": "car"}, {"id": 7, "name": "tree"}]
    (shapes / "instances_val.json").write_text(json.dumps(content))
    assert run("evaluate", "--model", tiny_model, "--data", shapes, "--split", "val") == 2
    assert "the model finds disk, square, bird, the data has car, tree" in capsys.readouterr().err


def test_evaluate_goes_on_after_a_broken_image(tiny_model: Path, shapes: Path, capsys):
    path = shapes / "images" / "shape-4.png"
    path.write_bytes(path.read_bytes()[:3000])  # its header still tells the size
    assert run("evaluate", "--model", tiny_model, "--data", shapes, "--split", "val", "--json") == 1
    told = capsys.readouterr()
    assert "shape-4.png" in told.err
    assert "mask" in json.loads(told.out)


# Train and models -----------------------------------------------------------------------------------------------------


def test_train_then_predict_with_what_was_learnt(shapes: Path, photos: Path, tmp_path: Path, capsys):
    words = ("train", "--data", shapes, "--model", "mask-rcnn-tiny", "--out", tmp_path / "run", "--steps", 2, "--batch-size", 2)
    assert run(*words, "--warmup", 1, "--validate-every", 2, "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"box", "mask"}
    weights = tmp_path / "run" / "last.safetensors"
    assert run("predict", photos / "b.png", "--model", weights, "--out", tmp_path / "out") == 0
    assert run(*words, "--warmup", 1, "--validate-every", 2) == 2  # the folder holds a run
    assert "--resume" in capsys.readouterr().err


def test_every_option_of_train_is_a_field_of_the_recipe():
    from dataclasses import fields

    from thingstuff.cli.train import OPTIONS
    from thingstuff.training import Recipe

    assert {option.name for option in OPTIONS} <= {field.name for field in fields(Recipe)}


def test_limits_are_the_same_for_words_and_calls():
    from thingstuff import segmenter
    from thingstuff.cli import arguments
    from thingstuff.structures import preprocessing

    assert arguments.LARGEST_BATCH == segmenter.LARGEST_BATCH
    assert arguments.LARGEST_SIDE == preprocessing.LARGEST_SIDE


def test_the_help_of_train_shows_the_defaults_of_the_recipe():
    from thingstuff.cli.train import AUGMENTATION, OPTIONS
    from thingstuff.training import Recipe

    recipe = Recipe(data="", model="", out="")
    drawn = {"scale_low": recipe.augmentation.scale[0], "scale_high": recipe.augmentation.scale[1]}
    for option in OPTIONS:
        assert option.default == (getattr(recipe, option.name) if option.name != "loss_weights" else None), option.name
    for option in AUGMENTATION:
        assert option.default == drawn.get(option.name, getattr(recipe.augmentation, option.name, None)), option.name


WITHOUT_TORCH = """
import sys
from thingstuff.cli import main

for words in (
    ["--help"],
    ["train", "--help"],
    ["models"],
    ["data", "make-shapes", "one", "--images", "2"],
    ["data", "check", "one"],
    ["data", "join", "one", "--out", "other"],
    ["evaluate", "--compare", "one", "other"],
    ["predict", "none.png", "--out", "results"],
):
    main(words)
    assert "torch" not in sys.modules, words
"""


def test_commands_that_need_no_network_start_without_torch(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "other" / "images").is_dir()


def test_models_tells_what_comes_with_the_package(tiny_model: Path, tmp_path: Path, monkeypatch, capsys):
    from thingstuff import bundled

    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    assert run("models") == 0
    assert "no model comes with this installation" in capsys.readouterr().out

    os.link(tiny_model, tmp_path / "tiny.safetensors")
    (tmp_path / "tiny.md").write_text("# Tiny\n\nFinds\nnonsense.\n\nMore words.\n")
    assert run("models") == 0
    told = capsys.readouterr().out
    assert told.startswith("tiny: Finds nonsense.\n")
    assert "finds disk, square, bird" in told
    assert run("models", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tiny"]["categories"] == ["disk", "square", "bird"]
    assert facts["tiny"]["parameters"] > 1000
