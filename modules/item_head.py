"""The dense item head: a softmax over items on the encoder's state behind the last item, and what a search makes of it.

SASRec's objective with full cross-entropy, on the encoder that the decoder reads. Two uses at inference: ``full_probs`` scores the
whole catalogue (O(items) a user); ``rescore`` mixes distributions over the items that a beam search found (independent of the catalogue).
Shape letters: B batch, P targets a row, I items, D width, W candidates, n sampled items.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from data.schemas import PAD
from modules.item_tokens import ItemTokens

FULL_UP_TO = 100_000
"""Items of the largest catalogue whose loss has every item in its denominator."""

SAMPLES = 8192
"""Items drawn a step for the denominator of a larger one."""


def reads_all_items(num_items: int) -> bool:
    """Whether a step's loss has every item in its denominator."""
    return num_items <= FULL_UP_TO


def item_head_loss(states: Tensor, targets: Tensor, items: ItemTokens, table: Tensor | None) -> Tensor:
    """``full_loss``, or ``sampled_loss`` where the catalogue has more than ``FULL_UP_TO`` items: then the step does not grow with it.

    Args:
        states: [B, P, D].
        targets: [B, P], PAD where there is none.
        items: gives the items' vectors.
        table: [I, D], all of them where they are at hand.
    """
    num_items = items.catalogue.num_items
    if reads_all_items(num_items):
        return full_loss(states, targets, items.table() if table is None else table)
    drawn = torch.randint(num_items, (SAMPLES,), device=states.device)
    return sampled_loss(states, targets, items.vectors(targets.clamp_min(0)), drawn, items.vectors(drawn), num_items)


def full_loss(states: Tensor, targets: Tensor, table: Tensor) -> Tensor:
    """Cross-entropy over the catalogue, averaged over real targets.

    Args:
        states: [B, P, D], the encoder's.
        targets: [B, P] items, PAD where there is none.
        table: [I, D], the items' vectors.

    Returns:
        Scalar.
    """
    logits = (states @ table.to(states.dtype).T).float().flatten(0, 1)
    summed = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=PAD, reduction="sum")
    return summed / (targets != PAD).sum().clamp_min(1)


def sampled_loss(states: Tensor, targets: Tensor, target_vectors: Tensor, items: Tensor, vectors: Tensor, num_items: int) -> Tensor:
    """``full_loss`` with its denominator estimated from uniformly drawn items.

    The target's own term is exact; the sum over the other I - 1 items is their mean over the drawn ones times I - 1. Where the target is
    drawn it does not count as another item. With every item drawn once this is the full loss.

    Args:
        states: [B, P, D].
        targets: [B, P], PAD where there is none.
        target_vectors: [B, P, D], their vectors.
        items: [n] int64, drawn items, the same for all targets.
        vectors: [n, D], theirs.
        num_items: I.

    Returns:
        Scalar.
    """
    right = (states * target_vectors).sum(-1, dtype=torch.float32)
    others = (states @ vectors.to(states.dtype).T).float()
    hit = targets.unsqueeze(-1) == items
    drawn = (~hit).sum(-1).clamp_min(1)
    rest = others.masked_fill(hit, -torch.inf).logsumexp(-1) + math.log(max(num_items - 1, 1)) - drawn.log()
    loss = torch.logaddexp(right, rest) - right
    real = targets != PAD
    return loss.masked_fill(~real, 0).sum() / real.sum().clamp_min(1)


def full_probs(states: Tensor, table: Tensor, barred: Tensor | None = None, among: Tensor | None = None) -> Tensor:
    """The probability of every item among those that are left.

    Args:
        states: [B, D].
        table: [I, D].
        barred: [B, S] items, PAD-filled; None bars none.
        among: [I] bool, the items that may be found; None: all.

    Returns:
        [B, I] fp32, 0 for items that are not left; all 0 where none is.
    """
    logits = (states @ table.to(states.dtype).T).float()
    if barred is not None:
        without = torch.zeros(logits.shape[0], logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(without.scatter_(1, torch.where(barred == PAD, logits.shape[1], barred), True)[:, :-1], -torch.inf)
    if among is not None:
        logits = logits.masked_fill(~among, -torch.inf)
    return logits.softmax(-1).nan_to_num(0.0)


def candidate_scores(states: Tensor, vectors: Tensor) -> Tensor:
    """Dot products of states [B, D] with the vectors of each row's candidates [B, W, D] -> [B, W] fp32."""
    return (vectors * states.unsqueeze(1)).sum(-1, dtype=torch.float32)


def rescore(scores: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Mixes several scores of the same candidates, each as a distribution over these.

    Args:
        scores: unnormalised log-probabilities, [B, W] each; -inf in all of them where there is no candidate.
        weights: one for each, at least 0, their sum 1.

    Returns:
        [B, W], the logarithm of the mixture of probabilities; -inf where there is no candidate.
    """
    if len(scores) != len(weights) or min(weights, default=-1.0) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ValueError(f"rescore needs a weight of at least 0 for each of {len(scores)} scores, their sum 1: got {list(weights)}")
    exists = scores[0] > -torch.inf
    mixed = torch.zeros_like(scores[0])
    for score, weight in zip(scores, weights):
        masked = score.masked_fill(~exists, -torch.inf)
        mixed = mixed + weight * torch.softmax(masked.masked_fill(~exists.any(1, keepdim=True), 0), dim=1)
    return mixed.masked_fill(~exists, 0).log()
