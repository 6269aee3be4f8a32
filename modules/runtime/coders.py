"""A run of stage 1 as a whole: what made the codes, and the semantic IDs; described in and loaded from one directory."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeVar, get_type_hints

import torch

from data.processed import ItemData
from data.schemas import UserError
from modules.runtime.checkpoint import WEIGHTS, load_weights
from modules.runtime.run import Run
from modules.runtime.values import coerce
from modules.tokenizer.base import ItemTokenizer, TokenizerConfig
from modules.tokenizer.registry import kind_of, make_tokenizer
from modules.tokenizer.semids import SemanticIdTokenizer

Config = TypeVar("Config", bound=TokenizerConfig)


class TrainedTokenizer(NamedTuple):
    """What a run of stage 1 gives."""

    model: ItemTokenizer
    tokenizer: SemanticIdTokenizer


class DescribedTokenizer(NamedTuple):
    """What config.json says of a tokenizer."""

    kind: str  # its name in train.tokenizer
    fields: dict[str, object]  # of the kind's config, as JSON has them


def describe_stage_one(run: Run, config: TokenizerConfig, items: ItemData) -> None:
    """Writes config.json: the tokenizer's kind and shape, and the hash of the embeddings it is trained on.

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
    shape = {"tokenizer": {"kind": run.settings["tokenizer"], **_as_json(config)}}
    known = {"embeddings_hash": items.embeddings_hash, "collaborative_weight": run.settings["collaborative_weight"]}
    run.write(path.name, json.dumps({**shape, **known}, indent=1))


def load_tokenizer(folder: Path, device: torch.device | str = "cpu") -> TrainedTokenizer:
    """Reads a run of stage 1; the codes of its model are those of its tokenizer.

    Raises:
        UserError: not such a run, or a damaged one.
    """
    kind, described = described_tokenizer(folder)
    coder = make_tokenizer(kind, restored(described, kind_of(kind).config))
    load_weights(coder, folder / WEIGHTS)
    return TrainedTokenizer(coder.to(device).eval(), SemanticIdTokenizer.load(folder).to(device))


def described_tokenizer(folder: Path) -> DescribedTokenizer:
    """The tokenizer of a run of stage 1, also of one by an earlier version; a field that the run does not know has its default.

    Raises:
        UserError: not such a run, or a kind of tokenizer that this version does not know.
    """
    contents = read_config(folder)
    for section in ("tokenizer", "direct", "rqvae"):  # the last two are an earlier version's, the RQ-VAE's without "kind"
        described = contents.get(section)
        if isinstance(described, dict):
            break
    else:
        raise UserError(f"{folder} is not a run of train_rqvae.py; give the directory that it printed as 'run'")
    kind = str(described.pop("kind", "rqvae"))
    config = kind_of(kind).config
    if section == "direct":  # one config was that of all kinds without a network
        described = {name: value for name, value in described.items() if name != "balanced" or hasattr(config, name)}
    return DescribedTokenizer(kind, _as_json(config()) | described)


def _as_json(config: TokenizerConfig) -> dict[str, object]:
    """The fields of a config as a JSON file gives them back."""
    values = {name: value.name if isinstance(value, Enum) else value for name, value in asdict(config).items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


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
