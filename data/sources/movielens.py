"""What the MovieLens sources share: where their archives come from, and a movie's title, year and genres as text."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.io.download import fetch
from data.io.text import field_text
from data.io.zip_archive import extract_members
from data.item_text import clean, item_text

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
YEAR = re.compile(r"(.*\S)\s*\((\d{4})(?:\s*[-\N{EN DASH}]\s*(?:\d{4})?)?\)\s*", re.DOTALL)
NO_GENRES = "(no genres listed)"


class Movies(NamedTuple):
    """Titles for people, texts for the encoder, and genres."""

    titles: list[str]  # [I]
    texts: list[str]  # [I]
    genres: list[str]  # [I] all of a movie's genres together; "" where none is listed


def fetch_archive(folder: Path, split: str, names: Sequence[str]) -> list[Path]:
    """Returns ``<folder>/raw/<split>/<name>`` of each name; those that are missing are taken from ``<folder>/raw/<split>.zip``.

    That archive is downloaded where it is missing too.

    Raises:
        UserError: no network, or an archive that is damaged, unsafe or another one.
    """
    raw = folder / "raw"
    paths = [raw / split / name for name in names]
    missing = [path for path in paths if not path.exists()]
    if missing:
        archive = raw / f"{split}.zip"
        if not archive.exists():
            ways = f"connect once, put {split}.zip into {raw}, or its files ({', '.join(names)}) into {raw / split}"
            fetch(f"{GROUPLENS}/{split}.zip", archive, ways, f"{GROUPLENS}/{split}.zip.md5" if split in PUBLISHED_MD5 else None)
        extract_members(archive, missing, "GroupLens")
    return paths


PUBLISHED_MD5 = ("ml-1m", "ml-20m", "ml-25m", "ml-32m")
"""The archives that do not change, with a checksum beside them."""


def describe_movies(titles: Sequence[str], genres: Sequence[str]) -> Movies:
    """Returns ``"Title: ..; Year: ..; Genres: .., .."`` for each movie; an empty title leaves both empty.

    Args:
        titles: [I] as ``Toy Story (1995)``, the year not always there.
        genres: [I] joined by ``|``.
    """
    shown, texts, categories = [], [], []
    for title, listed in zip(map(clean, titles), genres):
        dated = YEAR.fullmatch(title)
        name, year = dated.groups() if dated else (title, "")
        kinds = [] if listed == NO_GENRES else listed.split("|")
        shown.append(title)
        categories.append(field_text(kinds))
        texts.append(item_text([("Title", name), ("Year", year), ("Genres", kinds)]))
    return Movies(shown, texts, categories)
