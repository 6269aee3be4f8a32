"""The evaluation written out user by user in plain Python: what the evaluator's figures are compared with.

Nothing here is shared with the evaluator but the model's forward pass on a batch of one user, from which every item is scored: no search,
no trie, no padding, no threads. Histories are lists of items, oldest first.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from data.schemas import TokenizedSeqBatch
from modules.model import EncoderDecoderRetrievalModel

History = list[int]


class Case(NamedTuple):
    """One user with a held-out item."""

    user: int
    history: History  # every item before the target
    target: int


def training_part(users: Sequence[History]) -> list[History]:
    """Leave-one-out: all but the last two items of whoever has three or more."""
    return [items[:-2] if len(items) >= 3 else items for items in users]


def cases(users: Sequence[History], part: str, only: Sequence[int] | None = None) -> list[Case]:
    """The users of a part, shortest histories first, as the evaluator takes them; equally long ones by row."""
    held_out = 2 if part == "validation" else 1
    chosen = range(len(users)) if only is None else only
    found = [Case(user, users[user][:-held_out], users[user][-held_out]) for user in sorted(chosen) if len(users[user]) >= 3]
    return sorted(found, key=lambda case: len(case.history))


def tie_ranks(train: Sequence[History], keys: Sequence[str], seed: int) -> list[int]:
    """Rank of every item: by popularity in training, then by a keyed hash of the external id."""
    popularity = Counter(item for history in train for item in history)
    secret = hashlib.sha256(str(seed).encode()).digest()
    hashed = [hashlib.blake2b(key.encode(), key=secret, digest_size=8).digest() for key in keys]
    preferred = sorted(range(len(keys)), key=lambda item: (-popularity[item], hashed[item], keys[item]))
    return [preferred.index(item) for item in range(len(keys))]


class SlowModel:
    """Scores every item after a history, one user at a time.

    Args:
        model: in evaluation mode.
        ids: each item's semantic ID.
        levels: codes of an ID that say something of the item; the one after them, if there is one, only tells items apart.
    """

    def __init__(self, model: EncoderDecoderRetrievalModel, ids: Sequence[Sequence[int]], levels: int) -> None:
        self.model, self.ids, self.levels = model, [tuple(semantic_id) for semantic_id in ids], levels

    def _batch(self, case: Case, targets: Sequence[int]) -> TokenizedSeqBatch:
        """The user's last items once for each target, nothing padded."""
        window = case.history[-self.model.config.max_seq_len :]
        rows = len(targets)
        return TokenizedSeqBatch(
            torch.full((rows,), case.user),
            torch.tensor([[self.ids[item] for item in window]] * rows),
            torch.ones(rows, len(window), dtype=torch.bool),
            torch.tensor([[self.ids[item]] for item in targets]),
            torch.ones(rows, 1, dtype=torch.bool),
        )

    @torch.no_grad()
    def scores(self, case: Case, items: Sequence[int]) -> tuple[dict[int, float], dict[tuple[int, ...], float]]:
        """Score of each item, and of each tuple of semantic codes: sums of log-probabilities.

        A code that only tells items apart is scored among those that exist behind its tuple, in ``items``.
        """
        logits = [level[:, 0].double() for level in self.model.target_logits(self._batch(case, items))]
        of_item, of_tuple = {}, {}
        siblings: dict[tuple[int, ...], set[int]] = {}
        for item in items:
            siblings.setdefault(self.ids[item][: self.levels], set()).add(self.ids[item][-1])
        for row, item in enumerate(items):
            semantic_id = self.ids[item]
            score = sum(float(logits[level][row].log_softmax(0)[semantic_id[level]]) for level in range(self.levels))
            codes = semantic_id[: self.levels]
            score = of_tuple.setdefault(codes, score)  # to the digit the same for all items that share it
            if len(semantic_id) > self.levels:
                existing = sorted(siblings[codes])
                among = logits[self.levels][row][existing].log_softmax(0)
                score += float(among[existing.index(semantic_id[self.levels])])
            of_item[item] = score
        return of_item, of_tuple

    def ranked(self, case: Case, order: Sequence[int], barred: bool, items: Sequence[int] | None = None) -> list[int]:
        """Items by score, equal ones by ``order``."""
        items = list(range(len(self.ids))) if items is None else list(items)
        scores, _ = self.scores(case, items)
        return sorted((item for item in items if not (barred and item in case.history)), key=lambda item: (-scores[item], order[item]))

    def ranked_tuples(self, case: Case, barred: bool) -> list[tuple[int, ...]]:
        """Tuples of which an item is left, by score."""
        items = range(len(self.ids))
        _, scores = self.scores(case, list(items))
        left = {self.ids[item][: self.levels] for item in items if not (barred and item in case.history)}
        return sorted(left, key=lambda codes: -scores[codes])

    @torch.no_grad()
    def loss(self, case: Case) -> float:
        """Teacher-forced cross-entropy of the target, summed over the codes of its ID."""
        logits = self.model.target_logits(self._batch(case, [case.target]))
        return -sum(float(level[0, 0].double().log_softmax(0)[code]) for level, code in zip(logits, self.ids[case.target]))


def most_popular(case: Case, order: Sequence[int], barred: bool) -> list[int]:
    """All items by ``order``."""
    return sorted((item for item in range(len(order)) if not (barred and item in case.history)), key=lambda item: order[item])


def markov(case: Case, train: Sequence[History], order: Sequence[int], barred: bool) -> list[int]:
    """All items by how often they directly followed the user's last one in training, then by ``order``."""
    follows = Counter(pair for history in train for pair in pairwise(history))
    items = (item for item in range(len(order)) if not (barred and item in case.history))
    return sorted(items, key=lambda item: (-follows[case.history[-1], item], order[item]))


def rank_of(wanted: object, ranked: Sequence[object], length: int) -> int:
    """Its place among the first ``length``, which is also the rank of what is not there."""
    return list(ranked[:length]).index(wanted) if wanted in ranked[:length] else length


def figures(ranks: Sequence[int], cutoffs: Sequence[int]) -> dict[str, float]:
    """recall@k, ndcg@k and mrr@10 as means over users."""
    users = len(ranks)
    result = {f"recall@{k}": sum(rank < k for rank in ranks) / users for k in cutoffs}
    result |= {f"ndcg@{k}": sum(1 / math.log2(rank + 2) for rank in ranks if rank < k) / users for k in cutoffs}
    return result | {"mrr@10": sum(1 / (rank + 1) for rank in ranks if rank < 10) / users}


def code_figures(code_ranks: Sequence[int], item_figures: dict[str, float], cutoffs: Sequence[int]) -> dict[str, float]:
    """What a match of the semantic codes would have claimed, and by how much that is too much."""
    claimed = {f"code_{name}": value for name, value in figures(code_ranks, cutoffs).items() if name.startswith("recall")}
    return claimed | {"code_gap@10": claimed["code_recall@10"] - item_figures["recall@10"]}
