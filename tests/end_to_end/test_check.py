"""`thingstuff data check`: everything wrong is named, file by file, and the exit code says whether there was anything."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thingstuff.cli import main
from thingstuff.data.coco import check_coco

SQUARE = [[0, 0, 2, 0, 2, 2, 0, 2]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound data set: a photo of 3 x 2 pixels, an object in it, and a map of two segments of 4 and 2 pixels."""
    for name in ("images", "panoptic_val"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "images" / "a.jpg")
    Image.fromarray(np.array([[[7, 0, 0], [7, 0, 0], [9, 0, 0]]] * 2, np.uint8)).save(tmp_path / "panoptic_val" / "a.png")
    shared = {
        "images": [{"id": 4, "file_name": "a.jpg", "height": 2, "width": 3}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 5, "name": "sky", "isthing": 0}],
    }
    objects = [{"id": 1, "image_id": 4, "category_id": 1, "segmentation": SQUARE, "bbox": [0, 0, 2, 2], "area": 4}]
    segments = [
        {"id": 7, "category_id": 1, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2]},
        {"id": 9, "category_id": 5, "iscrowd": 0, "area": 2, "bbox": [2, 0, 1, 2]},
    ]
    maps = [{"image_id": 4, "file_name": "a.png", "segments_info": segments}]
    (tmp_path / "instances_val.json").write_text(json.dumps({**shared, "annotations": objects}))
    (tmp_path / "panoptic_val.json").write_text(json.dumps({**shared, "annotations": maps}))
    return tmp_path


def change(file: Path, **changes: Any) -> None:
    """Change the first segment, or the first object, of a file."""
    content = json.loads(file.read_text())
    first = content["annotations"][0]
    (first["segments_info"][0] if "segments_info" in first else first).update(changes)
    file.write_text(json.dumps(content))


def check(*words: Any) -> int:
    return main(["data", "check", *map(str, words)])


def test_a_sound_folder_has_a_line_for_each_file(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    assert check(folder) == 0
    assert capsys.readouterr().out == "instances_val.json: nothing is wrong\npanoptic_val.json: nothing is wrong\n"


def test_a_set_without_images_or_annotations_is_not_sound_and_evaluate_refuses_it_too(folder: Path, capsys):
    for name in ("instances_val.json", "panoptic_val.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "images": [], "annotations": []}))
    assert check(folder) == 1
    told = capsys.readouterr().out
    assert "instances_val.json: has no image, so there is nothing to learn from or to compare with" in told
    assert "panoptic_val.json: has no annotation of any image, so there is nothing to learn from or to compare with" in told
    (folder / "none.json").write_text("[]")
    words = ["--predictions", str(folder / "none.json"), "--data", str(folder / "instances_val.json"), "--json"]
    assert main(["evaluate", *words]) == 2
    assert "instances_val.json: has no image, so there is nothing to compare with" in capsys.readouterr().err


def test_images_without_any_object_leave_nothing_to_find(folder: Path, capsys):
    content = json.loads((folder / "instances_val.json").read_text())
    (folder / "instances_val.json").write_text(json.dumps({**content, "annotations": []}))
    assert check(folder / "instances_val.json") == 1
    told = capsys.readouterr().out
    assert "instances_val.json: has no object that is not a crowd, so there is nothing to learn or to find; annotate some" in told


def test_categories_of_one_name_are_named_in_files_of_either_kind(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    for name in ("instances_val.json", "panoptic_val.json"):
        (folder / name).write_text((folder / name).read_text().replace('"sky"', '"cat"'))
    assert check(folder) == 1
    line = "categories 1 and 5 are both called 'cat'; give each a name of its own, or make them one"
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"instances_val.json: {line}"
    assert told[2] == f"panoptic_val.json: {line}"


def test_a_photo_listed_twice_is_named(folder: Path, capsys):
    file = folder / "instances_val.json"
    content = json.loads(file.read_text())
    content["images"].append({**content["images"][0], "id": 9})
    file.write_text(json.dumps(content))
    assert check(file) == 1
    assert "images 4 and 9 are both of a.jpg; list it once, with the objects of both" in capsys.readouterr().out


def test_each_inconsistency_is_named_with_image_and_segment(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    change(folder / "panoptic_val.json", area=3, bbox=[0, 0, 3, 2])
    assert check(folder / "panoptic_val.json") == 1
    assert capsys.readouterr().out.splitlines() == [
        "panoptic_val.json: image 4: segment 7 states an area of 3 pixels, 4 are painted",
        "panoptic_val.json: image 4: segment 7 states the bbox [0, 0, 3, 2], what is painted has [0, 0, 2, 2]",
        "panoptic_val.json: 2 problems",
    ]


def test_objects_are_checked_by_what_the_reader_refuses_and_warns_of(folder: Path, capsys):
    change(folder / "instances_val.json", category_id=8)
    assert check(folder, "--split", "val") == 1
    assert "annotation 1 (image 4): category_id 8 is not among the file's categories" in capsys.readouterr().out
    change(folder / "instances_val.json", category_id=1, bbox=[0, 0, 0, 2])
    assert check(folder) == 1
    assert "annotation 1: covers no pixel, or has a bbox without area" in capsys.readouterr().out


def test_every_problem_of_a_large_file_is_named(folder: Path):
    file = folder / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"] = [{"id": id_, "image_id": 99} for id_ in range(50)]
    file.write_text(json.dumps(content))
    assert len(check_coco(file)) == 50  # read_coco would name 20


def test_photos_are_checked_unless_they_are_left_alone(folder: Path, capsys):
    (folder / "images" / "a.jpg").unlink()
    assert check(folder) == 1
    assert "does not exist" in capsys.readouterr().out
    assert check(folder, "--no-images") == 0


@pytest.mark.parametrize("file", ["instances_val.json", "panoptic_val.json"])
def test_a_truncated_photo_is_named(folder: Path, capsys, file: str):
    photo = folder / "images" / "a.jpg"
    content = photo.read_bytes()
    photo.write_bytes(content[: content.index(b"\xff\xda") + 14])  # all of its header, none of its pixels
    assert check(folder / file) == 1
    assert "a.jpg: damaged or truncated" in capsys.readouterr().out
    assert check(folder / file, "--no-images") == 0


def test_of_panoptic_maps_too_photos_are_there_and_of_their_size(folder: Path, capsys):
    Image.new("RGB", (4, 2)).save(folder / "images" / "a.jpg")
    assert check(folder / "panoptic_val.json") == 1
    assert "image 4: declared 3 x 2 pixels (width x height), but a.jpg has 4 x 2" in capsys.readouterr().out
    (folder / "images" / "a.jpg").unlink()
    assert check(folder / "panoptic_val.json") == 1
    assert "the photo of image 4 isn't there" in capsys.readouterr().out
    assert check(folder / "panoptic_val.json", "--no-images") == 0


def test_json_lists_the_files(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    (folder / "instances_val.json").write_text("{")
    assert check(folder, "--json") == 1
    files = json.loads(capsys.readouterr().out)["files"]
    assert [file["file"] for file in files] == ["instances_val.json", "panoptic_val.json"]
    assert "not valid JSON at line 1" in files[0]["problems"][0]
    assert files[1]["problems"] == []


def test_other_layouts_are_checked(tmp_path: Path, capsys):
    for kind, name in (("leftImg8bit", "ulm_1_leftImg8bit.png"), ("gtFine", "ulm_1_gtFine_instanceIds.png")):
        (tmp_path / kind / "val" / "ulm").mkdir(parents=True)
        Image.fromarray(np.full((2, 3), 7, np.uint16)).save(tmp_path / kind / "val" / "ulm" / name)
    assert check(tmp_path) == 0
    (tmp_path / "gtFine" / "val" / "ulm" / "ulm_1_gtFine_instanceIds.png").write_bytes(b"")
    assert check(tmp_path) == 1
    assert "is no PNG" in capsys.readouterr().out


def labelme(folder: Path, name: str, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (3, 2)).save(folder / f"{name}.png")
    shape = {"label": "cat", "points": [[0, 0], [2, 0], [2, 2], [0, 2]], "group_id": None, "shape_type": "polygon"}
    content = {"imagePath": f"{name}.png", "imageHeight": 2, "imageWidth": 3, "shapes": [shape], **changes}
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_every_problem_of_labelmes_files_is_named_and_counted(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for number in range(30):
        labelme(tmp_path / "a", f"{number:02}", shapes=7)
    assert check("a") == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [f"a: {number:02}.json: 'shapes' is 7, must be a list" for number in range(30)]
    assert last == "a: 30 problems"


def test_photos_of_labelmes_files_are_whole_beside_what_else_is_wrong(tmp_path: Path, capsys):
    labelme(tmp_path, "a", shapes=7)
    labelme(tmp_path, "b")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:45])  # its header still says 3 x 2
    assert check(tmp_path) == 1
    said = capsys.readouterr().out
    assert "a.json: 'shapes' is 7" in said
    assert "b.png: damaged or truncated" in said
    assert check(tmp_path, "--no-images", "--json") == 1
    assert len(json.loads(capsys.readouterr().out)["files"][0]["problems"]) == 1


def test_each_split_of_labelmes_files_is_checked(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    labelme(tmp_path / "train", "a")
    labelme(tmp_path / "val", "b", shapes=7)
    assert check(tmp_path) == 1
    assert capsys.readouterr().out.splitlines() == [
        "train: nothing is wrong",
        "val: b.json: 'shapes' is 7, must be a list",
        "val: 1 problem",
    ]
    assert check(tmp_path, "--split", "train") == 0


def test_every_problem_of_maps_is_named_and_sound_ones_are_checked_further(tmp_path: Path, capsys):
    folders = [tmp_path / kind / "val" / "ulm" for kind in ("leftImg8bit", "gtFine")]
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(25):
        (folders[1] / f"{number}_gtFine_instanceIds.png").write_bytes(b"")
    Image.fromarray(np.full((2, 3), 7, np.uint16)).save(folders[1] / "last_gtFine_instanceIds.png")
    assert check(tmp_path, "--json") == 1
    problems = json.loads(capsys.readouterr().out)["files"][0]["problems"]
    assert sum("is no PNG" in problem for problem in problems) == 25
    assert problems[25:] == ["the photo of image last isn't there; put it in images/, or name the photos' folder"]
    assert check(tmp_path, "--no-images", "--json") == 1
    assert len(json.loads(capsys.readouterr().out)["files"][0]["problems"]) == 25


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: does not exist"),
        ([".", "--split", "test"], "has no instances_test.json; its splits are val"),
        (["panoptic_val.json", "--split", "val"], "is one file and has no split 'val'"),
        ([".", "--images", "nowhere"], "nowhere: does not exist; give --images the folder of the photos"),
    ],
)
def test_what_is_no_data_set_is_wrong_use(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch, words, said):
    monkeypatch.chdir(folder)
    assert check(*words) == 2
    assert said in capsys.readouterr().err
