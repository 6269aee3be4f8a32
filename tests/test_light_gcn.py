"""LightGCN as a baseline: its graph and its average by hand, its training and its row written out, that it stops and keeps the best."""

import math

import pytest
import torch

from data.processed import SeqData
from data.schemas import PAD, SeqBatch, UserError
from evaluate.baselines import MostPopular
from evaluate.metrics import tie_order
from evaluate.scorers import ScoreRanker
from modules.runtime.evaluation.baselines import Untrained
from modules.runtime.evaluation.evaluator import Evaluator, Protocol
from modules.runtime.evaluation.light_gcn import LightGCNConfig, LightGCNScores, light_gcn_ranker, normalized_graph, train_light_gcn
from tests.slow_evaluator import cases, training_part
from tests.synthetic import to_histories
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


def slow_light_gcn(histories: list[list[int]], num_items: int, config: LightGCNConfig, seed: int) -> torch.Tensor:
    """The averaged vectors [U + I, D] after training, by a dense graph, and gradients of the loss as the paper has it."""
    users, pairs = len(histories), [(user, item) for user, items in enumerate(histories) for item in items]
    graph = torch.zeros(users + num_items, users + num_items)
    neighbours = [set(items) for items in histories] + [{user for user, item in pairs if item == own} for own in range(num_items)]
    for user, item in pairs:
        weight = 1 / math.sqrt(len(neighbours[user]) * len(neighbours[users + item]))
        graph[user, users + item] = graph[users + item, user] = weight
    generator = torch.Generator().manual_seed(seed)
    start = torch.empty(users + num_items, config.dim).normal_(std=0.1, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([start], lr=config.learning_rate)

    def averaged() -> torch.Tensor:
        layers = [start]
        for _ in range(config.num_layers):
            layers.append(graph @ layers[-1])
        return sum(layers) / len(layers)

    for _ in range(config.epochs):
        for chosen in torch.randperm(len(pairs), generator=generator).split(config.batch_size):
            random = torch.randint(num_items, (len(chosen),), generator=generator).tolist()
            vectors, losses, squares = averaged(), [], []
            for pair, other in zip(chosen.tolist(), random):
                user, item = pairs[pair]
                better = vectors[user] @ vectors[users + item] - vectors[user] @ vectors[users + other]
                losses.append(torch.log1p(torch.exp(-better)))
                squares += [start[node].square().sum() for node in (user, users + item, users + other)]
            optimizer.zero_grad()
            ((sum(losses) + config.regularization * sum(squares)) / len(losses)).backward()
            optimizer.step()
    return averaged().detach()


def test_training_is_that_of_the_paper_s_loss_written_out():
    config = LightGCNConfig(dim=4, num_layers=2, learning_rate=0.05, regularization=0.1, batch_size=7, epochs=3)
    histories = [*HALVES, [0, 5, 5], [3]]
    scores = train_light_gcn(*flat(histories), 8, lambda epoch, found: 1.0, config, seed=2)
    found = torch.cat([scores.user_vectors, scores.item_vectors])
    torch.testing.assert_close(found, slow_light_gcn(histories, 8, config, seed=2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_its_row_is_that_of_every_user_s_scores_sorted(part):
    generator = torch.Generator().manual_seed(0)
    users = [torch.randint(12, (int(length),), generator=generator).tolist() for length in torch.randint(3, 9, (30,), generator=generator)]
    data = SeqData(to_histories(users), 12, 4)
    order = tie_order(data.popularity, [f"i{item}" for item in range(12)], 0)
    untrained, said = Untrained(data.split.train, order, None), []
    evaluator = Evaluator(MostPopular(order), data, Protocol(True, (1, 5, 10), 7, None, 0))
    ranker = light_gcn_ranker(untrained, evaluator, 9, said.append)
    ((name, evaluation),) = evaluator.baselines(part, True, [ranker])
    vectors = slow_light_gcn(training_part(users), 12, LightGCNConfig(epochs=9), seed=0)
    gains, hits = [], []
    for case in cases(users, part):
        scores = vectors[30:] @ vectors[case.user]
        ranked = sorted(set(range(12)) - set(case.history), key=lambda item: (-scores[item].item(), order[item].item()))
        rank = ranked.index(case.target) if case.target in ranked else 99
        hits.append(rank < 5)
        gains.append(1 / math.log2(rank + 2) if rank < 10 else 0.0)
    assert name == "LightGCN"
    assert [line.split()[2] for line in said] == ["9"]
    assert evaluation.metrics["recall@5"] == pytest.approx(sum(hits) / len(hits))
    assert evaluation.metrics["ndcg@10"] == pytest.approx(sum(gains) / len(gains))


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
