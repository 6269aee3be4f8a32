"""Histories as lines or as JSON: "user item item ..", "user item", {user: [items]}; they come out as a table of user and item."""

import json
from pathlib import Path

from data.io.tables import Table
from data.io.text import field_text
from data.schemas import UserError

TOKEN = r"[^\s,;]+"


def read_sequences(path: Path, text: str, expected: str) -> Table:
    """Reads a line a user, with all items of the user, or a line an interaction, with one item; ids are separated by blanks or commas.

    Args:
        path: whose text this is, for errors.
        text: what it holds.
        expected: says in errors what the file should be.

    Returns:
        user and item as text, in the order of the file.

    Raises:
        UserError: a line without an item, or lines of several items with a user twice.
    """
    import polars as pl

    lines = pl.DataFrame({"text": text.split("\n")}).with_row_index("line", offset=1)
    tokens = lines.select("line", pl.col("text").str.extract_all(TOKEN).alias("tokens")).filter(pl.col("tokens").list.len() > 0)
    if not len(tokens):
        raise UserError(f"{path} is empty; expected {expected}; write it again")
    numbers = tokens["line"].to_list()
    table = Table(path, tokens, lambda row: f"{path}:{numbers[row]}")
    counts = pl.col("tokens").list.len()
    table.refuse_first(counts < 2, f"names a user but no item; expected {expected}; complete or remove the line")
    sizes = tokens["tokens"].list.len()
    users = tokens["tokens"].list.first()
    if int(sizes.max()) > 2 and users.n_unique() < len(users):  # type: ignore[arg-type]
        if sizes.n_unique() == 1:
            first = field_text(tokens["tokens"][0].to_list())
            raise UserError(
                f"{path} is a table of {sizes[0]} columns without a header (its first line is {first:.80}); write the names on a line "
                'before it, or number the columns: train.columns = ["user=1", "item=2", ..]'
            )
        again = table.with_frame(pl.DataFrame({"again": ~users.is_first_distinct()}))
        again.refuse_first(pl.col("again"), "has a user who already stands on a line before; expected one line a user; merge them")
    rows = tokens.select("line", users.alias("user"), pl.col("tokens").list.slice(1).alias("item")).explode("item")
    places = rows["line"]
    return Table(path, rows.select("user", "item"), lambda row: f"{path}:{places[row]}")


def read_json(path: Path, content: bytes, expected: str) -> Table | None:
    """Reads one JSON value: {user: [items]}, {user: [[item, time], ..]}, a list of objects, or {item: object}; None: it is not one value.

    Raises:
        UserError: a value of another kind.
    """
    import polars as pl

    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        value = [{"item": key, **row} for key, row in value.items()]
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        names = list(dict.fromkeys(str(name) for row in value for name in row))
        columns = {name: pl.Series(name, [row.get(name) for row in value], strict=False) for name in names}
        return Table(path, pl.DataFrame(columns), lambda row: f"{path}, object {row + 1}")
    if not isinstance(value, dict) or not value or not all(isinstance(items, list) for items in value.values()):
        shape = '{"user": ["item", ..]}, or a list of objects'
        raise UserError(f"{path} is JSON of another shape; expected {expected}, as {shape}; write it so or as a csv")
    rows = [(user, entry) for user, items in value.items() for entry in items]
    timed = bool(rows) and all(isinstance(entry, list) and len(entry) == 2 for _, entry in rows)
    bad = next((user for user, entry in rows if (not timed and not isinstance(entry, (str, int))) or isinstance(entry, bool)), None)
    if bad is not None or not rows:
        raise UserError(
            f"{path}, user {field_text(bad)!r:.60} has something else than items; expected ids as text or whole numbers; mend it"
        )
    table = {"user": [user for user, _ in rows], "item": [str(entry[0] if timed else entry) for _, entry in rows]}
    if timed:
        table["timestamp"] = [str(entry[1]) for _, entry in rows]
    return Table(path, pl.DataFrame(table), lambda row: f"{path}, user {field_text(rows[row][0])}")
