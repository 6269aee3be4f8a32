"""What the columns of somebody's own files mean: which are ids, time and rating, and how the others become titles and texts."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.corpus import Catalogue
from data.io.text import field_text
from data.item_text import clean, item_text
from data.schemas import UserError
from data.sources.text_columns import left_out
from data.times import holds_dates

if TYPE_CHECKING:
    import polars as pl

ROLES = {
    "user": ("user", "user_id", "userId", "reviewerID"),
    "item": ("item", "item_id", "itemId", "movieId", "asin", "parent_asin"),
    "timestamp": ("timestamp", "time", "unixReviewTime"),
    "rating": ("rating", "overall"),
    "category": ("category", "categories", "genre", "genres", "class"),
}
"""What a column may be called without being named in ``train.columns``."""

LABELS = {"movie_title": "Title", "release_year": "Year", "class": "Genres", "genre": "Genres", "genres": "Genres"}


LISTS = {
    "item": ("items", "item_ids", "item_id_list", "itemIds", "sequence", "history"),
    "timestamp": ("timestamps", "times"),
    "rating": ("ratings",),
}
"""What a column of lists may be called in a file with a row a user."""

TIMELIKE = re.compile(r"time|date|when|stamp|epoch|unix|created|^ts$|^day$|_at$", re.IGNORECASE)
"""Names under which times may stand."""


def parse_columns(columns: Sequence[str]) -> dict[str, list[str]]:
    """Returns the names given to each role; an item may have two, as its column may be called otherwise in either file.

    Raises:
        UserError: an entry that is not "role=name", or a role that takes one name and has two.
    """
    named: dict[str, list[str]] = {}
    for entry in columns:
        role, equals, name = entry.partition("=")
        if role not in (*ROLES, "title", "text") or not equals or not name:
            roles = ", ".join([*ROLES, "title", "text"])
            raise UserError(f"train.columns has {entry!r}; expected role=name with one of the roles {roles}")
        named.setdefault(role, []).append(name)
    most = {"item": 2, "text": len(columns)}
    double = next((role for role, names in named.items() if len(names) > most.get(role, 1)), None)
    if double:
        raise UserError(f"train.columns names {double} {len(named[double])} times; only text can be several columns; keep one")
    return named


def knows(names: Sequence[str], named: Mapping[str, list[str]], roles: Sequence[str]) -> bool:
    """Is one of the names that of a role?"""
    return any(_column(role, names, {role: _words(named.get(role, ()))}, "user" in roles) for role in roles)


def has_header(names: Sequence[str], named: Mapping[str, list[str]], roles: Sequence[str]) -> bool:
    """Does the first line name the columns? Not where they are given by number and no name on it is that of a role."""
    numbered = any(name.isdigit() for role in roles for name in named.get(role, ()))
    return not numbered or knows(names, named, roles)


def _words(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.isdigit()]


def _column(role: str, names: Sequence[str], named: Mapping[str, list[str]], interactions: bool) -> str | None:
    """The column of a role; None where none is called so."""
    given = named.get(role, [])
    headerless = list(names) == [str(number) for number in range(1, len(names) + 1)]
    called = _words(given) if headerless else given  # a number is a place there, of which an item may have one in each file
    if (name := next((name for name in called if name in names), None)) is not None or (_words(given) and role != "item"):
        return name
    known = (*ROLES[role], *(LISTS.get(role, ()) if interactions else ("id",) if role == "item" else ()))
    name = next((name for name in known if name in names), None)
    name = name or next((name for word in known for name in names if _folded(name) == _folded(word)), None)
    numbers = [int(name) for name in given if name.isdigit()]
    number = 0 if name is not None or not numbers else numbers[0 if interactions else -1]  # of two, the first is the interactions'
    return names[number - 1] if 1 <= number <= len(names) else name


def _folded(name: str) -> str:
    """Without what spellings differ in: User-ID, userId and user_id are one."""
    return re.sub(r"[\W_]", "", name).lower()


def find_roles(
    path: Path,
    names: Sequence[str],
    needed: Sequence[str],
    wanted: Sequence[str],
    named: Mapping[str, list[str]],
    expected: str,
    frame: "pl.DataFrame | None" = None,
) -> dict[str, str]:
    """Returns the column of each role.

    Args:
        path: whose columns these are, for errors.
        names: the columns that are there.
        needed: roles that must have one.
        wanted: roles that may have one.
        named: columns by role, as ``parse_columns`` gives them.
        expected: says in errors what the file should be.
        frame: the columns' values, of which times are guessed where no column is called so.

    Raises:
        UserError: roles that must have a column have none, or one that was named is not there.
    """
    found = {role: _column(role, names, named, "user" in needed) for role in (*needed, *wanted)}
    taken = {role: name for role, name in found.items() if name is not None}
    absent = [role for role in found if role not in taken and (role in needed or role in named)]
    advice = [f'"{role}=NAME"' for role in absent]
    sentences = []
    for role in absent:
        known = named[role][0] if role in named else None
        sentences.append(f"named {known}" if known else f"for the {role} (such as {', '.join(ROLES[role][:2])})")
    if "timestamp" in wanted and "timestamp" not in {*taken, *absent}:
        others = [name for name in names if name not in taken.values()]
        if (time := next((name for name in others if _may_be_time(name, frame)), None)) is not None:
            sentences.append(f"for the timestamp, though {field_text(time)} may be one")
            advice.append(f'"timestamp={field_text(time)}"')
    if sentences:
        there = field_text(names)[:120]
        if needed and absent and _is_data(names):
            numbered = ", ".join(f'"{role}={number}"' for number, role in enumerate((*needed, *wanted)[: len(names)], start=1))
            raise UserError(
                f"{path}:1 has no header: the first line is {there}; write the columns' names on a line before it, "
                f"or number them: train.columns = [{numbered}]"
            )
        what = " and none ".join(sentences)
        raise UserError(
            f"{path}:1 has no column {what}, only {there}; expected {expected}; mend it or set train.columns = [{', '.join(advice)}]"
            f"{' (by number where there is no header)' if set(absent) & set(needed) else ''}"
        )
    return taken


def _is_data(names: Sequence[str]) -> bool:
    """Is a first line rather one of data: does it hold a number?"""
    return any(re.fullmatch(r"[-+]?\d+([.,]\d+)?|\d{4}-\d\d-\d\d.*", name) for name in names)


def _may_be_time(name: str, frame: "pl.DataFrame | None") -> bool:
    return TIMELIKE.search(name) is not None or (frame is not None and name in frame.columns and holds_dates(frame[name]))


class Texts(NamedTuple):
    """Which columns of the items are read as what."""

    title: str | None
    category: str | None
    year: str | None
    described: list[str]  # make the text, the title first
    left_out: dict[str, str]  # columns that do not, with what they hold; none where train.columns names those that do

    def note(self, where: str) -> list[str]:
        """Says which columns make the text and which do not, where some do not."""
        if not self.left_out:
            return []
        made = field_text(self.described) or "nothing"
        out = ", ".join(f"{field_text(name)} ({reason})" for name, reason in self.left_out.items())
        return [f"{where}: the text of an item is made of {made}; left out: {out}"]


def text_columns(items: "pl.DataFrame", named: Mapping[str, list[str]]) -> Texts:
    """Returns what each column of the items is: the title is the first one called so that holds texts.

    Raises:
        UserError: a column that was named is not there.
    """
    names = [name for name in items.columns if name != "item"]
    given = {role: named.get(role, []) for role in ("title", "text", "category")}
    absent = next((name for names_of in given.values() for name in names_of if name not in names), None)
    if absent:
        raise UserError(f"train.columns names {absent}; the items have only {field_text(names)[:120] or 'ids'}; mend it")
    out = left_out(items, names)
    title = next(iter(given["title"]), None)
    title = title or next((name for word in ("title", "name") for name in _like(word, names) if name not in out), None)
    category = next((name for name in given["category"] or ROLES["category"] if name in names), None)
    year = next((name for name in names if "year" in name.lower() and name not in out), None)
    described = given["text"] or [name for name in names if name not in out]
    ordered = [name for name in (title,) if name] + [name for name in described if name != title]
    return Texts(title, category, year, ordered, {} if given["text"] else {name: reason for name, reason in out.items() if name != title})


def describe_items(items: "pl.DataFrame", columns: Texts, atomic: bool = False) -> Catalogue:
    """Titles, texts and categories: the title, with the year where there is one, leads the text.

    Genres are separated by ``|``; in RecBole's ``atomic`` files, which write lists so, by blanks.
    """
    title_name, category_name, year_name, ordered, _ = columns
    labels = {name: LABELS.get(name, field_text(name.replace("_", " ")).capitalize()) for name in ordered}
    titles, texts, categories = [], [], []
    for row in items.iter_rows(named=True):
        fields = {name: clean(row[name]) for name in {*ordered, *filter(None, [year_name, category_name])}}
        for name in ordered:
            if labels[name] == "Genres" and ("|" in fields[name] or (atomic and "," not in fields[name])):
                fields[name] = ", ".join(re.split(r"\s*\|\s*" if "|" in fields[name] else r"\s+", fields[name]))
        title, year = fields.get(title_name or "", ""), fields.get(year_name or "", "")
        dated = title and re.fullmatch(r"\d{4}", year) and not title.endswith(f"({year})")
        titles.append(f"{title} ({year})" if dated else title)
        texts.append(item_text((labels[name], fields[name]) for name in ordered))
        categories.append(fields.get(category_name or "", ""))
    return Catalogue(items["item"].to_list(), titles, texts, categories)


def _like(word: str, names: Sequence[str]) -> list[str]:
    """The columns called ``word``, then those with it in their name."""
    return sorted((name for name in names if word in name.lower()), key=lambda name: name.lower() != word)
