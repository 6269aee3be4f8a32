"""ItemTokenizer: what turns item embeddings into codes, and what the rest of the project may ask of it.

Every kind of tokenizer (modules.tokenizer.registry lists them) is a subclass. Shape letters: B batch, I items, E input width, D latent
width, L levels, K codebook size of a level.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.schemas import UserError
from modules.input_norm import INPUT_NORMS, InputNormalizer


@dataclass(frozen=True)
class TokenizerConfig:
    """What every kind needs to be built, and to be built again from a run directory; a kind adds its own fields.

    A field is filled by an option of train_rqvae.py (modules.tokenizer.registry.option_of).
    ``codebook_size`` is one number for all levels, or one a level.
    """

    input_dim: int = 768
    codebook_size: int | tuple[int, ...] = 256
    num_levels: int = 3
    input_norm: str = "center_unit"

    def __post_init__(self) -> None:
        if self.input_norm not in INPUT_NORMS:
            raise UserError(f"train.vae_input_norm is {self.input_norm!r}; it can be one of {', '.join(map(repr, INPUT_NORMS))}")
        level_sizes(self.codebook_size, self.num_levels)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each level."""
        return level_sizes(self.codebook_size, self.num_levels)


def level_sizes(codebook_size: int | tuple[int, ...], num_levels: int) -> tuple[int, ...]:
    """K of each level from one number for all of them, or one each.

    Raises:
        UserError: another number of sizes than levels.
    """
    if isinstance(codebook_size, int):
        return (codebook_size,) * num_levels
    if len(codebook_size) != num_levels:
        raise UserError(
            f"train.vae_codebook_size = {list(codebook_size)} has {len(codebook_size)} numbers for train.vae_n_layers = {num_levels}; "
            "give one number for each level, or one for all"
        )
    return codebook_size


class ItemTokenizer(nn.Module, ABC):
    """A tokenizer of item embeddings. Its input is normalised by the statistics of the catalogue, its part ``normalizer``.

    Args:
        config: its shape.
        n_cat_feats: features at the end of the input that are categorical (see InputNormalizer).
    """

    reads_vectors = True
    """Do the codes depend on the items' embeddings at all?"""

    def __init__(self, config: TokenizerConfig, n_cat_feats: int = 0) -> None:
        super().__init__()
        self.config = config
        self.normalizer = InputNormalizer(config.input_dim, config.input_norm, n_cat_feats)
        self.register_load_state_dict_pre_hook(_rename_old_statistics)

    @property
    def device(self) -> torch.device:
        return self.normalizer.mean.device

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each level."""
        return self.config.codebook_sizes

    @property
    def codes_depend_on_others(self) -> bool:
        """Do an item's codes depend on the other items of the same call of ``get_semantic_ids``? Then all items belong into one call."""
        return False

    @abstractmethod
    def describe(self, name: str) -> str:
        """Its size on one line; ``name`` is that in train.tokenizer."""

    def normalize(self, x: Tensor) -> Tensor:
        """[B, E] as given -> [B, E] as it is coded and reconstructed."""
        return self.normalizer(x)

    @abstractmethod
    def latents(self, items: Tensor) -> Tensor:
        """[B, E] as given -> [B, D]: what the first level quantizes."""

    @abstractmethod
    def get_semantic_ids(self, items: Tensor) -> Tensor:
        """Codes [I, L] of ``items`` [I, E], without collision code."""

    @abstractmethod
    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        """[B, K]: how far each code of ``level`` is from ``items`` [B, E], given their ``codes`` [B, L] of the levels above it."""

    def codebooks(self) -> list[Tensor]:
        """Codewords of each level, [K, D], whose sum stands for an item's latent; none where codes stand for no vector."""
        return []

    def decode(self, codes: Tensor) -> Tensor | None:
        """What ``codes`` [B, L] keep of the ``normalize(items)`` that they were given to, [B, E]; None where they stand for no vector."""
        return None


def _rename_old_statistics(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Lets weights load that were saved while the normaliser's statistics stood beside its parts."""
    for name in ("mean", "scale"):
        if (before := f"{prefix}input_{name}") in state:
            state[f"{prefix}normalizer.{name}"] = state.pop(before)
