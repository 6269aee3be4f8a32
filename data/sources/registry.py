"""The sources a config can name, what each of them has, and how one is found.

``RecDataset.NAME`` is read by ``data/sources/name.py``, which ends in ``SOURCE = Source(...)``. Nothing here or at the top of such a file
imports a table library, so that a config is checked at once.

To add a source: its file, its member of ``RecDataset`` below, ``configs/{rqvae,decoder}_name.gin``, a row in the table of
docs/data.md, and ``tests/data/sources/test_name.py``, which ends in ``EXAMPLES``.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

from data.corpus import LoadedCorpus
from data.filters import Filters


class RecDataset(Enum):
    """The sources a config can name."""

    AMAZON = 1  # 2014, 5-core, as P5 packed it
    CUSTOM = 2
    ML_1M = 3
    ML_32M = 4  # and what has its layout, such as ml-latest-small
    AMAZON_2014 = 5  # the raw files
    AMAZON_2023 = 6
    SYNTHETIC = 7


@dataclass(frozen=True)
class DataConfig:
    """Which data: a source, the folder it lies in, one split of it (for CUSTOM the files' name), and what of it is kept.

    ``None`` stands for the source's own default. ``columns`` are "role=name" for CUSTOM, as ``data.custom`` reads them; so are
    ``unlisted_items``, what becomes of interactions with items that no row describes, and the ``encoding`` of text files.
    """

    dataset: RecDataset
    folder: str
    split: str
    force_process: bool = False
    min_rating: float = 0.0
    k_core: int = 0
    max_history: int | None = None  # 0 keeps all
    cold_items: bool | None = None
    columns: tuple[str, ...] = ()
    unlisted_items: Literal["refuse", "drop", "keep"] = "refuse"
    encoding: str = "utf-8"


class Prepared(NamedTuple):
    """Who filtered a source's interactions before us, to what, and the source that has all of them."""

    by: str
    kind: str
    raw: str


class Source(NamedTuple):
    """How a source is read, and what it has; everything that the rest of the project knows of it."""

    load: Callable[[DataConfig, Filters], LoadedCorpus]  # from the cache, or from raw files, which it may download; raises UserError
    splits: tuple[str, ...] = ()  # what train.dataset_split can be; (): a name that load checks
    max_history: int = 0  # interactions of a user that are kept unless a config says otherwise; 0: all
    keeps_cold: bool = False  # items without an interaction stay in the catalogue unless a config says otherwise
    has_times: bool = True  # the corpus has the time of each interaction
    takes_columns: bool = False  # train.columns can name the columns of its files
    prepared: Prepared | None = None  # somebody filtered its interactions before, so that train.k_core and the like cannot


def find_source(dataset: RecDataset) -> Source:
    """Returns the ``SOURCE`` of ``data/sources/<name in lower case>.py``."""
    source = importlib.import_module(f"data.sources.{dataset.name.lower()}").SOURCE
    assert isinstance(source, Source), f"data/sources/{dataset.name.lower()}.py: SOURCE is no Source"
    return source


def chosen_filters(config: DataConfig) -> Filters:
    """Returns what of the source is kept: the config's choice, else the source's."""
    source = find_source(config.dataset)
    history = source.max_history if config.max_history is None else config.max_history
    cold = source.keeps_cold if config.cold_items is None else config.cold_items
    return Filters(float(config.min_rating), config.k_core, history, cold)


def no_suggestion(name: str, known: Sequence[str]) -> str:
    """Ends a sentence about an unknown name without naming a near one."""
    return ""


def data_mistakes(config: DataConfig, suggest: Callable[[str, Sequence[str]], str] = no_suggestion) -> Iterator[str]:
    """A sentence for everything in the config that its source does not have; reads no file.

    Args:
        config: names the source.
        suggest: ends the sentence about an unknown split; given the split and those that there are.
    """
    name, source = config.dataset.name, find_source(config.dataset)
    if source.splits and config.split not in source.splits:
        *most, last = source.splits
        known = f"{', '.join(most)} or {last}" if most else last
        yield f"train.dataset_split is {config.split!r}; train.dataset {name} has {known}{suggest(config.split, source.splits)}"
    if source.prepared:
        by, kind, raw = source.prepared
        for parameter in ("min_rating", "k_core", "max_history", "cold_items"):
            if getattr(config, parameter):
                needs = f"needs raw interactions, and train.dataset {name} is {by}'s finished {kind}"
                yield f"train.{parameter} {needs}; leave it out or take {raw}"
    if source.takes_columns:
        if not known_encoding(config.encoding):
            yield f"train.encoding is {config.encoding!r}; expected one that Python knows, such as utf-8, cp1252, gbk or shift_jis"
        return
    if config.columns:
        yield f"train.columns names the columns of your own files and train.dataset is {name}; leave it out or set CUSTOM"
    for parameter, default in (("unlisted_items", "refuse"), ("encoding", "utf-8")):
        if getattr(config, parameter) != default:
            yield f"train.{parameter} is for your own files and train.dataset is {name}; leave it out or set CUSTOM"


def known_encoding(name: str) -> bool:
    """Is it the name of an encoding of text?"""
    try:
        return isinstance("text".encode(name), bytes)
    except (LookupError, UnicodeError, ValueError):
        return False


def time_mistakes(config: DataConfig) -> Iterator[str]:
    """A sentence where the source has no times and ``train.split_by = "time"`` needs them; reads no file."""
    source = find_source(config.dataset)
    if not source.has_times:
        files, instead = "", "set it to"
        if source.prepared:
            files, instead = f", {source.prepared.by}'s files,", f"take {source.prepared.raw} or"
        yield f"train.split_by = 'time' needs times and train.dataset {config.dataset.name}{files} has none; {instead} 'leave_one_out'"
