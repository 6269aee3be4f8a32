"""What the sentence encoder reads of an item."""

from collections.abc import Iterable

from data.io.text import field_text

TEMPLATE_VERSION = 1
"""Raise it when the same metadata would give another text: it is part of every cache's name."""


def item_text(fields: Iterable[tuple[str, object]]) -> str:
    """Returns ``"Title: ..; Brand: ..; Price: .."`` from ordered (label, value) pairs, leaving out what is absent.

    The result is empty when every value is.
    """
    pairs = ((label, field_text(value)) for label, value in fields)
    return "; ".join(f"{label}: {text}" for label, text in pairs if text)


def bare_text(key: str) -> str:
    """Returns the text of an item of which nothing is known but its id."""
    return f"Title: {name_of(key)}"


def name_of(key: str) -> str:
    """Returns an id as it can be shown, never empty: one like "nan" counts as a missing value elsewhere."""
    return field_text(key) or key.encode("unicode_escape").decode()
