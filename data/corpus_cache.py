"""Corpora kept on disk under names that say what shaped them.

A changed setting or a changed raw file changes the name, so a stale cache is never read; a corrupt one is built again.
"""

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.corpus import Corpus, Histories, LoadedCorpus
from data.io.files import digest, write_whole

log = logging.getLogger("tiger.data")

CACHE_VERSION = 3
"""Raise it when the layout of the cached files changes."""


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
