"""Every worker of a run collects the same tests by the same names."""

import gzip

import pytest


@pytest.mark.parametrize(("content", "size"), [(gzip.compress(b""), 20), (gzip.compress(b"a"), 21)])
def test_no_bytes_are_in_a_test_s_name(request, content, size):
    assert len(content) >= size
    assert request.node.name.split("[")[1] in {"content-20]", "content-21]"}
