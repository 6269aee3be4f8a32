"""Items of the interactions that the file of items lacks: refused with an id of each file, dropped, or kept without texts."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from data.corpus import Catalogue
from data.io.tables import Table
from data.io.text import field_text

if TYPE_CHECKING:
    import polars as pl

Unlisted = Literal["refuse", "drop", "keep"]
"""What train.unlisted_items can be."""


class Placed(NamedTuple):
    """Interactions and items that belong together."""

    rows: Table
    catalogue: Catalogue
    notes: list[str]


def bad_unlisted(rows: Table, items: Table, unlisted: Unlisted) -> Iterator[str]:
    """A sentence for the interactions with items that are not listed, where that is no choice or none is listed at all."""
    import polars as pl

    lacking = ~rows.frame["item"].is_in(items.frame["item"].implode())
    if unlisted != "refuse" and not lacking.all():
        return
    if lacking.any():
        strange, known = rows.frame["item"].filter(lacking), items.frame["item"]
        shown = f"{field_text(repr(strange[0])):.60}, where {items.path.name} has ids like {field_text(repr(known[0])):.60}"
        advice = "write the ids alike" if lacking.all() else 'add it there, remove the line, or set train.unlisted_items = "drop" or "keep"'
        marked = rows.with_frame(pl.DataFrame({"lacking": lacking}))
        what = f"has an item that {items.path.name} lacks ({shown}{_likeness(strange, known)}); {advice}"
        yield from marked.first(pl.col("lacking"), what)


def _likeness(strange: "pl.Series", known: "pl.Series") -> str:
    """In what most of the ids of two files differ; "" where that cannot be told."""
    ways: dict[str, Callable[[pl.Series], pl.Series]] = {
        "blanks around them": lambda ids: ids.str.strip_chars(),
        "a fraction of .0": lambda ids: ids.str.replace(r"\.0+$", ""),
        "capital letters": lambda ids: ids.str.to_lowercase(),
        "zeros in front": lambda ids: ids.str.strip_chars_start("0"),
        "what stands before the last number": lambda ids: ids.str.extract(r"(\d+)\D*$"),
        "what stands before the last colon, slash or underscore": lambda ids: ids.str.replace(r"^.*[:/_#]", ""),
    }
    distinct = strange.unique()
    for what, way in ways.items():
        if way(distinct).is_in(way(known).drop_nulls().implode()).fill_null(False).mean() >= 0.9:  # type: ignore[operator]
            return f"; they differ in {what}"
    return ""


def place_unlisted(rows: Table, items: Table, catalogue: Catalogue, unlisted: Unlisted) -> Placed:
    """Returns the interactions whose items are in the catalogue, and it with the others behind it if they are kept; both counted."""
    import polars as pl

    lacking = ~rows.frame["item"].is_in(items.frame["item"].implode())
    if not lacking.any():
        return Placed(rows, catalogue, [])
    strange = rows.frame["item"].filter(lacking)
    added = strange.unique().sort().to_list()
    who = f"{rows.path}: {len(strange):,} of {len(lacking):,} interactions are with {len(added):,} items that {items.path.name} lacks"
    if unlisted == "drop":
        return Placed(rows.with_frame(rows.frame.filter(pl.Series(~lacking))), catalogue, [f"{who} and were dropped"])
    blank = [""] * len(added)
    longer = Catalogue(*([*column, *more] for column, more in zip(catalogue, (added, blank, blank, blank))))
    return Placed(rows, longer, [f"{who}; these follow the others, and their id is all that is known of them"])
