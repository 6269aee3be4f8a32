"""Gumbel noise, the Gumbel-softmax sample and its annealed temperature.

Jang, Gu & Poole (2017), "Categorical Reparameterization with Gumbel-Softmax", arXiv 1611.01144.
"""

import math

import torch
from torch import Tensor


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Independent standard Gumbel noise with the shape, dtype and device of ``like``: -log(-log u), u uniform."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device, dtype=torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    return -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log().to(like.dtype)


def gumbel_softmax_sample(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """A relaxed one-hot sample (Jang et al., equation 2): softmax((logits + g) / temperature) over the last dimension.

    Args:
        logits: [..., K], unnormalised log-probabilities.
        temperature: above 0; near 0 the sample is nearly one-hot.
        generator: draws the noise; None uses torch's global generator.

    Returns:
        [..., K], non-negative, sums to 1, differentiable in ``logits``.

    Raises:
        ValueError: temperature not above 0.
    """
    if temperature <= 0:
        raise ValueError(f"the Gumbel-softmax temperature must be above 0: got {temperature}")
    return torch.softmax((logits + gumbel_noise(logits, generator)) / temperature, dim=-1)


def annealed_temperature(step: int, num_steps: int, start: float, end: float) -> float:
    """Temperature at ``step`` of ``num_steps``: from ``start`` to ``end`` exponentially over the first 80 % of the steps, then constant."""
    progress = min(1.0, step / max(1.0, 0.8 * num_steps))
    return start * math.exp(progress * math.log(end / start))
