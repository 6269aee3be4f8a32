"""A trained run as a whole: encoder-decoder, tokenizer and titles, saved to and loaded from one directory, and asked for items."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.io.files import write_whole
from data.schemas import PAD, SeqBatch, UserError
from modules.catalogue import Catalogue
from modules.decoding import SearchResult
from modules.model import DecoderConfig, EncoderDecoderRetrievalModel
from modules.runtime.checkpoint import WEIGHTS, load_weights
from modules.tokenizer.semids import SemanticIdTokenizer
from modules.tokenizer.trie import PrefixTrie


class Retriever(NamedTuple):
    """What turns histories into items."""

    model: EncoderDecoderRetrievalModel
    tokenizer: SemanticIdTokenizer
    titles: list[str]  # [I]

    def search(self, batch: SeqBatch, beam_size: int, seen: Tensor | None) -> SearchResult:
        """The ``beam_size`` best items of every history but those in ``seen`` [B, S]; ``tuples`` are those before the collision code."""
        tokenized = self.tokenizer(batch)
        return self.model.generate_next_sem_id(tokenized, self.tokenizer.trie, beam_size, seen, self.tokenizer.num_levels)


class Shortlist:
    """A retriever that can only find some of the items, such as those that training never saw; one more trie, the same model.

    A model that scores children of its own trie's nodes searches that trie and bars the other items.

    Args:
        retriever: finds all items.
        items: [J] their rows, at least one.
    """

    def __init__(self, retriever: Retriever, items: Tensor) -> None:
        tokenizer = retriever.tokenizer
        self.retriever, self.items = retriever, items.to(tokenizer.sem_ids.device)
        self.trie = PrefixTrie(tokenizer.sem_ids[self.items], tokenizer.vocab_sizes)
        self.row = torch.full((len(tokenizer.sem_ids),), PAD, device=self.items.device)
        self.row[self.items] = torch.arange(len(items), device=self.items.device)

    def search(self, batch: SeqBatch, beam_size: int, seen: Tensor | None) -> SearchResult:
        """As ``Retriever.search``; ``item_ids`` are rows of the whole catalogue, ``tuples`` nodes of the trie that is searched.

        In a trie of its own scores hold within the list: a collision code is scored among the items of the list that share the tuple.
        """
        model, tokenizer, _ = self.retriever
        if model.tree is not None:
            among = self.row != PAD
            return model.generate_next_sem_id(tokenizer(batch), tokenizer.trie, beam_size, seen, tokenizer.num_levels, among=among)
        barred = None if seen is None else torch.where(seen == PAD, PAD, self.row[seen.clamp(min=0)])
        found = model.generate_next_sem_id(tokenizer(batch), self.trie, beam_size, barred, tokenizer.num_levels)
        return found._replace(item_ids=torch.where(found.item_ids == PAD, PAD, self.items[found.item_ids.clamp(min=0)]))


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
    catalogue = Catalogue(tokenizer.trie, tokenizer.sem_ids) if config.needs_catalogue else None
    model = EncoderDecoderRetrievalModel(config, vocab_sizes, catalogue)
    load_weights(model, folder / WEIGHTS)
    return Retriever(model.to(device).eval(), tokenizer, titles)
