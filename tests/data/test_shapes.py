"""Drawn scenes: the same seed gives the same picture, and the truth fits it to the pixel."""

import numpy as np
import pytest

from thingstuff.data import shapes
from thingstuff.data.shapes import CATEGORIES, Thing, draw_scene, scenes
from thingstuff.errors import ConfigError


def test_a_scene_follows_from_seed_number_and_size_alone():
    third = list(scenes(3, (48, 64), seed=5))[2]
    again = next(scenes(1, (48, 64), seed=5, first=2))
    np.testing.assert_array_equal(third.image, again.image)
    np.testing.assert_array_equal(third.panoptic.ids, again.panoptic.ids)
    assert (third.image != next(scenes(1, (48, 64), seed=6, first=2)).image).any()


@pytest.mark.parametrize("size", [(32, 32), (60, 80), (32, 150), (150, 32)])
def test_every_pixel_belongs_to_one_segment_that_is_listed(size: tuple[int, int]):
    for scene in scenes(4, size, seed=1):
        assert scene.image.shape == (*size, 3)
        assert scene.panoptic.size == size
        assert scene.panoptic.unlisted() == []
        assert scene.panoptic.painted_areas().min() > 0
        assert scene.panoptic.painted_areas().sum() == size[0] * size[1]
        assert not scene.panoptic.crowd.any()


def test_every_thing_is_seen_and_stuff_comes_in_one_piece_of_each_class():
    for scene in scenes(10, (60, 80), seed=2):
        is_thing = np.array([CATEGORIES[class_].is_thing for class_ in scene.panoptic.classes.tolist()])
        assert scene.panoptic.painted_areas()[is_thing].min() >= shapes.MIN_VISIBLE
        stuff = scene.panoptic.classes[~is_thing].tolist()
        assert len(set(stuff)) == len(stuff)


def test_a_hundred_scenes_show_every_class():
    seen = {class_ for scene in scenes(100, (48, 64)) for class_ in scene.panoptic.classes.tolist()}
    assert seen == set(range(len(CATEGORIES)))


def test_things_cover_each_other():
    """Of the things in fifty scenes some are cut into by others: their masks have fewer pixels than their outlines."""
    covered = 0
    for number in range(50):
        random = np.random.default_rng((0, number))
        scene = draw_scene((60, 80), random)
        things = scene.panoptic.to_segments()[: sum(CATEGORIES[c].is_thing for c in scene.panoptic.classes.tolist())]
        boxes = things.boxes
        for i in range(len(boxes)):
            for j in range(i):
                corner, opposite = np.maximum(boxes[i, :2], boxes[j, :2]), np.minimum(boxes[i, 2:], boxes[j, 2:])
                covered += bool((opposite - corner > 2).all())
    assert covered >= 20


def test_a_square_of_radius_ten_covers_the_pixels_whose_centres_lie_inside():
    square = Thing("square", (20.0, 20.0), 10.0, 0.0, True)  # half a side is 8: from 12 to 28
    mask = shapes._distance(square, (slice(0, 40), slice(0, 40))) < 0
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 27, 12, 27)
    assert mask.sum() == 16 * 16


@pytest.mark.parametrize("kind", shapes.THINGS)
def test_a_whole_thing_has_the_area_of_its_formula(kind: str):
    thing = Thing(kind, (100.0, 100.0), 80.0, 0.3, True)
    area = (shapes._distance(thing, (slice(0, 200), slice(0, 200))) < 0).sum()
    assert area == pytest.approx(shapes._whole_area(thing), rel=0.01)


def test_a_picture_too_small_or_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="needs 32 pixels a side, got 40 x 31"):
        scenes(1, (31, 40))
    with pytest.raises(ConfigError, match="a seed is a whole number from 0"):
        scenes(1, seed=-1)
