"""Segments to COCO results and documents, and back."""

import json
from pathlib import Path

import numpy as np
import pytest

from thingstuff.errors import AnnotationError, ConfigError
from thingstuff.formats import coco
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segments

CATEGORIES = Categories((Category(7, "cell"), Category(3, "vessel", is_thing=False)))
SIZE = (6, 8)  # height, width


def two_segments() -> Segments:
    masks = (
        Mask.from_crop(np.ones((2, 3), dtype=bool), (1, 2), SIZE),
        Mask.from_crop(np.ones((1, 8), dtype=bool), (5, 0), SIZE),
    )
    return Segments(
        size=SIZE,
        categories=CATEGORIES,
        classes=np.array([1, 0], dtype=np.int64),
        scores=np.array([0.75, 0.3], dtype=np.float32),
        boxes=np.array([[2, 1, 5, 3], [0, 5, 8, 6]], dtype=np.float32),
        rles=masks,
    )


def assert_same(a: Segments, b: Segments) -> None:
    assert a.size == b.size
    assert [segment.category for segment in a] == [segment.category for segment in b]
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.boxes, b.boxes)
    assert a.rles == b.rles


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_results_hold_a_row_for_each_segment():
    first, second = coco.results(two_segments(), 12, "a.png")
    assert first["image_id"] == 12
    assert first["file_name"] == "a.png"
    assert first["category_id"] == 3
    assert first["bbox"] == [2, 1, 3, 2]  # x, y, width, height
    assert first["segmentation"]["size"] == [6, 8]
    assert second["category_id"] == 7
    assert "file_name" not in coco.results(two_segments(), 12)[0]


def test_results_come_back_as_they_were(tmp_path: Path):
    rows = coco.results(two_segments(), 12, "a.png") + coco.results(two_segments()[:1], 5, "b.png")
    coco.write_json(tmp_path / "predictions.json", rows)
    first, second = coco.read_results(tmp_path / "predictions.json")
    assert (first.image_id, first.file_name, second.image_id, second.file_name) == (12, "a.png", 5, "b.png")
    assert_same(first.segments(SIZE, CATEGORIES), two_segments())
    assert_same(second.segments(SIZE, CATEGORIES), two_segments()[:1])


def test_pycocotools_reads_the_results():
    from pycocotools import mask

    first, second = coco.results(two_segments(), 12)
    assert mask.area([first["segmentation"], second["segmentation"]]).tolist() == [6, 8]


def test_a_document_names_image_and_categories():
    document = coco.document(two_segments(), "plates/a.png")
    assert document["image"] == {"file_name": "plates/a.png", "width": 8, "height": 6}
    first = document["segments"][0]
    assert {key: first[key] for key in ("category", "category_id", "is_thing", "score", "bbox", "area")} == {
        "category": "vessel",
        "category_id": 3,
        "is_thing": False,
        "score": 0.75,
        "bbox": [2, 1, 3, 2],
        "area": 6,
    }


def test_a_document_comes_back_as_it_was(tmp_path: Path):
    coco.write_json(tmp_path / "a.json", coco.document(two_segments(), "a.png"))
    name, segments = coco.read_document(tmp_path / "a.json")
    assert name == "a.png"
    assert_same(segments, two_segments())


def test_nothing_found_is_written_and_read(tmp_path: Path):
    nothing = Segments.empty(SIZE, CATEGORIES)
    assert coco.results(nothing, 1) == []
    coco.write_json(tmp_path / "a.json", coco.document(nothing, "a.png"))
    _, segments = coco.read_document(tmp_path / "a.json")
    assert len(segments) == 0
    assert segments.size == SIZE


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["000000000139.jpg", "000000000285.jpg"], [139, 285]),  # COCO's own names
        (["a.png", "7.png"], [1, 2]),
        (["7.png", "deep/07.jpg"], [1, 2]),  # one number twice
        (["12345678901234567890.png"], [1]),  # a digest, more than JSON readers hold exactly
        ([], []),
    ],
)
def test_image_ids_are_the_numbers_in_the_names_or_count_up(names, expected):
    assert coco.image_ids(names) == expected


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"gone.a\.json: can't be written"):
        coco.write_json(tmp_path / "gone" / "a.json", [])
    with pytest.raises(ValueError, match="not JSON compliant"):
        coco.write_json(tmp_path / "a.json", [float("nan")])
    assert list(tmp_path.iterdir()) == []


ROW = {"image_id": 1, "category_id": 7, "score": 0.5, "segmentation": {"size": [6, 8], "counts": [0, 48]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty (0 bytes); a file of no predictions holds []"),
        ("[{]", "not JSON at line 1"),
        ('{"images": [], "annotations": []}', "holds annotations, not predictions"),
        ("3", "a list of results, one for each segment, not int"),
        ([3], "row 0: is int, not an object"),
        ([ROW, {**ROW, "score": None}], "row 1: score must be a number, got None"),
        ([{**ROW, "score": True}], "score must be a number, got True"),
        ('[{"image_id": 1, "category_id": 7, "score": NaN, "segmentation": {}}]', "score must be a number, got nan"),
        ([{**ROW, "image_id": 1.5}], "image_id must be a whole number or a text, got 1.5"),
        ([{**ROW, "category_id": "cell"}], "category_id must be a whole number, got 'cell'"),
        ([{**ROW, "file_name": 3}], "file_name must be a text, got 3"),
        ([{key: value for key, value in ROW.items() if key != "image_id"}], "row 0: has no 'image_id'"),
        (
            [{**ROW, "segmentation": None, "bbox": [0, 0, 1, 1]} | {"file_name": "a"}, {**ROW, "file_name": "b"}],
            "several file names",
        ),
        ([{key: value for key, value in ROW.items() if key != "segmentation"}], "boxes alone are not enough"),
    ],
)
def test_a_broken_results_file_says_what_is_wrong_and_where(tmp_path: Path, content, message):
    with pytest.raises(AnnotationError, match=r"predictions\.json") as caught:
        coco.read_results(written(tmp_path / "predictions.json", content))
    assert message in str(caught.value)


def test_a_results_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(AnnotationError, match=r"none\.json: can't be read"):
        coco.read_results(tmp_path / "none.json")


def test_a_mask_of_another_size_names_its_image(tmp_path: Path):
    (image,) = coco.read_results(written(tmp_path / "p.json", [{**ROW, "file_name": "a.png"}]))
    with pytest.raises(AnnotationError, match=r"predictions of image a\.png: .*size"):
        image.segments((6, 9), CATEGORIES)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"image": {"height": 6, "width": 8, "file_name": "a"}, "segments": [3]}', "nonsense"]
)
def test_a_broken_document_is_named(tmp_path: Path, content):
    with pytest.raises(AnnotationError, match=r"a\.json: not"):
        coco.read_document(written(tmp_path / "a.json", content))
