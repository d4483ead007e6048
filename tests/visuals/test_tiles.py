"""Pictures of segments that tile the image: where colours, borders, labels and the legend are."""

from fractions import Fraction

import numpy as np
import pytest

from thingstuff import visuals
from thingstuff.structures.categories import COCO_PANOPTIC, Categories, Category
from thingstuff.structures.panoptic import PanopticMap
from thingstuff.structures.segments import Segments
from thingstuff.visuals import tiles
from thingstuff.visuals.colours import calm_tone, colours_of
from thingstuff.visuals.text import plain_name

CATEGORIES = Categories((Category(1, "cat"), Category(2, "sky", is_thing=False), Category(3, "grass-merged", is_thing=False)))
CAT, SKY, GRASS = range(3)
SIZE = (960, 1200)


def scene(size: tuple[int, int] = SIZE) -> Segments:
    """Sky above grass, a cat in the middle of both, and a void corner."""
    height, width = size
    ids = np.full(size, 2)
    ids[height // 2 :] = 3
    ids[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 1
    ids[-height // 10 :, : width // 10] = 0
    return PanopticMap(ids, np.arange(1, 4), np.array([CAT, SKY, GRASS]), np.zeros(3, np.bool_), CATEGORIES).to_segments()


def grey(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((*size, 3), 60, dtype=np.uint8)


def test_segments_are_filled_void_stays_and_lines_part_them():
    picture = visuals.overlay(grey(), scene(), labels=False)
    assert picture.shape == (*SIZE, 3)
    np.testing.assert_array_equal(picture[950, 10], (60, 60, 60))
    tones = [calm_tone(class_, CATEGORIES) for class_ in (SKY, GRASS)]
    for place, tone in (((50, 600), tones[0]), ((900, 600), tones[1])):
        np.testing.assert_allclose(picture[place], 0.45 * 60 + 0.55 * np.array(tone), atol=1)  # opacity 0.55
    inside = picture[480, 600].astype(float)
    border = picture[318:323, 600].astype(float)  # the cat's upper edge lies between rows 319 and 320, two pixels wide
    assert (np.abs(border - inside).sum(axis=1) > 60).sum() >= 2
    assert border.max() > 180


def test_a_line_is_as_thick_as_asked_for_on_both_sides_of_an_edge():
    owners = np.zeros((6, 8), np.int32)
    owners[:, 4:] = 1
    for thickness, columns in ((1, [3]), (2, [3, 4]), (3, [2, 3, 4]), (4, [2, 3, 4, 5])):
        lines = tiles._borders(owners, thickness)
        assert np.flatnonzero(lines.any(axis=0)).tolist() == columns
        assert (lines.all(axis=0) == lines.any(axis=0)).all()
        np.testing.assert_array_equal(tiles._borders(owners.T.copy(), thickness), lines.T)


@pytest.mark.parametrize("scale", [1, 3, Fraction(1, 4)])
def test_every_scale_fills_the_whole_picture(scale):
    size = (96, 120)
    picture = visuals.overlay(grey(size), scene(size), labels=False, scale=scale)
    height, width = picture.shape[:2]
    assert (height, width) == (int(96 * scale), int(120 * scale))
    untouched = (picture == 60).all(axis=-1)
    corner = np.zeros_like(untouched)
    corner[-(height // 8) :, : width // 8] = True
    assert not (untouched & ~corner).any()


def test_each_segment_has_a_label_near_its_middle():
    segments = scene()
    written = (visuals.overlay(grey(), segments) != visuals.overlay(grey(), segments, labels=False)).any(axis=-1)
    for index, mask in enumerate(segments.rles):
        ys, xs = np.nonzero(written & mask.dense())
        assert len(ys)
        if index == 0:  # the cat is a rectangle of rows 320 to 640 and columns 400 to 800
            assert abs(ys.mean() - 480) < 15
            assert abs(xs.mean() - 600) < 15


def test_labels_do_not_cover_each_other_and_small_segments_go_without():
    ids = np.ones((400, 400), np.int64)
    ids[200:203, 200:203] = 2
    panoptic = PanopticMap(ids, np.arange(1, 3), np.array([SKY, CAT]), np.zeros(2, np.bool_), CATEGORIES)
    shapes_seen: list[tuple[int, int, int, int]] = []
    place = tiles._place

    def noting(*arguments):
        found = place(*arguments)
        shapes_seen.append(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_place", noting)
        visuals.overlay(np.zeros((400, 400, 3), np.uint8), panoptic.to_segments())
        assert [place is None for place in shapes_seen] == [True, False]  # the smallest is tried first
        shapes_seen.clear()
        visuals.overlay(np.zeros((400, 400, 3), np.uint8), panoptic.to_segments(), labels=True)
    (left, top, right, bottom), (left2, top2, right2, bottom2) = shapes_seen
    assert right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top


def test_scores_are_told_of_things_alone(monkeypatch):
    texts = []
    shortened = tiles.shortened
    monkeypatch.setattr(tiles, "shortened", lambda words, *rest: texts.append(words) or shortened(words, *rest))
    segments = scene()
    visuals.overlay(grey(), Segments(**{**vars(segments), "scores": np.full(3, 0.5, np.float32)}))
    assert sorted(texts) == ["cat 0.50", "grass", "sky"]


def test_the_legend_is_a_strip_below_that_names_each_class_once():
    plain = visuals.overlay(grey(), scene())
    with_strip = visuals.overlay(grey(), scene(), legend=True)
    np.testing.assert_array_equal(with_strip[: len(plain)], plain)
    strip = with_strip[len(plain) :]
    assert 10 < len(strip) < 100
    colours = {tuple(colour) for colour in strip.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in colours_of(grey(), scene())} <= colours


def test_nothing_has_no_legend():
    empty = Segments.empty((40, 60), CATEGORIES, overlapping=False)
    assert visuals.overlay(grey((40, 60)), empty, legend=True).shape == visuals.overlay(grey((40, 60)), empty).shape


def test_a_single_pixel_is_drawn():
    ids = np.ones((1, 1), np.int64)
    segments = PanopticMap(ids, np.array([1]), np.array([CAT]), np.zeros(1, np.bool_), CATEGORIES).to_segments()
    assert visuals.overlay(grey((1, 1)), segments, labels=True, legend=True).ndim == 3


def test_stuff_has_tones_that_people_expect_and_that_differ():
    tones = {category.name: calm_tone(class_, COCO_PANOPTIC) for class_, category in enumerate(COCO_PANOPTIC)}
    red, green, blue = tones["grass-merged"]
    assert green > max(red, blue)
    red, _, blue = tones["sky-other-merged"]
    assert blue > red
    stuff = [tones[category.name] for category in COCO_PANOPTIC if not category.is_thing]
    assert len(set(stuff)) == len(stuff)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("sky-other-merged", "sky"),
        ("door-stuff", "door"),
        ("wall-brick", "wall-brick"),
        ("water-other", "water"),
        ("-merged", "-merged"),
    ],
)
def test_names_of_coco_lose_their_endings(name: str, plain: str):
    assert plain_name(name) == plain
