"""The cross-entropy over a catalogue: by hand, and sampled: equal to the full one with every item drawn once, near it and of its mean."""

import math

import pytest
import torch
from torch import nn

from data.schemas import PAD
from modules.item_softmax import full_loss, item_loss, sampled_loss

NUM_ITEMS, DIM = 30, 5


def drawn(seed: int = 0, num_items: int = NUM_ITEMS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States [4, 3, D] and targets [4, 3], two of them PAD, and a table."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_items, (4, 3), generator=generator)
    targets[0, 1] = targets[2, 2] = PAD
    return torch.randn(4, 3, DIM, generator=generator), targets, torch.randn(num_items, DIM, generator=generator)


def sampled(states: torch.Tensor, targets: torch.Tensor, table: torch.Tensor, items: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    return sampled_loss(states, targets, table[targets.clamp_min(0)], items, table[items], len(table), smoothing)


def test_the_loss_of_two_items_is_as_by_hand():
    states, table = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[math.log(3), 5.0], [0.0, 5.0]])
    assert full_loss(states, torch.tensor([[0]]), table).item() == pytest.approx(-math.log(3 / 4))
    assert full_loss(states, torch.tensor([[PAD]]), table).item() == 0
    # Smoothed by .5, the target has .75 and the other item .25.
    assert full_loss(states, torch.tensor([[0]]), table, 0.5).item() == pytest.approx(-0.75 * math.log(3 / 4) - 0.25 * math.log(1 / 4))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_sampled_loss_with_every_item_drawn_once_is_the_full_one_gradients_included(smoothing):
    states, targets, table = drawn()
    states.requires_grad_(), table.requires_grad_()
    everything = torch.randperm(NUM_ITEMS, generator=torch.Generator().manual_seed(1))
    losses = [full_loss(states, targets, table, smoothing), sampled(states, targets, table, everything, smoothing)]
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(*(torch.autograd.grad(loss, [states, table]) for loss in losses)):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_the_sampled_partition_function_has_the_mean_of_the_full_one():
    states, targets, table = drawn()
    state, target = states[0, :1] * 0.5, targets[0, :1]
    scores = (state @ table.T)[0].double()
    own, full = scores[target[0]].exp(), scores.exp().sum()
    torch.manual_seed(0)
    losses = torch.stack([sampled(state, target, table, torch.randint(NUM_ITEMS, (10,))) for _ in range(4000)])
    estimates = own * losses.double().exp()  # loss = log(estimate) - own score
    error = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - full) < 4 * error < 0.1 * full
    # The target is no draw of its own: counted as one it would be in the sum twice, and the mean too high.


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_more_draws_bring_the_sampled_loss_to_the_full_one(smoothing):
    states, targets, table = drawn(1, 400)
    full, generator, distances = full_loss(states, targets, table, smoothing), torch.Generator().manual_seed(2), []
    for count in (20, 20_000):
        draws = torch.randint(400, (20, count), generator=generator)
        distances.append(torch.stack([(sampled(states, targets, table, items, smoothing) - full).abs() for items in draws]).mean().item())
    assert distances[1] < 0.1 * distances[0]
    assert distances[1] < 0.01 * full


def test_a_draw_of_nothing_but_targets_has_a_finite_loss():
    states, _, table = drawn()
    assert sampled(states, torch.full((4, 3), 2), table, torch.tensor([2, 2])).item() == 0


def test_without_a_table_a_step_reads_the_targets_and_the_drawn_items_alone():
    states, targets, _ = drawn()
    items = nn.Embedding(NUM_ITEMS, DIM)
    item_loss(states, targets, None, items, NUM_ITEMS, samples=4).backward()
    touched = (items.weight.grad.abs().sum(1) > 0).nonzero().flatten().tolist()
    assert len(touched) <= len(targets.unique()) + 4
    assert set(targets[targets != PAD].tolist()) <= set(touched)
    assert item_loss(states, targets, items.weight, items, NUM_ITEMS) == full_loss(states, targets, items.weight)
