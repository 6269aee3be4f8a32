"""DirectTokenizer: what tokenizers without a network share, a projection and the steps around a catalogue.

Shape letters: B batch, I items, E input width, D width that is quantized, L levels, K codebook size of a level.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from data.schemas import UserError
from init.kmeans import ALONE, Shard
from modules.tokenizer.base import ItemTokenizer, TokenizerConfig

FITTED = 1 << 19
"""Items that codebooks are fitted on at most: 512 for each of 1024 codes, and 1.6 GB at 768 dimensions."""


@dataclass(frozen=True)
class DirectConfig(TokenizerConfig):
    """Adds ``pca_dim``, the number of leading principal components that are quantized; 0 takes the whole input."""

    pca_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pca_dim <= self.input_dim:
            raise UserError(f"train.pca_dim is {self.pca_dim}; it must be 0 (no PCA) or at most train.vae_input_dim = {self.input_dim}")

    @property
    def width(self) -> int:
        """D."""
        return self.pca_dim or self.input_dim


class DirectTokenizer(ItemTokenizer):
    """Fitted to a catalogue in one go, by ``fit``: normalisation, an optional orthonormal projection to D dimensions, codebooks.

    Args:
        config: its shape.
        rotates: there is a projection even where it keeps all dimensions.
    """

    config: DirectConfig
    projection: Tensor | None
    learns = True
    """Do the codes depend on the vectors of the catalogue, beyond their mean and their principal components?"""

    def __init__(self, config: DirectConfig, rotates: bool = False) -> None:
        super().__init__(config)
        projects = config.pca_dim > 0 or rotates
        self.register_buffer("projection", torch.eye(config.input_dim)[:, : config.width].clone() if projects else None)

    def describe(self, name: str) -> str:
        return f"{name} of {self.config.width} dimensions, {' + '.join(map(str, self.codebook_sizes))} codes, no network"

    def latents(self, items: Tensor) -> Tensor:
        """[B, E] as given -> [B, D] as it is quantized, in fp32."""
        x = self.normalize(items.float())
        return x if self.projection is None else x @ self.projection

    @torch.no_grad()
    def fit(self, items: Tensor, seed: int, shard: Shard = ALONE, chunk_size: int = 65536) -> None:
        """Learns from the catalogue ``items`` [I, E], or from FITTED of them drawn by the seed; ``shard``: see kmeans."""
        self.normalizer.fit(items)
        if self.projection is not None and self.config.pca_dim:
            self.projection.copy_(self._principal(items, chunk_size))
        if len(items) > FITTED:
            items = items[torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))[:FITTED].sort().values]
        chunks = items.split(chunk_size) if self.learns else [items[:0]]
        self._fit(torch.cat([self.latents(chunk.to(self.device)) for chunk in chunks]), seed, shard)

    def _principal(self, items: Tensor, chunk_size: int) -> Tensor:
        """The leading eigenvectors [E, D] of the normalised items' second moments."""
        moments = torch.zeros(self.config.input_dim, self.config.input_dim, dtype=torch.float64)
        for chunk in items.split(chunk_size):
            x = self.normalize(chunk.to(self.device).float())
            moments += (x.T @ x).double().cpu()
        return torch.linalg.eigh(moments).eigenvectors.flip(1)[:, : self.config.width].float()

    @abstractmethod
    def _fit(self, vectors: Tensor, seed: int, shard: Shard) -> None:
        """Learns from the latents [I, D]; none of them where ``learns`` is False."""

    @abstractmethod
    def _codes(self, vectors: Tensor) -> Tensor:
        """[B, D] -> [B, L]."""

    @torch.no_grad()
    def get_semantic_ids(self, items: Tensor, chunk_size: int = 65536) -> Tensor:
        return torch.cat([self._codes(self.latents(chunk.to(self.device))) for chunk in items.split(chunk_size)])
