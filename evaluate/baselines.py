"""Two baselines without training: most popular, and a first-order Markov chain on the last item. Both are deterministic.

They go through the same evaluator as the model. On small, sparse sets the Markov chain is hard to beat, and a table without it
misleads. ``item_knn`` and ``scorers`` hold further ones.
Shape letters: B batch, b rows of a chunk, N history length, S seen items, I items, T training interactions, U users.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from data.schemas import PAD, SeqBatch

KEYS_IN_MEMORY = 2**22
"""Bound on the ranking keys of one chunk of rows (32 MiB)."""


class Ranked(NamedTuple):
    """Ranked lists, and what ranks their items."""

    item_ids: Tensor  # [B, k] int64, best first, PAD where fewer than k items are left
    scores: Tensor  # [B, k] float32, descending; -inf where item_ids is PAD


class MostPopular:
    """The same list for everybody: the most popular items of the training part. The score of an item is how many stand behind it.

    Args:
        order: [I] from ``metrics.tie_order`` with the training popularity; 0 = most popular.
    """

    name = "most popular"

    def __init__(self, order: Tensor) -> None:
        self.order = order
        self.num_items = len(order)

    def recommend(self, batch: SeqBatch, k: int, filter_history: bool) -> Tensor:
        """The k best items for every row.

        Args:
            batch: histories; ``batch.seen`` (``batch.item_ids`` where that is None) holds what ``filter_history`` bars.
            k: length of the lists.
            filter_history: never recommend what the user already has.

        Returns:
            [B, k] int64, best first, PAD where fewer than k items are left; on the batch's device.
        """
        return self.ranked(batch, k, filter_history).item_ids

    def ranked(self, batch: SeqBatch, k: int, filter_history: bool) -> Ranked:
        """As ``recommend``, with the scores."""
        batch, asked_from = batch.to(self.order.device), batch.item_ids.device
        histories = batch.item_ids
        barred = (histories if batch.seen is None else batch.seen) if filter_history else None
        ranked = histories.new_full((len(histories), k), PAD)
        scores = torch.full(ranked.shape, -math.inf, device=ranked.device)
        rows = max(1, KEYS_IN_MEMORY // (self.num_items + 1))
        for start in range(0, len(histories), rows):
            part = slice(start, start + rows)
            items, keys = best_items(self._keys(rows_of(batch, part)), None if barred is None else barred[part], k)
            ranked[part, : items.shape[1]] = items
            scores[part, : items.shape[1]] = self._scores(keys).masked_fill(items == PAD, -math.inf)
        return Ranked(ranked.to(asked_from), scores.to(asked_from))

    def _keys(self, batch: SeqBatch) -> Tensor:
        """Integer ranking keys [b, I + 1], all different within a row, higher = better; column I stands for PAD and is never chosen."""
        popular = torch.cat([self.num_items - 1 - self.order, self.order.new_full((1,), -1)])
        return popular.repeat(len(batch.item_ids), 1)

    def _scores(self, keys: Tensor) -> Tensor:
        """The float32 score in each of ``_keys``; that of a negative one does not count."""
        return keys.float()


class LastItemMarkov(MostPopular):
    """How often item j directly followed the user's last item in the training part; ties and the rest of the list by popularity.

    The score of an item is that count.

    Args:
        train_item_ids: [T] int64, the users' training histories one after the other (CSR values).
        train_offsets: [U + 1] int64, where each user's history starts (CSR offsets).
        num_items: I.
        order: [I] from ``metrics.tie_order`` with the training popularity.

    Raises:
        ValueError: the order does not rank num_items items, or the offsets do not span the training items.
    """

    name = "last item -> next (Markov)"

    def __init__(self, train_item_ids: Tensor, train_offsets: Tensor, num_items: int, order: Tensor) -> None:
        super().__init__(order)
        if len(order) != num_items:
            raise ValueError(f"order ranks {len(order)} items, but num_items is {num_items}")
        if int(train_offsets[0]) != 0 or int(train_offsets[-1]) != len(train_item_ids):
            raise ValueError(f"train_offsets must run from 0 to {len(train_item_ids)}: got {train_offsets[[0, -1]].tolist()}")
        item_ids, offsets = train_item_ids.to(order.device), train_offsets.to(order.device)
        follows = torch.ones(len(item_ids), dtype=torch.bool, device=order.device)
        follows[offsets[:-1][offsets[:-1] < len(item_ids)]] = False  # a user's first item follows nothing
        pairs = item_ids[:-1] * num_items + item_ids[1:]
        distinct, self.counts = pairs[follows[1:]].unique(return_counts=True)  # sorted: a CSR matrix of counts, row = the item before
        self.next_items = distinct % num_items
        self.row_starts = torch.searchsorted(distinct, torch.arange(num_items + 1, device=order.device) * num_items)

    def _keys(self, batch: SeqBatch) -> Tensor:
        """count * I + (I - 1 - order): exact in int64, so no two items tie."""
        keys = super()._keys(batch)
        last = last_items(batch.item_ids)
        start = self.row_starts[last.clamp(min=0)]
        lengths = (self.row_starts[last.clamp(min=0) + 1] - start).masked_fill(last == PAD, 0)
        row = torch.repeat_interleave(torch.arange(len(last), device=last.device), lengths)
        within = torch.arange(len(row), device=last.device) - (lengths.cumsum(0) - lengths)[row]
        entry = start[row] + within
        keys[row, self.next_items[entry]] += self.counts[entry] * self.num_items
        return keys

    def _scores(self, keys: Tensor) -> Tensor:
        return (keys // self.num_items).float()


def best_items(keys: Tensor, barred: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The items of the highest keys, and these.

    Args:
        keys: [b, I + 1] integers, all different within a row, negative for items that are out; changed by the call.
        barred: [b, S] items, PAD-filled, that are out as well; None: none.
        k: length of the lists.

    Returns:
        Items and keys, [b, k] each, or [b, I] where that is less; best first, PAD and negative where fewer items are left.
    """
    num_items = keys.shape[1] - 1
    if barred is not None:
        keys.scatter_(1, barred.masked_fill(barred == PAD, num_items), -1)
    best = keys.topk(min(k, num_items), dim=1)
    return best.indices.masked_fill(best.values < 0, PAD), best.values


def rows_of(batch: SeqBatch, part: slice) -> SeqBatch:
    """Some rows of a batch."""
    seen = None if batch.seen is None else batch.seen[part]
    return SeqBatch(batch.user_ids[part], batch.item_ids[part], batch.targets[part], seen)


def last_items(histories: Tensor) -> Tensor:
    """The last item of every history.

    Args:
        histories: [B, N] int64, padded with PAD.

    Returns:
        [B] int64, PAD for an empty history.
    """
    guarded = torch.cat([histories.new_full((len(histories), 1), PAD), histories], dim=1)
    position = torch.arange(guarded.shape[1], device=histories.device)
    last = torch.where(guarded != PAD, position, 0).amax(dim=1, keepdim=True)
    return guarded.gather(1, last).squeeze(1)


def score_keys(scores: Tensor, order: Tensor) -> Tensor:
    """Scores as integers that sort in the same way and never tie: by score, then by ``order``.

    The bits of a float of one sign sort as an integer; those of negative ones are turned round.

    Args:
        scores: [b, I] float32; NaN is not allowed.
        order: [I] rank of every item in the order that breaks ties.

    Returns:
        [b, I + 1] int64, 0 or more and all different within a row; -1 in column I, which stands for PAD.
    """
    bits = (scores.float() + 0.0).view(torch.int32).long()  # + 0.0 makes -0.0 and 0.0 one number
    rising = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF) + 2**31
    keys = rising * len(order) + (len(order) - 1 - order)
    return torch.cat([keys, keys.new_full((len(keys), 1), -1)], dim=1)


def key_scores(keys: Tensor, num_items: int) -> Tensor:
    """The float32 scores that ``score_keys`` made non-negative keys of (I items); what it gives for others does not count."""
    rising = keys // num_items - 2**31
    return torch.where(rising >= 0, rising, rising ^ 0x7FFFFFFF).int().view(torch.float32)
