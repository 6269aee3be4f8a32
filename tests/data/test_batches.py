"""SeqData against slow, obvious references."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.processed import SeqData
from data.schemas import PAD, SeqBatch, UserError
from tests.synthetic import to_histories, to_lists

NUM_ITEMS = 30
HISTORIES = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=18), min_size=1, max_size=8).filter(
    lambda users: any(len(items) == 2 or len(items) >= 4 for items in users)
)


def train_part(users):
    return [items[:-2] if len(items) >= 3 else items for items in users]


def epoch(data: SeqData, batch_size: int, seed: int = 0, number: int = 0, rank: int = 0, world: int = 1) -> list[SeqBatch]:
    steps = data.steps_per_epoch(batch_size, world)
    return [data.train_batch(number * steps + step, batch_size, seed, rank, world) for step in range(steps)]


def rows_of(batches: list[SeqBatch], causal: bool = False) -> list[tuple]:
    """(user, items, targets); in causal rows the targets start where the items do."""
    rows = []
    for batch in batches:
        for user, items, targets in zip(batch.user_ids.tolist(), batch.item_ids.tolist(), batch.targets.tolist()):
            length = sum(item != PAD for item in items)
            assert all(item == PAD for item in items[length:])
            context = len(items) - len(targets) if causal else 0
            rows.append((user, tuple(items[:length]), (PAD,) * context + tuple(targets)))
    return rows


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.integers(1, 7), st.integers(1, 12))
def test_single_target_rows_are_every_prefix_with_its_last_items(users, max_seq_len, batch_size):
    data = SeqData(to_histories(users), NUM_ITEMS, max_seq_len, causal=False)
    expected = Counter(
        (user, tuple(items[max(0, p - max_seq_len) : p]), (items[p],))
        for user, items in enumerate(train_part(users))
        for p in range(1, len(items))
    )
    assert Counter(rows_of(epoch(data, batch_size))) == expected
    assert data.num_train_targets == expected.total()


def windows_by_hand(items: list[int], width: int) -> list[tuple]:
    """Walks over a user's targets one by one, opening a new row when the current one is full."""
    inputs, stride = len(items) - 1, max(1, width // 2)
    if inputs < 1:
        return []
    rows, begin, done = [], 0, 0
    while done < inputs:
        end = min(begin + width, inputs)
        targets = [PAD if position < done else items[position + 1] for position in range(begin, end)]
        rows.append((tuple(items[begin:end]), tuple(targets)))
        done, begin = end, begin + stride
    return rows


@settings(max_examples=80, deadline=None)
@given(HISTORIES, st.integers(1, 7), st.integers(1, 12))
def test_windows_agree_with_a_walk_over_each_user(users, max_seq_len, batch_size):
    data = SeqData(to_histories(users), NUM_ITEMS, max_seq_len, causal=True)
    expected = Counter((user, *row) for user, items in enumerate(train_part(users)) for row in windows_by_hand(items, max_seq_len))
    found = Counter((user, items, targets[: len(items)]) for user, items, targets in rows_of(epoch(data, batch_size), causal=True))
    assert found == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=6), st.integers(1, 9), st.booleans())
def test_each_training_target_occurs_exactly_once_an_epoch(lengths, max_seq_len, causal):
    # Items are numbered so that each interaction is recognisable.
    starts = [sum(lengths[:user]) for user in range(len(lengths))]
    users = [list(range(start, start + length)) for start, length in zip(starts, lengths)]
    if all(length < 4 for length in lengths):
        return
    data = SeqData(to_histories(users), sum(lengths), max_seq_len, causal)
    targets = Counter()
    for batch in epoch(data, 16):
        for items, row in zip(batch.item_ids.tolist(), batch.targets.tolist()):
            for position, target in enumerate(row, start=len(items) - len(row) if causal else 0):
                if target != PAD:
                    targets[target] += 1
                    last = items[position] if causal else max(items)
                    assert last == target - 1  # the item that really came before
                    history = position + 1 if causal else sum(item != PAD for item in items)
                    before = target - max(start for start in starts if start <= target)
                    assert history >= min(before, max(1, max_seq_len // 2) if causal else max_seq_len)
            if causal:
                assert row[sum(item != PAD for item in items) - 1 - len(items) + len(row)] != PAD  # no item behind the last target
    assert targets == Counter(item for items in train_part(users) for item in items[1:])


def test_a_long_user_is_cut_as_the_page_says():
    data = SeqData(to_histories([[*range(9), 20, 21]]), NUM_ITEMS, 4, causal=True)
    assert sorted(rows_of(epoch(data, 100), causal=True)) == [
        (0, (0, 1, 2, 3), (1, 2, 3, 4)),
        (0, (2, 3, 4, 5), (PAD, PAD, 5, 6)),
        (0, (4, 5, 6, 7), (PAD, PAD, 7, 8)),
    ]


def example(causal: bool = True, num_users: int = 60, max_seq_len: int = 6) -> SeqData:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 25, (num_users,), generator=generator).tolist()
    return SeqData(
        to_histories([torch.randint(0, NUM_ITEMS, (n,), generator=generator).tolist() for n in lengths]), NUM_ITEMS, max_seq_len, causal
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 32, 10_000])
def test_a_batch_never_has_more_targets_than_its_size_unless_one_row_has(causal, batch_size):
    for batch in epoch(example(causal), batch_size):
        assert int((batch.targets != PAD).sum()) <= batch_size or len(batch.user_ids) == 1
        assert batch.seen is None


@pytest.mark.parametrize("causal", [True, False])
def test_every_epoch_has_the_same_number_of_steps_and_another_order(causal):
    data = example(causal)
    plans = [data.train_plan(16, seed=1, epoch=number) for number in range(4)]
    assert {len(plan.offsets) - 1 for plan in plans} == {data.steps_per_epoch(16)}
    for plan in plans:
        assert sorted(plan.rows.tolist()) == list(range(len(data.windows.users)))
    sizes = [
        Counter(data.windows.num_targets[plan.rows[a:b]].sum().item() for a, b in zip(plan.offsets, plan.offsets[1:])) for plan in plans
    ]
    assert all(size == sizes[0] for size in sizes)
    assert not torch.equal(plans[0].rows, plans[1].rows)
    assert not torch.equal(data.train_plan(16, seed=2, epoch=0).rows, plans[0].rows)


def test_almost_no_padding_is_computed():
    data = example(causal=False, num_users=400)
    batches = epoch(data, 64)
    padded = sum(int((batch.item_ids == PAD).sum()) for batch in batches)
    assert padded / sum(batch.item_ids.numel() for batch in batches) < 0.02


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.integers(1, 7), st.integers(1, 12))
def test_positions_that_are_context_in_every_row_of_a_batch_are_not_decoded(users, max_seq_len, batch_size):
    for batch in epoch(SeqData(to_histories(users), NUM_ITEMS, max_seq_len, causal=True), batch_size):
        assert (batch.targets[:, 0] != PAD).any()


def test_most_of_a_long_users_second_row_is_not_decoded():
    data = SeqData(to_histories([[*range(9), 20, 21]]), NUM_ITEMS, 4, causal=True)
    shapes = sorted((tuple(batch.item_ids.shape), tuple(batch.targets.shape)) for batch in epoch(data, 4))
    assert shapes == [((1, 4), (1, 4)), ((2, 4), (2, 2))]


def same(one: SeqBatch, other: SeqBatch) -> bool:
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize("causal", [True, False])
def test_a_training_batch_is_a_function_of_its_step(causal):
    data, steps = example(causal), example(causal).steps_per_epoch(16)
    forward = [data.train_batch(step, 16, seed=5) for step in range(2 * steps)]
    for step in reversed(range(2 * steps)):  # another order, other questions in between, another object
        data.train_batch(step + steps, 32, seed=6)
        assert same(data.train_batch(step, 16, seed=5), forward[step])
    assert same(example(causal).train_batch(steps + 1, 16, seed=5), forward[steps + 1])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_all_ranks_are_the_batch_of_one(causal, world):
    data = example(causal)
    for step in range(data.steps_per_epoch(20)):
        whole = data.train_batch(step, 20, seed=0)
        shares = [data.train_batch(step, 20, 0, rank, world) for rank in range(world)]
        assert len({share.item_ids.shape[1] for share in shares}) == 1
        rows = Counter(row for row in rows_of(shares) if any(target != PAD for target in row[2]))
        assert rows == Counter(rows_of([whole]))


def test_a_rank_without_a_share_gets_a_row_without_targets():
    data = SeqData(to_histories([[1, 2, 3, 4]]), NUM_ITEMS)
    spare = data.train_batch(0, 8, seed=0, rank=1, world=2)
    assert spare.item_ids.tolist() == [[1]]
    assert spare.targets.tolist() == [[PAD]]


@pytest.mark.parametrize("part", ["validation", "test"])
@settings(max_examples=40, deadline=None)
@given(users=HISTORIES, max_seq_len=st.integers(1, 7), batch_size=st.integers(1, 5))
def test_evaluation_covers_each_user_once_with_the_history_of_its_part(part, users, max_seq_len, batch_size):
    data = SeqData(to_histories(users), NUM_ITEMS, max_seq_len)
    found = {}
    lengths = []
    for batch in data.eval_batches(part, batch_size):
        assert len(batch.user_ids) <= batch_size
        for user, items, targets, seen in zip(*(field.tolist() for field in batch)):
            assert user not in found
            found[user] = ([i for i in items if i != PAD], targets, [i for i in seen if i != PAD])
            lengths.append(len(found[user][0]))
    cut = 2 if part == "validation" else 1
    assert found == {u: (items[:-cut][-max_seq_len:], [items[-cut]], items[:-cut]) for u, items in enumerate(users) if len(items) >= 3}
    assert lengths == sorted(lengths)


def test_evaluation_of_some_users_is_evaluation_restricted_to_them():
    data = example()
    chosen = data.split.test.users[::3]
    batches = list(data.eval_batches("test", 7, users=chosen.flip(0)))
    assert sorted(torch.cat([batch.user_ids for batch in batches]).tolist()) == chosen.tolist()
    targets = dict(zip(data.split.test.users.tolist(), data.split.items(data.split.test).tolist()))
    assert all(targets[u] == t for batch in batches for u, (t,) in zip(batch.user_ids.tolist(), batch.targets.tolist()))
    assert list(data.eval_batches("test", 7, users=torch.tensor([], dtype=torch.int64))) == []
    without = next(u for u, items in enumerate(to_lists(data.split.full)) if len(items) < 3)
    with pytest.raises(ValueError, match="no targets"):
        list(data.eval_batches("test", 7, users=torch.tensor([without])))


def test_moving_to_a_device_changes_no_batch():
    moved = example().to("cpu")
    assert same(moved.train_batch(3, 16, seed=0), example().train_batch(3, 16, seed=0))
    assert same(next(moved.eval_batches("test", 5)), next(example().eval_batches("test", 5)))


def test_popularity_and_counts_come_from_the_training_part():
    data = SeqData(to_histories([[1, 1, 2, 3, 4], [5]]), 6)
    assert data.popularity.tolist() == [0, 2, 1, 0, 0, 1]
    assert (data.num_users, data.num_items, data.num_train_targets) == (2, 6, 2)


@pytest.mark.parametrize(
    ("users", "max_seq_len", "sentence"), [([[1], [1, 2, 3]], 5, "no user has two"), ([[1, 2, 3, 4]], 0, "max_seq_len is 0")]
)
def test_data_that_cannot_train_is_refused(users, max_seq_len, sentence):
    with pytest.raises(UserError, match=sentence):
        SeqData(to_histories(users), NUM_ITEMS, max_seq_len)
