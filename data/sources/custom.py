"""A dataset of one's own, without code: interactions and items as csv, tsv, txt, json, parquet or RecBole's atomic files.

    <folder>/raw/interactions.csv   user,item,timestamp        (or .tsv, .jsonl, .parquet, ..; <split>.interactions.csv; <split>.inter)
    <folder>/raw/items.csv          item,title,brand,...       (likewise; <split>.item)

    python -m data.custom FOLDER    checks them and says what it understood

The files may also lie in <folder> itself. Columns of other names are named by role: ``train.columns = ["user=uid", "item=sku",
"timestamp=when", "rating=stars", "title=label", "text=brand"]``; without "text=" every other column of the items that holds texts
describes them. Without times the order of the file is that of the interactions. The items may be missing, or be ids alone, where
``train.item_embeddings`` brings the vectors: row i for the i-th line, or for the i-th id where there is no file. Items that nobody
interacted with stay in the catalogue.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.corpus import Catalogue, LoadedCorpus
from data.corpus_cache import cached_corpus, corpus_path
from data.filters import Filters, assemble, codes_of
from data.io.files import raw_fingerprint
from data.io.numbers import parse_numbers
from data.io.tables import Table, bad_ids, refuse
from data.item_text import TEMPLATE_VERSION
from data.schemas import UserError
from data.sources.custom_columns import describe_items, parse_columns, text_columns
from data.sources.custom_files import Files, find_files
from data.sources.custom_table import RoleTable, join_tables, read_table
from data.sources.registry import DataConfig, Source
from data.sources.text_columns import numbers_rows
from data.sources.unlisted import Unlisted, bad_unlisted, place_unlisted
from data.times import read_times

if TYPE_CHECKING:
    import polars as pl

PARSER_VERSION = 4
"""Raise it when the same raw files would give another corpus."""

ALL = Filters()


class Reading(NamedTuple):
    """How the files of one's own are read."""

    named: Mapping[str, list[str]]  # columns by role, as ``parse_columns`` gives them
    unlisted: Unlisted = "refuse"
    encoding: str = "utf-8"


def load_custom(
    folder: Path,
    split: str,
    filters: Filters = ALL,
    columns: Sequence[str] = (),
    force_process: bool = False,
    unlisted: Unlisted = "refuse",
    encoding: str = "utf-8",
) -> LoadedCorpus:
    """Returns the corpus of a folder, from the cache when these files have been read with these settings before.

    Args:
        folder: holds the files, itself or in raw/; the cache goes into processed/.
        split: their name where they have one.
        filters: what of them is kept.
        columns: "role=name" for columns that are called otherwise.
        force_process: read them again.
        unlisted: what becomes of interactions with items that the file of items lacks.
        encoding: of text files.

    Raises:
        UserError: missing files, or everything that is wrong with them, by line.
    """
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise UserError(f"train.dataset_split is {split!r}; expected the files' name without .inter, of letters, digits, '-', '_' and '.'")
    files, reading = find_files(folder, split), Reading(parse_columns(columns), unlisted, encoding)
    how = (sorted(reading.named.items()), unlisted, encoding)
    path = corpus_path(folder, f"custom_{split}", TEMPLATE_VERSION, PARSER_VERSION, filters, how, raw_fingerprint(files.paths))
    return cached_corpus(path, lambda: read_custom(files, filters, reading), force=force_process)


def read_custom(files: Files, filters: Filters, reading: Reading | None = None) -> LoadedCorpus:
    """Reads the files into a corpus; users stand in order of first appearance, items in the order of their file.

    Raises:
        UserError: everything that is wrong with them, by line.
    """
    import polars as pl

    named, unlisted, encoding = reading or Reading({})
    items, parts = _read_all(files, named, encoding)
    rows, notes = join_tables([part.table for part in parts]), []
    if files.more:
        parts_read = ", ".join(path.name for path in (files.interactions, *files.more))
        notes.append(f"{parts_read} were read as one; train.split_by splits them anew")
    if items is None:
        listed = Table(rows.path, pl.DataFrame({"item": _ordered(rows.frame["item"])}), rows.place)
        blank = [""] * len(listed.frame)
        catalogue, from_file = Catalogue(listed.frame["item"].to_list(), blank, blank, blank), str(files.interactions)
        notes.append(f"{from_file}: there is no file of items; they are those of the interactions, in the order of their ids")
        refuse([*bad_ids(rows, "item"), *_bad_interactions(rows)])
    else:
        listed, repeats = _distinct(items.table)
        notes += [f"{listed.path}: {repeats:,} rows repeat an earlier one in full and were dropped"] if repeats else []
        refuse([*_bad_items(listed), *_bad_interactions(rows), *bad_unlisted(rows, listed, unlisted)])
        texts, from_file = text_columns(listed.frame, named), str(listed.path)
        notes += texts.note(from_file)
        catalogue = describe_items(listed.frame, texts, atomic=listed.path.suffix == ".item")
    rows, catalogue, more = place_unlisted(rows, listed, catalogue, unlisted)
    table = {"user": rows.frame["user"], "item": codes_of(rows.frame["item"], pl.Series(catalogue.keys, dtype=pl.String))}
    timed = "timestamp" in rows.frame.columns
    if timed:
        times = read_times(rows, "timestamp")
        table["time"] = times.seconds
        notes += times.notes
    else:
        table["time"] = pl.int_range(len(rows.frame), eager=True)
        notes.append(f"{files.interactions}: no column holds times; the order of the file is taken for the order of time")
    if "rating" in rows.frame.columns and filters.min_rating > 0:
        table["rating"] = parse_numbers(rows, "rating")
    frame = pl.DataFrame(table)
    if timed and times.ticks is not None:  # seconds as float64 may be too coarse to order these
        frame = frame.with_columns(ticks=times.ticks).sort("ticks", maintain_order=True)
    loaded = assemble(str(files.interactions), from_file, catalogue, frame, filters)
    corpus = loaded.corpus if timed else loaded.corpus._replace(times=None)
    return LoadedCorpus(corpus, [*notes, *more, *loaded.notes])


def _read_all(files: Files, named: Mapping[str, list[str]], encoding: str) -> tuple[RoleTable | None, list[RoleTable]]:
    """The items and the interactions; what is wrong with the columns of all files is told together."""
    found: list[RoleTable] = []
    mistakes: list[str] = []
    for path in files.paths[::-1]:
        try:
            if path == files.items:
                found.append(read_table(path, ("item",), (), named, "a table of items with a column item", encoding))
            else:
                what = "interactions with user, item and timestamp"
                found.append(read_table(path, ("user", "item"), ("timestamp", "rating"), named, what, encoding))
        except UserError as error:
            mistakes += error.args
    refuse(mistakes)
    items = found.pop(0) if files.items else None
    used = {table.item for table in (items, *found) if table is not None}
    unused = [name for name in named.get("item", ()) if not name.isdigit() and name not in used]
    if unused:
        raise UserError(f"{' and '.join(map(str, files.paths))} have no column named {unused[0]}; mend train.columns")
    return items, found[::-1]


def _ordered(ids: "pl.Series") -> "pl.Series":
    """Ids once each, by number where all are numbers, else by letter."""
    import polars as pl

    distinct = pl.DataFrame({"id": ids.unique()}).with_columns(pl.col("id").cast(pl.Int64, strict=False).alias("number"))
    return distinct.sort("id" if distinct["number"].null_count() else "number", "id")["id"]


def _distinct(items: Table) -> tuple[Table, int]:
    """The items without rows that say the same again, their numbers apart, and how many those are."""
    import polars as pl

    shown = [name for name in items.frame.columns if not numbers_rows(name, items.frame[name])]
    keep = items.frame.select(pl.struct(shown).is_first_distinct().alias("first"))["first"]
    if keep.all():
        return items, 0
    rows = keep.arg_true()
    return Table(items.path, items.frame.filter(keep), lambda row: items.place(rows[row])), int((~keep).sum())


def _bad_items(items: Table) -> Iterator[str]:
    import polars as pl

    yield from bad_ids(items, "item")
    yield from items.first(~pl.col("item").is_first_distinct(), "repeats an item; expected one line an item; remove one of them")


def _bad_interactions(rows: Table) -> Iterator[str]:
    yield from bad_ids(rows, "user")
    try:
        if "timestamp" in rows.frame.columns:
            read_times(rows, "timestamp")
    except UserError as error:
        yield from error.args
    try:
        if "rating" in rows.frame.columns and rows.frame["rating"].null_count() == 0:
            parse_numbers(rows, "rating")
    except UserError as error:
        yield from error.args


def load(config: DataConfig, filters: Filters) -> LoadedCorpus:
    """Returns the files that the split names."""
    folder, split, how = Path(config.folder), config.split, (config.unlisted_items, config.encoding)
    return load_custom(folder, split, filters, config.columns, config.force_process, *how)


SOURCE = Source(load, keeps_cold=True, takes_columns=True)
