"""A dataset of one's own, without code: interactions and items as csv, tsv, jsonl, parquet or RecBole's atomic files.

    <folder>/raw/interactions.csv   user,item,timestamp        (or .tsv, .jsonl, .parquet; <split>.interactions.csv; <split>.inter)
    <folder>/raw/items.csv          item,title,brand,...       (likewise; <split>.item)

    python -m data.custom FOLDER    checks them and says what it understood

The files may also lie in <folder> itself. Columns of other names are named by role: ``train.columns = ["user=uid", "item=sku",
"timestamp=when", "rating=stars", "title=label", "text=brand"]``; without "text=" every other column of the items describes them. An items
file with ids alone is enough where ``train.item_embeddings`` brings the vectors, row i for the i-th line. Items that nobody interacted
with stay in the catalogue.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.corpus import LoadedCorpus
from data.corpus_cache import cached_corpus, corpus_path
from data.filters import Filters, assemble, codes_of
from data.io.csv_file import csv_header, read_csv
from data.io.files import raw_fingerprint
from data.io.json_lines import read_json_lines
from data.io.numbers import parse_numbers
from data.io.tables import Table, bad_ids, read_lines, read_parquet, refuse
from data.item_text import TEMPLATE_VERSION
from data.schemas import UserError
from data.sources.custom_columns import describe_items, find_roles, parse_columns
from data.sources.registry import DataConfig, Source

PARSER_VERSION = 3
"""Raise it when the same raw files would give another corpus."""

ALL = Filters()
KINDS = ("csv", "tsv", "jsonl", "parquet")


class Files(NamedTuple):
    """The two files of a dataset."""

    interactions: Path
    items: Path


def load_custom(folder: Path, split: str, filters: Filters = ALL, columns: Sequence[str] = (), force_process: bool = False) -> LoadedCorpus:
    """Returns the corpus of a folder, from the cache when these files have been read with these settings before.

    Args:
        folder: holds the files, itself or in raw/; the cache goes into processed/.
        split: their name where they have one.
        filters: what of them is kept.
        columns: "role=name" for columns that are called otherwise.
        force_process: read them again.

    Raises:
        UserError: missing files, or everything that is wrong with them, by line.
    """
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise UserError(f"train.dataset_split is {split!r}; expected the files' name without .inter, of letters, digits, '-', '_' and '.'")
    files, named = find_files(folder, split), parse_columns(columns)
    shape = (TEMPLATE_VERSION, PARSER_VERSION, filters, sorted(named.items()), raw_fingerprint(list(files)))
    path = corpus_path(folder, f"custom_{split}", *shape)
    return cached_corpus(path, lambda: read_custom(files, filters, named), force=force_process)


def find_files(folder: Path, split: str) -> Files:
    """Returns the files of a dataset.

    Raises:
        UserError: one is missing, or there are two of a kind.
    """
    found: list[Path | None] = []
    for stem, atomic in (("interactions", "inter"), ("items", "item")):
        names = [f"{split}.{atomic}", *(f"{name}.{kind}" for name in (f"{split}.{stem}", stem) for kind in KINDS)]
        there = [place / name for place in (folder / "raw", folder) for name in names if (place / name).exists()]
        if len(there) > 1:
            raise UserError(f"{there[0]} and {there[1]} are both there; which one holds the {stem} cannot be told; remove one")
        found.append(there[0] if there else None)
    interactions, items = found
    if interactions is None or items is None:
        absent = [name for name, path in ((f"{split}.inter", interactions), (f"{split}.item", items)) if path is None]
        hint = "run `python -m data.quick` to fetch MovieLens-100K and the sentence encoder" if split == "ml-100k" else "put them there"
        others = f"interactions and items as {', '.join(KINDS)}"
        raise UserError(f"{' and '.join(absent)} not found in {folder / 'raw'}; expected RecBole's atomic files, or {others}; {hint}")
    return Files(interactions, items)


def read_custom(files: Files, filters: Filters, named: Mapping[str, list[str]] | None = None) -> LoadedCorpus:
    """Reads the two files into a corpus; users stand in order of first appearance, items in the order of their file.

    Raises:
        UserError: everything that is wrong with them, by line.
    """
    import polars as pl

    named = named or {}
    items = _read(files.items, ("item",), (), named, "a table of items with a column item")
    rows = _read(files.interactions, ("user", "item", "timestamp"), ("rating",), named, "interactions with user, item and timestamp")
    refuse([*_bad_items(items), *_bad_interactions(rows, items)])
    table = {
        "user": rows.frame["user"],
        "item": codes_of(rows.frame["item"], items.frame["item"]),
        "time": parse_numbers(rows, "timestamp"),
    }
    if "rating" in rows.frame.columns and filters.min_rating > 0:
        table["rating"] = parse_numbers(rows, "rating")
    catalogue = describe_items(items.frame, named, atomic=files.items.suffix == ".item")
    return assemble(str(files.interactions), str(files.items), catalogue, pl.DataFrame(table), filters)


def _bad_items(items: Table) -> Iterator[str]:
    import polars as pl

    yield from bad_ids(items, "item")
    yield from items.first(~pl.col("item").is_first_distinct(), "repeats an item; expected one line an item; remove one of them")


def _bad_interactions(rows: Table, items: Table) -> Iterator[str]:
    import polars as pl

    yield from bad_ids(rows, "user")
    known = items.frame["item"].implode()
    yield from rows.first(~pl.col("item").is_in(known), f"has an item that {items.path.name} lacks; add it there or remove the line")
    for name in (name for name in ("timestamp", "rating") if name in rows.frame.columns):
        try:
            if name != "rating" or rows.frame[name].null_count() == 0:
                parse_numbers(rows, name)
        except UserError as error:
            yield from error.args


def _read(path: Path, needed: Sequence[str], wanted: Sequence[str], named: Mapping[str, list[str]], expected: str) -> Table:
    """Reads a file of any kind; the columns of roles come out under the roles' names, ids as text.

    Args:
        path: of a known ending.
        needed: roles that must be there.
        wanted: roles that are taken where they are; with ``needed`` alone, all other columns stay as well.
        named: columns by role, as ``parse_columns`` gives them.
        expected: says in errors what the file should be.
    """
    import polars as pl

    kind = path.suffix[1:]
    if kind == "csv":
        names = csv_header(path, (), expected)
        taken = find_roles(path, names, needed, wanted, named, expected)
        kept = list(taken.values()) if wanted else names
        table = read_csv(path, (), expected, dict.fromkeys(kept, pl.String))
    else:
        if kind == "jsonl":
            table = read_json_lines(path, None, expected)
        elif kind == "parquet":
            table = read_parquet(path, (), expected)
        else:
            table = read_lines(path, "\t", (), f"a tab-separated file, {expected}")
        taken = find_roles(path, table.frame.columns, needed, wanted, named, expected)
    others = [] if wanted else [pl.col(name) for name in table.frame.columns if name not in {*taken, *taken.values()}]
    table = table.with_frame(table.frame.select(*(pl.col(name).alias(role) for role, name in taken.items()), *others))
    gaps = ((role, f"has no {taken[role]}; expected {expected}; mend the line") for role in needed)
    refuse(sentence for role, what in gaps for sentence in table.first(pl.col(role).is_null(), what))
    ids = [role for role in ("user", "item") if role in taken]
    for role in ids:
        held = table.frame[role].dtype
        if not (held.is_integer() or held in (pl.String, pl.Categorical, pl.Enum)):
            raise UserError(f"{path}: {taken[role]} holds {held}; expected ids as text or whole numbers; mend the file")
    return table.with_frame(table.frame.with_columns(pl.col(ids).cast(pl.String)))


def load(config: DataConfig, filters: Filters) -> LoadedCorpus:
    """Returns the files that the split names."""
    return load_custom(Path(config.folder), config.split, filters, config.columns, config.force_process)


SOURCE = Source(load, keeps_cold=True, takes_columns=True)
