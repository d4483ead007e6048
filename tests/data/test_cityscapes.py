"""Cityscapes' folders, drawn small: what becomes a thing, a crowd, stuff or void, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thingstuff.data.cityscapes import CITYSCAPES
from thingstuff.data.folders import has_instances, has_panoptic, open_dataset, open_panoptic, splits_of
from thingstuff.data.panoptic_check import check_record
from thingstuff.errors import AnnotationError

# road, two cars, a group of cars, ego vehicle (1) and unlabelled (0)
NUMBERS = np.array([[7, 7, 26000, 26000], [26001, 26, 1, 0]], np.uint16)


@pytest.fixture
def city(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        photos, truths = tmp_path / "leftImg8bit" / split / "ulm", tmp_path / "gtFine" / split / "ulm"
        for folder in (photos, truths):
            folder.mkdir(parents=True)
        Image.new("RGB", (4, 2)).save(photos / f"ulm_{split}_leftImg8bit.png")
        Image.fromarray(NUMBERS).save(truths / f"ulm_{split}_gtFine_instanceIds.png")
    return tmp_path


def test_the_classes_are_the_nineteen_that_are_evaluated():
    assert len(CITYSCAPES) == 19
    assert [category.id for category in CITYSCAPES if category.is_thing] == [24, 25, 26, 27, 28, 31, 32, 33]
    assert (CITYSCAPES[0].name, CITYSCAPES[18].name) == ("road", "bicycle")


def test_things_have_numbers_groups_are_crowds_and_ignored_labels_are_void(city: Path):
    data = open_panoptic(city, "val")
    (record,) = data
    assert (record.image_id, record.size) == ("ulm_val", (2, 4))
    assert record.path == city / "leftImg8bit" / "val" / "ulm" / "ulm_val_leftImg8bit.png"
    panoptic = record.panoptic_map()
    assert panoptic.ids.tolist() == [[7, 7, 26000, 26000], [26001, 26, 0, 0]]
    assert panoptic.segment_ids.tolist() == [7, 26, 26000, 26001]
    assert [CITYSCAPES.names[class_] for class_ in panoptic.classes.tolist()] == ["road", "car", "car", "car"]
    assert panoptic.crowd.tolist() == [False, True, False, False]
    assert list(check_record(record)) == []


def test_the_folder_opens_by_split_and_whole(city: Path):
    assert splits_of(city) == ["train", "val"]
    assert (has_panoptic(city, "val"), has_instances(city, "val")) == (True, False)
    assert [record.image_id for record in open_panoptic(city)] == ["ulm_train", "ulm_val"]
    with pytest.raises(AnnotationError, match="has no split 'test'; its splits are train, val"):
        open_panoptic(city, "test")
    with pytest.raises(AnnotationError, match="leave the image folder out"):
        open_panoptic(city, image_dir=city)


def test_its_objects_are_its_things(city: Path):
    data = open_dataset(city, "val")
    assert data.categories.names == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    assert [(found.class_, found.is_crowd, found.box) for found in data[0].objects] == [
        (2, True, (1, 1, 2, 2)),
        (2, False, (2, 0, 4, 1)),
        (2, False, (0, 1, 1, 2)),
    ]


def test_a_photo_that_is_missing_or_has_another_size_is_named(city: Path):
    photo = city / "leftImg8bit" / "val" / "ulm" / "ulm_val_leftImg8bit.png"
    Image.new("RGB", (5, 2)).save(photo)
    with pytest.raises(AnnotationError, match=r"ulm_val_leftImg8bit\.png has 5 x 2 pixels"):
        open_dataset(city, "val")
    photo.unlink()
    with pytest.raises(AnnotationError, match="the photo of image 1 isn't there"):
        open_dataset(city, "val")
    assert len(open_dataset(city, "val", required_images=False)) == 1


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "can't be read"),
        (lambda path: path.write_text("no image"), "is no PNG"),
        (lambda path: Image.new("RGB", (4, 2)).save(path), "is a PNG of RGB with 8 bits; numbers need grey"),
        (lambda path: Image.fromarray(NUMBERS + np.uint16(40000)).save(path), "paints 40007, which is no number of Cityscapes"),
        (lambda path: Image.fromarray(np.full((2, 4), 34, np.uint8)).save(path), "paints 34, which is no number of Cityscapes"),
    ],
)
def test_a_png_that_is_no_annotation_is_named(city: Path, write, words):
    path = city / "gtFine" / "val" / "ulm" / "ulm_val_gtFine_instanceIds.png"
    write(path)
    with pytest.raises(AnnotationError, match=f"ulm_val_gtFine_instanceIds.png: {words}"):
        open_panoptic(city)


def test_a_png_larger_than_the_limit_is_not_decoded(city: Path):
    with pytest.raises(AnnotationError, match="more than the limit of 7 pixels"):
        open_panoptic(city, max_pixels=7)


def test_a_split_without_annotations_says_where_they_belong(city: Path):
    (city / "gtFine" / "test").mkdir()
    with pytest.raises(AnnotationError, match=r"has no gtFine/test/<city>/\*_gtFine_instanceIds\.png"):
        open_panoptic(city, "test")


def test_the_sample_says_what_the_panoptic_sample_says(shared_data: Path):
    """The same three photos, made from COCO's panoptic maps by name; where both have a class they agree to the pixel."""
    data = open_panoptic(shared_data / "cityscapes-format")
    coco = open_panoptic(shared_data / "panoptic-sample").by_image_id
    assert len(data) == 3
    for record in data:
        own, other = record.panoptic_map(), coco[int(str(record.image_id).rsplit("_", 1)[1])].panoptic_map()
        for name in ("person", "car", "truck", "bus", "train"):
            class_, other_class = CITYSCAPES.names.index(name), other.categories.names.index(name)
            np.testing.assert_array_equal(own.semantic_map() == class_, other.semantic_map() == other_class)
            assert (own.classes == class_).sum() == (other.classes == other_class).sum()
