"""The bytes of a text file that is not trusted, whatever it is packed or encoded in."""

import codecs
import gzip
import mmap
import zlib
from pathlib import Path

from data.io.tables import NEWLINE, check_file, not_utf8
from data.schemas import UserError

HEAD = 1 << 16
"""Bytes by which the layout of a file is told."""


def read_content(path: Path, expected: str, encoding: str = "utf-8") -> bytes | None:
    """Returns a text file as UTF-8 if it is gzipped or in another encoding; None: it can be read as it lies there.

    Args:
        path: gzipped if it ends in .gz.
        expected: says in errors what the file should be.
        encoding: of the file, as Python calls it. UTF-16 is told by its mark.

    Raises:
        UserError: no such file, a broken gzip file, or another encoding.
    """
    check_file(path, expected)
    encoding = codecs.lookup(encoding).name.removesuffix("-sig")
    zipped = path.suffix == ".gz"
    with path.open("rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if encoding == "utf-8" and not zipped and not wide:
        return None
    try:
        content = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a complete gzip file; expected {expected}; write it again") from error
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encoding = "utf-16"
    if encoding == "utf-8":
        return content
    try:
        return content.decode(encoding).replace("\r\n", "\n").encode()
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        place = f"{path}:{content.count(NEWLINE, 0, start) + 1}"
        raise UserError(f"{place} is not {encoding}; expected {expected}; set train.encoding to that of the file") from error


def read_head(path: Path, content: bytes | None) -> str:
    """Returns the whole lines at the beginning of a file, what is not UTF-8 in them replaced."""
    if content is not None:
        start = content[:HEAD]
    else:
        with path.open("rb") as file:
            start = file.read(HEAD)
    if len(start) == HEAD and NEWLINE in start:
        start = start[: start.rindex(NEWLINE) + 1]
    return start.decode("utf-8-sig", "replace")


def holds(path: Path, content: bytes | None, piece: bytes) -> bool:
    """Does a file hold some bytes?"""
    if content is not None:
        return piece in content
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return mapped.find(piece) >= 0


def whole_text(path: Path, content: bytes | None, expected: str) -> str:
    """Returns a whole file as text, or names the first line that is not UTF-8."""
    data = path.read_bytes() if content is None else content
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(f"{path}:{data.count(NEWLINE, 0, error.start) + 1}", expected) from error
