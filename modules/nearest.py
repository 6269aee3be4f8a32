"""Items whose texts are alike: the nearest neighbours of every text embedding by cosine, found in blocks of bounded size.

Sentence embeddings share a large common mean, so cosines are taken after it is removed.
Shape letters: I items, E text-embedding width, R pairs, n neighbours.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from data.schemas import PAD

QUERIES_AT_ONCE = 512
KEYS_AT_ONCE = 2**15
"""A block of cosines has at most 512 x 32,768 numbers (64 MiB)."""

NUMBERS_AT_ONCE = 2**23
"""Bound on the vectors gathered at once for cosines of single pairs (32 MiB a side)."""


class Neighbours(NamedTuple):
    """The nearest texts of every item, nearest first; an item is not its own neighbour."""

    items: Tensor  # [I, n] int64, PAD where fewer have a positive cosine
    cosines: Tensor  # [I, n] float32, 0 at PAD


def directions(vectors: Tensor) -> Tensor:
    """Text embeddings [I, E] of any float type, centred and brought to length 1 -> [I, E] float32; zero where a text is the mean itself."""
    mean = vectors.mean(0, dtype=torch.float64).float()
    return torch.nn.functional.normalize(vectors.float() - mean, dim=1)


def pair_cosines(vectors: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Cosines of single pairs: each is the same number wherever it stands and whichever item comes first.

    Args:
        vectors: [I, E] from ``directions``.
        first, second: [R] item ids.

    Returns:
        [R] float32, in [-1, 1] up to rounding.
    """
    rows = max(1, NUMBERS_AT_ONCE // max(vectors.shape[1], 1))
    parts = [(vectors[a] * vectors[b]).sum(-1) for a, b in zip(first.split(rows), second.split(rows))]
    return torch.cat(parts) if parts else vectors.new_empty(0)


def nearest_texts(vectors: Tensor, count: int, order: Tensor) -> Neighbours:
    """The ``count`` nearest texts of every item, by exhaustive search: I x I x E multiplications, blocks of bounded size.

    A matrix product rounds a cosine by its place in the block. Twice as many as wanted are therefore taken from it, their cosines
    computed anew pair by pair, and ties broken by ``order``.

    Args:
        vectors: [I, E] from ``directions``.
        count: n.
        order: [I] rank of every item in the order that breaks ties.
    """
    num_items = len(vectors)
    pool = min(2 * count, num_items - 1)
    items = torch.full((num_items, count), PAD, dtype=torch.int64, device=vectors.device)
    cosines = torch.zeros(num_items, count, device=vectors.device)
    if pool < 1:
        return Neighbours(items, cosines)
    for start in range(0, num_items, QUERIES_AT_ONCE):
        queries = torch.arange(start, min(start + QUERIES_AT_ONCE, num_items), device=vectors.device)
        found = _candidates(vectors, queries, pool)
        exact = pair_cosines(vectors, queries.repeat_interleave(pool), found.flatten()).view_as(found)
        by_order = order[found].argsort(dim=1)
        by_cosine = exact.gather(1, by_order).argsort(dim=1, descending=True, stable=True)
        chosen = by_order.gather(1, by_cosine)[:, :count]
        alike = exact.gather(1, chosen)
        items[queries, : chosen.shape[1]] = found.gather(1, chosen).masked_fill(alike <= 0, PAD)
        cosines[queries, : chosen.shape[1]] = alike.clamp_min(0)
    return Neighbours(items, cosines)


def _candidates(vectors: Tensor, queries: Tensor, pool: int) -> Tensor:
    """[b, pool] item ids: the best of every block of keys, merged as the blocks go by; never the query itself."""
    best = vectors.new_full((len(queries), pool), -torch.inf)
    items = torch.full((len(queries), pool), PAD, dtype=torch.int64, device=vectors.device)
    for start in range(0, len(vectors), KEYS_AT_ONCE):
        block = vectors[queries] @ vectors[start : start + KEYS_AT_ONCE].T
        keys = torch.arange(start, start + block.shape[1], device=vectors.device)
        block.masked_fill_(keys == queries.unsqueeze(1), -torch.inf)
        values, places = block.topk(min(pool, block.shape[1]), dim=1)
        merged = torch.cat([best, values], dim=1)
        best, kept = merged.topk(pool, dim=1)
        items = torch.cat([items, keys[places]], dim=1).gather(1, kept)
    return items
