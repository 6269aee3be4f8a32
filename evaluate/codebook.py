"""Health of the codebooks: how many codes are in use, how evenly, how many items share their codes; and collapse, named.

Usage and entropy are alarms, not selectors: a codebook can look healthy and still make poor semantic IDs.
Shape letters: I items, L levels, K codebook size, G distinct code tuples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

COLLAPSE_BELOW = 0.05
"""A level that uses a smaller share of its codes has collapsed."""


class CodebookHealth(NamedTuple):
    """What a table of codes says about the codebooks behind it."""

    usage: list[float]  # per level, share of the codes in use, 0..1
    perplexity: list[float]  # per level, exp(entropy of the code frequencies), 1..K
    collision_rate: float  # (items - distinct tuples) / items
    largest_group: int  # most items that share one tuple; 1 = no collision


def codebook_usage(codes: Tensor, sizes: Sequence[int]) -> list[float]:
    """Share of each level's codes that at least one item uses.

    Args:
        codes: [I, L] int64 without the collision code.
        sizes: K of each level.

    Returns:
        L values in 0..1.
    """
    return [(counts > 0).double().mean().item() for counts in code_counts(codes, sizes)]


def codebook_perplexity(codes: Tensor, sizes: Sequence[int]) -> list[float]:
    """exp(entropy) of each level's code frequencies: the number of equally used codes that would be as even.

    Args:
        codes: [I, L] int64 without the collision code.
        sizes: K of each level.

    Returns:
        L values in 1..K.
    """
    frequencies = [counts.double() / len(codes) for counts in code_counts(codes, sizes)]
    return [torch.special.entr(p).sum().exp().item() for p in frequencies]


def collision_groups(codes: Tensor) -> Tensor:
    """How many items share each distinct tuple, singles included.

    Args:
        codes: [I, L] int64.

    Returns:
        [G] int64, largest first; sums to I.
    """
    return codes.unique(dim=0, return_counts=True)[1].sort(descending=True).values


def collision_rate(codes: Tensor) -> float:
    """(I - G) / I: the share of items that are not the first to have their tuple, before any collision code.

    Args:
        codes: [I, L] int64.
    """
    if not len(codes):
        raise ValueError("codes [I, L] hold no items; nothing can be said about the codebooks")
    return (len(codes) - len(collision_groups(codes))) / len(codes)


def codebook_health(codes: Tensor, sizes: Sequence[int]) -> CodebookHealth:
    """All of the above for one table of codes.

    Args:
        codes: [I, L] int64 without the collision code.
        sizes: K of each level.

    Raises:
        ValueError: no items, another number of levels than sizes, or a code outside its codebook.
    """
    usage, perplexity = codebook_usage(codes, sizes), codebook_perplexity(codes, sizes)
    groups = collision_groups(codes)
    return CodebookHealth(usage, perplexity, (len(codes) - len(groups)) / len(codes), int(groups[0]))


def collapse_warnings(health: CodebookHealth, sizes: Sequence[int], threshold: float = COLLAPSE_BELOW) -> list[str]:
    """One sentence for every level whose usage is below the threshold: what is seen, why as a rule, and the gin lines that cure it.

    Args:
        health: from ``codebook_health``.
        sizes: K of each level.
        threshold: share of codes in use below which a level counts as collapsed.

    Returns:
        At most L sentences; empty when all is well.
    """
    return [
        f"codebook collapse at level {level}: {round(usage * size)} of {size} codes in use ({usage:.1%}), as a rule because "
        f"{_likely_cause(level)}; "
        'set train.vae_input_norm = "center_unit" and train.use_kmeans_init = True.'
        for level, (usage, size) in enumerate(zip(health.usage, sizes))
        if usage < threshold
    ]


def _likely_cause(level: int) -> str:
    if level == 0:
        return "the item embeddings share one large common mean or the codebook started far from them"
    return "the levels before it learned only the common mean or this codebook started far from its residuals"


def code_counts(codes: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Items per code, one [K] int64 per level."""
    if codes.dim() != 2 or codes.shape[1] != len(sizes) or not len(codes):
        raise ValueError(f"expected codes [I, {len(sizes)}] of at least one item for {len(sizes)} codebooks: got {tuple(codes.shape)}")
    codes = codes.detach().cpu()
    outside = (codes < 0) | (codes >= torch.tensor(list(sizes)))
    if outside.any():
        item, level = (int(index) for index in outside.nonzero()[0])
        raise ValueError(f"code {int(codes[item, level])} of item {item} at level {level} is outside its codebook of {sizes[level]}")
    return [torch.bincount(codes[:, level], minlength=size) for level, size in enumerate(sizes)]
