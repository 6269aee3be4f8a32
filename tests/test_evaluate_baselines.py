"""Most popular and last-item Markov: by hand, against a slow obvious reference, and blind to how items are numbered."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schemas import PAD, SeqBatch
from evaluate import baselines
from evaluate.baselines import LastItemMarkov, MostPopular, last_items
from evaluate.metrics import mean_metrics, target_ranks, tie_order

TRAIN = [[0, 1, 2], [0, 1], [3, 1, 2], [], [0, 2, 4], [1]]
"""Popularity 3, 4, 3, 1, 1 (and 0 of item 5); 0 -> 1 twice, 0 -> 2, 1 -> 2 twice, 3 -> 1, 2 -> 4; no step from 4, 5 or across users."""
ORDER = torch.tensor([1, 0, 2, 3, 4, 5])


def pad(rows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), width)


def flat(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return torch.tensor([item for row in rows for item in row], dtype=torch.int64), offsets


def batch_of(histories: list[list[int]], seen: list[list[int]] | None = None) -> SeqBatch:
    users = len(histories)
    targets = torch.full((users, 1), PAD)
    return SeqBatch(torch.arange(users), pad(histories), targets, None if seen is None else pad(seen))


def markov(train: list[list[int]], num_items: int, order: torch.Tensor) -> LastItemMarkov:
    return LastItemMarkov(*flat(train), num_items, order)


def slow_markov(train, num_items, order, history, barred, k):
    """What LastItemMarkov promises, in plain Python."""
    follows = Counter((a, b) for row in train for a, b in pairwise(row))
    last = history[-1] if history else None
    ranked = sorted((i for i in range(num_items) if i not in barred), key=lambda i: (-follows[last, i], order[i]))
    return (ranked + [PAD] * k)[:k]


@st.composite
def worlds(draw):
    """Few items, so that ties, barred items and lists that run dry are common."""
    num_items = draw(st.integers(1, 8))
    histories = st.lists(st.lists(st.integers(0, num_items - 1), max_size=8), min_size=1, max_size=8)
    order = torch.tensor(draw(st.permutations(range(num_items))))
    return draw(histories), num_items, order, draw(histories), draw(st.integers(1, 12))


def test_markov_counts_equal_the_numbers_computed_by_hand():
    model = markov(TRAIN, 6, ORDER)
    assert model.counts.tolist() == [2, 1, 2, 1, 1]
    assert model.next_items.tolist() == [1, 2, 2, 4, 1]
    assert model.row_starts.tolist() == [0, 2, 3, 4, 5, 5, 5]


def test_markov_ranks_followers_first_and_fills_up_by_popularity():
    model = markov(TRAIN, 6, ORDER)
    ranked = model.recommend(batch_of([[5, 0], [2], [4], [], [0, 3]]), k=4, filter_history=False)
    assert ranked.tolist() == [[1, 2, 0, 3], [4, 1, 0, 2], [1, 0, 2, 3], [1, 0, 2, 3], [1, 0, 2, 3]]


def test_equal_counts_are_settled_by_the_order():
    train = [[0, 1], [0, 2], [0, 3]]
    ranked = markov(train, 5, torch.tensor([4, 2, 0, 1, 3])).recommend(batch_of([[0]]), k=5, filter_history=False)
    assert ranked.tolist() == [[2, 3, 1, 4, 0]]


def test_barring_uses_seen_and_falls_back_to_the_history():
    popular = MostPopular(ORDER)
    assert popular.recommend(batch_of([[0], [1]], seen=[[0, 1], [1]]), 3, filter_history=True).tolist() == [[2, 3, 4], [0, 2, 3]]
    assert popular.recommend(batch_of([[0], [1]]), 3, filter_history=True).tolist() == [[1, 2, 3], [0, 2, 3]]
    assert popular.recommend(batch_of([[0], [1]], seen=[[0, 1], [1]]), 3, filter_history=False).tolist() == [[1, 0, 2], [1, 0, 2]]


def test_lists_are_padded_when_fewer_than_k_items_are_left():
    for model in (MostPopular(ORDER), markov(TRAIN, 6, ORDER)):
        ranked = model.recommend(batch_of([[0, 1, 2, 3], [4]]), k=8, filter_history=True)
        assert ranked[0].tolist() == [4, 5, PAD, PAD, PAD, PAD, PAD, PAD]
        assert sorted(ranked[1].tolist()) == [PAD, PAD, PAD, 0, 1, 2, 3, 5]


def test_last_item_is_the_last_that_is_not_padding():
    assert last_items(torch.tensor([[3, 4, PAD], [5, PAD, PAD], [PAD, PAD, PAD], [0, 1, 2]])).tolist() == [4, 5, PAD, 2]
    assert last_items(torch.empty(2, 0, dtype=torch.int64)).tolist() == [PAD, PAD]


def test_no_step_is_counted_from_one_user_to_the_next():
    model = markov([[], [0], [], [], [1, 2], [3], []], 4, torch.arange(4))
    assert list(zip(model.next_items.tolist(), model.counts.tolist())) == [(2, 1)]
    assert markov([[]], 4, torch.arange(4)).recommend(batch_of([[2]]), 2, False).tolist() == [[0, 1]]


@given(worlds(), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_markov_agrees_with_a_slow_reference(world, filter_history, with_seen):
    train, num_items, order, histories, k = world
    seen = [history + history[:1] for history in histories] if with_seen else None
    ranked = markov(train, num_items, order).recommend(batch_of(histories, seen), k, filter_history)
    for row, history in zip(ranked.tolist(), histories):
        barred = set(history) if filter_history else set()
        assert row == slow_markov(train, num_items, order.tolist(), history, barred, k)


@given(worlds(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_most_popular_agrees_with_a_slow_reference(world, filter_history):
    _, num_items, order, histories, k = world
    ranked = MostPopular(order).recommend(batch_of(histories), k, filter_history)
    for row, history in zip(ranked.tolist(), histories):
        assert row == slow_markov([], num_items, order.tolist(), [], set(history) if filter_history else set(), k)


def test_lists_do_not_depend_on_the_chunk_size(monkeypatch):
    batch = batch_of([[0], [1, 2], [], [3, 4, 5], [5]])
    model = markov(TRAIN, 6, ORDER)
    whole = model.recommend(batch, 6, filter_history=True)
    monkeypatch.setattr(baselines, "KEYS_IN_MEMORY", 14)
    assert torch.equal(model.recommend(batch, 6, filter_history=True), whole)


def test_markov_refuses_an_order_or_offsets_of_another_corpus():
    with pytest.raises(ValueError, match="ranks 6 items, but num_items is 7"):
        markov(TRAIN, 7, ORDER)
    with pytest.raises(ValueError, match="from 0 to 12"):
        LastItemMarkov(flat(TRAIN)[0], torch.tensor([0, 11]), 6, ORDER)


# Relabelling: ids of public files follow first appearance, so whatever depends on them leaks the future.


def grown_corpus(seed: int = 0, users: int = 300, num_items: int = 120) -> list[list[int]]:
    """Histories whose ids follow first appearance, as in public files: the next unseen item is often the target."""
    generator = torch.Generator().manual_seed(seed)
    raw = [torch.randint(0, num_items, (6,), generator=generator).tolist() for _ in range(users)]
    ids: dict[int, int] = {}
    return [[ids.setdefault(item, len(ids)) for item in row] for row in raw]


def figures(sequences, num_items, keys, order_of=tie_order):
    """Every baseline's lists and metrics on the last item of every sequence."""
    train = [row[:-2] for row in sequences]
    popularity = torch.bincount(flat(train)[0], minlength=num_items)
    order = order_of(popularity, keys, 0)
    batch, targets = batch_of([row[:-1] for row in sequences]), torch.tensor([row[-1] for row in sequences])
    results = {}
    for model in (MostPopular(order), markov(train, num_items, order)):
        for barred in (True, False):
            ranked = model.recommend(batch, 20, barred)
            results[type(model).__name__, barred] = (ranked, mean_metrics(target_ranks(ranked, targets), (1, 5, 10, 20)))
    return results


def relabelled_figures(seed, order_of=tie_order):
    sequences = grown_corpus()
    num_items = max(map(max, sequences)) + 1
    keys = [f"asin {i * 7919 % 1000}" for i in range(num_items)]
    new_id = torch.randperm(num_items, generator=torch.Generator().manual_seed(seed))
    moved = [new_id[row].tolist() for row in sequences]
    moved_keys = [keys[i] for i in new_id.argsort().tolist()]
    return new_id, figures(sequences, num_items, keys, order_of), figures(moved, num_items, moved_keys, order_of)


@pytest.mark.parametrize("seed", range(3))
def test_relabelling_all_items_leaves_every_list_and_figure_exactly_unchanged(seed):
    new_id, before, after = relabelled_figures(seed)
    assert len(before) == 4
    for name, (ranked, metrics) in before.items():
        assert torch.equal(torch.where(ranked == PAD, PAD, new_id[ranked.clamp(min=0)]), after[name][0]), name
        assert metrics == after[name][1], name


def test_the_relabelling_test_catches_ties_by_id():
    def order_by_id(popularity, keys, seed):
        return popularity.argsort(descending=True, stable=True).argsort()

    _, before, after = relabelled_figures(0, order_by_id)
    assert all(before[name][1] != after[name][1] for name in before)
