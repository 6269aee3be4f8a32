"""What training reads: items with embeddings for stage 1, batches of histories for stage 2.

Importing this module is cheap: table library, torch_geometric and sentence_transformers load when a corpus is read.

Shape letters: B batch, N history length, P targets per row, S seen items, I items, E text-embedding width.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

import data.sources.ml_1m
import data.sources.ml_32m
import data.sources.p5
from data.batch_plan import BatchPlanner, TrainPlan, prefix_rows, window_rows
from data.schemas import PAD, SeqBatch, UserError
from data.splits import Corpus, Histories, Split, TimeSplit, check_no_leak, item_popularity, leave_one_out, split_by_time


class RecDataset(Enum):
    """The sources a config can name."""

    AMAZON = 1  # 2014, 5-core, as P5 packed it
    CUSTOM = 2
    ML_1M = 3
    ML_32M = 4  # and what has its layout, such as ml-latest-small
    AMAZON_2014 = 5  # the raw files
    AMAZON_2023 = 6
    SYNTHETIC = 7


SPLITS = {
    RecDataset.AMAZON: data.sources.p5.SPLITS,
    RecDataset.ML_1M: (data.sources.ml_1m.SPLIT,),
    RecDataset.ML_32M: data.sources.ml_32m.SPLITS,
}
"""What ``dataset_split`` can be; the other sources have a category or the files' name there."""

MAX_HISTORY = {RecDataset.ML_1M: 200, RecDataset.ML_32M: 200}
"""Interactions of a user that are kept unless a config says otherwise; other sources keep all."""

WHOLE_CATALOGUE = (RecDataset.ML_1M, RecDataset.ML_32M, RecDataset.CUSTOM)
"""Sources whose items stay without an interaction unless a config says otherwise; Amazon's metadata lists whole shops."""


@dataclass(frozen=True)
class DataConfig:
    """Which data: a source, the folder it lies in, one split of it (for CUSTOM the files' name), and what of it is kept.

    ``None`` stands for the source's own default. ``columns`` are "role=name" for CUSTOM, as ``data.custom`` reads them.
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


class ItemData(NamedTuple):
    """The catalogue as stage 1 reads it."""

    embeddings: Tensor  # [I, E] float32; float16 where a large file of such is mapped into the memory
    keys: list[str]
    titles: list[str]
    embeddings_hash: str  # sha256 of the float32 bytes, first 16 hex digits


def load_corpus(config: DataConfig) -> Corpus:
    """Returns the corpus, from the cache in the dataset folder when its raw files have been read before.

    Raises:
        UserError: an unknown source or split, or raw files that are missing or not what they should be.
    """
    if not isinstance(config.dataset, RecDataset):
        sources = ", ".join(f"%data.processed.RecDataset.{source.name}" for source in RecDataset)
        raise UserError(f"train.dataset is {config.dataset!r}; expected one of {sources}")
    known = SPLITS.get(config.dataset, (config.split,))
    if config.split not in known:
        raise UserError(f"train.dataset_split is {config.split!r}; train.dataset {config.dataset.name} has {', '.join(known)}; choose one")
    for mistake in data_mistakes(config):
        raise UserError(mistake)
    from data.filters import Filters

    folder, split, force = Path(config.folder).expanduser(), config.split, config.force_process
    history = MAX_HISTORY.get(config.dataset, 0) if config.max_history is None else config.max_history
    cold = config.dataset in WHOLE_CATALOGUE if config.cold_items is None else config.cold_items
    filters = Filters(float(config.min_rating), config.k_core, history, cold)
    if config.dataset is RecDataset.AMAZON:
        from data.amazon import AmazonReviews

        return AmazonReviews(str(folder), split, force).corpus
    if config.dataset is RecDataset.ML_1M:
        from data.sources.ml_1m import load_ml1m

        return load_ml1m(folder, filters, force).corpus
    if config.dataset is RecDataset.ML_32M:
        from data.sources.ml_32m import load_ml32m

        return load_ml32m(folder, split, filters, force).corpus
    if config.dataset in (RecDataset.AMAZON_2014, RecDataset.AMAZON_2023):
        from data.sources.amazon_raw import load_amazon_raw

        year = 2014 if config.dataset is RecDataset.AMAZON_2014 else 2023
        return load_amazon_raw(folder, year, split, filters, force).corpus
    if config.dataset is RecDataset.SYNTHETIC:
        from data.sources.synthetic import load_synthetic

        return load_synthetic(filters).corpus
    from data.custom import load_custom

    return load_custom(folder, split, filters, config.columns, force).corpus


def data_config(settings: Mapping[str, object]) -> DataConfig:
    """The data that the parameters of either script describe."""
    names = ("dataset", "dataset_folder", "dataset_split", "force_dataset_process")
    return DataConfig(*(settings[name] for name in (*names, "min_rating", "k_core", "max_history", "cold_items", "columns")))


def data_mistakes(config: DataConfig) -> Iterator[str]:
    """A sentence for everything in the config that its source does not have; reads no file."""
    name = config.dataset.name
    if config.dataset is RecDataset.AMAZON:
        for parameter in ("min_rating", "k_core", "max_history", "cold_items"):
            if getattr(config, parameter):
                raw = "needs raw interactions, and train.dataset AMAZON is P5's finished 5-core"
                yield f"train.{parameter} {raw}; leave it out or take AMAZON_2014"
    if config.columns and config.dataset is not RecDataset.CUSTOM:
        yield f"train.columns names the columns of your own files and train.dataset is {name}; leave it out or set CUSTOM"


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
    from data.filters import bare_text
    from data.item_embeddings import ROWS_AT_ONCE, embed_texts, load_embeddings

    if not item_embeddings and all(text == bare_text(key) for key, text in zip(corpus.item_keys, corpus.texts)):
        raise UserError(
            f"nothing is known of the items in {config.folder} but their ids, from which no semantic IDs can be made; "
            "supply their texts or set train.item_embeddings to a .npy file with a row for each"
        )
    if item_embeddings:
        embeddings = load_embeddings(Path(item_embeddings).expanduser(), len(corpus.item_keys))
    else:
        embeddings = embed_texts(corpus.texts, text_model, Path(config.folder).expanduser() / "processed", device)
    sha = hashlib.sha256()
    for rows in embeddings.split(ROWS_AT_ONCE):
        sha.update(rows.numpy().astype("<f4").tobytes())
    return ItemData(embeddings, corpus.item_keys, corpus.titles, sha.hexdigest()[:16])


class SeqData:
    """Histories cut into batches for training and evaluation, under either protocol.

    Args:
        corpus_histories: every interaction; the split is made and checked for leaks here.
        num_items: I.
        max_seq_len: items of history a row holds at most.
        causal: rows hold a target behind most of their positions (for an encoder that looks only back); otherwise each row is
            one target with its own history.
        by: the moments of a split by time; None: leave-one-out.

    Raises:
        UserError: no user has two training items or none has a target, or max_seq_len is below 1.
    """

    def __init__(
        self, corpus_histories: Histories, num_items: int, max_seq_len: int = 20, causal: bool = True, by: TimeSplit | None = None
    ) -> None:
        if max_seq_len < 1:
            raise UserError(f"train.max_seq_len is {max_seq_len}; a history needs at least 1 item; raise it")
        self.num_users = len(corpus_histories.offsets) - 1
        self.num_items, self.max_seq_len, self.causal = num_items, max_seq_len, causal
        self.split = leave_one_out(corpus_histories) if by is None else split_by_time(corpus_histories, by)
        check_no_leak(self.split, corpus_histories, by)
        self.popularity = item_popularity(self.split.train, num_items)  # [I] int64, counted in the training part
        self.windows = (window_rows if causal else prefix_rows)(self.split.train, max_seq_len)
        self.num_train_targets = int(self.windows.num_targets.sum())
        if self.num_train_targets == 0:
            raise UserError("no user has two training items, so there is nothing to predict; histories need at least four items")
        self._planner = BatchPlanner(self.windows, max_seq_len)
        self._plan: tuple[tuple[int, ...], TrainPlan] | None = None
        if by is not None and not (len(self.split.validation.users) and len(self.split.test.users)):
            raise UserError("no user has items on both sides of one of the two moments; move train.split_quantiles")

    def to(self, device: str | torch.device) -> "SeqData":
        """Moves the arrays that batches are cut from; batches then come out on that device. Plans are made on the CPU."""
        *parts, self.windows = (type(part)(*(field.to(device) for field in part)) for part in (*self.split, self.windows))
        self.split = Split(*parts)
        self.popularity, self._plan = self.popularity.to(device), None
        return self

    def steps_per_epoch(self, batch_size: int, world: int = 1) -> int:
        """Returns the number of batches, the same in every epoch and at any world size: ``batch_size`` is that of all ranks."""
        return len(self._planner.points(batch_size)) - 1

    def train_plan(self, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> TrainPlan:
        """Returns which rows make up which batch of an epoch, as the rank sees it."""
        return self._planner.plan(batch_size, seed, epoch, rank, world)

    def train_batch(self, step: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> SeqBatch:
        """Returns the batch of a step, counted from 0 over all epochs: a function of its arguments and nothing else.

        Args:
            batch_size: targets (not rows) a batch holds at most, over all ranks.

        Returns:
            P <= N for a causal encoder, else P = 1. A rank whose share of a small batch is empty gets one row without targets.
        """
        epoch, index = divmod(step, self.steps_per_epoch(batch_size))
        key = (batch_size, seed, epoch, rank, world)
        if self._plan is None or self._plan[0] != key:
            plan = self.train_plan(*key)
            self._plan = (key, plan._replace(rows=plan.rows.to(self.windows.starts.device)))
        plan = self._plan[1]
        width, context = int(plan.widths[index]), int(plan.contexts[index])
        rows = plan.rows[int(plan.offsets[index]) : int(plan.offsets[index + 1])]
        if len(rows):
            return self._cut_rows(rows, width, context)
        spare = self._cut_rows(plan.first_rows[index : index + 1].to(rows.device), width, context)
        return spare._replace(targets=torch.full_like(spare.targets, PAD))

    def _cut_rows(self, rows: Tensor, width: int, context: int) -> SeqBatch:
        users, starts, lengths, num_targets = (field[rows] for field in self.windows)
        item_ids = _cut(self.split.train.item_ids, starts, lengths, width)
        if not self.causal:
            return SeqBatch(users, item_ids, self.split.train.item_ids[starts + lengths, None], None)
        targets = _cut(self.split.train.item_ids, starts + 1, lengths, width)
        earlier = torch.arange(width, device=rows.device) < (lengths - num_targets)[:, None]
        return SeqBatch(users, item_ids, targets.masked_fill(earlier, PAD)[:, context:], None)

    def eval_batches(self, part: Literal["validation", "test"], batch_size: int, users: Tensor | None = None) -> Iterator[SeqBatch]:
        """Yields every user with targets once, shortest histories first, in an order that depends on the data alone.

        The history of a target is every item before it: for validation the training items, for the test the validation's as well.

        Args:
            part: which target.
            batch_size: users a batch.
            users: only these rows of the corpus; each must have targets.
        """
        if part not in ("validation", "test"):
            raise ValueError(f"part must be 'validation' or 'test', got {part!r}")
        targets = self.split.validation if part == "validation" else self.split.test
        eligible = targets.users
        if users is None:
            chosen = torch.arange(len(eligible), device=eligible.device)
        else:
            wanted = users.to(eligible.device).unique()
            chosen = torch.searchsorted(eligible, wanted).clamp(max=max(len(eligible) - 1, 0))
            if len(wanted) and (len(eligible) == 0 or not torch.equal(eligible[chosen], wanted)):
                raise ValueError("eval_batches was asked for users that have no targets, as those with fewer than three items have none")
        if len(chosen) == 0:
            return
        lengths = targets.positions[chosen] - self.split.full.offsets[eligible[chosen]]
        for block in lengths.argsort(stable=True).split(batch_size):
            yield self._cut_eval(eligible[chosen[block]], targets.positions[chosen[block]], lengths[block])

    def _cut_eval(self, users: Tensor, positions: Tensor, lengths: Tensor) -> SeqBatch:
        item_ids, history = self.split.full.item_ids, lengths.clamp(max=self.max_seq_len)
        seen = _cut(item_ids, positions - lengths, lengths, int(lengths.max()))
        return SeqBatch(users, _cut(item_ids, positions - history, history, int(history.max())), item_ids[positions, None], seen)


def _cut(item_ids: Tensor, starts: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Gathers ``item_ids[starts[b] : starts[b] + lengths[b]]`` for each b into [B, width], PAD on the right; never waits for the device."""
    steps = torch.arange(width, device=item_ids.device)
    cut = item_ids[(starts[:, None] + steps).clamp(max=len(item_ids) - 1)]
    return cut.masked_fill(steps >= lengths[:, None], PAD)
