"""Small pieces of sentences: the nearest known name, and lists in words."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` most likely means, if any is near."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'NEAREST'?"``, or nothing where no known name is near."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""


def one_of(choices: Iterable[str]) -> str:
    """``a, b or c``."""
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last
