"""Interactions as histories: leave-one-out, the leak check, statistics. Everything is vectorised over flat arrays.

Protocol: a user's last item is the test target, the one before it the validation target, the rest trains.

Shape letters: T interactions, U users, I items, V users with validation and test targets.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Histories(NamedTuple):
    """Everyone's items in two flat arrays: user u has ``item_ids[offsets[u] : offsets[u + 1]]``."""

    item_ids: Tensor  # [T] int64, user after user, oldest first
    offsets: Tensor  # [U+1] int64


class Corpus(NamedTuple):
    """A source after loading: the catalogue and everyone's history."""

    item_keys: list[str]  # [I] external ids
    titles: list[str]  # [I] for people; the external id where the source has no title
    texts: list[str]  # [I] what the sentence encoder reads
    user_keys: list[str]  # [U]
    histories: Histories  # every interaction
    times: Tensor | None = None  # [T] seconds, int64 or float64, one for each of the histories' item_ids; None: the source has none


class LeaveOneOut(NamedTuple):
    """The split. Evaluation histories are cut from ``full``: the training items, for the test also the validation item."""

    train: Histories  # all but the last two items of users with at least three; all items of the others
    users: Tensor  # [V] int64, rows of the users that have targets
    validation: Tensor  # [V] int64, their last item but one
    test: Tensor  # [V] int64, their last item
    full: Histories  # what was split


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


def leave_one_out(histories: Histories) -> LeaveOneOut:
    """Splits histories by position: last item test, the one before validation, the rest training.

    Users with fewer than three items keep all of them for training and have no targets.
    """
    item_ids, offsets = histories
    lengths = offsets.diff()
    users = torch.nonzero(lengths >= 3).flatten()
    train_lengths = lengths.clone()
    train_lengths[users] -= 2
    ends = offsets[1:][users]
    train_offsets = torch.zeros_like(offsets)
    train_offsets[1:] = train_lengths.cumsum(0)
    positions = torch.arange(len(item_ids)) - offsets[:-1].repeat_interleave(lengths)
    train_ids = item_ids[positions < train_lengths.repeat_interleave(lengths)]
    return LeaveOneOut(Histories(train_ids, train_offsets), users, item_ids[ends - 2], item_ids[ends - 1], histories)


def check_no_leak(split: LeaveOneOut, histories: Histories) -> None:
    """Holds that no validation or test interaction is part of training: the training part must be a strict prefix.

    The check is by position, not by item, because a user may legitimately meet an item twice. It is written without regard
    to how ``leave_one_out`` works and runs whenever training data is made.

    Raises:
        AssertionError: the sentence names the first user concerned.
    """
    lengths, train_lengths = histories.offsets.diff(), split.train.offsets.diff()
    if len(lengths) != len(train_lengths):
        raise AssertionError(f"leak check: the split has {len(train_lengths)} users, the histories have {len(lengths)}")
    held_out = torch.zeros_like(lengths)
    held_out[split.users] = 2
    _hold(train_lengths == lengths - held_out, "has training items beyond the position of the validation item, or lacks some")
    _hold(held_out == 2 * (lengths >= 3), "has fewer than three items but targets, or three and none")
    owner = torch.arange(len(lengths)).repeat_interleave(train_lengths)
    positions = torch.arange(len(split.train.item_ids)) - split.train.offsets[owner]
    prefix = histories.item_ids[histories.offsets[owner] + positions]
    _hold(split.train.item_ids == prefix, "has training items that are not the beginning of the history", owner)
    ends = histories.offsets[1:][split.users]
    _hold(split.validation == histories.item_ids[ends - 2], "has a validation target that is not the last item but one", split.users)
    _hold(split.test == histories.item_ids[ends - 1], "has a test target that is not the last item", split.users)


def _hold(condition: Tensor, what: str, users: Tensor | None = None) -> None:
    failed = torch.nonzero(~condition).flatten()
    if len(failed):
        user = int(failed[0] if users is None else users[failed[0]])
        raise AssertionError(f"leak check: user {user} {what} ({len(failed)} such cases)")


def item_popularity(train: Histories, num_items: int) -> Tensor:
    """Returns how often each item occurs in the training part, [I] int64."""
    return torch.bincount(train.item_ids, minlength=num_items)


def statistics(corpus: Corpus) -> CorpusStatistics:
    """Counts a corpus under the leave-one-out protocol."""
    lengths = corpus.histories.offsets.diff()
    split = leave_one_out(corpus.histories)
    unseen = item_popularity(split.train, len(corpus.item_keys))[split.test] == 0
    return CorpusStatistics(
        users=len(lengths),
        items=len(corpus.item_keys),
        interactions=len(corpus.histories.item_ids),
        mean_length=float(lengths.double().mean()) if len(lengths) else 0.0,
        median_length=float(np.median(lengths.numpy())) if len(lengths) else 0.0,
        train_targets=int((split.train.offsets.diff() - 1).clamp(min=0).sum()),
        unseen_test_share=float(unseen.double().mean()) if len(unseen) else 0.0,
    )


def split_hash(histories: Histories) -> str:
    """Returns 12 hex digits that name these histories, hence their split: two runs that share it used the same data."""
    sha = hashlib.sha256()
    for array in histories:
        sha.update(f"{len(array)};".encode())
        sha.update(array.cpu().numpy().astype("<i8").tobytes())
    return sha.hexdigest()[:12]
