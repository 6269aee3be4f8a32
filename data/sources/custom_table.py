"""A file of one's own, of any kind, as a table whose columns are called by their roles."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.io.content import holds, read_content, read_head, whole_text
from data.io.csv_file import read_csv
from data.io.json_lines import read_json_lines
from data.io.sequences import read_json, read_sequences
from data.io.sniff import Layout, sniff
from data.io.tables import TYPED, Table, check_header, read_lines, read_parquet, refuse
from data.io.text import field_text
from data.schemas import UserError
from data.sources.custom_columns import LISTS, find_roles, has_header, knows
from data.sources.custom_files import kind_of
from data.sources.text_columns import NAMELESS

OWN = {"csv": ",", "tsv": "\t", "txt": " ", "inter": "\t", "item": "\t"}
"""What separates the fields of a file with such an ending, unless its lines say otherwise."""


class RoleTable(NamedTuple):
    """A file whose columns are called by their roles."""

    table: Table
    item: str  # what it calls the items' column


def read_table(
    path: Path, needed: Sequence[str], wanted: Sequence[str], named: Mapping[str, list[str]], expected: str, encoding: str = "utf-8"
) -> RoleTable:
    """Reads a file of any kind; the columns of roles come out under the roles' names, ids as text.

    Args:
        path: of a known ending.
        needed: roles that must be there.
        wanted: roles that are taken where they are; with ``needed`` alone, all other columns stay as well.
        named: columns by role, as ``parse_columns`` gives them.
        expected: says in errors what the file should be.
        encoding: of a text file.

    Raises:
        UserError: a file that cannot be read, or lacks a column.
    """
    import polars as pl

    kind = kind_of(path)
    if kind == "parquet":
        table = read_parquet(path, (), expected)
    elif kind in ("jsonl", "json"):
        table = _read_json(path, kind, expected, encoding)
    else:
        table = _read_text(path, kind, needed, wanted, named, expected, encoding)
    taken = find_roles(path, table.frame.columns, needed, wanted, named, expected, table.frame)
    others = [] if wanted else [pl.col(name) for name in table.frame.columns if name not in {*taken, *taken.values()}]
    table = table.with_frame(table.frame.select(*(pl.col(name).alias(role) for role, name in taken.items()), *others))
    if wanted and "item" in taken:
        table = _one_row_an_item(table, taken)
    gaps = ((role, f"has no {taken[role]}; expected {expected}; mend the line") for role in taken if role != "rating")
    refuse(sentence for role, what in gaps for sentence in table.first(pl.col(role).is_null(), what))
    ids = [role for role in ("user", "item") if role in taken]
    for role in ids:
        held = table.frame[role].dtype
        if not (held.is_integer() or held in (pl.String, pl.Categorical, pl.Enum)):
            raise UserError(f"{path}: {taken[role]} holds {held}; expected ids as text or whole numbers; mend the file")
    frame = table.frame.with_columns(pl.col(ids).cast(pl.String))
    if "rating" in taken and frame["rating"].dtype == pl.String:  # where fields are separated by semicolons, fractions mostly have commas
        frame = frame.with_columns(pl.col("rating").str.replace(r"^(\d+),(\d+)$", "$1.$2"))
    return RoleTable(table.with_frame(frame), taken["item"])


def join_tables(tables: Sequence[Table]) -> Table:
    """The rows of several files of one layout, one after another.

    Raises:
        UserError: a file lacks a column that another has.
    """
    import polars as pl

    first = tables[0]
    if len(tables) == 1:
        return first
    for table in tables[1:]:
        if set(table.frame.columns) != set(first.frame.columns):
            odd = sorted(set(table.frame.columns) ^ set(first.frame.columns))[0]
            raise UserError(
                f"{first.path} and {table.path} are read as one set and only one of them has a {odd}; give both the same columns"
            )
    starts = [0]
    for table in tables:
        starts.append(starts[-1] + len(table.frame))

    def place(row: int) -> str:
        number = next(number for number, end in enumerate(starts[1:]) if row < end)
        return tables[number].place(row - starts[number])

    return Table(first.path, pl.concat([table.frame for table in tables], how="diagonal_relaxed"), place)


def _read_json(path: Path, kind: str, expected: str, encoding: str) -> Table:
    if kind == "json":
        content = read_content(path, expected, encoding)
        table = read_json(path, path.read_bytes() if content is None else content, expected)
        if table is not None:
            _refuse_columns(path, table, expected)
            return table
    return read_json_lines(path, None, expected)


def _refuse_columns(path: Path, table: Table, expected: str) -> None:
    """Raises where the users of a {user: [items]} are called as columns are."""
    keys = table.frame["user"].unique(maintain_order=True).to_list() if table.frame.columns[:2] == ["user", "item"] else []
    if all(knows(list(map(str, keys)), {}, (role,)) for role in ("user", "item")):
        shown = field_text(keys)[:120]
        raise UserError(f"{path} is JSON of columns ({shown}); expected {expected}, as a list of objects; write it so or as a csv")


def _read_text(
    path: Path, kind: str, needed: Sequence[str], wanted: Sequence[str], named: Mapping[str, list[str]], expected: str, encoding: str
) -> Table:
    import polars as pl

    content = read_content(path, expected, encoding)
    own = OWN[kind]
    layout = sniff(read_head(path, content), own, quoted=kind == "csv")
    text = ""
    if kind != "csv" or layout.separator != own or holds(path, content, b'\\"'):  # whether quotes are quotes, the whole file tells
        text = whole_text(path, content, expected)
        atomic = kind in ("inter", "item") and not text.startswith('"')
        layout = sniff(text, layout.separator, quoted=False if atomic else None if layout.separator != "," else True)
    layout = layout._replace(names=_names(layout))
    header = has_header(layout.names, named, needed)
    if not header:
        layout = layout._replace(names=[str(number) for number, _ in enumerate(layout.names, start=1)])
    if kind == "txt" and header and not knows(layout.names, named, needed):
        return read_sequences(path, text, expected)
    if not layout.quotes:
        shown = f"a tab-separated file, {expected}" if layout.separator == "\t" else expected
        return read_lines(
            path,
            layout.separator,
            () if header else layout.names,
            shown,
            header=header,
            text=text.rstrip("\r\n") + "\n",
            named=layout.names,
        )
    check_header(path, layout.names, (), expected)
    taken = find_roles(path, layout.names, needed, wanted, named, expected)
    kept = list(taken.values()) if "timestamp" in taken else layout.names  # without times, others are looked at for some
    return _without_blanks(read_csv(path, (), expected, dict.fromkeys(kept, pl.String), header, layout, content))


def _without_blanks(table: Table) -> Table:
    """The table without blank lines, which polars reads as rows of nothing."""
    import polars as pl

    filled = table.frame.select(pl.any_horizontal(pl.all().is_not_null()).alias("filled"))["filled"]
    if filled.all() or not filled.any():
        return table
    rows = filled.arg_true()
    return Table(table.path, table.frame.filter(filled), lambda row: table.place(rows[row]))


def _names(layout: Layout) -> list[str]:
    """The columns' names, none of them blank; the one behind the last separator of a line is a column like others."""
    names = [TYPED.sub("", name).strip() for name in layout.names]
    return [name or f"{NAMELESS} {number}" for number, name in enumerate(names, start=1)]


LISTED = r"[^\s,;|\[\]()'\"]+"
"""An entry of a list that was written as text, such as "['a', 'b']" or "a b"."""


def _one_row_an_item(table: Table, taken: Mapping[str, str]) -> Table:
    """Interactions whose items are lists become a row an item; times and ratings that are lists go along."""
    import polars as pl

    frame = table.frame
    for role, name in taken.items():
        if name in LISTS.get(role, ()) and frame[role].dtype == pl.String:
            frame = frame.with_columns(pl.col(role).str.extract_all(LISTED))
        elif frame[role].dtype == pl.Array:
            frame = frame.with_columns(pl.col(role).arr.to_list())
    if frame["item"].dtype != pl.List:
        return table
    lists = [name for name in frame.columns if frame[name].dtype == pl.List]
    frame = frame.with_row_index("row").filter(pl.col("item").list.len() > 0)
    rows = frame["row"]
    places = Table(table.path, frame, lambda row: table.place(rows[row]))
    uneven = pl.any_horizontal(*(pl.col(name).list.len().fill_null(0) != pl.col("item").list.len() for name in lists))
    places.refuse_first(uneven, f"has lists of different lengths ({field_text(lists)}); expected one entry of each for each item")
    longer = frame.explode(lists)
    origins = longer["row"]
    return Table(table.path, longer.drop("row"), lambda row: table.place(origins[row]))
