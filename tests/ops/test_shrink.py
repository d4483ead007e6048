"""Masks as shares of cells, by hand."""

import torch

from thingstuff.ops.shrink import shrink_masks


def test_a_cell_has_the_share_of_it_that_is_covered() -> None:
    mask = torch.zeros(1, 7, 9, dtype=torch.bool)
    mask[0, :2, :6] = True
    share = shrink_masks(mask, (2, 3), 4)
    assert share[0].tolist() == [[0.5, 0.25, 0.0], [0.0, 0.0, 0.0]]


def test_an_object_smaller_than_a_cell_stays() -> None:
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[0, 31, 31] = True
    assert shrink_masks(mask, (16, 24), 4).sum() == 1 / 16


def test_no_mask_is_no_target() -> None:
    assert shrink_masks(torch.zeros(0, 8, 8, dtype=torch.bool), (2, 2), 4).shape == (0, 2, 2)
