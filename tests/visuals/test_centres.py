"""The pole of inaccessibility, on shapes whose middle is plain."""

import numpy as np
import pytest

from thingstuff.visuals.centres import deepest, distances
from thingstuff.visuals.shapes import Shape


def shape_of(crop: np.ndarray, left: int = 0, top: int = 0) -> Shape:
    return Shape(0, crop.astype(bool), left, top, (0, 0, 0))


def test_distances_are_euclidean_and_count_from_the_first_cell_outside():
    inside = np.ones((5, 5), bool)
    inside[0, 0] = False
    found = distances(inside)
    assert found[0, 0] == 0
    assert found[2, 2] == pytest.approx(np.sqrt(8))  # to the corner cell; the border is 3 away
    assert found[1, 1] == pytest.approx(np.sqrt(2))
    assert found[4, 2] == 1
    assert distances(np.zeros((2, 3), bool)).max() == 0


def test_distances_equal_those_to_every_cell_outside(tmp_path):
    random = np.random.default_rng(0)
    inside = random.random((17, 23)) < 0.8
    padded = np.pad(inside, 1)
    ys, xs = np.nonzero(~padded)
    y, x = np.mgrid[: padded.shape[0], : padded.shape[1]]
    expected = np.sqrt(((y[..., None] - ys) ** 2 + (x[..., None] - xs) ** 2).min(axis=-1))[1:-1, 1:-1]
    np.testing.assert_allclose(distances(inside), expected)


def test_the_centre_of_a_disk_is_its_middle():
    y, x = np.ogrid[-40:41, -40:41]
    x, y = deepest(shape_of(x * x + y * y <= 1600, left=100, top=200))
    assert max(abs(x - 140), abs(y - 240)) <= 2  # 81 pixels on a grid of cells of two


def test_the_centre_of_a_ring_lies_on_the_ring():
    y, x = np.ogrid[-40:41, -40:41]
    ring = (x * x + y * y <= 1600) & (x * x + y * y >= 900)
    x, y = deepest(shape_of(ring))
    assert ring[y, x]


def test_the_centre_of_an_l_lies_in_its_corner():
    crop = np.zeros((100, 100), bool)
    crop[:, :20] = True
    crop[80:] = True
    x, y = deepest(shape_of(crop))
    assert x < 25
    assert y > 75


def test_a_line_too_thin_for_the_grid_still_has_a_centre():
    crop = np.zeros((500, 500), bool)
    crop[:, 3] = True
    x, y = deepest(shape_of(crop))
    assert (x, 200 < y < 300) == (3, True)
