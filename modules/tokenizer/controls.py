"""The paper's controls for learned codes: locality-sensitive hashing and random codes (TIGER, section 4.2, table 2).

Shape letters: B batch, I items, E input width, L levels, K codebook size of a level.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data.schemas import UserError
from init.kmeans import Shard
from modules.tokenizer.direct import DirectConfig, DirectTokenizer


@dataclass(frozen=True)
class HyperplaneConfig(DirectConfig):
    """The same, of codes that are made of bits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.codebook_sizes) < 2 or any(size & (size - 1) for size in self.codebook_sizes):
            raise UserError(
                f"train.vae_codebook_size is {self.codebook_size} and a code of train.tokenizer = 'lsh' is made of bits; take powers of two"
            )


class RandomHyperplanes(DirectTokenizer):
    """Locality-sensitive hashing: each bit of a code says on which side of a random hyperplane the vector lies (TIGER, section 4.2)."""

    learns = False
    hyperplanes: Tensor

    def __init__(self, config: HyperplaneConfig) -> None:
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

    learns = False
    reads_vectors = False
    draw_seed: Tensor

    def __init__(self, config: DirectConfig) -> None:
        super().__init__(config)
        self.register_buffer("draw_seed", torch.zeros((), dtype=torch.int64))

    def _fit(self, vectors: Tensor, seed: int, shard: Shard) -> None:
        self.draw_seed.fill_(seed)

    @property
    def codes_depend_on_others(self) -> bool:
        return True

    def _codes(self, vectors: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(self.draw_seed))
        codes = [torch.randint(size, (len(vectors),), generator=generator) for size in self.codebook_sizes]
        return torch.stack(codes, dim=1).to(self.device)

    @torch.no_grad()
    def get_semantic_ids(self, items: Tensor, chunk_size: int = 65536) -> Tensor:
        """See ItemTokenizer; drawn in one go, and no vector is looked at."""
        return self._codes(items)

    @torch.no_grad()
    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        """Any code is as good as another: random distances."""
        generator = torch.Generator().manual_seed(int(self.draw_seed) + 1 + level)
        return torch.rand(len(items), self.codebook_sizes[level], generator=generator).to(self.device)
