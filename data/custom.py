"""A dataset of one's own, without code: interactions and items as csv, tsv, jsonl, parquet or RecBole's atomic files.

    <folder>/raw/interactions.csv   user,item,timestamp        (or .tsv, .jsonl, .parquet; <split>.interactions.csv; <split>.inter)
    <folder>/raw/items.csv          item,title,brand,...       (likewise; <split>.item)

    python -m data.custom FOLDER    checks them and says what it understood

The files may also lie in <folder> itself. Columns of other names are named by role: ``train.columns = ["user=uid", "item=sku",
"timestamp=when", "rating=stars", "title=label", "text=brand"]``; without "text=" every other column of the items describes them. An items
file with ids alone is enough where ``train.item_embeddings`` brings the vectors, row i for the i-th line. Items that nobody interacted
with stay in the catalogue.
"""

import argparse
import datetime
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.assemble import Filters, assemble, codes_of
from data.cache import LoadedCorpus, cached_corpus, corpus_path, raw_fingerprint
from data.columns import describe_items, find_roles, parse_columns
from data.csvfile import csv_header, read_csv
from data.interactions import statistics
from data.schemas import UserError
from data.shell import command
from data.tables import Table, bad_ids, parse_numbers, read_jsonl, read_lines, read_parquet, refuse
from data.text import TEMPLATE_VERSION, field_text, load_embeddings

PARSER_VERSION = 3
"""Raise it when the same raw files would give another corpus."""

ALL = Filters()
SHARES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
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
    found = []
    for stem, atomic in (("interactions", "inter"), ("items", "item")):
        names = [f"{split}.{atomic}", *(f"{name}.{kind}" for name in (f"{split}.{stem}", stem) for kind in KINDS)]
        there = [place / name for place in (folder / "raw", folder) for name in names if (place / name).exists()]
        if len(there) > 1:
            raise UserError(f"{there[0]} and {there[1]} are both there; which one holds the {stem} cannot be told; remove one")
        found += there or [None]
    absent = [name for name, path in zip((f"{split}.inter", f"{split}.item"), found) if path is None]
    if absent:
        hint = "run `python -m data.quick` to fetch MovieLens-100K and the sentence encoder" if split == "ml-100k" else "put them there"
        others = f"interactions and items as {', '.join(KINDS)}"
        raise UserError(f"{' and '.join(absent)} not found in {folder / 'raw'}; expected RecBole's atomic files, or {others}; {hint}")
    return Files(*found)


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
        if kind in ("jsonl", "parquet"):
            table = (read_jsonl if kind == "jsonl" else read_parquet)(path, (), expected)
        else:
            table = read_lines(path, "\t", (), f"a tab-separated file, {expected}")
        taken = find_roles(path, table.frame.columns, needed, wanted, named, expected)
    others = [] if wanted else [pl.col(name) for name in table.frame.columns if name not in {*taken, *taken.values()}]
    table = table.with_frame(table.frame.select(*(pl.col(name).alias(role) for role, name in taken.items()), *others))
    gaps = ((role, f"has no {taken[role]}; expected {expected}; mend the line") for role in needed)
    refuse(sentence for role, what in gaps for sentence in table.first(pl.col(role).is_null(), what))
    ids = [role for role in ("user", "item") if role in taken]
    for role in ids:
        kind = table.frame[role].dtype
        if not (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum)):
            raise UserError(f"{path}: {taken[role]} holds {kind}; expected ids as text or whole numbers; mend the file")
    return table.with_frame(table.frame.with_columns(pl.col(ids).cast(pl.String)))


def describe_folder(folder: Path, split: str, filters: Filters, columns: Sequence[str], embeddings: Path | None) -> str:
    """Returns what was understood of a folder, as lines for people.

    Raises:
        UserError: everything that is wrong with its files, by line, or with the embeddings.
    """
    files = find_files(folder, split)
    corpus, notes = read_custom(files, filters, parse_columns(columns))
    numbers, lengths = statistics(corpus), corpus.histories.offsets.diff().numpy()
    assert corpus.times is not None
    quantiles = ", ".join(f"{share:.0%} {value:g}" for share, value in zip(SHARES, np.quantile(lengths, SHARES)))
    cold = len(corpus.item_keys) - len(corpus.histories.item_ids.unique())
    lines = [
        f"interactions  {files.interactions}",
        f"items         {files.items}",
        f"counts        {numbers.describe()}",
        f"lengths       {quantiles}",
        f"time          {time_range(float(corpus.times.min()), float(corpus.times.max()))}",
        f"cold items    {cold:,} without an interaction",
        f"first item    {field_text(corpus.item_keys[0])}: {corpus.texts[0]:.160}",
        *(f"note          {note}" for note in notes),
    ]
    if embeddings is not None:
        vectors = load_embeddings(embeddings, len(corpus.item_keys)).shape[1]
        lines.append(f"embeddings    {embeddings}, {vectors} wide")
    if numbers.train_targets == 0:
        lines.append("note          no user has four interactions, so there is nothing to train on")
    given = [f"dataset_folder={folder}", f"dataset_split={split}"]
    given += [f"columns={json.dumps(list(columns))}"] if columns else []
    given += [f"min_rating={filters.min_rating:g}"] if filters.min_rating else []
    given += [f"k_core={filters.k_core}"] if filters.k_core else []
    width = [] if embeddings is None else [f"item_embeddings={embeddings}", f"vae_input_dim={vectors}"]
    return "\n".join([*lines, f"next          {command('train_rqvae.py', 'configs/rqvae_custom.gin', *given, *width)}"])


def time_range(first: float, last: float) -> str:
    """Returns two moments in unix seconds as dates."""
    try:
        return " to ".join(f"{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y-%m-%d}" for moment in (first, last))
    except (ValueError, OverflowError, OSError):
        return f"{first:g} to {last:g}, which are no unix seconds"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after the sentences that say what is wrong."""
    description = "Checks a folder of your own data and prints what was understood of it."
    parser = argparse.ArgumentParser(prog="python -m data.custom", description=description)
    kinds = ", ".join(KINDS)
    parser.add_argument("folder", type=Path, help=f"holds interactions and items as {kinds} or RecBole's atomic files, itself or in raw/")
    parser.add_argument("--split", help="the files' name (default: the name of the .inter file, else the folder's)")
    roles = "user=uid item=sku timestamp=when rating=stars title=label text=brand text=color"
    parser.add_argument("--columns", nargs="+", default=[], metavar="ROLE=NAME", help=f"columns that are called otherwise: {roles}")
    parser.add_argument("--embeddings", type=Path, help="a .npy file for train.item_embeddings, checked against the items")
    parser.add_argument("--min-rating", type=float, default=0.0, help="interactions rated lower are dropped")
    parser.add_argument("--k-core", type=int, default=0, help="users and items with fewer interactions are dropped")
    given = parser.parse_args(arguments)
    found = [path.name for place in (given.folder / "raw", given.folder) if place.is_dir() for path in place.iterdir()]
    names = sorted(match[1] for name in found if (match := re.fullmatch(r"(.+)\.(?:inter|interactions\.\w+)", name)))
    split = given.split or (names[0] if names else re.sub(r"[^\w.-]+", "_", given.folder.resolve().name))
    try:
        if not given.folder.is_dir():
            raise UserError(f"{given.folder} is no directory; expected one with interactions and items")
        print(describe_folder(given.folder, split, Filters(given.min_rating, given.k_core), given.columns, given.embeddings))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
