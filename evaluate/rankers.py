"""What the evaluator evaluates: anything that ranks items after a history, whether it was trained or not.

A new baseline is a class with a ``name`` and a ``recommend``; it is handed to the evaluator in a list. With ``ranked`` its scores are kept
too. The two further protocols are for models: what a run trains gives a loss and can be restricted to some items, and what writes semantic
IDs has figures for their codes too.
Shape letters: B batch, k length of a ranked list, J items of a shortlist.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from data.schemas import SeqBatch
from evaluate.baselines import LastItemMarkov, MostPopular, Ranked


class Ranker(Protocol):
    """Ranks items after histories."""

    @property
    def name(self) -> str:
        """Its row in the report."""

    def recommend(self, batch: SeqBatch, k: int, filter_history: bool) -> Tensor:
        """The k best items for every row.

        Args:
            batch: histories. ``batch.item_ids`` holds their last items, ``batch.seen`` all of them, which ``filter_history`` bars.
            k: length of the lists.
            filter_history: never recommend what the user already has.

        Returns:
            [B, k] int64, best first, PAD where fewer than k items are left; on the batch's device. It may be called by several threads
            at once.
        """


@runtime_checkable
class ScoredRanker(Ranker, Protocol):
    """A ranker that also says what its order is by."""

    def ranked(self, batch: SeqBatch, k: int, filter_history: bool) -> Ranked:
        """As ``recommend``, with the scores."""


class Found(NamedTuple):
    """Ranked lists of a ranker that writes codes."""

    item_ids: Tensor  # [B, k] as of ``Ranker.recommend``
    scores: Tensor  # [B, k] float32, what ranks them, descending; -inf where item_ids is PAD
    tuples: Tensor  # [B, k] names of distinct tuples of codes, best first, PAD-filled


@runtime_checkable
class CodeRanker(Ranker, Protocol):
    """A ranker that finds items by codes that several of them may share."""

    def find(self, batch: SeqBatch, k: int, filter_history: bool) -> Found:
        """As ``recommend``, with what matching codes would have claimed."""

    def tuples_of(self, items: Tensor) -> Tensor:
        """The name of each item's own tuple of codes, as in ``Found.tuples``: [...] -> [...]."""


class TrainedRanker(Ranker, Protocol):
    """What a run trains and selects by evaluation."""

    dtype: torch.dtype | None
    """Of autocast, in which it computes; None: fp32."""

    def loss(self, batch: SeqBatch) -> Tensor:
        """The training loss of a batch's targets, a scalar: a mean over its rows."""

    def among(self, items: Tensor) -> Ranker:
        """The same model, which can find only ``items`` [J]."""


def counted_rankers(train_item_ids: Tensor, train_offsets: Tensor, order: Tensor) -> Sequence[Ranker]:
    """The baselines that count the training part: most popular, and what most often followed the last item.

    Args:
        train_item_ids: [T] int64, the users' training histories one after the other (CSR values).
        train_offsets: [U + 1] int64 (CSR offsets).
        order: [I] from ``metrics.tie_order`` with the training popularity.
    """
    return [MostPopular(order), LastItemMarkov(train_item_ids, train_offsets, len(order), order)]
