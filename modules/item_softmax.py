"""Cross-entropy over a catalogue: the softmax over all items, and over a sample of them where a catalogue is too large for that.

SASRec and the item head train with it. Klenitskiy and Vasilev (2023), arXiv 2309.07602, for the loss; the sampled one has the log-q
correction of Bengio and Senecal (2008) for uniform draws.
Shape letters: ... places of a batch, I items, D width, n sampled items.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from data.schemas import PAD

FULL_UP_TO = 100_000
"""Items of the largest catalogue whose loss has every item in its denominator."""

SAMPLES = 8192
"""Items drawn a step for the denominator of a larger one."""


def item_loss(
    states: Tensor,
    targets: Tensor,
    table: Tensor | None,
    vectors: Callable[[Tensor], Tensor],
    num_items: int,
    samples: int = SAMPLES,
    label_smoothing: float = 0.0,
) -> Tensor:
    """``full_loss`` with a table of all items, else ``sampled_loss`` over ``samples`` items: then a step does not grow with the catalogue.

    Args:
        states: [..., D].
        targets: [...] items, PAD where there is none.
        table: [I, D], all items' vectors; None: draw.
        vectors: the vectors [..., D] of items [...].
        num_items: I.
        samples: n.
        label_smoothing: share of the target's probability that is spread over all items.
    """
    if table is not None:
        return full_loss(states, targets, table, label_smoothing)
    drawn = torch.randint(num_items, (samples,), device=states.device)
    return sampled_loss(states, targets, vectors(targets.clamp_min(0)), drawn, vectors(drawn), num_items, label_smoothing)


def full_loss(states: Tensor, targets: Tensor, table: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the catalogue, averaged over real targets.

    Targets that are PAD are computed too: to drop them would make the host wait for a GPU.

    Args:
        states: [..., D].
        targets: [...] items, PAD where there is none.
        table: [I, D], the items' vectors.
        label_smoothing: share of the target's probability that is spread over all items.

    Returns:
        Scalar.
    """
    logits = (states @ table.to(states.dtype).T).float().reshape(-1, len(table))
    summed = torch.nn.functional.cross_entropy(
        logits, targets.flatten(), ignore_index=PAD, reduction="sum", label_smoothing=label_smoothing
    )
    return summed / (targets != PAD).sum().clamp_min(1)


def sampled_loss(
    states: Tensor,
    targets: Tensor,
    target_vectors: Tensor,
    items: Tensor,
    vectors: Tensor,
    num_items: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    """``full_loss`` with its denominator estimated from uniformly drawn items.

    The target's own term is exact; the sum over the other I - 1 items is their mean over the drawn ones times I - 1, and so is the sum that
    label smoothing reads. Where the target is drawn it does not count as another item. With every item drawn once this is the full loss.

    Args:
        states: [..., D].
        targets: [...], PAD where there is none.
        target_vectors: [..., D], their vectors.
        items: [n] int64, drawn items, the same for all targets.
        vectors: [n, D], theirs.
        num_items: I.
        label_smoothing: as in ``full_loss``.

    Returns:
        Scalar.
    """
    right = (states * target_vectors).sum(-1, dtype=torch.float32)
    others = (states @ vectors.to(states.dtype).T).float()
    hit = targets.unsqueeze(-1) == items
    drawn = (~hit).sum(-1).clamp_min(1)
    rest = others.masked_fill(hit, -torch.inf).logsumexp(-1) + math.log(max(num_items - 1, 1)) - drawn.log()
    expected = right
    if label_smoothing:
        mean = (right + (num_items - 1) * others.masked_fill(hit, 0).sum(-1) / drawn) / num_items
        expected = (1 - label_smoothing) * right + label_smoothing * mean
    loss = torch.logaddexp(right, rest) - expected
    real = targets != PAD
    return loss.masked_fill(~real, 0).sum() / real.sum().clamp_min(1)
