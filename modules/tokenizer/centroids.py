"""Codes from k-means alone: on the vectors and on what is left of them, or on parts of them.

RQ-k-means is residual quantization without an encoder (Deng et al. 2025, arXiv 2502.18965, tokenize this way); product quantization: Jegou
et al. 2011; OPQ: Ge et al. 2013, the non-parametric solution.
Shape letters: B batch, I items, E input width, D width that is quantized, L levels, K codebook size of a level.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.schemas import UserError
from init.kmeans import Shard, assign_evenly, kmeans
from modules.tokenizer.direct import DirectConfig, DirectTokenizer

OPQ_ROUNDS = 10
"""Alternations between codebooks and rotation; each takes a few k-means iterations."""


@dataclass(frozen=True)
class CentroidConfig(DirectConfig):
    """Adds ``balanced``: the items share the codes of every level evenly, in k-means and in the IDs."""

    balanced: bool = False


@dataclass(frozen=True)
class ProductConfig(CentroidConfig):
    """The same, of codes that each speak for a part of the dimensions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < self.num_levels:
            raise UserError(f"{self.num_levels} levels cannot share the {self.width} dimensions to quantize; lower train.vae_n_layers")


class CentroidTokenizer(DirectTokenizer):
    """A tokenizer whose codewords are centroids of the items, or of what other levels left of them; ``levels`` holds them."""

    config: CentroidConfig
    levels: nn.ParameterList

    @property
    def codes_depend_on_others(self) -> bool:
        return self.config.balanced

    @abstractmethod
    def _even_codes(self, vectors: Tensor) -> Tensor:
        """[I, D] -> [I, L], of a whole catalogue: no code of a level is taken by more than its share of the items, rounded up."""

    @abstractmethod
    def _quantized(self, codes: Tensor) -> Tensor:
        """[B, L] -> [B, D], the sum of the codewords."""

    @torch.no_grad()
    def get_semantic_ids(self, items: Tensor, chunk_size: int = 65536) -> Tensor:
        """See ItemTokenizer; ``balanced``: codes that share the items of every level evenly."""
        if not self.config.balanced:
            return super().get_semantic_ids(items, chunk_size)
        return self._even_codes(torch.cat([self.latents(chunk.to(self.device)) for chunk in items.split(chunk_size)]))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        decoded = self._quantized(codes)
        return decoded if self.projection is None else decoded @ self.projection.T


class ResidualKmeans(CentroidTokenizer):
    """k-means on the vectors, k-means on what that leaves, and so on."""

    def __init__(self, config: CentroidConfig) -> None:
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

    def _even_codes(self, vectors: Tensor) -> Tensor:
        codes = []
        for level in self.levels:
            codes.append(assign_evenly(vectors, level).codes)
            vectors = vectors - level[codes[-1]]
        return torch.stack(codes, dim=1)

    @torch.no_grad()
    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        residual = self.latents(items)
        for number in range(level):
            residual = residual - self.levels[number][codes[:, number]]
        return squared_distances(residual, self.levels[level])

    def _quantized(self, codes: Tensor) -> Tensor:
        return torch.stack([level[codes[:, number]] for number, level in enumerate(self.levels)]).sum(0)


class ProductQuantizer(CentroidTokenizer):
    """The D dimensions cut into L parts, k-means in each."""

    rotates = False
    """Are the dimensions cut behind a learned rotation?"""

    def __init__(self, config: ProductConfig) -> None:
        super().__init__(config, self.rotates)
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
        rounds = OPQ_ROUNDS if self.rotates else 0
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
                u, _, vh = torch.linalg.svd(vectors.T @ self._quantized(self._codes(rotated)))
                rotation = u @ vh
        if rounds and self.projection is not None:
            self.projection.copy_(self.projection @ rotation)

    def _codes(self, vectors: Tensor) -> Tensor:
        parts = zip(vectors.split(self.widths, dim=1), self.levels)
        return torch.stack([squared_distances(part, level).min(1).indices for part, level in parts], dim=1)

    def _even_codes(self, vectors: Tensor) -> Tensor:
        parts = zip(vectors.split(self.widths, dim=1), self.levels)
        return torch.stack([assign_evenly(part.contiguous(), level).codes for part, level in parts], dim=1)

    @torch.no_grad()
    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        return squared_distances(self.latents(items).split(self.widths, dim=1)[level], self.levels[level])

    def _quantized(self, codes: Tensor) -> Tensor:
        return torch.cat([level[codes[:, number]] for number, level in enumerate(self.levels)], dim=1)


class RotatedProductQuantizer(ProductQuantizer):
    """OPQ: the same behind the rotation that loses least."""

    rotates = True


def squared_distances(vectors: Tensor, codewords: Tensor) -> Tensor:
    """[B, K] from [B, D] and [K, D], less the vectors' own squared norms, which change no comparison."""
    return torch.addmm(codewords.square().sum(1), vectors, codewords.T, alpha=-2)


def check_enough(items: int, codes: int) -> None:
    """Refuses codebooks that k-means cannot fill."""
    if items < codes:
        raise UserError(f"k-means needs at least as many items as codes: got {items} items for {codes}; lower train.vae_codebook_size")
