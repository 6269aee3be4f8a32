"""Health of the codebooks: how many codes are in use, how evenly, how the tree of codes branches, how many items share their codes.

Usage and entropy are alarms, not selectors: a codebook can look healthy and still make poor semantic IDs (evaluate/semantics.py). What to
do about an alarm stands in evaluate/diagnosis.py.
Shape letters: I items, L levels, K codebook size, D width of the codewords, E of the item vectors, G distinct code tuples.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


class CodebookHealth(NamedTuple):
    """What a table of codes says about the codebooks behind it."""

    usage: list[float]  # per level, share of the codes in use, 0..1
    perplexity: list[float]  # per level, exp(entropy of the code frequencies), 1..K
    collision_rate: float  # (items - distinct tuples) / items
    largest_group: int  # most items that share one tuple; 1 = no collision
    branching: list[float]  # per level, mean number of different codes behind one prefix of the levels above, 1..K
    singleton_share: float  # share of the items that share their tuple with no other
    group_sizes: dict[int, int]  # size of a group -> number of such groups, singles included, smallest size first


class Reconstruction(NamedTuple):
    """How near a decoder comes to what was encoded."""

    cosine: float  # mean over items, -1..1
    squared_l2: float  # mean over items of |x - x^|^2, summed over the width


def prefix_nodes(codes: Tensor) -> Tensor:
    """The tree of codes: which node of depth l + 1 each item lies under.

    Args:
        codes: [I, L] int64.

    Returns:
        [I, L] int64. Two items have the same number in column l exactly if their first l + 1 codes are equal; the numbers of a column
        are 0, 1, 2, ... in the lexicographic order of the prefixes.
    """
    if not len(codes):
        raise ValueError("codes [I, L] hold no items; nothing can be said about the codebooks")
    node, nodes = codes.new_zeros(len(codes)), []
    for code in codes.unbind(dim=1):  # re-numbering level by level keeps the key far from overflow at any L and K
        node = torch.unique(node * (int(code.max()) + 1) + code, return_inverse=True)[1]
        nodes.append(node)
    return torch.stack(nodes, dim=1)


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
    return torch.bincount(prefix_nodes(codes)[:, -1]).sort(descending=True).values


def collision_rate(codes: Tensor) -> float:
    """(I - G) / I: the share of items that are not the first to have their tuple, before any collision code.

    Args:
        codes: [I, L] int64.
    """
    return (len(codes) - len(collision_groups(codes))) / len(codes)


def branching(nodes: Tensor) -> list[float]:
    """Children of a node, mean over the nodes of a depth: how much each level still tells apart behind the levels above.

    Args:
        nodes: [I, L] from ``prefix_nodes``.

    Returns:
        L values; the first is the number of first codes in use. About 1: the level adds nothing to its prefix.
    """
    counts = [1, *(int(level.max()) + 1 for level in nodes.unbind(dim=1))]
    return [children / parents for parents, children in pairwise(counts)]


def codebook_health(codes: Tensor, sizes: Sequence[int]) -> CodebookHealth:
    """All of the above for one table of codes.

    Args:
        codes: [I, L] int64 without the collision code.
        sizes: K of each level.

    Raises:
        ValueError: no items, another number of levels than sizes, or a code outside its codebook.
    """
    usage, perplexity = codebook_usage(codes, sizes), codebook_perplexity(codes, sizes)
    nodes = prefix_nodes(codes.detach().cpu())
    groups = torch.bincount(nodes[:, -1])
    group_sizes, counts = groups.unique(return_counts=True)
    return CodebookHealth(
        usage,
        perplexity,
        collision_rate=(len(codes) - len(groups)) / len(codes),
        largest_group=int(groups.max()),
        branching=branching(nodes),
        singleton_share=int((groups == 1).sum()) / len(codes),
        group_sizes=dict(zip(group_sizes.tolist(), counts.tolist())),
    )


def partial_sums(codes: Tensor, codebooks: Sequence[Tensor]) -> Iterator[Tensor]:
    """What residual quantization knows of each item after 1, 2, ... L levels: L times [I, D], the sum of the codewords so far.

    Args:
        codes: [I, L] int64.
        codebooks: L tensors [K, D].
    """
    total = torch.zeros(len(codes), codebooks[0].shape[1])
    for code, codebook in zip(codes.unbind(dim=1), codebooks):
        total = total + codebook[code]
        yield total


def residual_norms(vectors: Tensor, partial: Iterable[Tensor]) -> list[float]:
    """Mean norm of what is left to quantize: before the first level, then after each.

    Args:
        vectors: [I, D] what the quantizer was given.
        partial: L tensors [I, D], its reconstruction of them from the first 1, 2, ... L codes.

    Returns:
        L + 1 values; a level that is worth its code lowers the norm.
    """
    return [norm.mean().item() for norm in (vectors.norm(dim=1), *((vectors - known).norm(dim=1) for known in partial))]


def reconstruction_quality(vectors: Tensor, reconstructions: Tensor) -> Reconstruction:
    """Mean cosine and squared distance between items and their reconstructions.

    Args:
        vectors: [I, E].
        reconstructions: [I, E].
    """
    squared = (vectors - reconstructions).square().sum(dim=1)
    return Reconstruction(cosine_similarity(vectors, reconstructions, dim=1).mean().item(), squared.mean().item())


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
