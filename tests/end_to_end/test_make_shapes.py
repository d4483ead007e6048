"""`thingstuff data make-shapes` as a user types it, and the readers on what it writes."""

from pathlib import Path

import pytest

from thingstuff import cli
from thingstuff.cli.make_shapes import split_counts
from thingstuff.data.folders import open_dataset, open_panoptic
from thingstuff.data.panoptic_check import check_panoptic
from thingstuff.data.shapes import CATEGORIES
from thingstuff.errors import ConfigError
from thingstuff.structures.images import read_image


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def test_a_drawn_data_set_is_read_by_every_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ("data", "make-shapes", tmp_path / "set", "--images", 5, "--size", "64x48", "--splits", "train=4,val=1")
    assert run(*words) == 0
    assert "split train: 4 images" in capsys.readouterr().out
    folder = tmp_path / "set"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "images",
        *(f"{kind}_{split}.json" for kind in ("instances", "panoptic") for split in ("train", "val")),
        *("panoptic_train", "panoptic_val"),
    }
    for split, count in (("train", 4), ("val", 1)):
        instances, panoptic = open_dataset(folder, split), open_panoptic(folder, split)
        assert (len(instances), len(panoptic)) == (count, count)
        assert check_panoptic(folder / f"panoptic_{split}.json") == []
        assert panoptic.categories == CATEGORIES
        assert instances.categories.names == ("circle", "square", "triangle", "star", "ring")
        for record, painted in zip(instances, panoptic, strict=True):
            things = [category_id for category_id in painted.classes if CATEGORIES[int(category_id)].is_thing]
            assert (record.image_id, len(record.objects)) == (painted.image_id, len(things))
            assert painted.path == record.path
            assert read_image(record.path).shape == (48, 64, 3)


def test_its_own_truth_scores_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("data", "make-shapes", tmp_path / "set", "--images", 2, "--size", "64x48", "--splits", "none") == 0
    words = ("evaluate", "--predictions", tmp_path / "set" / "panoptic.json", "--data", tmp_path / "set")
    capsys.readouterr()
    assert run(*words) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["All", "100.00", "100.00", "100.00"]


def test_the_same_seed_draws_the_same_pictures(tmp_path: Path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run("data", "make-shapes", tmp_path / name, "--images", 2, "--size", "48x32", "--seed", seed) == 0
    one, same, other = ((tmp_path / name / "images" / "scene-000002.jpg").read_bytes() for name in "abc")
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("splits", "images", "counts"),
    [
        (None, None, {"train": 80, "val": 20}),
        (None, 12, {"train": 10, "val": 2}),  # 9.6 and 2.4
        ({"train": 30, "val": 10}, None, {"train": 30, "val": 10}),
        ({"train": 0.5, "val": 0.5}, None, {"train": 50, "val": 50}),
        ({"train": 3, "val": 1}, 8, {"train": 6, "val": 2}),
        ({"train": 98, "val": 1, "test": 1}, 10, {"train": 8, "val": 1, "test": 1}),
        ({}, 7, {None: 7}),
    ],
)
def test_splits_are_numbers_or_shares(splits, images, counts):
    assert split_counts(splits, images) == counts


def test_what_can_not_be_made_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError, match="1 images can't be divided into 2 splits"):
        split_counts({"train": 9, "val": 1}, 1)
    assert run("data", "make-shapes", tmp_path / "set", "--size", "64") == 2
    assert "is not a width and a height such as 320x240" in capsys.readouterr().err
    assert run("data", "make-shapes", tmp_path / "set", "--splits", "train=0") == 2
    assert "is not a list of different names and numbers" in capsys.readouterr().err
    assert run("data", "make-shapes", tmp_path / "set", "--size", "20x20") == 2
    assert "needs 32 pixels a side" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    assert run("data", "make-shapes", tmp_path / "full") == 2
    assert "full is not empty; give a new folder to DIR" in capsys.readouterr().err
    assert run("data", "make-shapes", tmp_path / "full" / "notes.txt") == 2
    assert "notes.txt is a file; give a new folder to DIR" in capsys.readouterr().err
    assert run("data", "make-shapes", tmp_path / "set", "--size", "100000x100000") == 2
    assert "has at most 4096 pixels a side, got 100000 x 100000" in capsys.readouterr().err
    assert run("data", "make-shapes", tmp_path / "set", "--seed", "-1") == 2
    assert "argument --seed: -1 is below 0" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), ConfigError("stop")])
def test_what_stops_the_drawing_leaves_nothing_half_made(tmp_path: Path, monkeypatch, error: BaseException):
    def stops(*_: object) -> None:
        raise error

    (tmp_path / "there").mkdir()
    monkeypatch.setattr("thingstuff.cli.data_files.write_panoptic_split", stops)
    for name in ("there", "new"):
        assert run("data", "make-shapes", tmp_path / name, "--images", 2) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert not any((tmp_path / "there").iterdir())


def test_data_sets_that_can_not_be_joined_are_named_with_what_they_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("data", "make-shapes", tmp_path / "split", "--images", 2, "--size", "48x32") == 0
    assert run("data", "make-shapes", tmp_path / "whole", "--images", 2, "--size", "48x32", "--splits", "none") == 0
    (tmp_path / "photos").mkdir()
    for others in (["photos"], ["whole"], ["photos", "whole"]):
        folders = [tmp_path / name for name in ("split", *others)]
        assert run("data", "join", *folders, "--out", tmp_path / "joined") == 2
        told = capsys.readouterr().err
        assert f"{tmp_path / 'split'} has the splits train, val" in told
        assert (f"{tmp_path / 'photos'} has no data set" in told) == ("photos" in others)
        assert (f"{tmp_path / 'whole'} has one set without splits" in told) == ("whole" in others)
        assert not (tmp_path / "joined").exists()
