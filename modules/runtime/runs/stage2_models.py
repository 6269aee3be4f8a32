"""The models of stage 2, which train.model names: made for a training from what stage 1 left, and loaded from a run."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.corpus import Corpus
from data.schemas import UserError
from modules.catalogue import Catalogue
from modules.memory import Memory
from modules.model import EncoderDecoderRetrievalModel
from modules.nearest import directions
from modules.runtime.config.declaration import filled
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.runs.hub import find_snapshot
from modules.runtime.runs.recommender import Recommender
from modules.runtime.runs.sasrec_run import SASRecRun, load_sasrec, make_sasrec
from modules.runtime.runs.sasrec_searcher import SASRecSearcher
from modules.runtime.runs.searcher import Searcher
from modules.runtime.runs.sequences import Sequences
from modules.runtime.runs.stage1_run import read_config, refuse_contradictions
from modules.runtime.runs.stage2_run import Retriever, SearchSettings, load_retriever, precision_name
from modules.runtime.runs.text_vectors import load_vectors
from modules.runtime.training.device import Placement
from modules.tokenizer.semids import SemanticIdTokenizer


class StageOne(NamedTuple):
    """What a run of stage 1 left for stage 2."""

    folder: Path
    tokenizer: SemanticIdTokenizer
    vectors: Tensor | None  # [I, E], where the run keeps them


def find_stage_one(options: DecoderOptions) -> Path | None:
    """The run of stage 1 that the options name; None where there is none and none is needed.

    Raises:
        UserError: it is needed and not there, or it contradicts the options.
    """
    try:
        folder = find_snapshot(options.pretrained_rqvae_path, options.dataset_split, "rqvae")
    except UserError:
        if options.model == "tiger" or options.text_projection:
            raise
        return None
    refuse_contradictions(folder, options)
    return folder


def load_stage_one(folder: Path, corpus: Corpus) -> StageOne:
    """Reads a run of stage 1.

    Raises:
        UserError: it is damaged, or was made for other items than the corpus has.
    """
    tokenizer = SemanticIdTokenizer.load(folder)
    tokenizer.check_items(corpus.item_keys)
    return StageOne(folder, tokenizer, load_vectors(folder, tokenizer.num_items))


def make_recommender(
    options: DecoderOptions, corpus: Corpus, sequences: Sequences, stage_one: StageOne | None, memory: Memory | None, placement: Placement
) -> Recommender:
    """A new model, as it will be searched.

    Args:
        options: its shape, and how it is searched.
        corpus: the items.
        sequences: what it will be trained on.
        stage_one: what ``load_stage_one`` gave.
        memory: where options.memory_weight > 0.
        placement: where it is.

    Raises:
        UserError: it needs text vectors, and stage 1 left none.
    """
    vectors, precision = None if stage_one is None else stage_one.vectors, precision_name(placement.autocast_dtype)
    if options.model == "sasrec":
        scorer = make_sasrec(options.sasrec, len(corpus.item_keys), vectors).to(placement.device)
        return SASRecSearcher(SASRecRun(scorer, corpus.item_keys, corpus.titles, SearchSettings(0, precision, sequences.order)))
    assert stage_one is not None  # find_stage_one refuses its absence
    tokenizer, catalogue = stage_one.tokenizer.to(placement.device).ordered_by(sequences.order), None
    if options.decoder.needs_catalogue:
        texts = directions(vectors).to(placement.device) if vectors is not None and options.text_projection else None
        catalogue = Catalogue(tokenizer.trie, tokenizer.sem_ids, sequences.data.popularity > 0, texts)
    model = EncoderDecoderRetrievalModel(options.decoder, tokenizer.vocab_sizes, catalogue).to(placement.device)
    settings = filled(SearchSettings, options, precision=precision, order=sequences.order)
    return Searcher(Retriever(model, tokenizer, corpus.titles, settings, memory), cuda_graphs=options.cuda_graphs)


def load_recommender(folder: Path, device: torch.device | str = "cpu") -> Recommender:
    """A trained run of stage 2, as it was evaluated.

    Raises:
        UserError: not such a run, or a damaged one.
    """
    if "sasrec" in read_config(folder):
        return SASRecSearcher(load_sasrec(folder, device))
    return Searcher(load_retriever(folder, device))


def check_pretrained(folder: Path, recommender: Recommender) -> None:
    """Refuses weights that mean other items or codes; items may have been added behind those that the run knew.

    Raises:
        UserError: the run's model, items or semantic IDs are others than the recommender's.
    """
    before = load_recommender(folder)
    known, why = len(before.item_keys), ""
    if before.name != recommender.name:
        why = f"is one of {before.name}, not of {recommender.name}"
    elif before.item_keys != recommender.item_keys[:known]:
        why = "was trained on other items, or in another order"
    elif before.sem_ids is not None and recommender.sem_ids is not None:
        ours = recommender.sem_ids[:known].cpu()
        if before.sem_ids.shape != ours.shape or not torch.equal(before.sem_ids, ours):
            why = "was trained on other semantic IDs, by which its weights know the items"
    if why:
        raise UserError(f"train.pretrained_decoder_path: the run in {folder} {why}; give another one, or remove the line")
