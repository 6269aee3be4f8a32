"""A trained run as a whole: encoder-decoder, tokenizer and titles, saved to and loaded from one directory, and asked for items."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.cache import write_whole
from data.schemas import SeqBatch, UserError
from modules.decoding import SearchResult
from modules.model import DecoderConfig, EncoderDecoderRetrievalModel
from modules.runtime.checkpoint import WEIGHTS, load_weights
from modules.tokenizer.semids import SemanticIdTokenizer


class Retriever(NamedTuple):
    """What turns histories into items."""

    model: EncoderDecoderRetrievalModel
    tokenizer: SemanticIdTokenizer
    titles: list[str]  # [I]

    def search(self, batch: SeqBatch, beam_size: int, seen: Tensor | None) -> SearchResult:
        """The ``beam_size`` best items of every history but those in ``seen`` [B, S]; ``tuples`` are those before the collision code."""
        tokenized = self.tokenizer(batch)
        return self.model.generate_next_sem_id(tokenized, self.tokenizer.trie, beam_size, seen, self.tokenizer.num_levels)


def describe_retriever(folder: Path, config: DecoderConfig, tokenizer: SemanticIdTokenizer, titles: Sequence[str], begun: bool) -> None:
    """Writes all of a run but its weights: shape, tokenizer and titles. ``begun``: it has trained already.

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
    tokenizer.save(folder)


def load_retriever(folder: Path, device: torch.device | str = "cpu") -> Retriever:
    """Reads a run of stage 2.

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
    model = EncoderDecoderRetrievalModel(config, vocab_sizes)
    load_weights(model, folder / WEIGHTS)
    return Retriever(model.to(device).eval(), tokenizer, titles)
