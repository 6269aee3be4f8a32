"""SASRec as it is asked for items: the scores of all, the best of which come back.

Shape letters: B batch, W items of an answer, I items, J items of a shortlist, S barred items.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.schemas import PAD, SeqBatch
from evaluate.baselines import KEYS_IN_MEMORY, Ranked, best_items, rows_of, score_keys
from modules.item_head import probs_of_left
from modules.runtime.runs.recommender import Recommender, pad_to
from modules.runtime.runs.sasrec_run import SASRecRun, write_sasrec_files
from modules.runtime.runs.stage2_run import SearchSettings
from modules.sasrec import SASRec

ANSWERED = 50
"""Items of an answer, where the caller does not say how many."""


class BestItems(NamedTuple):
    """See ``Answers``."""

    item_ids: Tensor  # [B, W]
    keys: Tensor  # [B, W] log-probabilities among all items; -inf where item_ids is PAD


class SASRecSearcher(Recommender):
    """SASRec: finds the best items after histories by the scores of all.

    Args:
        run: model, catalogue, and how it is searched.
        items: [J] the only rows that can be found, at least one; None: all.
    """

    name = "SASRec"
    model: SASRec

    def __init__(self, run: SASRecRun, items: Tensor | None = None) -> None:
        device = run.model.item_embedding.weight.device
        super().__init__(run.model, run.item_keys, run.titles, run.settings, device, items=items)
        self.run = run
        self._out: Tensor | None = None
        if self.items is not None:
            self._out = torch.ones(len(run.item_keys) + 1, dtype=torch.bool, device=device)
            self._out[self.items] = False

    @torch.no_grad()
    def search(self, batch: SeqBatch, filter_history: bool, beam_size: int | None = None) -> BestItems:
        """See ``Recommender.search``. Probabilities are those among all items, those barred and outside a shortlist too."""
        width = ANSWERED if beam_size is None else beam_size
        barred = (batch.item_ids if batch.seen is None else batch.seen) if filter_history else None
        rows = max(1, KEYS_IN_MEMORY // (len(self.order) + 1))
        parts = [slice(start, start + rows) for start in range(0, len(batch.item_ids), rows)]
        found = [self._best(rows_of(batch, part), None if barred is None else barred[part], width) for part in parts]
        return BestItems(*map(torch.cat, zip(*found)))

    def _best(self, batch: SeqBatch, barred: Tensor | None, width: int) -> BestItems:
        """``search`` of a few rows, so that scores of a large catalogue fit into memory."""
        with self.autocast():
            scores = self.model.scores(batch)
        keys = score_keys(scores, self.order)
        if self._out is not None:
            keys.masked_fill_(self._out, -1)
        items, _ = best_items(keys, barred, width)
        log_probs = scores.log_softmax(1).gather(1, items.clamp_min(0))
        return BestItems(items, log_probs.masked_fill(items == PAD, -torch.inf))

    def recommend(self, batch: SeqBatch, k: int, filter_history: bool) -> Tensor:
        """See ``Ranker.recommend``."""
        return self.ranked(batch, k, filter_history).item_ids

    def ranked(self, batch: SeqBatch, k: int, filter_history: bool) -> Ranked:
        """See ``ScoredRanker.ranked``."""
        found = self.search(batch, filter_history, k)
        return Ranked(pad_to(found.item_ids, k), pad_to(found.keys, k, -torch.inf))

    @property
    def scores_items(self) -> bool:
        """See ``Recommender.scores_items``."""
        return True

    @torch.no_grad()
    def item_probs(self, batch: SeqBatch, barred: Tensor | None) -> Tensor:
        """See ``Recommender.item_probs``; of a shortlist too, among all items."""
        with self.autocast():
            return probs_of_left(self.model.scores(batch), barred)

    def among(self, items: Tensor) -> "SASRecSearcher":
        """See ``Recommender.among``."""
        searcher = SASRecSearcher(self.run, items)
        searcher.dtype = self.dtype
        return searcher

    def searched(self, settings: SearchSettings) -> "SASRecSearcher":
        """See ``Recommender.searched``."""
        return SASRecSearcher(self.run._replace(settings=settings), self.items)

    def describe(self) -> str:
        """See ``Recommender.describe``."""
        config, texts = self.model.config, " and their texts" if self.model.config.text else ""
        softmax = f"{config.sampled_items:,} items drawn a step" if self.model.sampled else f"all {self.model.num_items:,} items"
        return f"SASRec, {config.num_layers} layers of width {config.dim} over items{texts}, softmax over {softmax}"

    def write(self, folder: Path, user_keys: Sequence[str], begun: bool) -> None:
        """See ``Recommender.write``; it knows no users."""
        write_sasrec_files(folder, self.model.config, self.item_keys, self.titles, begun)
