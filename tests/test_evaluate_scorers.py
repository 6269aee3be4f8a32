"""Item-kNN and the rankers over scores: by hand, against slow references, and blind to how items are numbered."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schemas import PAD
from evaluate import item_knn
from evaluate.baselines import LastItemMarkov, MostPopular, key_scores, score_keys
from evaluate.item_knn import ItemKNN
from evaluate.metrics import mean_metrics, target_ranks, tie_order
from evaluate.rankers import ScoredRanker
from evaluate.scorers import MemoryRanker, ScoreRanker
from modules.memory import MARKOV_WITH_TEXTS, Memory, MemoryConfig
from tests.test_evaluate_baselines import batch_of, flat, grown_corpus, worlds

ORDER = torch.tensor([1, 0, 2, 3, 4, 5])


def slow_ranking(score, num_items, order, barred, k):
    """Every item by score, then by order, in plain Python."""
    ranked = sorted((i for i in range(num_items) if i not in barred), key=lambda i: (-score(i), order[i]))
    return (ranked + [PAD] * k)[:k]


def slow_similarities(train, num_items, window, backward) -> np.ndarray:
    """The sum over all pairs of places, one after the other."""
    table = np.zeros((num_items, num_items))
    for row in train:
        for here, i in enumerate(row):
            for there, j in enumerate(row):
                if i != j and 0 < abs(there - here) <= window:
                    table[i, j] += (1.0 if there > here else backward) / abs(there - here)
    occurrences = np.bincount([i for row in train for i in row], minlength=num_items)
    return table / np.sqrt(np.maximum(occurrences, 1))[:, None]


class Table:
    """Scores written down before."""

    def __init__(self, rows):
        self.rows = torch.as_tensor(rows)

    def scores(self, batch):
        return self.rows[batch.user_ids]


# Item-kNN


def test_the_similarities_are_the_sums_computed_by_hand():
    # 0 -> 1 at distance 1, 0 -> 2 at distance 2, 1 -> 2 at distance 1; then 1 -> 0 at distance 1.
    model = ItemKNN(*flat([[0, 1, 2], [1, 0]]), 3, torch.tensor([0, 1, 2]), neighbours=2, window=5, backward=0.5)
    assert model.similar.items.tolist() == [[1, 2], [0, 2], [1, 0]]
    root = math.sqrt(2)  # 0 and 1 occur twice
    expected = [[1.5 / root, 0.5 / root], [1.5 / root, 1 / root], [0.5, 0.25]]
    torch.testing.assert_close(model.similar.similarities.float(), torch.tensor(expected))


def test_later_items_of_the_history_count_more():
    model = ItemKNN(*flat([[0, 1], [2, 3]]), 4, torch.arange(4), decay=0.5)
    assert model.recommend(batch_of([[0, 2], [2, 0]]), 2, filter_history=True).tolist() == [[3, 1], [1, 3]]


@given(worlds(), st.booleans(), st.integers(1, 4), st.sampled_from([0.0, 0.4, 1.0]))
@settings(max_examples=150, deadline=None)
def test_item_knn_agrees_with_a_slow_reference(world, filter_history, window, backward):
    train, num_items, order, histories, k = world
    model = ItemKNN(*flat(train), num_items, order, neighbours=num_items, window=window, decay=0.5, backward=backward)
    table = slow_similarities(train, num_items, window, backward).astype(np.float32).astype(np.float64)
    ranked = model.recommend(batch_of(histories), k, filter_history)
    for row, history in zip(ranked.tolist(), histories):
        totals = np.zeros(num_items)
        for after, item in enumerate(reversed(history)):
            totals += 0.5**after * table[item]
        totals = totals.astype(np.float32)
        barred = set(history) if filter_history else set()
        expected = slow_ranking(lambda i, totals=totals: totals[i], num_items, order.tolist(), barred, k)
        # Sums of equal parts may differ in the last bit by their order: positions are the same or hold scores that close.
        for mine, theirs in zip(row, expected):
            assert (mine == PAD) == (theirs == PAD)
            assert mine == theirs or abs(totals[mine] - totals[theirs]) <= 1e-6 * totals[theirs]


def test_item_knn_equals_the_product_of_sparse_matrices():
    from scipy.sparse import csr_array

    train = grown_corpus(1, users=80, num_items=40)
    num_items = max(map(max, train)) + 1
    model = ItemKNN(*flat(train), num_items, torch.arange(num_items), neighbours=num_items, window=1, backward=1.0)
    steps = [(a, b) for row in train for a, b in pairwise(row) if a != b]
    follow = csr_array((np.ones(len(steps)), tuple(np.array(steps).T)), shape=(num_items, num_items))
    occurrences = np.bincount(flat(train)[0].numpy(), minlength=num_items)
    together = (follow + follow.T).toarray() / np.sqrt(np.maximum(occurrences, 1))[:, None]
    dense = torch.zeros(num_items, num_items + 1, dtype=torch.float64)
    items, similarities = model.similar
    dense.scatter_(1, items.masked_fill(items == PAD, num_items), similarities)
    torch.testing.assert_close(dense[:, :-1].float(), torch.from_numpy(together).float())


def test_only_the_largest_similarities_are_kept_ties_by_the_order():
    model = ItemKNN(*flat([[0, 1], [0, 2], [0, 3], [0, 3]]), 4, torch.tensor([0, 3, 2, 1]), neighbours=2)
    assert model.similar.items[0].tolist() == [3, 2]


def test_counting_in_small_blocks_changes_nothing(monkeypatch):
    train = grown_corpus(2, users=60, num_items=30)
    whole = ItemKNN(*flat(train), 200, torch.arange(200)).similar
    monkeypatch.setattr(item_knn, "PAIRS_AT_ONCE", 100)
    for a, b in zip(whole, ItemKNN(*flat(train), 200, torch.arange(200)).similar):
        assert torch.equal(a, b)


def test_item_knn_refuses_an_order_or_offsets_of_another_corpus():
    with pytest.raises(ValueError, match="ranks 6 items, but num_items is 7"):
        ItemKNN(*flat([[0, 1]]), 7, ORDER)
    with pytest.raises(ValueError, match="from 0 to 2"):
        ItemKNN(flat([[0, 1]])[0], torch.tensor([0, 1]), 6, ORDER)


def test_without_training_pairs_item_knn_is_most_popular():
    assert ItemKNN(*flat([[], [2]]), 3, torch.tensor([1, 2, 0])).recommend(batch_of([[0], []]), 3, False).tolist() == [[2, 0, 1]] * 2


# Rankers over scores


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9), st.randoms())
@settings(max_examples=200, deadline=None)
def test_score_keys_sort_as_the_scores_do_and_never_tie(values, random):
    order = list(range(len(values)))
    random.shuffle(order)
    keys = score_keys(torch.tensor([values]), torch.tensor(order))[0].tolist()
    assert keys[-1] == -1
    assert min(keys[:-1]) >= 0
    exact = [Fraction(v) if math.isfinite(v) else v for v in values]
    expected = sorted(range(len(values)), key=lambda i: (-exact[i], order[i]))
    assert sorted(range(len(values)), key=lambda i: -keys[i]) == expected


def test_scores_are_ranked_ties_by_the_order_and_barred_items_left_out():
    scorer = Table([[0.5, 0.5, -1.0, 2.0, -0.0, 0.0]])
    ranker = ScoreRanker(scorer, ORDER)
    assert ranker.recommend(batch_of([[3]]), 7, filter_history=False).tolist() == [[3, 1, 0, 4, 5, 2, PAD]]
    assert ranker.recommend(batch_of([[3]], seen=[[3, 1]]), 4, filter_history=True).tolist() == [[0, 4, 5, 2]]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_the_keys_of_scores_give_the_scores_back(values):
    keys = score_keys(torch.tensor([values]), torch.arange(len(values)))
    assert key_scores(keys, len(values))[0, :-1].tolist() == values


def test_every_ranker_says_what_ranks_its_items():
    train, order = [[0, 1, 2], [1, 0], [0, 1]], torch.tensor([1, 0, 2, 3])
    memory = memory_of(train, 4, order)
    known = dict(zip(*(column[0].tolist() for column in memory.scores(torch.tensor([[0]])))))
    expected = {
        MostPopular(order): {1: 3, 0: 2, 2: 1, 3: 0},
        LastItemMarkov(*flat(train), 4, order): {1: 2, 0: 0, 2: 0, 3: 0},
        ScoreRanker(Table([[-0.5, 2.0, -1.0, 0.0]]), order): {0: -0.5, 1: 2.0, 2: -1.0, 3: 0.0},
        MemoryRanker(memory, order): {item: known.get(item, 0.0) for item in range(4)},
        ItemKNN(*flat(train), 4, order): {0: 0.0, 1: (1 + 1 + 0.4) / math.sqrt(3), 2: 0.5 / math.sqrt(3), 3: 0.0},
    }
    for ranker, scores in expected.items():
        assert isinstance(ranker, ScoredRanker)
        ranked = ranker.ranked(batch_of([[0]]), 5, filter_history=False)
        assert torch.equal(ranked.item_ids, ranker.recommend(batch_of([[0]]), 5, filter_history=False))
        assert ranked.scores[0].tolist() == pytest.approx([scores[item] for item in ranked.item_ids[0, :4].tolist()] + [-math.inf])
        barred = ranker.ranked(batch_of([[0]]), 4, filter_history=True)
        assert 0 not in barred.item_ids
        assert barred.scores[0, 3] == -math.inf


def memory_of(train, num_items, order, vectors=None, **changed):
    config = MemoryConfig(**{"neighbours": 3, **changed})
    return Memory.from_histories(*flat(train), num_items, order, vectors, config=config)


@given(worlds(), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_memory_s_ranking_is_that_of_its_scores_over_all_items(world, filter_history, with_texts, exact):
    train, num_items, order, histories, k = world
    vectors = torch.randn(num_items, 4, generator=torch.Generator().manual_seed(k)) if with_texts else None
    memory = memory_of(train, num_items, order, vectors, exact_text=exact)
    batch = batch_of(histories, [history + history[:1] for history in histories])
    ranked = MemoryRanker(memory, order).recommend(batch, k, filter_history)
    listed = memory.scores(batch.item_ids)
    for row, history, items, scores in zip(ranked.tolist(), histories, listed.items.tolist(), listed.scores.tolist()):
        barred, known = set(history) if filter_history else set(), dict(zip(items, scores))
        assert row == slow_ranking(lambda i, known=known: known.get(i, 0.0), num_items, order.tolist(), barred, k)


def test_the_memory_fills_up_by_popularity():
    memory = memory_of([[0, 5], [0, 5], [0, 4]], 6, ORDER)
    ranker = MemoryRanker(memory, ORDER)
    assert ranker.recommend(batch_of([[0], [3], []]), 4, filter_history=True).tolist() == [[5, 4, 1, 2], [1, 0, 2, 4], [1, 0, 2, 3]]
    assert ranker.recommend(batch_of([[0]], seen=[[0, 1, 2, 5]]), 4, filter_history=True).tolist() == [[4, 3, PAD, PAD]]


def test_markov_with_texts_is_a_memory_of_two_terms():
    train, vectors = grown_corpus(3, users=100, num_items=30), torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    num_items = max(map(max, train)) + 1
    vectors = vectors[:num_items]
    memory = Memory.from_histories(
        *flat(train), num_items, torch.arange(num_items), vectors, config=replace(MARKOV_WITH_TEXTS, neighbours=99)
    )
    counts = torch.zeros(num_items, num_items)
    for row in train:
        for a, b in pairwise(row):
            counts[a, b] += 1
    centred = vectors - vectors.mean(0)
    cosines = torch.nn.functional.cosine_similarity(centred[:, None], centred[None], dim=-1).fill_diagonal_(0.0)
    expected = torch.where((cosines > 0) | (counts > 0), cosines + 0.5 * counts.log1p(), 0.0)  # unlike texts alone are not stored
    torch.testing.assert_close(memory.dense_scores(torch.arange(num_items)[:, None]), expected, atol=1e-5, rtol=1e-5)


# Relabelling, as in test_evaluate_baselines


def figures(sequences, num_items, keys, vectors):
    train = [row[:-2] for row in sequences]
    order = tie_order(torch.bincount(flat(train)[0], minlength=num_items), keys, 0)
    batch, targets = batch_of([row[:-1] for row in sequences]), torch.tensor([row[-1] for row in sequences])
    rankers = {
        "item-kNN": ItemKNN(*flat(train), num_items, order),
        "item-kNN, few": ItemKNN(*flat(train), num_items, order, neighbours=5),
        "memory": MemoryRanker(memory_of(train, num_items, order), order),
        "memory, texts": MemoryRanker(memory_of(train, num_items, order, vectors), order),
        "memory, short rows": MemoryRanker(memory_of(train, num_items, order, vectors, row_entries=7), order),
    }
    lists = {(name, barred): ranker.recommend(batch, 20, barred) for name, ranker in rankers.items() for barred in (True, False)}
    return {name: (ranked, mean_metrics(target_ranks(ranked, targets), (1, 5, 10, 20))) for name, ranked in lists.items()}


@pytest.mark.parametrize("seed", range(3))
def test_relabelling_all_items_leaves_every_list_and_figure_exactly_unchanged(seed):
    sequences = grown_corpus()
    num_items = max(map(max, sequences)) + 1
    keys = [f"asin {i * 7919 % 1000}" for i in range(num_items)]
    vectors = torch.randn(num_items, 6, generator=torch.Generator().manual_seed(9))
    vectors = vectors.round()  # texts that tie, and a mean that is the same in any order
    new_id = torch.randperm(num_items, generator=torch.Generator().manual_seed(seed))
    old_id = new_id.argsort()
    before = figures(sequences, num_items, keys, vectors)
    after = figures([new_id[row].tolist() for row in sequences], num_items, [keys[i] for i in old_id.tolist()], vectors[old_id])
    assert len(before) == 10
    for name, (ranked, metrics) in before.items():
        assert torch.equal(torch.where(ranked == PAD, PAD, new_id[ranked.clamp(min=0)]), after[name][0]), name
        assert metrics == after[name][1], name
