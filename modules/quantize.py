"""One codebook: distances, the nearest code, the sample of the Gumbel-softmax, and its k-means initialisation.

Shape letters: B batch, D width, K codebook size.
"""

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.schemas import UserError
from distributions.gumbel import gumbel_softmax_sample
from init.kmeans import kmeans


class QuantizeForwardMode(Enum):
    """How the gradient of the reconstruction crosses the quantizer."""

    GUMBEL_SOFTMAX = 1
    STE = 2
    ROTATION_TRICK = 3


class QuantizeOutput(NamedTuple):
    codes: Tensor  # [B] int64
    codeword: Tensor  # [B, D], codebook[codes], with gradient to the codebook
    relaxed: Tensor | None  # [B, D], the Gumbel-softmax mixture of codewords; None in the other modes


class Quantize(nn.Module):
    """A codebook of K codewords of width D.

    ``initialised`` is part of the state: a loaded codebook is never overwritten by a later k-means.
    """

    initialised: Tensor

    def __init__(self, codebook_size: int, embed_dim: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(codebook_size, embed_dim).uniform_(-1 / embed_dim, 1 / embed_dim))
        self.register_buffer("initialised", torch.tensor(False))

    @property
    def codebook_size(self) -> int:
        return len(self.codebook)

    @torch.no_grad()
    def kmeans_init(self, residuals: Tensor, seed: int) -> Tensor:
        """Sets the codebook to the k-means centroids of ``residuals`` [N, D] and returns their codes [N].

        Raises:
            UserError: fewer residuals than codes.
        """
        if len(residuals) < self.codebook_size:
            raise UserError(
                f"k-means needs at least codebook_size items: got {len(residuals)} items for {self.codebook_size} codes; "
                "lower train.vae_codebook_size or set train.use_kmeans_init = False"
            )
        result = kmeans(residuals.float(), self.codebook_size, seed=seed)
        self.codebook.copy_(result.centroids)
        self.initialised.fill_(True)
        return result.codes

    def distances(self, residual: Tensor) -> Tensor:
        """Squared distances [B, K] less the residual's own squared norm, which changes neither the nearest code nor a softmax."""
        return torch.addmm(self.codebook.square().sum(1), residual, self.codebook.T, alpha=-2)

    def nearest(self, residual: Tensor) -> Tensor:
        """Index [B] of the codeword nearest to each residual [B, D]."""
        return self.distances(residual).min(1).indices

    def forward(self, residual: Tensor, temperature: float | None = None, generator: torch.Generator | None = None) -> QuantizeOutput:
        """Quantizes ``residual`` [B, D].

        Args:
            residual: what the levels above left over.
            temperature: None takes the nearest code. A number samples: codes with probability softmax(-d / (s t)), relaxed at temperature t
                (Jang et al., equation 2). d is the squared distance, and s the batch's mean squared distance to the nearest codeword, held
                constant, so that t means the same at every level and scale.
        """
        if temperature is None:
            codes = self.nearest(residual)
            return QuantizeOutput(codes, self.codebook[codes], None)
        distances = self.distances(residual)
        scale = (distances.detach().min(1).values + residual.detach().square().sum(1)).mean().clamp_min(1e-8)
        weights = gumbel_softmax_sample(-distances / (scale * temperature), temperature, generator)
        codes = weights.max(1).indices
        return QuantizeOutput(codes, self.codebook[codes], weights @ self.codebook)
