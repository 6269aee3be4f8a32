"""The one search: evaluation, recommend.py, the exported program and a call from Python all ask it, so that what is served was evaluated.

It computes in the run's precision, bars the history whole however long it is, and puts items of equal score in the run's order. Where
the run has a memory_weight, items are ranked by the mixture of the model with the memory (modules.mixture).
Shape letters: B batch, S items of a history, N those the model reads, W beams, C codes of an ID, I items, J items of a shortlist.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from data.schemas import PAD, SeqBatch, UserError
from evaluate.metrics import places_with_ties
from evaluate.rankers import Found
from modules.beam_search import SearchResult
from modules.mixture import Masses, Mixture
from modules.runtime.evaluation.cuda_graphs import ReplayedSearch
from modules.runtime.runs.stage2_run import PRECISIONS, Retriever
from modules.tokenizer.semids import seeded_order
from modules.tokenizer.trie import PrefixTrie


class Searcher(nn.Module):
    """Finds the best items after histories; a ranker for the evaluator.

    Args:
        retriever: model, tokenizer, and how the run is searched.
        items: [J] the only rows that can be found, at least one; None: all.
        cuda_graphs: replay the search as CUDA graphs where the model is on CUDA.

    Raises:
        UserError: a memory on a device without fp64.
    """

    name = "TIGER"
    order: Tensor

    def __init__(self, retriever: Retriever, items: Tensor | None = None, cuda_graphs: bool = False) -> None:
        super().__init__()
        self.retriever, self.model, self.tokenizer = retriever, retriever.model, retriever.tokenizer
        self.beam_size, self.dtype = retriever.settings.beam_size, PRECISIONS[retriever.settings.precision]
        info, device = self.tokenizer.info, self.device
        order = retriever.settings.order
        self.register_buffer("order", (seeded_order(info.item_keys, info.seed) if order is None else order).to(device), persistent=False)
        self.trie, self.items = self.tokenizer.trie, items
        self.memory_weight = retriever.settings.memory_weight
        self.memory = retriever.memory if self.memory_weight > 0 else None
        if self.memory is None and self.memory_weight > 0:
            raise ValueError(f"a memory_weight of {self.memory_weight} needs the retriever's memory")
        if self.memory is not None and device.type == "mps":
            raise UserError("train.memory_weight needs fp64, which MPS has not; set train.device = 'cpu', or train.memory_weight = 0")
        self._allowed: Tensor | None = None
        if items is not None:
            self.items = items = items.to(device)
            self._row = torch.full((self.tokenizer.num_items,), PAD, device=device)
            self._row[items] = torch.arange(len(items), device=device)
            if self.model.tree is None:
                self.trie = PrefixTrie(self.tokenizer.sem_ids[items], self.tokenizer.vocab_sizes, self.order[items])
            else:  # its nodes have the vectors: the other items are barred in it
                self._allowed = self._row != PAD
        self._replayed = ReplayedSearch(self._search) if cuda_graphs and device.type == "cuda" else None

    @property
    def device(self) -> torch.device:
        """Where the model and the tokenizer are."""
        return self.tokenizer.sem_ids.device

    def ask(
        self,
        histories: Sequence[Sequence[int]],
        users: Sequence[int] | None = None,
        filter_history: bool = True,
        beam_size: int | None = None,
    ) -> SearchResult:
        """The best items after histories of any length, as rows of ``tokenizer.info.item_keys``.

        Args:
            histories: B lists of such rows, oldest first, at least one item each.
            users: B rows of the run's users, PAD where unknown; None: all unknown.
            filter_history: no item of the history comes back.
            beam_size: W; None: as in the run's evaluation.
        """
        width = max(map(len, histories))
        history = torch.tensor([[*items, *[PAD] * (width - len(items))] for items in histories], device=self.device)
        user_ids = torch.tensor([PAD] * len(histories) if users is None else list(users), device=self.device)
        with torch.inference_mode():
            return self.search(self.batch_of(history, user_ids, min(width, self.model.config.max_seq_len)), filter_history, beam_size)

    def batch_of(self, history: Tensor, user_ids: Tensor, width: int) -> SeqBatch:
        """Whole histories [B, S], PAD behind the last item, as ``SeqData.eval_batches`` would cut them; the model reads ``width`` items."""
        return SeqBatch(user_ids, recent_items(history, width), history.new_full((history.shape[0], 1), PAD), history)

    @torch.no_grad()
    def search(self, batch: SeqBatch, filter_history: bool, beam_size: int | None = None) -> SearchResult:
        """The items in the order in which they are served.

        Args:
            batch: ``item_ids`` are read, ``seen`` (``item_ids`` where that is None) is barred by ``filter_history``.
            filter_history: no item of the history comes back.
            beam_size: W; None: as in the run's evaluation.

        Returns:
            ``item_ids`` are rows of the whole catalogue; ``tuples`` are the codes before the collision code, as nodes of the trie searched.
            With a shortlist a collision code is scored among the items of the list that share the tuple.
        """
        barred = (batch.item_ids if batch.seen is None else batch.seen) if filter_history else None
        beams = self.beam_size if beam_size is None else beam_size
        return self._search(batch, beams, barred) if self._replayed is None else self._replayed.search(batch, beams, barred)

    def _search(self, batch: SeqBatch, beam_size: int, barred: Tensor | None, cached: bool = True) -> SearchResult:
        """``cached``: autocast may keep the weights it cast; not within a graph, which must read what they have become."""
        listed = None if self._allowed is not None else self.items
        masses = self._memory_of(batch.item_ids, barred)
        if barred is not None and listed is not None:
            barred = torch.where(barred == PAD, PAD, self._row[barred.clamp(min=0)])
        ranking = None if masses is None else Mixture(self.trie, self.memory_weight, masses, barred, self._allowed)
        with self._autocast(cached):
            found = self.model.generate_next_sem_id(
                self.tokenizer(batch), self.trie, beam_size, barred, self.tokenizer.num_levels, ranking=ranking, among=self._allowed
            )
        item_ids = found.item_ids
        if listed is not None:
            item_ids = torch.where(item_ids == PAD, PAD, listed[item_ids.clamp(min=0)])
        places = places_with_ties(item_ids, found.keys, self.order)
        sem_ids = found.sem_ids.gather(1, places.unsqueeze(-1).expand_as(found.sem_ids))
        log_probs, keys = found.log_probs.gather(1, places), found.keys.gather(1, places)
        return SearchResult(item_ids.gather(1, places), log_probs, sem_ids, found.tuples, keys)

    def _memory_of(self, history: Tensor, barred: Tensor | None) -> Masses | None:
        """What the memory expects after histories [B, N], of items that are not ``barred`` [B, S]; as the searched trie numbers them."""
        if self.memory is None:
            return None
        items, probs, others = self.memory.distribution(history, barred, None if self.items is None else self._row != PAD)
        if self.items is not None and self._allowed is None:
            items = torch.where(items == PAD, PAD, self._row[items.clamp(min=0)])
        return Masses(items, probs, others)

    def _autocast(self, cached: bool = True) -> AbstractContextManager[None]:
        if self.dtype is None and torch.compiler.is_compiling():
            return nullcontext()  # torch.export cannot write down a region where autocast is off
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None, cache_enabled=cached)

    # -- as a ranker --------------------------------------------------------------------------------------------------------------------

    def recommend(self, batch: SeqBatch, k: int, filter_history: bool) -> Tensor:
        """See ``Ranker.recommend``."""
        return self.find(batch, k, filter_history).item_ids

    def find(self, batch: SeqBatch, k: int, filter_history: bool) -> Found:
        """See ``CodeRanker.find``."""
        found = self.search(batch, filter_history)
        return Found(pad_to(found.item_ids, k), pad_to(found.keys, k, -math.inf), pad_to(found.tuples, k))

    def tuples_of(self, items: Tensor) -> Tensor:
        """See ``CodeRanker.tuples_of``."""
        return self.tokenizer.tuples_of(items)

    def loss(self, batch: SeqBatch) -> Tensor:
        """See ``TrainedRanker.loss``."""
        with self._autocast():
            output = self.model(self.tokenizer(batch))
        return output.loss

    def among(self, items: Tensor) -> "Searcher":
        """See ``TrainedRanker.among``; one more trie, the same model."""
        searcher = Searcher(self.retriever, items)
        searcher.dtype = self.dtype
        return searcher


def recent_items(history: Tensor, width: int) -> Tensor:
    """The last ``width`` items of histories [B, S], PAD behind the last item -> [B, width], PAD there too."""
    lengths = (history != PAD).sum(1, keepdim=True)
    places = (lengths - width).clamp(min=0) + torch.arange(width, device=history.device)
    return history.gather(1, places.clamp(max=history.shape[1] - 1)).masked_fill(places >= lengths, PAD)


def pad_to(lists: Tensor, width: int, value: float = PAD) -> Tensor:
    """The first ``width`` columns [B, width], ``value`` where ``lists`` [B, W] is narrower."""
    return nn.functional.pad(lists[:, :width], (0, max(0, width - lists.shape[1])), value=value)
