"""Masks at points: bilinear by hand, against grid_sample, and where uncertain points fall."""

import pytest
import torch
from torch.nn import functional

from thingstuff.ops import points as module
from thingstuff.ops.points import _gathered, sample_points, uncertain_points


def test_values_at_centres_between_them_and_beyond_the_edge():
    maps = torch.tensor([[[1.0, 3.0], [5.0, 7.0]]])
    points = torch.tensor([[[0.25, 0.25], [0.5, 0.25], [0.5, 0.5], [0.0, 0.25], [1.5, 0.5]]])
    # a centre; half way to its right; the middle of all four; half of a cell at the edge; outside
    assert sample_points(maps, points).tolist() == [[1.0, 2.0, 4.0, 0.5, 0.0]]


def test_points_of_a_larger_area_count_what_is_beyond_the_map_as_zero():
    mask = torch.tensor([[[True, True]]])  # 1 x 2 pixels of an area of 2 x 4
    points = torch.tensor([[[0.25, 0.25], [0.375, 0.25], [0.75, 0.25], [0.25, 0.75]]])
    assert sample_points(mask, points, (2, 4)).tolist() == [[1.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("shared", [True, False])
def test_it_equals_grid_sample_forward_and_backward(shared):
    torch.manual_seed(0)
    maps = torch.randn(3, 5, 7, requires_grad=True)
    points = torch.rand(1 if shared else 3, 20, 2)
    found = sample_points(maps, points)
    grid = 2 * points.expand(3, -1, -1)[:, None] - 1
    expected = functional.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, 0]
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    given, wanted = (torch.autograd.grad((values * direction).sum(), maps)[0] for values in (found, expected))
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("shared", [True, False])
def test_the_way_of_a_gpu_finds_the_same(shared):
    torch.manual_seed(0)
    maps = torch.randn(3, 5, 7)
    points = 2 * torch.rand(1 if shared else 3, 50, 2) - 0.5  # many of them outside
    area = torch.tensor([9.0, 6.0])  # x y, larger than the maps
    torch.testing.assert_close(sample_points(maps, points, (6, 9)), _gathered(maps, points * area - 0.5))


@pytest.mark.parametrize("shared", [True, False])
def test_booleans_are_read_in_pieces_alike(shared, monkeypatch):
    torch.manual_seed(0)
    masks = torch.rand(5, 4, 6) > 0.5
    points = torch.rand(1 if shared else 5, 20, 2)
    monkeypatch.setattr(module, "CELLS", 50)  # two masks at a time
    torch.testing.assert_close(sample_points(masks, points, (5, 8)), sample_points(masks.float(), points, (5, 8)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("shared", [True, False])
def test_rows_of_points_may_share_a_map(shared, dtype, monkeypatch):
    torch.manual_seed(0)
    maps = (torch.rand(3, 4, 6) > 0.5).to(dtype)
    which = torch.tensor([2, 0, 0, 2, 2])
    points = torch.rand(1 if shared else 5, 20, 2)
    monkeypatch.setattr(module, "CELLS", 50)  # two rows at a time
    expected = sample_points(maps[which], points, (5, 8))
    torch.testing.assert_close(sample_points(maps, points, (5, 8), which), expected)
    torch.testing.assert_close(_gathered(maps, points * torch.tensor([8.0, 5.0]) - 0.5, which), expected)
    assert sample_points(maps, points[:0], (5, 8), which[:0]).shape == (0, 20)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_no_map_has_no_value(dtype):
    assert sample_points(torch.zeros(0, 4, 4, dtype=dtype), torch.rand(0, 9, 2)).shape == (0, 9)
    assert sample_points(torch.zeros(0, 4, 4, dtype=dtype), torch.rand(1, 9, 2)).shape == (0, 9)


@pytest.mark.parametrize("size", [(2, 0, 5), (2, 4, 0), (0, 0, 0)])
def test_a_map_without_cells_is_zero_everywhere(size):
    values = sample_points(torch.zeros(size, dtype=torch.bool), torch.rand(1, 7, 2), (4, 4))
    assert values.shape == (size[0], 7)
    assert not values.any()


def test_most_points_are_where_the_logits_are_near_zero_and_the_rest_anywhere():
    torch.manual_seed(0)
    edge = (torch.arange(100.0) - 49.5).expand(1, 100, 100)  # left of the middle surely out, right of it surely in
    points = uncertain_points(lambda points: sample_points(edge, points), 1, 400, 3.0, 0.75, like=edge)
    assert points.shape == (1, 400, 2)
    distance = (points[0, :, 0] - 0.5).abs()
    # the 300 nearest of 1200 even ones are those up to an eighth from the edge, but for a few where the map fades out
    assert (distance[:300] < 0.13).float().mean() > 0.95
    assert distance[300:].max() > 0.4
