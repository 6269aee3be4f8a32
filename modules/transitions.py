"""The tables behind the memory: for every item, which items followed it in training, at which distance, and whose texts are alike.

One sparse row an item holds both what the item says as the last of a history and what it says as the one before the last.
Shape letters: I items, T training interactions, U users, E text-embedding width, R stored pairs, B batch, N history length, W longest row,
M = 2 W entries.
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
    """Items a history that are scored and have a probability of their own; all others share one probability."""
    exact_text: bool = True
    """Keep the text vectors, where there are any, and take both cosines of every candidate from them. Without them a candidate that is
    stored for one of the last two items only has no cosine with the other."""

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
    """A sparse matrix [I, I] with three values an entry (CSR): row = an item of the history, column = the item that may come next."""

    offsets: Tensor  # [I + 1] int64
    columns: Tensor  # [R] int32, different within a row
    last: Tensor  # [R] float32, what the transitions of the row's item add to the score where it is the last of a history
    before: Tensor  # [R] float32, and where it is the one before the last
    cosines: Tensor  # [R] float32, of the two texts


class Entries(NamedTuple):
    """What the tables hold for the last two items of a history."""

    items: Tensor  # [B, M] int64, different within a row and in the order that breaks ties, PAD between them
    counted: Tensor  # [B, M] float32, the transition terms of the score
    alike: Tensor  # [B, M] float32, the cosine terms, as far as they are stored


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
    cosines = torch.zeros(len(keys), dtype=torch.float64, device=item_ids.device)
    if vectors is not None:
        cosines = pair_cosines(vectors, rows, columns).double().masked_fill(rows == columns, 0.0)
    elif alike is not None:
        cosines[torch.searchsorted(keys, alike[0])] = alike[1].double()
    values = torch.cat([values, cosines.unsqueeze(0)]).float()
    return _shortened(rows, columns, values, num_items, order, config)


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


def _shortened(rows: Tensor, columns: Tensor, values: Tensor, num_items: int, order: Tensor, config: MemoryConfig) -> MemoryTables:
    """Entries sorted by row as tables; of a long row the best after a last item stay, ties by ``order``; ``values`` [3, R]."""
    longest = config.row_entries
    lengths = torch.bincount(rows, minlength=num_items)
    if len(rows) and int(lengths.max()) > longest:
        ranking = order[columns].argsort(stable=True)
        for key in (values[0] + config.text * values[2], -rows):
            ranking = ranking[key[ranking].argsort(descending=True, stable=True)]
        starts = lengths.cumsum(0) - lengths
        within = torch.arange(len(rows), device=rows.device) - starts[rows[ranking]]
        kept = ranking[within < longest].sort().values
        rows, columns, values = rows[kept], columns[kept], values[:, kept]
        lengths = lengths.clamp(max=longest)
    offsets = torch.zeros(num_items + 1, dtype=torch.int64, device=rows.device)
    offsets[1:] = lengths.cumsum(0)
    return MemoryTables(offsets, columns.int(), *(value.contiguous() for value in values))


def last_two(history: Tensor) -> tuple[Tensor, Tensor]:
    """The last item of every history [B, N] and the one before it, each [B] int64; PAD where there is none."""
    guarded = torch.cat([history.new_full((history.shape[0], 2), PAD), history], dim=1)
    end = (history != PAD).sum(1, keepdim=True) + 1
    return guarded.gather(1, end).squeeze(1), guarded.gather(1, end - 1).squeeze(1)


def entries_of(history: Tensor, tables: MemoryTables, order: Tensor, row_width: int, config: MemoryConfig) -> Entries:
    """Looks the last two items of every history up; an item that stands in both of their rows becomes one entry.

    Args:
        history: [B, N] item ids, oldest first, PAD on the right.
        tables: from ``memory_tables``.
        order: [I] rank of every item in the order that breaks ties.
        row_width: W, the length of the longest row, so that every shape is known before.
        config: the weights of the cosines.
    """
    last, before = last_two(history)
    rows = (_row(last, tables, tables.last, config.text, row_width), _row(before, tables, tables.before, config.text_before, row_width))
    items, counted, alike = (torch.cat(field, dim=1) for field in zip(*rows))
    rank, place = order[items.clamp_min(0)].masked_fill(items == PAD, len(order)).sort(dim=1)
    items, counted, alike = (field.gather(1, place) for field in (items, counted, alike))
    again = torch.zeros_like(items, dtype=torch.bool)  # the same item as the one to the left
    again[:, 1:] = (rank[:, 1:] == rank[:, :-1]) & (items[:, 1:] != PAD)
    for field in (counted, alike):
        field[:, :-1] += field[:, 1:].masked_fill(~again[:, 1:], 0.0)
    return Entries(items.masked_fill(again, PAD), counted, alike)


def _row(item: Tensor, tables: MemoryTables, counted: Tensor, text: float, width: int) -> Entries:
    """The entries of the rows of ``item`` [B], PAD and 0 where a row is shorter than ``width``."""
    start = tables.offsets[item.clamp_min(0)]
    length = (tables.offsets[item.clamp_min(0) + 1] - start).masked_fill(item == PAD, 0)
    absent = torch.arange(width, device=item.device) >= length.unsqueeze(1)
    if len(tables.columns) == 0:
        return Entries(torch.full_like(absent, PAD, dtype=torch.int64), *(counted.new_zeros(absent.shape) for _ in range(2)))
    entry = (start.unsqueeze(1) + torch.arange(width, device=item.device)).clamp_max(len(tables.columns) - 1)
    items = tables.columns[entry].long().masked_fill(absent, PAD)
    return Entries(items, counted[entry].masked_fill(absent, 0.0), (text * tables.cosines[entry]).masked_fill(absent, 0.0))
