"""Ctrl-C and SIGTERM: the first asks a training loop to save and stop, a second stops at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal ended the run.

    Args:
        number: which.
        message: what was saved and how to go on.
    """

    def __init__(self, number: int, message: str = "interrupted; what was saved stays, and a run goes on from its last checkpoint") -> None:
        super().__init__(message)
        self.number, self.message = number, message


def raise_on_sigterm() -> None:
    """Makes SIGTERM raise ``Interrupted`` where nobody defers it, so that temporary files are removed on the way out."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


class Deferred:
    """What has been asked for while signals are deferred: 0, or the signal's number."""

    def __init__(self) -> None:
        self.number = 0

    @contextmanager
    def installed(self) -> Iterator["Deferred"]:
        """A block in which the first signal is only noted."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise Interrupted(number)
        self.number = number
        os.write(2, b"\nstopping after this step; once more stops at once\n")  # print may be at work in what was interrupted
