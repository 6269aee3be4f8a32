"""Reads one split of the Amazon 2014 5-core data in P5's layout.

    sequential_data.txt   "user item item ..." a line, ids from 1, oldest first
    datamaps.json         id2item, id2user: those ids (as strings) to Amazon's
    meta.json.gz          one Python literal a line: asin, title, brand, categories, price where known

Item id i becomes row i - 1; users keep the order of the file. The metadata is parsed as literals, never evaluated.
"""

import ast
import gzip
import html
import json
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

from data.cache import LoadedCorpus
from data.interactions import Corpus, Histories
from data.schemas import UserError
from data.text import field_text, item_text

SPLITS = ("beauty", "sports", "toys")
SEQUENCES, MAPS, METADATA = FILES = ("sequential_data.txt", "datamaps.json", "meta.json.gz")
PARSER_VERSION = 1
"""Raise it when the same raw files would give another corpus."""

MAX_LINE = 1 << 20
STRING = rb"'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\""
# A dict of plain literals that begins with its asin: such a line can be passed over unparsed when the item is not in the catalogue.
PLAIN_ENTRY = re.compile(
    rb"\{\s*['\"]asin['\"]:\s*['\"](\w+)['\"](?:" + STRING + rb"|[\[\]{},:\s]|-?\d[\d.eE+-]*|None|True|False)*+(?<=\})"
)


def read_p5(folder: Path) -> LoadedCorpus:
    """Reads the three files of a split.

    Raises:
        UserError: a file that is not what it should be, with the line where there is one.
    """
    item_keys, users = _read_maps(folder / MAPS)
    user_keys, histories = _read_sequences(folder / SEQUENCES, users, len(item_keys))
    titles, texts, notes = _read_items(folder / METADATA, item_keys)
    return LoadedCorpus(Corpus(item_keys, titles, texts, user_keys, histories), notes)


def _read_maps(path: Path) -> tuple[list[str], dict[int, str]]:
    try:
        maps = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(
            f"{path}{line} is not JSON in UTF-8; expected P5's datamaps with id2item and id2user; fetch the file again"
        ) from error
    tables = []
    for name in ("id2item", "id2user"):
        table = maps.get(name) if isinstance(maps, dict) else None
        if not isinstance(table, dict) or not table:
            raise UserError(f"{path} has no map {name}; expected P5's datamaps with id2item and id2user; fetch the file again")
        for key, value in table.items():
            if not (key.isascii() and key.isdigit() and len(key) < 19 and isinstance(value, str) and value.strip()):
                raise UserError(f"{path}: {name} maps {key!r} to {value!r:.60}; expected a number from 1 and a non-empty id; mend the file")
        numbered = {int(key): value for key, value in table.items()}
        if len(set(numbered.values())) < len(table) or len(numbered) < len(table):
            raise UserError(f"{path}: {name} has an id twice; expected a one-to-one map; mend the file")
        tables.append(numbered)
    items, users = tables
    missing = next((number for number in range(1, len(items) + 1) if number not in items), None)
    if missing is not None:
        raise UserError(
            f"{path}: id2item has {len(items)} items but no id {missing}; expected ids 1..{len(items)} without gaps; mend the file"
        )
    return [items[number] for number in range(1, len(items) + 1)], users


def _read_sequences(path: Path, users: dict[int, str], num_items: int) -> tuple[list[str], Histories]:
    expected = 'expected "user item item ..." with ids from 1, separated by spaces'
    lines = path.read_bytes().splitlines()
    if not lines:
        raise UserError(f"{path} is empty; {expected}; fetch the file again")
    item_ids: list[int] = []
    ends, rows = [0], {}
    for number, line in enumerate(lines, start=1):
        tokens = line.split()
        if not tokens:
            raise UserError(f"{path}:{number} is empty; {expected}; remove the line")
        bad = next((token for token in tokens if not (token.isdigit() and len(token) < 19)), None)
        if bad is not None:
            shown = bad[:40].decode("utf-8", "backslashreplace")
            raise UserError(f"{path}:{number} has '{shown}' where an id should be; {expected}; mend the line")
        if len(tokens) < 2:
            raise UserError(f"{path}:{number} names a user but no item; {expected}; complete or remove the line")
        user, *items = map(int, tokens)
        if user not in users:
            raise UserError(f"{path}:{number} has user {user}, whom id2user in {MAPS} lacks; use the two files of one download")
        if user in rows:
            raise UserError(
                f"{path}:{number} has user {user}, who already stands on line {rows[user]}; expected one line a user; merge the lines"
            )
        if min(items) < 1 or max(items) > num_items:
            unknown = next(item for item in items if not 1 <= item <= num_items)
            raise UserError(
                f"{path}:{number} has item {unknown}; the items of {MAPS} are 1..{num_items}; use the two files of one download"
            )
        rows[user] = number
        item_ids.extend(items)
        ends.append(len(item_ids))
    histories = Histories(torch.tensor(item_ids, dtype=torch.int64) - 1, torch.tensor(ends, dtype=torch.int64))
    return [users[user] for user in rows], histories


def _read_items(path: Path, item_keys: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Returns titles, texts and notes; an item without a title is called by its asin."""
    rows = {key: row for row, key in enumerate(item_keys)}
    titles, texts = list(item_keys), [""] * len(item_keys)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # titles with stray backslashes are literals all the same
        for entry in _read_metadata(path, rows):
            row = rows[entry["asin"]]
            title = html.unescape(field_text(entry.get("title")))
            brand = html.unescape(field_text(entry.get("brand")))
            categories = entry.get("categories")
            if isinstance(categories, list) and categories and isinstance(categories[0], list):
                categories = categories[0]
            fields = [
                ("Title", title),
                ("Brand", "" if brand.lower() == "unknown" else brand),
                ("Categories", html.unescape(field_text(categories))),
                ("Price", entry.get("price")),
            ]
            titles[row] = title or item_keys[row]
            texts[row] = item_text(fields)
    unknown = [row for row, text in enumerate(texts) if not text]
    for row in unknown:
        texts[row] = item_text([("Title", item_keys[row])])
    untitled = sum(title == key for title, key in zip(titles, item_keys))
    notes = [f"{path}: {untitled} of {len(titles)} items have no title and are called by their asin"] if untitled else []
    if unknown:
        notes.append(f"{path}: {len(unknown)} of {len(titles)} items have no metadata at all; their asin is their text")
    return titles, texts, notes


def _read_metadata(path: Path, wanted: dict[str, int]) -> Iterator[dict]:
    """Yields the entries of the catalogue's items."""
    number = 0
    try:
        with gzip.open(path, "rb") as file:
            while line := file.readline(MAX_LINE):
                number += 1
                text = line.strip()
                plain = PLAIN_ENTRY.fullmatch(text)
                if plain and plain[1].decode(errors="replace") not in wanted:
                    continue
                entry = _parse_literal(path, number, text)
                if entry["asin"] in wanted:
                    yield entry
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a complete gzip file (after line {number}); fetch the file again") from error
    if number == 0:
        raise UserError(f"{path} holds no line; expected one metadata literal a line; fetch the file again")


def _parse_literal(path: Path, number: int, line: bytes) -> dict:
    expected = (
        "expected a Python literal like {'asin': 'B000000001', 'title': '..'}, which is parsed and never run; mend or remove the line"
    )
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number} is not UTF-8; {expected}") from error
    try:
        entry = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UserError(f"{path}:{number} is not a literal; {expected}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("asin"), str):
        raise UserError(f"{path}:{number} is not a dict with an asin; {expected}")
    return entry
