"""Multi-scale deformable attention against a loop that reads like the equation, forward and backward, and by hand."""

import pytest
import torch

from thingstuff.ops import deformable_attention as module
from thingstuff.ops.deformable_attention import by_grid_sample, deformable_attention

SIZES = ((2, 3), (4, 6), (5, 1))


def slow(values, sizes, places, weights):
    """Equation 3, sample by sample, with bilinear interpolation from the four cells around it."""
    batch, queries, heads, levels, points, _ = places.shape
    starts = [sum(height * width for height, width in sizes[:level]) for level in range(levels)]
    result = []
    for image in range(batch):
        for query in range(queries):
            for head in range(heads):
                total = torch.zeros(values.shape[-1], dtype=values.dtype)
                for level, (height, width) in enumerate(sizes):
                    for point in range(points):
                        x, y = places[image, query, head, level, point] * torch.tensor([width, height]) - 0.5
                        for row in (int(y.floor()), int(y.floor()) + 1):
                            for column in (int(x.floor()), int(x.floor()) + 1):
                                if 0 <= row < height and 0 <= column < width:
                                    share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                                    cell = values[image, starts[level] + row * width + column, head]
                                    total = total + weights[image, query, head, level, point] * share * cell
                result.append(total)
    return torch.stack(result).unflatten(0, (batch, queries, heads))


def example(dtype=torch.float64, batch=2, queries=5, heads=2, points=3, channels=4):
    random = torch.Generator().manual_seed(0)
    cells = sum(height * width for height, width in SIZES)
    values = torch.randn(batch, cells, heads, channels, generator=random, dtype=dtype)
    places = torch.rand(batch, queries, heads, len(SIZES), points, 2, generator=random, dtype=dtype) * 1.6 - 0.3  # some outside
    weights = torch.rand(batch, queries, heads, len(SIZES), points, generator=random, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (values, places, weights)]


def test_a_single_sample_leaves_its_place_as_it_was():
    values, places, weights = (torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5]), torch.tensor([1.0]))
    values, places, weights = values.view(1, 2, 1, 1), places.view(1, 1, 1, 1, 1, 2), weights.view(1, 1, 1, 1, 1)
    values.requires_grad_()
    found = deformable_attention(values, [(1, 2)], places, weights)
    found.sum().backward()
    assert found.item() == 2  # halfway between 1 and 3
    assert places.flatten().tolist() == [0.5, 0.5]
    assert values.grad is not None
    assert values.grad.flatten().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("way", [deformable_attention, by_grid_sample])
def test_it_equals_the_loop_forward_and_backward(way):
    values, places, weights = example()
    expected = slow(values, SIZES, places, weights)
    found = way(values, SIZES, places, weights)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * direction).sum(), (values, places, weights))
    given = torch.autograd.grad((found * direction).sum(), (values, places, weights))
    for ours, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_finite_differences():
    values, places, weights = example(batch=1, queries=2, heads=1, points=2, channels=2)
    assert torch.autograd.gradcheck(lambda v, p, w: deformable_attention(v, SIZES, p, w), (values, places, weights))


def test_the_middle_of_four_cells_is_their_mean_and_outside_is_nothing():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 4, 1, 1)  # a map of 2 x 2
    places = torch.tensor([[0.5, 0.5], [0.25, 0.25], [0.0, 0.0], [-0.25, 0.5]]).reshape(1, 4, 1, 1, 1, 2)
    found = deformable_attention(values, [(2, 2)], places, torch.full((1, 4, 1, 1, 1), 2.0))
    # twice: the mean of all; the first cell; a quarter of it at the map's corner; one cell beyond the edge
    assert found.flatten().tolist() == [6.0, 2.0, 0.5, 0.0]


def test_it_works_in_pieces_alike(monkeypatch):
    values, places, weights = example()
    whole = deformable_attention(values, SIZES, places, weights)
    gradients = torch.autograd.grad(whole.sum(), (values, places, weights))
    monkeypatch.setattr(module, "TERMS", 1)  # one query at a time
    pieces = deformable_attention(values, SIZES, places, weights)
    torch.testing.assert_close(pieces, whole)
    for ours, theirs in zip(torch.autograd.grad(pieces.sum(), (values, places, weights)), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_places_that_are_not_finite_read_nothing():
    values, places, weights = (tensor.detach() for tensor in example())
    broken = places.clone()
    broken[0, 0] = float("nan")
    broken[0, 1] = float("inf")
    broken[0, 2] = 1e30
    found = deformable_attention(values, SIZES, broken, weights)
    assert (found[0, :3] == 0).all()
    torch.testing.assert_close(found[:, 3:], deformable_attention(values, SIZES, places, weights)[:, 3:])


def test_sums_of_16_bit_values_are_made_in_32():
    values, places, weights = (tensor.detach() for tensor in example(torch.float32))
    half = deformable_attention(values.bfloat16(), SIZES, places, weights)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), deformable_attention(values, SIZES, places, weights), atol=0.05, rtol=0.05)


class Attend(torch.nn.Module):
    def forward(self, values, places, weights):
        return deformable_attention(values, SIZES, places, weights)


def test_it_exports():
    arguments = tuple(tensor.detach() for tensor in example(torch.float32))
    exported = torch.export.export(Attend(), arguments).module()
    torch.testing.assert_close(exported(*arguments), Attend()(*arguments))
