"""Rankers over whatever scores items: a trained model that scores the catalogue, or the memory, which scores a few items a history.

Both rank by score, then by the order that breaks ties, and are deterministic.
Shape letters: B batch, N history length, S barred items, I items, K candidates, T excluded items, k length of a ranked list.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from data.schemas import PAD, SeqBatch
from evaluate.baselines import MostPopular, Ranked, key_scores, score_keys
from evaluate.metrics import places_with_ties


class Scorer(Protocol):
    """Scores every item, as ``modules.sasrec.SASRec`` does."""

    def scores(self, batch: SeqBatch, /) -> Tensor:
        """[B, I] float32, higher = better."""


class Memory(Protocol):
    """Scores a few items after a history, as ``modules.memory.Memory`` does."""

    def scores(self, history: Tensor, barred: Tensor | None = None, /) -> tuple[Tensor, Tensor]:
        """Items [B, K], none of ``barred`` [B, S], different within a row and PAD where there is none, and their scores [B, K] float32.

        All other items have score 0.
        """


class ScoreRanker(MostPopular):
    """The items with the highest scores.

    Args:
        scorer: on the device of ``order``, in evaluation mode.
        order: [I] from ``metrics.tie_order`` with the training popularity.
        name: its row in the report.
    """

    def __init__(self, scorer: Scorer, order: Tensor, name: str = "scores") -> None:
        super().__init__(order)
        self.scorer, self.name = scorer, name

    @torch.no_grad()
    def _keys(self, batch: SeqBatch) -> Tensor:
        return score_keys(self.scorer.scores(batch), self.order)

    def _scores(self, keys: Tensor) -> Tensor:
        return key_scores(keys, self.num_items)


class MemoryRanker(MostPopular):
    """The items with the highest scores of a memory; items of which it knows nothing have score 0 and stand by popularity.

    Its cost does not depend on the number of items.

    Args:
        memory: on the device of ``order``.
        order: [I] from ``metrics.tie_order`` with the training popularity.
        name: its row in the report.
    """

    def __init__(self, memory: Memory, order: Tensor, name: str = "memory") -> None:
        super().__init__(order)
        self.memory, self.name = memory, name
        self.by_order = order.argsort()

    @torch.no_grad()
    def ranked(self, batch: SeqBatch, k: int, filter_history: bool) -> Ranked:
        """As ``MostPopular.ranked``."""
        history = batch.item_ids.to(self.order.device)
        barred = (batch.item_ids if batch.seen is None else batch.seen).to(self.order.device)
        barred = barred if filter_history else barred[:, :0]
        items, scores = self.memory.scores(history, barred)
        others = self._most_popular_but(torch.cat([items, barred], dim=1), k)
        items, values = torch.cat([items, others], dim=1), torch.cat([scores, torch.zeros_like(others, dtype=scores.dtype)], dim=1)
        places = places_with_ties(items, values, self.order)[:, :k]
        missing, device = (0, k - places.shape[1]), batch.item_ids.device
        ranked = torch.nn.functional.pad(items.gather(1, places), missing, value=PAD)
        ordered = torch.nn.functional.pad(values.gather(1, places), missing)
        return Ranked(ranked.to(device), ordered.float().masked_fill(ranked == PAD, -math.inf).to(device))

    def _most_popular_but(self, items: Tensor, k: int) -> Tensor:
        """The first k items [B, k] in the order that breaks ties that are not among ``items`` [B, T], PAD where there are fewer."""
        first = min(self.num_items, k + items.shape[1])
        rank = self.order[items.clamp_min(0)].masked_fill(items == PAD, first).clamp_max(first)
        taken = torch.zeros(len(items), first + 1, dtype=torch.bool, device=items.device).scatter_(1, rank, True)[:, :first]
        place = taken.to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
        return self.by_order[place].masked_fill(taken.gather(1, place), PAD)
