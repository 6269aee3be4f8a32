"""A finished run of stage 2 opened again with its data: model, tokenizer and histories as its report was made from them."""

import json
from pathlib import Path
from typing import NamedTuple

from data.processed import DataConfig, RecDataset, data_config, load_corpus
from data.schemas import UserError
from modules.runtime.card import read_settings
from modules.runtime.device import place
from modules.runtime.retriever import Retriever, SearchSettings, load_retriever, load_search, precision_name
from modules.runtime.sequences import Sequences, split_sequences

YOUNGER = {
    "force_dataset_process": False,
    "min_rating": 0.0,
    "k_core": 0,
    "max_history": None,
    "cold_items": None,
    "columns": (),
    "split_by": "leave_one_out",
    "split_quantiles": (0.8, 0.9),
}
"""Parameters that an older run's config.gin may lack, and what it did without them."""


class Finished(NamedTuple):
    retriever: Retriever  # on the device; its settings are those of the run
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
        beam_size: another one than the run's.

    Raises:
        UserError: no finished run, or data that are not those it was trained on.
    """
    try:
        settings = YOUNGER | read_settings((run / "config.gin").read_text())
        recorded = json.loads((run / "metrics.json").read_text()).get("data", {})
        config = _data_config(settings, dataset_folder)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{run} is not a finished run of train_decoder.py ({error}); give the directory that it printed as 'saved'"
        ) from error
    searched = load_search(run)
    # A run of before its precision was recorded is searched in what its settings mean on this machine.
    asked = "no" if searched is not None else str(settings["mixed_precision_type"])
    placement = place(device, bool(settings["amp"]), asked)
    retriever = load_retriever(run, placement.device)
    if searched is None:
        searched = SearchSettings(_number(settings["beam_size"]), precision_name(placement.autocast_dtype))
        retriever = retriever._replace(settings=searched)
    if beam_size is not None:
        retriever = retriever._replace(settings=retriever.settings._replace(beam_size=beam_size))
    corpus = load_corpus(config)
    other = f"the data in {config.folder} are not those that the run in {run} was trained on"
    if corpus.item_keys != retriever.tokenizer.info.item_keys:
        known = len(retriever.tokenizer.info.item_keys)
        raise UserError(f"{other}: {len(corpus.item_keys):,} items, not its own {known:,}; give the folder that has these")
    by, quantiles = str(settings["split_by"]), settings["split_quantiles"]
    assert isinstance(quantiles, (list, tuple))
    sequences = split_sequences(corpus, retriever.model.config, by, quantiles, _number(settings["seed"]), placement.device)
    if recorded.get("split", sequences.split) != sequences.split:
        raise UserError(
            f"{other}: their histories and split are {sequences.split}, the run's {recorded['split']}; "
            "give the folder as it was, or train anew"
        )
    if retriever.settings.order is None:
        retriever = retriever._replace(settings=retriever.settings._replace(order=sequences.order))
    cutoffs = settings["top_k_eval_list"]
    assert isinstance(cutoffs, (list, tuple))
    return Finished(retriever, sequences, bool(settings["filter_history"]), tuple(cutoffs), _number(settings["eval_batch_size"]))


def _data_config(settings: dict[str, object], folder: str | None) -> DataConfig:
    """The data that a run's config.gin names, an Enum by its member's name."""
    settings = settings | {"dataset": RecDataset[str(settings["dataset"])], "force_dataset_process": False}
    return data_config(settings if folder is None else settings | {"dataset_folder": folder})


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
