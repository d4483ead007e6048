"""The merge of things and stuff on maps small enough to draw."""

import numpy as np
import pytest

from thingstuff.ops import panoptic_merge
from thingstuff.ops.panoptic_merge import merge_panoptic

LIMITS = {"score": 0.5, "overlap": 0.5, "stuff_area": 0}


def masks(*rows: str) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Things drawn in one row of pixels each: "..##" has pixels 2 and 3; the crop holds these alone."""
    things = []
    for row in rows:
        pixels = np.array([letter == "#" for letter in row])
        left = int(pixels.argmax())
        things.append((pixels[None, left:], (0, left)))
    return things


def merged(things, scores, stuff: str, **limits) -> str:
    """The map as letters: A, B ... for the first, second ... thing, digits for stuff, a point for void."""
    values = np.array([[-1 if letter == "." else int(letter) for letter in stuff]], dtype=np.int16)
    canvas = np.full(values.shape, ".", dtype="<U1")
    for part in merge_panoptic(things, scores, values, **{**LIMITS, **limits}):
        (top, left), (height, width) = part.corner, part.crop.shape
        region = canvas[top : top + height, left : left + width]
        assert (region[part.crop] == ".").all(), "no pixel is in two segments"
        assert part.crop.any(), "none is without a pixel"
        region[part.crop] = "ABCDEFGH"[part.index] if part.is_thing else str(part.index)
    return "".join(canvas[0])


def test_things_lie_on_stuff_and_the_higher_score_lies_on_the_lower():
    assert merged(masks("####....", "..######"), [0.9, 0.8], "00000111") == "AAAABBBB"
    assert merged(masks("..####..", "........"), [0.9, 0.8], "00000111") == "00AAAA11"


def test_a_thing_taken_by_more_than_the_share_is_left_out_whole():
    # of the second's six pixels two are taken, a third; of the third's four pixels two, which is a half and no more
    things = masks("####....", "..######", "......##")
    assert merged(things, [0.9, 0.8, 0.7], "00000000", overlap=0.34) == "AAAABBBB"
    assert merged(things, [0.9, 0.8, 0.7], "00000000", overlap=0.33) == "AAAA00CC"
    assert merged(masks("####....", "..####.."), [0.9, 0.8], "00000000", overlap=0.5) == "AAAABB00"
    assert merged(masks("####....", "..####.."), [0.9, 0.8], "00000000", overlap=0.49) == "AAAA0000"


def test_a_thing_without_a_pixel_left_is_no_segment_whatever_the_share():
    assert merged(masks("####....", ".##....."), [0.9, 0.8], "00000000", overlap=1.0) == "AAAA0000"


def test_the_share_is_of_pixels_taken_by_things_that_were_kept():
    # the second is left out, so that the third lies on free ground
    things = masks("####....", "..###...", "....##..")
    assert merged(things, [0.9, 0.8, 0.7], "00000000", overlap=0.4) == "AAAACC00"


def test_a_thing_scored_below_the_limit_is_left_out_and_one_at_it_is_kept():
    assert merged(masks("##......", "..##....", "....##.."), [0.9, 0.5, 0.49], "00000000") == "AABB0000"
    assert merged(masks("##......"), [0.1], "00000000", score=0.0) == "AA000000"


def test_masks_of_things_below_the_limit_are_not_even_asked_for_but_one():
    asked = []

    def lazily():
        for thing in masks("##......", "..##....", "....##..", "......##"):
            asked.append(thing)
            yield thing

    assert merged(lazily(), [0.9, 0.4, 0.3, 0.2], "........") == "AA......"
    assert len(asked) == 2


def test_stuff_with_too_few_pixels_left_is_void():
    # things leave one pixel of stuff 0, and three of stuff 1
    things = masks("####....")
    assert merged(things, [0.9], "00000111", stuff_area=3) == "AAAA.111"
    assert merged(things, [0.9], "00000111", stuff_area=4) == "AAAA...."
    assert merged(things, [0.9], "00000111", stuff_area=1) == "AAAA0111"


def test_stuff_without_a_pixel_left_is_no_segment_even_without_a_least_area():
    assert merged(masks("####...."), [0.9], "0000....", stuff_area=0) == "AAAA...."


def test_what_the_map_takes_for_things_is_void_unless_a_thing_lies_there():
    assert merged(masks("..##...."), [0.9], "00....11") == "00AA..11"


def test_stuff_of_one_kind_is_one_segment_and_kinds_come_in_order():
    parts = list(merge_panoptic((), (), np.array([[5, 2, 5, -1]], np.int16), **LIMITS))
    assert [(part.is_thing, part.index) for part in parts] == [(False, 2), (False, 5)]
    assert parts[1].crop.tolist() == [[True, False, True, False]]


def test_nothing_at_all_and_an_image_without_pixels_give_nothing():
    assert list(merge_panoptic((), (), np.full((3, 4), -1, np.int16), **LIMITS)) == []
    assert list(merge_panoptic((), (), np.zeros((0, 4), np.int16), **LIMITS)) == []


def test_things_out_of_order_are_a_mistake():
    with pytest.raises(AssertionError, match="descending score"):
        merged(masks("##..", "..##"), [0.8, 0.9], "0000")


def test_areas_counted_in_strips_are_the_same(monkeypatch):
    stuff = np.random.default_rng(0).integers(-1, 4, (37, 23)).astype(np.int16)
    things = [(np.ones((5, 6), bool), (3, 4))]
    whole = list(merge_panoptic(things, [0.9], stuff, score=0.5, overlap=0.5, stuff_area=150))
    monkeypatch.setattr(panoptic_merge, "STRIP_BYTES", 8 * 23 * 2)
    parts = list(merge_panoptic(things, [0.9], stuff, score=0.5, overlap=0.5, stuff_area=150))
    assert [part.index for part in parts] == [part.index for part in whole]
    assert all(np.array_equal(one.crop, other.crop) for one, other in zip(parts, whole, strict=True))
