"""Ranks, recall / ndcg / mrr, bootstrap intervals and the order of ties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schemas import PAD, UserError
from evaluate import metrics as metrics_module
from evaluate.metrics import bootstrap_interval, mean_metrics, paired_interval, per_user_metrics, sort_with_ties, target_ranks, tie_order

RANKED = torch.tensor([[4, 2, 7], [1, 0, PAD], [5, 6, 3], [PAD, PAD, PAD]])


@st.composite
def lists_and_targets(draw):
    users, items, k = draw(st.integers(1, 8)), draw(st.integers(10, 20)), draw(st.integers(10, 14))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    rows = [torch.randperm(items, generator=generator)[:k] for _ in range(users)]
    ranked = torch.stack([torch.nn.functional.pad(row, (0, k - len(row)), value=PAD) for row in rows])
    return ranked, torch.randint(0, items, (users,), generator=generator)


def test_rank_is_the_position_of_the_target_and_k_where_it_is_absent():
    assert target_ranks(RANKED, torch.tensor([2, 1, 9, 0])).tolist() == [1, 0, 3, 3]


def test_padding_is_never_a_hit_even_for_a_padded_target():
    assert target_ranks(RANKED, torch.tensor([PAD, PAD, PAD, PAD])).tolist() == [3, 3, 3, 3]


def test_an_empty_list_has_no_hit():
    assert target_ranks(torch.empty(2, 0, dtype=torch.int64), torch.tensor([0, 1])).tolist() == [0, 0]
    with pytest.raises(ValueError, match="targets"):
        target_ranks(RANKED, torch.tensor([1, 2]))


def test_metrics_equal_the_numbers_computed_by_hand():
    per_user = per_user_metrics(torch.tensor([0, 1, 4, 9, 10]), cutoffs=(1, 5, 10))
    assert list(per_user) == ["recall@1", "recall@5", "recall@10", "ndcg@1", "ndcg@5", "ndcg@10", "mrr@10"]
    assert per_user["recall@1"].tolist() == [1, 0, 0, 0, 0]
    assert per_user["recall@5"].tolist() == [1, 1, 1, 0, 0]
    assert per_user["recall@10"].tolist() == [1, 1, 1, 1, 0]
    assert per_user["mrr@10"].tolist() == [1, 1 / 2, 1 / 5, 1 / 10, 0]
    expected = torch.tensor([1, 1 / math.log2(3), 1 / math.log2(6), 1 / math.log2(11), 0], dtype=torch.float64)
    torch.testing.assert_close(per_user["ndcg@10"], expected, rtol=0, atol=1e-12)
    means = mean_metrics(torch.tensor([0, 1, 4, 9, 10]))
    assert means["recall@10"] == pytest.approx(0.8)
    assert means["mrr@10"] == pytest.approx(0.36)


def test_metrics_refuse_no_users_and_cutoffs_below_one():
    with pytest.raises(UserError, match="no users"):
        mean_metrics(torch.empty(0, dtype=torch.int64))
    with pytest.raises(UserError, match="at least 1"):
        per_user_metrics(torch.tensor([0]), cutoffs=(0, 5))


def test_figures_agree_with_torch_geometric():
    pyg = pytest.importorskip("torch_geometric.metrics")
    generator = torch.Generator().manual_seed(1)
    ranked = torch.stack([torch.randperm(30, generator=generator)[:20] for _ in range(200)])
    targets = torch.randint(0, 30, (200,), generator=generator)
    ours = mean_metrics(target_ranks(ranked, targets), cutoffs=(1, 5, 10, 20))
    edges = torch.stack([torch.arange(200), targets])
    for name, cls in (("recall", pyg.LinkPredRecall), ("ndcg", pyg.LinkPredNDCG), ("mrr", pyg.LinkPredMRR)):
        for cutoff in (10,) if name == "mrr" else (1, 5, 10, 20):
            theirs = cls(k=cutoff)
            theirs.update(ranked, edges)
            assert ours[f"{name}@{cutoff}"] == pytest.approx(float(theirs.compute()), abs=1e-6), (name, cutoff)


def test_ndcg_agrees_with_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(2)
    scores = torch.rand(50, 25, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 25, (50,), generator=generator)
    ours = mean_metrics(target_ranks(scores.argsort(dim=1, descending=True), targets))
    relevance = torch.nn.functional.one_hot(targets, 25)
    for cutoff in (5, 10):
        assert ours[f"ndcg@{cutoff}"] == pytest.approx(sklearn_metrics.ndcg_score(relevance.numpy(), scores.numpy(), k=cutoff), abs=1e-9)


@given(lists_and_targets())
@settings(max_examples=60, deadline=None)
def test_metrics_stay_in_range_grow_with_the_cutoff_and_keep_their_order(case):
    per_user = per_user_metrics(target_ranks(*case))
    for values in per_user.values():
        assert ((values >= 0) & (values <= 1)).all()
    for name in ("recall", "ndcg"):
        assert (per_user[f"{name}@1"] <= per_user[f"{name}@5"]).all()
        assert (per_user[f"{name}@5"] <= per_user[f"{name}@10"]).all()
    assert (per_user["mrr@10"] <= per_user["ndcg@10"]).all()
    assert (per_user["ndcg@10"] <= per_user["recall@10"]).all()
    assert torch.equal(per_user["recall@1"], per_user["ndcg@1"])


@given(lists_and_targets())
@settings(max_examples=60, deadline=None)
def test_the_rank_agrees_with_looking_through_the_list(case):
    ranked, targets = case
    k = ranked.shape[1]
    expected = [row.index(target) if target in row else k for row, target in zip(ranked.tolist(), targets.tolist())]
    assert target_ranks(ranked, targets).tolist() == expected


def test_interval_is_the_same_for_the_same_seed_and_any_order_of_users():
    values = torch.rand(500, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    shuffled = values[torch.randperm(500, generator=torch.Generator().manual_seed(1))]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3) == bootstrap_interval(shuffled, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_interval_agrees_with_resampling_users_one_by_one():
    values = np.random.default_rng(0).choice([0.0, 0.25, 0.5, 1.0], size=400, p=[0.7, 0.1, 0.1, 0.1])
    draws = np.random.default_rng(1).integers(0, 400, size=(20_000, 400))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    ours = bootstrap_interval(torch.from_numpy(values), resamples=20_000)
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == (pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))


def test_interval_covers_a_known_mean_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(200):
        interval = bootstrap_interval((torch.rand(400, generator=generator) < 0.3).double(), resamples=300, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    assert 180 <= covered <= 199


def test_interval_is_narrower_with_more_users_and_wider_with_a_higher_level():
    values = (torch.rand(20_000, generator=torch.Generator().manual_seed(0)) < 0.066).double()
    few, many = bootstrap_interval(values[:500]), bootstrap_interval(values)
    assert many.high - many.low < (few.high - few.low) / 3
    wide = bootstrap_interval(values, level=0.99)
    assert wide.low < many.low <= many.mean <= many.high < wide.high


def test_half_width_at_the_size_of_beauty_is_the_binomial_one():
    values = torch.zeros(22_363, dtype=torch.float64)
    values[: round(0.066 * 22_363)] = 1
    interval = bootstrap_interval(values, resamples=4000)
    assert (interval.high - interval.low) / 2 == pytest.approx(0.0033, abs=2e-4)


def test_interval_does_not_depend_on_the_memory_bound(monkeypatch):
    values = torch.rand(300, generator=torch.Generator().manual_seed(0))
    whole = bootstrap_interval(values, resamples=50)
    monkeypatch.setattr(metrics_module, "DRAWS_IN_MEMORY", 1000)
    assert bootstrap_interval(values, resamples=50) == whole


def test_a_constant_metric_has_an_interval_of_no_width():
    assert bootstrap_interval(torch.full((10,), 0.5)) == (0.5, 0.5, 0.5)


def test_interval_refuses_what_it_cannot_answer():
    with pytest.raises(UserError, match="at least one user"):
        bootstrap_interval(torch.empty(0))
    with pytest.raises(UserError, match="level 95"):
        bootstrap_interval(torch.ones(3), level=95)
    with pytest.raises(UserError, match="got 3 and 4"):
        paired_interval(torch.ones(3), torch.ones(4))


def test_paired_interval_finds_a_small_gain_that_the_separate_intervals_hide():
    generator = torch.Generator().manual_seed(0)
    weaker = (torch.rand(5000, generator=generator) < 0.30).double()
    stronger = torch.where(torch.rand(5000, generator=generator) < 0.01, 1.0, weaker)
    first, second = bootstrap_interval(stronger), bootstrap_interval(weaker)
    assert first.low < second.high  # side by side they overlap
    gain = paired_interval(stronger, weaker)
    assert 0 < gain.low < gain.mean < gain.high < 0.02
    assert gain.mean == pytest.approx(first.mean - second.mean)
    loss = paired_interval(weaker, stronger)
    assert loss.high < 0


def test_a_model_shows_no_gain_over_itself():
    values = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert paired_interval(values, values) == (0.0, 0.0, 0.0)


def test_popular_items_come_first_and_the_order_is_a_permutation():
    order = tie_order(torch.tensor([1, 5, 3, 5, 0]), ["a", "b", "c", "d", "e"], seed=0)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert {order[1].item(), order[3].item()} == {0, 1}
    assert order[[2, 0, 4]].tolist() == [2, 3, 4]


def test_another_seed_gives_another_order_of_ties_and_the_same_seed_the_same():
    popularity, keys = torch.ones(50), [f"item {i}" for i in range(50)]
    assert torch.equal(tie_order(popularity, keys, 7), tie_order(popularity, keys, 7))
    assert not torch.equal(tie_order(popularity, keys, 7), tie_order(popularity, keys, 8))


def test_order_of_ties_is_unrelated_to_the_id():
    order = tie_order(torch.ones(2000), [f"B{i:06d}" for i in range(2000)], seed=0).double()
    correlation = torch.corrcoef(torch.stack([order, torch.arange(2000).double()]))[0, 1]
    assert correlation.abs() < 0.08


@given(st.integers(0, 1000), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_order_follows_the_item_when_ids_are_relabelled(seed, items):
    generator = torch.Generator().manual_seed(seed)
    popularity, keys = torch.randint(0, 3, (items,), generator=generator), [f"asin {i}" for i in range(items)]
    new_id = torch.randperm(items, generator=generator)
    old_id = new_id.argsort()
    relabelled = tie_order(popularity[old_id], [keys[i] for i in old_id.tolist()], seed)
    assert torch.equal(relabelled[new_id], tie_order(popularity, keys, seed))


def test_order_refuses_repeated_and_missing_keys():
    with pytest.raises(UserError, match="own external key"):
        tie_order(torch.ones(2), ["a", "a"], seed=0)
    with pytest.raises(UserError, match="3 items and 2"):
        tie_order(torch.ones(3), ["a", "b"], seed=0)


def test_sorting_goes_by_score_then_order_then_padding():
    order = torch.tensor([3, 0, 2, 1])
    items = torch.tensor([[0, 1, 2, 3], [PAD, 2, 0, PAD], [3, 2, 1, 0]])
    scores = torch.tensor([[0.5, 0.5, 0.9, 0.5], [9.0, -math.inf, 0.1, 8.0], [1.0, math.nan, 1.0, 1.0]])
    expected = [[2, 1, 3, 0], [0, 2, PAD, PAD], [1, 3, 0, 2]]
    assert sort_with_ties(items, scores, order).tolist() == expected
    assert sort_with_ties(items, scores.bfloat16(), order).tolist() == expected


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_sorting_does_not_depend_on_the_order_in_which_candidates_arrive(seed):
    generator = torch.Generator().manual_seed(seed)
    items = torch.randperm(12, generator=generator)[None, :8]
    scores = torch.randint(0, 3, (1, 8), generator=generator).float()
    order = torch.randperm(12, generator=generator)
    arrival = torch.randperm(8, generator=generator)
    expected = sorted(range(8), key=lambda i: (-scores[0, i].item(), order[items[0, i]].item()))
    assert sort_with_ties(items, scores, order).tolist() == [items[0, expected].tolist()]
    assert torch.equal(sort_with_ties(items[:, arrival], scores[:, arrival], order), sort_with_ties(items, scores, order))
