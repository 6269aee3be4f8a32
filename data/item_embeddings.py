"""Items as vectors: sentence embeddings with a cache on disk, or embeddings from a file.

Shape letters: I items, E text-embedding width.
"""

import io
import logging
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.io.files import digest, file_sha256, write_whole
from data.io.progress import progress
from data.item_text import TEMPLATE_VERSION
from data.schemas import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger("tiger.data")

READ_UP_TO = 2**31
"""Bytes of float32 up to which a file of embeddings is read into the memory; 700,000 items of 768."""

AT_ONCE = 2048
"""Texts that are encoded and kept together."""

ROWS_AT_ONCE = 16384
"""Rows of a catalogue that are looked at together where it may not fit into the memory."""


class ItemData(NamedTuple):
    """The catalogue as stage 1 reads it."""

    embeddings: Tensor  # [I, E] float32; float16 where a large file of such is mapped into the memory
    keys: list[str]
    titles: list[str]
    embeddings_hash: str  # sha256 of the float32 bytes, first 16 hex digits


def embed_texts(
    texts: Sequence[str], model: str, cache_dir: str | Path, device: str | torch.device = "cpu", batch_size: int = 64
) -> Tensor:
    """Encodes item texts with a sentence-transformers model, once: the result is kept in ``cache_dir``.

    Args:
        texts: [I] item texts.
        model: a name on the Hugging Face hub, or a local directory (which is never looked up on the hub).
        cache_dir: the cache file's name carries a hash of the model, its weights if local, the template version and the texts.
        device: where to encode.
        batch_size: texts a batch.

    Returns:
        [I, E] float32 on the CPU.

    Raises:
        UserError: the model is neither here nor reachable.
    """
    local = Path(model).expanduser()
    weights: list[object] = []
    if local.is_dir():
        wanted = {".safetensors", ".bin", ".json", ".txt"}
        files = sorted(path for path in local.rglob("*") if path.suffix in wanted and path.is_file())
        weights = [(path.relative_to(local).as_posix(), file_sha256(path)) for path in files]
    name = local.resolve().name if weights else model
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", name)[-60:]
    cache = Path(cache_dir) / f"embeddings_{slug}_{digest(name, weights, TEMPLATE_VERSION, list(texts))}.safetensors"

    from safetensors.torch import load_file, save

    if cache.exists():
        try:
            embeddings = load_file(cache)["embeddings"]
            if embeddings.dtype == torch.float32 and embeddings.ndim == 2 and len(embeddings) == len(texts):
                return embeddings
            log.warning("%s does not hold one float32 row for each of the %d items; encoding again", cache, len(texts))
        except Exception as error:
            log.warning("%s cannot be read (%s); encoding again", cache, type(error).__name__)

    embeddings = torch.from_numpy(
        _encoded_in_parts(texts, cache.with_suffix(".parts"), lambda: _load_encoder(model, local, device), batch_size)
    )
    write_whole(cache, save({"embeddings": embeddings}))
    shutil.rmtree(cache.with_suffix(".parts"))
    return embeddings


def _encoded_in_parts(texts: Sequence[str], folder: Path, load: Callable[[], "SentenceTransformer"], batch_size: int) -> np.ndarray:
    """[I, E] float32. The longest texts come first, ``AT_ONCE`` at a time; parts that an interrupted one left in ``folder`` are read."""
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    starts = range(0, len(texts), AT_ONCE)
    files = [folder / f"{start}.npy" for start in starts]
    missing = [(start, file) for start, file in zip(starts, files) if not file.exists()]
    if missing:
        encoder = load()
        log.info(
            "encoding %d item texts%s",
            len(texts),
            f"; {len(files) - len(missing)} of {len(files)} parts are done" if folder.exists() else "",
        )
        with progress(
            total=len(texts), initial=len(texts) - sum(min(AT_ONCE, len(texts) - start) for start, _ in missing), desc="texts"
        ) as bar:
            for start, file in missing:
                some = [texts[row] for row in order[start : start + AT_ONCE]]
                found = encoder.encode(some, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
                buffer = io.BytesIO()
                np.save(buffer, np.ascontiguousarray(found, dtype=np.float32))
                write_whole(file, buffer.getvalue())
                bar.update(len(some))
    in_order = np.concatenate([np.load(file) for file in files])
    embeddings = np.empty_like(in_order)
    embeddings[order] = in_order
    return embeddings


def _load_encoder(model: str, local: Path, device: str | torch.device) -> "SentenceTransformer":
    """Returns the encoder; never prompts, never runs code that comes with a model."""
    ways = "connect once, set train.text_model to a local directory, or set train.item_embeddings to a .npy file"
    if not local.is_dir() and (local.is_absolute() or model.startswith(".") or (model.count("/") != 1 and "/" in model)):
        raise UserError(f"train.text_model: no directory {model} (`python -m data.quick` fetches a small encoder); {ways}")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from sentence_transformers import SentenceTransformer

    source = str(local) if local.is_dir() else model
    try:
        return SentenceTransformer(source, device=str(device), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # OSError, but also what the hub client's HTTP library and damaged files raise
        if local.is_dir() or not _hub_answers():  # the hub client itself would try again for more than a minute
            raise _not_loaded(model, error, ways) from error
    try:
        return SentenceTransformer(source, device=str(device), trust_remote_code=False)
    except Exception as error:
        raise _not_loaded(model, error, ways) from error


def _not_loaded(model: str, error: Exception, ways: str) -> UserError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f"the sentence encoder {model} could not be loaded ({lines[0][:160].rstrip('.')}); {ways}")


def _hub_answers() -> bool:
    """Returns whether a download can be tried; looks once, for five seconds at most."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("0", "", "false", "no", "off"):
        return False
    try:
        request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
        with urllib.request.urlopen(request, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, HTTPException):
        return False


def load_embeddings(path: str | Path, num_items: int, read_up_to: int = READ_UP_TO) -> Tensor:
    """Reads item embeddings from a .npy file of float16, float32 or float64, row i for item i.

    Args:
        path: the file.
        num_items: I.
        read_up_to: bytes of float32 up to which the array is read. A larger one of float16 or float32 stays in its file, mapped into the
            memory: rows come from the disk when they are looked at, and the file must not be written to meanwhile.

    Returns:
        [I, E] float32; float16 where it is mapped and stored so.

    Raises:
        UserError: no such file, not a plain .npy array, another dtype or shape, or values that are not finite.
    """
    expected = f"expected a .npy file of float16 or float32, shape [{num_items}, width], one row for each item"
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # mapped: a header that promises too much allocates nothing
    except FileNotFoundError:
        raise UserError(f"train.item_embeddings: there is no file {path}; {expected}") from None
    except Exception as error:  # numpy's parser of headers raises SyntaxError, TokenError and more on a damaged one
        raise UserError(f"train.item_embeddings: {path} cannot be read as a plain array; {expected}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"train.item_embeddings: {path} is an archive of arrays; {expected}")
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise UserError(f"train.item_embeddings: {path} holds {array.dtype}; {expected}")
    if array.ndim != 2 or array.shape[0] != num_items or array.shape[1] == 0:
        raise UserError(f"train.item_embeddings: {path} has shape {list(array.shape)}; {expected}")
    if array.size * 4 > read_up_to and array.dtype != np.float64 and array.flags.c_contiguous:
        embeddings = torch.from_numpy(array)
    else:
        with np.errstate(over="ignore"):
            embeddings = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    finite = torch.empty(len(embeddings), dtype=torch.bool)  # written in place: results kept between large temporaries tear the heap
    for into, rows in zip(finite.split(ROWS_AT_ONCE), embeddings.split(ROWS_AT_ONCE)):
        into.copy_(torch.isfinite(rows).all(dim=1))
    if not finite.all():
        row = int(torch.nonzero(~finite)[0])
        raise UserError(f"train.item_embeddings: {path} has NaN or infinite values ({int((~finite).sum())} rows, the first is row {row})")
    return embeddings
