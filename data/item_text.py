"""What the sentence encoder reads of an item: its fields, cleaned in one way for every source."""

import html
import re
from collections.abc import Iterable

from data.io.text import field_text

TEMPLATE_VERSION = 1
"""Raise it when the same metadata would give another text: it is part of every cache's name."""

DASHES = ["-", "--", "---", "\N{EN DASH}", "\N{EM DASH}", "\N{HORIZONTAL BAR}"]
WORDS = ["n/a", "n.a.", "na", "#n/a", "#na", "<na>", "null", "(null)", "none", "nil", "nan", "undefined"]
PLACEHOLDERS = frozenset([*DASHES, *WORDS, "?", ".", "_", "[]", "{}", "\\n"])
"""What stands, in lower case, where nothing is known."""

INLINE = "a|abbr|b|big|cite|code|del|em|font|i|ins|kbd|label|mark|q|s|small|span|strike|strong|sub|sup|tt|u|wbr"
BLOCK = (
    "article|blockquote|body|br|button|center|dd|div|dl|dt|footer|form|h[1-6]|head|header|hr|html|iframe|img|input|li|link|meta|nav|ol|"
    "option|p|pre|section|select|table|tbody|td|th|thead|title|tr|ul|video"
)
HIDDEN = re.compile(r"<!--.*?-->|<(script|style)\b[^>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
WITHIN = re.compile(rf"</?(?:{INLINE})(?:\s[^<>]*)?/?>", re.IGNORECASE)
BETWEEN = re.compile(rf"</?(?:{BLOCK})(?:\s[^<>]*)?/?>", re.IGNORECASE)


def clean(value: object) -> str:
    """Returns a metadata value as one line of text: lists joined by commas, without HTML's tags and entities; "" for a placeholder.

    Entities may stand for control characters, which ``field_text`` takes out after them.
    """
    if isinstance(value, (list, tuple)):
        return ", ".join(text for text in map(clean, value) if text)
    if isinstance(value, str):
        if "&" in value:
            value = html.unescape(value)
        if "<" in value:
            value = BETWEEN.sub(" ", WITHIN.sub("", HIDDEN.sub(" ", value)))
    text = field_text(value)
    return "" if text.lower() in PLACEHOLDERS else text


def item_text(fields: Iterable[tuple[str, object]]) -> str:
    """Returns ``"Title: ..; Brand: ..; Price: .."`` from ordered (label, value) pairs, leaving out what is absent.

    The values have been cleaned. The result is empty when every value is.
    """
    pairs = ((label, field_text(value)) for label, value in fields)
    return "; ".join(f"{label}: {text}" for label, text in pairs if text)


def bare_text(key: str) -> str:
    """Returns the text of an item of which nothing is known but its id."""
    return f"Title: {name_of(key)}"


def name_of(key: str) -> str:
    """Returns an id as it can be shown, never empty: one like "nan" counts as a missing value elsewhere."""
    return field_text(key) or key.encode("unicode_escape").decode()
