"""Balanced assignment of residuals to codes by Sinkhorn-Knopp: over a batch in training, and among the items that collide.

Cuturi (2013), "Sinkhorn distances", arXiv 1306.0895: alternate scaling of rows and columns of exp(-d / eps). Caron et al. (2020, SwAV),
arXiv 2006.09882, balance the assignments of a batch so; LC-Rec (Zheng et al. 2024, arXiv 2311.09049, equation 5) those of the last level.
Shape letters: G groups that are balanced apart, N rows of a group, K codes, I items, L levels, M colliding items, D width.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from init.kmeans import ALONE, Shard, widest

ITERATIONS = 50
"""In training, as LC-Rec has it; a result that is not yet exactly even is even enough to learn from."""

ITERATIONS_AT_THE_END = 300
"""For the items that collide, once: few rows, whose codes have to rise far in price."""

CELLS = 2**22
"""Distances that are held at once while collisions are spread: 32 MiB in float64."""


@torch.no_grad()
def balanced_codes(
    distances: Tensor,
    epsilon: float,
    shard: Shard = ALONE,
    real: Tensor | None = None,
    free: Tensor | None = None,
    iterations: int = ITERATIONS,
) -> Tensor:
    """The code [G, N] of every row, such that each group uses its codes evenly.

    A code gets N / K rows of the transport plan; where there are fewer rows than codes at most one, which is as much as evenness can mean
    then (equal shares would send two rows to the far ends of the codebook). Each row takes the code that holds most of its mass, so rows
    that are equal take equal codes.

    Args:
        distances: [G, N, K], at least 0.
        epsilon: softness, in units of the group's mean distance. Small ones follow the distances more closely and need more iterations
            than there are: below 0.02 the codes of a batch hardly grow more even.
        shard: processes that hold a part of every group's rows each; evenness is that of all rows together.
        real: [G, N] bool, False where a row only fills its group up; None where all are real.
        free: [G, K] bool, False where a code is not to be used; None where all are free. At least one of each group is.
        iterations: of the alternate scaling.
    """
    precise = distances.to(widest(distances.device))
    rows = torch.ones_like(precise[:, :, 0]) if real is None else real.to(precise)
    columns = torch.ones_like(precise[:, 0]) if free is None else free.to(precise)
    tiny = torch.finfo(precise.dtype).tiny ** 0.5
    sums = shard.total(torch.stack([rows.sum(1), (precise.mean(2) * rows).sum(1)]))  # [2, G]
    count, mean = sums[0], (sums[1] / sums[0]).clamp_min(tiny)
    nearest = precise.masked_fill(columns[:, None] == 0, torch.inf).amin(2, keepdim=True)
    kernel = (-(precise - nearest) / (epsilon * mean[:, None, None])).exp().clamp(tiny, 1) * rows[:, :, None] * columns[:, None]
    share = (count / columns.sum(1))[:, None]  # [G, 1]
    by_column = columns.clone()
    for _ in range(iterations):
        by_row = rows / torch.einsum("gnk,gk->gn", kernel, by_column).clamp_min(tiny)
        held = shard.total(torch.einsum("gnk,gn->gk", kernel, by_row))
        even = columns * share.clamp_min(1) / held.clamp_min(tiny)
        by_column = torch.where(share < 1, even.clamp_max(1), even)
    return (kernel * by_column[:, None]).max(2).indices


def colliding(codes: Tensor) -> Tensor:
    """The rows [M] of ``codes`` [I, L] that are not the only ones of their kind."""
    _, group, counts = codes.unique(dim=0, return_inverse=True, return_counts=True)
    return (counts[group] > 1).nonzero().squeeze(1)


@torch.no_grad()
def spread_collisions(
    codes: Tensor, rows: Tensor, residuals: Tensor, distances: Callable[[Tensor], Tensor], num_codes: int, epsilon: float
) -> Tensor:
    """``codes`` [I, L] with other last codes for the items that collide, chosen by ``balanced_codes`` among those of the same prefix.

    LC-Rec balances every group of colliding items over all last codes, again and again, because that makes new collisions. Here the codes
    that a prefix has given to items without a collision are not free, so one pass makes none, and all other items keep their IDs.
    Items with (nearly) the same residual still share a code, as do items of a prefix with too few free ones.

    Args:
        codes: [I, L] int64.
        rows: [M], those that collide.
        residuals: [M, D], theirs at the last level.
        distances: squared distances [.., K] of residuals [.., D] to the last level's codewords.
        num_codes: K.
        epsilon: see ``balanced_codes``.
    """
    if not len(rows):
        return codes
    result, prefixes = codes.clone(), _prefixes(codes)
    settled = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
    settled[rows] = False
    for members in _groups(prefixes[rows], num_codes):  # [G, N] indices into rows, -1 where filled up
        real = members >= 0
        local = torch.full((len(codes),), -1, device=codes.device)
        local[prefixes[rows[members[:, 0]]]] = torch.arange(len(members), device=codes.device)
        others = (settled & (local[prefixes] >= 0)).nonzero().squeeze(1)
        free = torch.ones(len(members), num_codes, dtype=torch.bool, device=codes.device)
        free[local[prefixes[others]], codes[others, -1]] = False
        squared = distances(residuals[members.clamp_min(0)])
        chosen = balanced_codes(squared, epsilon, real=real, free=free, iterations=ITERATIONS_AT_THE_END)
        result[rows[members[real]], -1] = chosen[real]
    return result


def _prefixes(codes: Tensor) -> Tensor:
    """A number below I for all codes but the last, equal where they are equal, of each item [I]."""
    if codes.shape[1] == 1:
        return torch.zeros_like(codes[:, 0])
    return codes[:, :-1].unique(dim=0, return_inverse=True)[1]


def _groups(owner: Tensor, num_codes: int) -> Iterator[Tensor]:
    """Indices of equal ``owner`` [M] together, as [G, N] filled up with -1, in portions of bounded size.

    Groups come in the order of their size, so that little is filled up; one too large for a portion is cut.
    """
    limit = max(CELLS // num_codes, 1)
    order = owner.argsort(stable=True)
    counts = owner.unique(return_counts=True)[1]
    sizes = [min(limit, count - start) for count in counts.tolist() for start in range(0, count, limit)]
    starts = torch.tensor([0, *sizes]).cumsum(0)[:-1].tolist()
    waiting = sorted(zip(sizes, starts))
    while waiting:
        width, taken = 0, 0
        while taken < len(waiting) and (taken == 0 or waiting[taken][0] * (taken + 1) <= limit):
            width, taken = waiting[taken][0], taken + 1
        portion, waiting = waiting[:taken], waiting[taken:]
        size, start = torch.tensor(portion, device=owner.device).T.unsqueeze(2)
        position = torch.arange(width, device=owner.device)
        members = order[(start + position).clamp_max(len(order) - 1)]
        yield torch.where(position < size, members, -1)
