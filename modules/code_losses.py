"""Cross-entropy of a target's code: over the level's whole codebook, or over the children that exist below its prefix.

Shape letters: B batch, P targets a row, R rows (targets), K codes of a level, M most children of a node.
"""

import torch
from torch import Tensor, nn


def codebook_loss(logits: Tensor, codes: Tensor, real: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over a codebook, averaged over the targets that are there.

    Args:
        logits: [B, P, K].
        codes: [B, P] int64, the right ones.
        real: [B, P] bool, False where there is no target.
        label_smoothing: share of the target's probability spread over the codebook.

    Returns:
        Scalar, fp32.
    """
    summed = nn.functional.cross_entropy(
        logits.float().flatten(0, 1),
        codes.masked_fill(~real, -100).flatten(),
        ignore_index=-100,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return summed / real.sum().clamp_min(1)


def children_loss(logits: Tensor, slot: Tensor, label_smoothing: float = 0.0, shares: Tensor | None = None, trust: float = 0.0) -> Tensor:
    """Cross-entropy of the right child among its siblings.

    Args:
        logits: [R, M], -inf where there is no child.
        slot: [R] int64, the right child's place among its siblings.
        label_smoothing: share of the target's probability spread over the children that exist.
        shares: [R, M], a teacher's distribution over the children.
        trust: share of the target's probability that is the teacher's, before smoothing.

    Returns:
        [R].
    """
    log_probs = torch.log_softmax(logits, dim=-1)
    exists = logits > -torch.inf
    loss = -log_probs.gather(1, slot.unsqueeze(1)).squeeze(1)
    if shares is not None:
        loss = (1 - trust) * loss - trust * (shares * log_probs.masked_fill(~exists, 0)).sum(1)
    if label_smoothing > 0:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_probs.masked_fill(~exists, 0).sum(1) / exists.sum(1)
    return loss
