"""Plain-text tables for a console: metrics of models and baselines side by side, and recommendations as titles."""

import textwrap
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

WIDTH = 110
"""Columns of a console that every text here fits into."""


class Row(NamedTuple):
    """One line of a table; a note appears below it, numbered."""

    name: str
    metrics: dict[str, float]
    note: str = ""


def metrics_table(rows: Sequence[Row], columns: Sequence[str], title: str) -> str:
    """An aligned table for a console of 110 columns; ``*`` marks the best of a column, whoever it is.

    Best is judged at the four digits shown, so equals are all marked. code_* columns say what code-level matching would have
    claimed and have no best. Columns that do not fit side by side continue in a second block.

    Args:
        rows: models and baselines.
        columns: metric names; a row without one shows ``-``.
        title: first line.
    """
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    labels = [shorten(row.name, 36) + (f" [{notes.index(row.note) + 1}]" if row.note else "") for row in rows]
    name_width = max(map(len, labels), default=0)
    lines, cells = [title], {column: _column(rows, column) for column in columns}
    widths = {column: max(len(cell) for cell in [column, *cells[column]]) for column in columns}
    for block in _blocks(columns, widths, WIDTH - name_width):
        lines.append(" " * name_width + "".join(f"  {column:>{widths[column]}} " for column in block))
        for index, label in enumerate(labels):
            line = f"{label:<{name_width}}"
            for column in block:
                cell = cells[column][index]
                line += f"  {cell.rstrip('*'):>{widths[column]}}" + ("*" if cell.endswith("*") else " ")
            lines.append(line)
    for number, note in enumerate(notes, start=1):
        lines += textwrap.wrap(f"[{number}] {note}", WIDTH, subsequent_indent="    ")
    if any("*" in cell for column in cells.values() for cell in column):
        lines.append("* best of the column")
    return "\n".join(line.rstrip() for line in lines)


def sample_table(
    histories: list[list[str]],
    targets: list[str],
    recommended: list[list[str]],
    hit_ranks: Sequence[int] | None = None,
    users: int = 5,
    last: int = 3,
    top: int = 10,
) -> str:
    """A few users as titles: the end of the history, the held-out item, and what was recommended, ``*`` at the hit.

    Args:
        histories: titles per user, oldest first.
        targets: title of each user's held-out item.
        recommended: titles per user, best first.
        hit_ranks: 0-based ranks from ``metrics.target_ranks``. Without them a hit is an equal title, which is wrong where different
            items share a title.
        users: users shown, the first ones.
        last: titles shown of a history.
        top: recommendations shown.
    """
    blocks = []
    for user, (history, target, titles) in enumerate(zip(histories[:users], targets, recommended)):
        rank = int(hit_ranks[user]) if hit_ranks is not None else titles.index(target) if target in titles else len(titles)
        shown = titles[:top]
        verdict = f"hit at {rank + 1}" if rank < len(titles) else f"not among the {len(titles)} recommended"
        lines = [f"sample {user + 1}, history of {len(history)}: {verdict}"]
        lines += _labelled("history", history[-last:] or ["(empty)"])
        lines += _labelled("held out", [target])
        lines += _labelled("recommended", [f"{'*' if i == rank else ' '}{i + 1:>3}  {title}" for i, title in enumerate(shown)])
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _column(rows: Sequence[Row], column: str) -> list[str]:
    """The cells of one column, the best of at least two marked with a trailing ``*``."""
    values = [row.metrics.get(column) for row in rows]
    shown = [round(value, 4) for value in values if value is not None and value == value]
    best = max(shown) if len(shown) > 1 and not column.startswith("code_") else None
    return ["-" if v is None else format_number(v) + ("*" if best is not None and round(v, 4) == best else "") for v in values]


def _blocks(columns: Sequence[str], widths: dict[str, int], room: int) -> list[list[str]]:
    """Columns side by side as far as they fit."""
    blocks: list[list[str]] = [[]]
    used = 0
    for column in columns:
        if blocks[-1] and used + widths[column] + 3 > room:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += widths[column] + 3
    return blocks


def format_number(value: float) -> str:
    """Four digits, without the zero before the point: .0859."""
    text = f"{round(value, 4) + 0.0:.4f}"  # + 0.0: no negative zero
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _labelled(label: str, texts: Sequence[str]) -> list[str]:
    """Lines under one label, which stands on the first of them."""
    return [f"  {label if not i else '':<12}{shorten(text, WIDTH - 14)}" for i, text in enumerate(texts)]


def shorten(text: str, width: int) -> str:
    """One printable line of at most ``width`` columns, ending in an ellipsis where something was cut.

    Titles come from files: line breaks and terminal control characters become spaces, East Asian wide characters count twice.
    """
    text = "".join(character if character.isprintable() else " " for character in text).rstrip()
    used = 0
    ends = []
    for character in text:
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 0 if unicodedata.combining(character) else 1
        ends.append(used)
    if used <= width:
        return text
    return text[: sum(end < width for end in ends)].rstrip() + "…"


def table(rows: list[list[str]]) -> str:
    """Aligned columns, the first one to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    )


def markdown(rows: list[list[str]]) -> str:
    """Rows as a Markdown table; the first one is its head."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)) + "\n"
