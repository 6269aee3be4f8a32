"""The baselines of a report: which rows there are, what they count, and that held-out items change nothing in them."""

import pytest
import torch

from data.processed import SeqData
from evaluate.baselines import LastItemMarkov, MostPopular
from evaluate.item_knn import ItemKNN
from evaluate.metrics import tie_order
from evaluate.scorers import MemoryRanker
from modules.memory import MARKOV_WITH_TEXTS, Memory
from modules.runtime.evaluation.baselines import Untrained
from tests.synthetic import to_histories

ITEMS = 40
KEYS = [f"i{item}" for item in range(ITEMS)]
VECTORS = torch.randn(ITEMS, 8, generator=torch.Generator().manual_seed(1))


def users(last_two: int) -> list[list[int]]:
    """60 users of three to twelve items; ``last_two`` draws the two that are held out."""
    generator, held_out = torch.Generator().manual_seed(0), torch.Generator().manual_seed(last_two)
    lengths = torch.randint(1, 11, (60,), generator=generator).tolist()
    train = [torch.randint(0, ITEMS, (length,), generator=generator).tolist() for length in lengths]
    return [[*items, *torch.randint(0, ITEMS, (2,), generator=held_out).tolist()] for items in train]


def untrained_of(histories: list[list[int]], vectors: torch.Tensor | None) -> tuple[SeqData, Untrained]:
    data = SeqData(to_histories(histories), ITEMS, 20)
    return data, Untrained(data.split.train, tie_order(data.popularity, KEYS, 0), vectors)


@pytest.mark.parametrize("vectors", [None, VECTORS], ids=["without texts", "texts"])
def test_every_row_ranks_as_its_own_baseline_does(vectors):
    data, untrained = untrained_of(users(5), vectors)
    train, order = data.split.train, untrained.order
    expected = {
        "most popular": MostPopular(order),
        "last item -> next (Markov)": LastItemMarkov(*train, ITEMS, order),
        "Markov with texts": MemoryRanker(Memory.from_histories(*train, ITEMS, order, vectors, config=MARKOV_WITH_TEXTS), order),
        "item-kNN": ItemKNN(*train, ITEMS, order),
        "memory": MemoryRanker(Memory.from_histories(*train, ITEMS, order, vectors), order),
    }
    if vectors is None:
        del expected["Markov with texts"]
        expected["memory without texts"] = expected.pop("memory")
    rankers = untrained.rankers()
    assert [ranker.name for ranker in rankers] == list(expected)
    found = []
    for batch in data.eval_batches("test", 16):
        lists = [ranker.recommend(batch, 10, True) for ranker in rankers]
        for ours, theirs in zip(lists, expected.values(), strict=True):
            assert torch.equal(ours, theirs.recommend(batch, 10, True))
        found.append(torch.stack(lists))
    together = torch.cat(found, dim=1)
    assert all(not torch.equal(a, b) for i, a in enumerate(together) for b in together[:i])


@pytest.mark.parametrize("vectors", [None, VECTORS], ids=["without texts", "texts"])
def test_held_out_items_change_nothing_in_the_memory_nor_in_any_list(vectors):
    first, second = users(5), users(6)
    assert first != second
    (data, ours), (_, theirs) = (untrained_of(histories, vectors) for histories in (first, second))
    before, after = ours.memory.state_dict(), theirs.memory.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for one, other in zip(ours.rankers(), theirs.rankers(), strict=True):
        for batch in data.eval_batches("validation", 16):
            assert torch.equal(one.recommend(batch, 10, False), other.recommend(batch, 10, False))
