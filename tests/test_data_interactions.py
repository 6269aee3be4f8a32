import pytest
import torch

from data.interactions import (
    Corpus,
    check_no_leak,
    item_popularity,
    leave_one_out,
    split_hash,
    statistics,
)
from tests.synthetic import to_histories, to_lists

USERS = [[1, 2, 3, 4], [5, 6], [], [7, 8, 9], [4]]


def test_the_last_item_is_test_and_the_one_before_is_validation():
    split = leave_one_out(to_histories(USERS))
    assert to_lists(split.train) == [[1, 2], [5, 6], [], [7], [4]]
    assert split.users.tolist() == [0, 3]
    assert split.validation.tolist() == [3, 8]
    assert split.test.tolist() == [4, 9]


def test_a_clean_split_passes_the_leak_check():
    histories = to_histories(USERS)
    check_no_leak(leave_one_out(histories), histories)


def test_an_item_met_twice_is_no_leak():
    histories = to_histories([[1, 2, 1, 2, 1]])
    check_no_leak(leave_one_out(histories), histories)


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (lambda split: split._replace(train=to_histories([[1, 2, 3], [5, 6], [], [7], [4]])), "user 0 has training items beyond"),
        (lambda split: split._replace(train=to_histories([[1, 2], [5, 6], [], [8], [4]])), "user 3 has training items that are not"),
        (lambda split: split._replace(train=split.full), "user 0 has training items beyond"),
        (lambda split: split._replace(validation=torch.tensor([2, 8])), "user 0 has a validation target"),
        (lambda split: split._replace(test=torch.tensor([4, 8])), "user 3 has a test target"),
        (lambda split: split._replace(users=torch.tensor([0, 1])), "user 1 has"),
        (lambda split: split._replace(train=to_histories([[1, 2]])), "the split has 1 users"),
    ],
)
def test_a_planted_leak_is_found(plant, sentence):
    histories = to_histories(USERS)
    with pytest.raises(AssertionError, match=sentence):
        check_no_leak(plant(leave_one_out(histories)), histories)


def test_popularity_counts_the_training_part_alone():
    assert item_popularity(leave_one_out(to_histories(USERS)).train, 11).tolist() == [0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0]


def test_statistics_agree_with_counts_by_hand():
    histories = to_histories(USERS)
    keys = [str(item) for item in range(10)]
    numbers = statistics(Corpus(keys, keys, keys, ["a", "b", "c", "d", "e"], histories))
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
