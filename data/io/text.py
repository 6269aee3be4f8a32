"""Texts that are not trusted, as one line that can be printed and written."""

import math
import re

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")


def field_text(value: object) -> str:
    """Returns a metadata value as one line of text: lists joined by commas; "" for None, NaN, blanks and empty lists.

    Control characters, which could steer a terminal, and halves of characters, which no file can hold, become blanks.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(text for text in map(field_text, value) if text)
    text = " ".join(CONTROL.sub(" ", str(value)).split())
    return "" if text.lower() == "nan" else text


def usable_id(key: str) -> bool:
    """Can an id name something? Not when it is blank, or holds line breaks, control characters or halves of characters."""
    return bool(key.strip()) and CONTROL.search(key) is None
