"""Separated values with quotes that are not trusted, by polars; only for a file that is refused are its records gone through one by one."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from data.io.sniff import Layout
from data.io.tables import Table, check_file, check_header, not_utf8
from data.io.text import field_text
from data.schemas import UserError

if TYPE_CHECKING:
    import polars as pl

ESCAPED = re.compile(rb"\\([\"\\])")
"""A quote or a backslash behind a backslash, as MySQL and R write them."""

MAX_FIELD = 1 << 24
"""Characters of one field that the search for a bad line goes through."""


def read_csv(
    path: Path,
    needed: Sequence[str],
    expected: str,
    types: "Mapping[str, pl.DataType | type[pl.DataType]] | None" = None,
    header: bool = True,
    layout: Layout | None = None,
    content: bytes | None = None,
) -> Table:
    """Reads separated values with quotes, by polars' streaming engine.

    Args:
        path: the file.
        needed: columns that must be there; without a header, all columns in their order.
        expected: says in errors what the file should be.
        types: the only columns to read, numbers as numbers; None reads all as text.
        header: the first line has the names.
        layout: the file's separator and escapes; its names are those of the columns unless ``needed`` has others. None: a csv.
        content: what the file holds in UTF-8; None: read it.

    Raises:
        UserError: no such file, another encoding, a header that lacks a column, or a record that does not fit.
    """
    import polars as pl

    check_file(path, expected)
    names = list(needed)
    if layout is not None:
        names = list(needed) or layout.names
    elif header:
        names = csv_header(path, needed, expected)
    separator = "," if layout is None else layout.separator
    if layout is not None and layout.escapes:
        escaped = path.read_bytes() if content is None else content
        content = ESCAPED.sub(lambda found: found[1] * 2 if found[1] == b'"' else found[1], escaped)
    kept = list(types) if types else names
    overrides = {name: types[name] if types else pl.String for name in kept}
    schema = {name: overrides.get(name, pl.String) for name in names}
    try:
        source = path if content is None else content
        named = header and layout is None  # names of our own stand for those of the first line, some of which may be blank
        skipped = int(header and layout is not None)
        scan = pl.scan_csv(source, separator=separator, has_header=named, skip_rows=skipped, schema=schema, infer_schema=False)
        frame = scan.select(kept).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        _explain_csv(path, content, separator, names, overrides, expected, header, str(error))
    table = Table(path, frame, lambda row: f"{path}:{_line_of_record(path, content, separator, row, header)}")
    if not len(frame):
        raise UserError(f"{path} has {'a header and ' if header else ''}no rows; expected {expected}, one line for each row")
    for name in (name for name in needed if name in kept):
        if frame[name].null_count():
            table.refuse_first(pl.col(name).is_null(), f"has no {name}; expected {expected}; mend the line")
    return table


def _opened(path: Path, content: bytes | None) -> BinaryIO:
    return path.open("rb") if content is None else io.BytesIO(content)


def _records(path: Path, content: bytes | None, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line on which the record ends, fields); blank lines give no fields."""
    csv.field_size_limit(MAX_FIELD)
    with io.TextIOWrapper(_opened(path, content), encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
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


def _line_of_record(path: Path, content: bytes | None, separator: str, row: int, header: bool) -> int:
    try:
        for number, (line, _) in enumerate(_records(path, content, separator)):
            if number == row + header:
                return line
    except csv.Error:
        pass
    return row + 1 + header


def _explain_csv(
    path: Path,
    content: bytes | None,
    separator: str,
    names: Sequence[str],
    types: Mapping[str, object],
    expected: str,
    header: bool,
    said: str,
) -> NoReturn:
    """Raises for the first record that does not fit; where none is found, with what polars said."""
    import polars as pl

    with _opened(path, content) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(f"{path}:{number}", expected) from error
    number = 0
    numeric = [(index, name, _bits(types[name])) for index, name in enumerate(names) if types.get(name, pl.String) != pl.String]
    try:
        for record_number, (number, record) in enumerate(_records(path, content, separator)):
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
    mark = re.escape(separator).encode()
    stray = re.compile(rb'(^|%b)[^"%b][^%b]*"' % (mark, mark, mark))
    with _opened(path, content) as file:
        for number, line in enumerate(file, start=1):
            if stray.search(line):
                what = 'has a quote within a field that stands in none; put the field in quotes and write "" for the one within'
                raise UserError(f"{path}:{number} {what}")
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
