"""Panoptic files written here: what is read back is what was written, and the validator finds nothing."""

import json

import numpy as np
import pytest
from PIL import Image

from thingstuff.data.panoptic import read_panoptic
from thingstuff.data.panoptic_check import check_panoptic
from thingstuff.errors import AnnotationError, ConfigError, MaskError
from thingstuff.formats.coco_panoptic import colours_of, segments_info, write_panoptic
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.panoptic import PanopticMap

CATEGORIES = Categories((Category(1, "cat", supercategory="animal"), Category(5, "sky", is_thing=False)))


def panoptic(ids, listed: dict[int, int], crowd=()) -> PanopticMap:
    return PanopticMap(
        np.array(ids),
        np.array(list(listed), np.int64),
        np.array(list(listed.values()), np.int64),
        np.array([segment in crowd for segment in listed], np.bool_),
        CATEGORIES,
    )


def test_maps_come_back_as_they_were(tmp_path):
    one = panoptic([[7, 7, 0], [7, 300, 70000]], {70000: 1, 7: 0, 300: 0}, crowd=(300,))
    write_panoptic(tmp_path / "out" / "set.json", [(1, "a.jpg", one), ("b", "deep/b.jpg", panoptic([[0]], {}))], CATEGORIES)
    data = read_panoptic(tmp_path / "out" / "set.json")
    assert check_panoptic(tmp_path / "out" / "set.json") == []
    assert data.categories == CATEGORIES
    assert [record.image_id for record in data] == [1, "b"]
    back = data[0].panoptic_map()
    assert back.ids.tolist() == one.ids.tolist()
    for name in ("segment_ids", "classes", "crowd"):
        assert getattr(back, name).tolist() == getattr(one, name).tolist()
    assert data[1].png.name == "b.png"


def test_segments_are_painted_in_their_order(tmp_path):
    segments = panoptic([[7, 7, 0], [7, 3, 3]], {7: 0, 3: 1}).to_segments()
    write_panoptic(tmp_path / "set.json", [(1, "a.jpg", segments)], CATEGORIES)
    assert read_panoptic(tmp_path / "set.json")[0].panoptic_map().ids.tolist() == [[1, 1, 0], [1, 2, 2]]


def test_colours_are_the_three_bytes_of_an_id():
    assert colours_of(np.array([[1 + 2 * 256 + 3 * 65536, 0, 2**24 - 1]])).tolist() == [[[1, 2, 3], [0, 0, 0], [255, 255, 255]]]


def test_what_is_listed_is_what_is_painted():
    rows = segments_info(panoptic([[0, 7, 7], [0, 7, 2]], {2: 1, 7: 0, 9: 0}, crowd=(7,)))
    assert rows == [
        {"id": 2, "category_id": 5, "iscrowd": 0, "area": 1, "bbox": [2, 1, 1, 1]},
        {"id": 7, "category_id": 1, "iscrowd": 1, "area": 3, "bbox": [1, 0, 2, 2]},
    ]


def test_an_id_larger_than_a_colour_is_refused(tmp_path):
    with pytest.raises(MaskError, match=r"image 1 \(a\.jpg\): ids 16777216 to 16777216 do not fit"):
        write_panoptic(tmp_path / "set.json", [(1, "a.jpg", panoptic([[2**24]], {2**24: 0}))], CATEGORIES)


def test_an_unlisted_id_is_refused(tmp_path):
    with pytest.raises(AnnotationError, match=r"image 1 \(a\.jpg\): segment 8 is painted but not listed"):
        write_panoptic(tmp_path / "set.json", [(1, "a.jpg", panoptic([[8]], {}))], CATEGORIES)


def test_a_category_that_the_file_does_not_list_is_refused(tmp_path):
    with pytest.raises(AnnotationError, match="category id 5"):
        write_panoptic(tmp_path / "set.json", [(1, "a.jpg", panoptic([[8]], {8: 1}))], Categories(CATEGORIES.items[:1]))


@pytest.mark.parametrize("second", [(1, "b.jpg"), (2, "other/A.png")])
def test_images_of_one_id_or_one_name_are_refused(tmp_path, second):
    nothing = panoptic([[0]], {})
    with pytest.raises(AnnotationError, match="is an earlier image's"):
        write_panoptic(tmp_path / "set.json", [(1, "a.jpg", nothing), (*second, nothing)], CATEGORIES)


@pytest.mark.parametrize("name", ["../../a.jpg", "C:\\photos\\a.jpg", "/etc/a.jpg"])
def test_a_name_from_elsewhere_stays_in_the_folder(tmp_path, name):
    write_panoptic(tmp_path / "set.json", [(1, name, panoptic([[0]], {}))], CATEGORIES)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "set", "set.json"]


@pytest.mark.parametrize("name", ["", "..", "a\0.jpg"])
def test_a_name_that_names_nothing_is_refused(tmp_path, name):
    with pytest.raises(AnnotationError, match="names no file"):
        write_panoptic(tmp_path / "set.json", [(1, name, panoptic([[0]], {}))], CATEGORIES)


def test_a_file_without_ending_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="needs an ending"):
        write_panoptic(tmp_path / "set", [], CATEGORIES)


def test_pngs_are_rgb(tmp_path):
    write_panoptic(tmp_path / "set.json", [(1, "a.jpg", panoptic([[8]], {8: 1}))], CATEGORIES)
    with Image.open(tmp_path / "set" / "a.png") as image:
        assert image.mode == "RGB"
    assert json.loads((tmp_path / "set.json").read_text())["annotations"][0]["file_name"] == "a.png"
