"""Boundaries of masks, against a slow loop and against each other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thingstuff.errors import ConfigError
from thingstuff.ops.boundary import boundary_of, boundary_of_segments, boundary_width, inner_boundary


def slow_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """A 3 x 3 square erodes `width` times, with nothing set outside; what it took away is the boundary."""
    eroded = mask
    for _ in range(width):
        padded = np.pad(eroded, 1)
        shifted = [padded[y : y + mask.shape[0], x : x + mask.shape[1]] for y in range(3) for x in range(3)]
        eroded = np.logical_and.reduce(shifted)
    return mask & ~eroded


def test_the_width_is_a_share_of_the_diagonal_and_at_least_one_pixel():
    assert boundary_width((480, 640)) == 16  # the diagonal is 800
    assert boundary_width((300, 400), 0.005) == 2  # 2.5 rounds to even, as Python and the paper's code do
    assert boundary_width((3, 4)) == 1


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float):
    with pytest.raises(ConfigError, match="share of the image's diagonal"):
        boundary_width((10, 10), share)


def test_the_boundary_of_a_square_is_its_frame_and_the_edge_of_the_image_is_an_outline():
    assert inner_boundary(np.ones((4, 5), bool), 1).astype(int).tolist() == [
        [1, 1, 1, 1, 1],
        [1, 0, 0, 0, 1],
        [1, 0, 0, 0, 1],
        [1, 1, 1, 1, 1],
    ]


@given(
    size=st.tuples(st.integers(0, 24), st.integers(0, 24)),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
    filled=st.sampled_from([0.5, 0.95, 0.995]),
)
def test_any_mask_has_the_boundary_that_repeated_erosion_gives(size: tuple[int, int], width: int, seed: int, filled: float):
    mask = np.random.default_rng(seed).random(size) < filled
    expected = slow_boundary(mask, width)
    np.testing.assert_array_equal(inner_boundary(mask, width), expected)
    np.testing.assert_array_equal(inner_boundary(torch.from_numpy(mask), width).numpy(), expected)


@given(size=st.tuples(st.integers(1, 24), st.integers(1, 24)), share=st.sampled_from([0.02, 0.1, 0.2]), seed=st.integers(0, 99))
def test_a_map_of_segments_has_the_boundaries_of_each(size: tuple[int, int], share: float, seed: int):
    random = np.random.default_rng(seed)
    ids = random.integers(0, 3, size)
    ids[: random.integers(size[0] + 1), : random.integers(size[1] + 1)] = 7
    expected = np.zeros(size, bool)
    for segment in np.unique(ids):
        expected |= boundary_of(ids == segment, share)
    np.testing.assert_array_equal(boundary_of_segments(ids, share), expected)
    np.testing.assert_array_equal(boundary_of_segments(torch.from_numpy(ids), share).numpy(), expected)


def test_a_mask_stays_as_it_was():
    mask = np.ones((9, 9), bool)
    boundary_of(mask)
    assert mask.all()
