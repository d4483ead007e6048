"""Copy-Paste: what is pasted covers what was there, and crowds, stuff and slivers are never pasted."""

import numpy as np
import pytest
import torch

from thingstuff.data.copy_paste import paste_objects
from thingstuff.data.transforms import Sample, tight_boxes
from thingstuff.structures.preprocessing import Targets

THING = np.array([True])


def sample(*rectangles: tuple[int, int, int, int], value: int, size: tuple[int, int] = (4, 6), crowd: bool = False) -> Sample:
    masks = torch.zeros(len(rectangles), *size, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, rectangles, strict=True):
        mask[top:bottom, left:right] = True
    count = len(rectangles)
    targets = Targets(
        7, size, tight_boxes(masks), torch.zeros(count, dtype=torch.int64), masks, torch.full((count,), crowd, dtype=torch.bool)
    )
    return Sample(np.full((*size, 3), value, np.uint8), targets)


def test_a_pasted_object_brings_its_pixels_and_takes_them_from_the_masks_below():
    below, above = sample((0, 0, 4, 3), value=10), sample((1, 2, 3, 5), value=200)
    joined = paste_objects(below, above, THING, 1, np.random.default_rng(0))
    # below: 4 x 3 = 12 pixels, of which column 2 of rows 1 and 2 is covered; above: 2 x 3 = 6
    assert joined.targets.masks.sum(dim=(1, 2)).tolist() == [10, 6]
    assert joined.targets.boxes.tolist() == [[0, 0, 3, 4], [2, 1, 5, 3]]
    assert not (joined.targets.masks[0] & joined.targets.masks[1]).any()
    assert (joined.image[:, :, 0] == 200).sum() == 6
    assert (joined.image[1:3, 2:5] == 200).all()
    assert joined.targets.image_id == 7
    assert (below.image == 10).all(), "the sample itself must not change: it may be cached"


def test_an_object_of_which_too_little_is_left_is_dropped():
    below, above = sample((1, 2, 2, 6), (0, 0, 4, 2), value=10), sample((1, 3, 3, 6), value=200)
    joined = paste_objects(below, above, THING, 2, np.random.default_rng(0))
    # of the first, 1 x 4 pixels, one is left; the second is not met
    assert joined.targets.masks.sum(dim=(1, 2)).tolist() == [8, 6]


@pytest.mark.parametrize(
    ("other", "is_thing", "min_pixels"),
    [
        (sample(value=200), THING, 1),  # nothing to paste
        (sample((0, 0, 2, 2), value=200, crowd=True), THING, 1),
        (sample((0, 0, 2, 2), value=200), np.array([False]), 1),  # stuff
        (sample((0, 0, 2, 2), value=200), THING, 5),  # 4 pixels are too few
    ],
)
def test_without_an_object_to_paste_the_sample_stays_as_it_is(other: Sample, is_thing: np.ndarray, min_pixels: int):
    below = sample((0, 0, 4, 3), value=10)
    assert paste_objects(below, other, is_thing, min_pixels, np.random.default_rng(0)) is below


def test_a_larger_view_is_cut_and_a_smaller_one_fills_its_corner():
    below = sample((0, 0, 2, 2), value=10, size=(4, 6))
    larger = paste_objects(below, sample((2, 3, 9, 9), value=200, size=(10, 12)), THING, 1, np.random.default_rng(0))
    assert larger.targets.boxes.tolist() == [[0, 0, 2, 2], [3, 2, 6, 4]]
    smaller = paste_objects(below, sample((1, 1, 2, 3), value=200, size=(2, 3)), THING, 1, np.random.default_rng(0))
    assert smaller.targets.boxes[1].tolist() == [1, 1, 3, 2]
    assert smaller.targets.size == (4, 6)


def test_the_same_random_state_pastes_the_same_objects():
    below, above = (
        sample(value=10),
        sample(*((row, column, row + 1, column + 1) for row in range(4) for column in range(6)), value=9),
    )
    first, again, other = (paste_objects(below, above, THING, 1, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.targets.masks, again.targets.masks)
    assert 1 <= len(first.targets) < 24
    assert first.targets.masks.shape != other.targets.masks.shape or not torch.equal(first.targets.masks, other.targets.masks)
