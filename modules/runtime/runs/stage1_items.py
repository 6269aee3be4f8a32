"""The items as stage 1 reads them: vectors of their texts or from a file, with collaborative features if wished."""

import torch
from torch import Tensor

from data.cooccurrence import append_collaborative
from data.corpus import Corpus
from data.processed import ItemData, known_by_id_alone, load_corpus, load_items, meaningless_items
from data.schemas import UserError
from data.splits import split_hash
from modules.runtime.options.rqvae import RqVaeOptions
from modules.runtime.runs.data_record import DataRecord, data_record
from modules.tokenizer.registry import kind_of


def load_stage1_items(options: RqVaeOptions, corpus: Corpus, device: torch.device) -> ItemData:
    """The catalogue with its vectors, collaborative features included."""
    if needs_no_vectors(options, corpus):
        return meaningless_items(corpus, options.vae_input_dim, options.seed)
    items = load_items(options.data, corpus, options.item_embeddings, options.text_model, device)
    check_width(items.embeddings, options.vae_input_dim, options.collaborative_dim if options.collaborative_weight else 0)
    if options.collaborative_weight:
        items = append_collaborative(items, corpus.histories, options.collaborative_weight, options.collaborative_dim)
    return items


def needs_no_vectors(options: RqVaeOptions, corpus: Corpus) -> bool:
    """Is nothing known of the items, and the tokenizer one that looks at nothing?"""
    return options.item_embeddings is None and not kind_of(options.tokenizer).tokenizer.reads_vectors and known_by_id_alone(corpus)


def check_width(embeddings: Tensor, expected: int, appended: int) -> None:
    """Refuses embeddings that, with ``appended`` collaborative features, have another width than the config says."""
    found = embeddings.shape[1] + appended
    if found != expected:
        what = f"{found} wide, of which train.collaborative_dim = {appended}" if appended else f"{found} wide"
        raise UserError(
            f"train.vae_input_dim is {expected} but the item embeddings are {what}; set train.vae_input_dim = {found} or change them"
        )


def data_of_finished(options: RqVaeOptions) -> DataRecord:
    """What the data are now; vectors that come of texts are not made for it."""
    corpus = load_corpus(options.data)
    vectors = None
    if options.item_embeddings is not None:
        vectors = load_stage1_items(options, corpus, torch.device("cpu")).embeddings_hash
    return data_record(corpus, split_hash(corpus.histories), vectors)
