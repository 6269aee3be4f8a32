"""The memory: by hand, against a plain-Python reference over all items, blind to numbering, and blind to validation and test."""

import math
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from data.schemas import PAD, UserError
from data.splits import leave_one_out
from evaluate.metrics import tie_order
from modules import nearest
from modules.memory import Memory, MemoryConfig
from modules.nearest import directions, nearest_texts, pair_cosines
from modules.transitions import last_two, pair_counts
from tests.synthetic import to_histories

EVERYTHING = MemoryConfig(neighbours=8, row_entries=99, candidates=99)


def pad(rows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), width)


def texts(num_items: int, seed: int = 0, width: int = 6) -> torch.Tensor:
    return torch.randn(num_items, width, generator=torch.Generator().manual_seed(seed)) + 1.0


def remember(train, num_items, vectors=None, config=EVERYTHING, order=None) -> Memory:
    order = torch.arange(num_items) if order is None else order
    return Memory.from_histories(*to_histories(train), num_items, order, vectors, config=config)


def slow_score(train, vectors, config, history, item) -> float:
    """The seven terms of MemoryConfig's formula, in plain Python; every cosine is taken, an item with itself has none."""
    follow = Counter((a, b) for row in train for a, b in pairwise(row))
    skip = Counter((a, b) for row in train for a, b in zip(row, row[2:]))

    def cosine(a, b):
        if vectors is None or a == b:
            return 0.0
        centred = vectors.double() - vectors.double().mean(0)
        return torch.cosine_similarity(centred[a], centred[b], dim=0).item()

    total = 0.0
    if history:
        a = history[-1]
        total += config.text * cosine(a, item) + config.next * math.log1p(follow[a, item]) + config.reverse * math.log1p(follow[item, a])
        total += config.skip * math.log1p(skip[a, item]) + config.skip_reverse * math.log1p(skip[item, a])
    if len(history) > 1:
        b = history[-2]
        total += config.text_before * cosine(b, item) + config.next_before * math.log1p(follow[b, item])
    return total


@st.composite
def worlds(draw):
    """Few items, so that repeats, shared entries of the last two items and barred candidates are common."""
    num_items = draw(st.integers(1, 9))
    histories = st.lists(st.lists(st.integers(0, num_items - 1), max_size=8), min_size=1, max_size=8)
    return draw(histories), num_items, draw(histories), draw(st.integers(0, 100))


def test_the_score_is_the_sum_computed_by_hand():
    # Item 1 followed 0 twice and preceded it once; 2 stood two places after 0 once; 3 followed 1 once, and nothing else leads to it.
    train = [[0, 1], [0, 1, 2], [1, 0], [1, 3]]
    memory = remember(train, 4)
    scores = memory.dense_scores(pad([[1, 0], [0]]))
    alone = [0.0, math.log(3) + 0.4 * math.log(2), 0.5 * math.log(2), 0.0]
    # With 1 as the item before: 2, 0 and 3 followed it once each.
    expected = [alone[0] + 0.4 * math.log(2), alone[1], alone[2] + 0.4 * math.log(2), alone[3] + 0.4 * math.log(2)]
    torch.testing.assert_close(scores, torch.tensor([expected, alone]))


def test_the_distribution_is_the_softmax_computed_by_hand():
    memory = remember([[0, 1], [0, 2], [0, 2]], 5, config=replace(EVERYTHING, sharpness=2.0, candidates=1))
    items, probs, others = memory.distribution(pad([[0], [4]]), barred=pad([[0], []]))
    # exp(2 log(1 + n)) = (1 + n)^2: item 2 has 9, item 1 has 4, items 3 and 4 have 1; 0 is barred. One candidate is kept.
    assert items.tolist() == [[2], [PAD]]
    torch.testing.assert_close(probs, torch.tensor([[9 / 15], [0.0]]))
    torch.testing.assert_close(others, torch.tensor([6 / 15 / 3, 1 / 5]))


def test_the_last_two_items_stop_at_padding():
    last, before = last_two(pad([[3, 4, 5], [6], [], [7, 7]]))
    assert (last.tolist(), before.tolist()) == ([5, 6, PAD, 7], [4, PAD, PAD, 7])
    assert [x.tolist() for x in last_two(torch.empty(2, 0, dtype=torch.int64))] == [[PAD, PAD], [PAD, PAD]]


def test_pairs_are_counted_within_a_user_only():
    keys, counts = pair_counts(*to_histories([[], [0, 1, 0], [2], [1, 0, 1]]), 3, 1)
    assert {(key // 3, key % 3): count for key, count in zip(keys.tolist(), counts.tolist())} == {(0, 1): 2, (1, 0): 2}
    keys, counts = pair_counts(*to_histories([[0, 1, 2], [2]]), 3, 2)
    assert (keys.tolist(), counts.tolist()) == ([2], [1])


@given(worlds(), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_scores_equal_the_slow_formula_over_all_items(world, with_texts, exact):
    train, num_items, histories, seed = world
    vectors = texts(num_items, seed) if with_texts or exact else None
    config = replace(EVERYTHING, exact_text=exact)
    memory = remember(train, num_items, vectors, config)
    dense = memory.dense_scores(pad(histories))
    listed = memory.scores(pad(histories))
    for row, history in enumerate(histories):
        expected = [slow_score(train, vectors, config, history, item) for item in range(num_items)]
        if with_texts and not exact:
            # A pair without a transition is stored only where its cosine is positive.
            stored = set(listed.items[row].tolist())
            assert all(dense[row, item] == 0 for item in range(num_items) if item not in stored)
            centred = directions(vectors)
            counted = {(x, y) for line in train for d in (1, 2) for x, y in zip(line, line[d:])}
            counted |= {(y, x) for x, y in counted}
            for item in range(num_items):
                for context, weight in zip(history[:-3:-1], (config.text, config.text_before)):
                    cosine = float(centred[context] @ centred[item])
                    if cosine <= 0 and context != item and (context, item) not in counted:
                        expected[item] -= weight * cosine
        torch.testing.assert_close(dense[row], torch.tensor(expected), atol=2e-5, rtol=1e-5)
        known = listed.items[row] != PAD
        torch.testing.assert_close(listed.scores[row][known], dense[row][listed.items[row][known]], atol=2e-6, rtol=1e-5)
        assert len(set(listed.items[row][known].tolist())) == known.sum()


@given(worlds(), st.booleans(), st.sampled_from([1, 2, 99]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_distribution_is_the_softmax_over_what_is_left(world, exact, candidates, restricted):
    train, num_items, histories, seed = world
    config = replace(EVERYTHING, exact_text=exact, candidates=candidates)
    memory = remember(train, num_items, texts(num_items, seed), config)
    barred = pad([history + history[:1] for history in histories])
    allowed = torch.rand(num_items, generator=torch.Generator().manual_seed(seed)) < 0.6 if restricted else None
    items, probs, others = memory.distribution(pad(histories), barred, allowed)
    listed = memory.scores(pad(histories), barred, allowed)
    stored = remember(train, num_items, texts(num_items, seed), replace(config, exact_text=False, candidates=99)).scores(pad(histories))
    for row, history in enumerate(histories):
        left = [i for i in range(num_items) if i not in history and (allowed is None or allowed[i])]
        rough = {i: s for i, s in zip(stored.items[row].tolist(), stored.scores[row].tolist()) if i in left}
        exact_ones = {i: s for i, s in zip(listed.items[row].tolist(), listed.scores[row].tolist()) if i != PAD}
        # The candidates are the best by what is stored; those passed over keep their stored score, all others have 0.
        assert set(exact_ones) <= set(rough)
        assert len(exact_ones) == min(candidates, len(rough))
        assert all(rough[i] >= rough[j] for i in exact_ones for j in set(rough) - set(exact_ones))
        weights = {i: math.exp(6.0 * (rough | exact_ones).get(i, 0.0)) for i in left}
        known = {i: p for i, p in zip(items[row].tolist(), probs[row].tolist()) if i != PAD}
        assert set(known) == set(exact_ones)
        for item, prob in known.items():
            assert prob == pytest.approx(weights[item] / sum(weights.values()), rel=1e-4)
        rest = [weights[i] for i in left if i not in known]
        shared = sum(rest) / sum(weights.values()) / len(rest) if rest else 0.0
        assert others[row].item() == pytest.approx(shared, rel=1e-4, abs=1e-7)
        assert sum(known.values()) + len(rest) * others[row].item() == pytest.approx(1.0 if left else 0.0, abs=1e-5)
        assert list(known.values()) == sorted(known.values(), reverse=True)


def test_a_barred_item_has_no_mass_and_leaves_its_share_to_the_others():
    memory = remember([[0, 1], [0, 2]], 4)
    free, fewer = memory.distribution(pad([[0]])), memory.distribution(pad([[0]]), barred=pad([[1, 1, 3]]))
    assert free.items[0].tolist()[:2] == [1, 2]
    assert [i for i in fewer.items[0].tolist() if i != PAD] == [2]
    torch.testing.assert_close(fewer.probs[0].sum() + fewer.others[0], torch.tensor(1.0))  # item 0 is the one other


def test_without_a_history_every_item_has_the_same_probability():
    items, probs, others = remember([[0, 1]], 4).distribution(torch.full((1, 3), PAD), barred=pad([[2]]))
    assert items.unique().tolist() == [PAD]
    assert probs.sum() == 0
    torch.testing.assert_close(others, torch.tensor([1 / 3]))


def test_no_mass_is_given_where_every_item_is_barred():
    items, probs, others = remember([[0, 1]], 2).distribution(pad([[0]]), barred=pad([[0, 1]]))
    assert (items.unique().tolist(), probs.sum().item(), others.tolist()) == ([PAD], 0.0, [0.0])


def test_high_scores_do_not_overflow():
    memory = remember([[0, 1]] * 1000, 3, config=replace(EVERYTHING, sharpness=40.0))
    items, probs, others = memory.distribution(pad([[0]]))
    assert items[0, 0] == 1
    assert torch.isfinite(probs).all()
    assert torch.isfinite(others).all()
    assert probs[0, 0] == pytest.approx(1.0)


def test_a_memory_without_training_pairs_or_texts_knows_nothing():
    memory = remember([[], [1], []], 3)
    assert memory.dense_scores(pad([[1, 2]])).tolist() == [[0.0, 0.0, 0.0]]
    torch.testing.assert_close(memory.distribution(pad([[1]])).others, torch.tensor([1 / 3]))


def test_changing_validation_and_test_items_changes_no_score():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 30, (int(n),), generator=generator).tolist() for n in torch.randint(3, 12, (60,), generator=generator)]
    other = [row[:-2] + torch.randint(0, 30, (2,), generator=generator).tolist() for row in rows]
    assert rows != other
    before, after = (Memory.from_histories(*leave_one_out(to_histories(part)).train, 30, torch.arange(30)) for part in (rows, other))
    for name, table in before.state_dict().items():
        assert torch.equal(table, after.state_dict()[name]), name
    leaking = [Memory.from_histories(*to_histories(part), 30, torch.arange(30)) for part in (rows, other)]
    assert leaking[0].columns.tolist() != leaking[1].columns.tolist()  # the check would see it


@pytest.mark.parametrize("exact", [False, True])
def test_relabelling_all_items_moves_scores_and_candidates_with_them(exact):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 80, (7,), generator=generator).tolist() for _ in range(150)]
    keys = [f"key {i}" for i in range(80)]
    vectors = texts(80)
    vectors[40:60] = vectors[20:40]  # texts that tie
    new = torch.randperm(80, generator=generator)
    moved_rows, moved_keys = [new[torch.tensor(row)].tolist() for row in rows], [keys[i] for i in new.argsort().tolist()]
    config = MemoryConfig(neighbours=3, row_entries=12, candidates=5, exact_text=exact)

    def made(part, names, table):
        counts = torch.bincount(to_histories(part).item_ids, minlength=80)
        return remember(part, 80, table, config, tie_order(counts, names, 0))

    old, moved = made(rows, keys, vectors), made(moved_rows, moved_keys, vectors[new.argsort()])
    a = old.distribution(pad(rows), pad(rows))
    b = moved.distribution(pad(moved_rows), pad(moved_rows))
    torch.testing.assert_close(a.probs, b.probs)
    torch.testing.assert_close(a.others, b.others)
    assert torch.equal(torch.where(a.items == PAD, PAD, new[a.items.clamp_min(0)]), b.items)


def test_a_long_row_keeps_its_best_entries():
    train = [[0, 1]] + [[0, 2]] * 3 + [[0, 3]] * 2 + [[4, 0]]
    memory = remember(train, 5, config=replace(EVERYTHING, row_entries=2))
    assert memory.row_width == 2  # 0 -> 2 three times and 0 -> 3 twice; 0 -> 1 and what came before 0 fall out
    assert memory.dense_scores(pad([[0]]))[0].tolist() == pytest.approx([0.0, 0.0, math.log(4), math.log(3), 0.0])


def test_neighbours_that_were_saved_give_the_same_memory_as_the_vectors_where_no_pair_lies_outside_them():
    train, vectors = [[0, 1, 2], [2, 3]], texts(6)
    order = torch.arange(6)
    found = nearest_texts(directions(vectors), 5, order)
    from_vectors = remember(train, 6, vectors, replace(EVERYTHING, exact_text=False))
    from_saved = Memory.from_histories(*to_histories(train), 6, order, neighbours=found, config=EVERYTHING)
    history = pad([[i, j] for i in range(6) for j in range(6)])
    difference = from_vectors.dense_scores(history) - from_saved.dense_scores(history)
    assert (from_saved.last != 0).any()
    assert (difference <= 1e-6).all()  # what is missing are cosines below 0, of pairs with a transition


def test_nearest_texts_are_those_of_the_whole_matrix_at_any_block_size(monkeypatch):
    vectors = directions(texts(70))
    order = torch.randperm(70)
    whole = nearest_texts(vectors, 9, order)
    full = (vectors @ vectors.T).fill_diagonal_(-2.0)
    values, items = full.topk(9, dim=1)
    torch.testing.assert_close(whole.cosines, values.clamp_min(0))
    assert torch.equal(whole.items, items.masked_fill(values <= 0, PAD))
    monkeypatch.setattr(nearest, "QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(nearest, "KEYS_AT_ONCE", 11)
    monkeypatch.setattr(nearest, "NUMBERS_AT_ONCE", 64)
    blocks = nearest_texts(vectors, 9, order)
    assert torch.equal(blocks.items, whole.items)
    assert torch.equal(blocks.cosines, whole.cosines)


def test_equal_texts_are_neighbours_in_the_order_that_breaks_ties():
    vectors = directions(torch.tensor([[1.0, 0.0]] * 4 + [[-1.0, 0.0]] * 4))
    found = nearest_texts(vectors, 2, torch.tensor([3, 1, 0, 2, 4, 5, 6, 7]))
    assert found.items[:4].tolist() == [[2, 1], [2, 3], [1, 3], [2, 1]]


def test_a_catalogue_of_one_item_has_no_neighbours():
    assert nearest_texts(directions(torch.ones(1, 3)), 5, torch.arange(1)).items.tolist() == [[PAD] * 5]


def test_the_cosine_of_a_pair_does_not_depend_on_its_place_or_direction():
    vectors = directions(texts(50, width=37))
    first, second = torch.randint(50, (400,)), torch.randint(50, (400,))
    shuffle = torch.randperm(400)
    assert torch.equal(pair_cosines(vectors, first, second)[shuffle], pair_cosines(vectors, second[shuffle], first[shuffle]))


@pytest.mark.parametrize("exact", [False, True])
def test_a_saved_memory_scores_as_before(exact):
    memory = remember([[0, 1, 2], [2, 3, 4]], 6, texts(6), replace(EVERYTHING, exact_text=exact))
    again = Memory.from_state(load(save(memory.state_dict())), MemoryConfig(**asdict(memory.config)))
    history = pad([[0, 1], [2], []])
    assert torch.equal(memory.dense_scores(history), again.dense_scores(history))
    assert all(torch.equal(a, b) for a, b in zip(memory.distribution(history), again.distribution(history)))


def test_scores_are_fp32_under_autocast():
    memory = remember([[0, 1, 2], [2, 3, 4]], 6, texts(6))
    history = pad([[0, 1], [2], []])
    with torch.autocast("cpu", torch.bfloat16):
        inside = [memory.dense_scores(history), memory.scores(history).scores, memory.distribution(history).probs]
    outside = [memory.dense_scores(history), memory.scores(history).scores, memory.distribution(history).probs]
    assert all(torch.equal(a, b) for a, b in zip(inside, outside))


def test_candidates_that_are_few_by_choice_are_the_best(device):
    train = [[0, 1]] * 4 + [[0, 2]] * 3 + [[0, 3]] * 2 + [[0, 4]]
    memory = remember(train, 5, config=replace(EVERYTHING, candidates=2)).to(device)
    history = pad([[0]]).to(device)
    assert memory.scores(history).items.tolist() == [[1, 2]]
    assert memory.scores(history, barred=pad([[1]]).to(device)).items.tolist() == [[2, 3]]
    only = torch.tensor([True, False, False, True, True], device=device)
    assert memory.scores(history, allowed=only).items.tolist() == [[3, 4]]


def test_the_memory_works_where_it_is_moved(device):
    train = [[0, 1, 2], [2, 3, 4]]
    moved, here = remember(train, 6, texts(6)).to(device), remember(train, 6, texts(6))
    history = pad([[0, 1], [2], []])
    for a, b in zip(moved.distribution(history.to(device), history.to(device)), here.distribution(history, history)):
        torch.testing.assert_close(a.cpu(), b)


def test_what_belongs_to_another_corpus_is_refused():
    flat = to_histories([[0, 1]])
    with pytest.raises(ValueError, match="order ranks 3 items, but num_items is 2"):
        Memory.from_histories(*flat, 2, torch.arange(3))
    with pytest.raises(ValueError, match="from 0 to 2"):
        Memory.from_histories(flat.item_ids, torch.tensor([0, 1]), 2, torch.arange(2))
    with pytest.raises(ValueError, match="3 text vectors for 2 items"):
        Memory.from_histories(*flat, 2, torch.arange(2), texts(3))


def test_weights_and_sizes_out_of_range_are_told_together():
    with pytest.raises(UserError) as refused:
        MemoryConfig(next=-1.0, sharpness=0.0, candidates=0)
    assert len(refused.value.args) == 3
