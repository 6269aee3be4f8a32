"""What the columns of somebody's own files mean: which are ids, time and rating, and how the others become titles and texts."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.corpus import Catalogue
from data.io.text import field_text
from data.item_text import item_text
from data.schemas import UserError

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


def parse_columns(columns: Sequence[str]) -> dict[str, list[str]]:
    """Returns the names given to each role.

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
    double = next((role for role, names in named.items() if len(names) > 1 and role != "text"), None)
    if double:
        raise UserError(f"train.columns names {double} twice; only text can be several columns; keep one")
    return named


def find_roles(
    path: Path, names: Sequence[str], needed: Sequence[str], wanted: Sequence[str], named: Mapping[str, list[str]], expected: str
) -> dict[str, str]:
    """Returns the column of each role.

    Args:
        path: whose columns these are, for errors.
        names: the columns that are there.
        needed: roles that must have one.
        wanted: roles that may have one.
        named: columns by role, as ``parse_columns`` gives them.
        expected: says in errors what the file should be.

    Raises:
        UserError: a role that must have a column has none, or one that was named is not there.
    """
    taken = {}
    for role in (*needed, *wanted):
        known = named.get(role, ROLES[role])
        name = next((name for name in known if name in names), None)
        if name is None and (role in needed or role in named):
            said = f"named {known[0]}" if role in named else f"for the {role} (such as {', '.join(known[:2])})"
            there = field_text(names)[:120]
            advice = f'mend it or set train.columns = ["{role}=NAME"]'
            raise UserError(f"{path}:1 has no column {said}, only {there}; expected {expected}; {advice}")
        if name is not None:
            taken[role] = name
    return taken


def describe_items(items: "pl.DataFrame", named: Mapping[str, list[str]], atomic: bool = False) -> Catalogue:
    """Titles, texts and categories: the title is the first column named like one, with the year where there is one, and leads the text.

    Genres are separated by ``|``; in RecBole's ``atomic`` files, which write lists so, by blanks.
    """
    names = [name for name in items.columns if name != "item"]
    absent = next((name for role in ("title", "text", "category") for name in named.get(role, ()) if name not in names), None)
    if absent:
        raise UserError(f"train.columns names {absent}; the items have only {field_text(names)[:120] or 'ids'}; mend it")
    title_name = next(iter(named.get("title", ())), None)
    title_name = title_name or next((name for word in ("title", "name") for name in _like(word, names)), None)
    category_name = next((name for name in named.get("category", ROLES["category"]) if name in names), None)
    year_name = next((name for name in names if "year" in name.lower()), None)
    described = named.get("text", [name for name in names if name != title_name])
    ordered = [name for name in (title_name,) if name] + [name for name in described if name != title_name]
    labels = {name: LABELS.get(name, field_text(name.replace("_", " ")).capitalize()) for name in ordered}
    titles, texts, categories = [], [], []
    for row in items.iter_rows(named=True):
        fields = {name: field_text(row[name]) for name in {*ordered, *filter(None, [year_name, category_name])}}
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
