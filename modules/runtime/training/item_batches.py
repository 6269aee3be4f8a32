"""The rows of a catalogue that stage 1 trains on: which are held out, where they lie, and which of them a step draws.

Shape letters: I items, E input width, B batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from modules.runtime.training.device import on_device


class Rows(NamedTuple):
    """Which rows of a catalogue are trained on; None: all, and none is held out."""

    training: Tensor | None
    held_out: Tensor | None


def split_rows(items: int, do_eval: bool, seed: int) -> Rows:
    """All rows for training, or 95 % of them and a held-out rest."""
    if not do_eval:
        return Rows(None, None)
    order = torch.randperm(items, generator=torch.Generator().manual_seed(seed))
    count = max(1, items // 20)
    return Rows(order[count:], order[:count])


def where_it_fits(items: Tensor, device: torch.device) -> Tensor:
    """The catalogue on the device, where a step draws its rows by index, unless it would fill more than a quarter of what is free there."""
    if device.type == "cuda" and items.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
        return items
    return items.to(device)


def index_batches(num_items: int, batch_size: int, seed: int, device: torch.device) -> Callable[[int], Tensor]:
    """The rows of a step as a function of the step alone, pass after pass over a seeded permutation: a resumed run draws the same."""
    size = min(batch_size, num_items)
    per_pass = num_items // size
    cached: tuple[int, Tensor] | None = None

    def rows(step: int) -> Tensor:
        nonlocal cached
        number, position = divmod(step, per_pass)
        if cached is None or cached[0] != number:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            cached = (number, on_device(torch.randperm(num_items, generator=generator), device))
        return cached[1][position * size : (position + 1) * size]

    return rows
