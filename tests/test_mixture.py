"""The mixture inside the search against the formula over all items, and masses of nodes against sums over their items."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.schemas import PAD, UserError
from modules.beam_search import CodebookScorer, beam_search
from modules.mixture import CandidateMasses, ItemMasses, Masses, Mixture, softmax_masses
from tests.test_beam_search import BATCH, NoValues, TableModel
from tests.test_trie import Catalogue, catalogues, draw_seen, make_catalogue

relaxed = settings(deadline=None, max_examples=80)


def draw_masses(catalogue: Catalogue, left: list[list[int]], width: int) -> Masses:
    """Candidates among the items that are left, their masses and the background a distribution over these."""
    generator = catalogue.generator
    items = torch.full((len(left), width), PAD)
    scores = torch.randn(len(left), width, generator=generator) * 3
    for row, own in enumerate(left):
        chosen = [own[place] for place in torch.randperm(len(own), generator=generator)[:width].tolist()]
        items[row, : len(chosen)] = torch.tensor(chosen, dtype=torch.int64)
    background = torch.randn(len(left), generator=generator)
    return softmax_masses(items, scores, background, torch.tensor([len(own) for own in left]))


def dense(masses: Masses, row: int, left: list[int]) -> dict[int, float]:
    """q of every item that is left."""
    own = dict(zip(masses.items[row].tolist(), masses.masses[row].tolist()))
    return {item: own.get(item, masses.background[row].item()) for item in left}


def moved(masses: Masses, device: torch.device) -> Masses:
    return Masses(*(field.to(device) for field in masses))


def leaf_sizes(catalogue: Catalogue) -> list[int]:
    ids = catalogue.ids()
    return [ids.count(own) for own in ids]


def items_left(catalogue: Catalogue, seen: Tensor | None, among: Tensor | None) -> list[list[int]]:
    allowed = range(len(catalogue.sem_ids)) if among is None else among.nonzero().flatten().tolist()
    return [[item for item in allowed if seen is None or item not in seen[row]] for row in range(BATCH)]


def draw_among(catalogue: Catalogue, restricted: bool) -> Tensor | None:
    return torch.rand(len(catalogue.sem_ids), generator=catalogue.generator) < 0.5 if restricted else None


# -- by hand ----------------------------------------------------------------------------------------------------------------------------


def test_masses_are_a_softmax_over_candidates_and_background_as_by_hand():
    found = softmax_masses(torch.tensor([[4, PAD]]), torch.tensor([[math.log(3.0), 99.0]]), torch.tensor([0.0]), torch.tensor([6]))
    assert found.masses[0].tolist() == pytest.approx([3 / 8, 0.0])
    assert found.background.tolist() == pytest.approx([1 / 8])


def test_an_item_moves_to_the_front_as_by_hand(device):
    """Items 0, 1 below code 0 and 2 below code 1, the model's p: .45, .45, .10; q gives item 2 .7 and the others .15."""
    catalogue = Catalogue(torch.tensor([[0, 0], [0, 1], [1, 0]]), [2, 2], torch.arange(3), torch.Generator())
    tables = [torch.tensor([[[0.9, 0.1]]]).log().to(device), torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]).log().to(device)]
    masses = Masses(*(torch.tensor(value, device=device) for value in ([[2]], [[0.7]], [0.15])))
    trie = catalogue.trie(device)
    below = CandidateMasses(trie, masses)
    assert below(1, torch.tensor([[0, 1]], device=device)).tolist()[0] == pytest.approx([0.3, 0.7])
    found = beam_search(CodebookScorer(TableModel(tables), 2), trie, 1, 3, ranking=Mixture([(0.5, below)]))
    assert found.item_ids[0].tolist() == [2, 0, 1] or found.item_ids[0].tolist() == [2, 1, 0]
    assert found.keys[0].exp().tolist() == pytest.approx([0.4, 0.3, 0.3])
    assert found.log_probs[0].exp().tolist() == pytest.approx([0.1, 0.45, 0.45])


def test_items_without_any_mass_are_found_behind_all_others(device):
    catalogue = Catalogue(torch.tensor([[0, 0], [0, 1], [1, 0]]), [2, 2], torch.arange(3), torch.Generator())
    tables = [torch.tensor([[[0.9, 0.1]]]).log().to(device), torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]).log().to(device)]
    masses = Masses(*(torch.tensor(value, device=device) for value in ([[2]], [[1.0]], [0.0])))
    trie = catalogue.trie(device)
    found = beam_search(CodebookScorer(TableModel(tables), 2), trie, 1, 3, ranking=Mixture([(1.0, CandidateMasses(trie, masses))]))
    assert found.item_ids[0, 0] == 2
    assert sorted(found.item_ids[0].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("weights", [[-0.1], [1.1], [0.6, 0.5], [0.5, -0.5]])
def test_weights_that_are_no_shares_are_refused_in_one_sentence(weights):
    trie = make_catalogue([2], 2, unique=True, seed=0).trie(torch.device("cpu"))
    below = CandidateMasses(trie, Masses(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), torch.zeros(1)))
    with pytest.raises(UserError, match="must be at least 0, and together at most 1"):
        Mixture([(weight, below) for weight in weights])


# -- against sums and the formula -------------------------------------------------------------------------------------------------------


@relaxed
@given(catalogue=catalogues(), seen_width=st.integers(0, 20), width=st.integers(0, 12), restricted=st.booleans())
def test_a_nodes_mass_is_the_sum_over_the_items_below_it_that_are_left(device, catalogue, seen_width, width, restricted):
    seen, among = draw_seen(catalogue, BATCH, seen_width), draw_among(catalogue, restricted)
    left = items_left(catalogue, seen, among)
    masses = draw_masses(catalogue, left, width)
    trie, ids, listing = catalogue.trie(device), catalogue.ids(), catalogue.listing()
    below = CandidateMasses(trie, moved(masses, device), seen.to(device), None if among is None else among.to(device))
    for row in range(BATCH):
        own = dense(masses, row, left[row])
        if own:
            assert sum(own.values()) == pytest.approx(1)
        for depth in range(1, len(catalogue.vocab_sizes) + 1):
            expected = [sum(q for item, q in own.items() if ids[item][:depth] == node) for node in catalogue.nodes(depth)]
            nodes = torch.arange(len(expected), device=device).expand(BATCH, -1)
            assert below(depth, nodes)[row].tolist() == pytest.approx(expected, abs=1e-12)
        positions = torch.arange(len(listing), device=device).expand(BATCH, -1)
        found = below(len(catalogue.vocab_sizes) + 1, positions)[row].tolist()
        assert found == pytest.approx([own.get(item, 0.0) for item in listing], abs=1e-12)


@relaxed
@given(
    catalogue=catalogues(),
    seen_width=st.integers(0, 30),
    width=st.integers(0, 12),
    weights=st.sampled_from([(0.0, 0.0), (0.3, 0.0), (0.7, 0.2), (0.4, 0.6), (1.0, 0.0), (0.0, 1.0)]),
    restricted=st.booleans(),
    data=st.data(),
)
def test_a_search_as_wide_as_the_catalogue_equals_the_formula_over_all_items(
    device, catalogue, seen_width, width, weights, restricted, data
):
    weight, other_weight = weights
    depth = data.draw(st.integers(1, len(catalogue.vocab_sizes)))
    model = TableModel.random(catalogue.vocab_sizes, BATCH, catalogue.generator, device)
    seen, among = draw_seen(catalogue, BATCH, seen_width), draw_among(catalogue, restricted)
    left = items_left(catalogue, seen, among)
    masses, trie, sizes = draw_masses(catalogue, left, width), catalogue.trie(device), leaf_sizes(catalogue)
    allowed = None if among is None else among.to(device)
    others = torch.zeros(BATCH, len(sizes))
    for row in range(BATCH):
        others[row, left[row]] = torch.rand(len(left[row]), generator=catalogue.generator).softmax(0)
    mixture = Mixture(
        [
            (weight, CandidateMasses(trie, moved(masses, device), seen.to(device), allowed)),
            (other_weight, ItemMasses(trie, others.to(device))),
        ]
    )
    found = beam_search(CodebookScorer(model, depth), trie, BATCH, len(sizes), seen.to(device), depth, ranking=mixture, among=allowed)
    for row in range(BATCH):
        own, scores = dense(masses, row, left[row]), model.item_scores(catalogue, row, depth)
        shares = {item: math.exp(scores[item]) / sizes[item] for item in left[row]}
        rest = 1 - weight - other_weight
        expected = {item: weight * own[item] + other_weight * float(others[row, item]) + rest * shares[item] for item in left[row]}
        items = [item for item in found.item_ids[row].tolist() if item != PAD]
        assert sorted(items) == left[row]
        assert found.keys[row, : len(items)].exp().tolist() == pytest.approx([expected[item] for item in items], rel=1e-4)
        assert found.keys[row, : len(items)].exp().tolist() == pytest.approx(sorted(expected.values(), reverse=True), rel=1e-4)
        assert found.log_probs[row, : len(items)].exp().tolist() == pytest.approx([shares[item] for item in items], rel=1e-4)


@relaxed
@given(catalogue=catalogues(), seen_width=st.integers(0, 12), beam_size=st.integers(1, 8))
def test_with_no_weight_the_items_are_those_of_the_plain_search(device, catalogue, seen_width, beam_size):
    model = TableModel.random(catalogue.vocab_sizes, BATCH, catalogue.generator, device)
    seen = draw_seen(catalogue, BATCH, seen_width)
    trie = catalogue.trie(device)
    masses = moved(draw_masses(catalogue, items_left(catalogue, seen, None), 3), device)
    scorer = CodebookScorer(model, trie.depth)
    plain = beam_search(scorer, trie, BATCH, beam_size, seen.to(device))
    mixed = beam_search(
        scorer, trie, BATCH, beam_size, seen.to(device), ranking=Mixture([(0.0, CandidateMasses(trie, masses, seen.to(device)))])
    )
    if trie.one_item_a_leaf:
        assert torch.equal(plain.item_ids, mixed.item_ids)
        torch.testing.assert_close(plain.log_probs, mixed.log_probs)


def test_no_value_steers_the_mixture(device):
    catalogue = make_catalogue([6, 5, 4], 60, unique=False, seed=15)
    model = TableModel.random(catalogue.vocab_sizes, BATCH, catalogue.generator, device)
    seen = draw_seen(catalogue, BATCH, 10)
    masses = moved(draw_masses(catalogue, items_left(catalogue, seen, None), 5), device)
    trie, seen = catalogue.trie(device), seen.to(device)
    with NoValues():
        found = beam_search(CodebookScorer(model, 3), trie, BATCH, 10, seen, ranking=Mixture([(0.5, CandidateMasses(trie, masses, seen))]))
    assert (found.item_ids != PAD).all()
