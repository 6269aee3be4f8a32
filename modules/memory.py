"""The memory: a distribution over items from training transitions and texts that are alike; nothing in it is learned.

What followed the last two items of a history in training, what came before them, and whose texts are near them, each with a fixed weight
(``MemoryConfig``). Only the training part is counted. A query costs the same at any number of items, unless ``exact_text`` is set.
Shape letters: B batch, N history length, S barred items, I items, E text-embedding width, W longest row, M = 2 W entries, K candidates.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.schemas import PAD
from modules.nearest import Neighbours, directions, nearest_texts
from modules.transitions import MARKOV_WITH_TEXTS, MemoryConfig, MemoryTables, memory_tables

__all__ = ["MARKOV_WITH_TEXTS", "Memory", "MemoryCandidates", "MemoryConfig", "MemoryDistribution"]


class MemoryCandidates(NamedTuple):
    """The items about which the memory has something to say; every other item of the catalogue has score 0."""

    items: Tensor  # [B, M] int64, different within a row, PAD where there is none
    scores: Tensor  # [B, M] float32, -inf at PAD


class MemoryDistribution(NamedTuple):
    """A distribution over the items that are not barred: K items one by one, the rest of the mass spread evenly over all others.

    Among the items below a trie node it has the mass sum(probs of candidates below it) + others x (number of other items below it that are
    not barred).
    """

    items: Tensor  # [B, K] int64, most probable first, PAD where there are fewer
    probs: Tensor  # [B, K] float32, 0 at PAD
    others: Tensor  # [B] float32, the probability of each item that is neither barred nor a candidate


class Memory(nn.Module):
    """Scores and distribution of the next item after a history.

    Its state is buffers: it moves to a device, and ``state_dict`` and ``from_state`` save and restore it.

    Args:
        tables: from ``memory_tables``.
        order: [I] rank of every item in the order that breaks ties.
        config: what the tables were made with.
        vectors: [I, E] from ``nearest.directions`` with ``config.exact_text``, else None.
    """

    offsets: Tensor
    columns: Tensor
    last: Tensor
    before: Tensor
    order: Tensor
    vectors: Tensor | None

    def __init__(self, tables: MemoryTables, order: Tensor, config: MemoryConfig, vectors: Tensor | None = None) -> None:
        super().__init__()
        if config.exact_text and vectors is None:
            raise ValueError("a memory with exact_text needs the text vectors; give them or set exact_text to False")
        self.config, self.num_items = config, len(order)
        for name, table in tables._asdict().items():
            self.register_buffer(name, table)
        self.register_buffer("order", order)
        self.register_buffer("vectors", vectors if config.exact_text else None)
        self.row_width = max(1, int(tables.offsets.diff().max()))

    @classmethod
    def from_histories(
        cls,
        item_ids: Tensor,
        offsets: Tensor,
        num_items: int,
        order: Tensor,
        vectors: Tensor | None = None,
        neighbours: Neighbours | None = None,
        config: MemoryConfig | None = None,
    ) -> "Memory":
        """Counts the training histories and finds the nearest texts.

        Args:
            item_ids: [T] int64, the users' *training* histories one after the other.
            offsets: [U + 1] int64, where each starts.
            num_items: I.
            order: [I] from ``tie_order`` with the training popularity.
            vectors: [I, E] text embeddings as the encoder gave them. None: no cosines but the neighbours'.
            neighbours: the nearest texts where they have been found before. None: they are looked for among the vectors. With neither
                the memory knows transitions only.
            config: weights and bounds.

        Raises:
            ValueError: order, offsets or vectors of another corpus; exact_text without vectors.
        """
        config = config or MemoryConfig()
        if len(order) != num_items:
            raise ValueError(f"order ranks {len(order)} items, but num_items is {num_items}")
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(item_ids):
            raise ValueError(f"offsets must run from 0 to {len(item_ids)}: got {offsets[[0, -1]].tolist()}")
        if vectors is not None and len(vectors) != num_items:
            raise ValueError(f"got {len(vectors)} text vectors for {num_items} items")
        towards = directions(vectors) if vectors is not None and (config.text or config.text_before) else None
        if config.exact_text:
            tables = memory_tables(item_ids, offsets, num_items, order, config, None, None)
            return cls(tables, order, config, towards)
        if neighbours is None and towards is not None and config.neighbours:
            neighbours = nearest_texts(towards, config.neighbours, order)
        return cls(memory_tables(item_ids, offsets, num_items, order, config, neighbours, towards), order, config)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], config: MemoryConfig) -> "Memory":
        """The memory whose ``state_dict`` this is."""
        return cls(MemoryTables(*(state[name] for name in MemoryTables._fields)), state["order"], config, state.get("vectors"))

    @property
    def scores_every_item(self) -> bool:
        """Whether items outside ``scores`` have scores other than 0: the cosines of their texts."""
        return self.vectors is not None

    def scores(self, history: Tensor) -> MemoryCandidates:
        """The scores of all items that have one, from the tables alone: with ``exact_text`` these are the transitions.

        Args:
            history: [B, N] item ids, oldest first, PAD on the right; it may be empty.

        Returns:
            Candidates in the order that breaks ties, so that a stable sort by score is the ranking.
        """
        last, before = last_two(history)
        rows = [self._row(last, self.last), self._row(before, self.before)]
        items, values = torch.cat([row[0] for row in rows], dim=1), torch.cat([row[1] for row in rows], dim=1)
        # An item stands in each of the two rows at most once: equal neighbours after the sort are its two parts.
        rank = self.order[items.clamp_min(0)].masked_fill(items == PAD, self.num_items)
        rank, place = rank.sort(dim=1)
        items, values = items.gather(1, place), values.gather(1, place)
        again = torch.zeros_like(items, dtype=torch.bool)
        again[:, 1:] = (rank[:, 1:] == rank[:, :-1]) & (items[:, 1:] != PAD)
        values[:, :-1] += values[:, 1:].masked_fill(~again[:, 1:], 0.0)
        items = items.masked_fill(again, PAD)
        return MemoryCandidates(items, values.masked_fill(items == PAD, -torch.inf))

    def dense_scores(self, history: Tensor) -> Tensor:
        """The scores of all items.

        Args:
            history: [B, N] item ids, oldest first, PAD on the right.

        Returns:
            [B, I] float32. Items without an entry have 0, or the cosine of their text with ``exact_text``.
        """
        items, scores = self.scores(history)
        dense = scores.new_zeros(len(items), self.num_items + 1)
        dense.scatter_(1, items.masked_fill(items == PAD, self.num_items), scores.masked_fill(items == PAD, 0.0))
        dense = dense[:, :-1]
        return dense if self.vectors is None else dense + self._text_scores(*last_two(history), self.vectors)

    def distribution(self, history: Tensor, barred: Tensor | None = None, allowed: Tensor | None = None) -> MemoryDistribution:
        """Softmax of ``sharpness`` x score over the items that may be recommended.

        Args:
            history: [B, N] item ids, oldest first, PAD on the right.
            barred: [B, S] item ids that get no mass, PAD-filled, possibly repeated; None: none are.
            allowed: [I] bool, which items may be recommended at all; None: all.

        Returns:
            The ``candidates`` most probable items; what others there are share their mass evenly.
        """
        barred = history.new_empty(len(history), 0) if barred is None else barred
        sorted_barred = barred.masked_fill(barred == PAD, self.num_items).sort(dim=1).values
        distinct = sorted_barred < self.num_items
        distinct[:, 1:] &= sorted_barred[:, 1:] != sorted_barred[:, :-1]
        free = history.new_full((len(history),), self.num_items)
        if allowed is not None:
            distinct &= allowed[sorted_barred.clamp_max(self.num_items - 1)]
            free = allowed.sum().expand(len(history))
        free = free - distinct.sum(1)
        items, scores = self._every_score(history) if self.vectors is not None else self.scores(history)
        out = (items == PAD) | _held(items, sorted_barred)
        if allowed is not None:
            out |= ~allowed[items.clamp_min(0)]
        logits = (self.config.sharpness * scores).masked_fill(out, -torch.inf)
        # Items without a score have logit 0; the shift keeps every exponential at or below 1.
        shift = logits.amax(dim=1, keepdim=True).clamp_min(0.0)
        mass = (logits - shift).exp()
        unscored = (free - (~out).sum(1)) * (-shift.squeeze(1)).exp()
        mass, place = mass.sort(dim=1, descending=True, stable=True)
        kept, beyond = mass[:, : self.config.candidates], mass[:, self.config.candidates :].sum(1) + unscored
        total = (kept.sum(1) + beyond).clamp_min(torch.finfo(mass.dtype).tiny)
        items = items.gather(1, place[:, : self.config.candidates]).masked_fill(kept == 0, PAD)
        others = free - (items != PAD).sum(1)
        return MemoryDistribution(items, kept / total.unsqueeze(1), torch.where(others > 0, beyond / total / others.clamp_min(1), 0.0))

    def _row(self, items: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The entries of the rows of ``items`` [B] -> columns and values [B, W], PAD and 0 where a row is shorter."""
        start = self.offsets[items.clamp_min(0)]
        length = (self.offsets[items.clamp_min(0) + 1] - start).masked_fill(items == PAD, 0)
        slot = torch.arange(self.row_width, device=items.device)
        if len(self.columns) == 0:
            return slot.new_full((len(items), self.row_width), PAD), values.new_zeros(len(items), self.row_width)
        entry = (start.unsqueeze(1) + slot).clamp_max(len(self.columns) - 1)
        absent = slot >= length.unsqueeze(1)
        return self.columns[entry].long().masked_fill(absent, PAD), values[entry].masked_fill(absent, 0.0)

    def _every_score(self, history: Tensor) -> MemoryCandidates:
        """``dense_scores`` as candidates, in the order that breaks ties."""
        items = self.order.argsort()
        return MemoryCandidates(items.expand(len(history), -1), self.dense_scores(history)[:, items])

    def _text_scores(self, last: Tensor, before: Tensor, vectors: Tensor) -> Tensor:
        """[B, I], the two cosine terms; an item is not compared with itself."""
        with_last = self.config.text * vectors[last.clamp_min(0)].masked_fill((last == PAD).unsqueeze(1), 0.0)
        with_before = self.config.text_before * vectors[before.clamp_min(0)].masked_fill((before == PAD).unsqueeze(1), 0.0)
        scores = (with_last + with_before) @ vectors.T
        rows = torch.arange(len(last), device=last.device)
        for item, other in ((last, with_before), (before, with_last)):
            own = (vectors[item.clamp_min(0)] * other).sum(-1).masked_fill(last == before, 0.0)
            scores[rows, item.clamp_min(0)] = torch.where(item == PAD, scores[rows, item.clamp_min(0)], own)
        return scores


def last_two(history: Tensor) -> tuple[Tensor, Tensor]:
    """The last item of every history [B, N] and the one before it, each [B] int64; PAD where there is none."""
    guarded = torch.cat([history.new_full((len(history), 2), PAD), history], dim=1)
    end = (history != PAD).sum(1, keepdim=True) + 1
    return guarded.gather(1, end).squeeze(1), guarded.gather(1, end - 1).squeeze(1)


def _held(items: Tensor, ascending: Tensor) -> Tensor:
    """[B, M] bool: which of ``items`` [B, M] occur in their row of ``ascending`` [B, S]."""
    if ascending.shape[1] == 0:
        return torch.zeros_like(items, dtype=torch.bool)
    place = torch.searchsorted(ascending, items.contiguous()).clamp_max(ascending.shape[1] - 1)
    return ascending.gather(1, place) == items
