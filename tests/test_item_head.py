"""The dense item head: its loss by hand and sampled, barring, and mixing over candidates."""

import math

import pytest
import torch

from data.schemas import PAD
from modules.item_head import candidate_scores, full_loss, full_probs, rescore, sampled_loss

NUM_ITEMS, DIM = 30, 5


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(NUM_ITEMS, (4, 3), generator=generator)
    targets[0, 1] = targets[2, 2] = PAD
    return torch.randn(4, 3, DIM, generator=generator), targets, torch.randn(NUM_ITEMS, DIM, generator=generator)


def test_the_loss_of_two_items_is_as_by_hand():
    states, table = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[math.log(3), 5.0], [0.0, 5.0]])
    assert full_loss(states, torch.tensor([[0]]), table).item() == pytest.approx(-math.log(3 / 4))
    assert full_loss(states, torch.tensor([[PAD]]), table).item() == 0


def test_the_sampled_loss_with_every_item_drawn_once_is_the_full_one():
    states, targets, table = drawn()
    states.requires_grad_()
    full = full_loss(states, targets, table)
    sampled = sampled_loss(states, targets, table[targets.clamp_min(0)], torch.arange(NUM_ITEMS), table, NUM_ITEMS)
    torch.testing.assert_close(full, sampled)
    grads = [torch.autograd.grad(loss, states)[0] for loss in (full, sampled)]
    torch.testing.assert_close(*grads)


def test_the_sampled_loss_comes_near_the_full_one_as_more_is_drawn():
    states, targets, table = drawn(1)
    full, generator, distances = full_loss(states, targets, table), torch.Generator().manual_seed(2), []
    for count in (100, 10_000):
        errors = []
        for _ in range(20):
            items = torch.randint(NUM_ITEMS, (count,), generator=generator)
            errors.append((sampled_loss(states, targets, table[targets.clamp_min(0)], items, table[items], NUM_ITEMS) - full).abs())
        distances.append(torch.stack(errors).mean().item())
    assert distances[1] < distances[0] / 5
    assert distances[1] < 0.02


def test_a_draw_of_nothing_but_targets_has_a_finite_loss():
    states, _, table = drawn()
    targets = torch.full((4, 3), 2)
    loss = sampled_loss(states, targets, table[targets], torch.tensor([2, 2]), table[[2, 2]], NUM_ITEMS)
    assert loss.item() == 0


def test_barred_items_get_nothing_and_the_rest_sums_to_one():
    states, _, table = drawn()
    seen = torch.tensor([[0, 3, PAD], [PAD, PAD, PAD], [5, 5, 29], [1, 2, 3]])
    probs = full_probs(states[:, 0], table, seen)
    torch.testing.assert_close(probs.sum(1), torch.ones(4))
    for row, items in enumerate(seen.tolist()):
        assert {item for item in range(NUM_ITEMS) if probs[row, item] == 0} == set(items) - {PAD}
    torch.testing.assert_close(full_probs(states[:, 0], table)[1], probs[1])


def test_only_the_items_that_may_be_found_have_a_probability():
    states, _, table = drawn()
    among = torch.arange(NUM_ITEMS) < 3
    probs = full_probs(states[:, 0], table, torch.tensor([[0, PAD], [PAD, PAD], [1, 2], [9, 9]]), among)
    assert (probs[:, 3:] == 0).all()
    torch.testing.assert_close(probs.sum(1), torch.ones(4))
    assert probs[2, 0] == 1


def test_where_nothing_is_left_nothing_has_a_probability():
    states, _, table = drawn()
    assert (full_probs(states[:1, 0], table, torch.arange(NUM_ITEMS).unsqueeze(0)) == 0).all()


def test_scores_of_candidates_are_those_of_the_whole_catalogue():
    states, _, table = drawn()
    items = torch.tensor([[1, 2], [3, 3], [29, 0], [7, 8]])
    expected = (states[:, 0] @ table.T).gather(1, items)
    torch.testing.assert_close(candidate_scores(states[:, 0], table[items]), expected)


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
