"""Item-based nearest neighbours: the items that stood near those of the history in other users' training histories.

Sarwar et al. (2001), "Item-based collaborative filtering", with sequences looked at twice: items that stood closer together are more alike,
and later items of the history count more. Deterministic; nothing is learned.
Shape letters: B batch, b rows of a chunk, N history length, I items, T training interactions, U users, K neighbours, D window.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from data.schemas import PAD, SeqBatch
from evaluate.baselines import MostPopular, key_scores, score_keys

PAIRS_AT_ONCE = 2**22
"""Bound on the pairs that are counted at once, unless one item alone has more."""


class Similar(NamedTuple):
    items: Tensor  # [I, K] int64, most similar first, PAD where there are fewer
    similarities: Tensor  # [I, K] float64, 0 at PAD


class ItemKNN(MostPopular):
    """Score of item j: the sum over the history's items i of decay^(items after i) x similarity(i, j).

    similarity(i, j) = (sum of 1 / distance over all places where j stands after i in one history, at most ``window`` apart, + ``backward``
    times the same where j stands before i) / sqrt(how often i occurs). It is 0 for i = j; for each i the ``neighbours`` largest are kept.
    The defaults are frozen on Amazon Beauty's validation part.

    Args:
        train_item_ids: [T] int64, the users' training histories one after the other.
        train_offsets: [U + 1] int64, where each starts.
        num_items: I.
        order: [I] from ``metrics.tie_order`` with the training popularity.
        neighbours: K.
        window: D.
        decay: in (0, 1].
        backward: 1 for a similarity in which the order of the items does not count.

    Raises:
        ValueError: the order does not rank num_items items, or the offsets do not span the training items.
    """

    name = "item-kNN"

    def __init__(
        self,
        train_item_ids: Tensor,
        train_offsets: Tensor,
        num_items: int,
        order: Tensor,
        neighbours: int = 200,
        window: int = 20,
        decay: float = 0.6,
        backward: float = 0.4,
    ) -> None:
        super().__init__(order)
        if len(order) != num_items:
            raise ValueError(f"order ranks {len(order)} items, but num_items is {num_items}")
        if int(train_offsets[0]) != 0 or int(train_offsets[-1]) != len(train_item_ids):
            raise ValueError(f"train_offsets must run from 0 to {len(train_item_ids)}: got {train_offsets[[0, -1]].tolist()}")
        self.decay = decay
        item_ids, offsets = train_item_ids.to(order.device), train_offsets.to(order.device)
        self.similar = similar_items(item_ids, offsets, order, neighbours, window, backward)

    def _keys(self, batch: SeqBatch) -> Tensor:
        history, (items, similarities) = batch.item_ids, self.similar
        scores = similarities.new_zeros(len(history), self.num_items + 1)  # float64: sums do not depend on who is added first
        after = (history != PAD).sum(1, keepdim=True) - 1 - torch.arange(history.shape[1], device=history.device)
        weights = torch.where(history != PAD, self.decay ** after.clamp_min(0).to(similarities.dtype), 0.0)
        for position in range(history.shape[1]):
            item = history[:, position].clamp_min(0)
            near = items[item]
            scores.scatter_add_(1, near.masked_fill(near == PAD, self.num_items), weights[:, position, None] * similarities[item])
        return score_keys(scores[:, :-1].float(), self.order)

    def _scores(self, keys: Tensor) -> Tensor:
        return key_scores(keys, self.num_items)


def similar_items(item_ids: Tensor, offsets: Tensor, order: Tensor, neighbours: int, window: int, backward: float) -> Similar:
    """The most similar items of every item, counted a bounded number of pairs at a time; see ItemKNN.

    Args:
        item_ids: [T] int64, the histories one after the other.
        offsets: [U + 1] int64, where each starts.
        order: [I] rank of every item in the order that breaks ties.
        neighbours: K.
        window: D.
        backward: weight of items that stand before.
    """
    num_items, device = len(order), item_ids.device
    similar = Similar(
        torch.full((num_items, neighbours), PAD, dtype=torch.int64, device=device),
        torch.zeros(num_items, neighbours, dtype=torch.float64, device=device),
    )
    users = torch.arange(len(offsets) - 1, device=device).repeat_interleave(offsets.diff())
    occurrences = torch.bincount(item_ids, minlength=num_items)
    places = item_ids.argsort(stable=True)  # the places of item 0, then those of item 1, ..
    distances = torch.cat([torch.arange(-window, 0, device=device), torch.arange(1, window + 1, device=device)])
    closeness = torch.where(distances > 0, 1.0, backward).double() / distances.abs()
    ends = occurrences.cumsum(0)
    start, first = 0, 0
    while start < len(places):
        limit = torch.tensor(start + max(1, PAIRS_AT_ONCE // len(distances)), device=device)
        item = max(int(torch.searchsorted(ends, limit, right=True)), first + 1)
        stop = int(ends[item - 1])
        here = places[start:stop]
        there = here.unsqueeze(1) + distances
        inside = (there >= 0) & (there < len(item_ids))
        there = there.clamp(0, max(len(item_ids) - 1, 0))
        pair = inside & (users[there] == users[here].unsqueeze(1)) & (item_ids[there] != item_ids[here].unsqueeze(1))
        keys = (item_ids[here].unsqueeze(1) * num_items + item_ids[there])[pair]
        distinct, which = keys.unique(return_inverse=True)
        summed = closeness.new_zeros(len(distinct)).scatter_add_(0, which, closeness.expand_as(there)[pair])
        rows, columns = distinct // num_items, distinct % num_items
        _keep_best(similar, rows, columns, summed / occurrences[rows].double().sqrt(), order)
        start, first = stop, item
    return similar


def _keep_best(similar: Similar, rows: Tensor, columns: Tensor, values: Tensor, order: Tensor) -> None:
    """Writes the largest values of every row, ties by ``order``; ``rows`` ascend."""
    values = values.float().double()  # what differs by rounding alone ties
    ranking = order[columns].argsort(stable=True)
    for key in (-values, rows):
        ranking = ranking[key[ranking].argsort(stable=True)]
    lengths = torch.bincount(rows, minlength=len(order))
    starts = lengths.cumsum(0) - lengths
    within = torch.arange(len(rows), device=rows.device) - starts[rows]
    kept = within < similar.items.shape[1]
    chosen = ranking[kept]
    similar.items[rows[chosen], within[kept]] = columns[chosen]
    similar.similarities[rows[chosen], within[kept]] = values[chosen]
