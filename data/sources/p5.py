"""One split of the Amazon 2014 5-core data in P5's layout: download, safe extraction, reading, cache.

    sequential_data.txt   "user item item ..." a line, ids from 1, oldest first
    datamaps.json         id2item, id2user: those ids (as strings) to Amazon's
    meta.json.gz          one Python literal a line: asin, title, brand, categories, price where known

Raw files that are already in ``<root>/raw/<split>/`` are used as they are; nothing is downloaded then. Item id i becomes row i - 1; users
keep the order of the file. The metadata is parsed as literals, never evaluated.
"""

import codecs
import json
import zipfile
from pathlib import Path

import torch
from torch_geometric.data import InMemoryDataset

from data.corpus import Corpus, Histories, LoadedCorpus, finish_items
from data.corpus_cache import cached_corpus, corpus_path
from data.io.download import fetch
from data.io.files import raw_fingerprint
from data.io.text import field_text, usable_id
from data.io.zip_archive import extract_members
from data.item_text import TEMPLATE_VERSION
from data.schemas import UserError
from data.sources.amazon_metadata import describe, read_literals
from data.sources.registry import DataConfig, RecDataset, data_mistakes

SEQUENCES, MAPS, METADATA = FILES = ("sequential_data.txt", "datamaps.json", "meta.json.gz")
PARSER_VERSION = 4
"""Raise it when the same raw files would give another corpus."""

P5_URL = "https://drive.usercontent.google.com/download?id=1qGxgmx7G_WB7JE4Cn_bEcZ_o_NAJLE3G&confirm=t"
"""Google Drive's answer to the question whether to download a file that it could not scan; it has no checksum to ask for."""

ARCHIVE_NAME = "P5_data.zip"


class AmazonReviews(InMemoryDataset):
    """One split as a ``Corpus``.

    Args:
        root: the dataset folder.
        split: "beauty", "sports" or "toys".
        force_process: read the raw files again even if a cache is there.

    Raises:
        UserError: an unknown split, raw files that are missing and cannot be downloaded, or files that are not P5's.
    """

    def __init__(self, root: str, split: str, force_process: bool = False) -> None:
        for mistake in data_mistakes(DataConfig(RecDataset.AMAZON, root, split)):
            raise UserError(mistake)
        self.split = split
        super().__init__(root, log=False, force_reload=force_process)

    @property
    def raw_file_names(self) -> list[str]:
        return [f"{self.split}/{name}" for name in FILES]

    @property
    def processed_file_names(self) -> list[str]:
        raw = raw_fingerprint([Path(path) for path in self.raw_paths])
        return [corpus_path(Path(self.root), f"amazon_{self.split}", TEMPLATE_VERSION, PARSER_VERSION, raw).name]

    def download(self) -> None:
        missing = [Path(path) for path in self.raw_paths if not Path(path).exists()]
        archive = Path(self.raw_dir) / ARCHIVE_NAME
        if not archive.exists():
            _fetch_archive(archive, missing)
        extract_members(archive, missing, "P5")

    def process(self) -> None:
        path = Path(self.processed_paths[0])
        raw = Path(self.raw_dir) / self.split
        self.corpus, self.notes = cached_corpus(path, lambda: read_p5(raw), force=self.force_reload)

    def _process(self) -> None:
        # The base class would unpickle pre_transform.pt from the folder, whoever put it there; our cache knows when it is stale.
        self.process()


def _fetch_archive(archive: Path, missing: list[Path]) -> None:
    names = ", ".join(path.name for path in missing)
    ways = f"connect once, copy {names} of P5's data to {missing[0].parent}, or put P5's zip archive there as {archive}"
    fetch(P5_URL, archive, ways)
    if not zipfile.is_zipfile(archive):
        archive.unlink()
        raise UserError(f"{names} are missing, and Google Drive answered with something that is no zip archive; {ways}")


def read_p5(folder: Path) -> LoadedCorpus:
    """Reads the three files of a split.

    Raises:
        UserError: a file that is not what it should be, with the line where there is one.
    """
    item_keys, users = _read_maps(folder / MAPS)
    user_keys, histories = _read_sequences(folder / SEQUENCES, users, len(item_keys))
    path = folder / METADATA
    described, repeated = describe(path, item_keys, read_literals(path, set(item_keys)))
    items, notes = finish_items(str(path), described)
    keys, titles, texts, categories = map(list, items)
    return LoadedCorpus(Corpus(keys, titles, texts, categories, user_keys, histories), [*repeated, *notes])


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
    ends = [0]
    rows: dict[int, int] = {}
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
