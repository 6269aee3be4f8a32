"""Progress is a bar in a terminal and a line now and then in a file."""

import io
import sys

import data.io.progress
from data.io.progress import progress, write_above


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_lines_that_are_never_written_over(monkeypatch):
    errors, output = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(data.io.progress, "EVERY", 0.0)
    with progress(total=4, desc="decoder", initial=1) as bar:
        for step in range(3):
            bar.set_postfix_str(f"loss {step}", refresh=False)
            bar.update()
            write_above(f"step {step}")
    lines = errors.getvalue().splitlines()
    assert "\r" not in errors.getvalue()
    assert list(dict.fromkeys(line.partition(" [")[0] for line in lines)) == [f"decoder: {done} of 4" for done in (1, 2, 3, 4)]
    assert "loss 2" in lines[-1]
    assert output.getvalue().splitlines() == ["step 0", "step 1", "step 2"]


def test_what_is_over_soon_leaves_a_file_empty(monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    assert list(progress(range(5), desc="users")) == [0, 1, 2, 3, 4]
    assert errors.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    errors = Terminal()
    monkeypatch.setattr(sys, "stderr", errors)
    assert list(progress(range(5), desc="users")) == [0, 1, 2, 3, 4]
    assert "\r" in errors.getvalue()
    assert "5/5" in errors.getvalue()
