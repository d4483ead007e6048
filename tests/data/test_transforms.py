"""Augmentation: what each step does to pixels, masks and boxes, and that all of them move together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thingstuff.data.records import Object, Record
from thingstuff.data.transforms import (
    Augmentation,
    Sample,
    ScaleOf,
    augment,
    check_largest,
    check_min_pixels,
    draw_window,
    tight_boxes,
)
from thingstuff.errors import ConfigError, SizeError
from thingstuff.structures.masks import Mask
from thingstuff.structures.preprocessing import Preprocessing

OWN_SIZE = Preprocessing(short_side=0)
PLAIN = Augmentation(scale_of=ScaleOf.IMAGE)


def record_of(*masks: np.ndarray, crowds: tuple[int, ...] = (), size: tuple[int, int] | None = None) -> Record:
    found = tuple(
        Object(index % 3, (0.0, 0.0, 1.0, 1.0), Mask.from_dense(mask), index in crowds, float(mask.sum()), index + 1)
        for index, mask in enumerate(masks)
    )
    return Record(1, None, masks[0].shape if size is None else size, found)  # pyright: ignore[reportArgumentType]


def rectangle(size: tuple[int, int], x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def image_of(mask: np.ndarray) -> np.ndarray:
    """White where the mask is."""
    return np.repeat(mask[:, :, None], 3, axis=2).astype(np.uint8) * 255


def view(mask: np.ndarray, augmentation: Augmentation, seed: int = 0) -> Sample:
    return augment(image_of(mask), record_of(mask), augmentation, OWN_SIZE, np.random.default_rng(seed))


def test_nothing_asked_for_changes_nothing():
    mask = rectangle((7, 9), 2, 1, 5, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    sample = augment(pixels, record_of(mask, ~mask, crowds=(1,)), PLAIN, OWN_SIZE, np.random.default_rng(0))
    assert (sample.image == pixels).all()
    assert sample.targets.size == (7, 9)
    assert sample.targets.masks.numpy().tolist() == [mask.tolist(), (~mask).tolist()]
    assert sample.targets.boxes.tolist() == [[2, 1, 5, 4], [0, 0, 9, 7]]
    assert sample.targets.classes.tolist() == [0, 1]
    assert sample.targets.is_crowd.tolist() == [False, True]
    assert sample.targets.image_id == 1


def test_horizontal_flip_mirrors_image_mask_and_box():
    # width 9: a box from 2 to 5 lands on 9 - 5 = 4 to 9 - 2 = 7
    sample = view(rectangle((7, 9), 2, 1, 5, 4), replace(PLAIN, horizontal_flip=1.0))
    assert sample.targets.boxes.tolist() == [[4, 1, 7, 4]]
    assert (sample.image == image_of(sample.targets.masks[0].numpy())).all()


def test_vertical_flip_mirrors_image_mask_and_box():
    sample = view(rectangle((7, 9), 2, 1, 5, 4), replace(PLAIN, vertical_flip=1.0))  # 7 - 4 = 3 to 7 - 1 = 6
    assert sample.targets.boxes.tolist() == [[2, 3, 5, 6]]
    assert (sample.image == image_of(sample.targets.masks[0].numpy())).all()


def test_quarter_turns_swap_the_sides_of_the_image_and_lose_no_pixel():
    sizes = set()
    for seed in range(12):
        sample = view(rectangle((7, 9), 2, 1, 5, 4), replace(PLAIN, quarter_turn=1.0), seed)
        assert sample.image.shape[:2] == sample.targets.size
        assert (sample.image == image_of(sample.targets.masks[0].numpy())).all()
        assert int(sample.targets.masks.sum()) == 9
        sizes.add(sample.targets.size)
    assert sizes == {(7, 9), (9, 7)}


def test_doubling_an_image_doubles_mask_and_box():
    sample = view(rectangle((7, 9), 2, 1, 5, 4), replace(PLAIN, scale=(2.0, 2.0)))
    assert sample.targets.size == (14, 18)
    assert sample.targets.boxes.tolist() == [[4, 2, 10, 8]]
    assert int(sample.targets.masks.sum()) == 36
    # bilinear resizing greys the outline; within a pixel of it the two may differ, elsewhere white is where the mask is
    assert ((sample.image[:, :, 0] > 127) == sample.targets.masks[0].numpy()).mean() > 0.95


def test_a_crop_shows_its_part_of_image_and_mask_alike():
    random = np.random.default_rng(3)
    mask = random.random((40, 50)) < 0.3
    seen = set()
    for seed in range(20):
        sample = view(mask, replace(PLAIN, crop=(16, 24)), seed)
        assert sample.image.shape == (16, 24, 3)
        assert (sample.image == image_of(sample.targets.masks[0].numpy())).all()
        seen.add(sample.image.tobytes())
    assert len(seen) > 15  # places differ


def test_an_object_cut_by_the_crop_has_the_box_of_its_visible_part():
    everything = np.ones((40, 50), bool)
    sample = view(everything, replace(PLAIN, crop=(16, 24)))
    assert sample.targets.boxes.tolist() == [[0, 0, 24, 16]]


def test_objects_outside_the_crop_or_with_too_few_pixels_are_dropped():
    size = (8, 8)
    masks = [rectangle(size, 0, 0, 2, 2), rectangle(size, 0, 0, 1, 3), np.zeros(size, bool), rectangle(size, 3, 3, 8, 8)]
    kept = augment(image_of(masks[0]), record_of(*masks), replace(PLAIN, min_pixels=4), OWN_SIZE, np.random.default_rng(0))
    assert kept.targets.classes.tolist() == [0, 0]  # the first (4 pixels) and the last (25); 3 pixels and none are dropped
    for seed in range(10):
        targets = augment(
            image_of(masks[0]), record_of(*masks[:2]), replace(PLAIN, crop=(2, 2)), OWN_SIZE, np.random.default_rng(seed)
        ).targets
        assert len(targets) == sum(bool(mask.any()) for mask in targets.masks)


def test_an_image_without_objects_gives_targets_without_rows():
    sample = augment(np.zeros((8, 8, 3), np.uint8), Record(1, None, (8, 8)), PLAIN, OWN_SIZE, np.random.default_rng(0))
    assert len(sample.targets) == 0
    assert sample.targets.boxes.shape == (0, 4)
    assert sample.targets.masks.shape == (0, 8, 8)


def test_an_image_smaller_than_the_crop_is_kept_whole():
    sample = view(rectangle((7, 90), 2, 1, 5, 4), replace(PLAIN, crop=(16, 24)))
    assert sample.image.shape == (7, 24, 3)


def test_scale_one_of_the_crop_just_fits_the_image_in():
    augmentation = Augmentation(scale_of=ScaleOf.CROP, crop=(100, 100))
    window = draw_window((480, 640), augmentation, OWN_SIZE, np.random.default_rng(0))
    assert (window.size, window.output) == ((480, 640), (75, 100))  # 100 / 640 = 0.15625; 480 x 0.15625 = 75


def test_scale_one_of_the_input_is_the_size_the_network_would_see():
    window = draw_window((480, 640), Augmentation(), Preprocessing(short_side=800, long_side=1333), np.random.default_rng(0))
    assert window.output == (800, 1067)


def test_the_scaled_crop_takes_the_window_that_fills_it():
    augmentation = replace(PLAIN, scale=(0.5, 0.5), crop=(100, 100))
    window = draw_window((480, 640), augmentation, OWN_SIZE, np.random.default_rng(0))
    assert (window.size, window.output) == ((200, 200), (100, 100))
    assert 0 <= window.top <= 280
    assert 0 <= window.left <= 440


def test_scales_are_drawn_log_uniformly():
    augmentation = replace(PLAIN, scale=(0.5, 2.0))
    random = np.random.default_rng(0)
    sides = [draw_window((1000, 1000), augmentation, OWN_SIZE, random).output[0] for _ in range(400)]
    assert min(sides) < 550
    assert max(sides) > 1800
    assert 0.4 < np.mean([side < 1000 for side in sides]) < 0.6


def test_colour_jitter_changes_pixels_and_leaves_masks_alone():
    mask = rectangle((7, 9), 2, 1, 5, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    for name in ("brightness", "contrast", "saturation", "hue"):
        sample = augment(pixels, record_of(mask), replace(PLAIN, **{name: 0.4}), OWN_SIZE, np.random.default_rng(1))
        assert (sample.image != pixels).any(), name
        assert (sample.targets.masks[0].numpy() == mask).all()


def test_inverting_and_greying_do_what_they_say():
    mask = rectangle((7, 9), 2, 1, 5, 4)
    assert (view(mask, replace(PLAIN, invert=1.0)).image == image_of(~mask)).all()
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    grey = augment(pixels, record_of(mask), replace(PLAIN, greyscale=1.0), OWN_SIZE, np.random.default_rng(0)).image
    assert (grey == grey[:, :, :1]).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 60), width=st.integers(1, 60), crop=st.integers(1, 40))
def test_boxes_are_the_extents_of_masks_under_any_augmentation(seed: int, height: int, width: int, crop: int):
    random = np.random.default_rng(seed)
    masks = [random.random((height, width)) < density for density in (0.5, 0.02)]
    everything = Augmentation(
        scale=(0.3, 3.0), scale_of=ScaleOf.IMAGE, crop=(crop, crop + 3), horizontal_flip=0.5, vertical_flip=0.5, quarter_turn=0.5
    )
    sample = augment(image_of(masks[0]), record_of(*masks), everything, OWN_SIZE, random)
    targets = sample.targets
    assert sample.image.shape[:2] == targets.size == tuple(targets.masks.shape[1:])
    assert max(targets.size) <= crop + 3
    for box, mask in zip(targets.boxes.tolist(), targets.masks.numpy(), strict=True):
        rows, columns = np.nonzero(mask)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_the_same_random_state_gives_the_same_view_and_leaves_the_global_ones_alone():
    mask = np.random.default_rng(0).random((30, 30)) < 0.3
    everything = Augmentation((0.5, 2.0), ScaleOf.IMAGE, (16, 16), 0.5, 0.5, 0.5, 0.2, 0.2, 0.2, 0.1, 0.5, 0.5)
    before = torch.get_rng_state()
    first, second, other = (view(mask, everything, seed) for seed in (7, 7, 8))
    assert (torch.get_rng_state() == before).all()
    assert (first.image == second.image).all()
    assert (first.targets.masks == second.targets.masks).all()
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_tight_boxes_of_single_pixels_and_full_masks():
    masks = torch.zeros(2, 3, 4, dtype=torch.bool)
    masks[0, 2, 1] = True
    masks[1] = True
    assert tight_boxes(masks).tolist() == [[1, 2, 2, 3], [0, 0, 4, 3]]


def test_an_image_that_is_not_of_the_records_size_is_refused():
    with pytest.raises(SizeError, match=r"height and width \(5, 5\), its record says \(7, 9\)"):
        augment(
            np.zeros((5, 5, 3), np.uint8), record_of(rectangle((7, 9), 0, 0, 1, 1)), PLAIN, OWN_SIZE, np.random.default_rng(0)
        )


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 12),  # 3 x 4
        ({"scale": (0.5, 2.0)}, 48),  # 6 x 8
        ({"scale": (0.5, 2.0), "crop": (5, 7)}, 30),  # 6 x 5
    ],
)
def test_a_count_of_pixels_that_no_object_ever_has_is_refused(changes: dict, most: int):
    record = record_of(rectangle((20, 30), 1, 1, 4, 5), rectangle((20, 30), 8, 8, 9, 9))
    check_min_pixels([record], replace(PLAIN, min_pixels=most, **changes), OWN_SIZE)
    with pytest.raises(ConfigError, match=f"min_pixels is {most + 1}, but no object covers more than {most} pixels"):
        check_min_pixels([record], replace(PLAIN, min_pixels=most + 1, **changes), OWN_SIZE)


def test_a_scale_that_makes_views_larger_than_any_network_takes_is_refused_unless_they_are_cropped():
    record = record_of(rectangle((200, 300), 1, 1, 4, 5))
    check_largest([record], replace(PLAIN, scale=(1.0, 27.3)), OWN_SIZE)  # 300 x 27.3 = 8190
    with pytest.raises(ConfigError, match=r"scale up to 28\.0 makes .* 8400 pixels a side, more than 8192; lower scale"):
        check_largest([record], replace(PLAIN, scale=(1.0, 28.0)), OWN_SIZE)
    check_largest([record], replace(PLAIN, scale=(1.0, 28.0), crop=(64, 64)), OWN_SIZE)


def test_images_larger_than_that_are_let_through_at_their_own_size():
    check_largest([record_of(rectangle((2, 9000), 0, 0, 1, 1))], PLAIN, OWN_SIZE)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("scale", (0.0, 1.0)),
        ("scale", (2.0, 1.0)),
        ("scale", (1.0, 101.0)),
        ("scale", (0.009, 1.0)),
        ("scale", (1.0, float("nan"))),
        ("crop", (0, 5)),
        ("horizontal_flip", 1.5),
        ("hue", 0.6),
        ("min_pixels", 0),
        ("scale_of", ScaleOf.CROP),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting: str, value: object):
    with pytest.raises(ConfigError, match=setting):
        Augmentation(**{setting: value})  # pyright: ignore[reportArgumentType]
