"""A trained run of TIGER as a whole: encoder-decoder, tokenizer and titles, saved to and loaded from one directory.

``sasrec_run`` has SASRec's. How a run is searched and whose users it knows is here for both.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.io.files import write_whole
from data.schemas import UserError
from modules.catalogue import Catalogue
from modules.memory import Memory
from modules.mixture import check_weights
from modules.model import DecoderConfig, EncoderDecoderRetrievalModel
from modules.nearest import directions
from modules.runtime.runs.memory_files import load_memory
from modules.runtime.runs.text_vectors import load_vectors
from modules.runtime.training.checkpoint import WEIGHTS, load_weights
from modules.tokenizer.semids import SemanticIdTokenizer

SEARCH, USERS, ITEMS = "search.json", "users.json", "items.json"

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What a run computes in, by the name that its ``search.json`` has, and autocast's dtype."""


def precision_name(dtype: torch.dtype | None) -> str:
    """The name in PRECISIONS of autocast's dtype."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


class SearchSettings(NamedTuple):
    """How a run was evaluated, and is searched ever after."""

    beam_size: int = 50  # 0: the model has no beams, as it scores every item
    precision: str = "fp32"  # one of PRECISIONS
    order: Tensor | None = None  # [I] rank of every item among those of equal score; None: the tokenizer's seeded order
    memory_weight: float = 0.0  # share of the memory in the score, in [0, 1]
    head_weight: float = 0.0  # share of the item head in the score; the model has what both leave
    head_scores: str = "full"  # or "found": over all items, or over those that the search found


class Retriever(NamedTuple):
    """What turns histories into items; ``modules.runtime.runs.searcher`` asks it."""

    model: EncoderDecoderRetrievalModel
    tokenizer: SemanticIdTokenizer
    titles: list[str]  # [I]
    settings: SearchSettings = SearchSettings()
    memory: Memory | None = None  # where settings.memory_weight > 0


def record_search(folder: Path, settings: SearchSettings) -> None:
    """Writes how the run's figures were made."""
    order = None if settings.order is None else settings.order.tolist()
    write_whole(folder / SEARCH, json.dumps({**settings._asdict(), "order": order}))


def load_search(folder: Path) -> SearchSettings | None:
    """Reads what ``record_search`` wrote; None for a run of before it was written.

    Raises:
        UserError: a damaged file.
    """
    path = folder / SEARCH
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        order = None if found["order"] is None else torch.tensor(found["order"], dtype=torch.int64)
        if found["precision"] not in PRECISIONS:
            raise ValueError(f"precision {found['precision']!r}")
        memory, head = float(found.get("memory_weight", 0)), float(found.get("head_weight", 0))
        check_weights([memory, head])
        return SearchSettings(int(found["beam_size"]), found["precision"], order, memory, head, str(found.get("head_scores", "full")))
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again, or use the version that wrote it") from error


def user_row(folder: Path, key: str) -> int:
    """The row of the user with an external id, by which the model knows users.

    Raises:
        UserError: no such user, or a run that keeps no users.
    """
    try:
        keys = json.loads((folder / USERS).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"the run in {folder} knows no users (no {USERS}: its model has no user token, or it was shared, which leaves users out); "
            "ask without --user"
        ) from error
    if key not in keys:
        raise UserError(f"the run in {folder} was trained on no user {key!r}; give an id such as {keys[0]!r}, or leave --user out")
    return int(keys.index(key))


def write_stage2_files(
    folder: Path, config: DecoderConfig, tokenizer: SemanticIdTokenizer, titles: Sequence[str], user_keys: Sequence[str], begun: bool
) -> None:
    """Writes all of a run but its weights: shape, tokenizer, titles and, where the model tells users apart, their ids.

    ``begun``: it has trained already.

    Raises:
        UserError: the directory's weights were trained on other semantic IDs, as when stage 1 was trained again since.
    """
    if (
        begun
        and (folder / "tokenizer.json").exists()
        and not torch.equal(SemanticIdTokenizer.load(folder).sem_ids, tokenizer.sem_ids.cpu())
    ):
        raise UserError(
            f"the run in {folder} was trained on other semantic IDs than stage 1 has now; "
            "set train.resume = False or another train.save_dir_root to train on the new ones"
        )
    write_whole(folder / "config.json", json.dumps({"decoder": asdict(config), "vocab_sizes": tokenizer.vocab_sizes}, indent=1))
    write_whole(folder / "titles.json", json.dumps(list(titles)))
    if config.num_user_buckets:
        write_whole(folder / USERS, json.dumps(list(user_keys)))
    tokenizer.save(folder)


def load_retriever(folder: Path, device: torch.device | str = "cpu") -> Retriever:
    """Reads a run of TIGER.

    Raises:
        UserError: not such a run, or a damaged one.
    """
    try:
        described = json.loads((folder / "config.json").read_text())
        titles = json.loads((folder / "titles.json").read_text())
        config, vocab_sizes = DecoderConfig(**described["decoder"]), described["vocab_sizes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a run of train_decoder.py ({error}); give the directory that it printed as 'run'") from error
    tokenizer = SemanticIdTokenizer.load(folder).to(device)
    catalogue = None
    if config.needs_catalogue:
        vectors = load_vectors(folder, tokenizer.num_items) if config.text_projection else None
        texts = None if vectors is None else directions(vectors).to(device)
        catalogue = Catalogue(tokenizer.trie, tokenizer.sem_ids, texts=texts)
    model = EncoderDecoderRetrievalModel(config, vocab_sizes, catalogue)
    load_weights(model, folder / WEIGHTS)
    settings = load_search(folder) or SearchSettings()
    memory = load_memory(folder, tokenizer.num_items).to(device) if settings.memory_weight > 0 else None
    return Retriever(model.to(device).eval(), tokenizer, titles, settings, memory)
