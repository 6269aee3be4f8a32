"""Which columns of somebody's items describe them in words, and why the others do not."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.item_text import PLACEHOLDERS
from data.times import holds_dates

if TYPE_CHECKING:
    import polars as pl

NAMELESS = "nameless column"
"""What a column is called, with its number, that has no name."""

INDEX = re.compile(rf"(?i){NAMELESS}.*|unnamed(: ?\d+(_level_\d+)?)?|__index_level_\d+__|level_\d+|_?row(_?(name|num|number|id))?s?")
POPULARITY = re.compile(
    r"(?i)rank|rating|review|votes?\b|vote_|popular|sales|sold|views?\b|view_|likes?\b|clicks?|count\b|_count|favou?rite"
)
"""Names of numbers that tell how popular an item is, of the future too."""

URL = r"(?i)^([a-z]{3,6}:)?//\S+|^www\.\S+|^data:\w+/|^\S+\.(jpe?g|png|gif|webp|svg|bmp|pdf|html?|php|mp[34])(\?\S*)?$"
DATE = (
    r"(?i)^(\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/. ](\d{1,2}|[a-z]{3,9})[-/. ]\d{2,4}|[a-z]{3,9}\.? \d{1,2},? \d{4})"
    r"([T ,]+\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?\s*([ap]m)?\s*(Z|UTC|GMT|[+-]\d{2}:?\d{2})?)?$"
)
TRUTH = r"(?i)^(true|false|yes|no|y|n|t|f)$"
VECTOR = r"^[\[(]\s*[-+\d.eE,\s]*\d[-+\d.eE,\s]*[\])]$"
NESTED = r"^\{.*\}$|^\[\s*\{.*\}\s*\]$"
CODE = r"(?i)^([0-9a-f]{16,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$"

FORMS = ((URL, "addresses"), (DATE, "dates"), (TRUTH, "true or false"), (VECTOR, "numbers in lists"), (NESTED, "nested"), (CODE, "codes"))
"""Forms of text that say nothing about an item to a sentence encoder."""

MOSTLY = 0.9
"""A column is of a form if so much of what it holds is."""


def left_out(frame: "pl.DataFrame", names: Sequence[str]) -> dict[str, str]:
    """Returns the columns, of those named, that are no texts, each with what it holds instead."""
    reasons = ((name, _reason(name, frame[name])) for name in names)
    return {name: reason for name, reason in reasons if reason is not None}


def _reason(name: str, column: "pl.Series") -> str | None:
    import polars as pl

    kind = column.dtype
    if numbers_rows(name, column):
        return "row numbers"
    if kind == pl.Boolean:
        return "true or false"
    if kind in (pl.Struct, pl.Binary, pl.Object):
        return "nested" if kind == pl.Struct else "bytes"
    if kind.is_temporal():
        return "dates"
    if kind in (pl.List, pl.Array):
        inner = kind.inner  # type: ignore[attr-defined]
        if inner not in (pl.String, pl.Categorical, pl.Enum, pl.Null):
            return "numbers in lists" if inner.is_numeric() else "nested"
        column = (column.arr.to_list() if kind == pl.Array else column).list.first().cast(pl.String)
    if kind.is_numeric():
        return _number(name, column)
    texts = column.cast(pl.String).drop_nulls().str.strip_chars()
    texts = texts.filter(~texts.str.to_lowercase().is_in(["", *PLACEHOLDERS]))
    if not len(texts):
        return None
    numbers = texts.cast(pl.Float64, strict=False)
    if numbers.null_count() == 0:
        return _number(name, numbers)
    return next((reason for form, reason in FORMS if texts.str.contains(form).mean() >= MOSTLY), None)  # type: ignore[operator]


def _number(name: str, numbers: "pl.Series") -> str | None:
    if POPULARITY.search(name):
        return "figures of popularity"
    return "dates" if re.search(r"time|date|_at$|stamp|created", name, re.I) and holds_dates(numbers.drop_nulls()) else None


def numbers_rows(name: str, column: "pl.Series") -> bool:
    """Is a column an index as pandas and R write them, or does it number its rows from 0 or 1?"""
    import polars as pl

    if INDEX.fullmatch(name):
        return True
    if column.dtype not in (pl.String,) and not column.dtype.is_integer():
        return False
    numbers = column.cast(pl.Int64, strict=False)
    if len(numbers) < 3 or numbers.null_count() or numbers[0] not in (0, 1):
        return False
    return bool((numbers.diff().drop_nulls() == 1).all())
