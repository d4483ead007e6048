"""Panoptic maps as objects and back, on maps small enough to read."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thingstuff.data.folders import open_panoptic
from thingstuff.data.panoptic import read_panoptic
from thingstuff.data.panoptic_objects import (
    join_panoptic,
    merged_by_class,
    objects_of,
    panoptic_as_objects,
    split_panoptic,
    things_alone,
)
from thingstuff.errors import AnnotationError, SizeError
from thingstuff.formats.coco_panoptic import write_panoptic
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.masks import Mask
from thingstuff.structures.panoptic import PanopticMap

CATEGORIES = Categories((Category(3, "cat"), Category(5, "sky", is_thing=False), Category(9, "dog")))
CAT, SKY, DOG = range(3)
# two cats, 7 and 8, a crowd of dogs, sky, and a void pixel
IDS = np.array([[7, 7, 2, 2], [8, 0, 2, 5]])


def map_of(ids: np.ndarray = IDS) -> PanopticMap:
    return PanopticMap(
        ids, np.array([2, 8, 5, 7]), np.array([SKY, CAT, DOG, CAT]), np.array([False, False, True, False]), CATEGORIES
    )


@pytest.fixture
def data(tmp_path: Path):
    write_panoptic(tmp_path / "panoptic.json", [(4, "a.png", map_of()), (6, "b.png", map_of(IDS[:, ::-1]))], CATEGORIES)
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 2)).save(tmp_path / "images" / name)
    return open_panoptic(tmp_path)


def test_every_segment_is_an_object_in_the_order_of_the_file(data):
    objects = panoptic_as_objects(data)
    assert (objects.categories, objects.source, len(objects)) == (CATEGORIES, data.source, 2)
    first = objects[0]
    assert (first.image_id, first.size, first.path) == (4, (2, 4), data[0].path)
    assert [found.class_ for found in first.objects] == [SKY, CAT, DOG, CAT]
    assert [found.is_crowd for found in first.objects] == [False, False, True, False]
    assert [found.area for found in first.objects] == [3, 1, 1, 2]
    assert first.objects[0].box == (2, 0, 4, 2)
    np.testing.assert_array_equal(first.objects[0].mask.dense(), IDS == 2)
    assert [found.annotation_id for record in objects for found in record.objects] == list(range(1, 9))


def test_images_named_by_texts_are_numbered(tmp_path: Path):
    write_panoptic(tmp_path / "panoptic.json", [("ulm_1", "a.png", map_of()), ("ulm_2", "b.png", map_of())], CATEGORIES)
    assert [record.image_id for record in panoptic_as_objects(read_panoptic(tmp_path / "panoptic.json"))] == [1, 2]


def test_a_file_that_contradicts_its_map_is_refused_with_image_and_segment(data, tmp_path: Path):
    content = json.loads((tmp_path / "panoptic.json").read_text())
    segments = content["annotations"][1]["segments_info"]
    removed = segments.pop(0)
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"panoptic\.json: image 6: segment 2 is painted but not listed"):
        panoptic_as_objects(open_panoptic(tmp_path))
    segments += [removed, {**removed, "id": 44}]
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="image 6: segment 44 is listed but not painted"):
        panoptic_as_objects(open_panoptic(tmp_path))


def test_things_alone_have_classes_of_their_own(data):
    things = things_alone(panoptic_as_objects(data))
    assert things.categories.names == ("cat", "dog")
    assert [found.class_ for found in things[0].objects] == [0, 1, 0]
    assert [found.is_crowd for found in things[0].objects] == [False, True, False]


def test_objects_of_a_class_become_one_crowds_too(data):
    merged = merged_by_class(panoptic_as_objects(data))
    cats, sky, dogs = merged[0].objects
    np.testing.assert_array_equal(cats.mask.dense(), (IDS == 7) | (IDS == 8))
    np.testing.assert_array_equal(sky.mask.dense(), IDS == 2)
    assert (cats.class_, sky.class_, dogs.class_) == (CAT, SKY, DOG)
    assert (cats.box, cats.area, dogs.is_crowd) == ((0, 0, 2, 2), 3, False)


def test_a_map_split_and_joined_is_the_same_map():
    things, semantic = split_panoptic(map_of())
    assert semantic.tolist() == [[CAT, CAT, SKY, SKY], [CAT, -1, SKY, DOG]]
    joined = join_panoptic(things, semantic, CATEGORIES)
    parts = {(class_, crowd, (joined.ids == id_).tobytes()) for class_, crowd, id_ in _rows(joined)}
    assert parts == {(class_, crowd, (id_ == IDS).tobytes()) for class_, crowd, id_ in _rows(map_of())}


def _rows(panoptic: PanopticMap) -> list[tuple[int, bool, int]]:
    return list(zip(panoptic.classes.tolist(), panoptic.crowd.tolist(), panoptic.segment_ids.tolist(), strict=True))


def test_of_objects_that_share_a_pixel_the_smallest_has_it_and_crowds_lie_behind():
    semantic = np.full((1, 4), SKY)
    wide, narrow, crowd = (
        objects_of(PanopticMap(np.array([row]), np.array([1]), np.array([class_]), np.array([is_crowd]), CATEGORIES))[0]
        for row, class_, is_crowd in (([1, 1, 1, 0], CAT, False), ([0, 0, 1, 0], DOG, False), ([0, 0, 1, 1], DOG, True))
    )
    joined = join_panoptic([narrow, crowd, wide], semantic, CATEGORIES)
    names = [CATEGORIES[class_].name for class_ in joined.semantic_map()[0].tolist()]
    assert names == ["cat", "cat", "dog", "dog"]
    assert _rows(joined) == [(DOG, True, 1), (CAT, False, 2), (DOG, False, 3)]
    assert joined.ids.tolist() == [[2, 2, 3, 1]]


def test_thing_pixels_without_an_object_are_void():
    joined = join_panoptic([], np.array([[CAT, SKY, 255]]), CATEGORIES, void=255)
    assert joined.ids.tolist() == [[0, 1, 0]]
    assert joined.classes.tolist() == [SKY]


def test_objects_and_masks_that_do_not_fit_are_refused():
    sky, cat, *_ = objects_of(map_of())
    with pytest.raises(AnnotationError, match="holds class 7; classes are 0 to 2, void is -1"):
        join_panoptic([], np.array([[7]]), CATEGORIES)
    with pytest.raises(SizeError, match=r"an object belongs to an image of size \(2, 4\)"):
        join_panoptic([cat], np.array([[SKY]]), CATEGORIES)
    with pytest.raises(AnnotationError, match="is of the stuff class 'sky'"):
        join_panoptic([sky], np.zeros((2, 4), np.int64), CATEGORIES)


def test_the_union_of_masks_needs_one_size():
    first, second = (Mask.from_dense(np.array([row])) for row in ([1, 0, 0], [0, 0, 1]))
    assert Mask.union([first, second]).dense().tolist() == [[True, False, True]]
    assert Mask.union([Mask.empty((1, 3)), Mask.empty((1, 3))]) == Mask.empty((1, 3))
    with pytest.raises(SizeError, match="masks of one image size"):
        Mask.union([first, Mask.empty((2, 2))])


def test_real_annotations_come_back_as_they_were(shared_data: Path):
    data = open_panoptic(shared_data / "panoptic-sample", "val", image_dir=shared_data / "coco-mini" / "images")
    objects = panoptic_as_objects(data)
    assert sum(len(record.objects) for record in objects) == sum(len(record.segment_ids) for record in data)
    for record, painted in list(zip(objects, data, strict=True))[:10]:
        assert [found.area for found in record.objects] == painted.areas.tolist()
        assert sum(found.mask.area for found in record.objects) == (painted.panoptic_map().ids > 0).sum()
