"""What every source becomes: a catalogue of items, and everyone's history of them.

Shape letters: T interactions, U users, I items.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from data.item_text import bare_text, name_of

MAX_TITLE = 1000
"""Characters of a title or text that are kept; what is longer is cut and counted."""


class Histories(NamedTuple):
    """Everyone's items in two flat arrays: user u has ``item_ids[offsets[u] : offsets[u + 1]]``."""

    item_ids: Tensor  # [T] int64, user after user, oldest first
    offsets: Tensor  # [U+1] int64


class Corpus(NamedTuple):
    """A source after loading: the catalogue and everyone's history."""

    item_keys: list[str]  # [I] external ids
    titles: list[str]  # [I] for people; the external id where the source has no title
    texts: list[str]  # [I] what the sentence encoder reads
    categories: list[str]  # [I] what kind of item it is, for judging semantic IDs by; "" where the source does not say
    user_keys: list[str]  # [U]
    histories: Histories  # every interaction
    times: Tensor | None = None  # [T] seconds, int64 or float64, one for each of the histories' item_ids; None: the source has none


class LoadedCorpus(NamedTuple):
    """A corpus, and what its loader had to say about the source (missing metadata, dropped rows)."""

    corpus: Corpus
    notes: list[str]


class Catalogue(NamedTuple):
    """Items as a source lists them."""

    keys: Sequence[str]  # [I] external ids
    titles: Sequence[str]  # [I] "" where the source has none
    texts: Sequence[str]  # [I] "" where the source says nothing about the item
    categories: Sequence[str]  # [I] "" where the source does not say


def finish_items(where: str, catalogue: Catalogue) -> tuple[Catalogue, list[str]]:
    """Returns the catalogue without gaps, and notes on what was missing or too long."""
    keys, titles, texts, categories = map(list, catalogue)
    untitled, long, silent = 0, 0, 0
    for row, (key, title, text) in enumerate(zip(keys, titles, texts)):
        untitled += not title
        silent += not text
        long += max(len(title), len(text)) > MAX_TITLE
        titles[row] = (title or name_of(key))[:MAX_TITLE]
        texts[row] = (text or bare_text(key))[:MAX_TITLE]
    notes = [f"{where}: {untitled:,} of {len(keys):,} items have no title and are called by their id"] if untitled else []
    notes += [f"{where}: {silent:,} of {len(keys):,} items have no text at all; their id is their text"] if silent else []
    notes += [f"{where}: {long:,} texts longer than {MAX_TITLE:,} characters were cut"] if long else []
    return Catalogue(keys, titles, texts, categories), notes
