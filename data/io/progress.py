"""Progress on stderr: a bar in a terminal or a notebook; elsewhere, as in a log file, a line every half minute."""

import sys
from collections.abc import Callable, Iterable
from typing import TextIO

from tqdm import tqdm
from tqdm.auto import tqdm as bar

EVERY = 30.0
"""Seconds between lines."""

LINE = "{desc}: {n_fmt} of {total_fmt} [{elapsed} gone, {remaining} left, {rate_fmt}{postfix}]"


def has_bars() -> bool:
    """Whether somebody sees a bar move."""
    return sys.stderr.isatty() or any(kind.__module__ == "tqdm.notebook" for kind in bar.__mro__)


def write_above(text: str) -> None:
    """Prints a line on stdout without breaking a bar."""
    if has_bars():
        tqdm.write(text)
    else:
        print(text, flush=True)


def progress(over: Iterable | None = None, **options: object) -> tqdm:
    """A tqdm over ``over``, or over ``total`` updates, with tqdm's options."""
    return bar(over, mininterval=1.0, **options) if has_bars() else Lines(over, **options)


class Lines(tqdm):
    """Progress line by line: the first after ``EVERY`` seconds, and none at the end."""

    def __init__(self, over: Iterable | None = None, **options: object) -> None:
        super().__init__(over, mininterval=EVERY, maxinterval=EVERY, delay=EVERY, bar_format=LINE, leave=False, **options)

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        """Writes a status as a line of its own."""
        return lambda status: print(status, file=file, flush=True)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes the status; a line that was written is never wiped."""
        if msg is None:
            super().display()
        return False

    def clear(self, nolock: bool = False) -> None:
        """Lines stay."""
