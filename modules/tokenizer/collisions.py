"""What happens to items that share all their codes: one more code tells them apart, or some of them move to codes that are free.

TIGER, section 3.1, appends the collision code. LETTER (Wang et al. 2024, arXiv 2405.07314) and its successors re-assign the last code
instead, so that IDs are unique without one more code to write.
Shape letters: I items, E input width, L levels, K codebook size of a level, n items that are to move.
"""

import math

import torch
from torch import Tensor

from data.schemas import UserError
from modules.tokenizer.coder import Coder

POLICIES = ("extra_code", "reassign", "none")
"""Append a collision code; move items to free codes; leave several items to an ID, listed by popularity."""
CHUNK = 65536


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
def reassign_collisions(coder: Coder, items: Tensor, codes: Tensor, order: Tensor) -> Tensor:
    """Unique codes [I, L]: of every group that shares ``codes`` [I, L] the first in ``order`` [I] stays, the others move.

    An item moves to the nearest code of the last level that is free behind its prefix. Where none is, it moves to its second nearest code
    of the level above and the nearest free one behind that, then to its third, and so on. Of two that want the same code the nearer one has
    it.

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
    for chunk in waiting.split(CHUNK):
        taken = _move(coder, items[chunk.to(items.device)].to(codes.device), result, chunk, taken)
    return result


def _move(coder: Coder, items: Tensor, result: Tensor, rows: Tensor, taken: Tensor) -> Tensor:
    """Gives the items [n, E] in ``rows`` of ``result`` free codes, and returns all keys taken then, sorted."""
    sizes = coder.codebook_sizes
    last = len(sizes) - 1
    above = coder.level_distances(items, result[rows], last - 1).argsort(dim=1, stable=True) if last else None
    for rank in range(sizes[last - 1] if last else 1):
        codes = result[rows].clone()
        if above is not None and rank:
            codes[:, last - 1] = above[:, rank]
        distances = coder.level_distances(items, codes, last)
        first_key = _key(codes[:, :last], sizes[:last]) * sizes[last]
        keys = first_key.unsqueeze(1) + torch.arange(sizes[last], device=codes.device)
        left = torch.ones(len(rows), dtype=torch.bool, device=codes.device)
        while True:  # each round serves at least one of those who want a free code
            distances = distances.masked_fill(torch.isin(keys, taken), torch.inf)
            best = distances.min(1)
            served = left & best.values.isfinite()
            if not bool(served.any()):
                break
            wanted = keys.gather(1, best.indices.unsqueeze(1))[:, 0]
            asking = served.nonzero()[:, 0]  # rows stand in their order: stable sorts leave it to decide between equals
            asking = asking[best.values[asking].argsort(stable=True)]
            asking = asking[wanted[asking].argsort(stable=True)]
            first = torch.ones(len(asking), dtype=torch.bool, device=codes.device)
            first[1:] = wanted[asking][1:] != wanted[asking][:-1]
            winners = asking[first]
            result[rows[winners]] = torch.cat([codes[winners, :last], best.indices[winners].unsqueeze(1)], dim=1)
            taken = torch.cat([taken, wanted[winners]]).sort().values
            left[winners] = False
        if not bool(left.any()):
            return taken
        rows, items, above = rows[left], items[left], None if above is None else above[left]
    raise UserError(
        f"train.collision_policy = 'reassign' found no free code for {len(rows)} items; raise train.vae_codebook_size or set "
        "train.collision_policy = 'extra_code'"
    )


def _key(codes: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """[n, t] codes -> [n], one number for each possible tuple."""
    key = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
    for level in range(codes.shape[1]):
        key = key * sizes[level] + codes[:, level]
    return key
