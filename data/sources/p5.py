"""Reads one split of the Amazon 2014 5-core data in P5's layout.

    sequential_data.txt   "user item item ..." a line, ids from 1, oldest first
    datamaps.json         id2item, id2user: those ids (as strings) to Amazon's
    meta.json.gz          one Python literal a line: asin, title, brand, categories, price where known

Item id i becomes row i - 1; users keep the order of the file. The metadata is parsed as literals, never evaluated.
"""

import codecs
import json
from pathlib import Path

import torch

from data.corpus_cache import LoadedCorpus
from data.filters import finish_items
from data.item_embeddings import field_text, usable_id
from data.schemas import UserError
from data.sources.amazon_metadata import describe, read_literals
from data.splits import Corpus, Histories

SPLITS = ("beauty", "sports", "toys")
SEQUENCES, MAPS, METADATA = FILES = ("sequential_data.txt", "datamaps.json", "meta.json.gz")
PARSER_VERSION = 3
"""Raise it when the same raw files would give another corpus."""


def read_p5(folder: Path) -> LoadedCorpus:
    """Reads the three files of a split.

    Raises:
        UserError: a file that is not what it should be, with the line where there is one.
    """
    item_keys, users = _read_maps(folder / MAPS)
    user_keys, histories = _read_sequences(folder / SEQUENCES, users, len(item_keys))
    path = folder / METADATA
    items, notes = finish_items(str(path), describe(item_keys, read_literals(path, set(item_keys))))
    return LoadedCorpus(Corpus(*map(list, items), user_keys, histories), notes)


def _read_maps(path: Path) -> tuple[list[str], dict[int, str]]:
    try:
        maps = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_distinct)
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
            if not (key.isascii() and key.isdigit() and len(key) < 19 and isinstance(value, str) and usable_id(value)):
                raise UserError(f"{path}: {name} maps {key!r} to {value!r:.60}; expected a number from 1 and a printable id; mend the file")
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


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; one with a key twice is no map, and comes out empty."""
    return dict(pairs) if len({key for key, _ in pairs}) == len(pairs) else {}


def _read_sequences(path: Path, users: dict[int, str], num_items: int) -> tuple[list[str], Histories]:
    expected = 'expected "user item item ..." with ids from 1, separated by spaces'
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
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
            shown = field_text(bad[:40].decode("utf-8", "backslashreplace"))
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
