"""Files that are whole or absent, whatever ends the writing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.io.files import whole_file, write_whole
from data.schemas import UserError

ROOT = Path(__file__).parents[3]


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    target = tmp_path / "new" / "file.bin"
    with whole_file(target) as temporary:
        temporary.write_bytes(b"content")
        assert not target.exists()
    assert target.read_bytes() == b"content"
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]
    write_whole(target, "text")
    assert target.read_text() == "text"


def test_an_error_leaves_the_file_of_before_and_nothing_else(tmp_path):
    target = tmp_path / "file.bin"
    write_whole(target, b"before")

    def fail() -> None:
        with whole_file(target) as temporary:
            temporary.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def test_what_a_killed_process_left_is_removed_by_the_next_write_and_what_a_living_one_writes_is_not(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    abandoned = tmp_path / f".file.bin.{dead.stdout.strip()}.tmp"
    living = tmp_path / f".file.bin.{os.getppid()}.tmp"
    for path in (abandoned, living):
        path.write_bytes(b"half")
    write_whole(tmp_path / "file.bin", b"content")
    assert not abandoned.exists()
    assert living.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_cannot_be_written_is_a_user_error(tmp_path, monkeypatch, number):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("data.io.files.os.fsync", fail)
    with pytest.raises(UserError, match=r"cannot write .*file\.bin .*free space or choose a folder"):
        write_whole(tmp_path / "file.bin", b"content")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
def test_a_write_that_the_system_cuts_short_leaves_nothing(tmp_path):
    code = (
        "import resource, sys; from data.io.files import write_whole; from data.schemas import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from pathlib import Path\n"
        "try: write_whole(Path(sys.argv[1]) / 'file.bin', b'x' * 5000)\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
def test_a_corpus_that_does_not_fit_on_the_disk_is_a_sentence(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from data.filters import Filters; from data.corpus_cache import cached_corpus\n"
        "from data.schemas import UserError; from data.sources.synthetic import load_synthetic\n"
        "loaded = load_synthetic(Filters(), 50, 40)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: cached_corpus(Path(sys.argv[1]) / 'processed' / 'corpus.pt', lambda: loaded)\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert list((tmp_path / "processed").iterdir()) == []
