"""Opening data sets by folder, split or file."""

import json
from pathlib import Path

import pytest
from PIL import Image

from thingstuff.data.folders import open_dataset
from thingstuff.errors import AnnotationError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 6)).save(tmp_path / "images" / "a.png")
    for name, image_id in (("instances", 1), ("instances_train", 2), ("instances_val", 3)):
        image = {"id": image_id, "file_name": "a.png", "height": 6, "width": 4}
        content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_a_folder_opens_by_split_or_whole_and_a_file_by_itself(folder: Path):
    assert open_dataset(folder)[0].image_id == 1
    assert open_dataset(folder, "train")[0].image_id == 2
    assert open_dataset(str(folder), split="val")[0].image_id == 3
    assert open_dataset(folder / "instances_val.json")[0].image_id == 3
    assert open_dataset(folder)[0].path == folder / "images" / "a.png"


def test_a_missing_split_names_those_there_are(folder: Path):
    with pytest.raises(AnnotationError, match=r"has no instances_test\.json; its splits are train, val, or leave the split out"):
        open_dataset(folder, "test")
    (folder / "instances.json").unlink()
    with pytest.raises(AnnotationError, match=r"has no instances\.json; its splits are train, val"):
        open_dataset(folder)


def test_what_is_not_a_data_set_says_what_one_is(folder: Path, tmp_path: Path):
    with pytest.raises(AnnotationError, match=r"nowhere: does not exist; name a folder with images/ and instances\.json"):
        open_dataset(folder / "nowhere")
    with pytest.raises(AnnotationError, match=r"has no instances\.json; put the COCO annotations there"):
        open_dataset(folder / "images")
    with pytest.raises(AnnotationError, match="is one file and has no split 'val'"):
        open_dataset(folder / "instances.json", "val")


def test_a_folder_without_images_is_named_unless_images_are_not_required(folder: Path):
    (folder / "images" / "a.png").unlink()
    (folder / "images").rmdir()
    with pytest.raises(AnnotationError, match="has no folder images/"):
        open_dataset(folder)
    assert len(open_dataset(folder, required_images=False)) == 1
