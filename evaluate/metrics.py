"""Item-level metrics: ranks of the held-out items, recall / ndcg / mrr per user, bootstrap intervals, and the order that breaks ties.

Shape letters: B batch, U users, I items, k length of a ranked list. Every metric has one target per user, so recall@k is hit rate@k
and the ideal DCG is 1. Nothing here looks at the value of an item id: ids in public files follow first appearance and leak the future.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.schemas import PAD, UserError

CUTOFFS = (1, 5, 10)
"""Cutoffs of recall and ndcg unless others are asked for."""

DRAWS_IN_MEMORY = 2**22
"""Bound on the multinomial counts held at once by the bootstrap (32 MiB)."""


class Interval(NamedTuple):
    """A mean over users and the ends of its bootstrap interval."""

    mean: float
    low: float
    high: float


def target_ranks(ranked: Tensor, targets: Tensor) -> Tensor:
    """Position of each target in its ranked list.

    The same function serves the code level: hand it the ids of distinct L-tuples (trie nodes) and the targets' own nodes.

    Args:
        ranked: [B, k] int64 ids, best first, PAD where a list is shorter.
        targets: [B] int64; a PAD target is never found.

    Returns:
        [B] int64, 0-based; k where the target is absent.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if ranked.dim() != 2 or targets.shape != ranked.shape[:1]:
        raise ValueError(f"expected ranked [B, k] and targets [B]: got {tuple(ranked.shape)} and {tuple(targets.shape)}")
    k = ranked.shape[1]
    hits = (ranked == targets[:, None]) & (targets[:, None] != PAD)
    positions = torch.arange(k, device=ranked.device).expand_as(ranked)
    absent = targets.new_full((len(targets), 1), k, dtype=torch.int64)
    return torch.cat([positions.masked_fill(~hits, k), absent], dim=1).amin(dim=1)


def per_user_metrics(ranks: Tensor, cutoffs: Sequence[int] = CUTOFFS, mrr_at: int = 10) -> dict[str, Tensor]:
    """recall@c and ndcg@c for every cutoff, and mrr@mrr_at, one value per user.

    Args:
        ranks: [U] 0-based ranks from ``target_ranks``. The lists must be at least as long as the largest cutoff, because an absent
            target carries the list's length as its rank; ``report.evaluate_lists`` checks that.
        cutoffs: list lengths of recall and ndcg.
        mrr_at: list length of mrr.

    Returns:
        name -> [U] float64 on the CPU (not every accelerator has float64), in the order recall, ndcg, mrr.
    """
    if min(*cutoffs, mrr_at, 1) < 1:
        raise UserError(f"metric cutoffs must be at least 1: got {(*cutoffs, mrr_at)}")
    position = ranks.detach().cpu().double() + 1.0
    recall = {f"recall@{c}": (position <= c).double() for c in cutoffs}
    ndcg = {f"ndcg@{c}": (position <= c).double() / torch.log2(position + 1.0) for c in cutoffs}
    return {**recall, **ndcg, f"mrr@{mrr_at}": (position <= mrr_at).double() / position}


def mean_metrics(ranks: Tensor, cutoffs: Sequence[int] = CUTOFFS, mrr_at: int = 10) -> dict[str, float]:
    """Means over users of ``per_user_metrics``.

    Raises:
        UserError: there are no users.
    """
    if not len(ranks):
        raise UserError("there are no users to evaluate; leave-one-out needs users with at least three interactions")
    return {name: values.mean().item() for name, values in per_user_metrics(ranks, cutoffs, mrr_at).items()}


def bootstrap_interval(values: Tensor, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap over users of the mean of ``values``.

    Resampling U users with replacement draws how often each *distinct* value occurs from a multinomial, so a metric with a dozen
    possible values costs a dozen numbers per resample, however many users there are; and the order of the users does not matter.
    The interval speaks for one checkpoint: it says nothing about another training seed.

    Args:
        values: [U] one metric value per user.
        resamples: bootstrap resamples.
        level: coverage, between 0 and 1.
        seed: of the resampling; the same seed gives the same digits.

    Raises:
        UserError: no users, or resamples or level out of range.
    """
    if not len(values):
        raise UserError("an interval needs at least one user; got none")
    if resamples < 1 or not 0.0 < level < 1.0:
        raise UserError(f"a bootstrap needs resamples >= 1 and 0 < level < 1: got resamples {resamples}, level {level}")
    array = values.detach().cpu().double().numpy()
    distinct, counts = np.unique(array, return_counts=True)
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWS_IN_MEMORY // len(distinct))
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = generator.multinomial(len(array), counts / len(array), size=stop - start)
        means[start:stop] = drawn @ distinct / len(array)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(math.fsum(array) / len(array), float(low), float(high))


def paired_interval(a: Tensor, b: Tensor, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Bootstrap interval of mean(a - b), where a[u] and b[u] are two models' values for the same user u.

    Users who are easy or hard for both cancel, which makes it narrower than the two separate intervals suggest. An interval that
    holds 0 shows no gain; one that does not is a gain of these two checkpoints, and a claim about methods needs several seeds too.

    Raises:
        UserError: the two do not cover the same number of users.
    """
    if a.shape != b.shape:
        raise UserError(f"a paired interval compares the same users: got {len(a)} and {len(b)} of them")
    return bootstrap_interval(a.detach().cpu().double() - b.detach().cpu().double(), resamples, level, seed)


def tie_order(popularity: Tensor, item_keys: Sequence[str], seed: int) -> Tensor:
    """Preference among items of equal score: most popular first, then a seeded pseudo-random permutation.

    The permutation sorts a keyed hash of the item's *external* key, so it follows the item wherever its id goes.

    Args:
        popularity: [I] interactions of the training part.
        item_keys: I external keys (an asin, a movie id), all different.
        seed: key of the hash; another seed is another permutation.

    Returns:
        [I] int64: the item's rank, 0 = preferred.

    Raises:
        UserError: keys are missing or repeat.
    """
    keys, counts = list(item_keys), popularity.tolist()
    if len(keys) != len(counts) or len(set(keys)) != len(keys):
        raise UserError(f"every item needs its own external key: got {len(counts)} items and {len(set(keys))} different keys")
    secret = hashlib.sha256(str(seed).encode()).digest()
    digests = [hashlib.blake2b(key.encode(), key=secret, digest_size=8).digest() for key in keys]
    preferred = sorted(range(len(keys)), key=lambda item: (-counts[item], digests[item], keys[item]))
    order = torch.empty(len(keys), dtype=torch.int64)
    order[torch.tensor(preferred, dtype=torch.int64)] = torch.arange(len(keys))
    return order.to(popularity.device)


def sort_with_ties(items: Tensor, scores: Tensor, order: Tensor) -> Tensor:
    """Each row of items by score, highest first; equal scores by ``order``; PAD last.

    It settles the order of the candidates it is given; which candidates reach it is the search's concern.

    Args:
        items: [B, k] int64, PAD where a row is shorter.
        scores: [B, k] of any float type; NaN counts as the lowest score.
        order: [I] from ``tie_order``.

    Returns:
        [B, k] int64.
    """
    return items.gather(1, places_with_ties(items, scores, order))


def places_with_ties(items: Tensor, scores: Tensor, order: Tensor) -> Tensor:
    """Where ``sort_with_ties`` takes each place's item from: [B, k] columns of ``items``."""
    empty = items == PAD
    preference = order[items.clamp(min=0)].masked_fill(empty, len(order))
    by_order = preference.argsort(dim=1, stable=True)
    worst = scores.masked_fill(empty | scores.isnan(), -math.inf).gather(1, by_order)
    by_score = worst.argsort(dim=1, descending=True, stable=True)
    return by_order.gather(1, by_score)
