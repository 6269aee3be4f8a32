"""The tables behind the memory: for every item, which items followed it in training, at which distance, and whose texts are alike.

One sparse row an item holds both what the item says as the last of a history and what it says as the one before the last.
Shape letters: I items, T training interactions, U users, E text-embedding width, R stored pairs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data.schemas import PAD, UserError
from modules.nearest import Neighbours, pair_cosines


@dataclass(frozen=True)
class MemoryConfig:
    """Weights of the score and the sizes that bound its cost; the weights are frozen on Amazon Beauty's validation part.

    score(j) = text cos(a, j) + text_before cos(b, j) + next log(1 + #(a, j)) + next_before log(1 + #(b, j)) + reverse log(1 + #(j, a))
    + skip log(1 + #(a, ., j)) + skip_reverse log(1 + #(j, ., a)), where a is the last item of the history, b the one before it, and
    #(x, y) counts how often y directly followed x in the training part, #(x, ., y) with one item between them.
    """

    text: float = 1.0
    text_before: float = 0.3
    next: float = 1.0
    next_before: float = 0.4
    reverse: float = 0.4
    skip: float = 0.5
    skip_reverse: float = 0.2
    sharpness: float = 6.0
    """The distribution is the softmax of ``sharpness`` x score."""
    neighbours: int = 50
    """Nearest texts an item."""
    row_entries: int = 1024
    """Longest row of the table; of a longer one the entries with the highest scores after a last item are kept."""
    candidates: int = 512
    """Items whose probability is kept one by one; all others of a history share one probability."""
    exact_text: bool = False
    """Cosines with every item instead of the nearest texts: needs the vectors, and time and memory for all items at each history."""

    def __post_init__(self) -> None:
        weights = ("text", "text_before", "next", "next_before", "reverse", "skip", "skip_reverse")
        problems = [
            f"the memory's weight {name} is {getattr(self, name)}; it must be 0 or more" for name in weights if getattr(self, name) < 0
        ]
        if not self.sharpness > 0:
            problems.append(f"the memory's sharpness is {self.sharpness}; it must be above 0")
        if self.neighbours < 0 or min(self.row_entries, self.candidates) < 1:
            problems.append(
                "the memory needs neighbours of 0 or more, and row_entries and candidates of 1 or more: got "
                f"{self.neighbours}, {self.row_entries} and {self.candidates}"
            )
        if problems:
            raise UserError(*problems)


MARKOV_WITH_TEXTS = MemoryConfig(next=0.5, text_before=0.0, next_before=0.0, reverse=0.0, skip=0.0, skip_reverse=0.0)
"""The Markov baseline with texts is a memory of two terms: cos(a, j) + .5 log(1 + #(a, j))."""


class MemoryTables(NamedTuple):
    """A sparse matrix [I, I] with two values an entry (CSR): row = an item of the history, column = the item that may come next."""

    offsets: Tensor  # [I + 1] int64
    columns: Tensor  # [R] int32, different within a row
    last: Tensor  # [R] float32, what the row's item adds to the score as the last of a history
    before: Tensor  # [R] float32, and as the one before the last


class PairCounts(NamedTuple):
    keys: Tensor  # [R] int64, first item x I + second item, ascending
    counts: Tensor  # [R] int64


def pair_counts(item_ids: Tensor, offsets: Tensor, num_items: int, distance: int) -> PairCounts:
    """How often an item stood ``distance`` places after another in one user's history.

    Args:
        item_ids: [T] int64, the histories one after the other.
        offsets: [U + 1] int64, where each starts.
        num_items: I.
        distance: 1 for direct followers.
    """
    users = torch.arange(len(offsets) - 1, device=item_ids.device).repeat_interleave(offsets.diff())
    same = users[:-distance] == users[distance:]
    keys = item_ids[:-distance][same] * num_items + item_ids[distance:][same]
    return PairCounts(*keys.unique(return_counts=True))


def memory_tables(
    item_ids: Tensor,
    offsets: Tensor,
    num_items: int,
    order: Tensor,
    config: MemoryConfig,
    neighbours: Neighbours | None,
    vectors: Tensor | None,
) -> MemoryTables:
    """Every term of the score that is not zero, added up.

    Args:
        item_ids: [T] int64, the training histories one after the other.
        offsets: [U + 1] int64, where each starts.
        num_items: I.
        order: [I] rank of every item in the order that breaks ties.
        config: weights; a term of weight 0 leaves no entries.
        neighbours: the nearest texts; None: no entries for texts alone.
        vectors: [I, E] from ``nearest.directions``: every stored pair gets its cosine. None: a pair outside the neighbours has cosine 0.
    """
    reach = {distance: pair_counts(item_ids, offsets, num_items, distance) for distance in (1, 2)}
    terms = []  # counts, weight as the last item, weight as the one before
    for counts, last, before in (
        (reach[1], config.next, config.next_before),
        (_reversed(reach[1], num_items), config.reverse, 0.0),
        (reach[2], config.skip, 0.0),
        (_reversed(reach[2], num_items), config.skip_reverse, 0.0),
    ):
        if last or before:
            terms.append((counts, last, before))
    alike = _text_pairs(neighbours, num_items, item_ids.device) if neighbours is not None and (config.text or config.text_before) else None
    keys = torch.cat([*(counts.keys for counts, _, _ in terms), *([alike[0]] if alike is not None else [])]).unique()
    values = torch.zeros(2, len(keys), dtype=torch.float64, device=item_ids.device)
    for counts, last, before in terms:
        place = torch.searchsorted(keys, counts.keys)
        logs = counts.counts.double().log1p()
        values[0, place] += last * logs
        values[1, place] += before * logs
    rows, columns = keys // num_items, keys % num_items
    cosines = torch.zeros(len(keys), device=item_ids.device)
    if vectors is not None:
        cosines = pair_cosines(vectors, rows, columns).masked_fill(rows == columns, 0.0)
    elif alike is not None:
        cosines[torch.searchsorted(keys, alike[0])] = alike[1]
    values[0] += config.text * cosines
    values[1] += config.text_before * cosines
    return _shortened(rows, columns, values.float(), num_items, order, config.row_entries)


def _reversed(counts: PairCounts, num_items: int) -> PairCounts:
    """The same counts with first and second item exchanged."""
    keys = counts.keys % num_items * num_items + counts.keys // num_items
    ascending = keys.argsort()
    return PairCounts(keys[ascending], counts.counts[ascending])


def _text_pairs(neighbours: Neighbours, num_items: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Keys and cosines of all neighbours."""
    items, cosines = neighbours.items.to(device), neighbours.cosines.to(device)
    real = items != PAD
    rows = torch.arange(num_items, device=device).unsqueeze(1).expand_as(items)
    return (rows * num_items + items)[real], cosines.float()[real]


def _shortened(rows: Tensor, columns: Tensor, values: Tensor, num_items: int, order: Tensor, longest: int) -> MemoryTables:
    """Entries sorted by row as tables; of a row with more than ``longest`` of them the best by ``last`` stay, ties by ``order``."""
    lengths = torch.bincount(rows, minlength=num_items)
    if len(rows) and int(lengths.max()) > longest:
        ranking = order[columns].argsort(stable=True)
        for key in (values[0], -rows):
            ranking = ranking[key[ranking].argsort(descending=True, stable=True)]
        starts = lengths.cumsum(0) - lengths
        within = torch.arange(len(rows), device=rows.device) - starts[rows[ranking]]
        kept = ranking[within < longest].sort().values
        rows, columns, values = rows[kept], columns[kept], values[:, kept]
        lengths = lengths.clamp(max=longest)
    offsets = torch.zeros(num_items + 1, dtype=torch.int64, device=rows.device)
    offsets[1:] = lengths.cumsum(0)
    return MemoryTables(offsets, columns.int(), values[0].contiguous(), values[1].contiguous())
