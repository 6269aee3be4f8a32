"""Comma-separated values that are not trusted, by polars; only for a file that is refused are its records gone through one by one."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data.io.tables import Table, check_file, check_header, not_utf8
from data.io.text import field_text
from data.schemas import UserError

if TYPE_CHECKING:
    import polars as pl

MAX_FIELD = 1 << 24
"""Characters of one field that the search for a bad line goes through."""


def read_csv(
    path: Path,
    needed: Sequence[str],
    expected: str,
    types: "Mapping[str, pl.DataType | type[pl.DataType]] | None" = None,
    header: bool = True,
) -> Table:
    """Reads comma-separated values with quotes, by polars' streaming engine.

    Args:
        path: the file.
        needed: columns that must be there; without a header, all columns in their order.
        expected: says in errors what the file should be.
        types: the only columns to read, numbers as numbers; None reads all as text.
        header: the first line has the names.

    Raises:
        UserError: no such file, another encoding, a header that lacks a column, or a record that does not fit.
    """
    import polars as pl

    check_file(path, expected)
    names = list(needed)
    if header:
        names = csv_header(path, needed, expected)
    kept = list(types) if types else names
    overrides = {name: types[name] if types else pl.String for name in kept}
    schema = {name: overrides.get(name, pl.String) for name in names}
    try:
        scan = pl.scan_csv(path, has_header=header, schema=schema, infer_schema=False)
        frame = scan.select(kept).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        _explain_csv(path, names, overrides, expected, header, str(error))
    table = Table(path, frame, lambda row: f"{path}:{_line_of_record(path, row, header)}")
    if not len(frame):
        raise UserError(f"{path} has {'a header and ' if header else ''}no rows; expected {expected}, one line for each row")
    for name in (name for name in needed if name in kept):
        if frame[name].null_count():
            table.refuse_first(pl.col(name).is_null(), f"has no {name}; expected {expected}; mend the line")
    return table


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line on which the record ends, fields) of a csv; blank lines give no fields."""
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file, strict=True)
        for record in reader:
            yield reader.line_num, record


def csv_header(path: Path, needed: Sequence[str], expected: str) -> list[str]:
    """Returns the names on the first line of a csv; raises as ``read_csv`` does."""
    check_file(path, expected)
    with path.open("rb") as file:
        first = file.readline(1 << 20)
    if not first.strip():
        raise UserError(f"{path}:1 is blank; expected {expected}; mend the header")
    try:
        text = first.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(f"{path}:1", expected) from error
    try:
        names = next(csv.reader([text]))
    except csv.Error as error:
        raise UserError(f"{path}:1 is not a header ({error}); expected {expected}; mend the header") from error
    check_header(path, names, needed, expected, "," in text)
    return names


def _line_of_record(path: Path, row: int, header: bool) -> int:
    try:
        for number, (line, _) in enumerate(_records(path)):
            if number == row + header:
                return line
    except csv.Error:
        pass
    return row + 1 + header


def _explain_csv(path: Path, names: Sequence[str], types: Mapping[str, object], expected: str, header: bool, said: str) -> NoReturn:
    """Raises for the first record that does not fit; where none is found, with what polars said."""
    import polars as pl

    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(f"{path}:{number}", expected) from error
    number = 0
    numeric = [(index, name, _bits(types[name])) for index, name in enumerate(names) if types.get(name, pl.String) != pl.String]
    try:
        for record_number, (number, record) in enumerate(_records(path)):
            if header and record_number == 0:
                continue
            if len(record) > len(names):
                raise UserError(f"{path}:{number} has {len(record)} fields, not {len(names)}; expected {expected}; mend the line")
            for index, name, bits in numeric:
                if index < len(record) and record[index] and not _is_number(record[index], bits):
                    kind = f"a whole number below 2^{bits - 1}" if bits else "a number"
                    raise UserError(f"{path}:{number} has {record[index]!r:.60} for {name}; expected {kind}; mend the line")
    except csv.Error as error:
        raise UserError(f"{path}:{number + 1} is not csv ({error}); expected {expected}; mend the line") from error
    raise UserError(f"{path} is not a csv that can be read ({field_text(said)[:120]}); expected {expected}; mend the file")


def _bits(kind: object) -> int:
    """Of a signed whole number; 0 for fractions."""
    import polars as pl

    return 32 if kind == pl.Int32 else 64 if kind == pl.Int64 else 0


def _is_number(text: str, bits: int) -> bool:
    if not text.isascii():
        return False
    if bits:
        return re.fullmatch(r"[+-]?\d{1,19}", text) is not None and -(2 ** (bits - 1)) <= int(text) < 2 ** (bits - 1)
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and text == text.strip()
