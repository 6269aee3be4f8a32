"""Downloads from a server of our own on this machine."""

import hashlib
import http.server
import threading
from typing import ClassVar

import pytest

import data.sources.movielens
from data.filters import Filters
from data.io.download import fetch
from data.schemas import UserError
from data.sources.ml_1m import load_ml1m

CONTENT = bytes(range(256)) * 40


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``files``; ranges where ``ranges``; breaks off after ``limit`` bytes once."""

    files: ClassVar[dict[str, bytes]] = {}
    ranges = True
    limit: int | None = None
    seen: ClassVar[list[str | None]] = []

    def do_GET(self):
        content = type(self).files.get(self.path)
        if content is None:
            self.send_error(404, "Not Found")
            return
        wanted = self.headers.get("Range")
        type(self).seen.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and type(self).ranges else 0
        if start >= len(content):
            self.send_error(416, "Range Not Satisfiable")
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest[: type(self).limit] if type(self).limit is not None else rest)
        type(self).limit = None

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Server.files, Server.ranges, Server.limit, Server.seen = {"/a.bin": CONTENT}, True, None, []
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


def test_a_file_is_there_when_it_is_whole(server, tmp_path):
    fetch(f"{server}/a.bin", tmp_path / "new" / "a.bin", "lay it there by hand")
    assert (tmp_path / "new" / "a.bin").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_told_and_the_next_goes_on_from_there(server, tmp_path, ranges):
    Server.limit, Server.ranges = 1000, ranges
    with pytest.raises(UserError, match=r"a.bin is missing from .* cannot be downloaded .*after 1,000 bytes, from which .*by hand"):
        fetch(f"{server}/a.bin", tmp_path / "a.bin", "lay it there by hand")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin.part"]
    fetch(f"{server}/a.bin", tmp_path / "a.bin", "lay it there by hand")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert Server.seen == [None, "bytes=1000-"]
    assert not (tmp_path / "a.bin.part").exists()


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 20_000)
    fetch(f"{server}/a.bin", tmp_path / "a.bin", "lay it there by hand")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_the_published_checksum_decides(server, tmp_path):
    Server.files["/a.bin.md5"] = f"MD5 (a.bin) = {hashlib.md5(CONTENT).hexdigest()}\n".encode()
    fetch(f"{server}/a.bin", tmp_path / "a.bin", "lay it there by hand", f"{server}/a.bin.md5")
    Server.files["/a.bin.md5"] = b"0" * 32
    with pytest.raises(UserError, match=r"md5 [0-9a-f]{32} instead of the published 0{32}; lay it"):
        fetch(f"{server}/a.bin", tmp_path / "b.bin", "lay it there by hand", f"{server}/a.bin.md5")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_an_absent_file_and_an_absent_server_are_told(server, tmp_path):
    with pytest.raises(UserError, match=r"answers 404 Not Found; lay it"):
        fetch(f"{server}/b.bin", tmp_path / "b.bin", "lay it there by hand")
    with pytest.raises(UserError, match=r"b.bin is missing from .* cannot be downloaded .*; lay it"):
        fetch("http://127.0.0.1:9/b.bin", tmp_path / "b.bin", "lay it there by hand")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_source_is_fetched_or_told_with_the_ways_to_supply_it(server, tmp_path, monkeypatch):
    monkeypatch.setattr(data.sources.movielens, "GROUPLENS", server)
    with pytest.raises(UserError, match=r"ml-1m.zip is missing .*connect once, put .*zip into .*raw, or its files \(movies.dat, rat"):
        load_ml1m(tmp_path, Filters())
    Server.files |= {"/ml-1m.zip": CONTENT, "/ml-1m.zip.md5": hashlib.md5(CONTENT).hexdigest().encode()}
    with pytest.raises(UserError, match=r"ml-1m.zip cannot be extracted \(File is not a zip file\)"):
        load_ml1m(tmp_path, Filters())
