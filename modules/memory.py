"""The memory: a distribution over items from training transitions and texts that are alike; nothing in it is learned.

What followed the last two items of a history in training, what came before them, and whose texts are near them, each with a fixed weight
(``MemoryConfig``). Only the training part is counted. A query costs the same at any number of items, ``dense_scores`` apart.
Shape letters: B batch, N history length, S barred items, I items, E text-embedding width, W longest row, M = 2 W entries, K candidates.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.schemas import PAD
from modules.nearest import NUMBERS_AT_ONCE, Neighbours, directions, nearest_texts
from modules.transitions import MARKOV_WITH_TEXTS, MemoryConfig, MemoryTables, entries_of, last_two, memory_tables

__all__ = ["MARKOV_WITH_TEXTS", "Memory", "MemoryCandidates", "MemoryConfig", "MemoryDistribution"]


class MemoryCandidates(NamedTuple):
    """The items about which the memory has something to say; every other item of the catalogue has score 0."""

    items: Tensor  # [B, K] int64, different within a row, PAD where there is none
    scores: Tensor  # [B, K] float32, -inf at PAD


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
        vectors: [I, E] from ``nearest.directions``, for exact cosines of all candidates.
    """

    offsets: Tensor
    columns: Tensor
    last: Tensor
    before: Tensor
    cosines: Tensor
    order: Tensor
    vectors: Tensor | None

    def __init__(self, tables: MemoryTables, order: Tensor, config: MemoryConfig, vectors: Tensor | None = None) -> None:
        super().__init__()
        self.config, self.num_items = config, len(order)
        for name, table in tables._asdict().items():
            self.register_buffer(name, table)
        self.register_buffer("order", order)
        self.register_buffer("vectors", vectors)
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
            ValueError: order, offsets or vectors of another corpus.
        """
        config = config or MemoryConfig()
        if len(order) != num_items:
            raise ValueError(f"order ranks {len(order)} items, but num_items is {num_items}")
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(item_ids):
            raise ValueError(f"offsets must run from 0 to {len(item_ids)}: got {offsets[[0, -1]].tolist()}")
        if vectors is not None and len(vectors) != num_items:
            raise ValueError(f"got {len(vectors)} text vectors for {num_items} items")
        towards = directions(vectors) if vectors is not None and (config.text or config.text_before) else None
        if neighbours is None and towards is not None and config.neighbours:
            neighbours = nearest_texts(towards, config.neighbours, order)
        tables = memory_tables(item_ids, offsets, num_items, order, config, neighbours, towards)
        # Where one of the two texts counts alone, the stored cosines are all there are.
        return cls(tables, order, config, towards if config.exact_text and config.text and config.text_before else None)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], config: MemoryConfig) -> "Memory":
        """The memory whose ``state_dict`` this is."""
        return cls(MemoryTables(*(state[name] for name in MemoryTables._fields)), state["order"], config, state.get("vectors"))

    @property
    def tables(self) -> MemoryTables:
        return MemoryTables(self.offsets, self.columns, self.last, self.before, self.cosines)

    def scores(self, history: Tensor, barred: Tensor | None = None, allowed: Tensor | None = None) -> MemoryCandidates:
        """The ``candidates`` best items of which the memory knows something.

        Args:
            history: [B, N] item ids, oldest first, PAD on the right; it may be empty.
            barred: [B, S] item ids that are no candidates, PAD-filled, possibly repeated; None: none are barred.
            allowed: [I] bool, which items may be candidates at all; None: all.

        Returns:
            Candidates in the order that breaks ties, so that a stable sort by score is the ranking.
        """
        return self._candidates(history, None if barred is None else self._ascending(barred), allowed)[0]

    def dense_scores(self, history: Tensor) -> Tensor:
        """The scores of all items, with the cosines of all texts where the memory keeps the vectors. Costs time and memory for all items.

        Args:
            history: [B, N] item ids, oldest first, PAD on the right.

        Returns:
            [B, I] float32; 0 for an item of which the memory knows nothing.
        """
        items, counted, alike = entries_of(history, self.tables, self.order, self.row_width, self.config)
        dense = counted.new_zeros(len(items), self.num_items + 1)
        known = counted if self.vectors is not None else counted + alike
        dense.scatter_(1, items.masked_fill(items == PAD, self.num_items), known.masked_fill(items == PAD, 0.0))
        if self.vectors is None:
            return dense[:, :-1]
        every = torch.arange(self.num_items, device=items.device).expand(len(items), -1)
        with torch.autocast(items.device.type, enabled=False):
            return dense[:, :-1] + self._without_itself(self._query(history, self.vectors) @ self.vectors.T, every, history)

    def distribution(self, history: Tensor, barred: Tensor | None = None, allowed: Tensor | None = None) -> MemoryDistribution:
        """Softmax of ``sharpness`` x score over the items that may be recommended.

        Args:
            history: [B, N] item ids, oldest first, PAD on the right.
            barred: [B, S] item ids that get no mass, PAD-filled, possibly repeated; None: none are barred.
            allowed: [I] bool, which items may be recommended at all; None: all.

        Returns:
            The candidates most probable first; what others there are share their mass evenly.
        """
        ascending = self._ascending(history.new_empty(history.shape[0], 0) if barred is None else barred)
        distinct = ascending < self.num_items
        distinct[:, 1:] &= ascending[:, 1:] != ascending[:, :-1]
        free = history.new_full((history.shape[0],), self.num_items)
        if allowed is not None:
            distinct &= allowed[ascending.clamp_max(self.num_items - 1)]
            free = allowed.sum().expand(history.shape[0])
        free = free - distinct.sum(1)
        (items, scores), passed_over = self._candidates(history, ascending, allowed)
        scores, place = scores.sort(dim=1, descending=True, stable=True)
        items = items.gather(1, place)
        # An item without a score has logit 0; the shift keeps every exponential at or below 1.
        logits, other_logits = self.config.sharpness * scores, self.config.sharpness * passed_over
        shift = torch.cat([logits, other_logits], dim=1).amax(dim=1, keepdim=True).clamp_min(0.0)
        mass, passed_mass = (logits - shift).exp(), (other_logits - shift).exp().sum(1)
        others = free - (items != PAD).sum(1)
        unscored = others - (passed_over > -torch.inf).sum(1)
        beyond = passed_mass + unscored * (-shift.squeeze(1)).exp()
        total = (mass.sum(1) + beyond).clamp_min(torch.finfo(mass.dtype).tiny)
        return MemoryDistribution(items, mass / total.unsqueeze(1), torch.where(others > 0, beyond / total / others.clamp_min(1), 0.0))

    def _ascending(self, barred: Tensor) -> Tensor:
        """Each row of ``barred`` [B, S] sorted, PAD last and as I."""
        return barred.masked_fill(barred == PAD, self.num_items).sort(dim=1).values

    def _candidates(self, history: Tensor, ascending: Tensor | None, allowed: Tensor | None) -> tuple[MemoryCandidates, Tensor]:
        """The candidates, and the stored scores [B, M - K] of the entries that are passed over, -inf where there is none."""
        items, counted, alike = entries_of(history, self.tables, self.order, self.row_width, self.config)
        if ascending is not None:
            items = items.masked_fill(_held(items, ascending), PAD)
        if allowed is not None:
            items = items.masked_fill(~allowed[items.clamp_min(0)], PAD)
        stored, place = (counted + alike).masked_fill(items == PAD, -torch.inf).sort(dim=1, descending=True, stable=True)
        passed_over = stored[:, self.config.candidates :]
        place = place[:, : self.config.candidates].sort(dim=1).values
        items, counted, alike = (field.gather(1, place) for field in (items, counted, alike))
        if self.vectors is not None:
            alike = self._exact_cosines(history, items, self.vectors)
        return MemoryCandidates(items, (counted + alike).masked_fill(items == PAD, -torch.inf)), passed_over

    def _query(self, history: Tensor, vectors: Tensor) -> Tensor:
        """[B, E], whose product with an item's vector is the sum of the two weighted cosines."""
        parts = [vectors[item.clamp_min(0)].masked_fill((item == PAD).unsqueeze(1), 0.0) for item in last_two(history)]
        return self.config.text * parts[0] + self.config.text_before * parts[1]

    def _exact_cosines(self, history: Tensor, items: Tensor, vectors: Tensor) -> Tensor:
        """[B, K], the weighted cosines of ``items`` [B, K], from a bounded number of vectors at once."""
        query = self._query(history, vectors)
        if torch.compiler.is_compiling():  # a graph for any number of rows cannot part them
            return self._without_itself((vectors[items.clamp_min(0)] * query.unsqueeze(1)).sum(-1), items, history)
        rows = max(1, NUMBERS_AT_ONCE // max(items.shape[1] * vectors.shape[1], 1))
        parts = zip(query.split(rows), items.split(rows))
        products = [(vectors[part.clamp_min(0)] * own.unsqueeze(1)).sum(-1) for own, part in parts]
        return self._without_itself(torch.cat(products) if products else items.float(), items, history)

    def _without_itself(self, cosines: Tensor, items: Tensor, history: Tensor) -> Tensor:
        """Weighted cosines [B, M] of ``items`` [B, M], less that of an item with itself: it is no neighbour of its own."""
        if self.vectors is None:
            return cosines
        for item, weight in zip(last_two(history), (self.config.text, self.config.text_before)):
            own = weight * self.vectors[item.clamp_min(0)].square().sum(-1, keepdim=True)
            cosines = cosines - own.masked_fill(items != item.unsqueeze(1), 0.0)
        return cosines


def _held(items: Tensor, ascending: Tensor) -> Tensor:
    """[B, M] bool: which of ``items`` [B, M] occur in their row of ``ascending`` [B, S]."""
    if ascending.shape[1] == 0:
        return torch.zeros_like(items, dtype=torch.bool)
    place = torch.searchsorted(ascending, items.contiguous()).clamp_max(ascending.shape[1] - 1)
    return ascending.gather(1, place) == items
