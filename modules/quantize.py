"""One codebook: distances, the nearest code, the sample of the Gumbel-softmax, and its k-means initialisation.

Three switches change what a codebook is: cosine in place of squared distance; SimVQ (Zhu et al. 2024, arXiv 2411.02038), a frozen codebook
behind one learned linear map, so that every code moves whenever one is used; codewords of length 1 (Yu et al. 2021, arXiv 2110.04627).
Shape letters: B batch, D width, K codebook size.
"""

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from data.schemas import UserError
from distributions.gumbel import gumbel_softmax_sample
from init.kmeans import ALONE, Shard, kmeans


class QuantizeForwardMode(Enum):
    """How the gradient of the reconstruction crosses the quantizer."""

    GUMBEL_SOFTMAX = 1
    STE = 2
    ROTATION_TRICK = 3


DISTANCES = ("l2", "cosine")
"""What nearest means: by squared distance, or by the angle alone."""


class QuantizeOutput(NamedTuple):
    codes: Tensor  # [B] int64
    codeword: Tensor  # [B, D], codewords()[codes], with gradient to what makes them
    relaxed: Tensor | None  # [B, D], the Gumbel-softmax mixture of codewords; None in the other modes


class Quantize(nn.Module):
    """A codebook of K codewords of width D.

    ``codebook`` is what is stored, ``codewords()`` what is used. ``initialised`` is part of the state: a loaded codebook is never
    overwritten by a later k-means.

    Args:
        codebook_size: K.
        embed_dim: D.
        distance: one of DISTANCES.
        sim_vq: the codebook is frozen and a codeword is W c. W starts as the identity and learns; c is Gaussian of variance 1 / D, as the
            authors draw it, or what k-means found.
        unit_codewords: a codeword is divided by its length.
    """

    initialised: Tensor

    def __init__(
        self, codebook_size: int, embed_dim: int, distance: str = "l2", sim_vq: bool = False, unit_codewords: bool = False
    ) -> None:
        super().__init__()
        self.distance = distance
        self.unit_codewords = unit_codewords
        start = torch.empty(codebook_size, embed_dim)
        start = start.normal_(std=embed_dim**-0.5) if sim_vq else start.uniform_(-1 / embed_dim, 1 / embed_dim)
        # Without a gradient an optimizer leaves it alone, weight decay included.
        self.codebook = nn.Parameter(start, requires_grad=not sim_vq)
        self.projection = nn.Parameter(torch.eye(embed_dim)) if sim_vq else None
        self.register_buffer("initialised", torch.tensor(False))

    @property
    def codebook_size(self) -> int:
        return len(self.codebook)

    def codewords(self) -> Tensor:
        """The codewords [K, D] as distances, reconstruction and a saved tokenizer have them: after SimVQ's map and the normalisation."""
        codewords = self.codebook if self.projection is None else self.codebook @ self.projection.T
        return normalize(codewords, dim=1) if self.unit_codewords else codewords

    @torch.no_grad()
    def kmeans_init(self, residuals: Tensor, seed: int, shard: Shard = ALONE) -> Tensor:
        """Sets the codewords to the k-means centroids of ``residuals`` [N, D] and returns their codes [N].

        Where lengths do not decide (cosine distance, codewords of length 1) the directions are clustered; a codeword is the mean of its
        residuals either way, which is where the codebook loss wants it. ``shard``: see kmeans.

        Raises:
            UserError: fewer residuals than codes.
        """
        if len(residuals) < self.codebook_size:
            raise UserError(
                f"k-means needs at least codebook_size items: got {len(residuals)} items for {self.codebook_size} codes; "
                "lower train.vae_codebook_size or set train.use_kmeans_init = False"
            )
        spherical = self.distance == "cosine" or self.unit_codewords
        result = kmeans(residuals.float(), self.codebook_size, seed=seed, spherical=spherical, shard=shard)
        self.codebook.copy_(result.centroids)
        if self.projection is not None:
            self.projection.copy_(torch.eye(len(self.projection)))
        self.initialised.fill_(True)
        return result.codes

    def _compared(self, vectors: Tensor) -> Tensor:
        """[.., D] as distances see them: with cosine their directions, whose squared distance is 2 - 2 cos."""
        return normalize(vectors, dim=-1, eps=1e-6) if self.distance == "cosine" else vectors

    def _distances(self, compared: Tensor, codewords: Tensor) -> Tensor:
        """Distances [B, K] less the row's own squared norm, which changes neither the nearest code nor a softmax."""
        targets = self._compared(codewords)
        return torch.addmm(targets.square().sum(1), compared, targets.T, alpha=-2)

    def distances(self, residual: Tensor) -> Tensor:
        """[B, K] from [B, D], less the residual's own squared norm, which changes no comparison between codes."""
        return self._distances(self._compared(residual), self.codewords())

    def nearest(self, residual: Tensor) -> Tensor:
        """Index [B] of the codeword nearest to each residual [B, D]; with cosine the residual's length does not matter."""
        return self.distances(residual).min(1).indices

    def forward(self, residual: Tensor, temperature: float | None = None, generator: torch.Generator | None = None) -> QuantizeOutput:
        """Quantizes ``residual`` [B, D].

        Args:
            residual: what the levels above left over.
            temperature: None takes the nearest code. A number samples: codes with probability softmax(-d / (s t)), relaxed at temperature t
                (Jang et al., equation 2). d is the squared distance (with cosine that of the directions, 2 - 2 cos), and s the batch's mean
                distance to the nearest codeword, held constant, so that t means the same at every level, scale and kind of distance.
        """
        codewords = self.codewords()
        compared = self._compared(residual)
        distances = self._distances(compared, codewords)
        if temperature is None:
            codes = distances.min(1).indices
            return QuantizeOutput(codes, codewords[codes], None)
        scale = (distances.detach().min(1).values + compared.detach().square().sum(1)).mean().clamp_min(1e-8)
        weights = gumbel_softmax_sample(-distances / (scale * temperature), temperature, generator)
        codes = weights.max(1).indices
        return QuantizeOutput(codes, codewords[codes], weights @ codewords)
