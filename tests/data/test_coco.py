"""Reading COCO instance files: what is kept, and how everything wrong is named at once."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from thingstuff.data.coco import read_coco
from thingstuff.data.coco_json import PROBLEMS_SHOWN
from thingstuff.errors import AnnotationError

# a square of 2 x 2 pixels at x 1..3, y 1..3 of an image 4 wide and 6 high, in three spellings; RLE runs down the columns:
# column 0: 6 off; column 1: 1 off, 2 on, 3 off; column 2: 1 off, 2 on, 3 off; column 3: 6 off
SQUARE_POLYGON = [[1, 1, 3, 1, 3, 3, 1, 3]]
SQUARE_RUNS = {"size": [6, 4], "counts": [7, 2, 4, 2, 9]}
SQUARE_STRING = {"size": [6, 4], "counts": "72405"}


def square(**changes: Any) -> dict[str, Any]:
    annotation = {"id": 1, "image_id": 5, "category_id": 7, "segmentation": SQUARE_POLYGON, "bbox": [1, 1, 2, 2], "area": 4}
    return {**annotation, "iscrowd": 0, **changes}


def content(*annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [
            {"id": 5, "file_name": "a.png", "height": 6, "width": 4},
            {"id": 9, "file_name": "b.png", "height": 3, "width": 3},
        ],
        "categories": [{"id": 7, "name": "cell"}, {"id": 40, "name": "dust"}],
        "annotations": list(annotations),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 6)).save(tmp_path / "images" / "a.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "images" / "b.png")
    return tmp_path


def read(folder: Path, data: Any, **options: Any):
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return read_coco(path, **options)


def refusal(folder: Path, data: Any, **options: Any) -> str:
    with pytest.raises(AnnotationError) as caught:
        read(folder, data, **options)
    return str(caught.value)


def test_polygons_and_both_forms_of_rle_give_the_same_mask(folder: Path):
    data = content(
        square(id=1), square(id=2, segmentation=SQUARE_RUNS, iscrowd=1), square(id=3, segmentation=SQUARE_STRING, category_id=40)
    )
    record = read(folder, data).records[0]
    expected = np.zeros((6, 4), bool)
    expected[1:3, 1:3] = True
    for found in record.objects:
        assert (found.mask.dense() == expected).all()
        assert found.box == (1, 1, 3, 3)
    assert [found.is_crowd for found in record.objects] == [False, True, False]
    assert [found.class_ for found in record.objects] == [0, 0, 1]
    assert [found.annotation_id for found in record.objects] == [1, 2, 3]


def test_images_without_objects_are_kept_in_the_order_of_the_file(folder: Path):
    dataset = read(folder, content(square()))
    assert [record.image_id for record in dataset] == [5, 9]
    assert [len(record.objects) for record in dataset] == [1, 0]
    assert [record.size for record in dataset] == [(6, 4), (3, 3)]
    assert dataset[1].path == folder / "images" / "b.png"
    assert dataset.categories.names == ("cell", "dust")
    assert dataset.record_of(9) is dataset.records[1]


def test_a_file_without_objects_is_an_ordinary_data_set(folder: Path):
    assert [len(record.objects) for record in read(folder, content())] == [0, 0]


def test_box_and_area_come_from_the_mask_where_the_file_has_none(folder: Path):
    annotation = square()
    del annotation["bbox"], annotation["area"], annotation["iscrowd"]
    (found,) = read(folder, content(annotation)).records[0].objects
    assert (found.box, found.area, found.is_crowd) == ((1, 1, 3, 3), 4, False)


def test_annotated_box_and_area_stand_as_the_file_gives_them(folder: Path):
    (found,) = read(folder, content(square(bbox=[0.5, 1.25, 2, 2], area=3.5))).records[0].objects
    assert (found.box, found.area) == ((0.5, 1.25, 2.5, 3.25), 3.5)


def test_whole_numbers_may_be_written_as_floats_or_strings(folder: Path):
    data = content(square(id="1", image_id=5.0, category_id="7", iscrowd=False))
    data["images"][0].update(id="5", height=6.0, width="4")
    (found,) = read(folder, data).records[0].objects
    assert (found.annotation_id, found.class_, found.is_crowd) == (1, 0, False)


def test_one_polygon_without_its_outer_list_is_understood(folder: Path):
    (found,) = read(folder, content(square(segmentation=SQUARE_POLYGON[0]))).records[0].objects
    assert found.mask.area == 4


def test_utf8_with_byte_order_mark_and_utf16_are_read(folder: Path):
    text = json.dumps(content(square()))
    for encoding in ("utf-8-sig", "utf-16"):
        (folder / "instances.json").write_bytes(text.encode(encoding))
        assert len(read_coco(folder / "instances.json")) == 2


def test_images_beside_the_file_are_found_without_a_folder_named_images(tmp_path: Path):
    Image.new("RGB", (4, 6)).save(tmp_path / "a.png")
    data = content()
    del data["images"][1]
    assert read(tmp_path, data).records[0].path == tmp_path / "a.png"


def test_images_in_subfolders_are_found_with_either_separator(folder: Path):
    (folder / "images" / "deep").mkdir()
    Image.new("RGB", (4, 6)).save(folder / "images" / "deep" / "a.png")
    for name in ("deep/a.png", "deep\\a.png"):
        data = content()
        data["images"][0]["file_name"] = name
        assert read(folder, data).records[0].path == folder / "images" / "deep" / "a.png"


def test_size_is_compared_after_exif_orientation(folder: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees: stored 6 wide and 4 high, seen 4 wide and 6 high
    Image.new("RGB", (6, 4)).save(folder / "images" / "turned.jpg", exif=exif)
    data = content(square())
    data["images"][0]["file_name"] = "turned.jpg"
    assert read(folder, data).records[0].size == (6, 4)
    data["images"][0].update(height=4, width=6)
    data["annotations"] = []
    assert "declared 6 x 4 pixels (width x height), but turned.jpg has 4 x 6" in refusal(folder, data)
    assert "once its EXIF orientation is applied" in refusal(folder, data)


def test_every_problem_is_named_in_one_error(folder: Path):
    data = content(square(id=1, category_id=8), square(id=2, image_id=6), square(id=3, segmentation=[[1, 2, 3]]))
    data["images"][1]["file_name"] = "absent.png"
    message = refusal(folder, data)
    assert "4 problems" in message
    assert f"image 9: {folder / 'images' / 'absent.png'} does not exist" in message
    assert "annotation 1 (image 5): category_id 8 is not among the file's categories" in message
    assert "annotation 2: image_id 6 is no image of this file" in message
    assert "annotation 3 (image 5): polygon 0 has 3 numbers" in message


def test_many_problems_are_counted_and_the_first_are_shown(folder: Path):
    message = refusal(folder, content(*(square(id=number, category_id=8) for number in range(50))))
    assert "50 problems" in message
    assert message.count("category_id 8") == PROBLEMS_SHOWN
    assert "... and 30 more" in message


WRONG_ANNOTATIONS = [
    ({"id": None}, "annotations[0]: 'id' is None, must be a whole number"),
    ({"id": 1.5}, "annotations[0]: 'id' is 1.5, must be a whole number"),
    ({"id": True}, "annotations[0]: 'id' is True, must be a whole number"),
    ({"id": 10**400}, "must be a whole number"),
    ({"image_id": [5]}, "annotation 1: 'image_id' is [5], must be a whole number"),
    ({"category_id": "cell"}, "annotation 1 (image 5): 'category_id' is 'cell', must be a whole number"),
    ({"iscrowd": 2}, "'iscrowd' is 2, must be 0 or 1"),
    ({"area": -1}, "'area' is -1"),
    ({"area": float("nan")}, "'area' is nan"),
    ({"bbox": [1, 1, -2, 2]}, "'bbox' is [1, 1, -2, 2], must be [x, y, width, height]"),
    ({"bbox": [1, 1, 2]}, "'bbox' is [1, 1, 2], must be"),
    ({"bbox": [1, 1, 2, float("inf")]}, "'bbox' is [1, 1, 2, inf], must be"),
    ({"segmentation": None}, "has no segmentation, only a box"),
    ({"segmentation": []}, "has no segmentation, only a box"),
    ({"segmentation": "72405"}, "'segmentation' is '72405'; give polygons or an RLE"),
    ({"segmentation": [[1, 1, 2, 1, 2]]}, "polygon 0 has 5 numbers"),
    ({"segmentation": [[1, 1, 2, 1]]}, "polygon 0 has 4 numbers"),
    ({"segmentation": [SQUARE_POLYGON[0], [1, "x", 2, 2, 3, 3]]}, "polygon 1 is [1, 'x', 2, 2, 3, 3], must be a flat list"),
    ({"segmentation": [[0, 0, 1e9, 0, 1e9, 3]]}, "polygon 0 reaches further outside the image"),
    ({"segmentation": [[0, 0, float("nan"), 0, 1, 3]]}, "polygon 0 is [0, 0, nan, 0, 1, 3], must be a flat list"),
    ({"segmentation": {"size": [4, 6], "counts": [7, 2, 4, 2, 9]}}, "its RLE has size [4, 6], but the image is [6, 4]"),
    ({"segmentation": {"counts": [7, 2, 4, 2, 9]}}, "its RLE has size None"),
    ({"segmentation": {"size": [6, 4]}}, "its RLE has counts None"),
    ({"segmentation": {"size": [6, 4], "counts": [7, 2, 4, 2, 8]}}, "annotation 1 (image 5): "),
    ({"segmentation": {"size": [6, 4], "counts": [7, -2, 8, 2, 9]}}, "annotation 1 (image 5): "),
    ({"segmentation": {"size": [6, 4], "counts": "72"}}, "annotation 1 (image 5): "),
    ({"segmentation": {"size": [6, 4], "counts": "€"}}, "annotation 1 (image 5): "),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG_ANNOTATIONS, ids=lambda value: str(value)[:50])
def test_a_broken_annotation_is_named_with_its_id(folder: Path, changes: dict[str, Any], expected: str):
    assert expected in refusal(folder, content(square(**changes)))


WRONG_IMAGES = [
    ({"id": None}, "images[0]: 'id' is None"),
    ({"id": 9}, "images[1]: id 9 is taken by an earlier image"),
    ({"file_name": None}, "image 5: 'file_name' is None"),
    ({"file_name": "../a.png"}, "file_name '../a.png' leads out of the image folder"),
    ({"file_name": "deep/../../a.png"}, "leads out of the image folder"),
    ({"file_name": "..\\a.png"}, "leads out of the image folder"),
    ({"file_name": "/etc/hostname"}, "file_name '/etc/hostname' leads out of the image folder"),
    ({"file_name": "C:\\a.png"}, "leads out of the image folder"),
    ({"file_name": "a\0.png"}, "leads out of the image folder"),
    ({"file_name": "a" * 5000}, "image 5: "),
    ({"file_name": "."}, "does not exist"),
    ({"height": 0}, "image 5: declared 4 x 0 pixels (width x height); height and width must be at least 1"),
    ({"height": -6}, "must be at least 1"),
    ({"height": 7}, "image 5: declared 4 x 7 pixels (width x height), but a.png has 4 x 6 pixels"),
    ({"height": 10**6, "width": 10**6}, "more than the limit of 200,000,000 pixels"),
    ({"width": "wide"}, "image 5: 'width' is 'wide', must be a whole number"),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG_IMAGES, ids=lambda value: str(value)[:50])
def test_a_broken_image_entry_is_named_with_its_id(folder: Path, changes: dict[str, Any], expected: str):
    data = content()
    data["images"][0].update(changes)
    assert expected in refusal(folder, data)


def test_a_broken_image_does_not_make_its_annotations_problems_too(folder: Path):
    data = content(square())
    data["images"][0]["height"] = 0
    assert "problems" not in refusal(folder, data)


def test_a_link_out_of_the_image_folder_is_refused(folder: Path):
    Image.new("RGB", (4, 6)).save(folder / "secret.png")
    (folder / "images" / "a.png").unlink()
    os.symlink(folder / "secret.png", folder / "images" / "a.png")
    assert "a link out of the image folder" in refusal(folder, content())


def test_a_file_that_is_no_image_and_one_cut_short_are_named(folder: Path):
    (folder / "images" / "a.png").write_bytes(b"hello")
    (folder / "images" / "b.png").write_bytes((folder / "images" / "b.png").read_bytes()[:20])
    message = refusal(folder, content())
    assert f"image 5: {folder / 'images' / 'a.png'} is not an image" in message
    assert f"image 9: {folder / 'images' / 'b.png'}" in message


def test_duplicate_annotation_ids_are_refused(folder: Path):
    assert "annotations[1]: id 1 is taken by an earlier annotation" in refusal(folder, content(square(), square()))


def test_objects_without_pixels_or_box_area_are_kept_and_named_in_a_warning(folder: Path):
    empty = {"size": [6, 4], "counts": [24]}
    data = content(square(id=3, segmentation=empty), square(id=4), square(id=6, bbox=[1, 1, 2, 0]))
    with pytest.warns(UserWarning, match=r"2 annotations cover no pixel or have a bbox without area, ids 3, 6;"):
        record = read(folder, data).records[0]
    assert [found.mask.area for found in record.objects] == [0, 4, 4]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (b'{"images": [\n  {"id": 1,}\n]}', "not valid JSON at line 2, column 1"),
        (b"", "is empty (0 bytes), not an object with 'images'"),
        (b'{"images": "\xff\xfe"}', "not text"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"images": ' + b"9" * 10_000 + b"}", "not JSON that can be read"),
        (b"[]", "holds a list, as files of predictions do"),
        (b"3", "holds a number, not an object with 'images'"),
        (b"{}", "3 problems"),
        (b'{"images": 1, "annotations": {}, "categories": []}', "3 problems"),
        (b'{"images": [3], "annotations": [4], "categories": [5]}', "3 problems"),
    ],
    ids=range(10),
)
def test_a_file_that_is_no_annotation_file_says_where_it_breaks(tmp_path: Path, written: bytes, expected: str):
    (tmp_path / "instances.json").write_bytes(written)
    with pytest.raises(AnnotationError, match=r"instances\.json") as caught:
        read_coco(tmp_path / "instances.json")
    assert expected in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(AnnotationError, match=r"nowhere\.json: can't be read"):
        read_coco(tmp_path / "nowhere.json")
    with pytest.raises(AnnotationError, match="can't be read"):
        read_coco(tmp_path)


def test_an_image_folder_that_is_not_there_is_named_once(folder: Path):
    message = refusal(folder, content(), image_dir=folder / "pictures")
    assert "pictures does not exist" in message
    assert "problems" not in message


def test_duplicate_category_ids_are_refused(folder: Path):
    data = content()
    data["categories"][1]["id"] = 7
    assert "category id 7" in refusal(folder, data)


def test_images_may_be_absent_where_they_are_not_required(tmp_path: Path):
    data = content(square())
    del data["images"][0]["file_name"]
    dataset = read(tmp_path, data, required_images=False)
    assert dataset.records[0].path is None
    assert dataset.records[1].path == tmp_path / "b.png"
    assert dataset.records[0].objects[0].mask.area == 4


def test_a_huge_declared_image_is_refused_before_its_mask_is_made(tmp_path: Path):
    side = 2_000_000
    data = content(square(segmentation={"size": [side, side], "counts": [0, side * side]}))
    data["images"][0].update(height=side, width=side)
    message = refusal(tmp_path, data, required_images=False)
    assert "more than the limit of 200,000,000 pixels" in message
    assert "problems" not in message


def test_reading_changes_nothing_in_the_file_and_is_repeatable(folder: Path):
    data = content(square())
    before = copy.deepcopy(data)
    first, second = read(folder, data), read(folder, data)
    assert data == before
    assert first.records == second.records


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")  # pycocotools with numpy 2
@pytest.mark.parametrize("name", ["nuclei", "coco-mini", "balloon", "pennfudan", "coco-person"])
def test_real_masks_equal_those_of_pycocotools(shared_data: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]):
    data = json.loads((shared_data / name / "instances_val.json").read_text())
    data["images"] = data["images"][:: len(data["images"]) // 12]  # a dozen images, for time
    chosen = {image["id"] for image in data["images"]}
    data["annotations"] = [annotation for annotation in data["annotations"] if annotation["image_id"] in chosen]
    dataset = read(tmp_path, data, image_dir=shared_data / name / "images")  # a warning would be an error
    theirs = COCO(str(tmp_path / "instances.json"))
    capsys.readouterr()
    assert sum(len(record.objects) for record in dataset) == len(theirs.anns) > 10
    for record in dataset:
        for found in record.objects:
            annotation = theirs.anns[found.annotation_id]
            assert (found.mask.dense() == theirs.annToMask(annotation).astype(bool)).all()
            assert dataset.categories[found.class_].id == annotation["category_id"]


def test_what_lvis_says_of_an_image_is_kept_and_is_none_in_other_files(tmp_path: Path):
    data = content(square())
    data["images"][0].update(neg_category_ids=[40], not_exhaustive_category_ids=["7"])
    (tmp_path / "lvis.json").write_text(json.dumps(data))
    first, second = read_coco(tmp_path / "lvis.json", required_images=False)
    assert (first.neg_category_ids, first.not_exhaustive_category_ids) == ((40,), (7,))
    assert (second.neg_category_ids, second.not_exhaustive_category_ids) == (None, None)
    assert read_coco(tmp_path / "lvis.json", required_images=False).frequencies is None
    data["images"][0].update(neg_category_ids=[None])
    (tmp_path / "lvis.json").write_text(json.dumps(data))
    with pytest.raises(AnnotationError, match=r"'neg_category_ids' is \[None\], must be a list of category ids"):
        read_coco(tmp_path / "lvis.json", required_images=False)


def test_how_frequent_lvis_says_categories_are_is_kept(tmp_path: Path):
    data = content(square())
    data["categories"] = [{**category, "frequency": "r"} for category in data["categories"]]
    (tmp_path / "lvis.json").write_text(json.dumps(data))
    dataset = read_coco(tmp_path / "lvis.json", required_images=False)
    assert dataset.frequencies == ("r",) * len(dataset.categories)


@pytest.mark.parametrize(
    ("changed", "said"), [({"frequency": "often"}, "'frequency' is 'often'"), ({}, "'frequency' is missing, others have it")]
)
def test_a_category_of_unknown_frequency_beside_others_is_named(tmp_path: Path, changed: dict[str, str], said: str):
    data = content(square())
    first = data["categories"][0]
    data["categories"] = [{**first, **changed}, {"id": 999, "name": "other", "frequency": "c"}]
    (tmp_path / "lvis.json").write_text(json.dumps(data))
    with pytest.raises(AnnotationError, match=rf"category {first['id']}: {said}"):
        read_coco(tmp_path / "lvis.json", required_images=False)
