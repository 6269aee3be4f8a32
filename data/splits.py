"""Training, validation and test parts of histories, and the check that none leaks into another. Vectorised over flat arrays.

Protocol: a user's last item is the test target, the one before it the validation target, the rest trains; or two moments split all.

Shape letters: T interactions, U users, I items, V users with validation and test targets.
"""

import hashlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from data.corpus import Histories
from data.schemas import UserError


class Targets(NamedTuple):
    """Items to predict: the history of each is what stands before it among its user's items."""

    users: Tensor  # [V] int64, rows of the users that have one, ascending
    positions: Tensor  # [V] int64, where the target stands in ``full.item_ids``


class Split(NamedTuple):
    """What trains, and what is predicted from what."""

    train: Histories  # the beginning of every user's history
    validation: Targets
    test: Targets
    full: Histories  # what was split

    def items(self, targets: Targets) -> Tensor:
        """Returns the target items [V]."""
        return self.full.item_ids[targets.positions]


class TimeSplit(NamedTuple):
    """One moment for all users: training before ``validation_from``, validation before ``test_from``, test after."""

    times: Tensor  # [T] of every interaction, int64 or float64
    validation_from: int | float  # whole where the times are: torch holds whole times against a fraction in float32, minutes off
    test_from: int | float


def leave_one_out(histories: Histories) -> Split:
    """Splits histories by position: last item test, the one before validation, the rest training.

    Users with fewer than three items keep all of them for training and have no targets.
    """
    lengths = histories.offsets.diff()
    users = torch.nonzero(lengths >= 3).flatten()
    ends = histories.offsets[1:][users]
    train = beginnings(histories, torch.where(lengths >= 3, lengths - 2, lengths))
    return Split(train, Targets(users, ends - 2), Targets(users, ends - 1), histories)


def split_by_time(histories: Histories, by: TimeSplit) -> Split:
    """Splits histories at two moments that are the same for all users; leave-one-out trains on what is another user's future.

    A user's validation target is the first item from the first moment on, the test target the first from the second on; users without
    an item before a target have none.
    """
    offsets, lengths = histories.offsets, histories.offsets.diff()
    owner = torch.arange(len(lengths)).repeat_interleave(lengths)
    before = [torch.bincount(owner[by.times < moment], minlength=len(lengths)) for moment in (by.validation_from, by.test_from)]
    parts = []
    for count, end in zip(before, (before[1], lengths)):
        users = torch.nonzero((count > 0) & (count < end)).flatten()
        parts.append(Targets(users, offsets[users] + count[users]))
    validation, test = parts
    return Split(beginnings(histories, before[0]), validation, test, histories)


def time_bounds(times: Tensor, quantiles: tuple[float, float]) -> TimeSplit:
    """Returns the moments before which such shares of all interactions lie.

    Raises:
        UserError: nothing would lie before, between or after them.
    """
    ordered = times.sort().values
    first, second = (ordered[min(int(share * len(ordered)), len(ordered) - 1)].item() for share in quantiles)
    begin = ordered[0].item()
    if not begin < first < second:
        raise UserError(
            f"train.split_quantiles = {list(quantiles)} are at the times {first} and {second} of data from {begin} on, "
            "which leaves a part empty; move them apart"
        )
    return TimeSplit(times, first, second)


def beginnings(histories: Histories, lengths: Tensor) -> Histories:
    """Returns the first ``lengths`` [U] items of each user."""
    item_ids, offsets = histories
    owner = offsets.diff()
    positions = torch.arange(len(item_ids)) - offsets[:-1].repeat_interleave(owner)
    ends = torch.zeros_like(offsets)
    ends[1:] = lengths.cumsum(0)
    return Histories(item_ids[positions < lengths.repeat_interleave(owner)], ends)


NO_TRAINING = "no user has two training items, so there is nothing to train on; histories need at least four items"


def part_mistakes(split: Split, by_time: bool = False) -> Iterator[str]:
    """A sentence for each part of a split that is empty, so that nothing could be trained, selected or tested.

    Args:
        split: of any kind.
        by_time: at two moments; else leave-one-out.
    """
    if not bool((split.train.offsets.diff() >= 2).any()):
        yield NO_TRAINING
    empty = [name for name, targets in (("validation", split.validation), ("test", split.test)) if not len(targets.users)]
    if empty and by_time:
        what = "no user has an item before the moment and one from it on"
        yield f"the {' and the '.join(empty)} part of train.split_by = 'time' is empty: {what}; move train.split_quantiles"
    elif empty:
        yield "no user has three items, so none can be held out for validation and test; give longer histories"


class MetBefore(NamedTuple):
    """Held-out items that their users had met before: a search that bars the history cannot find them."""

    part: str
    cases: int
    targets: int

    def describe(self) -> str:
        """One sentence, a warning where they are many; "" where there are none."""
        if not self.cases:
            return ""
        what = f"{self.cases:,} of {self.targets:,} held-out items are in the user's own history and cannot be hit"
        warning = "warning: " if self.cases > MANY * self.targets else ""
        return f"{warning}{what} while train.filter_history = True ({self.part})"


MANY = 0.02
"""The share of such items from which on they are warned of."""


def met_before(split: Split, part: Literal["validation", "test"]) -> MetBefore:
    """Counts the targets of a part that stand earlier in their user's history, too."""
    targets = split.validation if part == "validation" else split.test
    item_ids, offsets = split.full
    lengths = offsets.diff()
    owner = torch.arange(len(lengths), device=item_ids.device).repeat_interleave(lengths)
    pairs = owner * (int(item_ids.max()) + 1 if len(item_ids) else 1) + item_ids
    ordered, positions = pairs.sort(stable=True)
    again = torch.zeros_like(item_ids, dtype=torch.bool)
    again[positions[1:]] = ordered[1:] == ordered[:-1]
    return MetBefore(part, int(again[targets.positions].sum()), len(targets.users))


def check_no_leak(split: Split, histories: Histories, by: TimeSplit | None = None) -> None:
    """Holds that no validation or test interaction is part of training: the training part must be a strict prefix.

    The check is by position, not by item, because a user may legitimately meet an item twice. It is written without regard
    to how the split was made and runs whenever training data is made.

    Args:
        split: what is checked.
        histories: every interaction.
        by: the moments of a split by time; None: leave-one-out.

    Raises:
        AssertionError: the sentence names the first user concerned.
    """
    lengths, train_lengths = histories.offsets.diff(), split.train.offsets.diff()
    if len(lengths) != len(train_lengths):
        raise AssertionError(f"leak check: the split has {len(train_lengths)} users, the histories have {len(lengths)}")
    owner = torch.arange(len(lengths)).repeat_interleave(train_lengths)
    _hold(train_lengths <= lengths, "has more training items than items")
    positions = histories.offsets[owner] + torch.arange(len(split.train.item_ids)) - split.train.offsets[owner]
    _hold(split.train.item_ids == histories.item_ids[positions], "has training items that are not the beginning of the history", owner)
    for part in (split.validation, split.test):
        begins, ends = histories.offsets[:-1][part.users], histories.offsets[1:][part.users]
        _hold((begins < part.positions) & (part.positions < ends), "has a target outside the history, or nothing before it", part.users)
        _hold(begins + train_lengths[part.users] <= part.positions, "has a target among the training items", part.users)
    if by is None:
        _check_last_two(split, lengths, histories.offsets[1:])
    else:
        _check_moments(split, by, positions, owner)


def _check_last_two(split: Split, lengths: Tensor, ends: Tensor) -> None:
    held_out = torch.zeros_like(lengths)
    held_out[split.validation.users] = 2
    _hold(split.train.offsets.diff() == lengths - held_out, "has training items beyond the position of the validation item, or lacks some")
    _hold(held_out == 2 * (lengths >= 3), "has fewer than three items but targets, or three and none")
    validation, test = split.validation, split.test
    _hold(validation.positions == ends[validation.users] - 2, "has a validation target that is not the last item but one", validation.users)
    _hold(test.positions == ends[test.users] - 1, "has a test target that is not the last item", test.users)


def _check_moments(split: Split, by: TimeSplit, trained: Tensor, owner: Tensor) -> None:
    first, second = by.validation_from, by.test_from
    _hold(by.times[trained] < first, "has training items of the validation's time or later", owner)
    for targets, begin, end, name in ((split.validation, first, second, "validation"), (split.test, second, float("inf"), "test")):
        times, earlier = by.times[targets.positions], by.times[targets.positions - 1]
        _hold((times >= begin) & (times < end), f"has a {name} target outside its time", targets.users)
        _hold(earlier < begin, f"has a {name} target that is not the first of its time", targets.users)


def _hold(condition: Tensor, what: str, users: Tensor | None = None) -> None:
    failed = torch.nonzero(~condition).flatten()
    if len(failed):
        user = int(failed[0] if users is None else users[failed[0]])
        raise AssertionError(f"leak check: user {user} {what} ({len(failed)} such cases)")


def split_hash(histories: Histories, by: TimeSplit | None = None) -> str:
    """Returns 12 hex digits that name these histories and their split: two runs that share it used the same data."""
    sha = hashlib.sha256(b"" if by is None else f"{by.validation_from};{by.test_from};".encode())
    for array in histories:
        sha.update(f"{len(array)};".encode())
        sha.update(array.cpu().numpy().astype("<i8").tobytes())
    return sha.hexdigest()[:12]
