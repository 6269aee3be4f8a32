"""A finished tokenizer before its judges: its figures, and the pictures that show what its codes mean.

Shape letters: I items, E text-embedding width, D latent width.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from evaluate.codebook import Reconstruction, reconstruction_quality
from evaluate.maps import latent_map, prefix_tree
from evaluate.plots import codebook_plot
from evaluate.quality import TokenizerQuality, tokenizer_quality
from evaluate.semantics import sample_rows
from modules.rqvae import RqVae
from modules.tokenizer.semids import SemanticIdTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECONSTRUCTED = 16384
"""Items whose reconstruction is compared at most, drawn with the run's seed."""

QUERIES, PAIRS = 2000, 1 << 28
"""Items whose neighbours are looked at among all items, at most, and pairs of items that this may take: seconds, however many items."""


class Appraisal(NamedTuple):
    quality: TokenizerQuality
    pictures: Iterator[tuple[str, "Figure"]]  # name and picture, drawn as they are asked for


@torch.no_grad()
def appraise(
    model: RqVae,
    tokenizer: SemanticIdTokenizer,
    embeddings: Tensor,
    held_out: Tensor | None,
    titles: list[str],
    histories: tuple[Tensor, Tensor] | None,
    seed: int,
) -> Appraisal:
    """Judges the semantic IDs that an RQ-VAE gave a catalogue.

    Args:
        model: the RQ-VAE, in evaluation.
        tokenizer: made from it.
        embeddings: [I, E] of all items.
        held_out: the rows of them that were not trained on.
        titles: I of them.
        histories: item_ids and offsets of the training part.
        seed: of the items that are drawn where all would be too many.
    """
    codes = tokenizer.sem_ids[:, : tokenizer.num_levels].cpu()
    latents = _latents(model, embeddings)
    quality = tokenizer_quality(
        codes,
        tokenizer.info.codebook_sizes,
        embeddings.cpu(),
        latents,
        [codebook.cpu() for codebook in tokenizer.codebooks],
        histories,
        reconstruction=_reconstruction(model, embeddings, seed),
        held_out_reconstruction=None if held_out is None else _reconstruction(model, held_out, seed),
        queries=min(QUERIES, PAIRS // len(codes)),
        seed=seed,
    )

    def pictures() -> Iterator[tuple[str, "Figure"]]:
        yield "codes", codebook_plot(codes, tokenizer.info.codebook_sizes)
        yield "latents", latent_map(latents, codes[:, 0], titles)
        yield "prefixes", prefix_tree(codes, titles)

    return Appraisal(quality, pictures())


def _latents(model: RqVae, embeddings: Tensor, chunk_size: int = 16384) -> Tensor:
    """What the first level quantizes, [I, D] on the CPU."""
    device = model.input_mean.device
    return torch.cat([model.encode(model.normalize(chunk.to(device))).cpu() for chunk in embeddings.split(chunk_size)])


def _reconstruction(model: RqVae, embeddings: Tensor, seed: int) -> Reconstruction:
    """Of the dense features, as the encoder reads them and the decoder gives them back."""
    rows = sample_rows(len(embeddings), RECONSTRUCTED, seed).to(embeddings.device)
    items = model.normalize(embeddings[rows].to(model.input_mean.device))
    rebuilt = model.decoder(torch.stack(model.quantize(model.encode(items)).codewords).sum(0)).float()
    dense = model.config.input_dim - model.config.n_cat_feats
    return reconstruction_quality(items[:, :dense].cpu(), rebuilt[:, :dense].cpu())
