"""The RQ-VAE: MLP encoder, residual quantizer over L codebooks, mirrored MLP decoder (TIGER, section 3.1; Zeghidour et al. 2021).

An item's text embedding is normalised by statistics of the whole catalogue (saved with the weights), encoded, quantized level after level
and decoded. The codes of the levels are the item's semantic ID, before the collision code.
Shape letters: B batch, I items, E input width, D latent width, L levels, K codebook size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from data.schemas import UserError
from init.kmeans import ALONE, Shard
from modules.codebook_updates import CodebookUpdates
from modules.gradients import detached_sum, rotation_trick, straight_through
from modules.loss import codebook_loss, commitment_loss
from modules.quantize import DISTANCES, Quantize, QuantizeForwardMode
from modules.sinkhorn import colliding, spread_collisions
from modules.tokenizer.autoencoder import Autoencoder, AutoencoderConfig, TrainingLoss

SINKHORN = ("none", "training", "last_level")
"""Where codes are balanced: nowhere; in training, at every level; at the last level, in training and among the items that collide."""

ENCODED_AT_ONCE = 2048
"""Items of a chunk where the whole catalogue is encoded: its activations stay in the cache; 16384 took a third longer."""


@dataclass(frozen=True)
class RqVaeConfig(AutoencoderConfig):
    """Shape and loss of an RQ-VAE; what a saved tokenizer needs to rebuild it.

    ``codebook_normalize`` gives the encoder's latents length 1 and the codewords of the first level too. What a level leaves of a vector of
    length 1 is shorter, and a codeword of length 1 would overshoot it, so the codewords of the levels below keep the length they learn.
    ``dead_code_steps``, ``ema_decay`` and ``sinkhorn`` are the remedies against collapse, off where they are 0 and "none".
    """

    embed_dim: int = 32
    mode: QuantizeForwardMode = QuantizeForwardMode.STE
    commitment_weight: float = 0.25
    distance: str = "l2"
    sim_vq: bool = False
    codebook_normalize: bool = False
    dead_code_steps: int = 50
    ema_decay: float = 0.0
    sinkhorn: str = "none"
    sinkhorn_epsilon: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance not in DISTANCES:
            raise UserError(f"train.vae_distance is {self.distance!r}; it can be one of {', '.join(map(repr, DISTANCES))}")
        if self.sinkhorn not in SINKHORN:
            raise UserError(f"train.vae_sinkhorn is {self.sinkhorn!r}; it can be one of {', '.join(map(repr, SINKHORN))}")
        if self.ema_decay and self.sim_vq:
            raise UserError(
                "train.vae_ema_decay moves codewords to averages and train.vae_sim_vq freezes them behind a map that learns by gradient: "
                "set train.vae_ema_decay = 0 or train.vae_sim_vq = False"
            )
        if self.mode == QuantizeForwardMode.GUMBEL_SOFTMAX and (self.ema_decay or self.sinkhorn != "none"):
            raise UserError(
                "train.vae_codebook_mode GUMBEL_SOFTMAX samples codes and teaches codewords by gradient, so there is nothing for "
                'train.vae_ema_decay and train.vae_sinkhorn to do: set them to 0 and "none", or the mode to STE or ROTATION_TRICK'
            )

    @property
    def latent_dim(self) -> int:
        return self.embed_dim


class RqVaeOutput(NamedTuple):
    loss: Tensor  # scalar: reconstruction + codebook + commitment_weight x commitment
    reconstruction_loss: Tensor  # scalar
    codebook_loss: Tensor  # scalar, summed over levels
    commitment_loss: Tensor  # scalar, summed over levels
    codes: Tensor  # [B, L] int64
    residual_norms: Tensor  # [L], mean norm of what is left after each level


class Quantized(NamedTuple):
    codes: Tensor  # [B, L] int64
    residuals: list[Tensor]  # L tensors [B, D]: what each level quantized, with gradient to the latent
    codewords: list[Tensor]  # L tensors [B, D], with gradient to the codebooks
    relaxed: list[Tensor]  # L tensors [B, D] in Gumbel-softmax mode, else empty


class RqVae(Autoencoder):
    """See the module's docstring. ``normalizer.fit`` and ``kmeans_init`` look at the whole catalogue once, before training."""

    config: RqVaeConfig

    def __init__(self, config: RqVaeConfig) -> None:
        super().__init__(config)
        self.levels = nn.ModuleList(
            Quantize(
                size,
                config.embed_dim,
                config.distance,
                config.sim_vq,
                unit_codewords=config.codebook_normalize and number == 0,
                revived=config.dead_code_steps > 0,
                averaged=config.ema_decay > 0,
                balance=config.sinkhorn_epsilon if self._balances(number) else None,
            )
            for number, size in enumerate(config.codebook_sizes)
        )

    def _balances(self, level: int) -> bool:
        last = level == self.config.num_levels - 1
        return self.config.sinkhorn == "training" or (self.config.sinkhorn == "last_level" and last)

    @property
    def codes_depend_on_others(self) -> bool:
        return self.config.sinkhorn == "last_level"

    def describe(self, name: str) -> str:
        codes = " + ".join(map(str, self.codebook_sizes))
        return f"{sum(p.numel() for p in self.parameters()):,} parameters; {codes} codes of width {self.config.embed_dim}"

    @property
    def estimator(self) -> str:
        return self.config.mode.name

    def advice(self) -> str | None:
        if self.config.mode != QuantizeForwardMode.ROTATION_TRICK or self.config.codebook_normalize:
            return None
        return "ROTATION_TRICK lets latents shrink until codes die; train.vae_codebook_normalize = True keeps their length"

    def encode(self, x: Tensor) -> Tensor:
        latent = self.encoder(x).float()
        return normalize(latent, dim=-1) if self.config.codebook_normalize else latent

    def kmeans_init(
        self, items: Tensor, seed: int, shard: Shard = ALONE, chunk_size: int = ENCODED_AT_ONCE, balanced: bool = False
    ) -> None:
        """Initialises codebook after codebook by k-means on the residuals of all ``items`` [I, E]; skips codebooks initialised before.

        Several processes (``shard``) encode and assign a part each. ``balanced``: see kmeans.
        """
        self._start(items, shard, chunk_size, lambda level, residual, number: level.kmeans_init(residual, seed + number, shard, balanced))

    def sample_init(self, items: Tensor, seed: int, shard: Shard = ALONE, chunk_size: int = 16384) -> None:
        """The same with the residuals of random items in place of centroids."""
        self._start(items, shard, chunk_size, lambda level, residual, number: level.sample_init(residual, seed + number, shard))

    @torch.no_grad()
    def _start(self, items: Tensor, shard: Shard, chunk_size: int, start: Callable[[Quantize, Tensor, int], Tensor]) -> None:
        device = self.device
        own = items[shard.index :: shard.count]
        residual = torch.cat([self.encode(self.normalize(chunk.to(device))) for chunk in own.split(chunk_size)])
        residual = shard.whole(residual, len(items))
        for number, level in enumerate(self.codebook_levels()):
            codes = level.nearest(residual) if bool(level.initialised) else start(level, residual, number)
            residual = residual - level.codewords()[codes]

    def start_codebooks(self, items: Tensor, seed: int, shard: Shard = ALONE, kmeans: bool = True, balanced: bool = False) -> None:
        if kmeans:
            self.kmeans_init(items, seed, shard, balanced=balanced)
        else:
            self.sample_init(items, seed, shard)

    def codebook_updates(
        self, optimizer: torch.optim.Optimizer, first: int, iterations: int, batch_size: int, seed: int = 0, shard: Shard = ALONE
    ) -> CodebookUpdates:
        remedies = self.config.dead_code_steps, self.config.ema_decay
        return CodebookUpdates(self.codebook_levels(), optimizer, first, iterations, batch_size, seed, shard, *remedies)

    def codebook_levels(self) -> list[Quantize]:
        """The levels, as what they are."""
        return [level for level in self.levels if isinstance(level, Quantize)]

    def codebooks(self) -> list[Tensor]:
        return [level.codewords() for level in self.codebook_levels()]

    def quantize(self, latent: Tensor, temperature: float | None = None, generator: torch.Generator | None = None) -> Quantized:
        """Residual quantization of ``latent`` [B, D]: r_0 = z, r_{l+1} = r_l - sg[e_l]. ``temperature`` samples (see Quantize)."""
        residual = latent
        codes, residuals, codewords, relaxed = [], [], [], []
        for level in self.codebook_levels():
            output = level(residual, temperature, generator)
            codes.append(output.codes)
            residuals.append(residual)
            codewords.append(output.codeword)
            if output.relaxed is not None:
                relaxed.append(output.relaxed)
            residual = residual - (output.codeword if output.relaxed is None else output.relaxed).detach()
        return Quantized(torch.stack(codes, dim=1), residuals, codewords, relaxed)

    def estimate(self, latent: Tensor, quantized: Quantized) -> Tensor:
        """What the decoder reads [B, D]: the sum of the codewords, with the mode's gradient to ``latent``, applied once to the sum."""
        if quantized.relaxed:
            return torch.stack(quantized.relaxed).sum(0)
        estimator = rotation_trick if self.config.mode == QuantizeForwardMode.ROTATION_TRICK else straight_through
        return estimator(latent, detached_sum(quantized.codewords))

    def forward(self, x: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> RqVaeOutput:
        """Losses of a batch of item embeddings ``x`` [B, E].

        Args:
            x: as given, not normalised.
            temperature: of the Gumbel-softmax; unused in the other modes and in evaluation.
            generator: for its noise.
        """
        x = self.normalize(x)
        latent = self.encode(x)
        sampled = self.training and self.config.mode == QuantizeForwardMode.GUMBEL_SOFTMAX
        # Distances decide codes: they stay in fp32 whatever the autocast of the products around them.
        with torch.autocast(x.device.type, enabled=False):
            quantized = self.quantize(latent, temperature if sampled else None, generator)
            decoder_input = self.estimate(latent, quantized)
        reconstructed = self.reconstruction_loss(decoder_input, x)
        pairs = list(zip(quantized.residuals, quantized.codewords))
        codebook = torch.stack([codebook_loss(residual, codeword) for residual, codeword in pairs]).sum()
        commitment = torch.stack([commitment_loss(residual, codeword) for residual, codeword in pairs]).sum()
        norms = torch.stack([(residual - codeword).detach().norm(dim=-1).mean() for residual, codeword in pairs])
        loss = reconstructed + codebook + self.config.commitment_weight * commitment
        return RqVaeOutput(loss, reconstructed, codebook, commitment, quantized.codes, norms)

    def losses(self, batch: Tensor, temperature: float | None) -> TrainingLoss:
        names = ("reconstruction", "codebook_loss", "commitment_loss", "residual_norms")
        if temperature is None:
            loss = self.autoencoding_loss(batch)
            values = (loss.detach(), loss.new_zeros(()), loss.new_zeros(()), loss.new_zeros(self.config.num_levels))
            return TrainingLoss(loss, dict(zip(names, values)))
        output = self(batch, temperature)
        terms = (output.reconstruction_loss, output.codebook_loss, output.commitment_loss, output.residual_norms)
        return TrainingLoss(output.loss, {name: term.detach() for name, term in zip(names, terms)})

    @torch.no_grad()
    def get_semantic_ids(self, items: Tensor, chunk_size: int = ENCODED_AT_ONCE) -> Tensor:
        """Codes [I, L] of ``items`` [I, E], without collision code, in one chunked pass: the nearest codes, in fp32 under any autocast.

        With ``sinkhorn`` "last_level" those of ``items`` that collide take other last codes (see spread_collisions).
        """
        # Written into one tensor: small results kept between large temporaries would tear the heap.
        codes = torch.empty(len(items), self.config.num_levels, dtype=torch.int64, device=self.device)
        for into, chunk in zip(codes.split(chunk_size), items.split(chunk_size)):
            into.copy_(self._nearest(chunk)[0])
        if not self.codes_depend_on_others:
            return codes
        rows, last = colliding(codes), self.codebook_levels()[-1]
        residuals = [self._nearest(items[chunk.to(items.device)])[1] for chunk in rows.split(chunk_size)]
        epsilon = self.config.sinkhorn_epsilon
        return spread_collisions(codes, rows, torch.cat(residuals), last.distances, last.codebook_size, epsilon)

    def _nearest(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes [B, L] of a chunk of items [B, E], and what the last level quantizes of them [B, D]."""
        device, codes = self.device, []
        with torch.autocast(device.type, enabled=False):
            residual = following = self.latents(items.to(device))
            for level in self.codebook_levels():
                residual = following
                codes.append(level.nearest(residual))
                following = residual - level.codewords()[codes[-1]]
        return torch.stack(codes, dim=1), residual

    @torch.no_grad()
    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        """How far each code of ``level`` is from ``items`` [B, E], given their ``codes`` [B, L] above: [B, K] (see Quantize.distances)."""
        residual = self.latents(items)
        for number, codewords in enumerate(self.codebooks()[:level]):
            residual = residual - codewords[codes[:, number]]
        return self.codebook_levels()[level].distances(residual)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """What ``codes`` [B, L] keep of the normalised items, [B, E]; of categorical features their logits."""
        codewords = [codebook[codes[:, number]] for number, codebook in enumerate(self.codebooks())]
        return self.decoder(detached_sum(codewords)).float()
