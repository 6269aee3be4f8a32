"""The rows of a catalogue that stage 1 trains on: which are held out, where they lie, and which of them a step draws.

Shape letters: I items, E input width, B batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from modules.runtime.device import on_device


def split_items(embeddings: Tensor, do_eval: bool, seed: int) -> tuple[Tensor, Tensor | None]:
    """All rows for training, or 95 % of them and a held-out rest."""
    if not do_eval:
        return embeddings, None
    order = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(seed))
    count = max(1, len(embeddings) // 20)
    return embeddings[order[count:]], embeddings[order[:count]]


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
