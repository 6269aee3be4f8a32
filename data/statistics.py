"""Counts of a corpus that a reader wants to see before a number that was computed on it.

Shape letters: I items.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.corpus import Corpus, Histories
from data.splits import Split, leave_one_out


class CorpusStatistics(NamedTuple):
    """What a reader wants to know of a dataset before trusting a number computed on it."""

    users: int
    items: int
    interactions: int
    mean_length: float
    median_length: float
    train_targets: int  # positions from the second item to the last training item
    unseen_test_share: float  # share of test targets that never occur in the training part

    def describe(self) -> str:
        """Returns one line for the start of a run."""
        return (
            f"{self.users:,} users, {self.items:,} items, {self.interactions:,} interactions "
            f"(mean {self.mean_length:.2f}, median {self.median_length:g} a user), {self.train_targets:,} training targets, "
            f"{self.unseen_test_share:.1%} of test items unseen in training"
        )


def statistics(corpus: Corpus, split: Split | None = None) -> CorpusStatistics:
    """Counts a corpus under a split of it; None: leave-one-out."""
    lengths = corpus.histories.offsets.diff()
    split = split or leave_one_out(corpus.histories)
    unseen = item_popularity(split.train, len(corpus.item_keys))[split.items(split.test)] == 0
    return CorpusStatistics(
        users=len(lengths),
        items=len(corpus.item_keys),
        interactions=len(corpus.histories.item_ids),
        mean_length=float(lengths.double().mean()) if len(lengths) else 0.0,
        median_length=float(np.median(lengths.numpy())) if len(lengths) else 0.0,
        train_targets=int((split.train.offsets.diff() - 1).clamp(min=0).sum()),
        unseen_test_share=float(unseen.double().mean()) if len(unseen) else 0.0,
    )


def item_popularity(train: Histories, num_items: int) -> Tensor:
    """Returns how often each item occurs in the training part, [I] int64."""
    return torch.bincount(train.item_ids, minlength=num_items)
