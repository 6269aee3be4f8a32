"""JSON lines that are not trusted, gzipped or not, with the line of what is wrong.

Known keys are read in bounded memory, a stretch of the file at a time; all keys at once, since their types are found in the whole file.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data.io.tables import NEWLINE, Table, check_file
from data.io.text import field_text
from data.schemas import UserError

if TYPE_CHECKING:
    import polars as pl

STRETCH = 64 << 20
"""Bytes that are parsed at once."""


def read_json_lines(path: Path, types: "Mapping[str, pl.DataType | type[pl.DataType]] | None", expected: str) -> Table:
    """Reads one JSON object a line; blank lines are passed over.

    Args:
        path: gzipped if it ends in .gz.
        types: the keys to read, each String, Int64 or Float64; every line must have all of them. None reads all keys, with the types
            that polars finds in them, or as text where a key's type changes from line to line.
        expected: says in errors what the file should be.

    Raises:
        UserError: no such file, a broken one, or a line that is not what it should be.
    """
    import polars as pl

    check_file(path, expected)
    frames, lines = [], 1
    for stretch in _stretches(path, expected, STRETCH if types else None):
        try:
            frame = pl.read_ndjson(io.BytesIO(stretch), schema=dict(types) if types else None, infer_schema_length=None)
        except pl.exceptions.PolarsError as error:
            frame = _explain(path, stretch, lines, types, expected, str(error)) if types else _as_text(path, stretch, expected)
        if types and any(frame.null_count().row(0)):
            _explain(path, stretch, lines, types, expected, "a value is missing")
        frames.append(frame.rechunk())
        lines += stretch.count(NEWLINE)
    if not sum(map(len, frames)):
        raise UserError(f"{path} has no rows; expected {expected}; fetch or write it again")

    def place(row: int) -> str:
        if types is None:  # a file that was read whole is read once more
            filled = [number for number, line in enumerate(path.read_bytes().split(NEWLINE), start=1) if line.strip()]
            if row < len(filled):
                return f"{path}:{filled[row]}"
        return f"{path}, row {row + 1}"

    return Table(path, pl.concat(frames), place)


def _stretches(path: Path, expected: str, size: int | None) -> Iterator[bytes]:
    """Yields whole lines, about ``size`` bytes of them; None: all at once."""
    rest, lines = b"", 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(size or -1):
                rest += block
                end = rest.rfind(NEWLINE) + 1 if size else len(rest)
                if not end and size and len(rest) > size:
                    raise UserError(f"{path}:{lines + 1} is longer than {size >> 20} MiB; expected {expected}; fetch the file again")
                whole, rest = rest[:end], rest[end:]
                lines += whole.count(NEWLINE)
                yield whole
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a complete gzip file (after line {lines}); expected {expected}; fetch the file again") from error
    if rest:
        yield rest


def _objects(path: Path, stretch: bytes, first: int, expected: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Yields the objects of a stretch with the numbers of their lines; raises for the first line that holds none."""
    for number, line in enumerate(stretch.split(NEWLINE), start=first):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number} is not UTF-8; expected {expected}; mend the line") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number} is not JSON; expected {expected}; mend the line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number} is not a JSON object; expected {expected}; mend the line")
        yield number, row


def _refuse_constant(name: str) -> NoReturn:
    """NaN and Infinity, which Python reads, are not JSON."""
    raise ValueError(f"{name} is not JSON")


def _explain(path: Path, stretch: bytes, first: int, types: Mapping[str, object], expected: str, said: str) -> NoReturn:
    """Raises for the first line that does not fit; where none is found, with what polars said."""
    import polars as pl

    for number, row in _objects(path, stretch, first, expected):
        for name, kind in types.items():
            value = row.get(name)
            whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
            if kind == pl.String:
                fits, wanted = isinstance(value, str), "text"
            elif kind == pl.Int64:
                fits, wanted = whole, "a whole number"
            else:
                fits, wanted = whole or isinstance(value, float), "a number"
            if not fits:
                what = f"lacks the key {name}" if name not in row else f"has {value!r:.60} for {name}"
                raise UserError(f"{path}:{number} {what}; expected {wanted} there; mend the line")
    raise UserError(f"{path} cannot be read from line {first} on ({field_text(said)[:120]}); expected {expected}; mend it")


def _as_text(path: Path, content: bytes, expected: str) -> "pl.DataFrame":
    """The slow way, for a file whose values change their type from line to line, or that has a bad line; values become text."""
    import polars as pl

    rows = [
        {name: _plain(value) for name, value in row.items()}
        for _, row in _objects(path, content.removeprefix(codecs.BOM_UTF8), 1, expected)
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pl.DataFrame({name: [row.get(name) for row in rows] for name in names}, schema=dict.fromkeys(names, pl.String))


def _plain(value: object) -> str | None:
    if value is None:
        return None
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.encode("utf-8", "replace").decode()  # JSON can hold halves of characters
