"""Every worker of a run collects the same tests by the same names, and knows the slow ones."""

import gzip
from pathlib import Path

import pytest

from tests.conftest import SLOW


@pytest.mark.parametrize(("content", "size"), [(gzip.compress(b""), 20), (gzip.compress(b"a"), 21)])
def test_no_bytes_are_in_a_test_s_name(request, content, size):
    assert len(content) >= size
    assert request.node.name.split("[")[1] in {"content-20]", "content-21]"}


def test_every_module_that_counts_as_slow_is_there():
    assert {path.stem for path in Path(__file__).parent.rglob("test_*.py")} >= SLOW


def test_what_asks_for_trained_runs_counts_as_slow(request):
    marked = {item.nodeid for item in request.session.items if item.get_closest_marker("slow")}
    assert {item.nodeid for item in request.session.items if "trained" in item.fixturenames} <= marked
    assert request.node.nodeid not in marked
