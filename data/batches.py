"""Histories cut into batches, for training and for evaluation.

Shape letters: B batch, N history length, P targets per row, S seen items, I items.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from data.batch_plan import BatchPlanner, TrainPlan, Windows, prefix_rows, window_rows
from data.corpus import Histories
from data.schemas import PAD, SeqBatch, UserError
from data.splits import NO_TRAINING, Split, Targets, TimeSplit, check_no_leak, leave_one_out, split_by_time
from data.statistics import item_popularity


class SeqData:
    """Histories cut into batches for training and evaluation, under either protocol.

    Args:
        corpus_histories: every interaction; the split is made and checked for leaks here.
        num_items: I.
        max_seq_len: items of history a row holds at most.
        causal: rows hold a target behind most of their positions (for an encoder that looks only back); otherwise each row is
            one target with its own history.
        by: the moments of a split by time; None: leave-one-out.

    Raises:
        UserError: no user has two training items, or max_seq_len is below 1.
    """

    def __init__(
        self, corpus_histories: Histories, num_items: int, max_seq_len: int = 20, causal: bool = True, by: TimeSplit | None = None
    ) -> None:
        if max_seq_len < 1:
            raise UserError(f"train.max_seq_len is {max_seq_len}; a history needs at least 1 item; raise it")
        self.num_users = len(corpus_histories.offsets) - 1
        self.num_items, self.max_seq_len, self.causal = num_items, max_seq_len, causal
        self.split = leave_one_out(corpus_histories) if by is None else split_by_time(corpus_histories, by)
        check_no_leak(self.split, corpus_histories, by)
        self.popularity = item_popularity(self.split.train, num_items)  # [I] int64, counted in the training part
        self.windows = (window_rows if causal else prefix_rows)(self.split.train, max_seq_len)
        self.num_train_targets = int(self.windows.num_targets.sum())
        if self.num_train_targets == 0:
            raise UserError(NO_TRAINING)
        self._planner = BatchPlanner(self.windows, max_seq_len)
        self._plan: tuple[tuple[int, ...], TrainPlan] | None = None

    def to(self, device: str | torch.device) -> "SeqData":
        """Moves the arrays that batches are cut from; batches then come out on that device. Plans are made on the CPU."""

        def moved(fields: Iterable[Tensor]) -> Iterator[Tensor]:
            return (field.to(device) for field in fields)

        train, validation, test, full = self.split
        parts = Targets(*moved(validation)), Targets(*moved(test))
        self.split, self.windows = Split(Histories(*moved(train)), *parts, Histories(*moved(full))), Windows(*moved(self.windows))
        self.popularity, self._plan = self.popularity.to(device), None
        return self

    def steps_per_epoch(self, batch_size: int, world: int = 1) -> int:
        """Returns the number of batches, the same in every epoch and at any world size: ``batch_size`` is that of all ranks."""
        return len(self._planner.points(batch_size)) - 1

    def train_plan(self, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> TrainPlan:
        """Returns which rows make up which batch of an epoch, as the rank sees it."""
        return self._planner.plan(batch_size, seed, epoch, rank, world)

    def train_batch(self, step: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> SeqBatch:
        """Returns the batch of a step, counted from 0 over all epochs: a function of its arguments and nothing else.

        Args:
            batch_size: targets (not rows) a batch holds at most, over all ranks.

        Returns:
            P <= N for a causal encoder, else P = 1. A rank whose share of a small batch is empty gets one row without targets.
        """
        epoch, index = divmod(step, self.steps_per_epoch(batch_size))
        key = (batch_size, seed, epoch, rank, world)
        if self._plan is None or self._plan[0] != key:
            plan = self.train_plan(*key)
            self._plan = (key, plan._replace(rows=plan.rows.to(self.windows.starts.device)))
        plan = self._plan[1]
        width, context = int(plan.widths[index]), int(plan.contexts[index])
        rows = plan.rows[int(plan.offsets[index]) : int(plan.offsets[index + 1])]
        if len(rows):
            return self._cut_rows(rows, width, context)
        spare = self._cut_rows(plan.first_rows[index : index + 1].to(rows.device), width, context)
        return spare._replace(targets=torch.full_like(spare.targets, PAD))

    def _cut_rows(self, rows: Tensor, width: int, context: int) -> SeqBatch:
        users, starts, lengths, num_targets = (field[rows] for field in self.windows)
        item_ids = _cut(self.split.train.item_ids, starts, lengths, width)
        if not self.causal:
            return SeqBatch(users, item_ids, self.split.train.item_ids[starts + lengths, None], None)
        targets = _cut(self.split.train.item_ids, starts + 1, lengths, width)
        earlier = torch.arange(width, device=rows.device) < (lengths - num_targets)[:, None]
        return SeqBatch(users, item_ids, targets.masked_fill(earlier, PAD)[:, context:], None)

    def eval_batches(self, part: Literal["validation", "test"], batch_size: int, users: Tensor | None = None) -> Iterator[SeqBatch]:
        """Yields every user with targets once, shortest histories first, in an order that depends on the data alone.

        The history of a target is every item before it: for validation the training items, for the test the validation's as well.

        Args:
            part: which target.
            batch_size: users a batch.
            users: only these rows of the corpus; each must have targets.
        """
        if part not in ("validation", "test"):
            raise ValueError(f"part must be 'validation' or 'test', got {part!r}")
        targets = self.split.validation if part == "validation" else self.split.test
        eligible = targets.users
        if users is None:
            chosen = torch.arange(len(eligible), device=eligible.device)
        else:
            wanted = users.to(eligible.device).unique()
            chosen = torch.searchsorted(eligible, wanted).clamp(max=max(len(eligible) - 1, 0))
            if len(wanted) and (len(eligible) == 0 or not torch.equal(eligible[chosen], wanted)):
                raise ValueError("eval_batches was asked for users that have no targets, as those with fewer than three items have none")
        if len(chosen) == 0:
            return
        lengths = targets.positions[chosen] - self.split.full.offsets[eligible[chosen]]
        for block in lengths.argsort(stable=True).split(batch_size):
            yield self._cut_eval(eligible[chosen[block]], targets.positions[chosen[block]], lengths[block])

    def _cut_eval(self, users: Tensor, positions: Tensor, lengths: Tensor) -> SeqBatch:
        item_ids, history = self.split.full.item_ids, lengths.clamp(max=self.max_seq_len)
        seen = _cut(item_ids, positions - lengths, lengths, int(lengths.max()))
        return SeqBatch(users, _cut(item_ids, positions - history, history, int(history.max())), item_ids[positions, None], seen)


def _cut(item_ids: Tensor, starts: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Gathers ``item_ids[starts[b] : starts[b] + lengths[b]]`` for each b into [B, width], PAD on the right; never waits for the device."""
    steps = torch.arange(width, device=item_ids.device)
    cut = item_ids[(starts[:, None] + steps).clamp(max=len(item_ids) - 1)]
    return cut.masked_fill(steps >= lengths[:, None], PAD)
