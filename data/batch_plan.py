"""Training rows: which stretch of whose history makes a row, which rows make a batch, in which order. No Python per row.

Every position from a user's second item to the last training item is a target exactly once an epoch.

Shape letters: R rows, T items of all histories, S steps an epoch.
"""

import bisect
import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.corpus import Histories


class Windows(NamedTuple):
    """Rows as stretches of the flat training array: row r reads ``item_ids[starts[r] : starts[r] + lengths[r]]``.

    Its last ``num_targets[r]`` positions have a target, which is the item that follows them.
    """

    users: Tensor  # [R] int64
    starts: Tensor  # [R] int64
    lengths: Tensor  # [R] int64, at least 1
    num_targets: Tensor  # [R] int64, at least 1


class TrainPlan(NamedTuple):
    """The batches of an epoch, as one rank sees them: batch s has ``rows[offsets[s] : offsets[s + 1]]``."""

    rows: Tensor  # [R] int64
    offsets: Tensor  # [S+1] int64, on the CPU
    widths: Tensor  # [S] int64, on the CPU: the longest row of the whole batch, the same on every rank
    contexts: Tensor  # [S] int64, on the CPU: positions at the start of which no row of the whole batch has a target
    first_rows: Tensor  # [S] int64, on the CPU: a row of the whole batch, for a rank whose share is empty


def ragged_arange(starts: Tensor, lengths: Tensor) -> Tensor:
    """Returns starts[0], starts[0]+1, .. (lengths[0] numbers), then the same for starts[1], and so on."""
    before = lengths.cumsum(0) - lengths
    return (starts - before).repeat_interleave(lengths) + torch.arange(int(lengths.sum()), device=starts.device)


def prefix_rows(train: Histories, max_seq_len: int) -> Windows:
    """One row a target: the last ``max_seq_len`` items before it. Every such row has one target."""
    lengths = train.offsets.diff()
    counts = (lengths - 1).clamp(min=0)
    users = torch.arange(len(lengths)).repeat_interleave(counts)
    targets = ragged_arange(train.offsets[:-1] + 1, counts)
    history = (targets - train.offsets[users]).clamp(max=max_seq_len)
    return Windows(users, targets - history, history, torch.ones_like(history))


def window_rows(train: Histories, max_seq_len: int) -> Windows:
    """One row for many targets, for an encoder in which a position sees only what came before it.

    A user of n items gives n - 1 inputs. If these fit they are one row. Otherwise rows of ``max_seq_len`` follow each other at
    half that distance, and a later row has only the targets that no earlier row had, each behind at least half a row of history.
    """
    stride = max(1, max_seq_len // 2)
    inputs = (train.offsets.diff() - 1).clamp(min=0)
    further = ((inputs - max_seq_len).clamp(min=0) + stride - 1) // stride
    counts = torch.where(inputs > 0, 1 + further, 0)
    users = torch.arange(len(inputs)).repeat_interleave(counts)
    index = ragged_arange(torch.zeros_like(counts), counts)  # of the row among its user's
    begins = index * stride
    ends = torch.minimum(begins + max_seq_len, inputs[users])
    done = torch.where(index > 0, begins - stride + max_seq_len, 0)
    return Windows(users, train.offsets[users] + begins, ends - begins, ends - done)


def cut_points(num_targets: Tensor, batch_size: int) -> list[int]:
    """Cuts rows, in the order given, into batches of at most ``batch_size`` targets (or of one row that alone has more).

    Returns:
        S+1 positions.
    """
    totals = num_targets.cumsum(0).tolist()
    points, taken = [0], 0
    while points[-1] < len(totals):
        end = max(bisect.bisect_right(totals, taken + batch_size), points[-1] + 1)
        points.append(end)
        taken = totals[end - 1]
    return points


class BatchPlanner:
    """Groups rows of equal shape, cuts them into batches and shuffles both, anew each epoch and always the same for a seed.

    Rows are sorted by (length, targets) after a random permutation: the sorted shapes, hence the cuts and the number of batches,
    are the same in every epoch; only which rows stand where is not.
    """

    def __init__(self, windows: Windows, max_seq_len: int) -> None:
        self.shapes = windows.lengths * (max_seq_len + 1) + windows.num_targets
        order = self.shapes.argsort(stable=True)
        self._sorted_lengths, self._sorted_targets = windows.lengths[order], windows.num_targets[order]
        self._sorted_contexts = self._sorted_lengths - self._sorted_targets
        self._points: dict[int, Tensor] = {}

    def points(self, batch_size: int) -> Tensor:
        """Returns the S+1 cut points of an epoch."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 target, got {batch_size}")
        if batch_size not in self._points:
            self._points = {batch_size: torch.tensor(cut_points(self._sorted_targets, batch_size))}
        return self._points[batch_size]

    def plan(self, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> TrainPlan:
        """Returns the rank's share of every batch of an epoch: each ``world``-th row of it, from the ``rank``-th on."""
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0..{world - 1}, got {rank}")
        name = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(name[:7], "little"))
        permutation = torch.randperm(len(self.shapes), generator=generator)
        order = permutation[self.shapes[permutation].argsort(stable=True)]
        points = self.points(batch_size)
        batches = torch.randperm(len(points) - 1, generator=generator)
        starts, sizes = points[:-1][batches], points.diff()[batches]
        shares = (sizes - rank + world - 1) // world
        positions = starts.repeat_interleave(shares) + rank + world * ragged_arange(torch.zeros_like(shares), shares)
        offsets = torch.zeros(len(points), dtype=torch.int64)
        offsets[1:] = shares.cumsum(0)
        widths = self._sorted_lengths[points[1:] - 1][batches]
        contexts = torch.from_numpy(np.minimum.reduceat(self._sorted_contexts.numpy(), points[:-1].numpy()))[batches]
        return TrainPlan(order[positions], offsets, widths, contexts, order[starts])
