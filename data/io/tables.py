"""Tables from files that are not trusted: jsonl, parquet and lines with any separator, with a place for every complaint.

A ``Table`` knows where each of its rows stands, so that whoever finds one wrong can name file and line. The whole of a file is read by
polars; a file that polars refuses is gone through once more, record by record, to find the line.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from data.item_embeddings import CONTROL, field_text
from data.schemas import UserError

if TYPE_CHECKING:
    import polars as pl


SHOWN = 6
"""Lines that a complaint names; of the others it says how many they are."""

MOMENTS = ("time", "timestamp")
"""Columns in which dates are as good as numbers."""

TYPED = re.compile(r":(token|float)(_seq)?$")
"""What RecBole's atomic files write behind a column's name."""


class Table(NamedTuple):
    """Rows of a file, and the place of each."""

    path: Path
    frame: "pl.DataFrame"
    place: Callable[[int], str]  # row -> "file:line"

    def first(self, condition: "pl.Expr", what: str) -> Iterator[str]:
        """A sentence for the rows of which the condition holds; ``what`` continues a sentence that begins with the place of the first."""
        rows = self.frame.select(condition.fill_null(False).arg_true().alias("row"))["row"]
        if len(rows):
            places = [self.place(row) for row in rows[:SHOWN].to_list()]
            others = ", ".join(place.removeprefix(str(self.path)).lstrip(":, ") for place in places[1:])
            more = f" (also {others}{', ...' if len(rows) > SHOWN else ''}; {len(rows):,} in all)" if others else ""
            yield f"{places[0]} {what}{more}"

    def refuse_first(self, condition: "pl.Expr", what: str) -> None:
        """Raises such a sentence."""
        refuse(self.first(condition, what))

    def with_frame(self, frame: "pl.DataFrame") -> "Table":
        """Returns the same rows with other columns."""
        return self._replace(frame=frame)


def bad_ids(table: Table, name: str) -> Iterator[str]:
    """Sentences for the rows whose id in the text column ``name`` is blank or cannot be printed: a stray quote swallows whole lines."""
    import polars as pl

    yield from table.first(pl.col(name).str.strip_chars() == "", f"has an empty {name}; give it an id or remove the line")
    broken = pl.col(name).str.contains(CONTROL.pattern.replace("\ud800-\udfff", ""))
    yield from table.first(broken, f"has a {name} with a line break or another control character in it; look for a stray quote before it")


def refuse(sentences: Iterable[str]) -> None:
    """Raises all sentences together, if there are any."""
    found = list(sentences)
    if found:
        raise UserError(*found)


def check_file(path: Path, expected: str) -> None:
    """Raises where a file is missing, is something else, cannot be read or is empty; ``expected`` says what it should be."""
    if path.is_dir():
        raise UserError(f"{path} is a directory; expected {expected}; give the file itself")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; expected {expected}; put it there") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected {expected}; mend its permissions") from error
    if empty:
        raise UserError(f"{path} is empty; expected {expected}; fetch or write it again")


def check_header(path: Path, names: Sequence[str], needed: Sequence[str], expected: str, separated: bool = True) -> None:
    """Raises where a needed column is absent or one stands there twice; not ``separated``: the first line has no separator at all."""
    absent = [name for name in needed if name not in names]
    double = next((name for name in names if names.count(name) > 1), None)
    if absent or double is not None:
        what = f"lacks the column {absent[0]}" if double is None else f"has the column {field_text(double)!r:.60} twice"
        raise UserError(f"{path}:1 {what}{'' if separated else ' and has no separator'}; expected {expected}; mend the header")


def decode(path: Path, encoding: str, expected: str) -> str:
    """Returns a file's text, or names the first line that is in another encoding."""
    content = path.read_bytes()
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise not_utf8(f"{path}:{content.count(NEWLINE, 0, error.start) + 1}", expected) from error


def is_utf8(path: Path) -> bool:
    """Is a file's content UTF-8? Latin-1 with letters beyond ASCII practically never is."""
    try:
        path.read_bytes().decode("utf-8")
    except (UnicodeDecodeError, OSError):
        return False
    return True


NEWLINE = b"\n"


def not_utf8(place: str, expected: str) -> UserError:
    """The error for text in another encoding."""
    return UserError(f"{place} is not UTF-8; expected {expected} in UTF-8; convert it")


def read_lines(path: Path, separator: str, needed: Sequence[str], expected: str, encoding: str = "utf-8-sig", header: bool = True) -> Table:
    """Reads lines of fields without quotes as text columns.

    Args:
        path: the file.
        separator: between fields, one or more characters.
        needed: columns that must be there; without a header, all columns in their order.
        expected: says in errors what the file should be.
        encoding: "latin-1" refuses nothing.
        header: the first line has the columns' names, with or without RecBole's types behind them.

    Raises:
        UserError: no such file, another encoding, a header that lacks a column, or a line with another number of fields.
    """
    import polars as pl

    check_file(path, expected)
    text = decode(path, encoding, expected)
    if not text.strip():
        raise UserError(f"{path} is empty; expected {expected}; fetch or write it again")
    lines = text.removesuffix("\n").split("\n")
    names = list(needed)
    if header:
        first = lines.pop(0)
        names = [TYPED.sub("", field).strip() for field in first.removesuffix("\r").split(separator)]
        check_header(path, names, needed, expected, separator in first)
        if not lines:
            raise UserError(f"{path} has a header and no rows; expected {expected}, one line for each row")
    offset = 2 if header else 1
    table = Table(path, pl.DataFrame({"text": lines}, schema={"text": pl.String}), lambda row: f"{path}:{row + offset}")
    table = table.with_frame(table.frame.with_columns(pl.col("text").str.strip_suffix("\r")))
    count = pl.col("text").str.count_matches(separator, literal=True) != len(names) - 1
    shown = "tab-separated" if separator == "\t" else f"{separator!r}-separated"
    table.refuse_first(count, f"does not have {len(names)} {shown} fields ({field_text(names)[:120]}); expected {expected}; mend the line")
    fields = pl.col("text").str.split_exact(separator, len(names) - 1).struct.rename_fields(names)
    return table.with_frame(table.frame.select(fields.alias("fields")).unnest("fields"))


def read_jsonl(path: Path, needed: Sequence[str], expected: str) -> Table:
    """Reads one JSON object a line; blank lines are passed over. Columns keep the types that polars finds in them.

    Raises:
        UserError: no such file, a line that is no JSON object, or one that lacks a needed key.
    """
    import polars as pl

    check_file(path, expected)
    frame = None
    try:
        frame = pl.read_ndjson(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError):
        frame = _parse_json_lines(path, expected)

    def place(row: int) -> str:
        filled = [number for number, line in enumerate(path.read_bytes().split(NEWLINE), start=1) if line.strip()]
        return f"{path}:{filled[row]}" if row < len(filled) else f"{path}, row {row + 1}"

    table = Table(path, frame, place)
    if not len(frame):
        raise UserError(f"{path} has no rows; expected {expected}")
    absent = [name for name in needed if name not in frame.columns]
    if absent:
        raise UserError(f"{path}:1 lacks the key {absent[0]}; expected {expected}; mend the file")
    for name in needed:
        table.refuse_first(pl.col(name).is_null(), f"has no {name}; expected {expected}; mend the line")
    return table


def parse_json(text: str) -> object:
    """Returns a JSON value; unlike ``json.loads`` it takes NaN and Infinity, which JSON does not have, for an error.

    Raises:
        ValueError, RecursionError: it is not JSON.
    """
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_json_lines(path: Path, expected: str) -> "pl.DataFrame":
    """The slow way, for a file whose values change their type from line to line, or that has a bad line; values become text."""
    import polars as pl

    rows = []
    for number, line in enumerate(path.read_bytes().split(NEWLINE), start=1):
        if line.strip():
            try:
                row = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise not_utf8(f"{path}:{number}", expected) from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number} is not JSON; expected {expected}; mend the line") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number} is not a JSON object; expected {expected}; mend the line")
            rows.append({name: _plain(value) for name, value in row.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pl.DataFrame({name: [row.get(name) for row in rows] for name in names}, schema=dict.fromkeys(names, pl.String))


def _plain(value: object) -> str | None:
    if value is None:
        return None
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.encode("utf-8", "replace").decode()  # JSON can hold halves of characters


def read_parquet(path: Path, needed: Sequence[str], expected: str) -> Table:
    """Reads a parquet file.

    Raises:
        UserError: no such file, not parquet, or a needed column is missing or has gaps.
    """
    import polars as pl

    check_file(path, expected)
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException) as error:
        raise UserError(f"{path} is not a parquet file that can be read; expected {expected}; write it again") from error
    absent = [name for name in needed if name not in frame.columns]
    if absent:
        raise UserError(f"{path} lacks the column {absent[0]}; expected {expected}; mend the file")
    table = Table(path, frame, lambda row: f"{path}, row {row + 1}")
    if not len(frame):
        raise UserError(f"{path} has no rows; expected {expected}")
    for name in needed:
        table.refuse_first(pl.col(name).is_null(), f"has no {name}; expected {expected}; mend the row")
    return table


def parse_numbers(table: Table, name: str, whole: bool = False) -> "pl.Series":
    """Returns a column as whole numbers where every value is one, else as fractions.

    Args:
        table: has the column as text, as numbers or, where it is a time, as dates.
        name: the column.
        whole: refuse fractions.

    Raises:
        UserError: a value that is missing, no number, NaN, infinite or out of range, or a column of another kind.
    """
    import polars as pl

    column = table.frame[name]
    kind = column.dtype
    if kind in (pl.Date, pl.Datetime) and name in MOMENTS:
        column = column.cast(pl.Datetime("us"), strict=False).dt.epoch("us") / 1_000_000
    elif kind in (pl.String, pl.Categorical, pl.Enum):
        column = column.cast(pl.String).str.strip_chars()
    elif kind == pl.Decimal:
        column = column.cast(pl.Float64)
    elif not kind.is_numeric():
        raise UserError(f"{table.path}: {name} holds {kind}; expected numbers; mend the file")
    if kind in (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32) and column.null_count() == 0:
        return column
    number = f"{'whole ' if whole else ''}number"
    exact = column.cast(pl.Int64, strict=False) if not column.dtype.is_float() else None
    if exact is not None and (exact.null_count() == 0 or kind.is_integer()):
        table.with_frame(pl.DataFrame({"bad": exact.is_null()})).refuse_first(
            pl.col("bad"), f"has a {name} that is no {number}; mend the line"
        )
        return exact
    numbers = column.cast(pl.Float64, strict=False)
    bad = (~numbers.is_finite()).fill_null(True)
    if whole:
        bad |= (numbers != numbers.round()) | (numbers.abs() >= 2.0**63)
    checked = table.with_frame(pl.DataFrame({"bad": bad, "blurred": numbers.abs() > 2.0**53}))
    checked.refuse_first(pl.col("bad"), f"has a {name} that is no {number}; mend the line")
    if exact is not None:  # text: some of it whole, some not
        blurred = f"has a {name} beyond 2^53, which a column with fractions cannot hold exactly; write whole numbers or smaller units"
        checked.refuse_first(pl.col("blurred"), blurred)
    return numbers.cast(pl.Int64) if whole else numbers
