"""The full judgement of a tokenizer in one place: health of the codes, reconstruction, meaning; as a table and as plain values.

Shape letters: I items, L levels, D width of the codewords, E of the item vectors, T interactions, U users.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from evaluate.codebook import CodebookHealth, Reconstruction, codebook_health, partial_sums, residual_norms
from evaluate.semantics import Agreement, NeighboursKept, PrefixAffinity, agreement, neighbours_kept, prefix_affinity


class TokenizerQuality(NamedTuple):
    """Everything that is known of a tokenizer; None where what the figure needs was not at hand."""

    items: int
    sizes: list[int]  # K of each level
    health: CodebookHealth
    residual_norms: list[float] | None  # L + 1: before the first level, then after each
    reconstruction: Reconstruction | None
    held_out_reconstruction: Reconstruction | None
    neighbours: NeighboursKept | None  # None too where the catalogue has no more items than neighbours
    agreement: list[Agreement] | None  # for each depth 1..L
    affinity: PrefixAffinity | None


def tokenizer_quality(
    codes: Tensor,
    sizes: Sequence[int],
    vectors: Tensor,
    latents: Tensor | None = None,
    codebooks: Sequence[Tensor] | None = None,
    histories: tuple[Tensor, Tensor] | None = None,
    categories: Tensor | None = None,
    reconstruction: Reconstruction | None = None,
    held_out_reconstruction: Reconstruction | None = None,
    k: int = 10,
    queries: int | None = 2000,
    seed: int = 0,
    rows: Tensor | None = None,
) -> TokenizerQuality:
    """Judges the codes of a catalogue, whatever made them. All tensors on the CPU; the same arguments give the same digits.

    Args:
        codes: [I, L] int64 without the collision code.
        sizes: K of each level.
        vectors: [I, E] what the tokenizer was given.
        latents: [I, D] what its first level quantized; with ``codebooks``.
        codebooks: L tensors [K, D] whose sum stands for an item (residual quantization).
        histories: item_ids [T] and offsets [U+1] of the training part.
        categories: [I] int64, PAD where unknown.
        reconstruction: of the items, from ``reconstruction_quality``.
        held_out_reconstruction: of items that were not trained on.
        k: neighbours of an item.
        queries: items whose neighbours are looked at; all if None.
        seed: of that draw and of the shuffled categories.
        rows: items that ``vectors`` and ``latents`` belong to, where these are not those of all I.
    """
    norms = quantized = None
    some = codes if rows is None else codes[rows]
    if codebooks:
        *_, quantized = partial_sums(some, codebooks)
        if latents is not None:
            norms = residual_norms(latents, partial_sums(some, codebooks))
    return TokenizerQuality(
        len(codes),
        list(sizes),
        codebook_health(codes, sizes),
        norms,
        reconstruction,
        held_out_reconstruction,
        neighbours_kept(vectors, some, quantized, k, queries, seed) if len(some) > k else None,
        None if categories is None else agreement(codes, categories, seed),
        None if histories is None else prefix_affinity(codes, *histories),
    )


def quality_values(quality: TokenizerQuality) -> dict[str, object]:
    """The figures as JSON has them: numbers, strings, lists and dicts. Those of the health come first and stand for themselves."""
    values: dict[str, object] = quality.health._asdict()
    values["group_sizes"] = {str(size): groups for size, groups in quality.health.group_sizes.items()}
    values["residual_norms"] = quality.residual_norms
    for name in ("reconstruction", "held_out_reconstruction", "neighbours", "affinity"):
        part = getattr(quality, name)
        values[name] = None if part is None else part._asdict()
    values["agreement"] = None if quality.agreement is None else [depth._asdict() for depth in quality.agreement]
    return values


def quality_table(tokenizers: Mapping[str, TokenizerQuality]) -> str:
    """Tokenizers side by side, a row for each figure and a column for each of them; ``-`` where a figure is not known.

    Args:
        tokenizers: of one catalogue, by the name at the head of the column.
    """
    columns = [{"": name} | _cells(quality) for name, quality in tokenizers.items()]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    width = max(map(len, labels))
    widths = [max(map(len, column.values())) for column in columns]
    lines = (
        f"{label:<{width}}" + "".join(f"  {column.get(label, '-'):>{size}}" for column, size in zip(columns, widths)) for label in labels
    )
    return "\n".join(line.rstrip() for line in lines)


def _cells(quality: TokenizerQuality) -> dict[str, str]:
    """Label and text of every known figure; behind a figure that codes without meaning have too stands theirs, in brackets."""
    health, kept, affinity = quality.health, quality.neighbours, quality.affinity
    cells = {"codes a level": " x ".join(map(str, quality.sizes))}
    for level in range(len(quality.sizes)):
        cells[f"usage, level {level}"] = f"{health.usage[level]:.1%}"
        cells[f"perplexity, level {level}"] = f"{health.perplexity[level]:.1f}"
        cells[f"children of a prefix, level {level}"] = f"{health.branching[level]:.2f}"
    for level, norm in enumerate(quality.residual_norms or []):
        cells[f"residual norm, {f'after level {level - 1}' if level else 'at first'}"] = f"{norm:.3f}"
    cells["collision rate"] = f"{health.collision_rate:.1%}"
    cells["items alone with their codes"] = f"{health.singleton_share:.1%}"
    cells["largest group of equal codes"] = str(health.largest_group)
    for name, part in (("items", quality.reconstruction), ("held-out items", quality.held_out_reconstruction)):
        if part is not None:
            cells[f"reconstruction of {name}, cosine"] = f"{part.cosine:.3f}"
            cells[f"reconstruction of {name}, squared distance"] = f"{part.squared_l2:.3f}"
    if kept is not None and kept.by_vector is not None:
        cells["neighbours kept by vector"] = f"{kept.by_vector:.1%} [{kept.chance:.1%}]"
    if kept is not None:
        cells["neighbours kept by prefix"] = f"{kept.by_prefix:.1%} [{kept.chance:.1%}]"
    for depth, found in enumerate(quality.agreement or [], start=1):
        cells[f"NMI with categories, depth {depth}"] = f"{found.nmi:.3f} [{found.nmi_chance:.3f}]"
        cells[f"purity of categories, depth {depth}"] = f"{found.purity:.3f} [{found.purity_chance:.3f}]"
    if affinity is not None:
        cells["leading codes shared in histories"] = f"{affinity.adjacent:.3f} [{affinity.chance:.3f}]"
        for times, shared in affinity.by_times.items():
            cells[f"leading codes shared by pairs seen {times}x"] = f"{shared:.3f}"
    return cells
