"""How a text file is laid out: the separator between its fields, its quotes, and whether its rows have names."""

import csv
import io
import re
from collections.abc import Iterator
from typing import NamedTuple

LINES = 200
"""Records by which a separator is told."""

SEPARATORS = (",", "\t", ";", "|", " ")
"""In this order where several would do; a blank, which also stands within texts, is the last."""


class Layout(NamedTuple):
    """How fields and records are written."""

    separator: str
    quotes: bool  # fields may stand in quotes
    escapes: bool  # a quote within quotes is \\" instead of ""
    names: list[str]  # on the first line
    row_names: bool  # every row but the first begins with its number, above which no name stands, as R writes them


def sniff(head: str, own: str, quoted: bool | None = None) -> Layout:
    """Returns the layout of a file.

    Args:
        head: whole lines from its beginning.
        own: the separator that the file's ending promises; kept unless another divides the lines and this one does not.
        quoted: the format with its own separator has quotes (True) or none (False); None: told by the lines.
    """
    separator = own if _divides(head, own) >= 0.5 else max((*SEPARATORS, own), key=lambda other: _score(head, other, own))
    style = _style(head, separator) if quoted is None or quoted else "plain"
    quotes, escapes = style != "plain" or (quoted is True and separator == own), style == "escaped"
    names, *rows = list(_records(head, separator, quotes, escapes, LINES)) or [[]]
    names, rows = [name.strip() for name in names], [row for row in rows if row]
    numbered = all(len(row) == len(names) + 1 and row[0] == str(number) for number, row in enumerate(rows, start=1))
    row_names = bool(names and rows) and numbered
    return Layout(separator, quotes, escapes, ["", *names] if row_names else names, row_names)


def _score(head: str, separator: str, own: str) -> tuple[float, bool]:
    share = _divides(head, separator)
    return (share if share >= 0.9 and (separator != " " or share == 1.0) else 0.0, separator == own)


def _divides(head: str, separator: str) -> float:
    """The share of records with as many fields as the first (or one more each, as R writes them); 0 where that is one."""
    counts = [len(record) for record in _records(head, separator, True, '\\"' in head, LINES) if record]
    if not counts or counts[0] < 2:
        return 0.0
    rows = counts[1:] or counts
    return max(sum(count == counts[0] + more for count in rows) for more in (0, 1)) / len(rows)


def _style(head: str, separator: str) -> str:
    """How quotes are written: "plain" where they are letters like others."""
    if not re.search(rf'(?m)(^|{re.escape(separator)})"', head):
        return "plain"
    for name, escapes in (("doubled", False), *((("escaped", True),) if '\\"' in head else ())):
        try:
            counts = {len(record) for record in _records(head, separator, True, escapes, None, strict=True) if record}
        except csv.Error:
            continue
        if len(counts) <= 2 and max(counts) - min(counts) <= 1:
            return name
    return "plain"


def _records(head: str, separator: str, quotes: bool, escapes: bool, limit: int | None, strict: bool = False) -> Iterator[list[str]]:
    reader = csv.reader(
        io.StringIO(head, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        escapechar="\\" if escapes else None,
        doublequote=not escapes,
        strict=strict,
    )
    try:
        for number, record in enumerate(reader):
            if number == limit:
                break
            yield record
    except csv.Error:
        if strict:
            raise
