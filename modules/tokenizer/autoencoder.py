"""Autoencoder: what tokenizers that train a network share, and what the training loop of train_rqvae.py may ask of them.

An MLP encoder, a quantizer that each subclass brings, and the mirrored MLP decoder (TIGER, section 3.1).
Shape letters: B batch, I items, E input width, D latent width, L levels.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data.schemas import UserError
from init.kmeans import ALONE, Shard
from modules.codebook_updates import CodebookUpdates
from modules.encoder import MLP
from modules.loss import reconstruction_loss
from modules.tokenizer.base import ItemTokenizer, TokenizerConfig


@dataclass(frozen=True)
class AutoencoderConfig(TokenizerConfig):
    """Adds the network: ``hidden_dims`` are the encoder's hidden widths, the decoder mirrors them.

    The last ``n_cat_feats`` input features are categorical, values in [0, 1]: not normalised, and reconstructed as logits.
    """

    hidden_dims: tuple[int, ...] = (512, 256, 128)
    n_cat_feats: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (self.input_dim, self.latent_dim, *self.hidden_dims, *self.codebook_sizes, self.num_levels)
        if min(sizes) < 1:
            raise UserError(f"the vae_* widths, codebook size and number of levels must all be at least 1: got {sizes}")
        if not 0 <= self.n_cat_feats < self.input_dim:
            raise UserError(
                f"train.vae_n_cat_feats is {self.n_cat_feats} of {self.input_dim} input features; it must leave at least one that is not "
                "categorical and not be negative: lower it or raise train.vae_input_dim"
            )

    @property
    def latent_dim(self) -> int:
        """D."""
        raise NotImplementedError


class TrainingLoss(NamedTuple):
    """The loss of a batch, with gradient, and what the log shows beside it."""

    loss: Tensor  # scalar
    parts: dict[str, Tensor]  # by name, the same in every step; scalars and vectors, without gradient


class Autoencoder(ItemTokenizer):
    """A tokenizer whose codes come of a network. It trains first without its quantizer, then, after ``start_codebooks``, with it."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config, config.n_cat_feats)
        dims = (config.input_dim, *config.hidden_dims, config.latent_dim)
        self.encoder = MLP(dims)
        self.decoder = MLP(dims[::-1])

    @property
    @abstractmethod
    def estimator(self) -> str:
        """How the gradient crosses the quantizer, as printed before training."""

    def advice(self) -> str | None:
        """What is known to go wrong with this config, a sentence; None if nothing is."""
        return None

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Latent [B, D] in fp32 of a normalised ``x`` [B, E]."""

    @abstractmethod
    def losses(self, batch: Tensor, temperature: float | None) -> TrainingLoss:
        """The loss of item embeddings ``batch`` [B, E], as given; without the quantizer where ``temperature`` is None.

        ``temperature`` is that of a quantizer that samples (see Quantize); others leave it alone.
        """

    def start_codebooks(self, items: Tensor, seed: int, shard: Shard = ALONE, kmeans: bool = True, balanced: bool = False) -> None:
        """Called once, before the first step with the quantizer; a quantizer with nothing to initialise does nothing.

        Args:
            items: [I, E], all of them, as given.
            seed: of what is drawn.
            shard: this process among those that hold ``items``.
            kmeans: start at centroids, else at items drawn at random.
            balanced: see kmeans.
        """
        return

    def codebook_updates(
        self, optimizer: torch.optim.Optimizer, first: int, iterations: int, batch_size: int, seed: int = 0, shard: Shard = ALONE
    ) -> CodebookUpdates:
        """What the quantizer does between the steps of ``optimizer`` (see CodebookUpdates); here nothing."""
        return CodebookUpdates([], optimizer, first, iterations, batch_size, seed, shard)

    def autoencoding_loss(self, x: Tensor) -> Tensor:
        """Reconstruction loss of ``x`` [B, E] without the quantizer: a few hundred such steps give k-means latents worth clustering.

        The latents of an untrained encoder move away from their centroids within the first steps, and most codes die on the way.
        """
        x = self.normalize(x)
        return self.reconstruction_loss(self.encode(x), x)

    def reconstruction_loss(self, decoder_input: Tensor, x: Tensor) -> Tensor:
        """Scalar, from what the decoder reads [B, D] and the normalised ``x`` [B, E] that it is to give back."""
        return reconstruction_loss(self.decoder(decoder_input).float(), x, self.normalizer.n_cat_feats)

    def latents(self, items: Tensor) -> Tensor:
        return self.encode(self.normalize(items))
