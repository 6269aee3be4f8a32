"""What tokenizers without a network share: the config, normalisation, a projection, the steps around a catalogue.

They show the same face as the RQ-VAE (modules.tokenizer.coder) and make the same artefact, so that stage 2 cannot tell them apart.
Shape letters: B batch, I items, E input width, D width that is quantized, L levels, K codebook size of a level.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from data.schemas import UserError
from init.kmeans import ALONE, Shard
from modules.input_norm import INPUT_NORMS, InputNormalizer
from modules.rqvae import level_sizes

KINDS = ("rqkmeans", "pq", "opq", "lsh", "random")

FITTED = 1 << 19
"""Items that codebooks are fitted on at most: 512 for each of 1024 codes, and 1.6 GB at 768 dimensions."""


@dataclass(frozen=True)
class DirectConfig:
    """Shape of such a tokenizer; what a saved one needs to be rebuilt.

    ``pca_dim`` is the number of leading principal components that are quantized; 0 takes the whole input. ``balanced``: the items share
    the codes of every level evenly, in k-means and in the IDs, where there are codebooks to learn.
    """

    kind: str = "rqkmeans"
    input_dim: int = 768
    codebook_size: int | tuple[int, ...] = 256
    num_levels: int = 3
    input_norm: str = "center_unit"
    pca_dim: int = 0
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"train.tokenizer is {self.kind!r}; it can be 'rqvae' or one of {', '.join(map(repr, KINDS))}")
        if self.input_norm not in INPUT_NORMS:
            raise UserError(f"train.vae_input_norm is {self.input_norm!r}; it can be one of {', '.join(map(repr, INPUT_NORMS))}")
        if not 0 <= self.pca_dim <= self.input_dim:
            raise UserError(f"train.pca_dim is {self.pca_dim}; it must be 0 (no PCA) or at most train.vae_input_dim = {self.input_dim}")
        odd = [size for size in self.codebook_sizes if size & (size - 1)]
        if self.kind == "lsh" and (odd or min(self.codebook_sizes) < 2):
            raise UserError(
                f"train.vae_codebook_size is {self.codebook_size} and a code of train.tokenizer = 'lsh' is made of bits; take powers of two"
            )
        if self.kind in ("pq", "opq") and self.width < self.num_levels:
            raise UserError(f"{self.num_levels} levels cannot share the {self.width} dimensions to quantize; lower train.vae_n_layers")

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each level."""
        return level_sizes(self.codebook_size, self.num_levels)

    @property
    def width(self) -> int:
        """D."""
        return self.pca_dim or self.input_dim


class DirectTokenizer(InputNormalizer):
    """What the four kinds share: normalisation, an optional orthonormal projection to D dimensions, the steps around a catalogue."""

    projection: Tensor | None
    learns = True
    """Do the codes depend on the vectors of the catalogue, beyond their mean and their principal components?"""

    def __init__(self, config: DirectConfig) -> None:
        super().__init__(config.input_dim, config.input_norm)
        self.config = config
        projects = config.pca_dim > 0 or config.kind == "opq"
        self.register_buffer("projection", torch.eye(config.input_dim)[:, : config.width].clone() if projects else None)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each level."""
        return self.config.codebook_sizes

    def codebooks(self) -> list[Tensor]:
        """See Coder."""
        return []

    def latents(self, items: Tensor) -> Tensor:
        """[B, E] as given -> [B, D] as it is quantized, in fp32."""
        x = self.normalize(items.float())
        return x if self.projection is None else x @ self.projection

    @torch.no_grad()
    def fit(self, items: Tensor, seed: int, shard: Shard = ALONE, chunk_size: int = 65536) -> None:
        """Learns from the catalogue ``items`` [I, E], or from FITTED of them drawn by the seed; ``shard``: see kmeans."""
        device = self.input_mean.device
        self.fit_normalizer(items)
        if self.projection is not None and self.config.pca_dim:
            self.projection.copy_(self._principal(items, chunk_size))
        if len(items) > FITTED:
            items = items[torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))[:FITTED].sort().values]
        chunks = items.split(chunk_size) if self.learns else [items[:0]]
        self._fit(torch.cat([self.latents(chunk.to(device)) for chunk in chunks]), seed, shard)

    def _principal(self, items: Tensor, chunk_size: int) -> Tensor:
        """The leading eigenvectors [E, D] of the normalised items' second moments."""
        device = self.input_mean.device
        moments = torch.zeros(self.config.input_dim, self.config.input_dim, dtype=torch.float64)
        for chunk in items.split(chunk_size):
            x = self.normalize(chunk.to(device).float())
            moments += (x.T @ x).double().cpu()
        return torch.linalg.eigh(moments).eigenvectors.flip(1)[:, : self.config.width].float()

    def _fit(self, vectors: Tensor, seed: int, shard: Shard) -> None:
        raise NotImplementedError

    def _codes(self, vectors: Tensor) -> Tensor:
        """[B, D] -> [B, L]."""
        raise NotImplementedError

    def _even_codes(self, vectors: Tensor) -> Tensor:
        """[I, D] -> [I, L], of a whole catalogue: no code of a level is taken by more than its share of the items, rounded up."""
        raise NotImplementedError

    @torch.no_grad()
    def get_semantic_ids(self, items: Tensor, chunk_size: int = 65536) -> Tensor:
        """Codes [I, L] of ``items`` [I, E], without collision code; ``balanced``: those that share the codes of every level evenly."""
        device = self.input_mean.device
        if self.config.balanced and self.learns:
            return self._even_codes(torch.cat([self.latents(chunk.to(device)) for chunk in items.split(chunk_size)]))
        return torch.cat([self._codes(self.latents(chunk.to(device))) for chunk in items.split(chunk_size)])

    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        """See Coder."""
        raise NotImplementedError

    def _quantized(self, codes: Tensor) -> Tensor | None:
        """[B, L] -> [B, D]."""
        return None

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor | None:
        """See Coder."""
        decoded = self._quantized(codes)
        return decoded if decoded is None or self.projection is None else decoded @ self.projection.T
