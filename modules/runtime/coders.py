"""A run of stage 1 as a whole: what made the codes, and the semantic IDs; described in and loaded from one directory."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple, TypeVar, get_type_hints

import torch

from data.processed import ItemData
from data.schemas import UserError
from modules.rqvae import RqVae, RqVaeConfig
from modules.runtime.checkpoint import WEIGHTS, load_weights
from modules.runtime.config.types import coerce
from modules.runtime.run import Run
from modules.tokenizer.direct import DirectConfig, DirectTokenizer
from modules.tokenizer.kinds import direct_tokenizer
from modules.tokenizer.semids import SemanticIdTokenizer

Config = TypeVar("Config", RqVaeConfig, DirectConfig)


class TrainedTokenizer(NamedTuple):
    """What a run of stage 1 gives."""

    model: RqVae | DirectTokenizer
    tokenizer: SemanticIdTokenizer


def describe_stage_one(run: Run, config: RqVaeConfig | DirectConfig, items: ItemData) -> None:
    """Writes config.json: the tokenizer's shape and the hash of the embeddings it is trained on.

    Raises:
        UserError: the directory was trained on other embeddings, as when the file of the same name was changed since.
    """
    path = run.folder / "config.json"
    before = read_config(run.folder).get("embeddings_hash") if run.begun and path.exists() else None
    if before is not None and before != items.embeddings_hash:
        raise UserError(
            f"the run in {run.folder} was begun on other item embeddings than there are now; "
            "set train.resume = False or another train.save_dir_root to train on the new ones"
        )
    shape = {"rqvae": asdict(config) | {"mode": config.mode.name}} if isinstance(config, RqVaeConfig) else {"direct": asdict(config)}
    known = {"embeddings_hash": items.embeddings_hash, "collaborative_weight": run.settings["collaborative_weight"]}
    run.write(path.name, json.dumps({**shape, **known}, indent=1))


def load_tokenizer(folder: Path, device: torch.device | str = "cpu") -> TrainedTokenizer:
    """Reads a run of stage 1; the codes of its model are those of its tokenizer.

    Raises:
        UserError: not such a run, or a damaged one.
    """
    rqvae, direct = (read_config(folder).get(kind) for kind in ("rqvae", "direct"))
    coder: RqVae | DirectTokenizer
    if isinstance(rqvae, dict):
        coder = RqVae(restored(rqvae, RqVaeConfig))
    elif isinstance(direct, dict):
        coder = direct_tokenizer(restored(direct, DirectConfig))
    else:
        raise UserError(f"{folder} is not a run of train_rqvae.py; give the directory that it printed as 'run'")
    load_weights(coder, folder / WEIGHTS)
    return TrainedTokenizer(coder.to(device).eval(), SemanticIdTokenizer.load(folder).to(device))


def restored(described: Mapping[str, object], kind: type[Config]) -> Config:
    """The config that config.json describes, Enum and tuples restored; a field that it lacks keeps its default.

    Raises:
        UserError: a key or a value that this version does not know.
    """
    hints = get_type_hints(kind)
    unknown = described.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise UserError(
            f"config.json has keys that this version does not know: {', '.join(sorted(unknown))}; use the version that wrote it"
        )
    try:
        values = {name: coerce(value, hints[name]) for name, value in described.items()}
        return kind(**values)  # type: ignore[arg-type]  # coerce gave every field its type
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"config.json cannot be read ({error}); use the version that wrote it") from error


def read_config(folder: Path) -> dict[str, object]:
    """A run's config.json."""
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder} is not a run of train_rqvae.py or train_decoder.py ({error}); give the directory printed as 'run'"
        ) from error
