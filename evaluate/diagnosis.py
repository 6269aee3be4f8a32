"""The doctor: a tokenizer's figures in words - what is wrong, the likely cause, the gin line that cures it.

Its thresholds are alarms, not targets: healthy codes can still make poor semantic IDs, and a cure that raises usage need not raise recall.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from evaluate.codebook import CodebookHealth
from evaluate.quality import TokenizerQuality

COLLAPSE_BELOW = 0.05
"""A level that uses a smaller share of its codes has collapsed."""

LOW_USAGE = 0.8
"""TIGER (section 3.1) asks for more of the codes in use."""

UNEVEN = 0.5
"""Perplexity below this share of the codes in use: a few codes hold most items."""

COLLISIONS = 0.2
"""A larger collision rate leaves much to the collision code, which knows nothing of the items."""

GIANT_SHARE, GIANT = 0.01, 20
"""A group of equal codes with more than this share of the items, and more than so many, is no accident."""

NORM_LEFT, CHILDREN = 0.97, 1.05
"""A deeper level carries nothing where more of the residual norm is left, or where a prefix has fewer children."""

NEAR_RANDOM = 0.1
"""Neighbours kept by prefix less than this share of the way from chance to all of them, and below twice chance: as good as random."""


class Cure(NamedTuple):
    """A parameter of train_rqvae.py, and the value that helps."""

    name: str
    line: str  # as gin reads it
    without: object  # the value with which the cure is not in place
    lasts: bool = True  # also where a network trains after it


CENTRE = Cure("vae_input_norm", '"center_unit"', "none")
KMEANS = Cure("use_kmeans_init", "True", False)
REVIVE = Cure("vae_dead_code_steps", "50", 0)
SINKHORN = Cure("vae_sinkhorn", '"training"', "none")
EVEN = Cure("kmeans_balanced", "True", False, lasts=False)


def collapse_warnings(
    health: CodebookHealth, sizes: Sequence[int], threshold: float = COLLAPSE_BELOW, settings: Mapping[str, object] | None = None
) -> list[str]:
    """One sentence for every level whose usage is below the threshold: what is seen, why as a rule, and the gin lines that cure it.

    Args:
        health: from ``codebook_health``.
        sizes: K of each level.
        threshold: share of codes in use below which a level counts as collapsed.
        settings: see ``diagnose``.

    Returns:
        At most L sentences; empty when all is well.
    """
    items = sum(size * groups for size, groups in health.group_sizes.items())
    found = []
    for level, (usage, size) in enumerate(zip(health.usage, sizes)):
        if usage < threshold:
            cause, advice = _likely_cause(level), _advice([CENTRE, KMEANS], settings, _advice([REVIVE], settings, ""))
            if not advice and few_items(items, size):
                cause, advice = _few_items_cause(items), _fewer_codes(items, sizes)
            otherwise = "lower train.learning_rate" if _trains(settings) else 'set train.tokenizer = "rqvae"'
            what = f"codebook collapse at level {level}: {round(usage * size)} of {size} codes in use ({usage:.1%})"
            found.append(f"{what}, as a rule because {cause}; {advice or otherwise}.")
    return found


def few_items(items: int, size: int) -> bool:
    """Too few for ``size`` codes a level: the first level tells nearly all of them apart and leaves the others nothing."""
    return items < 4 * size


def few_items_warning(items: int, sizes: Sequence[int]) -> str | None:
    """A sentence before training, where ``few_items`` holds of a level."""
    if not few_items(items, max(sizes)):
        return None
    return f"{_few_items_cause(items)} as {max(sizes)} a level; {_fewer_codes(items, sizes)}"


def diagnose(quality: TokenizerQuality, settings: Mapping[str, object] | None = None) -> list[str]:
    """What is wrong with a tokenizer, a sentence for each finding, the gravest first; one that says so when all is well.

    Args:
        quality: its figures.
        settings: parameters of the script that the tokenizer reads, by their names without ``train.``; a cure that is in place already
            or whose parameter is not among them is not named. None: nothing is known, it is taken for an RQ-VAE.
    """
    collapsed = collapse_warnings(quality.health, quality.sizes, settings=settings)
    findings = [*collapsed, *_use(quality, settings)]
    if not collapsed:  # collisions and codes without meaning follow from it
        findings += [*_collisions(quality), *_meaning(quality, settings)]
    findings += _depth(quality, settings)
    if findings:
        return findings
    kept = quality.neighbours
    near = "" if kept is None else f", {kept.by_prefix:.1%} of an item's neighbours kept by prefix (random codes: {kept.chance:.1%})"
    health = quality.health
    return [f"all is well: lowest usage of a level {min(health.usage):.0%}, {health.collision_rate:.1%} collisions{near}."]


def _use(quality: TokenizerQuality, settings: Mapping[str, object] | None) -> Iterator[str]:
    """Codes that lie idle, or that do all the work."""
    for level, (usage, perplexity, size) in enumerate(zip(quality.health.usage, quality.health.perplexity, quality.sizes)):
        used = round(usage * size)
        if COLLAPSE_BELOW <= usage < LOW_USAGE:
            cause, advice = _few_items_cause(quality.items), _fewer_codes(quality.items, quality.sizes)
            if not few_items(quality.items, size):
                smaller = [_power_below(used) if number == level else other for number, other in enumerate(quality.sizes)]
                cause = "codes that started far from the data were never chosen"
                advice = _advice([KMEANS, REVIVE, EVEN], settings, f"set {_codebooks(smaller)}")
            yield (
                f"low usage at level {level}: {used} of {size} codes in use ({usage:.1%}; TIGER asks for {LOW_USAGE:.0%}), likely because "
                f"{cause}; {advice}."
            )
        if usage >= COLLAPSE_BELOW and perplexity < UNEVEN * used:
            cause = "the items share one large common mean" if level == 0 else "the levels before it left residuals that are mostly alike"
            otherwise = _advice([SINKHORN], settings, "set train.vae_codebook_size lower")
            yield (
                f"uneven use of level {level}: {used} codes in use but only as even as {perplexity:.0f}, likely because {cause}, or some "
                f"codes started where no items are; {_advice([CENTRE, KMEANS, REVIVE, EVEN], settings, otherwise)}."
            )


def _collisions(quality: TokenizerQuality) -> Iterator[str]:
    """Items that their codes do not tell apart."""
    health, levels = quality.health, len(quality.sizes)
    what = f"many collisions: {health.collision_rate:.1%} of the items repeat the codes of another"
    if health.collision_rate > COLLISIONS and levels > 1 and health.branching[-1] < CHILDREN:
        yield (
            f"{what} although the last level finds next to nothing left to tell apart, likely because the embeddings of many items are "
            'nearly the same; look at their titles, and set train.collision_policy = "none" if such items may stand for one another.'
        )
    elif health.collision_rate > COLLISIONS:
        yield (
            f"{what}, likely because {levels} levels of {_shown(quality.sizes)} codes are too coarse for {quality.items:,} items; "
            f"set {_codebooks([2 * size for size in quality.sizes])}, or {_levels(quality.sizes, levels + 1)}."
        )
    if health.largest_group > max(GIANT, GIANT_SHARE * quality.items):
        yield (
            f"one giant group: {health.largest_group:,} items share all their codes, likely because their texts say next to nothing or the "
            f"same; look at their titles, and if they differ set {_levels(quality.sizes, levels + 1)}."
        )


def _depth(quality: TokenizerQuality, settings: Mapping[str, object] | None) -> Iterator[str]:
    """Levels behind the first that add nothing."""
    norms, children = quality.residual_norms, quality.health.branching
    for level in range(1, len(quality.sizes)):
        if quality.health.usage[level] < COLLAPSE_BELOW:
            continue
        if norms is not None and norms[level + 1] > NORM_LEFT * norms[level]:
            advice = _advice([KMEANS, REVIVE], settings, f"set {_levels(quality.sizes, level)}")
            yield (
                f"level {level} carries nothing: the residual norm is {norms[level]:.3f} before it and {norms[level + 1]:.3f} after, "
                f"likely because its codewords are far from the residuals; {advice}."
            )
        elif children[level] < CHILDREN:
            yield (
                f"level {level} tells nothing apart: a prefix has {children[level]:.2f} children there, because the levels before it have "
                f"told nearly all items apart; set {_levels(quality.sizes, level)}, or a smaller train.vae_codebook_size."
            )


def _meaning(quality: TokenizerQuality, settings: Mapping[str, object] | None) -> Iterator[str]:
    """Codes that say nothing of the items, unless they were meant to."""
    kept = quality.neighbours
    if kept is None or (settings is not None and settings.get("tokenizer") == "random"):
        return
    if kept.by_prefix - kept.chance < min(kept.chance, NEAR_RANDOM * (1 - kept.chance)):
        otherwise = "raise train.iterations" if _trains(settings) else 'set train.tokenizer = "rqvae"'
        yield (
            f"near-random prefixes: {kept.by_prefix:.1%} of an item's neighbours share its leading codes (random: {kept.chance:.1%}), "
            f"likely because the codes do not follow the item vectors; {_advice([CENTRE, KMEANS], settings, otherwise)}."
        )


def _advice(cures: Sequence[Cure], settings: Mapping[str, object] | None, otherwise: str) -> str:
    """The gin lines of the cures that are not in place, or else what is left to do."""
    lines = [f"train.{cure.name} = {cure.line}" for cure in cures if _open(cure, settings)]
    return f"set {', '.join(lines[:-1])}{' and ' if lines[:-1] else ''}{lines[-1]}" if lines else otherwise


def _open(cure: Cure, settings: Mapping[str, object] | None) -> bool:
    """It would help the tokenizer and is not in place, as far as is known."""
    helps = cure.lasts or not _trains(settings)
    return helps and (settings is None or (cure.name in settings and settings[cure.name] == cure.without))


def _trains(settings: Mapping[str, object] | None) -> bool:
    """Does the tokenizer train a network, as far as is known?"""
    return settings is None or "learning_rate" in settings


def _likely_cause(level: int) -> str:
    if level == 0:
        return "the item embeddings share one large common mean or the codebook started far from them"
    return "the levels before it learned only the common mean or this codebook started far from its residuals"


def _few_items_cause(items: int) -> str:
    return f"{items:,} items are few for so many codes"


def _fewer_codes(items: int, sizes: Sequence[int]) -> str:
    return f"set {_codebooks([min(size, max(_power_below(items // 4), 2)) for size in sizes])}"


def _shown(sizes: Sequence[int]) -> str:
    """One number where all levels have it."""
    return str(sizes[0] if len(set(sizes)) == 1 else list(sizes))


def _codebooks(sizes: Sequence[int]) -> str:
    return f"train.vae_codebook_size = {_shown(sizes)}"


def _levels(sizes: Sequence[int], count: int) -> str:
    """The line, or both lines, for ``count`` levels."""
    line, wanted = f"train.vae_n_layers = {count}", [*sizes[:count], *[sizes[-1]] * (count - len(sizes))]
    return line if len(set(sizes)) == 1 else f"{line} and {_codebooks(wanted)}"


def _power_below(count: int) -> int:
    """The largest power of two that is at most ``count``."""
    return 1 << max(count.bit_length() - 1, 0)
