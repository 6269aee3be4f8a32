"""A finished run of stage 2 opened again with its data: the model and the histories as its report was made from them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from data.processed import load_corpus
from data.schemas import UserError
from modules.runtime.config.main import resolve
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.runs.recommender import Recommender
from modules.runtime.runs.sequences import Sequences, split_sequences
from modules.runtime.runs.stage2_models import find_stage_one, load_recommender
from modules.runtime.runs.stage2_run import load_search, precision_name
from modules.runtime.runs.text_vectors import load_vectors
from modules.runtime.training.device import place

ASKS_NOBODY = ("wandb_logging=False", "push_decoder_to_hf=False")
"""A finished run opens without the services that its training may have used."""


class Finished(NamedTuple):
    recommender: Recommender  # on the device; searched as the run was
    sequences: Sequences  # on the device
    filter_history: bool
    cutoffs: tuple[int, ...]
    batch_size: int  # users a batch


def open_finished(run: Path, device: str = "auto", dataset_folder: str | None = None, beam_size: int | None = None) -> Finished:
    """Opens a run with the data that it was trained on.

    Args:
        run: the directory of a finished run of train_decoder.py.
        device: auto, cuda, mps or cpu.
        dataset_folder: where the data lie now; None: where the run was trained from.
        beam_size: another one than the run's; None: its own.

    Raises:
        UserError: no finished run, or data that are not those it was trained on.
    """
    try:
        recorded = json.loads((run / "metrics.json").read_text()).get("data", {})
        elsewhere = [] if dataset_folder is None else [f"dataset_folder={dataset_folder}"]
        options = resolve(DecoderOptions, [str(run / "config.gin"), *ASKS_NOBODY, *elsewhere])
    except (OSError, ValueError, AttributeError, UserError) as error:
        raise UserError(
            f"{run} is not a finished run of train_decoder.py ({error}); give the directory that it printed as 'saved'"
        ) from error
    searched = load_search(run)
    # A run of before its precision was recorded is searched in what its settings mean on this machine.
    placement = place(device, options.amp, options.mixed_precision_type if searched is None else "no")
    recommender = load_recommender(run, placement.device)
    settings = recommender.settings
    if searched is None:
        settings = settings._replace(beam_size=options.beam_size, precision=precision_name(placement.autocast_dtype))
    if beam_size is not None:
        settings = settings._replace(beam_size=beam_size)
    config = replace(options.data, force_process=False)
    corpus = load_corpus(config)
    other = f"the data in {config.folder} are not those that the run in {run} was trained on"
    if corpus.item_keys != recommender.item_keys:
        known = len(recommender.item_keys)
        raise UserError(f"{other}: {len(corpus.item_keys):,} items, not its own {known:,}; give the folder that has these")
    sequences = split_sequences(corpus, options, placement.device)
    if recorded.get("split", sequences.split) != sequences.split:
        raise UserError(
            f"{other}: their histories and split are {sequences.split}, the run's {recorded['split']}; "
            "give the folder as it was, or train anew"
        )
    if settings.order is None:
        settings = settings._replace(order=sequences.order)
    return Finished(recommender.searched(settings), sequences, options.filter_history, options.top_k_eval_list, options.eval_batch_size)


def text_vectors(run: Path, num_items: int) -> Tensor | None:
    """The items' text vectors [I, E]: the run's own, or those of its run of stage 1 where that still lies; None where neither keeps any.

    Raises:
        UserError: damaged files.
    """
    options = resolve(DecoderOptions, [str(run / "config.gin"), *ASKS_NOBODY])
    try:
        stage_one = find_stage_one(options)
    except UserError:
        stage_one = None
    own = load_vectors(run, num_items)
    return own if own is not None or stage_one is None else load_vectors(stage_one, num_items)
