"""What the rooms hand to each other: batches as NamedTuples of tensors, and the one error class for mistakes a user can mend.

Shape letters: B batch, N history length, P targets per row, S seen items, C codes of a semantic ID.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PAD = -1
"""Fills the right end of every padded row of item ids and codes."""


class UserError(ValueError):
    """A mistake in a config, a file or the surroundings, told in one sentence: what is wrong, what is allowed, what to do.

    Several mistakes found together are several arguments. The scripts print them without a traceback and exit with code 2; any other
    exception is a bug and keeps its traceback.
    """

    def __str__(self) -> str:
        return str(self.args[0]) if len(self.args) == 1 else "several mistakes:" + "".join(f"\n  - {line}" for line in self.args)


class SeqBatch(NamedTuple):
    """Histories and the items to predict from them, as item ids.

    In training with a causal encoder the targets follow the last P of the N positions: ``targets[b, p]`` comes after
    ``item_ids[b, : N - P + p + 1]``. Otherwise P = 1: the one target follows the whole row. ``PAD`` marks positions that hold nothing.
    """

    user_ids: Tensor  # [B] int64, the user's row in the corpus
    item_ids: Tensor  # [B, N] int64, oldest first, padded with PAD on the right
    targets: Tensor  # [B, P] int64, PAD where there is nothing to predict
    seen: Tensor | None  # [B, S] int64: every item of the user before the target, padded with PAD; None in training

    def to(self, device: str | torch.device) -> "SeqBatch":
        user_ids, item_ids, targets = (field.to(device, non_blocking=True) for field in self[:3])
        return SeqBatch(user_ids, item_ids, targets, None if self.seen is None else self.seen.to(device, non_blocking=True))


class TokenizedSeqBatch(NamedTuple):
    """A SeqBatch with the codes of its items' semantic IDs; models that read more than codes also need the items."""

    user_ids: Tensor  # [B] int64
    sem_ids: Tensor  # [B, N, C] int64, zeros where mask is False
    mask: Tensor  # [B, N] bool, True at real items
    target_sem_ids: Tensor  # [B, P, C] int64, zeros where target_mask is False
    target_mask: Tensor  # [B, P] bool
    item_ids: Tensor | None = None  # [B, N] int64, PAD where mask is False
    targets: Tensor | None = None  # [B, P] int64, PAD where target_mask is False
