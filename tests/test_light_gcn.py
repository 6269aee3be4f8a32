"""LightGCN as a baseline: its graph and its average by hand, that it learns, stops and keeps the best."""

import pytest
import torch

from data.schemas import PAD, SeqBatch, UserError
from evaluate.scorers import ScoreRanker
from modules.runtime.evaluation.light_gcn import LightGCNConfig, LightGCNScores, normalized_graph, train_light_gcn
from tests.test_evaluate_baselines import batch_of, flat

TINY = LightGCNConfig(dim=8, num_layers=2, learning_rate=0.05, batch_size=16, epochs=30, watch_every=10)
HALVES = [[0, 1, 2], [1, 2, 3], [0, 3, 2], [4, 5, 6], [5, 6, 7], [4, 7, 6]]
"""Two groups of users, who share no item."""


def test_an_edge_is_weighed_by_the_degrees_of_its_ends():
    # Users 0 and 1; items are nodes 2 and 3. User 0 has both (one of them twice), user 1 has item 3.
    graph = normalized_graph(torch.tensor([0, 0, 0, 1]), torch.tensor([2, 2, 3, 3]), 4).to_dense()
    expected = torch.zeros(4, 4)
    expected[0, 2], expected[0, 3], expected[1, 3] = 1 / 2**0.5, 1 / 2, 1 / 2**0.5
    torch.testing.assert_close(graph, expected + expected.T)


def test_the_vectors_are_the_average_of_all_layers_of_the_dense_product():
    kept = {}
    config = LightGCNConfig(dim=4, num_layers=2, learning_rate=0.0, epochs=1, batch_size=100)
    scores = train_light_gcn(*flat(HALVES), 8, lambda epoch, found: kept.setdefault(epoch, 1.0), config, seed=3)
    # With a learning rate of 0 the vectors are still the initial ones, drawn first from the same seed.
    start = torch.empty(14, 4).normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    users = torch.arange(6).repeat_interleave(3)
    graph = normalized_graph(users, flat(HALVES)[0] + 6, 14).to_dense()
    expected = (start + graph @ start + graph @ graph @ start) / 3
    torch.testing.assert_close(torch.cat([scores.user_vectors, scores.item_vectors]), expected)
    assert list(kept) == [1]


def test_it_learns_which_users_and_items_belong_together():
    figures = []

    def watch(epoch: int, found: LightGCNScores) -> float:
        figures.append(epoch)
        return float(epoch)

    scores = train_light_gcn(*flat(HALVES), 8, watch, TINY)
    ranked = ScoreRanker(scores, torch.arange(8)).recommend(batch_of(HALVES), 1, filter_history=True)
    assert ranked.flatten().tolist() == [3, 0, 1, 7, 4, 5]
    assert figures == [10, 20, 30]


def test_the_best_by_validation_is_kept_and_training_stops_without_a_gain():
    seen: dict[int, LightGCNScores] = {}

    def watch(epoch: int, found: LightGCNScores) -> float:
        seen[epoch] = found
        return 1.0 if epoch == 2 else 0.5

    config = LightGCNConfig(dim=4, epochs=100, watch_every=1, patience=3)
    best = train_light_gcn(*flat(HALVES), 8, watch, config)
    assert list(seen) == [1, 2, 3, 4, 5]
    assert best is seen[2]
    assert not torch.equal(seen[2].item_vectors, seen[3].item_vectors)


def test_the_seed_decides_the_result():
    made = [train_light_gcn(*flat(HALVES), 8, lambda epoch, found: 1.0, TINY, seed).item_vectors for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_users_who_are_not_known_have_equal_scores_and_a_user_without_items_is_scored():
    scores = train_light_gcn(*flat([[0, 1], [], [1, 2]]), 3, lambda epoch, found: 1.0, TINY)
    batch = SeqBatch(torch.tensor([PAD, 1, 0]), torch.tensor([[0], [1], [2]]), torch.full((3, 1), PAD), None)
    found = scores.scores(batch)
    assert found[0].tolist() == [0.0, 0.0, 0.0]
    assert torch.isfinite(found).all()


def test_no_interactions_and_shapes_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="no training interactions"):
        train_light_gcn(*flat([[], []]), 3, lambda epoch, found: 1.0)
    with pytest.raises(UserError, match="at least 1"):
        LightGCNConfig(patience=0)
