"""The RQ-VAE's losses (TIGER, section 3.1): every term is a squared distance summed over the width and averaged over the batch.

Averaging the reconstruction over the width instead would weigh it 1/E against the quantization terms, and the codebooks collapse.
"""

from torch import Tensor


def reconstruction_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """|x - x^|^2 as a scalar from two [B, E]."""
    return (reconstruction - target).square().sum(-1).mean()


def codebook_loss(residual: Tensor, codeword: Tensor) -> Tensor:
    """|sg[r] - e|^2 as a scalar from two [B, D]: pulls the chosen codeword to the residual."""
    return (residual.detach() - codeword).square().sum(-1).mean()


def commitment_loss(residual: Tensor, codeword: Tensor) -> Tensor:
    """|r - sg[e]|^2 as a scalar from two [B, D]: pulls the encoder's residual to its codeword."""
    return (residual - codeword.detach()).square().sum(-1).mean()
