"""Joining data sets: categories by name, ids that differ, images that are not overwritten."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thingstuff.cli import main
from thingstuff.data.folders import open_dataset, open_panoptic
from thingstuff.data.join import join, shared_categories
from thingstuff.errors import AnnotationError
from thingstuff.structures.categories import Categories, Category


def write_set(folder: Path, names: dict[int, str], objects: list[tuple[int, int]], file_names: list[str], split: str) -> Path:
    """Images with ids 1, 2 ... of 6 x 4 pixels; objects as (image id, category id), each 2 x 2 pixels."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(file_names):
        Image.fromarray(np.full((4, 6, 3), 40 * number + len(names), np.uint8)).save(folder / "images" / name)
    content = {
        "images": [{"id": id_, "file_name": name, "height": 4, "width": 6} for id_, name in enumerate(file_names, start=1)],
        "categories": [{"id": id_, "name": name} for id_, name in names.items()],
        "annotations": [
            {
                **{"id": number, "image_id": image, "category_id": category, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0},
                "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]],
            }
            for number, (image, category) in enumerate(objects, start=1)
        ],
    }
    (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def two_sets(tmp_path: Path) -> tuple[Path, Path]:
    people = write_set(tmp_path / "people", {1: "person"}, [(1, 1)], ["a.png"], "train")
    street = write_set(tmp_path / "street", {3: "car", 7: "person"}, [(1, 3), (1, 7), (2, 3)], ["a.png", "b.png"], "train")
    return people, street


def test_categories_are_matched_by_name_and_images_without_them_stay_as_negatives(two_sets: tuple[Path, Path]):
    joined = join([open_dataset(folder, "train") for folder in two_sets], ["person"])
    assert joined.categories.names == ("person",)
    assert joined.categories.ids == (1,)
    assert [len(record.objects) for record in joined] == [1, 1, 0]
    assert [record.image_id for record in joined] == [1, 2, 3]  # 1, 1 and 2 before
    assert [found.annotation_id for record in joined for found in record.objects] == [1, 2]


def test_ids_that_differ_already_stay(two_sets: tuple[Path, Path]):
    only = join([open_dataset(two_sets[1], "train")], ["person"])
    assert [record.image_id for record in only] == [1, 2]
    assert only.categories.ids == (7,)


def test_a_category_that_one_data_set_does_not_annotate_is_refused(two_sets: tuple[Path, Path]):
    people, street = (open_dataset(folder, "train") for folder in two_sets)
    with pytest.raises(AnnotationError, match=r"street.*also has the category 'car'; all of them have person"):
        join([people, street])
    with pytest.raises(AnnotationError, match=r"people.*has no category 'car'"):
        join([people, street], ["person", "car"])
    with pytest.raises(AnnotationError, match="no data set"):
        join([])


def test_two_categories_of_one_name_are_refused(tmp_path: Path):
    doubled = write_set(tmp_path / "doubled", {1: "cell", 2: "cell"}, [], ["a.png"], "train")
    with pytest.raises(AnnotationError, match="two categories 'cell'"):
        join([open_dataset(doubled, "train")])


def test_the_command_writes_a_folder_that_opens_like_any_other(
    two_sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for folder, names in zip(two_sets, ({1: "person"}, {3: "car", 7: "person"}), strict=True):
        write_set(folder, names, [], ["c.png"], "val")
    out = tmp_path / "joined"
    assert main(["data", "join", *map(str, two_sets), "--categories", "person", "--out", str(out)]) == 0
    assert "3 images, 2 objects, 1 images without any" in capsys.readouterr().out
    train, val = (open_dataset(out, split) for split in ("train", "val"))
    assert [record.path.name for record in (*train, *val) if record.path] == ["a.png", "a-2.png", "b.png", "c.png", "c-2.png"]
    assert len({record.image_id for record in (*train, *val)}) == 5
    found = train[1].objects[0]
    assert (found.box, found.area, found.mask.area) == ((0.0, 0.0, 2.0, 2.0), 4.0, 4)
    for number, folder in enumerate(two_sets):  # each copy is of its own original
        copy = out / "images" / ("a.png", "a-2.png")[number]
        assert copy.read_bytes() == (folder / "images" / "a.png").read_bytes()


def test_the_command_does_not_write_into_a_folder_that_holds_something(
    two_sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    assert main(["data", "join", str(two_sets[0]), "--out", str(two_sets[1])]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_folder_without_splits_is_joined_whole(tmp_path: Path):
    folder = write_set(tmp_path / "plain", {1: "person"}, [(1, 1)], ["a.png"], "train")
    (folder / "instances_train.json").rename(folder / "instances.json")
    shutil.copytree(folder, tmp_path / "copy")
    assert main(["data", "join", str(folder), str(tmp_path / "copy"), "--out", str(tmp_path / "twice")]) == 0
    assert len(open_dataset(tmp_path / "twice")) == 2


def test_a_data_set_named_twice_is_refused(two_sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    people = two_sets[0]
    assert main(["data", "join", str(people), f"{people}/../people", "--out", str(tmp_path / "twice")]) == 2
    assert f"people/../people is the same folder as {people}; name each data set once" in capsys.readouterr().err
    assert not (tmp_path / "twice").exists()


def test_an_image_that_two_sets_share_is_told_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [write_set(tmp_path / name, {1: "person"}, [(1, 1)], ["a.png", "b.png"], "train") for name in ("one", "two")]
    Image.new("RGB", (6, 4), "white").save(folders[1] / "images" / "b.png")
    assert main(["data", "join", *map(str, folders), "--out", str(tmp_path / "joined")]) == 0
    one, two = (folder / "images" / "a.png" for folder in folders)
    assert capsys.readouterr().err == f"thingstuff: {two} is the same image as {one}; each is kept\n"
    assert len(open_dataset(tmp_path / "joined", "train")) == 4


def test_panoptic_data_sets_are_joined_with_their_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        made = ["data", "make-shapes", str(folder), "--images", "3", "--size", "64x48", "--seed", str(seed)]
        assert main([*made, "--splits", "train=2,val=1"]) == 0
    capsys.readouterr()
    assert main(["data", "join", *map(str, folders), "--out", str(tmp_path / "joined")]) == 0
    assert "split train: 4 images" in capsys.readouterr().out
    for split, count in (("train", 2), ("val", 1)):
        joined, parts = open_panoptic(tmp_path / "joined", split), [open_panoptic(folder, split) for folder in folders]
        originals = [record for part in parts for record in part]
        assert len(joined) == 2 * count
        for record, original in zip(joined, originals, strict=True):
            assert np.array_equal(record.panoptic_map().ids, original.panoptic_map().ids)
            assert record.panoptic_map().classes.tolist() == original.panoptic_map().classes.tolist()
            assert record.path is not None
            assert original.path is not None
            assert record.path.read_bytes() == original.path.read_bytes()
        assert len(open_dataset(tmp_path / "joined", split)) == 2 * count


def test_a_category_that_is_thing_here_and_stuff_there_is_refused():
    kinds = [Categories((Category(1, "plant", is_thing),)) for is_thing in (True, False)]
    with pytest.raises(AnnotationError, match=r"two\.json: 'plant' is a thing in one data set and stuff in another"):
        shared_categories([(Path("one.json"), kinds[0]), (Path("two.json"), kinds[1])])
