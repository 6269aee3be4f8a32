"""What happens to items that share all their codes: one more code tells them apart, or some of them move to codes that are free.

TIGER, section 3.1, appends the collision code. LETTER (Wang et al. 2024, arXiv 2405.07314) and its successors re-assign the last code
instead, so that IDs are unique without one more code to write.
Shape letters: I items, E input width, L levels, K codebook size of a level, n items that are to move.
"""

import math

import torch
from torch import Tensor

from data.schemas import UserError
from modules.tokenizer.base import ItemTokenizer

POLICIES = ("extra_code", "reassign", "none")
"""Append a collision code; move items to free codes; leave several items to an ID, listed by popularity."""
CHUNK = 1 << 24
"""Distances between items that are to move and codes that are held at once."""


def collision_codes(codes: Tensor, order: Tensor) -> Tensor:
    """0, 1, 2, ... [I] within each group of items with equal ``codes`` [I, L], in ascending ``order`` [I]; by sorting, never all pairs."""
    group = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
    for level in range(codes.shape[1]):  # re-numbering level by level keeps the key far from overflow at any L and K
        group = torch.unique(group * (int(codes[:, level].max()) + 1) + codes[:, level], return_inverse=True)[1]
    by_order = order.argsort()
    arranged = by_order[group[by_order].argsort(stable=True)]
    sizes = torch.bincount(group)
    starts = sizes.cumsum(0) - sizes
    result = torch.empty_like(group)
    result[arranged] = torch.arange(len(codes), device=codes.device) - starts.repeat_interleave(sizes)
    return result


@torch.no_grad()
def reassign_collisions(coder: ItemTokenizer, items: Tensor, codes: Tensor, order: Tensor) -> Tensor:
    """Unique codes [I, L]: of every group that shares ``codes`` [I, L] the first in ``order`` [I] stays, the others move.

    An item moves to the nearest code of the last level that is free behind its prefix. Where none is, it moves to its second nearest code
    of the level above and the nearest free one behind that, then to its third, and so on. Of two that want the same code at the same time
    the nearer one has it; where many items are to move (millions), those of the first chunk choose before the others.

    Args:
        coder: made the codes; says how far an item is from the others.
        items: [I, E] embeddings.
        codes: [I, L] int64.
        order: [I] distinct ranks that decide between equals.

    Raises:
        UserError: no code is left for an item, or there are more possible IDs than 64 bits can number.
    """
    sizes = coder.codebook_sizes
    if math.prod(sizes) >= 2**62:
        raise UserError(
            f"train.collision_policy = 'reassign' numbers all possible IDs, and {' x '.join(map(str, sizes))} are too many; "
            "set train.collision_policy = 'extra_code'"
        )
    moves = collision_codes(codes, order) > 0
    taken = _key(codes[~moves], sizes).sort().values
    result = codes.clone()
    waiting = moves.nonzero()[:, 0]
    waiting = waiting[order[waiting].argsort()]
    for chunk in waiting.split(max(1, CHUNK // max(sizes))):
        taken = _move(coder, items[chunk.to(items.device)].to(codes.device), result, chunk, taken)
    return result


def _move(coder: ItemTokenizer, items: Tensor, result: Tensor, rows: Tensor, taken: Tensor) -> Tensor:
    """Gives the items [n, E] in ``rows`` of ``result`` free codes, and returns all keys taken then, sorted."""
    sizes = coder.codebook_sizes
    last = len(sizes) - 1
    above = _nearest_first(coder, items, result[rows], last - 1) if last else None
    for rank in range(sizes[last - 1] if last else 1):
        codes = result[rows].clone()
        if above is not None:
            codes[:, last - 1] = above[:, rank]
        distances = coder.level_distances(items, codes, last)
        prefixes, prefix = torch.unique(_key(codes[:, :last], sizes[:last]), return_inverse=True)
        occupied = _occupied(prefixes, taken, sizes[last])
        left = torch.arange(len(rows), device=codes.device)
        while len(left):  # each round serves at least one of those who want a free code
            best = distances[left].masked_fill(occupied[prefix[left]], torch.inf).min(1)
            free = best.values.isfinite()
            asking, near, wanted = left[free], best.values[free], best.indices[free]
            if not len(asking):
                break
            # Rows stand in their order, and stable sorts leave it to decide between equals.
            by_distance = near.argsort(stable=True)
            place = prefix[asking] * sizes[last] + wanted
            by_place = by_distance[place[by_distance].argsort(stable=True)]
            first = torch.ones(len(asking), dtype=torch.bool, device=codes.device)
            first[1:] = place[by_place][1:] != place[by_place][:-1]
            won = by_place[first]
            winners = asking[won]
            result[rows[winners]] = torch.cat([codes[winners, :last], wanted[won].unsqueeze(1)], dim=1)
            occupied.view(-1)[place[won]] = True
            lost = torch.ones(len(rows), dtype=torch.bool, device=codes.device)
            lost[winners] = False
            left = left[lost[left]]
        served = torch.ones(len(rows), dtype=torch.bool, device=codes.device)
        served[left] = False
        taken = torch.cat([taken, _key(result[rows[served]], sizes)]).sort().values
        if not len(left):
            return taken
        rows, items, above = rows[left], items[left], None if above is None else above[left]
    raise UserError(
        f"train.collision_policy = 'reassign' found no free code for {len(rows)} items; raise train.vae_codebook_size or set "
        "train.collision_policy = 'extra_code'"
    )


def _nearest_first(coder: ItemTokenizer, items: Tensor, codes: Tensor, level: int) -> Tensor:
    """[n, K]: the codes of a level, each item's own first, then the others by their distance."""
    distances = coder.level_distances(items, codes, level)
    return distances.scatter(1, codes[:, level : level + 1], -torch.inf).argsort(dim=1, stable=True)


def _occupied(prefixes: Tensor, taken: Tensor, size: int) -> Tensor:
    """[P, K] bool: which last codes behind each of the sorted ``prefixes`` [P] are among the sorted keys ``taken``."""
    first, after = torch.searchsorted(taken, prefixes * size), torch.searchsorted(taken, (prefixes + 1) * size)
    counts = after - first
    behind = torch.arange(len(prefixes), device=taken.device).repeat_interleave(counts)
    position = torch.arange(len(behind), device=taken.device) - (counts.cumsum(0) - counts)[behind]
    table = torch.zeros(len(prefixes), size, dtype=torch.bool, device=taken.device)
    table[behind, taken[first[behind] + position] - prefixes[behind] * size] = True
    return table


def _key(codes: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """[n, t] codes -> [n], one number for each possible tuple."""
    key = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
    for level in range(codes.shape[1]):
        key = key * sizes[level] + codes[:, level]
    return key
