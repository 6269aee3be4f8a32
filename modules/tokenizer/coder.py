"""What makes codes: the face that every tokenizer of item embeddings shows to the rest.

Shape letters: B batch, I items, E input width, D latent width, L levels, K codebook size of a level.
"""

from typing import Protocol

from torch import Tensor


class Coder(Protocol):
    """A fitted tokenizer: an RQ-VAE, or one of those without a network (modules.tokenizer.direct)."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each level."""

    def codebooks(self) -> list[Tensor]:
        """Codewords of each level, [K, D], whose sum stands for an item's latent; none where codes stand for no vector."""

    def normalize(self, x: Tensor) -> Tensor:
        """[B, E] as given -> [B, E] as it is coded and reconstructed."""

    def latents(self, items: Tensor) -> Tensor:
        """[B, E] as given -> [B, D]: what the first level quantizes."""

    def get_semantic_ids(self, items: Tensor) -> Tensor:
        """Codes [I, L] of ``items`` [I, E], without collision code."""

    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        """[B, K]: how far each code of ``level`` is from ``items`` [B, E], given their ``codes`` [B, L] of the levels above it."""

    def decode(self, codes: Tensor) -> Tensor | None:
        """What ``codes`` [B, L] keep of the ``normalize(items)`` that they were given to, [B, E]; None where they stand for no vector."""
