"""The RQ-VAE's losses (TIGER, section 3.1): every term is summed over the width and averaged over the batch.

Averaging the reconstruction over the width instead would weigh it 1/E against the quantization terms, and the codebooks collapse.
"""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss


def reconstruction_loss(reconstruction: Tensor, target: Tensor, num_categorical: int = 0) -> Tensor:
    """|x - x^|^2 as a scalar from two [B, E].

    Args:
        reconstruction: of the last ``num_categorical`` features it holds logits.
        target: of those features it holds 0, 1 or a probability.
        num_categorical: how many features at the end cost their binary cross-entropy instead, in nats.
    """
    if num_categorical == 0:
        return mse_loss(reconstruction, target, reduction="sum") / len(target)
    dense = target.shape[-1] - num_categorical
    squared = (reconstruction[..., :dense] - target[..., :dense]).square().sum(-1)
    entropy = binary_cross_entropy_with_logits(reconstruction[..., dense:], target[..., dense:], reduction="none").sum(-1)
    return (squared + entropy).mean()


def codebook_loss(residual: Tensor, codeword: Tensor) -> Tensor:
    """|sg[r] - e|^2 as a scalar from two [B, D]: pulls the chosen codeword to the residual."""
    return (residual.detach() - codeword).square().sum(-1).mean()


def commitment_loss(residual: Tensor, codeword: Tensor) -> Tensor:
    """|r - sg[e]|^2 as a scalar from two [B, D]: pulls the encoder's residual to its codeword."""
    return (residual - codeword.detach()).square().sum(-1).mean()
