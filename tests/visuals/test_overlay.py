"""Pictures are looked at by people; these tests hold what can be counted: where paint is, where it is not, sizes and limits."""

import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thingstuff import visuals
from thingstuff.errors import ConfigError, SizeError
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segments
from thingstuff.visuals import labels, text

CATEGORIES = Categories((Category(1, "cell"), Category(2, "vessel"), Category(3, "glass", is_thing=False)))


def segments_of(masks: list[Mask], size: tuple[int, int], classes: list[int] | None = None, score: float = 0.9) -> Segments:
    return Segments(
        size=size,
        categories=CATEGORIES,
        classes=np.array(classes if classes is not None else [0] * len(masks), dtype=np.int64),
        scores=np.full(len(masks), score, dtype=np.float32),
        boxes=np.array([mask.box for mask in masks], dtype=np.float32).reshape(-1, 4),
        rles=tuple(masks),
    )


def rectangle(top: int, left: int, height: int, width: int, size: tuple[int, int]) -> Mask:
    return Mask.from_crop(np.ones((height, width), dtype=bool), (top, left), size)


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 60, dtype=np.uint8)


def changed(picture: np.ndarray, image: np.ndarray) -> np.ndarray:
    return (picture != image).any(axis=-1)


def test_no_segments_leave_the_image_as_it_is():
    image = grey(1000, 700)
    np.testing.assert_array_equal(visuals.overlay(image, Segments.empty((1000, 700), CATEGORIES)), image)


def test_an_empty_mask_paints_nothing():
    image = grey(1000, 700)
    np.testing.assert_array_equal(visuals.overlay(image, segments_of([Mask.empty((1000, 700))], (1000, 700))), image)


def test_paint_stays_inside_the_mask_at_the_images_own_scale():
    image = grey(40, 60)
    mask = rectangle(10, 20, 12, 15, (40, 60))
    picture = visuals.overlay(image, segments_of([mask], (40, 60)), labels=False, scale=1)
    np.testing.assert_array_equal(changed(picture, image), mask.dense())


def test_enlarging_moves_no_straight_edge():
    image = grey(40, 60)
    mask = rectangle(10, 20, 12, 15, (40, 60))
    picture = visuals.overlay(image, segments_of([mask], (40, 60)), labels=False, scale=4)
    painted = changed(picture, np.repeat(np.repeat(image, 4, axis=0), 4, axis=1))
    rows, columns = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
    assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (40, 88, 80, 140)


def test_reducing_keeps_the_smallest_object():
    image = grey(100, 100)
    picture = visuals.overlay(
        image, segments_of([rectangle(57, 33, 1, 1, (100, 100))], (100, 100)), labels=False, scale=Fraction(1, 10)
    )
    assert picture.shape == (10, 10, 3)
    np.testing.assert_array_equal(np.argwhere(changed(picture, grey(10, 10))), [[5, 3]])


def test_the_outline_is_opaque_and_the_fill_is_not():
    image = grey(1000, 1000)
    picture = visuals.overlay(image, segments_of([rectangle(100, 100, 300, 300, (1000, 1000))], (1000, 1000)), labels=False)
    edge, inside = picture[100, 250].astype(int), picture[250, 250].astype(int)
    np.testing.assert_allclose(inside, 0.7 * 60 + 0.3 * edge, atol=1.5)  # opacity 0.3, rounded to whole numbers


def test_an_outline_is_open_where_the_image_cuts_the_object():
    image = grey(1000, 1000)
    picture = visuals.overlay(image, segments_of([rectangle(0, 0, 300, 300, (1000, 1000))], (1000, 1000)), labels=False)
    inside = picture[150, 150]
    np.testing.assert_array_equal(picture[0, 150], inside)
    np.testing.assert_array_equal(picture[150, 0], inside)
    assert (picture[299, 150] != inside).any()


def test_a_small_object_shows_on_top_of_a_large_one_whatever_their_order():
    size = (1000, 1000)
    large, small = rectangle(0, 0, 1000, 1000, size), rectangle(400, 400, 100, 100, size)
    for masks in ([large, small], [small, large]):
        picture = visuals.overlay(grey(*size), segments_of(masks, size), labels=False)
        assert (picture[450, 450] != picture[200, 200]).any()


def test_touching_objects_get_different_colours():
    size = (960, 960)
    masks = [rectangle(top, left, 40, 40, size) for top in range(0, 960, 40) for left in range(0, 960, 40)]  # 576
    picture = visuals.overlay(grey(*size), segments_of(masks, size), labels=False)
    middles = picture[20::40, 20::40].astype(int)
    for neighbours in (middles[1:] - middles[:-1], middles[:, 1:] - middles[:, :-1]):
        assert np.abs(neighbours).sum(axis=-1).min() >= 12  # of the fill, which has 0.3 of the colours' difference


def test_an_object_gets_a_colour_that_its_image_lacks():
    size = (960, 960)
    image = np.zeros((*size, 3), dtype=np.uint8)
    image[:] = (150, 90, 180)  # the purple of stained tissue
    picture = visuals.overlay(image, segments_of([rectangle(100, 100, 200, 200, size)], size), labels=False)
    red, green, blue = (int(value) for value in picture[100, 200])
    assert green > min(red, blue)  # purple is what has less green than red and blue


def test_stuff_keeps_its_colour_from_image_to_image():
    size = (960, 960)
    pictures = [
        visuals.overlay(grey(*size), segments_of([rectangle(100, 100, side, side, size)], size, classes=[2]), labels=False)
        for side in (100, 300)
    ]
    np.testing.assert_array_equal(pictures[0][100, 150], pictures[1][100, 150])


def test_the_same_input_gives_the_same_picture():
    size = (300, 400)
    segments = segments_of([rectangle(10 * i, 12 * i, 30, 30, size) for i in range(20)], size)
    np.testing.assert_array_equal(visuals.overlay(grey(*size), segments), visuals.overlay(grey(*size), segments))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1, 1, (8, 8)), (256, 256, (1024, 1024)), (480, 640, (960, 1280)), (1200, 800, (1200, 800)), (20, 5000, (10, 2500))],
)
def test_a_picture_is_no_smaller_and_no_larger_than_people_like(height, width, expected):
    image = np.zeros((height, width, 3), dtype=np.uint8)
    mask = rectangle(0, 0, 1, 1, (height, width))
    assert visuals.overlay(image, segments_of([mask], (height, width))).shape == (*expected, 3)


def test_a_grey_image_gets_colours():
    picture = visuals.overlay(
        np.full((1000, 1000), 60, np.uint8), segments_of([rectangle(0, 0, 9, 9, (1000, 1000))], (1000, 1000))
    )
    assert picture.shape == (1000, 1000, 3)


def labelled(masks: list[Mask], size: tuple[int, int], **options) -> np.ndarray:
    """Where labels were written."""
    segments = segments_of(masks, size)
    return changed(visuals.overlay(grey(*size), segments, **options), visuals.overlay(grey(*size), segments, labels=False))


def test_few_large_objects_are_labelled():
    size = (1000, 1000)
    assert labelled([rectangle(300, 300, 200, 200, size)], size).any()


def test_many_objects_are_not_labelled_unless_asked():
    size = (1000, 1000)
    masks = [rectangle(top, left, 40, 40, size) for top in range(0, 1000, 100) for left in range(0, 1000, 100)]
    assert not labelled(masks, size).any()
    assert labelled(masks, size, labels=True).any()


def test_labels_that_would_hide_a_tiny_image_are_left_out():
    size = (12, 12)
    assert not labelled([rectangle(1, 1, 4, 4, size), rectangle(6, 2, 3, 3, size), rectangle(2, 7, 3, 4, size)], size).any()


def test_labels_stay_inside_and_apart(monkeypatch):
    size = (1000, 1000)
    corners = [(0, 0), (0, 970), (970, 0), (970, 970), (440, 440), (480, 480), (520, 520)]
    places = []
    place = labels.label_place
    monkeypatch.setattr(labels, "label_place", lambda *arguments: places.append(place(*arguments)) or places[-1])
    visuals.overlay(grey(*size), segments_of([rectangle(top, left, 30, 30, size) for top, left in corners], size))
    assert len(places) == 7
    rectangles = np.array(places)
    assert rectangles.min() >= 0
    assert rectangles.max() <= 1000
    assert np.count_nonzero(labels.common(rectangles, rectangles)) == 7  # each with itself alone


def test_a_long_name_is_cut_to_fit():
    font = text.font_of(20)
    short = text.shortened("a name\nthat goes on " * 20, font, 200)
    assert short.startswith("a name that")
    assert short.endswith("...")
    assert text.text_size(short, font)[0] <= 200
    assert text.shortened("word", font, 3) == ""


def test_a_score_of_one_is_left_out(monkeypatch):
    texts = []
    monkeypatch.setattr(labels, "shortened", lambda words, *rest: texts.append(words) or text.shortened(words, *rest))
    for score in (0.876, 1.0):
        visuals.overlay(grey(1000, 1000), segments_of([rectangle(300, 300, 200, 200, (1000, 1000))], (1000, 1000), score=score))
    assert texts == ["cell 0.88", "cell"]


def test_three_hundred_objects_take_well_under_a_second():
    size = (1024, 1024)
    y, x = np.ogrid[-20:21, -20:21]
    disk = x * x + y * y <= 400
    random = np.random.default_rng(0)
    masks = [Mask.from_crop(disk, (int(top), int(left)), size) for top, left in random.integers(0, 980, (300, 2))]
    segments = segments_of(masks, size)
    visuals.overlay(grey(*size), segments)
    started = time.process_time()
    visuals.overlay(grey(*size), segments)
    assert time.process_time() - started < 1.0  # about 0.2 s on a laptop; of this process alone, so that a busy machine passes


def test_side_by_side_shows_image_prediction_and_truth_under_captions():
    size = (300, 400)
    truth = segments_of([rectangle(50, 50, 90, 90, size)], size, score=1.0)
    sheet = visuals.side_by_side(grey(*size), Segments.empty(size, CATEGORIES), truth)
    caption = sheet.shape[0] - 600
    gap = (sheet.shape[1] - 3 * 800) // 2
    assert caption > 0
    assert gap > 0
    first, second, third = (sheet[caption:, left : left + 800] for left in (0, 800 + gap, 1600 + 2 * gap))
    np.testing.assert_array_equal(first, second)  # nothing was predicted
    assert changed(third, first).any()


def test_side_by_side_works_on_a_single_pixel():
    empty = Segments.empty((1, 1), CATEGORIES)
    assert visuals.side_by_side(grey(1, 1), empty, empty).ndim == 3


def test_describe_names_the_most_frequent_first():
    size = (10, 10)
    masks = [rectangle(0, 0, 2, 2, size)] * 4
    assert visuals.describe(segments_of(masks, size, classes=[1, 0, 1, 2])) == "2 vessel, 1 cell, 1 glass"
    assert visuals.describe(segments_of(masks, size, classes=[1, 0, 1, 2]), most=1) == "2 vessel and 2 more"
    assert visuals.describe(Segments.empty(size, CATEGORIES)) == "nothing"


@pytest.mark.parametrize("name", ["a.png", "deep/er/b.JPG", "c.webp"])
def test_save_writes_what_the_suffix_says_and_makes_the_folder(tmp_path: Path, name: str):
    visuals.save(tmp_path / name, grey(8, 9))
    with Image.open(tmp_path / name) as written:
        assert written.size == (9, 8)


def test_save_refuses_a_suffix_it_does_not_know(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"end it with one of \.png"):
        visuals.save(tmp_path / "picture.docx", grey(8, 9))


def test_save_names_a_place_it_cannot_write_to(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file.a\.png: the picture can't be written"):
        visuals.save(tmp_path / "file" / "a.png", grey(8, 9))


def test_segments_of_another_image_are_refused():
    with pytest.raises(SizeError, match="image is 20x10 pixels but its segments describe 10x10"):
        visuals.overlay(grey(10, 20), Segments.empty((10, 10), CATEGORIES))


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_an_image_of_another_kind_is_refused(image):
    with pytest.raises(SizeError, match="needs an image of uint8"):
        visuals.overlay(image, Segments.empty((4, 4), CATEGORIES))


@pytest.mark.parametrize("options", [{"opacity": 1.5}, {"scale": 0}, {"scale": Fraction(2, 3)}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        visuals.overlay(grey(4, 4), Segments.empty((4, 4), CATEGORIES), **options)
