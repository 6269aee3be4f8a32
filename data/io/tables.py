"""Tables from files that are not trusted: parquet and lines with any separator, with a place for every complaint.

A ``Table`` knows where each of its rows stands, so that whoever finds one wrong can name file and line. The whole of a file is read by
polars; a file that polars refuses is gone through once more, record by record, to find the line.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.io.text import CONTROL, field_text
from data.schemas import UserError

if TYPE_CHECKING:
    import polars as pl

SHOWN = 6
"""Lines that a complaint names; of the others it says how many they are."""

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
    return UserError(f"{place} is not UTF-8; expected {expected} in UTF-8; convert it, or of your own files set train.encoding")


def read_lines(
    path: Path,
    separator: str,
    needed: Sequence[str],
    expected: str,
    encoding: str = "utf-8-sig",
    header: bool = True,
    text: str | None = None,
    named: Sequence[str] = (),
) -> Table:
    """Reads lines of fields without quotes as text columns.

    Args:
        path: the file.
        separator: between fields, one or more characters.
        needed: columns that must be there; without a header, all columns in their order.
        expected: says in errors what the file should be.
        encoding: "latin-1" refuses nothing.
        header: the first line has the columns' names, with or without RecBole's types behind them.
        text: what the file holds; None: read it.
        named: stand for the names on the first line.

    Raises:
        UserError: no such file, another encoding, a header that lacks a column, or a line with another number of fields.
    """
    import polars as pl

    check_file(path, expected)
    text = decode(path, encoding, expected) if text is None else text
    if not text.strip():
        raise UserError(f"{path} is empty; expected {expected}; fetch or write it again")
    lines = text.removesuffix("\n").split("\n")
    names = list(needed)
    if header:
        first = lines.pop(0)
        names = list(named) or [TYPED.sub("", field).strip() for field in first.removesuffix("\r").split(separator)]
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
