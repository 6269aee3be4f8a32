"""Recommender: a model of stage 2 as it is asked for items: by the evaluator, whose ranker it is, by recommend.py and from Python.

What is served is what was evaluated: all of them ask the one ``search``. It computes in the run's precision, bars the history whole
however long it is, and puts items of equal score in the run's order.
Shape letters: B batch, S items of a history, N those the model reads, W items of an answer, I items, C codes of an ID, J items of a
shortlist.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from data.schemas import PAD, SeqBatch, TokenizedSeqBatch
from modules.runtime.runs.stage2_run import PRECISIONS, SearchSettings, precision_name, record_search
from modules.tokenizer.semids import seeded_order


class Answers(Protocol):
    """The best items after histories."""

    @property
    def item_ids(self) -> Tensor:
        """[B, W] rows of the catalogue, best first, PAD where nothing is left."""

    @property
    def keys(self) -> Tensor:
        """[B, W] what ranks them: log-probabilities, or logs of the mixture with the memory."""


class Recommender(nn.Module, ABC):
    """Finds the best items after histories.

    Args:
        model: its config says how many items of a history it reads; the rest of it is the subclass's concern.
        item_keys: I external ids.
        titles: I of them.
        settings: how it is searched.
        device: where the model is.
        seed: of the order among items of equal score, where the settings have none.
        items: [J] the only rows that can be found, at least one; None: all.
    """

    name: str
    """Its row in the report."""

    order: Tensor

    def __init__(
        self,
        model: nn.Module,
        item_keys: list[str],
        titles: list[str],
        settings: SearchSettings,
        device: torch.device,
        seed: int = 0,
        items: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model, self.item_keys, self.titles, self.settings = model, item_keys, titles, settings
        self.dtype = PRECISIONS[settings.precision]
        order = seeded_order(item_keys, seed) if settings.order is None else settings.order
        self.register_buffer("order", order.to(device), persistent=False)
        self.items = None if items is None else items.to(device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.order.device

    @property
    def max_seq_len(self) -> int:
        """Items of a history that the model reads, the most recent ones."""
        return int(self.model.config.max_seq_len)  # type: ignore[union-attr, arg-type]  # either model has one

    @property
    def sem_ids(self) -> Tensor | None:
        """[I, C]; None where the model knows no codes."""
        return None

    # -- asked --------------------------------------------------------------------------------------------------------------------------

    def ask(
        self,
        histories: Sequence[Sequence[int]],
        users: Sequence[int] | None = None,
        filter_history: bool = True,
        beam_size: int | None = None,
    ) -> Answers:
        """The best items after histories of any length, as rows of ``item_keys``.

        Args:
            histories: B lists of such rows, oldest first, at least one item each.
            users: B rows of the run's users, PAD where unknown; None: all unknown.
            filter_history: no item of the history comes back.
            beam_size: see ``search``.
        """
        width = max(map(len, histories))
        history = torch.tensor([[*items, *[PAD] * (width - len(items))] for items in histories], device=self.device)
        user_ids = torch.tensor([PAD] * len(histories) if users is None else list(users), device=self.device)
        with torch.inference_mode():
            return self.search(self.batch_of(history, user_ids, min(width, self.max_seq_len)), filter_history, beam_size)

    def batch_of(self, history: Tensor, user_ids: Tensor, width: int) -> SeqBatch:
        """Whole histories [B, S], PAD behind the last item, as ``SeqData.eval_batches`` would cut them; the model reads ``width`` items."""
        return SeqBatch(user_ids, recent_items(history, width), history.new_full((history.shape[0], 1), PAD), history)

    @abstractmethod
    def search(self, batch: SeqBatch, filter_history: bool, beam_size: int | None = None) -> Answers:
        """The items in the order in which they are served.

        Args:
            batch: ``item_ids`` are read, ``seen`` (``item_ids`` where that is None) is barred by ``filter_history``.
            filter_history: no item of the history comes back.
            beam_size: W: how many items, and the beams of a beam search; None: the model's own choice.
        """

    @abstractmethod
    def recommend(self, batch: SeqBatch, k: int, filter_history: bool) -> Tensor:
        """See ``Ranker.recommend``."""

    @property
    def scores_items(self) -> bool:
        """Whether the model has a softmax over all items."""
        return False

    def item_probs(self, batch: SeqBatch, barred: Tensor | None) -> Tensor:
        """The probability of every item among those that are not ``barred`` [B, S], PAD-filled: [B, I] fp32, 0 for these.

        Raises:
            ValueError: the model has no softmax over items.
        """
        raise ValueError(f"{self.name} does not score all items")

    @abstractmethod
    def among(self, items: Tensor) -> "Recommender":
        """See ``TrainedRanker.among``: the same model."""

    @abstractmethod
    def searched(self, settings: SearchSettings) -> "Recommender":
        """The same model, searched in another way."""

    # -- trained ------------------------------------------------------------------------------------------------------------------------

    def inputs(self, batch: SeqBatch) -> SeqBatch | TokenizedSeqBatch:
        """A batch as the model's forward pass reads it."""
        return batch

    def loss(self, batch: SeqBatch) -> Tensor:
        """See ``TrainedRanker.loss``."""
        with self.autocast():
            output = self.model(self.inputs(batch))
        return output.loss

    def autocast(self, cached: bool = True) -> AbstractContextManager[None]:
        """The run's precision; ``cached``: autocast may keep the weights it cast."""
        if self.dtype is None and torch.compiler.is_compiling():
            return nullcontext()  # torch.export cannot write down a region where autocast is off
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None, cache_enabled=cached)

    # -- kept ---------------------------------------------------------------------------------------------------------------------------

    @abstractmethod
    def describe(self) -> str:
        """The model in a few words, for the start of a run."""

    @abstractmethod
    def write(self, folder: Path, user_keys: Sequence[str], begun: bool) -> None:
        """Writes all of a run but its weights and its search; ``begun``: it has trained already.

        Raises:
            UserError: the run was trained on other items or semantic IDs.
        """

    def write_search(self, folder: Path) -> None:
        """Writes how it is searched, in the precision that it has now."""
        record_search(folder, self.settings._replace(precision=precision_name(self.dtype)))


def recent_items(history: Tensor, width: int) -> Tensor:
    """The last ``width`` items of histories [B, S], PAD behind the last item -> [B, width], PAD there too."""
    lengths = (history != PAD).sum(1, keepdim=True)
    places = (lengths - width).clamp(min=0) + torch.arange(width, device=history.device)
    return history.gather(1, places.clamp(max=history.shape[1] - 1)).masked_fill(places >= lengths, PAD)


def pad_to(lists: Tensor, width: int, value: float = PAD) -> Tensor:
    """The first ``width`` columns [B, width], ``value`` where ``lists`` [B, W] is narrower."""
    return nn.functional.pad(lists[:, :width], (0, max(0, width - lists.shape[1])), value=value)
