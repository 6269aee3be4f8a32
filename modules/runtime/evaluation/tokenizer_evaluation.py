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
from evaluate.semantics import category_ids, sample_rows
from modules.loss import reconstruction_loss
from modules.tokenizer.base import ItemTokenizer
from modules.tokenizer.semids import SemanticIdTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECONSTRUCTED = 16384
"""Items whose reconstruction is compared at most, drawn with the run's seed."""

JUDGED, QUERIES, PAIRS = 1 << 18, 2000, 1 << 28
"""Items that stand for the catalogue where vectors are compared; those of them whose neighbours are sought; pairs compared at most."""


class TokenizerEvaluation(NamedTuple):
    quality: TokenizerQuality
    pictures: Iterator[tuple[str, "Figure"]]  # name and picture, drawn as they are asked for


@torch.no_grad()
def evaluate_tokenizer(
    coder: ItemTokenizer,
    tokenizer: SemanticIdTokenizer,
    embeddings: Tensor,
    held_out: Tensor | None,
    titles: list[str],
    categories: list[str],
    histories: tuple[Tensor, Tensor] | None,
    seed: int,
) -> TokenizerEvaluation:
    """Judges the semantic IDs that a tokenizer gave a catalogue: the codes that stage 2 will read, wherever items were moved to.

    Args:
        coder: in evaluation.
        tokenizer: made from it.
        embeddings: [I, E] of all items.
        held_out: rows of them that were not trained on.
        titles: I of them.
        categories: I of them, "" where unknown.
        histories: item_ids and offsets of the training part.
        seed: of the items that are drawn where all would be too many.
    """
    codes = tokenizer.sem_ids[:, : tokenizer.num_levels].cpu()
    rows = sample_rows(len(codes), JUDGED, seed)
    vectors = (embeddings if len(rows) == len(embeddings) else embeddings[rows.to(embeddings.device)]).cpu().float()
    latents = _latents(coder, vectors)
    quality = tokenizer_quality(
        codes,
        tokenizer.info.codebook_sizes,
        vectors,
        latents,
        [codebook.cpu() for codebook in tokenizer.codebooks],
        histories,
        category_ids(categories),
        reconstruction=_reconstruction(coder, embeddings, codes, torch.arange(len(codes)), seed),
        held_out_reconstruction=None if held_out is None else _reconstruction(coder, embeddings, codes, held_out, seed),
        queries=min(QUERIES, PAIRS // len(rows)),
        seed=seed,
        rows=rows,
    )

    def pictures() -> Iterator[tuple[str, "Figure"]]:
        yield "codes", codebook_plot(codes, tokenizer.info.codebook_sizes)
        yield "latents", latent_map(latents, codes[rows, 0], [titles[row] for row in rows.tolist()])
        yield "prefixes", prefix_tree(codes, titles)

    return TokenizerEvaluation(quality, pictures())


def _latents(coder: ItemTokenizer, embeddings: Tensor, chunk_size: int = 16384) -> Tensor:
    """What the first level quantizes, [I, D] on the CPU."""
    device = coder.device
    return torch.cat([coder.latents(chunk.to(device)).cpu() for chunk in embeddings.split(chunk_size)])


def _reconstruction(coder: ItemTokenizer, embeddings: Tensor, codes: Tensor, rows: Tensor, seed: int) -> Reconstruction | None:
    """Of the dense features of ``rows``, as the tokenizer reads them and ``codes`` [I, L] give them back; None where they give nothing."""
    rows, device = rows[sample_rows(len(rows), RECONSTRUCTED, seed)], coder.device
    rebuilt = coder.decode(codes[rows].to(device))
    if rebuilt is None:
        return None
    items = coder.normalize(embeddings[rows.to(embeddings.device)].to(device).float())
    return reconstruction_quality(items[:, : coder.normalizer.num_dense].cpu(), rebuilt[:, : coder.normalizer.num_dense].cpu())


def mean_reconstruction(coder: ItemTokenizer, items: Tensor, codes: Tensor) -> float | None:
    """Reconstruction loss over ``items`` [I, E] by their ``codes`` [I, L]; None for codes from which nothing can be reconstructed."""
    summed = reconstruction_sum(coder, items, codes)
    return None if summed is None else summed.item() / len(items)


def reconstruction_sum(coder: ItemTokenizer, items: Tensor, codes: Tensor, chunk_size: int = 2048) -> Tensor | None:
    """Reconstruction loss summed over ``items`` [I, E], a chunk at a time; otherwise as above."""
    sums = []
    categorical, device = coder.normalizer.n_cat_feats, coder.device
    for chunk, of_chunk in zip(items.split(chunk_size), codes.split(chunk_size)):
        rebuilt = coder.decode(of_chunk.to(device))
        if rebuilt is None:
            return None
        sums.append(reconstruction_loss(rebuilt, coder.normalize(chunk.to(device).float()), categorical) * len(chunk))
    return torch.stack(sums).sum()
