"""Do the semantic IDs mean anything? Near items should share codes, items of one kind a prefix, items of one history too.

All of it is read from the codes, so that any tokenizer can be judged (RQ-VAE, k-means, product quantization, LSH, random); beside each
figure stands what codes without meaning would get.
Shape letters: I items, L levels, D width of the quantized vectors, E of the item vectors, Q queries, T interactions, U users.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.schemas import PAD
from evaluate.codebook import prefix_nodes

CELLS = 1 << 23
"""Pairs of items that are compared at once: the bound on memory, about 32 MB a table."""


class NeighboursKept(NamedTuple):
    """Mean share, 0..1, of an item's k nearest items that are still among its k nearest after tokenization."""

    by_vector: float | None  # nearest by the quantized vectors; None without them
    by_prefix: float  # nearest by the number of leading codes shared
    chance: float  # k / (I - 1): either figure for codes given to the items at random
    queries: int  # items whose neighbours were looked at


class Agreement(NamedTuple):
    """The nodes of one depth as a clustering of the items, against the items' categories."""

    nodes: int  # clusters
    nmi: float  # normalised mutual information, 0..1
    nmi_chance: float  # the same with the categories shuffled over the items: rises towards 1 as clusters become tiny
    purity: float  # share of the items whose category is the most frequent one of their cluster, 0..1
    purity_chance: float


class PrefixAffinity(NamedTuple):
    """Mean number, 0..L, of leading codes that two items share."""

    adjacent: float  # items that follow one another in a history, each time they do
    chance: float  # two different items drawn on their own, the first and the second each as often as in those pairs
    pairs: int
    by_times: dict[str, float]  # of the pairs, each counted once, that are adjacent "1", "2-3", "4+" times in all, where there are such


def neighbours_kept(
    vectors: Tensor, codes: Tensor, quantized: Tensor | None = None, k: int = 10, queries: int | None = None, seed: int = 0
) -> NeighboursKept:
    """How many of an item's nearest items, by cosine of their vectors, stay its nearest items once only its codes are known.

    The neighbours of an item are all others at least as near as the k-th, equals (within rounding) included. Among the neighbours by codes
    ties are the rule: items with the same codes have one quantized vector, and a prefix is shared by many. No order of rows decides them:
    where t items tie for the last m places, each counts m / t, which is the expectation over all ways to break the tie.

    Args:
        vectors: [I, E] what the tokenizer was given; not centred or scaled here.
        codes: [I, L] int64 without the collision code.
        quantized: [I, D] the vectors that the codes stand for, equal for equal codes, compared by L2; scale them to length 1 first where
            cosine is wanted.
        k: neighbours of an item.
        queries: look at the neighbours of so many items, drawn with ``seed``; all if None. All items are candidates.
        seed: of that draw.

    Raises:
        ValueError: fewer than k + 1 items.
    """
    items = len(vectors)
    if items <= k:
        raise ValueError(f"{k} neighbours of an item need at least {k + 1} items: got {items}")
    nodes = prefix_nodes(codes)
    group = nodes[:, -1]
    groups = int(group.max()) + 1
    scale = 1 / vectors.norm(dim=1).clamp_min(1e-12)
    # One row for each tuple: its items tie exactly, whatever the rounding of the products below.
    table = None if quantized is None else quantized.new_empty(groups, quantized.shape[1]).index_copy_(0, group, quantized)
    chosen = sample_rows(items, queries, seed)
    by_vector = by_prefix = torch.zeros((), dtype=torch.float64)
    for rows in chosen.split(max(1, CELLS // items)):
        itself = rows[:, None]
        similarity = ((vectors[rows] * scale[itself]) @ vectors.T * scale).scatter_(1, itself, -torch.inf)
        near = similarity >= similarity.topk(k, dim=1).values[:, -1:] - 1e-6
        shared = sum((level[rows, None] == level).to(torch.int8) for level in nodes.unbind(dim=1))
        by_prefix = by_prefix + _expected_hits(near, -torch.as_tensor(shared).float().scatter_(1, itself, -torch.inf), k)
        if table is not None:
            distance = table.square().sum(dim=1) - 2 * table[group[rows]] @ table.T  # + |q|^2, the same for every candidate
            distance = distance.scatter_(1, group[itself], -torch.inf).index_select(1, group)
            by_vector = by_vector + _expected_hits(near, distance.scatter_(1, itself, torch.inf), k)
    places = k * len(chosen)
    kept = None if table is None else by_vector.item() / places
    return NeighboursKept(kept, by_prefix.item() / places, k / (items - 1), len(chosen))


def _expected_hits(near: Tensor, distance: Tensor, k: int) -> Tensor:
    """Expected number of ``near`` [Q, I] bool among each row's k smallest of ``distance`` [Q, I], ties broken at random; summed over Q."""
    last = distance.topk(k, dim=1, largest=False).values[:, -1:]
    before, tied = distance < last, distance == last
    places = (k - _count(before)) / _count(tied)
    return (_count(near & before) + _count(near & tied) * places).sum()


def _count(chosen: Tensor) -> Tensor:
    """True values of each row [Q, I], as float64 [Q]; summed in int32, twice as fast."""
    return chosen.sum(dim=1, dtype=torch.int32).double()


def sample_rows(count: int, limit: int | None, seed: int) -> Tensor:
    """``limit`` of ``count`` row numbers in ascending order, drawn without replacement; all where that is no more."""
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def category_ids(categories: Sequence[str]) -> Tensor | None:
    """Numbers [I] int64 for the items' categories, PAD for ""; None where fewer than two are told apart, so that nothing can agree."""
    names, ids = np.unique(np.array(categories, dtype=object).astype(str), return_inverse=True)
    if np.count_nonzero(names != "") < 2:
        return None
    return torch.from_numpy(np.where(np.array(names) == "", PAD, np.arange(len(names)))[ids])


def agreement(codes: Tensor, categories: Tensor, seed: int = 0) -> list[Agreement]:
    """The nodes of each depth against the items' categories, by counts of the pairs that occur: no table of nodes times categories.

    NMI (arithmetic mean of the entropies, as scikit-learn has it) and purity rise with the number of clusters whatever they mean: one item
    a cluster is pure. Read them as their distance from ``nmi_chance`` and ``purity_chance``.

    Args:
        codes: [I, L] int64 without the collision code.
        categories: [I] int64, PAD where unknown; those items are left out.
        seed: of the shuffle behind the chance figures.

    Returns:
        One for each depth 1..L.

    Raises:
        ValueError: no item has a category.
    """
    known = categories != PAD
    if not bool(known.any()):
        raise ValueError("no item has a category; agreement needs at least one that is not PAD")
    labels = categories[known].unique(return_inverse=True)[1]
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    found = []
    for clusters in prefix_nodes(codes[known]).unbind(dim=1):
        (nmi, purity), (nmi_chance, purity_chance) = _nmi_and_purity(clusters, labels), _nmi_and_purity(clusters, shuffled)
        found.append(Agreement(int(clusters.max()) + 1, nmi, nmi_chance, purity, purity_chance))
    return found


def _nmi_and_purity(clusters: Tensor, labels: Tensor) -> tuple[float, float]:
    """Of two partitions [I] int64, numbered from 0 without gaps."""
    width = int(labels.max()) + 1
    pairs, counts = (clusters * width + labels).unique(return_counts=True)
    best = counts.new_zeros(int(clusters.max()) + 1).scatter_reduce_(0, pairs // width, counts, "amax")
    entropies = [_entropy(part) for part in (torch.bincount(clusters), torch.bincount(labels), counts)]
    shared = entropies[0] + entropies[1] - entropies[2]
    mean = (entropies[0] + entropies[1]) / 2
    nmi = 1.0 if mean == 0 else min(max(shared / mean, 0.0), 1.0)  # one cluster and one category agree
    return nmi, int(best.sum()) / len(labels)


def _entropy(counts: Tensor) -> float:
    return torch.special.entr(counts.double() / counts.sum()).sum().item()


def prefix_affinity(codes: Tensor, item_ids: Tensor, offsets: Tensor) -> PrefixAffinity | None:
    """Do items that follow one another in a history share more leading codes than items of the same popularity do?

    The chance figure is exact, not drawn. An item that follows itself says nothing of the codes and is left out of both.

    Args:
        codes: [I, L] int64 without the collision code.
        item_ids: [T] int64, the training histories, user after user, oldest first.
        offsets: [U+1] int64, where each user's begins.

    Returns:
        None where no two different items are adjacent.
    """
    within = torch.ones(max(len(item_ids) - 1, 0), dtype=torch.bool)
    ends = offsets[1:-1] - 1  # the last item of a user and the first of the next are no pair
    within[ends[(ends >= 0) & (ends < len(within))]] = False
    first, second = item_ids[:-1][within], item_ids[1:][within]
    first, second = first[first != second], second[first != second]
    if not len(first):
        return None
    nodes = prefix_nodes(codes)
    adjacent = (nodes[first] == nodes[second]).sum().item() / len(first)
    same = _meeting(first, second)
    shared = sum(_meeting(level[first], level[second]) for level in nodes.unbind(dim=1))
    chance = (shared - nodes.shape[1] * same) / (1 - same) if same < 1 else 0.0
    return PrefixAffinity(adjacent, chance, len(first), _by_times(nodes, first, second))


def _by_times(nodes: Tensor, first: Tensor, second: Tensor) -> dict[str, float]:
    """Mean number of prefix ``nodes`` [I, L] in common of the pairs, in groups by how often they occur."""
    pairs, times = (torch.minimum(first, second) * len(nodes) + torch.maximum(first, second)).unique(return_counts=True)
    shared = (nodes[pairs // len(nodes)] == nodes[pairs % len(nodes)]).sum(1).double()
    groups = {"1": times == 1, "2-3": (times > 1) & (times < 4), "4+": times > 3}
    return {name: shared[group].mean().item() for name, group in groups.items() if bool(group.any())}


def _meeting(first: Tensor, second: Tensor) -> float:
    """The probability that a draw from ``first`` equals one from ``second``, both flat int64."""
    width = int(torch.maximum(first.max(), second.max())) + 1
    ours, theirs = (torch.bincount(part, minlength=width).double() for part in (first, second))
    return (ours @ theirs).item() / (len(first) * len(second))
