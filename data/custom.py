"""A dataset of one's own: RecBole's atomic files ``<folder>/raw/<split>.inter`` and ``<split>.item``.

Tab separated, UTF-8, with a header of ``name:type``. The first needs user_id, item_id and timestamp, the second item_id and
whatever columns describe an item. Items that nobody interacted with stay in the catalogue.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.cache import LoadedCorpus, cached_corpus, digest, raw_fingerprint
from data.interactions import Corpus, histories_from_interactions
from data.schemas import UserError
from data.text import TEMPLATE_VERSION, field_text, item_text

if TYPE_CHECKING:
    import polars as pl

PARSER_VERSION = 1
"""Raise it when the same raw files would give another corpus."""

LABELS = {"movie_title": "Title", "release_year": "Year", "class": "Genres", "genre": "Genres"}
LINE = "line number"  # a column beside the file's own; its name cannot be one of theirs, which hold no blank


def load_custom(folder: Path, split: str, force_process: bool = False) -> LoadedCorpus:
    """Returns the corpus of ``<folder>/raw/<split>.{inter,item}``, from the cache when these files have been read before.

    Raises:
        UserError: a missing file, or one that is not what it should be, with the line where there is one.
    """
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise UserError(f"train.dataset_split is {split!r}; expected the files' name without .inter, of letters, digits, '-', '_' and '.'")
    inter, item = (folder / "raw" / f"{split}.{kind}" for kind in ("inter", "item"))
    missing = [path.name for path in (inter, item) if not path.is_file()]
    if missing:
        hint = "run `python -m data.quick` to fetch MovieLens-100K and the sentence encoder" if split == "ml-100k" else "put them there"
        raise UserError(f"{' and '.join(missing)} not found in {inter.parent}; expected RecBole's atomic files; {hint}")
    shape = digest(split, TEMPLATE_VERSION, PARSER_VERSION, raw_fingerprint([inter, item]))
    path = folder / "processed" / f"custom_{split}_{shape}.pt"
    return cached_corpus(path, lambda: read_atomic_files(inter, item), force=force_process)


def read_atomic_files(inter: Path, item: Path) -> LoadedCorpus:
    """Reads the two files into a corpus; users stand in order of first appearance, items in the order of their file."""
    import polars as pl

    items = _read_table(item, ("item_id",))
    _refuse_first(item, items, pl.col("item_id").str.strip_chars() == "", "has an empty item_id")
    _refuse_first(item, items, ~pl.col("item_id").is_first_distinct(), "repeats an item_id; expected one line an item")
    titles, texts, notes = _describe_items(item, items)

    table = _read_table(inter, ("user_id", "item_id", "timestamp")).select("user_id", "item_id", "timestamp", LINE)
    _refuse_first(inter, table, pl.col("user_id").str.strip_chars() == "", "has an empty user_id")
    unknown = f"has an item_id that {item.name} lacks; add the item there or remove the line"
    _refuse_first(inter, table, ~pl.col("item_id").is_in(items["item_id"].implode()), unknown)
    times = _parse_times(inter, table)
    user_keys = table["user_id"].unique(maintain_order=True)
    users = _rows_of(table["user_id"], user_keys)
    rows = _rows_of(table["item_id"], items["item_id"])
    histories, num_duplicates = histories_from_interactions(users, rows, times, len(user_keys))
    if num_duplicates:
        notes.append(f"{inter}: {num_duplicates} rows repeat user, item and time of an earlier row and were dropped")
    return LoadedCorpus(Corpus(items["item_id"].to_list(), titles, texts, user_keys.to_list(), histories), notes)


def _rows_of(column: "pl.Series", keys: "pl.Series") -> Tensor:
    import polars as pl

    table = pl.DataFrame({"key": keys}).with_row_index("row")
    joined = pl.DataFrame({"key": column}).join(table, on="key", how="left", maintain_order="left")
    return torch.from_numpy(joined["row"].to_numpy().astype("int64"))


def _read_table(path: Path, needed: Sequence[str]) -> "pl.DataFrame":
    """Reads an atomic file as text columns named without their type, beside the line each row stands on."""
    import polars as pl

    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{number} is not UTF-8; expected a tab-separated file in UTF-8; convert it") from error
    if not text.strip():
        raise UserError(f"{path} is empty; expected a tab-separated header of name:type with {', '.join(needed)}, and rows")
    header, *lines = text.removesuffix("\n").split("\n")
    names = [field.split(":")[0].strip() for field in header.split("\t")]
    absent = [name for name in needed if name not in names]
    if absent or len(set(names)) < len(names):
        what = f"lacks the column {absent[0]}" if absent else "names a column twice"
        what += "" if "\t" in header else " and has no tab"
        raise UserError(f"{path}:1 {what}; expected a tab-separated header of name:type with {', '.join(needed)}; mend the header")
    if not lines:
        raise UserError(f"{path} has a header and no rows; expected one line for each row")
    table = pl.DataFrame({"text": lines}, schema={"text": pl.String}).with_row_index(LINE, offset=2)
    table = table.with_columns(pl.col("text").str.strip_suffix("\r"))
    tabs = pl.col("text").str.count_matches("\t", literal=True)
    _refuse_first(path, table, tabs != len(names) - 1, f"does not have the header's {len(names)} tab-separated fields; mend the line")
    fields = pl.col("text").str.split_exact("\t", len(names) - 1).struct.rename_fields(names)
    return table.select(LINE, fields.alias("fields")).unnest("fields")


def _refuse_first(path: Path, table: "pl.DataFrame", condition: "pl.Expr", what: str) -> None:
    refused = table.filter(condition)
    if len(refused):
        more = f" ({len(refused)} such lines)" if len(refused) > 1 else ""
        raise UserError(f"{path}:{refused[LINE][0]} {what}{more}")


def _parse_times(path: Path, table: "pl.DataFrame") -> Tensor:
    import polars as pl

    whole = table["timestamp"].cast(pl.Int64, strict=False)
    if whole.null_count() == 0:
        return torch.from_numpy(whole.to_numpy().copy())
    times = table.with_columns(pl.col("timestamp").cast(pl.Float64, strict=False))
    _refuse_first(path, times, ~pl.col("timestamp").is_finite().fill_null(False), "has a timestamp that is no number; mend the line")
    return torch.from_numpy(times["timestamp"].to_numpy().copy())


def _describe_items(path: Path, items: "pl.DataFrame") -> tuple[list[str], list[str], list[str]]:
    """Returns titles, texts and notes; the title is the first column named like one, with the year where there is one."""
    names = [name for name in items.columns if name not in (LINE, "item_id")]
    title_name = next((name for name in names if "title" in name.lower() or "name" in name.lower()), None)
    year_name = next((name for name in names if "year" in name.lower()), None)
    ordered = [name for name in (title_name,) if name] + [name for name in names if name != title_name]
    labels = {name: LABELS.get(name, name.replace("_", " ").capitalize()) for name in ordered}
    titles, texts, untitled = [], [], 0
    for row in items.iter_rows(named=True):
        fields = {name: field_text(row[name]) for name in ordered}
        for name in ordered:
            if labels[name] == "Genres" and "," not in fields[name]:
                fields[name] = ", ".join(re.split(r"[\s|]+", fields[name]))
        title, year = fields.get(title_name or "", ""), fields.get(year_name or "", "")
        untitled += not title
        dated = title and re.fullmatch(r"\d{4}", year) and not title.endswith(f"({year})")
        titles.append(f"{title} ({year})" if dated else title or row["item_id"])
        texts.append(item_text((labels[name], fields[name]) for name in ordered) or item_text([("Title", row["item_id"])]))
    notes = [f"{path}: {untitled} of {len(titles)} items have no title and are called by their id"] if untitled else []
    return titles, texts, notes
