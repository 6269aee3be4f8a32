"""The baselines of every report, none of which is trained: counts of the training part, and texts that are alike.

Shape letters: I items, E text-embedding width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.corpus import Histories
from evaluate.item_knn import ItemKNN
from evaluate.rankers import Ranker, counted_rankers
from evaluate.scorers import MemoryRanker
from modules.memory import MARKOV_WITH_TEXTS, Memory, MemoryConfig
from modules.nearest import directions, nearest_texts


class Untrained:
    """Memories and baselines of one training part; the nearest texts are looked for once.

    They compute where ``order`` is, on the CPU if that is MPS, which has no fp64.

    Args:
        train: the training part.
        order: [I] from ``metrics.tie_order`` with the training popularity.
        vectors: [I, E] text vectors; None: nothing is known of the texts.
    """

    def __init__(self, train: Histories, order: Tensor, vectors: Tensor | None) -> None:
        home = torch.device("cpu") if order.device.type == "mps" else order.device
        self.item_ids, self.offsets, self.order = train.item_ids.to(home), train.offsets.to(home), order.to(home)
        self.vectors = None if vectors is None else vectors.to(home)
        self.neighbours = None
        if self.vectors is not None:
            self.neighbours = nearest_texts(directions(self.vectors), MemoryConfig().neighbours, self.order)
        self.memory = self._memory(MemoryConfig())

    def _memory(self, config: MemoryConfig) -> Memory:
        num_items = len(self.order)
        return Memory.from_histories(self.item_ids, self.offsets, num_items, self.order, self.vectors, self.neighbours, config)

    def rankers(self) -> Sequence[Ranker]:
        """Most popular, Markov, Markov with texts where there are vectors, item-kNN and the memory, in the order of their rows."""
        rankers = [*counted_rankers(self.item_ids, self.offsets, self.order)]
        if self.vectors is not None:
            rankers.append(MemoryRanker(self._memory(MARKOV_WITH_TEXTS), self.order, "Markov with texts"))
        rankers.append(ItemKNN(self.item_ids, self.offsets, len(self.order), self.order))
        return [*rankers, MemoryRanker(self.memory, self.order, "memory" if self.vectors is not None else "memory without texts")]
