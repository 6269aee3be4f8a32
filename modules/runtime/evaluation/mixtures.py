"""What the parts of a mixture give, alone and together: the beam search, the softmax over all items and the memory, at any shares.

    python -m modules.runtime.evaluation.mixtures RUN                                 # every part, pair and all three, on validation
    python -m modules.runtime.evaluation.mixtures RUN --shares 0.1,0.4,0.5 0.5,0,0.5  # of search, items and memory
    python train_decoder.py CONFIG 'mixtures=["0.5,0,0.5"]'                           # as rows of a run's report

"search" is TIGER's beam search, "items" the softmax over all items (TIGER's item head, or SASRec), "memory" the memory. A mixture with a
share of the search is found by the search, as a run with such weights is; one without is scored over all items, as a model without semantic
IDs would be. The command evaluates the run's own validation users; it never reads the test part.
Shape letters: B batch, I items.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.schemas import PAD, SeqBatch, UserError
from evaluate.baselines import Ranked
from evaluate.evaluation import Evaluation, evaluation_report
from evaluate.rankers import Ranker
from evaluate.scorers import ScoreRanker
from modules.memory import Memory
from modules.mixture import Shares, parse_shares
from modules.runtime.evaluation.baselines import Untrained
from modules.runtime.evaluation.evaluator import Evaluator
from modules.runtime.runs.finished import text_vectors
from modules.runtime.runs.recommender import Recommender
from modules.runtime.runs.searcher import Searcher

DEFAULT = ("1,0,0", "0,1,0", "0,0,1", "0.5,0.5,0", "0.5,0,0.5", "0.3,0,0.7", "0,0.5,0.5", "0,0.3,0.7", "0.1,0.4,0.5", "0.2,0.3,0.5")


class Unsearched:
    """Softmax over all items and memory mixed, without a search; a ScoredRanker.

    Args:
        recommender: has the softmax.
        memory: of the training part.
        shares: none of the search.
    """

    def __init__(self, recommender: Recommender, memory: Memory, shares: Shares) -> None:
        self.recommender, self.memory, self.shares = recommender, memory, shares
        self.name = f"{recommender.name}: {shares.describe()}"

    def recommend(self, batch: SeqBatch, k: int, filter_history: bool) -> Tensor:
        """See ``Ranker.recommend``."""
        return self.ranked(batch, k, filter_history).item_ids

    def ranked(self, batch: SeqBatch, k: int, filter_history: bool) -> Ranked:
        """See ``ScoredRanker.ranked``."""
        return ScoreRanker(_Scores(self, filter_history), self.recommender.order).ranked(batch, k, filter_history)


class _Scores(NamedTuple):
    """Probabilities among the items that are not barred; a ``scorers.Scorer``."""

    mixed: Unsearched
    filter_history: bool

    def scores(self, batch: SeqBatch) -> Tensor:
        """[B, I]; whatever for barred items."""
        barred = (batch.item_ids if batch.seen is None else batch.seen) if self.filter_history else None
        recommender, shares, count = self.mixed.recommender, self.mixed.shares, len(self.mixed.recommender.order)
        scores = torch.zeros(len(batch.item_ids), count, device=batch.item_ids.device)
        if shares.items:
            scores = scores + shares.items * recommender.item_probs(batch, barred)
        if shares.memory:
            items, probs, others = self.mixed.memory.distribution(batch.item_ids, barred)
            spread = others.unsqueeze(1).repeat(1, count + 1)
            scores = scores + shares.memory * spread.scatter_(1, torch.where(items == PAD, count, items), probs)[:, :-1]
        return scores


def mixed(recommender: Recommender, memory: Memory, shares: Shares) -> Ranker:
    """The model, mixed at these shares.

    Raises:
        UserError: it lacks a part that has a share.
    """
    searched = isinstance(recommender, Searcher)
    if shares.search and not searched:
        raise UserError(f"the mixture {shares.describe()!r} has a share of the search, which {recommender.name} has not; give it 0")
    if shares.items and not recommender.scores_items:
        raise UserError(f"the mixture {shares.describe()!r} has a share of the items, which needs train.item_head = True; give it 0")
    if not shares.search:
        return Unsearched(recommender, memory, shares)
    assert isinstance(recommender, Searcher)
    settings = recommender.retriever.settings._replace(memory_weight=shares.memory, head_weight=shares.items)
    ranker = Searcher(recommender.retriever._replace(settings=settings, memory=memory))
    ranker.dtype, ranker.name = recommender.dtype, f"{recommender.name}: {shares.describe()}"
    return ranker


def evaluate_mixtures(evaluator: Evaluator, memory: Memory, mixtures: Sequence[Shares]) -> list[tuple[str, Evaluation]]:
    """A row for each mixture on the validation part, of the evaluator's sample of users.

    Raises:
        UserError: see ``mixed``.
    """
    recommender, barred = evaluator.ranker, evaluator.protocol.filter_history
    assert isinstance(recommender, Recommender)
    rankers = [mixed(recommender, memory, shares) for shares in mixtures]
    return [(ranker.name, evaluator.evaluate(ranker, "validation", barred, sample=True, progress=True)) for ranker in rankers]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; exit code 2 and one sentence for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of train_decoder.py")
    parser.add_argument(
        "--shares", nargs="+", metavar="SEARCH,ITEMS,MEMORY", help="default: every part, pair and all three that the run has"
    )
    parser.add_argument("--users", type=int, help="of validation, drawn by the run's seed; default: all")
    parser.add_argument("--dataset-folder", help="where the data lie now; default: where the run was trained from")
    given = parser.parse_args(arguments)
    try:
        mixtures = [parse_shares(text) for text in given.shares or DEFAULT]
        evaluator = Evaluator.for_run(given.run, users=given.users, dataset_folder=given.dataset_folder)
        recommender = evaluator.ranker
        assert isinstance(recommender, Recommender)
        if not given.shares:
            has = Shares(isinstance(recommender, Searcher), recommender.scores_items, True)
            mixtures = [shares for shares in mixtures if all(there or not share for share, there in zip(shares, has))]
        memory = Untrained(evaluator.data.split.train, recommender.order, text_vectors(given.run, len(recommender.order))).memory
        rows = evaluate_mixtures(evaluator, memory, mixtures)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(evaluation_report(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
