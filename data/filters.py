"""From a catalogue and a table of interactions to a corpus: minimum rating, k-core, order, length, cold items. By polars throughout."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from data.corpus import Catalogue, Corpus, Histories, LoadedCorpus, finish_items
from data.schemas import UserError
from data.times import tie_note

if TYPE_CHECKING:
    import polars as pl


class Filters(NamedTuple):
    """What of a source is kept, applied in this order."""

    min_rating: float = 0.0  # interactions rated lower are dropped; 0 keeps all
    k_core: int = 0  # users and items keep at least so many interactions, to a fixed point; 0 and 1 keep all
    max_history: int = 0  # the most recent interactions of a user that are kept; 0 keeps all
    cold_items: bool = True  # items left without an interaction stay in the catalogue


def k_core(table: "pl.DataFrame", k: int) -> "pl.DataFrame":
    """Drops rows of users and items with fewer than ``k`` rows, again and again until every one has ``k``.

    Args:
        table: columns user and item; the order of the rows that stay is kept.
        k: 0 and 1 keep all.
    """
    import polars as pl

    while k > 1 and len(table):
        before = len(table)
        for name in ("user", "item"):
            counts = table.group_by(name).len()
            kept = counts.filter(pl.col("len") >= k).select(name)
            if len(kept) < len(counts):
                table = table.join(kept, on=name, how="semi", maintain_order="left")
        if len(table) == before:
            break
    return table


class Kept(NamedTuple):
    """The interactions that the filters leave."""

    user_keys: list[str]  # [U] in order of first appearance
    histories: Histories
    times: Tensor  # [T] seconds
    notes: list[str]


def assemble(where: str, items_from: str, catalogue: Catalogue, table: "pl.DataFrame", filters: Filters) -> LoadedCorpus:
    """Makes a corpus of a catalogue, which came from the file ``items_from``, and the interactions with it.

    The other arguments and the errors are those of ``keep_interactions``.
    """
    kept = keep_interactions(where, table, filters)
    if not filters.cold_items:
        rows, kept = drop_cold(kept, len(catalogue.keys))
        catalogue = Catalogue(*([column[row] for row in rows.tolist()] for column in catalogue))
    return finish(items_from, catalogue, kept)


def keep_interactions(where: str, table: "pl.DataFrame", filters: Filters) -> Kept:
    """Filters and orders interactions: by time, ties in source order; repeats of user, item and time are dropped.

    Args:
        where: the source's file, for notes and errors.
        table: user (any type that can be a key), item (row of the catalogue), time in seconds and, where there are some, rating.
        filters: see there.

    Raises:
        UserError: no interaction is left.
    """
    import polars as pl

    notes = []
    if filters.min_rating > 0:
        if "rating" not in table.columns:
            raise UserError(f"{where} has no ratings; set train.min_rating = 0")
        table, rows = table.filter(pl.col("rating") >= filters.min_rating), len(table)
        notes.append(f"{where}: {rows - len(table):,} of {rows:,} interactions are rated below {filters.min_rating:g} and were dropped")
    users = table["user"].unique(maintain_order=True)
    ordered = table.select(codes_of(table["user"], users).alias("user"), "item", "time").sort("user", "time", maintain_order=True)
    del table
    ordered, repeated = drop_repeats(ordered)
    if repeated:
        notes.append(f"{where}: {repeated:,} rows repeat user, item and time of an earlier row and were dropped")
    notes += tie_note(where, ordered)
    rows = len(ordered)
    ordered = k_core(ordered, filters.k_core)
    if len(ordered) < rows:
        notes.append(f"{where}: {rows - len(ordered):,} of {rows:,} interactions are outside the {filters.k_core}-core and were dropped")
    if not len(ordered):
        kept = f"train.min_rating = {filters.min_rating:g} and train.k_core = {filters.k_core}"
        raise UserError(f"{where} has no interaction that {kept} leave; lower them")
    item_ids, times = (torch.from_numpy(ordered[name].to_numpy().copy()) for name in ("item", "time"))
    counts = torch.from_numpy(ordered["user"].to_numpy().copy()).bincount(minlength=len(users))
    del ordered
    offsets = torch.zeros(int((counts > 0).sum()) + 1, dtype=torch.int64)
    offsets[1:] = counts[counts > 0].cumsum(0)
    user_keys = users.filter(pl.Series((counts > 0).numpy())).cast(pl.String).to_list()
    times = times.double() if times.is_floating_point() else times.long()
    histories, times = most_recent(Histories(item_ids.long(), offsets), times, filters.max_history)
    return Kept(user_keys, histories, times, notes)


def drop_cold(kept: Kept, num_items: int) -> tuple[Tensor, Kept]:
    """Returns the rows of the items that have an interaction, and the interactions with those rows numbered anew."""
    warm = torch.bincount(kept.histories.item_ids, minlength=num_items) > 0
    numbers = warm.cumsum(0) - 1
    return torch.nonzero(warm).flatten(), kept._replace(histories=kept.histories._replace(item_ids=numbers[kept.histories.item_ids]))


def finish(where: str, catalogue: Catalogue, kept: Kept, notes: Sequence[str] = ()) -> LoadedCorpus:
    """Makes the corpus; an item without a title is called by its key, and what is too long is cut. Both are counted in the notes."""
    items, more = finish_items(where, catalogue)
    keys, titles, texts, categories = map(list, items)
    corpus = Corpus(keys, titles, texts, categories, kept.user_keys, kept.histories, kept.times)
    return LoadedCorpus(corpus, [*notes, *kept.notes, *more])


def codes_of(column: "pl.Series", keys: "pl.Series") -> "pl.Series":
    """Returns the row of each value among ``keys``; null where it is not one of them."""
    import polars as pl

    table = pl.DataFrame({"key": keys}).with_row_index("row").with_columns(pl.col("row").cast(pl.Int32))
    return pl.DataFrame({"key": column}).join(table, on="key", how="left", maintain_order="left")["row"]


def drop_repeats(ordered: "pl.DataFrame") -> "tuple[pl.DataFrame, int]":
    """Drops the repeats of (user, item, time), of which the first row stays, from a table sorted by user and time.

    Returns:
        The rows that stay, and how many went. Only rows that share user and time with a neighbour are compared.
    """
    import polars as pl

    tied = (pl.col("user") == pl.col("user").shift()) & (pl.col("time") == pl.col("time").shift())
    tied = tied.fill_null(False)
    numbered = ordered.with_row_index("row")
    suspects = numbered.filter(tied | tied.shift(-1).fill_null(False))
    repeats = suspects.filter(~pl.struct("user", "item", "time").is_first_distinct()).select("row")
    if not len(repeats):
        return ordered, 0
    return numbered.join(repeats, on="row", how="anti", maintain_order="left").drop("row"), len(repeats)


def most_recent(histories: Histories, times: Tensor, count: int) -> tuple[Histories, Tensor]:
    """Returns the last ``count`` interactions of each user (0: all), and their times."""
    item_ids, offsets = histories
    lengths = offsets.diff()
    kept = lengths.clamp(max=count) if count else lengths
    if bool((kept == lengths).all()):
        return histories, times
    positions = torch.arange(len(item_ids))
    chosen = positions >= (offsets[1:] - kept).repeat_interleave(lengths)
    ends = torch.zeros_like(offsets)
    ends[1:] = kept.cumsum(0)
    return Histories(item_ids[chosen], ends), times[chosen]
