"""LabelMe's files, drawn small and real: shapes, groups, labels, and what is refused."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thingstuff import cli
from thingstuff.data.coco import read_coco
from thingstuff.data.folders import has_instances, has_panoptic, open_dataset, splits_of
from thingstuff.errors import AnnotationError
from thingstuff.structures.masks import Mask


def shape(label: str, points: list, kind: str = "polygon", group: int | None = None, **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}, **more}


def write(folder: Path, name: str, drawn: list, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10)).save(folder / f"{name}.png")
    content = {"version": "5.0.0", "flags": {}, "shapes": drawn, "imagePath": f"{name}.png", "imageData": None}
    (folder / f"{name}.json").write_text(json.dumps({**content, "imageHeight": 10, "imageWidth": 20, **changes}))


SQUARE = [[2, 2], [6, 2], [6, 6], [2, 6]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    other = [[10, 2], [14, 2], [14, 6], [10, 6]]
    write(tmp_path / "set", "b", [shape("cat", SQUARE, group=1), shape("cat", other, group=1), shape("dog", other)])
    write(tmp_path / "set", "a", [shape("dog", [[1, 1], [5, 4]], "rectangle"), shape("__ignore__", SQUARE), shape("dog", SQUARE)])
    return tmp_path / "set"


def test_shapes_of_a_group_are_one_object_and_ignored_ones_none(folder: Path):
    data = open_dataset(folder)
    assert [record.path and record.path.name for record in data] == ["a.png", "b.png"]
    assert [record.image_id for record in data] == [1, 2]
    assert data.categories.names == ("cat", "dog")  # those that occur, by name
    assert [[data.categories[found.class_].name for found in record.objects] for record in data] == [
        ["dog", "dog"],
        ["cat", "dog"],
    ]
    cat = data[1].objects[0]
    left, right = [2, 2, 6, 2, 6, 6, 2, 6], [10, 2, 14, 2, 14, 6, 10, 6]
    assert cat.mask == Mask.from_polygons([left, right], (10, 20))
    assert [found.annotation_id for record in data for found in record.objects] == [1, 2, 3, 4]


def test_a_rectangle_a_circle_and_a_mask_are_areas(tmp_path: Path):
    encoded = BytesIO()
    Image.fromarray(np.array([[1, 0, 1], [1, 1, 1]], np.uint8) * 255).save(encoded, "PNG")
    mask = {"mask": base64.b64encode(encoded.getvalue()).decode()}
    shapes = [
        shape("a", [[2, 2], [6, 6]], "rectangle"),
        shape("b", [[8, 5], [11, 5]], "circle"),
        shape("c", [[4, 1], [6, 2]], "mask", **mask),
    ]
    write(tmp_path, "x", shapes)
    rectangle, circle, stored = (found.mask for found in open_dataset(tmp_path)[0].objects)
    assert rectangle == Mask.from_polygons([[2, 2, 6, 2, 6, 6, 2, 6]], (10, 20))
    assert circle.area == pytest.approx(np.pi * 9, rel=0.15)
    assert stored.dense()[1:3, 4:7].tolist() == [[True, False, True], [True, True, True]]
    assert stored.area == 5


def test_labels_give_ids_by_their_place(folder: Path):
    (folder.parent / "labels.txt").write_text("__ignore__\n_background_\nbird\ndog\ncat\n")
    data = open_dataset(folder)
    assert [(category.id, category.name) for category in data.categories] == [(1, "bird"), (2, "dog"), (3, "cat")]
    (folder / "labels.txt").write_text("dog\n")
    with pytest.raises(AnnotationError, match=r"image 2 \(b\.png\): the label 'cat' is not in labels\.txt"):
        open_dataset(folder)
    (folder / "labels.txt").write_text("dog\ncat\ndog\n")
    with pytest.raises(AnnotationError, match="lists 'dog' twice"):
        open_dataset(folder)


def test_folders_in_the_folder_are_its_splits(folder: Path):
    home = folder.parent
    write(home / "val", "c", [shape("cat", SQUARE)])
    assert splits_of(home) == ["set", "val"]
    assert (has_instances(home, "val"), has_panoptic(home, "val")) == (True, False)
    assert len(open_dataset(home, "val")) == 1
    with pytest.raises(AnnotationError, match="has no split 'test'; its splits are set, val"):
        open_dataset(home, "test")


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (shape("cat", [[1, 1], [2, 2]]), "a polygon of 2 points; it has 3 or more"),
        (shape("cat", [[1, 1], [2, 2]], "line"), "is a 'line', which has no area"),
        (shape("cat", [[1, 1], [2, 2], [3, "x"]]), "must be a list of"),
        (shape("cat", [[1, 1], [2, 2], [1e9, 3]]), "reaches further outside the image"),
        (shape("cat", SQUARE, group="left"), "'group_id' is 'left'"),  # type: ignore[arg-type]
        (shape("", SQUARE), "has no label"),
        (shape("cat", [[0, 0], [2, 1]], "mask", mask="%%%"), "its mask can't be read"),
        (shape("cat", [[0, 0], [2, 1]], "mask"), "its mask can't be read"),
        ("cat", "has no label"),
    ],
)
def test_a_shape_that_can_not_be_is_named_with_its_file(tmp_path: Path, spoiled: Any, words: str):
    write(tmp_path, "x", [shape("cat", SQUARE), spoiled])
    with pytest.raises(AnnotationError, match=rf"x\.json: shapes\[1\].*{words}"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"imagePath": "../x.png"}, "leads out of the image folder"),
        ({"imagePath": "gone.png"}, "does not exist"),
        ({"imageWidth": 21}, "declared 21 x 10 pixels .* has 20 x 10"),
        ({"imageHeight": None}, "must be a whole number"),
        ({"shapes": {}}, "must be a list"),
    ],
)
def test_a_file_that_does_not_fit_its_photo_is_named(tmp_path: Path, changes: dict, words: str):
    write(tmp_path, "x", [], **changes)
    with pytest.raises(AnnotationError, match=rf"x\.json: .*{words}"):
        open_dataset(tmp_path)


def test_the_sample_equals_what_labelmes_converter_makes_of_it(shared_data: Path):
    sample = shared_data / "labelme-sample"
    expected = read_coco(sample / "expected" / "coco.json", required_images=False)
    found = {record.path.name: record for record in open_dataset(sample / "annotated") if record.path}
    for record in expected:
        assert record.path is not None
        own = [(o.class_ + 1, o.mask) for o in found[record.path.name].objects]  # the converter counts background as 0
        assert own == [(o.class_, o.mask) for o in record.objects]


def test_a_run_trains_on_it(folder: Path, tmp_path: Path):
    words = ["train", "--data", str(folder), "--model", "mask-rcnn-tiny", "--out", str(tmp_path / "run"), "--steps", "1"]
    assert cli.main([*words, "--batch-size", "1"]) == 0
