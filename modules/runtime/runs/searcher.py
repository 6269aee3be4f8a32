"""The beam search over a run's semantic IDs: evaluation, recommend.py, the exported program and a call from Python all ask it.

Where the run has a memory_weight or a head_weight, items are ranked by the mixture of the model with the memory and the item head
(modules.mixture). The item head scores all items, or those alone that the search found, which it then sorts anew.
Shape letters: B batch, S items of a history, N those the model reads, W beams, C codes of an ID, I items, J items of a shortlist.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.schemas import PAD, SeqBatch, TokenizedSeqBatch, UserError
from evaluate.metrics import places_with_ties
from evaluate.rankers import Found
from modules.beam_search import SearchResult
from modules.item_head import candidate_scores, full_probs, rescore
from modules.mixture import CandidateMasses, ItemMasses, Masses, Mixture, NodeMasses
from modules.model import Encoded, EncoderDecoderRetrievalModel
from modules.runtime.evaluation.cuda_graphs import ReplayedSearch
from modules.runtime.runs.memory_files import save_memory
from modules.runtime.runs.recommender import Recommender, pad_to
from modules.runtime.runs.stage2_run import Retriever, SearchSettings, write_stage2_files
from modules.tokenizer.trie import PrefixTrie


class Searcher(Recommender):
    """TIGER: finds the best items after histories by their semantic IDs.

    Args:
        retriever: model, tokenizer, and how the run is searched.
        items: [J] the only rows that can be found, at least one; None: all.
        cuda_graphs: replay the search as CUDA graphs where the model is on CUDA.

    Raises:
        UserError: a memory on a device without fp64.
    """

    name = "TIGER"
    model: EncoderDecoderRetrievalModel

    def __init__(self, retriever: Retriever, items: Tensor | None = None, cuda_graphs: bool = False) -> None:
        info, device = retriever.tokenizer.info, retriever.tokenizer.sem_ids.device
        super().__init__(retriever.model, info.item_keys, retriever.titles, retriever.settings, device, info.seed, items)
        self.retriever, self.tokenizer, self.beam_size = retriever, retriever.tokenizer, retriever.settings.beam_size
        self.trie = self.tokenizer.trie
        self.memory_weight, self.head_weight = retriever.settings.memory_weight, retriever.settings.head_weight
        self.sorts_found = self.head_weight > 0 and retriever.settings.head_scores == "found"
        self.memory = retriever.memory if self.memory_weight > 0 else None
        if self.memory is None and self.memory_weight > 0:
            raise ValueError(f"a memory_weight of {self.memory_weight} needs the retriever's memory")
        if self.memory is not None and device.type == "mps":
            raise UserError("train.memory_weight needs fp64, which MPS has not; set train.device = 'cpu', or train.memory_weight = 0")
        if self.head_weight > 0 and device.type == "mps" and not self.sorts_found:
            raise UserError("train.head_weight needs fp64, which MPS has not; set train.device = 'cpu', or train.head_weight = 0")
        self._allowed: Tensor | None = None
        self._listed: Tensor | None = None
        if self.items is not None:
            self._row = torch.full((self.tokenizer.num_items,), PAD, device=device)
            self._row[self.items] = torch.arange(len(self.items), device=device)
            if self.model.tree is None:
                self._listed = self.items
                self.trie = PrefixTrie(self.tokenizer.sem_ids[self.items], self.tokenizer.vocab_sizes, self.order[self.items])
            else:  # its nodes have the vectors: the other items are barred in it
                self._allowed = self._row != PAD
        self._replayed = ReplayedSearch(self._search) if cuda_graphs and device.type == "cuda" else None

    @property
    def sem_ids(self) -> Tensor:
        """[I, C]."""
        return self.tokenizer.sem_ids

    @torch.no_grad()
    def search(self, batch: SeqBatch, filter_history: bool, beam_size: int | None = None) -> SearchResult:
        """See ``Recommender.search``; as many beams as in the run's evaluation, where ``beam_size`` is None.

        Returns:
            ``item_ids`` are rows of the whole catalogue; ``tuples`` are the codes before the collision code, as nodes of the trie searched.
            With a shortlist a collision code is scored among the items of the list that share the tuple.
        """
        barred = (batch.item_ids if batch.seen is None else batch.seen) if filter_history else None
        beams = self.beam_size if beam_size is None else beam_size
        return self._search(batch, beams, barred) if self._replayed is None else self._replayed.search(batch, beams, barred)

    def _search(self, batch: SeqBatch, beam_size: int, barred: Tensor | None, cached: bool = True) -> SearchResult:
        """``cached``: autocast may keep the weights it cast; not within a graph, which must read what they have become."""
        listed = self._listed
        masses = self._memory_of(batch.item_ids, barred)
        of_trie = barred
        if barred is not None and listed is not None:
            of_trie = torch.where(barred == PAD, PAD, self._row[barred.clamp(min=0)])
        with self.autocast(cached):
            tokens = self.tokenizer(batch)
            encoded = self.model.encode(tokens)
            states = self._states(tokens, encoded) if self.head_weight > 0 else None
            remembered = None if masses is None else CandidateMasses(self.trie, masses, of_trie, self._allowed)
            ranking = self._ranking(states, remembered, barred)
            found = self.model.generate_next_sem_id(
                tokens, self.trie, beam_size, of_trie, self.tokenizer.num_levels, ranking=ranking, among=self._allowed, encoded=encoded
            )
        if states is not None and self.sorts_found:
            found = found._replace(keys=self._keys_of_found(found, states, remembered))
        item_ids = found.item_ids
        if listed is not None:
            item_ids = torch.where(item_ids == PAD, PAD, listed[item_ids.clamp(min=0)])
        places = places_with_ties(item_ids, found.keys, self.order)
        sem_ids = found.sem_ids.gather(1, places.unsqueeze(-1).expand_as(found.sem_ids))
        log_probs, keys = found.log_probs.gather(1, places), found.keys.gather(1, places)
        return SearchResult(item_ids.gather(1, places), log_probs, sem_ids, found.tuples, keys)

    def _ranking(self, states: Tensor | None, remembered: CandidateMasses | None, barred: Tensor | None) -> Mixture | None:
        """What the search ranks nodes by; None: by the model alone."""
        shares: list[tuple[float, NodeMasses]] = []
        if remembered is not None:
            shares.append((self.memory_weight / (1 - self.head_weight) if self.sorts_found else self.memory_weight, remembered))
        if states is not None and not self.sorts_found:
            probs = self._probs(states, barred)
            shares.append((self.head_weight, ItemMasses(self.trie, probs if self._listed is None else probs[:, self._listed])))
        return Mixture(shares) if shares or self.sorts_found else None

    def _states(self, tokens: TokenizedSeqBatch, encoded: Encoded) -> Tensor:
        """[B, D], what the item head reads."""
        return self.model.item_states(encoded, tokens, tokens.mask.sum(1, keepdim=True) - 1)[:, 0]

    def _probs(self, states: Tensor, barred: Tensor | None) -> Tensor:
        """[B, I], the item head's, of the items that may be found and are not barred."""
        assert self.model.items is not None
        return full_probs(states, self.model.items.table(), barred, None if self.items is None else self._row != PAD)

    @property
    def scores_items(self) -> bool:
        """See ``Recommender.scores_items``."""
        return bool(self.model.config.item_head)

    @torch.no_grad()
    def item_probs(self, batch: SeqBatch, barred: Tensor | None) -> Tensor:
        """See ``Recommender.item_probs``."""
        with self.autocast():
            tokens = self.tokenizer(batch)
            return self._probs(self._states(tokens, self.model.encode(tokens)), barred)

    def _keys_of_found(self, found: SearchResult, states: Tensor, remembered: CandidateMasses | None) -> Tensor:
        """Keys [B, W] of what was found: model, memory and item head, each as a distribution over these items, mixed."""
        assert self.model.items is not None
        items = found.item_ids.clamp_min(0)
        vectors = self.model.items.vectors(items if self._listed is None else self._listed[items])
        scores = [found.log_probs, candidate_scores(states, vectors.to(states.dtype))]
        weights = [1 - self.head_weight - self.memory_weight, self.head_weight]
        if remembered is not None:
            mass = remembered(self.trie.depth + 1, self.trie.item_position[items].long())
            scores.append(mass.clamp_min(torch.finfo(torch.float64).tiny).log().float())
            weights.append(self.memory_weight)
        return rescore([score.masked_fill(found.item_ids == PAD, -torch.inf) for score in scores], weights)

    def _memory_of(self, history: Tensor, barred: Tensor | None) -> Masses | None:
        """What the memory expects after histories [B, N], of items that are not ``barred`` [B, S]; as the searched trie numbers them."""
        if self.memory is None:
            return None
        items, probs, others = self.memory.distribution(history, barred, None if self.items is None else self._row != PAD)
        if self._listed is not None:
            items = torch.where(items == PAD, PAD, self._row[items.clamp(min=0)])
        return Masses(items, probs, others)

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

    def among(self, items: Tensor) -> "Searcher":
        """See ``Recommender.among``; one more trie."""
        searcher = Searcher(self.retriever, items)
        searcher.dtype = self.dtype
        return searcher

    def searched(self, settings: SearchSettings) -> "Searcher":
        """See ``Recommender.searched``."""
        return Searcher(self.retriever._replace(settings=settings), self.items)

    def inputs(self, batch: SeqBatch) -> TokenizedSeqBatch:
        """See ``Recommender.inputs``."""
        return self.tokenizer(batch)

    def describe(self) -> str:
        """See ``Recommender.describe``."""
        config = self.model.config
        stacks = f"{config.num_layers} encoder + {config.num_layers} decoder layers of width {config.embed_dim}"
        return f"{stacks}, {config.encoder_attention} encoder"

    def write(self, folder: Path, user_keys: Sequence[str], begun: bool) -> None:
        """See ``Recommender.write``."""
        write_stage2_files(folder, self.model.config, self.tokenizer, self.titles, user_keys, begun)

    def write_search(self, folder: Path) -> None:
        """See ``Recommender.write_search``; with the memory where there is one."""
        if self.memory is not None:
            save_memory(folder, self.memory)
        super().write_search(folder)
