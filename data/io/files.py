"""Files that are whole or absent, and hashes that tell one content from another."""

import errno
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.schemas import UserError

UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}
"""What the system says of a disk that is full and of a place that cannot be written to."""

WHOLE_HASH_BYTES = 128 << 20
"""Files up to this size are known by the hash of all their content."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that takes its name, once it is on the disk, if the block succeeds; else it is removed.

    What killed processes left of such a file is removed as well.

    Raises:
        UserError: the folder cannot be made or written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(
            f"cannot write {path} ({error.strerror}); free space or choose a folder that can be written to; the same command then goes on"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Writes a file that is whole or absent, whatever happens meanwhile; raises as ``whole_file`` does."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        owner = left.name.split(".")[-2]
        if owner.isdigit() and int(owner) != os.getpid() and not _alive(int(owner)):
            left.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if os.name != "posix":  # there the question would kill it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, and somebody else's
        return True
    return True


def file_sha256(path: Path) -> str:
    """Returns the 64 hex digits of the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: object) -> str:
    """Returns 16 hex digits for a sequence of plain values (anything JSON can write)."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:16]


def raw_fingerprint(paths: list[Path]) -> list[object]:
    """Returns what tells each raw file from any other version of it, for ``digest``: name, size and sha256.

    Of a file above 128 MiB the sha256 is that of its first, middle and last MiB, and its time of change stands beside it, so that a
    cache of a large source opens without reading the source.

    Raises:
        UserError: one of them is a directory or cannot be read.
    """
    known: list[object] = []
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a directory; expected a file; put the file itself there")
        try:
            known.append((path.name, path.stat().st_size, *_content_of(path)))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); mend its permissions or put it there again") from error
    return known


def _content_of(path: Path) -> list[object]:
    size = path.stat().st_size
    if size <= WHOLE_HASH_BYTES:
        return [file_sha256(path)]
    sha = hashlib.sha256()
    with path.open("rb") as file:
        for start in (0, size // 2, size - (1 << 20)):
            file.seek(start)
            sha.update(file.read(1 << 20))
    return [sha.hexdigest(), path.stat().st_mtime_ns]
