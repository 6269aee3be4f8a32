"""How gradients cross a quantizer: straight-through and rotation trick, as pure functions of a latent and its quantization.

Each returns the value of ``quantized`` and lets the gradient reach ``latent`` only; the codebooks learn from their own loss. They are
applied once, to the sum of the chosen codewords over all levels, so that the reconstruction gradient reaches the encoder once for any
number of levels.
Shape letters: B batch, D width.
"""

import torch
from torch import Tensor


def straight_through(latent: Tensor, quantized: Tensor) -> Tensor:
    """Forward: ``quantized`` [B, D]; backward: the identity to ``latent`` [B, D]. Bengio et al. (2013), arXiv 1308.3432."""
    return latent + (quantized - latent).detach()


def rotation_trick(latent: Tensor, quantized: Tensor, eps: float = 1e-6) -> Tensor:
    """Forward: ``quantized`` [B, D]; backward: the rotation and rescaling that take ``latent`` [B, D] to it, held constant.

    Fifty et al. (2024), "Restructuring Vector Quantization with the Rotation Trick", arXiv 2410.06424, section 4.2:
    q = |q|/|z| (I - 2 r r^T + 2 q^ z^T) z with z^ = z/|z|, q^ = q/|q| and r = (z^ + q^)/|z^ + q^|.

    It needs latents of fixed length (train.vae_codebook_normalize). The reconstruction pushes each latent away from its quantization, and
    over a cell these pushes cancel; turned by the angle t between latent and quantization they do not: a pull to the origin of
    |push| cos t sin t is left. Latents that may shrink then do, away from the outer codewords (Beauty, mpnet vectors: mean length 1.3 to
    0.19 and 4 % of the first level's codes within 300 steps); with moving averages too, with a commitment weight of 1 more slowly.
    """
    latent_norm = latent.detach().norm(dim=-1, keepdim=True).clamp_min(eps)
    quantized_norm = quantized.detach().norm(dim=-1, keepdim=True)
    from_direction = latent.detach() / latent_norm
    to_direction = quantized.detach() / quantized_norm.clamp_min(eps)
    middle = from_direction + to_direction
    middle = middle / middle.norm(dim=-1, keepdim=True).clamp_min(eps)
    reflected = latent - 2 * (latent * middle).sum(-1, keepdim=True) * middle
    rotated = reflected + 2 * (latent * from_direction).sum(-1, keepdim=True) * to_direction
    rotated = rotated * (quantized_norm / latent_norm)
    # The forward value is the quantization to the last bit; the sum above differs from it by rounding.
    return rotated + (quantized - rotated).detach()


def detached_sum(codewords: list[Tensor]) -> Tensor:
    """Sum of codewords [B, D] over the levels without gradient: what the estimators above take as ``quantized``."""
    return torch.stack(codewords).detach().sum(0)
