"""The dense item head: a softmax over items on the encoder's state behind the last item, and what a search makes of it.

It is trained with SASRec's objective (``modules.item_softmax``), on the encoder that the decoder reads. Two uses at inference:
``full_probs`` scores the whole catalogue (O(items) a user); ``rescore`` mixes distributions over the items that a beam search found
(independent of the catalogue).
Shape letters: B batch, I items, D width, W candidates.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from data.schemas import PAD


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
    return probs_of_left((states @ table.to(states.dtype).T).float(), barred, among)


def probs_of_left(logits: Tensor, barred: Tensor | None = None, among: Tensor | None = None) -> Tensor:
    """Softmax of ``logits`` [B, I] over the items that are left; see ``full_probs``."""
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
