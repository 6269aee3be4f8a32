"""Files that are whole or absent, and corpora kept in them under names that say what shaped them.

A changed setting or a changed raw file changes the name, so a stale cache is never read; a corrupt one is built again.
"""

import errno
import glob
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.schemas import UserError
from data.splits import Corpus, Histories

log = logging.getLogger("tiger.data")

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


CACHE_VERSION = 3
"""Raise it when the layout of the cached files changes."""

WHOLE_HASH_BYTES = 128 << 20
"""Files up to this size are known by the hash of all their content."""


class LoadedCorpus(NamedTuple):
    """A corpus, and what its loader had to say about the source (missing metadata, dropped rows)."""

    corpus: Corpus
    notes: list[str]


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


def corpus_path(folder: Path, name: str, *shape: object) -> Path:
    """Returns the cache file of a corpus below a dataset folder; ``shape`` is all that shapes it, the raw files' fingerprint too."""
    return folder / "processed" / f"{name}_{digest(CACHE_VERSION, *shape)}.pt"


def cached_corpus(path: Path, build: Callable[[], LoadedCorpus], force: bool = False) -> LoadedCorpus:
    """Returns the corpus kept in ``path``, or builds it and keeps it there; logs its notes either way.

    Args:
        path: the cache file; its name carries a hash of everything that shapes the corpus.
        build: reads the raw files.
        force: build even when a good cache is there.
    """
    loaded = None
    if path.exists() and not force:
        try:
            loaded = _read(path)
        except Exception as error:
            log.warning("%s cannot be read (%s); building it again", path, type(error).__name__)
    if loaded is None:
        loaded = build()
        buffer = io.BytesIO()  # torch, writing to a full disk itself, says so in an error of its own kind
        torch.save(_payload(loaded), buffer)
        write_whole(path, buffer.getbuffer())
    for note in loaded.notes:
        log.info(note)
    return loaded


def _payload(loaded: LoadedCorpus) -> dict[str, Tensor | None]:
    """Tensors only: the strings are JSON in bytes, which reads 20 times faster than as many objects; rows of items take 32 bits."""
    corpus = loaded.corpus
    strings = json.dumps([corpus.item_keys, corpus.titles, corpus.texts, corpus.categories, corpus.user_keys, loaded.notes])
    return {
        "strings": torch.from_numpy(np.frombuffer(bytearray(strings.encode()), dtype=np.uint8)),
        "item_ids": corpus.histories.item_ids.int(),
        "offsets": corpus.histories.offsets,
        "times": corpus.times,
    }


def _read(path: Path) -> LoadedCorpus:
    """Reads plain tensors only, and refuses arrays that do not fit together."""
    payload = torch.load(path, map_location="cpu", weights_only=True)
    item_ids, offsets, times = payload["item_ids"].long(), payload["offsets"], payload["times"]
    strings = json.loads(payload["strings"].numpy().tobytes())
    if len(strings) != 6 or not all(isinstance(value, list) and all(isinstance(text, str) for text in value) for value in strings):
        raise ValueError("six lists of strings expected")
    keys, titles, texts, categories, users, notes = strings
    fits = (
        offsets.dtype == torch.int64
        and len(keys) == len(titles) == len(texts) == len(categories)
        and offsets.shape == (len(users) + 1,)
        and int(offsets[0]) == 0
        and int(offsets[-1]) == len(item_ids)
        and bool((offsets.diff() >= 0).all())
        and (len(item_ids) == 0 or (int(item_ids.min()) >= 0 and int(item_ids.max()) < len(keys)))
        and (times is None or (times.dtype in (torch.int64, torch.float64) and times.shape == item_ids.shape))
    )
    if not fits:
        raise ValueError("the arrays do not fit together")
    return LoadedCorpus(Corpus(keys, titles, texts, categories, users, Histories(item_ids, offsets), times), notes)
