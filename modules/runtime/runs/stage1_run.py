"""A run of stage 1 as a whole: what made the codes, and the semantic IDs; described in and loaded from one directory."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeVar, cast, get_type_hints

import torch

from data.processed import ItemData
from data.schemas import UserError
from modules.runtime.config.types import coerce
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.runs.run import Run
from modules.runtime.training.checkpoint import WEIGHTS, load_weights
from modules.tokenizer.base import ItemTokenizer, TokenizerConfig
from modules.tokenizer.registry import kind_of, make_tokenizer, option_of
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


def write_stage1_config(run: Run, config: TokenizerConfig, items: ItemData) -> None:
    """Writes config.json: the tokenizer's kind and shape, and the hash of the embeddings it is trained on."""
    shape = {"tokenizer": {"kind": run.settings["tokenizer"], **_as_json(config)}}
    known = {"embeddings_hash": items.embeddings_hash, "collaborative_weight": run.settings["collaborative_weight"]}
    run.write("config.json", json.dumps({**shape, **known}, indent=1))


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


def refuse_contradictions(folder: Path, options: DecoderOptions) -> None:
    """Checks what a config of stage 2 says of stage 1 against the run of the tokenizer.

    Raises:
        UserError: a repeated option (vae_*) that differs, or histories split in another way than those of collaborative vectors.
    """
    kind, described = described_tokenizer(folder)
    trained, mistakes = {option_of(field): value for field, value in described.items()}, []
    for name, given in options.repeated().items():
        value = given.name if isinstance(given, Enum) else list(given) if isinstance(given, tuple) else given
        if name not in trained:
            mistakes.append(f"train.{name} is {value} but the tokenizer in {folder} is {kind!r}, which has none; remove the line")
            continue
        found = trained[name]
        sizes = [size if isinstance(size, list) else [size] * cast(int, described["num_levels"]) for size in (value, found)]
        if value != found and not (name == "vae_codebook_size" and sizes[0] == sizes[1]):
            mistakes.append(
                f"train.{name} is {value} but the tokenizer in {folder} was trained with {found}; "
                "remove the line (stage 2 takes these values from there) or train stage 1 with it"
            )
    if mistakes:
        raise UserError(*mistakes)
    if options.split_by == "time" and read_config(folder).get("collaborative_weight"):
        raise UserError(
            f"the tokenizer in {folder} has collaborative vectors from histories split by leave-one-out, which train.split_by = 'time' "
            "would test on; train stage 1 with train.collaborative_weight = 0, or set train.split_by = 'leave_one_out'"
        )
