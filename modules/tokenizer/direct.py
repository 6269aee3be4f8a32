"""Tokenizers without a network: residual k-means, product quantization, locality-sensitive hashing, random codes.

They show the same face as the RQ-VAE (modules.tokenizer.coder) and make the same artefact, so that stage 2 cannot tell them apart. LSH
and random codes are the paper's own controls (TIGER, table 2). RQ-k-means is residual quantization without an encoder (Deng et al. 2025,
arXiv 2502.18965, tokenize this way); product quantization: Jegou et al. 2011; OPQ: Ge et al. 2013, the non-parametric solution.
Shape letters: B batch, I items, E input width, D width that is quantized, L levels, K codebook size of a level.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.schemas import UserError
from init.kmeans import ALONE, Shard, kmeans
from modules.normalizer import INPUT_NORMS, InputNormalizer
from modules.rqvae import level_sizes

KINDS = ("rqkmeans", "pq", "opq", "lsh", "random")
OPQ_ROUNDS = 10


@dataclass(frozen=True)
class DirectConfig:
    """Shape of such a tokenizer; what a saved one needs to be rebuilt.

    ``pca_dim`` is the number of leading principal components that are quantized; 0 takes the whole input. ``balanced``: see kmeans.
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
        """Learns from the whole catalogue ``items`` [I, E]; ``shard``: see kmeans."""
        device = self.input_mean.device
        self.fit_normalizer(items)
        if self.projection is not None and self.config.pca_dim:
            self.projection.copy_(self._principal(items, chunk_size))
        vectors = torch.cat([self.latents(chunk.to(device)) for chunk in items.split(chunk_size)])
        self._fit(vectors, seed, shard)

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

    @torch.no_grad()
    def get_semantic_ids(self, items: Tensor, chunk_size: int = 65536) -> Tensor:
        """Codes [I, L] of ``items`` [I, E], without collision code."""
        device = self.input_mean.device
        return torch.cat([self._codes(self.latents(chunk.to(device))) for chunk in items.split(chunk_size)])

    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        """See Coder."""
        raise NotImplementedError

    def _decode(self, codes: Tensor) -> Tensor | None:
        """[B, L] -> [B, D]."""
        return None

    @torch.no_grad()
    def reconstruct(self, items: Tensor) -> Tensor | None:
        """See Coder."""
        decoded = self._decode(self._codes(self.latents(items)))
        return decoded if decoded is None or self.projection is None else decoded @ self.projection.T


class ResidualKmeans(DirectTokenizer):
    """k-means on the vectors, k-means on what that leaves, and so on."""

    def __init__(self, config: DirectConfig) -> None:
        super().__init__(config)
        self.levels = nn.ParameterList(nn.Parameter(torch.zeros(size, config.width), requires_grad=False) for size in config.codebook_sizes)

    def codebooks(self) -> list[Tensor]:
        return list(self.levels)

    def _fit(self, vectors: Tensor, seed: int, shard: Shard) -> None:
        for number, level in enumerate(self.levels):
            check_enough(len(vectors), len(level))
            result = kmeans(vectors, len(level), seed=seed + number, shard=shard, balanced=self.config.balanced)
            level.copy_(result.centroids)
            vectors = vectors - result.centroids[result.codes]

    def _codes(self, vectors: Tensor) -> Tensor:
        codes = []
        for level in self.levels:
            codes.append(squared_distances(vectors, level).min(1).indices)
            vectors = vectors - level[codes[-1]]
        return torch.stack(codes, dim=1)

    @torch.no_grad()
    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        residual = self.latents(items)
        for number in range(level):
            residual = residual - self.levels[number][codes[:, number]]
        return squared_distances(residual, self.levels[level])

    def _decode(self, codes: Tensor) -> Tensor:
        return torch.stack([level[codes[:, number]] for number, level in enumerate(self.levels)]).sum(0)


class ProductQuantizer(DirectTokenizer):
    """The D dimensions cut into L parts, k-means in each; with ``opq`` behind the rotation that loses least."""

    def __init__(self, config: DirectConfig) -> None:
        super().__init__(config)
        self.widths = [len(part) for part in torch.arange(config.width).tensor_split(config.num_levels)]
        self.levels = nn.ParameterList(
            nn.Parameter(torch.zeros(size, width), requires_grad=False) for size, width in zip(config.codebook_sizes, self.widths)
        )

    def codebooks(self) -> list[Tensor]:
        """L tensors [K, D]: a codeword is zero outside its part, so that here too an item is the sum of its codewords."""
        after = torch.tensor([0, *self.widths]).cumsum(0).tolist()
        return [nn.functional.pad(level, (start, self.config.width - end)) for level, start, end in zip(self.levels, after, after[1:])]

    def _fit(self, vectors: Tensor, seed: int, shard: Shard) -> None:
        check_enough(len(vectors), max(self.codebook_sizes))
        rounds = OPQ_ROUNDS if self.config.kind == "opq" else 0
        width = self.config.width
        rotation = torch.eye(width, device=vectors.device)
        if rounds:  # principal axes order the dimensions by variance; a random rotation gives every part its share
            draw = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
            rotation = torch.linalg.qr(draw).Q.to(vectors.device)
        for number in range(rounds + 1):
            rotated = vectors @ rotation
            for part, level in zip(rotated.split(self.widths, dim=1), self.levels):
                limit = 50 if number == rounds else 5
                level.copy_(
                    kmeans(
                        part.contiguous(), len(level), seed=seed, max_iterations=limit, shard=shard, balanced=self.config.balanced
                    ).centroids
                )
            if number < rounds:  # Procrustes: the rotation that takes the vectors nearest to their codewords
                u, _, vh = torch.linalg.svd(vectors.T @ self._decode(self._codes(rotated)))
                rotation = u @ vh
        if rounds and self.projection is not None:
            self.projection.copy_(self.projection @ rotation)

    def _codes(self, vectors: Tensor) -> Tensor:
        parts = zip(vectors.split(self.widths, dim=1), self.levels)
        return torch.stack([squared_distances(part, level).min(1).indices for part, level in parts], dim=1)

    @torch.no_grad()
    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        return squared_distances(self.latents(items).split(self.widths, dim=1)[level], self.levels[level])

    def _decode(self, codes: Tensor) -> Tensor:
        return torch.cat([level[codes[:, number]] for number, level in enumerate(self.levels)], dim=1)


class RandomHyperplanes(DirectTokenizer):
    """Locality-sensitive hashing: each bit of a code says on which side of a random hyperplane the vector lies (TIGER, section 4.2)."""

    hyperplanes: Tensor

    def __init__(self, config: DirectConfig) -> None:
        super().__init__(config)
        self.bits = [int(math.log2(size)) for size in config.codebook_sizes]
        self.register_buffer("hyperplanes", torch.zeros(config.width, sum(self.bits)))

    def _fit(self, vectors: Tensor, seed: int, shard: Shard) -> None:
        self.hyperplanes.copy_(torch.randn(self.hyperplanes.shape, generator=torch.Generator().manual_seed(seed)))

    def _codes(self, vectors: Tensor) -> Tensor:
        sides = (vectors @ self.hyperplanes > 0).long().split(self.bits, dim=1)
        return torch.stack([(side << torch.arange(side.shape[1], device=side.device)).sum(1) for side in sides], dim=1)

    @torch.no_grad()
    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        """The distance to a code is the sum of the distances to the hyperplanes that part the vector from it."""
        margins = (self.latents(items) @ self.hyperplanes).split(self.bits, dim=1)[level]
        bits = torch.arange(self.bits[level], device=margins.device)
        signs = (torch.arange(2 ** self.bits[level], device=margins.device)[:, None] >> bits & 1) * 2.0 - 1.0
        return (margins.abs().sum(1, keepdim=True) - margins @ signs.T) / 2


class RandomCodes(DirectTokenizer):
    """Codes that say nothing of the item: uniform, by its row, whatever its embedding (TIGER, section 4.2)."""

    draw_seed: Tensor

    def __init__(self, config: DirectConfig) -> None:
        super().__init__(config)
        self.register_buffer("draw_seed", torch.zeros((), dtype=torch.int64))

    def _fit(self, vectors: Tensor, seed: int, shard: Shard) -> None:
        self.draw_seed.fill_(seed)

    @torch.no_grad()
    def get_semantic_ids(self, items: Tensor, chunk_size: int = 65536) -> Tensor:
        generator = torch.Generator().manual_seed(int(self.draw_seed))
        codes = [torch.randint(size, (len(items),), generator=generator) for size in self.codebook_sizes]
        return torch.stack(codes, dim=1).to(self.input_mean.device)

    @torch.no_grad()
    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        """Any code is as good as another: random distances."""
        generator = torch.Generator().manual_seed(int(self.draw_seed) + 1 + level)
        return torch.rand(len(items), self.codebook_sizes[level], generator=generator).to(self.input_mean.device)

    def reconstruct(self, items: Tensor) -> None:
        return None


def direct_tokenizer(config: DirectConfig) -> DirectTokenizer:
    """The tokenizer of a kind, not yet fitted."""
    kinds = {"rqkmeans": ResidualKmeans, "pq": ProductQuantizer, "opq": ProductQuantizer, "lsh": RandomHyperplanes, "random": RandomCodes}
    return kinds[config.kind](config)


def squared_distances(vectors: Tensor, codewords: Tensor) -> Tensor:
    """[B, K] from [B, D] and [K, D], less the vectors' own squared norms, which change no comparison."""
    return torch.addmm(codewords.square().sum(1), vectors, codewords.T, alpha=-2)


def check_enough(items: int, codes: int) -> None:
    """Refuses codebooks that k-means cannot fill."""
    if items < codes:
        raise UserError(f"k-means needs at least as many items as codes: got {items} items for {codes}; lower train.vae_codebook_size")
