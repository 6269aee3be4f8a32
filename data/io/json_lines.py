"""JSON lines of any size in bounded memory: a stretch at a time, known columns only, gzipped or not, with the line of what is wrong."""

import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data.io.tables import Table, check_file, parse_json
from data.item_embeddings import field_text
from data.schemas import UserError

if TYPE_CHECKING:
    import polars as pl

STRETCH = 64 << 20
"""Bytes that are parsed at once."""


def read_json_lines(path: Path, types: "Mapping[str, pl.DataType | type[pl.DataType]]", expected: str) -> Table:
    """Reads some keys of one JSON object a line; blank lines are passed over.

    Args:
        path: gzipped if it ends in .gz.
        types: String, Int64 or Float64 of each key; every line must have all of them.
        expected: says in errors what the file should be.

    Raises:
        UserError: no such file, a broken one, or a line that is not what it should be.
    """
    import polars as pl

    check_file(path, expected)
    frames, firsts, lines = [], [], 1
    for stretch in _stretches(path, expected):
        try:
            frame = pl.read_ndjson(io.BytesIO(stretch), schema=dict(types))
        except pl.exceptions.PolarsError as error:
            _explain(path, stretch, lines, types, expected, str(error))
        if any(frame.null_count().row(0)):
            _explain(path, stretch, lines, types, expected, "a value is missing")
        frames.append(frame.rechunk())
        firsts.append(lines)
        lines += stretch.count(b"\n")
    if not sum(map(len, frames)):
        raise UserError(f"{path} has no rows; expected {expected}; fetch the file again")
    return Table(path, pl.concat(frames), lambda row: f"{path}, row {row + 1}")


def _stretches(path: Path, expected: str) -> Iterator[bytes]:
    """Yields whole lines, about ``STRETCH`` bytes of them."""
    rest, lines = b"", 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(STRETCH):
                rest += block
                end = rest.rfind(b"\n") + 1
                if not end and len(rest) > STRETCH:
                    raise UserError(f"{path}:{lines + 1} is longer than {STRETCH >> 20} MiB; expected {expected}; fetch the file again")
                whole, rest = rest[:end], rest[end:]
                lines += whole.count(b"\n")
                yield whole
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a complete gzip file (after line {lines}); expected {expected}; fetch the file again") from error
    if rest:
        yield rest


def _explain(path: Path, stretch: bytes, first: int, types: Mapping[str, object], expected: str, said: str) -> NoReturn:
    """Raises for the first line that does not fit; where none is found, with what polars said."""
    import polars as pl

    for number, line in enumerate(stretch.split(b"\n"), start=first):
        if not line.strip():
            continue
        try:
            row = parse_json(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number} is not UTF-8; expected {expected}; mend the line") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number} is not JSON; expected {expected}; mend the line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number} is not a JSON object; expected {expected}; mend the line")
        for name, kind in types.items():
            value = row.get(name)
            whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
            fits = {pl.String: isinstance(value, str), pl.Int64: whole}.get(kind, whole or isinstance(value, float))
            if not fits:
                what = f"lacks the key {name}" if name not in row else f"has {value!r:.60} for {name}"
                kind_name = {pl.String: "text", pl.Int64: "a whole number"}.get(kind, "a number")
                raise UserError(f"{path}:{number} {what}; expected {kind_name} there; mend the line")
    raise UserError(f"{path} cannot be read from line {first} on ({field_text(said)[:120]}); expected {expected}; mend it")
