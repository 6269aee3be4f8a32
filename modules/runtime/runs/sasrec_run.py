"""A trained run of SASRec as a whole: model and catalogue, saved to and loaded from one directory.

It has no semantic IDs: the items' external ids, which a run of TIGER keeps with its tokenizer, stand in items.json.
Shape letters: I items, E text-embedding width.
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
from modules.nearest import directions
from modules.runtime.runs.stage2_run import ITEMS, SearchSettings, load_search
from modules.runtime.runs.text_vectors import load_vectors
from modules.runtime.training.checkpoint import WEIGHTS, load_weights
from modules.sasrec import SASRec, SASRecConfig


class SASRecRun(NamedTuple):
    """What scores items after histories; ``SASRecSearcher`` asks it."""

    model: SASRec
    item_keys: list[str]  # [I] external ids
    titles: list[str]  # [I]
    settings: SearchSettings = SearchSettings(beam_size=0)


def write_sasrec_files(folder: Path, config: SASRecConfig, item_keys: Sequence[str], titles: Sequence[str], begun: bool) -> None:
    """Writes all of a run but its weights: shape, external ids and titles. ``begun``: it has trained already.

    Raises:
        UserError: the directory's weights were trained on other items.
    """
    if begun and (folder / ITEMS).exists() and json.loads((folder / ITEMS).read_text()) != list(item_keys):
        raise UserError(
            f"the run in {folder} was trained on other items than the data have now; "
            "set train.resume = False or another train.save_dir_root to train on these"
        )
    write_whole(folder / "config.json", json.dumps({"sasrec": asdict(config)}, indent=1))
    write_whole(folder / "titles.json", json.dumps(list(titles)))
    write_whole(folder / ITEMS, json.dumps(list(item_keys)))


def load_sasrec(folder: Path, device: torch.device | str = "cpu") -> SASRecRun:
    """Reads a run of SASRec.

    Raises:
        UserError: not such a run, or a damaged one.
    """
    try:
        config = SASRecConfig(**json.loads((folder / "config.json").read_text())["sasrec"])
        titles, item_keys = (json.loads((folder / name).read_text()) for name in ("titles.json", ITEMS))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a run of SASRec ({error}); give the directory that train_decoder.py printed as 'run'") from error
    vectors = load_vectors(folder, len(item_keys)) if config.text else None
    model = make_sasrec(config, len(item_keys), vectors)
    load_weights(model, folder / WEIGHTS)
    settings = load_search(folder) or SearchSettings(beam_size=0)
    return SASRecRun(model.to(device).eval(), item_keys, titles, settings)


def make_sasrec(config: SASRecConfig, num_items: int, vectors: Tensor | None) -> SASRec:
    """A new model, with the text vectors [I, E] of a run of stage 1 where the config asks for them.

    Raises:
        UserError: it asks for them and there are none.
    """
    if config.text and vectors is None:
        raise UserError(
            "train.text_projection needs the items' text vectors and stage 1's run has none; train stage 1 again, or set it to False"
        )
    return SASRec(config, num_items, directions(vectors) if config.text and vectors is not None else None)
