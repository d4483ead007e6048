"""Hungarian matching: by hand, against all permutations, and with costs that are no numbers."""

from itertools import permutations

import pytest
import torch

from thingstuff.ops.matching import match_hungarian


def pairs_of(costs):
    [(queries, targets)] = match_hungarian([torch.tensor(costs, dtype=torch.float32)])
    return list(zip(queries.tolist(), targets.tolist(), strict=True))


def test_the_least_total_counts_and_not_the_least_pair():
    # 1 + 9 = 10 with the cheapest pair, 2 + 3 = 5 without it
    assert pairs_of([[1.0, 2.0], [3.0, 9.0]]) == [(0, 1), (1, 0)]


def test_queries_without_a_target_and_targets_without_a_query():
    assert pairs_of([[5.0], [1.0], [3.0]]) == [(1, 0)]
    assert pairs_of([[5.0, 1.0, 3.0]]) == [(0, 1)]


def test_no_target_is_no_pair():
    [(queries, targets)] = match_hungarian([torch.zeros(4, 0)])
    assert len(queries) == len(targets) == 0
    assert queries.dtype == torch.int64
    assert match_hungarian([]) == []


def test_tables_of_several_sizes_are_matched_each_by_itself():
    found = match_hungarian([torch.tensor([[2.0, 1.0]]), torch.zeros(3, 0), torch.tensor([[2.0], [1.0]])])
    assert [(queries.tolist(), targets.tolist()) for queries, targets in found] == [([0], [1]), ([], []), ([1], [0])]


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_least_of_all_assignments(seed):
    costs = torch.rand(5, 4, generator=torch.Generator().manual_seed(seed)) - 0.5
    [(queries, targets)] = match_hungarian([costs])
    least = min(sum(costs[query, target] for target, query in enumerate(chosen)) for chosen in permutations(range(5), 4))
    torch.testing.assert_close(costs[queries, targets].sum(), least)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_cost_that_is_not_finite_is_avoided_where_it_can_be(broken):
    # the pairs (0, 0) and (1, 1) would cost 100 + 100, the others one that is broken
    assert pairs_of([[100.0, broken], [-100.0, 100.0]]) == [(0, 0), (1, 1)]
    assert pairs_of([[broken, broken], [broken, broken]]) == [(0, 0), (1, 1)]
    assert pairs_of([[broken, 1.0], [broken, 2.0]]) == [(0, 1), (1, 0)]
