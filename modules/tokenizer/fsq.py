"""Finite scalar quantization (FSQ): no codebook is learned; every channel of the latent is bounded and rounded to one of a few values.

Mentzer et al. (2023), "Finite Scalar Quantization: VQ-VAE Made Simple", arXiv 2309.15505. A code is a cell of a small grid: it stands for
c channels with n_1, .., n_c values, and there are n_1 x .. x n_c of them. An ID has L such codes, each of channels of its own, so that no
code refines the one before it, unlike an RQ-VAE's.
Shape letters: B batch, I items, E input width, D channels of all codes, L levels (codes), K cells of a code's grid, c its channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.gradients import straight_through
from modules.tokenizer.autoencoder import Autoencoder, AutoencoderConfig, TrainingLoss
from modules.tokenizer.base import level_sizes

FEWEST = 5
"""A channel has at least so many values where the code has room for them, as in all sets that the paper recommends."""

ENCODED_AT_ONCE = 2048
"""Items of a chunk where the whole catalogue is encoded."""


@dataclass(frozen=True)
class FsqConfig(AutoencoderConfig):
    """Shape of such a tokenizer. ``codebook_size`` is the most cells that a code's grid may have; see ``grid_sides``."""

    @property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        """The values of each channel, code by code."""
        return tuple(map(grid_sides, level_sizes(self.codebook_size, self.num_levels)))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each level: the cells of its grid."""
        return tuple(map(math.prod, self.grids))

    @property
    def latent_dim(self) -> int:
        return sum(map(len, self.grids))


def grid_sides(cells: int) -> tuple[int, ...]:
    """The values of each channel of a code, so that their product is as near to ``cells`` as it can be from below.

    As many channels as leave each at least FEWEST values, of all such grids the largest, of equally large ones the most even:
    64 -> 8 x 8, 256 -> 7 x 6 x 6 = 252, 1024 -> 8 x 5 x 5 x 5 = 1000 (as in the paper's table 1).
    """
    channels = 1
    while FEWEST ** (channels + 1) <= cells:
        channels += 1
    return max(_grids(cells, channels), key=lambda sides: (math.prod(sides), -max(sides)))


def _grids(cells: int, channels: int) -> list[tuple[int, ...]]:
    """All grids of so many channels and at most so many cells, the longest side first."""
    if channels == 1:
        return [(cells,)]
    found = []
    for last in range(FEWEST, math.floor(cells ** (1 / channels) + 1e-9) + 1):
        found += [(*sides, last) for sides in _grids(cells // last, channels - 1) if sides[-1] >= last]
    return found


def to_digits(latent: Tensor, sides: Tensor) -> Tensor:
    """The number [B, D] of the nearest value of every channel: ``latent`` [B, D] in [-1, 1], ``sides`` [D] values a channel.

    The n values of a channel lie evenly from -1 to 1. (The paper shifts those of an even n by half a step, so that 0 is among them.)
    """
    return ((latent + 1) / 2 * (sides - 1)).round().long()


def to_values(digits: Tensor, sides: Tensor) -> Tensor:
    """The values in [-1, 1] with those numbers, of the same shape."""
    return digits / (sides - 1).clamp_min(1) * 2 - 1


def to_codes(digits: Tensor, sides: Sequence[int]) -> Tensor:
    """One code [B] for the c ``digits`` [B, c] of its channels: d_1 + n_1 d_2 + n_1 n_2 d_3 + .."""
    steps = [math.prod(sides[:channel]) for channel in range(len(sides))]
    return (digits * torch.tensor(steps, device=digits.device)).sum(-1)


def from_codes(codes: Tensor, sides: Sequence[int]) -> Tensor:
    """The digits [B, c] of ``codes`` [B]."""
    steps = [math.prod(sides[:channel]) for channel in range(len(sides))]
    return codes.unsqueeze(-1) // torch.tensor(steps, device=codes.device) % torch.tensor(sides, device=codes.device)


class Fsq(Autoencoder):
    """See the module's docstring. The latent is tanh of the encoder's output; the reconstruction alone trains the network."""

    config: FsqConfig
    sides: Tensor

    def __init__(self, config: FsqConfig) -> None:
        super().__init__(config)
        self.register_buffer("sides", torch.tensor([side for grid in config.grids for side in grid]), persistent=False)
        self.widths = [len(grid) for grid in config.grids]

    def describe(self, name: str) -> str:
        grids = " + ".join(" x ".join(map(str, grid)) for grid in self.config.grids)
        return f"{sum(p.numel() for p in self.parameters()):,} parameters; {grids} codes without a codebook"

    @property
    def estimator(self) -> str:
        return "STE"

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x).float().tanh()

    def losses(self, batch: Tensor, temperature: float | None) -> TrainingLoss:
        x = self.normalize(batch)
        latent = self.encode(x)
        rounded = latent if temperature is None else to_values(to_digits(latent, self.sides), self.sides)
        loss = self.reconstruction_loss(straight_through(latent, rounded), x)
        return TrainingLoss(loss, {"reconstruction": loss.detach(), "residual_norms": self._residual_norms(latent, rounded)})

    @torch.no_grad()
    def _residual_norms(self, latent: Tensor, rounded: Tensor) -> Tensor:
        """[L], the mean norm of what each code and those before it leave of ``latent`` [B, D]."""
        coded = torch.arange(self.config.latent_dim, device=self.device) < torch.tensor(self.widths, device=self.device).cumsum(0)[:, None]
        return (latent.unsqueeze(1) - rounded.unsqueeze(1) * coded).norm(dim=-1).mean(0)

    @torch.no_grad()
    def get_semantic_ids(self, items: Tensor, chunk_size: int = ENCODED_AT_ONCE) -> Tensor:
        return torch.cat([self._codes(self.latents(chunk.to(self.device))) for chunk in items.split(chunk_size)])

    def _codes(self, latents: Tensor) -> Tensor:
        digits = to_digits(latents, self.sides).split(self.widths, dim=1)
        return torch.stack([to_codes(own, grid) for own, grid in zip(digits, self.config.grids)], dim=1)

    def _grid(self, level: int) -> Tensor:
        """The cells of a code's grid [K, c], in the order of their codes."""
        sides = self.config.grids[level]
        return to_values(from_codes(torch.arange(math.prod(sides), device=self.device), sides), torch.tensor(sides, device=self.device))

    def codebooks(self) -> list[Tensor]:
        """L tensors [K, D], nothing learned: a codeword is zero outside its code's channels."""
        books = []
        for level, width in enumerate(self.widths):
            before = sum(self.widths[:level])
            books.append(torch.nn.functional.pad(self._grid(level), (before, self.config.latent_dim - before - width)))
        return books

    @torch.no_grad()
    def level_distances(self, items: Tensor, codes: Tensor, level: int) -> Tensor:
        """See ItemTokenizer; squared, and the same whatever the other codes."""
        own = self.latents(items).split(self.widths, dim=1)[level]
        return (own.unsqueeze(1) - self._grid(level)).square().sum(-1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        digits = torch.cat([from_codes(codes[:, level], grid) for level, grid in enumerate(self.config.grids)], dim=1)
        return self.decoder(to_values(digits, self.sides)).float()
