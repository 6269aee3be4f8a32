"""Semantic IDs as a tree: which of its branches makes a legible example, and that branch as text.

Items of one kind stand together under one prefix where the IDs mean something; a reader sees it in the titles (the picture of it is in
evaluate/maps.py). Shape letters: I items, C codes of an ID.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evaluate.codebook import prefix_nodes
from evaluate.console import WIDTH, shorten

FEWEST, MOST = 10, 25
"""Items of a branch that a reader takes in at once."""


class Branch(NamedTuple):
    """The items whose ID begins with one code, in the order of their IDs; at most MOST of them."""

    first_code: int
    items: Tensor  # [M] int64
    sem_ids: Tensor  # [M, C] int64
    total: int  # items under the code, shown or not


def branch(sem_ids: Tensor, first_code: int | None = None) -> Branch:
    """The branch under a first code; by default a legible one, of FEWEST to MOST items of which most share a second code too.

    Args:
        sem_ids: [I, C] int64; without the collision code it is a picture of the codes alone.
        first_code: which one.

    Raises:
        ValueError: no item has that first code.
    """
    code = _legible(sem_ids) if first_code is None else first_code
    items = (sem_ids[:, 0] == code).nonzero()[:, 0]
    if not len(items):
        raise ValueError(f"no semantic ID begins with code {code}; choose one of {sorted(set(sem_ids[:, 0].tolist()))}")
    order = prefix_nodes(sem_ids[items])[:, -1].argsort(stable=True)
    shown = items[order[:MOST]]
    return Branch(code, shown, sem_ids[shown], len(items))


def _legible(sem_ids: Tensor) -> int:
    """Of the first codes of a legible size (or nearest to it), the one of which the largest share of items have company at the second."""
    nodes = prefix_nodes(sem_ids)
    first, second = nodes[:, 0], nodes[:, min(1, nodes.shape[1] - 1)]
    sizes = torch.bincount(first)
    together = torch.bincount(first[torch.bincount(second)[second] > 1], minlength=len(sizes)) / sizes
    away = (FEWEST - sizes).clamp_min(0) + (sizes - MOST).clamp_min(0)
    best = int((together - 2 * away).argmax())
    return int(sem_ids[:, 0].unique()[best])


def prefix_text(sem_ids: Tensor, titles: Sequence[str], first_code: int | None = None) -> str:
    """A branch as lines of text: the codes, blank where they are those of the line above, and the title.

    Args:
        sem_ids: [I, C] int64.
        titles: I of them.
        first_code: see ``branch``.
    """
    shown = branch(sem_ids, first_code)
    width = len(str(int(shown.sem_ids.max())))
    lines, above = [], [-1] * sem_ids.shape[1]
    for item, codes in zip(shown.items.tolist(), shown.sem_ids.tolist()):
        depth = next((depth for depth, (code, before) in enumerate(zip(codes, above)) if code != before), len(codes))
        cells = [f"{code if position >= depth else '':>{width}}" for position, code in enumerate(codes)]
        lines.append(shorten(f"{'  '.join(cells)}  {titles[item]}", WIDTH))
        above = codes
    if shown.total > len(lines):
        lines.append(f"... and {shown.total - len(lines):,} more items")
    return "\n".join(lines)
