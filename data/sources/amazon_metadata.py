"""Amazon's metadata, a line at a time: Python literals (2014) or JSON (2023), and what becomes an item's text.

Literals are parsed, never evaluated. A line is decoded only if its item is wanted, as far as that can be told without.
"""

import ast
import gzip
import json
import re
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.corpus import Catalogue
from data.io.tables import check_file
from data.io.text import usable_id
from data.item_text import clean, item_text
from data.schemas import UserError

MAX_LINE = 1 << 24
DEPTH = 2
"""Steps of the path of categories (Beauty > Makeup > Face > ..) that are an item's category: the first is mostly the shop itself."""

STRING = rb"'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\""
# A dict of plain literals that begins with its asin: such a line can be passed over unparsed when the item is not in the catalogue.
PLAIN_ENTRY = re.compile(
    rb"\{\s*['\"]asin['\"]:\s*['\"](\w+)['\"](?:" + STRING + rb"|[\[\]{},:\s]|-?\d[\d.eE+-]*|None|True|False)*+(?<=\})"
)


class Entry(NamedTuple):
    """What is known of an item."""

    key: str
    title: str
    text: str
    category: str  # the shop and its department; "" where unknown


def read_literals(path: Path, wanted: Collection[str] | None) -> Iterator[Entry]:
    """Yields the items of a file of Python literals, 2014's layout.

    Args:
        path: gzipped if it ends in .gz.
        wanted: their asins; None: all.

    Raises:
        UserError: a broken file, or a line that is no literal with an asin.
    """

    def parse(number: int, line: bytes) -> Mapping[str, object] | None:
        plain = PLAIN_ENTRY.fullmatch(line)
        if plain and wanted is not None and plain[1].decode(errors="replace") not in wanted:
            return None
        return _parse_literal(path, number, line)

    for entry in _entries(path, parse, "one metadata literal"):
        key = str(entry["asin"])
        if wanted is None or key in wanted:
            categories = entry.get("categories")
            if isinstance(categories, list) and categories and isinstance(categories[0], list):
                categories = categories[0]
            yield _entry(key, entry.get("title"), entry.get("brand"), categories, entry.get("price"))


def read_json(path: Path, wanted: Collection[str] | None) -> Iterator[Entry]:
    """Yields the items of a file of JSON objects, 2023's layout; arguments and errors as ``read_literals`` has them."""
    expected = "expected a JSON object with a parent_asin; mend or remove the line"

    def parse(number: int, line: bytes) -> Mapping[str, object] | None:
        try:
            entry = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number} is not UTF-8; {expected}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number} is not JSON; {expected}") from error
        if not isinstance(entry, dict) or not _named(entry.get("parent_asin")):
            raise UserError(f"{path}:{number} is not an object with a parent_asin; {expected}")
        return entry

    for entry in _entries(path, parse, "one JSON object"):
        key = str(entry["parent_asin"])
        if wanted is None or key in wanted:
            yield _entry(key, entry.get("title"), entry.get("store"), entry.get("categories"), entry.get("price"))


def describe(path: Path, keys: Sequence[str], entries: Iterable[Entry]) -> tuple[Catalogue, list[str]]:
    """Returns the items of ``keys`` with what the entries of ``path`` say of them, and a note where some stand there more than once.

    The last entry of an item counts.
    """
    rows = {key: row for row, key in enumerate(keys)}
    titles, texts, categories = ([""] * len(keys) for _ in range(3))
    times = [0] * len(keys)
    for entry in entries:
        row = rows[entry.key]
        titles[row], texts[row], categories[row] = entry[1:]
        times[row] += 1
    again = sum(count > 1 for count in times)
    notes = [f"{path}: {again:,} of {len(keys):,} items stand there more than once; the last entry of each counts"] if again else []
    return Catalogue(keys, titles, texts, categories), notes


def _entry(key: str, title: object, brand: object, categories: object, price: object) -> Entry:
    shown, made, path, costs = map(clean, (title, brand, categories, price))
    fields = [("Title", shown), ("Brand", "" if made.lower() == "unknown" else made), ("Categories", path), ("Price", costs)]
    steps = categories[:DEPTH] if isinstance(categories, list) else []
    return Entry(key, shown, item_text(fields), " > ".join(text for text in map(clean, steps) if text))


def _entries(path: Path, parse: Callable[[int, bytes], Mapping[str, object] | None], line_is: str) -> Iterator[Mapping[str, object]]:
    zipped = path.suffix == ".gz"
    check_file(path, f"a {'gzip ' if zipped else ''}file with {line_is} a line")
    number = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # titles with stray backslashes are literals all the same
        try:
            with gzip.open(path, "rb") if zipped else path.open("rb") as file:
                while line := file.readline(MAX_LINE):
                    number += 1
                    entry = parse(number, line.strip())
                    if entry is not None:
                        yield entry
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is not a complete gzip file (after line {number}); fetch the file again") from error
    if number == 0:
        raise UserError(f"{path} holds no line; expected {line_is} a line; fetch the file again")


def _named(key: object) -> bool:
    return isinstance(key, str) and usable_id(key)


def _parse_literal(path: Path, number: int, line: bytes) -> Mapping[str, object]:
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
    if not isinstance(entry, dict) or not _named(entry.get("asin")):
        raise UserError(f"{path}:{number} is not a dict with an asin; {expected}")
    return entry
