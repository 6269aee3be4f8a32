import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.corpus import Corpus
from data.schemas import UserError
from data.splits import (
    MetBefore,
    Targets,
    TimeSplit,
    check_no_leak,
    leave_one_out,
    met_before,
    part_mistakes,
    split_by_time,
    split_hash,
    time_bounds,
)
from data.statistics import item_popularity, statistics
from tests.synthetic import to_histories, to_lists

USERS = [[1, 2, 3, 4], [5, 6], [], [7, 8, 9], [4]]


def test_the_last_item_is_test_and_the_one_before_is_validation():
    split = leave_one_out(to_histories(USERS))
    assert to_lists(split.train) == [[1, 2], [5, 6], [], [7], [4]]
    assert split.validation.users.tolist() == split.test.users.tolist() == [0, 3]
    assert split.items(split.validation).tolist() == [3, 8]
    assert split.items(split.test).tolist() == [4, 9]


def test_a_clean_split_passes_the_leak_check():
    histories = to_histories(USERS)
    check_no_leak(leave_one_out(histories), histories)


def test_an_item_met_twice_is_no_leak():
    histories = to_histories([[1, 2, 1, 2, 1]])
    check_no_leak(leave_one_out(histories), histories)


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (lambda split: split._replace(train=to_histories([[1, 2, 3], [5, 6], [], [7], [4]])), "user 0 has a target among the training"),
        (lambda split: split._replace(train=to_histories([[1, 2], [5, 6], [], [8], [4]])), "user 3 has training items that are not"),
        (lambda split: split._replace(train=split.full), "user 0 has a target among the training"),
        (
            lambda split: split._replace(train=to_histories([[1], [5, 6], [], [7], [4]])),
            "user 0 has training items beyond .*, or lacks some",
        ),
        (lambda split: split._replace(validation=Targets(torch.tensor([0, 3]), torch.tensor([1, 7]))), "user 0 has a target among"),
        (lambda split: split._replace(validation=Targets(torch.tensor([0, 3]), torch.tensor([3, 7]))), "user 0 has a validation target"),
        (lambda split: split._replace(test=Targets(torch.tensor([0, 3]), torch.tensor([3, 7]))), "user 3 has a test target"),
        (lambda split: split._replace(test=Targets(torch.tensor([0, 3]), torch.tensor([3, 9]))), "user 3 has a target outside"),
        (lambda split: split._replace(validation=split.validation._replace(users=torch.tensor([0, 1]))), "user 1 has"),
        (lambda split: split._replace(train=to_histories([[1, 2]])), "the split has 1 users"),
    ],
)
def test_a_planted_leak_is_found(plant, sentence):
    histories = to_histories(USERS)
    with pytest.raises(AssertionError, match=sentence):
        check_no_leak(plant(leave_one_out(histories)), histories)


TIMES = torch.tensor([10, 20, 30, 40, 15, 16, 5, 20, 35, 31])


def test_a_split_by_time_has_the_same_two_moments_for_all():
    by = TimeSplit(TIMES, 20, 31)
    split = split_by_time(to_histories(USERS), by)
    assert to_lists(split.train) == [[1], [5, 6], [], [7], []]
    assert split.validation.users.tolist() == [0, 3]
    assert split.items(split.validation).tolist() == [2, 8]  # the first item of the time, not the last
    assert split.test.users.tolist() == [0, 3]  # user 4 has nothing before it
    assert split.items(split.test).tolist() == [4, 9]
    check_no_leak(split, to_histories(USERS), by)


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (
            lambda split: split._replace(train=to_histories([[1], [5, 6], [], [7], [4]])),
            "user 4 has training items of the validation's time",
        ),
        (lambda split: split._replace(validation=Targets(torch.tensor([0]), torch.tensor([3]))), "validation target outside"),
        (
            lambda split: split._replace(validation=Targets(torch.tensor([0]), torch.tensor([2]))),
            "user 0 has a validation target that is not",
        ),
        (lambda split: split._replace(test=split.validation), "user 0 has a test target outside its time"),
    ],
)
def test_a_leak_in_time_is_found(plant, sentence):
    histories, by = to_histories(USERS), TimeSplit(TIMES, 20, 31)
    with pytest.raises(AssertionError, match=sentence):
        check_no_leak(plant(split_by_time(histories, by)), histories, by)


def test_the_moments_are_quantiles_of_all_interactions():
    by = time_bounds(TIMES, (0.5, 0.8))
    assert (by.validation_from, by.test_from) == (20, 35)
    assert split_hash(to_histories(USERS), by) != split_hash(to_histories(USERS))
    with pytest.raises(UserError, match=r"split_quantiles = \[0.5, 0.5\] .* leaves a part empty"):
        time_bounds(TIMES, (0.5, 0.5))
    with pytest.raises(UserError, match="leaves a part empty"):
        time_bounds(torch.full((5,), 7), (0.5, 0.9))


def test_popularity_counts_the_training_part_alone():
    assert item_popularity(leave_one_out(to_histories(USERS)).train, 11).tolist() == [0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0]


def test_statistics_agree_with_counts_by_hand():
    histories = to_histories(USERS)
    keys = [str(item) for item in range(10)]
    numbers = statistics(Corpus(keys, keys, keys, keys, ["a", "b", "c", "d", "e"], histories))
    assert (numbers.users, numbers.items, numbers.interactions, numbers.train_targets) == (5, 10, 10, 2)
    assert numbers.mean_length == 2.0
    assert numbers.median_length == 2.0
    assert numbers.unseen_test_share == 0.5  # 9 never occurs in training; 4 does, with another user
    assert "10 interactions" in numbers.describe()
    assert "\n" not in numbers.describe()


def test_the_split_hash_names_the_histories():
    base = split_hash(to_histories([[1, 2], [3]]))
    assert len(base) == 12
    assert base == split_hash(to_histories([[1, 2], [3]]))
    assert base != split_hash(to_histories([[1], [2, 3]]))
    assert base != split_hash(to_histories([[2, 1], [3]]))


def test_moments_of_whole_seconds_are_compared_exactly():
    times = 1_600_000_000 + 10 * torch.arange(10)  # in float32 they are all one
    by = time_bounds(times, (0.5, 0.8))
    assert (by.validation_from, by.test_from) == (1_600_000_050, 1_600_000_080)
    split = split_by_time(to_histories([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]), by)
    check_no_leak(split, to_histories([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]), by)
    assert to_lists(split.train) == [[0, 1, 2, 3, 4]]
    assert split.items(split.validation).tolist() == [5]
    assert split.items(split.test).tolist() == [8]


def test_targets_that_the_user_met_before_are_counted_by_part():
    split = leave_one_out(to_histories([[1, 2, 1, 3], [4, 5, 6, 5], [7, 7, 7], [8, 9], [1, 2, 3]]))
    assert met_before(split, "validation") == MetBefore("validation", 2, 4)  # 1 of the first user, the second 7
    assert met_before(split, "test") == MetBefore("test", 2, 4)  # 5 and the third 7
    told = met_before(split, "test").describe()
    assert told.startswith(
        "warning: 2 of 4 held-out items are in the user's own history and cannot be hit while train.filter_history = True"
    )
    assert MetBefore("test", 2, 100).describe().startswith("2 of 100 held-out items")
    assert MetBefore("test", 0, 100).describe() == ""


@given(st.lists(st.lists(st.integers(0, 4), max_size=7), min_size=1, max_size=8))
def test_targets_met_before_agree_with_a_walk(users):
    split = leave_one_out(to_histories(users))
    for part, back in (("validation", 2), ("test", 1)):
        expected = sum(items[-back] in items[:-back] for items in users if len(items) >= 3)
        assert met_before(split, part).cases == expected


def test_every_empty_part_is_told():
    assert list(part_mistakes(leave_one_out(to_histories([[1, 2, 3, 4]])))) == []
    assert [mistake.split(",")[0] for mistake in part_mistakes(leave_one_out(to_histories([[1, 2], [3, 4]])))] == [
        "no user has three items"
    ]
    assert [mistake.split(",")[0] for mistake in part_mistakes(leave_one_out(to_histories([[1, 2, 3]])))] == [
        "no user has two training items"
    ]
    assert len(list(part_mistakes(leave_one_out(to_histories([[1], [2]]))))) == 2
    late = split_by_time(to_histories([[1, 2], [3, 4]]), TimeSplit(torch.tensor([1, 2, 3, 9]), 3, 8))
    assert list(part_mistakes(late, by_time=True)) == [
        "the validation part of train.split_by = 'time' is empty: no user has an item before the moment and one from it on; "
        "move train.split_quantiles"
    ]
