"""The front door of the data: a config becomes a corpus, and a corpus the items that stage 1 and the histories that stage 2 read.

Importing this module is cheap: table library, torch_geometric and sentence_transformers load when a corpus is read.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data.batches import SeqData
from data.corpus import Corpus
from data.item_embeddings import ROWS_AT_ONCE, ItemData, embed_texts, load_embeddings
from data.item_text import bare_text
from data.schemas import UserError
from data.sources.registry import DataConfig, RecDataset, chosen_filters, data_mistakes, find_source, time_mistakes

__all__ = [
    "DataConfig", "ItemData", "RecDataset", "SeqData", "data_mistakes", "known_by_id_alone", "load_corpus", "load_items",
    "meaningless_items", "time_mistakes",
]  # fmt: skip


def load_corpus(config: DataConfig) -> Corpus:
    """Returns the corpus, from the cache in the dataset folder when its raw files have been read before.

    Raises:
        UserError: an unknown source or split, or raw files that are missing or not what they should be.
    """
    if not isinstance(config.dataset, RecDataset):
        sources = ", ".join(f"%data.processed.RecDataset.{source.name}" for source in RecDataset)
        raise UserError(f"train.dataset is {config.dataset!r}; expected one of {sources}")
    mistakes = list(data_mistakes(config))
    if mistakes:
        raise UserError(*mistakes)
    at_home = replace(config, folder=str(Path(config.folder).expanduser()))
    return find_source(config.dataset).load(at_home, chosen_filters(config)).corpus


def load_items(
    config: DataConfig, corpus: Corpus, item_embeddings: str | None, text_model: str, device: str | torch.device = "cpu"
) -> ItemData:
    """Returns the catalogue with its embeddings: read from a file if one is given, else encoded once and cached.

    Args:
        config: names the folder of the cache.
        corpus: what ``load_corpus`` returned.
        item_embeddings: a .npy file with one row for each item, or None.
        text_model: the sentence encoder, a hub name or a directory; not looked at when ``item_embeddings`` is given.
        device: where to encode.
    """
    if not item_embeddings and known_by_id_alone(corpus):
        raise UserError(
            f"nothing is known of the items in {config.folder} but their ids, from which no semantic IDs can be made; "
            "supply their texts or set train.item_embeddings to a .npy file with a row for each"
        )
    if item_embeddings:
        embeddings = load_embeddings(Path(item_embeddings).expanduser(), len(corpus.item_keys))
    else:
        embeddings = embed_texts(corpus.texts, text_model, Path(config.folder).expanduser() / "processed", device)
    return _with_hash(embeddings, corpus)


def known_by_id_alone(corpus: Corpus) -> bool:
    """Is nothing known of any item but its id?"""
    return all(text == bare_text(key) for key, text in zip(corpus.item_keys, corpus.texts))


def meaningless_items(corpus: Corpus, width: int, seed: int) -> ItemData:
    """Returns the catalogue with random vectors [I, width], for a tokenizer that looks at none."""
    return _with_hash(torch.randn(len(corpus.item_keys), width, generator=torch.Generator().manual_seed(seed)), corpus)


def _with_hash(embeddings: Tensor, corpus: Corpus) -> ItemData:
    sha = hashlib.sha256()
    for rows in embeddings.split(ROWS_AT_ONCE):
        sha.update(rows.numpy().astype("<f4").tobytes())
    return ItemData(embeddings, corpus.item_keys, corpus.titles, sha.hexdigest()[:16])
