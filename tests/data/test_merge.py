"""Broader categories, on a map small enough to read."""

import json
from pathlib import Path

import numpy as np
import pytest

from thingstuff import cli
from thingstuff.data.folders import open_dataset, open_panoptic
from thingstuff.data.merge import COCO_BROAD, merged, read_merging
from thingstuff.data.panoptic_check import check_panoptic
from thingstuff.errors import AnnotationError
from thingstuff.structures.categories import COCO_PANOPTIC, Categories, Category
from thingstuff.structures.panoptic import PanopticMap

OLD = Categories(
    (
        *(Category(number, name) for number, name in ((2, "cat"), (4, "dog"), (6, "apple"))),
        *(Category(number, name, is_thing=False) for number, name in ((10, "grass"), (11, "tree"), (12, "fruit"))),
    )
)
CAT, DOG, APPLE, GRASS, TREE, FRUIT = range(6)
# cat, dog, a crowd of dogs, apple, grass, tree, fruit in two regions, void
IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [0, 6, 5, 8]])
CLASSES = np.array([CAT, DOG, DOG, APPLE, GRASS, TREE, FRUIT, FRUIT])
MAP = PanopticMap(IDS, np.arange(1, 9), CLASSES, np.arange(8) == 2, OLD)
MAPPING = {
    "animal": ["cat", "dog"],
    "plants": ["grass", "tree"],
    "food": {"isthing": 1, "from": ["apple", "fruit"]},
}


def write(folder: Path, mapping: object) -> Path:
    (folder / "mapping.json").write_text(json.dumps(mapping))
    return folder / "mapping.json"


def test_things_stay_apart_stuff_joins_and_stuff_among_things_is_a_crowd(tmp_path: Path):
    merging = read_merging(write(tmp_path, MAPPING), OLD)
    assert [(c.id, c.name, c.is_thing) for c in merging.categories] == [
        (1, "animal", True),
        (2, "plants", False),
        (3, "food", True),
    ]
    new = merged(MAP, merging)
    assert new.ids.tolist() == [[1, 2, 3, 4], [5, 5, 6, 6], [0, 5, 5, 6]]
    assert new.classes.tolist() == [0, 0, 0, 2, 1, 2]
    assert new.crowd.tolist() == [False, False, True, False, False, True]


@pytest.mark.parametrize("mapping", [{"void": ["*"]}, {"zebra": [], "void": ["*"]}])
def test_a_mapping_that_leaves_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], mapping: dict):
    assert cli.main(["data", "make-shapes", str(tmp_path / "set"), "--images", "2", "--size", "48x32"]) == 0
    words = ("data", "merge-categories", tmp_path / "set", write(tmp_path, mapping), "--out", tmp_path / "new")
    assert cli.main([str(word) for word in words]) == 2
    assert "become void, so nothing is left; name what is to be kept" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_list_is_no_mapping(tmp_path: Path):
    with pytest.raises(AnnotationError, match=r'holds a list, not a mapping such as \{"new name": \["old name"'):
        read_merging(write(tmp_path, ["cat"]), OLD)


def test_the_rest_and_void(tmp_path: Path):
    mapping = {"animal": ["cat"], "void": ["fruit"], "other": {"isthing": 0, "from": ["*"]}}
    new = merged(MAP, read_merging(write(tmp_path, mapping), OLD))
    assert new.ids.tolist() == [[1, 2, 2, 2], [2, 2, 0, 0], [0, 2, 2, 0]]
    assert new.classes.tolist() == [0, 1]
    assert not new.crowd.any()  # a crowd that becomes stuff is stuff like any other


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        (["animal"], "holds a list"),
        ({"animal": "cat"}, "'animal' has 'cat'; give a list of old names"),
        ({"animal": ["cow"], "other": ["*"]}, "'cow' is no category of the data; it has cat, dog, apple, grass, tree and 1 more"),
        ({"animal": ["cat", "cat"], "other": ["*"]}, "'cat' is named twice"),
        ({"a": ["*"], "b": ["*"]}, "'a' and 'b' both have"),
        ({"animal": ["cat", "dog"]}, "does not say where apple, grass, tree, fruit go"),
        ({"everything": ["*"]}, "'everything' takes things and stuff; say what it is"),
        ({"everything": {"isthing": 2, "from": ["*"]}}, '"isthing" must be 0 or 1, got 2'),
    ],
)
def test_a_mapping_that_can_not_be_is_refused(tmp_path: Path, mapping: object, words: str):
    with pytest.raises(AnnotationError, match=f"mapping.json: .*{words}"):
        read_merging(write(tmp_path, mapping), OLD)


def test_the_mapping_that_comes_with_the_package_knows_all_of_coco():
    merging = read_merging(COCO_BROAD, COCO_PANOPTIC)
    assert merging.categories.names[:4] == ("person", "animal", "vehicle", "furniture")
    assert len(merging.categories) == 13
    things = [category.name for category in merging.categories if category.is_thing]
    assert things == ["person", "animal", "vehicle", "furniture", "food", "object"]
    assert -1 not in merging.classes


def test_the_command_writes_a_data_set_that_every_reader_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["data", "make-shapes", str(tmp_path / "set"), "--images", "3", "--size", "64x48", "--splits", "train=2,val=1"]
    assert cli.main(words) == 0
    mapping = {"round": ["circle", "ring"], "edged": ["square", "triangle", "star"], "sky": ["sky"], "ground": {"from": ["*"]}}
    words = ["data", "merge-categories", str(tmp_path / "set"), str(write(tmp_path, mapping)), "--out", str(tmp_path / "broad")]
    assert cli.main(words) == 0
    assert "split val: 1 images" in capsys.readouterr().out
    for split, count in (("train", 2), ("val", 1)):
        assert check_panoptic(tmp_path / "broad" / f"panoptic_{split}.json") == []
        new, old = open_panoptic(tmp_path / "broad", split), open_panoptic(tmp_path / "set", split)
        assert len(new) == count
        for record, before in zip(new, old, strict=True):
            assert record.path is not None
            assert before.path is not None
            assert record.path.read_bytes() == before.path.read_bytes()
            assert sum(record.classes < 2) == sum(before.classes < 5)  # as many things as there were
        assert open_dataset(tmp_path / "broad", split).categories.names == ("round", "edged")
    assert cli.main([*words[:-1], str(tmp_path / "set")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_photos_elsewhere_are_named_and_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["data", "make-shapes", str(tmp_path / "set"), "--images", "2", "--size", "64x48", "--splits", "none"]) == 0
    (tmp_path / "set" / "images").rename(tmp_path / "photos")
    words = ["data", "merge-categories", str(tmp_path / "set" / "panoptic.json")]
    words += [str(write(tmp_path, {"all": {"isthing": 0, "from": ["*"]}})), "--out"]
    assert cli.main([*words, str(tmp_path / "a")]) == 0
    assert "no photos were found" in capsys.readouterr().out
    assert cli.main([*words, str(tmp_path / "b"), "--images", str(tmp_path / "photos")]) == 0
    assert len(list((tmp_path / "b" / "images").iterdir())) == 2
    (tmp_path / "photos" / "scene-000002.jpg").unlink()
    assert cli.main([*words, str(tmp_path / "c"), "--images", str(tmp_path / "photos")]) == 2
    assert "has no photo of image 2" in capsys.readouterr().err
