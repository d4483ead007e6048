"""Which prediction answers for which target: one to one, at the least total cost (Kuhn, 1955; for networks that predict sets
Carion et al., 2020, arXiv:2005.12872, section 3.1)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def match_hungarian(
    costs: Sequence[Float[Tensor, "_ _"]],
) -> list[tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]]:
    """Of each table of costs (predictions x targets) the pairs of least total cost: predictions, rising, and their targets.

    As many pairs as there are predictions or targets, whichever is less. A cost that is not finite, as a network gives that has
    diverged, counts as worse than all finite ones together: such a pair is made only where no other is left. Nothing tells of one
    that was avoided, so costs must be added up in 32 bits, where those of a sound network are finite.
    """
    if not costs:
        return []
    # one way to the processor for all tables, and one back: each by itself would wait for the GPU
    together = torch.cat([cost.detach().float().flatten() for cost in costs]).cpu().numpy()
    parts = np.split(together, np.cumsum([cost.numel() for cost in costs])[:-1])
    tables = (part.reshape(tuple(cost.shape)) for part, cost in zip(parts, costs, strict=True))
    pairs = [_least_cost(table) for table in tables]
    found = torch.from_numpy(np.concatenate(pairs, axis=1)).to(costs[0].device)
    predictions, targets = (side.split([len(rows) for rows, _ in pairs]) for side in found)
    return list(zip(predictions, targets, strict=True))


def _least_cost(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.optimize import linear_sum_assignment  # takes long to import and only training needs it

    finite = np.isfinite(table)
    if not finite.all():
        known = table[finite].astype(np.float64)
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        table = np.where(finite, table, high + (high - low + 1) * min(table.shape))
    rows, columns = linear_sum_assignment(table)
    return rows.astype(np.int64), columns.astype(np.int64)
