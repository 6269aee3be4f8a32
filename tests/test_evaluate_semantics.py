"""Neighbours kept, agreement with categories and codes shared within histories: by hand, by invariants, beside slow references."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from data.schemas import PAD
from evaluate import semantics
from evaluate.codebook import prefix_nodes
from evaluate.semantics import agreement, category_ids, neighbours_kept, prefix_affinity, sample_rows


def fan(*degrees: float) -> torch.Tensor:
    """Unit vectors in the plane: near in angle is near in cosine."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


@st.composite
def catalogues(draw):
    """Vectors [I, 4], codes [I, L] with many ties, and a generator."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    items, levels, size = draw(st.integers(5, 30)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return torch.randn(items, 4, generator=generator), torch.randint(0, size, (items, levels), generator=generator), generator


def test_neighbours_kept_equal_the_numbers_computed_by_hand():
    vectors = fan(0, 1, 3, 50)  # the nearest other: 1, 0, 1, 2
    alone = torch.arange(4)[:, None]
    far = torch.tensor([[0.0], [1.0], [10.0], [11.0]])  # the nearest other: 1, 0, 3, 2
    found = neighbours_kept(vectors, alone, far, k=1)
    assert found.by_vector == 0.75
    assert found.by_prefix == found.chance == pytest.approx(1 / 3)  # no prefix is shared: one of three others, by chance
    assert found.queries == 4


def test_a_tie_counts_its_expectation():
    vectors = fan(0, 1, 3, 50)
    codes = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0]])
    # Of item 0, 1 and 2 one of two tied is kept at each; item 3 ties with all three.
    assert neighbours_kept(vectors, codes, k=1).by_prefix == pytest.approx((1 / 2 + 1 / 2 + 1 / 2 + 1 / 3) / 4)
    collided = torch.tensor([[0], [0], [0], [1]])
    assert neighbours_kept(vectors, collided, collided.float(), k=1).by_vector == pytest.approx((1 / 2 + 1 / 2 + 1 / 2 + 1 / 3) / 4)


def slow_share(vectors: torch.Tensor, distance: np.ndarray, k: int) -> float:
    """Item after item, place after place, as the docstring says it."""
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).double().numpy()
    total = 0.0
    for query in range(len(unit)):
        others = [item for item in range(len(unit)) if item != query]
        cosine = {item: float(unit[query] @ unit[item]) for item in others}
        near = {item for item in others if cosine[item] >= sorted(cosine.values(), reverse=True)[k - 1] - 1e-6}
        last = sorted(distance[query][item] for item in others)[k - 1]
        before = [item for item in others if distance[query][item] < last]
        tied = [item for item in others if distance[query][item] == last]
        total += len(near.intersection(before)) + len(near.intersection(tied)) * (k - len(before)) / len(tied)
    return total / k / len(unit)


@given(catalogues(), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_neighbours_kept_equal_the_slow_reference(catalogue, k):
    vectors, codes, generator = catalogue
    table = torch.randn(len(codes), 3, generator=generator)
    quantized = table[prefix_nodes(codes)[:, -1]]
    found = neighbours_kept(vectors, codes, quantized, k=k)
    shared = [[next((d for d, (a, b) in enumerate(zip(x, y)) if a != b), len(x)) for y in codes.tolist()] for x in codes.tolist()]
    assert found.by_prefix == pytest.approx(slow_share(vectors, -np.array(shared), k))
    squared = (quantized[:, None] - quantized).double().square().sum(-1).numpy()
    assert found.by_vector == pytest.approx(slow_share(vectors, squared, k), abs=1e-6)


@given(catalogues())
@settings(max_examples=30, deadline=None)
def test_the_order_of_items_decides_nothing(catalogue):
    vectors, codes, generator = catalogue
    order = torch.randperm(len(codes), generator=generator)
    quantized = vectors[prefix_nodes(codes)[:, -1]]
    before, after = neighbours_kept(vectors, codes, quantized, k=3), neighbours_kept(vectors[order], codes[order], quantized[order], k=3)
    assert after.by_vector == pytest.approx(before.by_vector)
    assert after.by_prefix == pytest.approx(before.by_prefix)


def test_vectors_that_are_left_as_they_are_keep_all_neighbours_whatever_the_chunks(monkeypatch):
    vectors = torch.nn.functional.normalize(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors[150:] = vectors[:50]  # equal items have equal codes, as from any tokenizer
    codes = torch.cat([torch.arange(150), torch.arange(50)])[:, None]
    whole = neighbours_kept(vectors, codes, vectors)
    assert whole.by_vector == pytest.approx(1.0)
    monkeypatch.setattr(semantics, "CELLS", 1)
    assert neighbours_kept(vectors, codes, vectors).by_vector == pytest.approx(whole.by_vector)


def test_codes_at_random_keep_the_neighbours_that_chance_keeps():
    generator = torch.Generator().manual_seed(0)
    vectors, codes = torch.randn(500, 8, generator=generator), torch.randint(0, 8, (500, 3), generator=generator)
    found = neighbours_kept(vectors, codes)
    assert found.chance == 10 / 499
    assert found.by_prefix == pytest.approx(found.chance, abs=0.005)


def test_a_sample_of_queries_is_near_the_whole_and_the_same_every_time():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(600, 4, generator=generator)
    codes = (vectors[:, :3] > 0).long()
    whole, part = neighbours_kept(vectors, codes), neighbours_kept(vectors, codes, queries=300, seed=1)
    assert part == neighbours_kept(vectors, codes, queries=300, seed=1) != neighbours_kept(vectors, codes, queries=300, seed=2)
    assert part.queries == 300
    assert part.by_prefix == pytest.approx(whole.by_prefix, abs=0.02)


def test_too_few_items_for_the_neighbours_are_refused():
    with pytest.raises(ValueError, match="at least 11 items: got 10"):
        neighbours_kept(torch.randn(10, 2), torch.arange(10)[:, None])


def test_a_sample_of_rows_has_no_row_twice():
    rows = sample_rows(100, 30, seed=0)
    assert len(rows.unique()) == 30
    assert rows.diff().min() > 0
    assert sample_rows(3, 30, seed=0).tolist() == sample_rows(3, None, seed=0).tolist() == [0, 1, 2]


def test_purity_and_nmi_equal_the_numbers_computed_by_hand():
    codes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    first, second = agreement(codes, torch.tensor([7, 7, 9, 9]))
    assert (first.nodes, first.nmi, first.purity) == (2, 1.0, 1.0)
    assert (second.nodes, second.purity) == (4, 1.0)
    assert second.nmi == pytest.approx(2 / 3)  # ln 2 over the mean of ln 4 and ln 2
    assert agreement(codes[:, :1], torch.tensor([7, 9, 7, 9]))[0].purity == 0.5


@given(catalogues(), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_nmi_equals_scikit_learns(catalogue, kinds):
    _, codes, generator = catalogue
    labels = torch.randint(-1, kinds, (len(codes),), generator=generator)
    labels[0] = 0
    known = labels != PAD
    nodes = prefix_nodes(codes[known])
    for depth, found in enumerate(agreement(codes, labels)):
        expected = normalized_mutual_info_score(labels[known].numpy(), nodes[:, depth].numpy())
        assert found.nmi == pytest.approx(expected, abs=1e-9)
        table = np.zeros((len(codes), kinds))
        np.add.at(table, (nodes[:, depth].numpy(), labels[known].numpy()), 1)
        assert found.purity == pytest.approx(table.max(1).sum() / table.sum())


def test_tiny_clusters_look_good_and_the_chance_figure_says_so():
    generator = torch.Generator().manual_seed(0)
    labels, codes = torch.randint(0, 10, (400,), generator=generator), torch.arange(400)[:, None]
    (found,) = agreement(codes, labels)
    assert found.purity == found.purity_chance == 1.0
    assert found.nmi == pytest.approx(found.nmi_chance)
    assert found.nmi > 0.5
    (meaningful,) = agreement(labels[:, None], labels)
    assert meaningful.nmi == 1.0
    assert meaningful.nmi_chance < 0.1


def test_categories_that_nobody_knows_are_refused():
    with pytest.raises(ValueError, match="no item has a category"):
        agreement(torch.zeros(3, 1, dtype=torch.int64), torch.full((3,), PAD))


def test_categories_are_numbered_and_unknown_ones_left_out():
    ids = category_ids(["Hair", "", "Bath", "Hair"])
    assert ids is not None
    assert ids[1] == PAD
    assert ids[0] == ids[3] != ids[2]
    assert category_ids(["", "Bath", "Bath"]) is None  # one category agrees with anything
    assert category_ids([""]) is None


CODES = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 0]])


def test_codes_shared_within_histories_equal_the_numbers_computed_by_hand():
    # Users: 0 1 2, nothing, 2 3. Pairs: (0, 1) shares 1 code, (1, 2) none, (2, 3) both; 2 2 is no pair, being of two users.
    found = prefix_affinity(CODES, torch.tensor([0, 1, 2, 2, 3]), torch.tensor([0, 3, 3, 5]))
    assert (found.adjacent, found.pairs) == (1.0, 3)
    # first: 0, 1, 2; second: 1, 2, 3. Of the nine draws (1, 1) and (2, 2) are no pairs; 1 + 0 + 0, 0 + 0, 0 + 2 over the seven others.
    assert found.chance == pytest.approx(3 / 7)


def test_a_pair_counts_as_often_as_it_occurs_and_an_item_behind_itself_does_not():
    found = prefix_affinity(CODES, torch.tensor([0, 0, 1, 0, 1, 0, 2]), torch.tensor([0, 3, 5, 7]))
    assert found.pairs == 3  # 0 1, 0 1, 0 2
    assert found.adjacent == pytest.approx(2 / 3)
    assert found.by_times == {"1": 0.0, "2-3": 1.0}  # 0 2 once, 0 1 twice, be it as 0 1 or as 1 0


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_chance_figure_is_the_mean_over_all_draws(seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2, (6, 3), generator=generator)
    item_ids = torch.randint(0, 6, (9,), generator=generator)
    found = prefix_affinity(codes, item_ids, torch.tensor([0, 4, 9]))
    pairs = [(a, b) for part in (item_ids[:4].tolist(), item_ids[4:].tolist()) for a, b in zip(part, part[1:]) if a != b]  # noqa: RUF007
    if not pairs:
        assert found is None
        return
    shares = {(a, b): next((d for d in range(3) if codes[a, d] != codes[b, d]), 3) for a, b in permutations(range(6), 2)}
    assert found.adjacent == pytest.approx(np.mean([shares[pair] for pair in pairs]))
    draws = [shares[a, b] for a, _ in pairs for _, b in pairs if a != b]
    assert found.chance == pytest.approx(np.mean(draws) if draws else 0.0)


def test_histories_without_a_pair_give_no_figure():
    assert prefix_affinity(CODES, torch.tensor([0, 1]), torch.tensor([0, 1, 2])) is None
    assert prefix_affinity(CODES, torch.empty(0, dtype=torch.int64), torch.tensor([0])) is None
