"""The dense item head: barring, and mixing over candidates; tests/test_item_softmax.py has its loss."""

import math

import pytest
import torch

from data.schemas import PAD
from modules.item_head import candidate_scores, full_probs, rescore

NUM_ITEMS, DIM = 30, 5


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """States [4, D] and a table of items."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, DIM, generator=generator), torch.randn(NUM_ITEMS, DIM, generator=generator)


def test_barred_items_get_nothing_and_the_rest_sums_to_one():
    states, table = drawn()
    seen = torch.tensor([[0, 3, PAD], [PAD, PAD, PAD], [5, 5, 29], [1, 2, 3]])
    probs = full_probs(states, table, seen)
    torch.testing.assert_close(probs.sum(1), torch.ones(4))
    for row, items in enumerate(seen.tolist()):
        assert {item for item in range(NUM_ITEMS) if probs[row, item] == 0} == set(items) - {PAD}
    torch.testing.assert_close(full_probs(states, table)[1], probs[1])


def test_only_the_items_that_may_be_found_have_a_probability():
    states, table = drawn()
    among = torch.arange(NUM_ITEMS) < 3
    probs = full_probs(states, table, torch.tensor([[0, PAD], [PAD, PAD], [1, 2], [9, 9]]), among)
    assert (probs[:, 3:] == 0).all()
    torch.testing.assert_close(probs.sum(1), torch.ones(4))
    assert probs[2, 0] == 1


def test_where_nothing_is_left_nothing_has_a_probability():
    states, table = drawn()
    assert (full_probs(states[:1], table, torch.arange(NUM_ITEMS).unsqueeze(0)) == 0).all()


def test_scores_of_candidates_are_those_of_the_whole_catalogue():
    states, table = drawn()
    items = torch.tensor([[1, 2], [3, 3], [29, 0], [7, 8]])
    expected = (states @ table.T).gather(1, items)
    torch.testing.assert_close(candidate_scores(states, table[items]), expected)


def test_rescoring_mixes_probabilities_over_the_candidates_as_by_hand():
    none = -torch.inf
    one = torch.tensor([[math.log(0.2), math.log(0.2), none], [none] * 3])
    other = torch.tensor([[math.log(3.0) + 7, 7.0, 50.0], [1.0, 2.0, 3.0]])
    mixed = rescore([one, other], [0.5, 0.5]).exp()
    torch.testing.assert_close(mixed, torch.tensor([[0.625, 0.375, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.6], [1.5, -0.5]])
def test_weights_that_are_no_mixture_are_refused(weights):
    with pytest.raises(ValueError, match="their sum 1"):
        rescore([torch.zeros(1, 2)] * 2, weights)
