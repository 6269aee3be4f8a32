"""Constrained beam search against a slow search in plain Python and against scoring every item."""

import itertools
import math
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data.schemas import PAD
from modules import beam_search
from modules.beam_search import SearchResult, constrained_beam_search
from modules.tokenizer.trie import PrefixTrie
from tests.test_trie import Catalogue, catalogues, draw_seen, make_catalogue

BATCH = 3
relaxed = settings(deadline=None, max_examples=60)


class TableModel:
    """Random logits for every prefix, looked up by what each beam has written, followed through ``parents`` as a model must."""

    def __init__(self, tables: list[Tensor]) -> None:
        self.tables = tables  # level l: [B, K_0 x ... x K_(l-1), K_l]

    @classmethod
    def random(cls, vocab_sizes: list[int], batch: int, generator: torch.Generator, device: torch.device) -> "TableModel":
        shapes = [(batch, math.prod(vocab_sizes[:level]), size) for level, size in enumerate(vocab_sizes)]
        return cls([(torch.randn(shape, generator=generator) * 2).to(device) for shape in shapes])

    def row(self, row: int) -> "TableModel":
        return TableModel([table[row : row + 1] for table in self.tables])

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        table = self.tables[level]
        if level == 0:
            assert parents is None
            assert codes is None
            self.written = torch.zeros(len(table), 1, dtype=torch.int64, device=table.device)
        else:
            self.written = self.written.gather(1, parents) * self.tables[level - 1].shape[2] + codes
        return table.gather(1, self.written.unsqueeze(-1).expand(-1, -1, table.shape[2]))

    def log_probs(self, row: int) -> list[list[list[float]]]:
        """Per level, prefix and code, in double precision."""
        return [torch.log_softmax(table[row].double(), dim=-1).tolist() for table in self.tables]

    def item_scores(self, catalogue: Catalogue, row: int, tuple_depth: int | None = None) -> list[float]:
        """Sum of the log-probabilities along every item's ID, from ``tuple_depth`` on among the codes that exist."""
        levels, result = self.log_probs(row), []
        for semantic_id in catalogue.ids():
            prefix, score = 0, 0.0
            for level, code in enumerate(semantic_id):
                score += levels[level][prefix][code]
                if tuple_depth is not None and level >= tuple_depth:
                    score -= share_that_exists(catalogue, levels[level][prefix], semantic_id[:level])
                prefix = prefix * catalogue.vocab_sizes[level] + code
            result.append(score)
        return result


def share_that_exists(catalogue: Catalogue, log_probs: list[float], codes: tuple[int, ...]) -> float:
    """Logarithm of the probability of all codes that some item, seen or not, has behind ``codes``."""
    level = len(codes)
    existing = {semantic_id[level] for semantic_id in catalogue.ids() if semantic_id[:level] == codes}
    return math.log(sum(math.exp(log_probs[code]) for code in existing))


class SlowSearch:
    """Beam search over a list of IDs; ``gap`` is the closest that two different scores came."""

    def __init__(
        self, catalogue: Catalogue, model: TableModel, row: int, beam_size: int, seen: set[int], tuple_depth: int | None = None
    ) -> None:
        ids, levels = catalogue.ids(), model.log_probs(row)
        left = [item for item in catalogue.listing() if item not in seen]
        self.gap = math.inf
        self.kept: list[list[tuple[int, ...]]] = []
        beams: list[tuple[tuple[int, ...], int, float]] = [((), 0, 0.0)]
        for level, size in enumerate(catalogue.vocab_sizes):
            existing = {ids[item][: level + 1] for item in left}
            if tuple_depth is not None and level >= tuple_depth:
                beams = [(codes, p, score - share_that_exists(catalogue, levels[level][p], codes)) for codes, p, score in beams]
            candidates = [
                ((*codes, code), prefix * size + code, score + levels[level][prefix][code])
                for codes, prefix, score in beams
                for code in range(size)
                if (*codes, code) in existing
            ]
            candidates.sort(key=lambda candidate: -candidate[2])
            self.gap = min([self.gap, *(a[2] - b[2] for a, b in itertools.pairwise(candidates))])
            beams = candidates[:beam_size]
            self.kept.append([codes for codes, _, _ in beams])
        found = [(item, score) for codes, _, score in beams for item in left if ids[item] == codes][:beam_size]
        self.items = [item for item, _ in found]
        self.scores = [score for _, score in found]


def search(catalogue: Catalogue, model: TableModel, device: torch.device, beam_size: int, seen: Tensor | None = None, **options):
    batch = len(model.tables[0])
    return constrained_beam_search(model, catalogue.trie(device), batch, beam_size, None if seen is None else seen.to(device), **options)


def rows_of(result: SearchResult) -> list[list[tuple[int, float]]]:
    """(item, log-probability) of every row without its padding, which must come last and be -inf."""
    rows = []
    for items, scores in zip(result.item_ids.tolist(), result.log_probs.tolist()):
        real = [(item, score) for item, score in zip(items, scores) if item != PAD]
        assert items[len(real) :] == [PAD] * (len(items) - len(real))
        assert scores[len(real) :] == [-math.inf] * (len(items) - len(real))
        assert all(score > -math.inf for _, score in real)
        rows.append(real)
    return rows


# -- by hand ----------------------------------------------------------------------------------------------------------------------------


def test_scores_are_log_probabilities_over_the_whole_codebook_as_by_hand(device):
    trie = PrefixTrie(torch.tensor([[0, 0], [3, 1]]), [4, 2]).to(device)
    first = torch.tensor([0.1, 0.2, 0.3, 0.4], device=device).log()
    second = torch.tensor([[0.25, 0.75], [0.5, 0.5]], device=device).log()

    def step(level, parents, codes):
        return first.expand(1, 1, 4) if level == 0 else second[(codes > 0).long()]

    result = constrained_beam_search(step, trie, 1, 2)
    assert result.item_ids.tolist() == [[1, 0]]
    assert result.sem_ids.tolist() == [[[3, 1], [0, 0]]]
    assert result.log_probs[0].tolist() == pytest.approx([math.log(0.4 * 0.5), math.log(0.1 * 0.25)])


def test_a_narrow_beam_loses_an_item_that_starts_badly_as_by_hand(device):
    trie = PrefixTrie(torch.tensor([[0, 0], [0, 1], [1, 0]]), [2, 2]).to(device)
    tables = [torch.tensor([[[0.6, 0.4]]]).log().to(device), torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]).log().to(device)]
    assert constrained_beam_search(TableModel(tables), trie, 1, 1).item_ids[0, 0].item() in (0, 1)  # .30 each
    assert constrained_beam_search(TableModel(tables), trie, 1, 2).item_ids[0, 0].item() == 2  # .36


# -- against the slow search ------------------------------------------------------------------------------------------------------------


@relaxed
@given(
    catalogue=catalogues(unique=True),
    beam_size=st.integers(1, 12),
    seen_width=st.integers(0, 12),
    barring=st.booleans(),
    waits=st.booleans(),
    data=st.data(),
)
def test_search_equals_a_slow_search_of_the_same_width(device, catalogue, beam_size, seen_width, barring, waits, data):
    depth = data.draw(st.one_of(st.none(), st.integers(1, len(catalogue.vocab_sizes))))
    model = TableModel.random(catalogue.vocab_sizes, BATCH, catalogue.generator, device)
    seen = draw_seen(catalogue, BATCH, seen_width) if barring else None
    slow = [
        SlowSearch(catalogue, model, row, beam_size, set() if seen is None else set(seen[row].tolist()) - {PAD}, depth)
        for row in range(BATCH)
    ]
    assume(min(row.gap for row in slow) > 1e-5)
    with mock.patch.object(beam_search, "may_wait", return_value=waits):
        result = search(catalogue, model, device, beam_size, seen, tuple_depth=depth)
    for row, found in enumerate(rows_of(result)):
        assert [item for item, _ in found] == slow[row].items
        assert [score for _, score in found] == pytest.approx(slow[row].scores, abs=1e-5)
        assert [tuple(codes) for codes in result.sem_ids[row, : len(found)].tolist()] == slow[row].kept[-1]


@relaxed
@given(catalogue=catalogues(unique=False), beam_size=st.integers(1, 12), seen_width=st.integers(0, 12))
def test_search_equals_a_slow_search_where_items_share_ids(device, catalogue, beam_size, seen_width):
    model = TableModel.random(catalogue.vocab_sizes, BATCH, catalogue.generator, device)
    seen = draw_seen(catalogue, BATCH, seen_width)
    slow = [SlowSearch(catalogue, model, row, beam_size, set(seen[row].tolist()) - {PAD}) for row in range(BATCH)]
    assume(min(row.gap for row in slow) > 1e-5)
    result, ids = search(catalogue, model, device, beam_size, seen), catalogue.ids()
    for row, found in enumerate(rows_of(result)):
        assert [ids[item] for item, _ in found] == [ids[item] for item in slow[row].items]  # which of a leaf's items is a tie
        assert [score for _, score in found] == pytest.approx(slow[row].scores, abs=1e-5)


@relaxed
@given(catalogue=catalogues(), beam_size=st.integers(1, 12), seen_width=st.integers(0, 12), data=st.data())
def test_tuples_are_the_distinct_nodes_the_search_kept_at_that_depth_best_first(device, catalogue, beam_size, seen_width, data):
    depth = data.draw(st.integers(1, len(catalogue.vocab_sizes)))
    model = TableModel.random(catalogue.vocab_sizes, BATCH, catalogue.generator, device)
    seen = draw_seen(catalogue, BATCH, seen_width)
    slow = [SlowSearch(catalogue, model, row, beam_size, set(seen[row].tolist()) - {PAD}, depth) for row in range(BATCH)]
    assume(min(row.gap for row in slow) > 1e-5)
    nodes = catalogue.nodes(depth)
    tuples = search(catalogue, model, device, beam_size, seen, tuple_depth=depth).tuples.tolist()
    for row, found in enumerate(tuples):
        expected = [nodes.index(codes) for codes in slow[row].kept[depth - 1]]
        assert found == expected + [PAD] * (len(found) - len(expected))


def test_tuples_are_whole_ids_where_no_depth_is_named(device):
    catalogue = make_catalogue([4, 4], 12, unique=True, seed=6)
    model = TableModel.random(catalogue.vocab_sizes, BATCH, catalogue.generator, device)
    result = search(catalogue, model, device, 5)
    assert torch.equal(result.tuples, catalogue.trie(device).find(result.sem_ids))


@pytest.mark.parametrize("most", [0, 1, 3])
def test_the_model_is_not_asked_for_the_last_code_of_beams_with_one_child(device, most):
    """Eight prefixes; of row 0's search ``most`` have two items each."""
    ids = [[code, 0] for code in range(8)] + [[code, 1] for code in range(most)]
    trie, asked = PrefixTrie(torch.tensor(ids), [8, 2]).to(device), []

    def step(level, parents, codes):
        if level:
            asked.append(codes.shape)
            assert (codes < most).any(1).all()
        return torch.zeros(2, 1 if parents is None else parents.shape[1], 8 if level == 0 else 2, device=device)

    result = constrained_beam_search(step, trie, 2, 12, tuple_depth=1)
    assert asked == ([] if most == 0 else [(2, 8 if device.type == "cuda" else most)])
    expected = [math.log(1 / 8)] * (8 - most) + [math.log(1 / 16)] * (2 * most)
    assert result.log_probs[0][: 8 + most].tolist() == pytest.approx(expected)


def test_beams_that_lead_nowhere_are_not_asked_about(device):
    if device.type == "cuda":
        pytest.skip("there all beams are asked about")
    ids = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 2, 0], [1, 0, 0]])  # node (0, 0), on which such beams stand, has two items
    asked = []

    def step(level, parents, codes):
        if level == 2:
            asked.append(codes.shape)
        return torch.zeros(1, 1 if parents is None else parents.shape[1], (2, 3, 2)[level])

    result = constrained_beam_search(step, PrefixTrie(ids, [2, 3, 2]), 1, 50, tuple_depth=2)
    assert asked == [(1, 1)]
    assert (result.item_ids != PAD).sum() == 5


# -- against scoring every item ---------------------------------------------------------------------------------------------------------


@relaxed
@given(catalogue=catalogues(), extra=st.integers(0, 5), seen_width=st.integers(0, 40), barring=st.booleans(), data=st.data())
def test_a_beam_as_wide_as_the_catalogue_equals_scoring_every_item(device, catalogue, extra, seen_width, barring, data):
    depth = data.draw(st.one_of(st.none(), st.integers(1, len(catalogue.vocab_sizes))))
    num_items = len(catalogue.sem_ids)
    model = TableModel.random(catalogue.vocab_sizes, BATCH, catalogue.generator, device)
    seen = draw_seen(catalogue, BATCH, seen_width) if barring else None
    for row, found in enumerate(rows_of(search(catalogue, model, device, num_items + extra, seen, tuple_depth=depth))):
        scores = model.item_scores(catalogue, row, depth)
        left = set(range(num_items)) - (set() if seen is None else set(seen[row].tolist()))
        items = [item for item, _ in found]
        assert len(items) == len(left)
        assert set(items) == left
        assert [score for _, score in found] == pytest.approx([scores[item] for item in items], abs=1e-5)
        assert [scores[item] for item in items] == pytest.approx(sorted((scores[item] for item in left), reverse=True), abs=1e-5)


def test_a_history_that_fills_whole_subtrees_leaves_exactly_the_rest(device):
    catalogue = make_catalogue([3, 3, 2], 18, unique=True, seed=7)
    model = TableModel.random(catalogue.vocab_sizes, 2, catalogue.generator, device)
    ids = catalogue.ids()
    under = [[item for item in range(18) if ids[item][0] == 1], [item for item in range(18) if ids[item][:2] != (2, 0)]]
    seen = torch.full((2, 18), PAD)
    for row, items in enumerate(under):
        seen[row, : len(items)] = torch.tensor(items)
    found = rows_of(search(catalogue, model, device, 18, seen))
    assert [{item for item, _ in row} for row in found] == [set(range(18)) - set(items) for items in under]
    assert len(found[1]) == 2


# -- beams ------------------------------------------------------------------------------------------------------------------------------


@relaxed
@given(catalogue=catalogues(), beam_size=st.integers(1, 50), seen_width=st.integers(0, 40), temperature=st.sampled_from([0.0, 1.0]))
def test_every_beam_is_an_item_that_is_left_and_no_two_are_the_same(device, catalogue, beam_size, seen_width, temperature):
    model = TableModel.random(catalogue.vocab_sizes, BATCH, catalogue.generator, device)
    seen = draw_seen(catalogue, BATCH, seen_width)
    result = search(catalogue, model, device, beam_size, seen, temperature=temperature)
    assert result.item_ids.shape[1] <= beam_size
    assert result.log_probs.dtype == torch.float32
    for row, found in enumerate(rows_of(result)):
        items = [item for item, _ in found]
        left = set(range(len(catalogue.sem_ids))) - set(seen[row].tolist())
        assert set(items) <= left
        assert len(set(items)) == len(items) == min(beam_size, len(left))
        assert torch.equal(result.sem_ids[row, : len(items)].cpu(), catalogue.sem_ids[items])
        assert (result.sem_ids[row, len(items) :] == PAD).all()


def test_a_user_who_has_seen_everything_gets_nothing(device):
    catalogue = make_catalogue([3, 2], 5, unique=False, seed=8)
    model = TableModel.random(catalogue.vocab_sizes, 1, catalogue.generator, device)
    result = search(catalogue, model, device, 4, torch.arange(5).unsqueeze(0))
    assert rows_of(result) == [[]]
    assert (result.tuples == PAD).all()


def test_a_catalogue_of_one_item_is_searched(device):
    catalogue = Catalogue(torch.tensor([[1, 0]]), [2, 1], torch.tensor([0]), torch.Generator().manual_seed(0))
    model = TableModel.random(catalogue.vocab_sizes, 1, catalogue.generator, device)
    assert [[item for item, _ in row] for row in rows_of(search(catalogue, model, device, 10))] == [[0]]


@pytest.mark.parametrize("num_items", [3, 20, 70])
@pytest.mark.parametrize("beam_size", [1, 5, 50])
def test_items_that_share_an_id_come_in_the_order_of_their_leaf(device, num_items, beam_size):
    catalogue = make_catalogue([1], num_items, unique=False, seed=9)
    model = TableModel.random(catalogue.vocab_sizes, 2, catalogue.generator, device)
    expected = catalogue.item_order.argsort().tolist()[:beam_size]
    assert search(catalogue, model, device, beam_size).item_ids.tolist() == [expected, expected]


# -- determinism ------------------------------------------------------------------------------------------------------------------------


def test_the_same_search_twice_gives_the_same_digits(device):
    for unique in (True, False):
        catalogue = make_catalogue([6, 5, 4], 60, unique, seed=10)
        model = TableModel.random(catalogue.vocab_sizes, 8, catalogue.generator, device)
        seen = draw_seen(catalogue, 8, 10)
        once, again = (search(catalogue, model, device, 10, seen, tuple_depth=2) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(once, again))


@relaxed
@given(catalogue=catalogues(), beam_size=st.integers(1, 12), seen_width=st.integers(0, 12))
def test_a_row_alone_gives_what_it_gives_in_a_batch(device, catalogue, beam_size, seen_width):
    model = TableModel.random(catalogue.vocab_sizes, BATCH, catalogue.generator, device)
    seen = draw_seen(catalogue, BATCH, seen_width)
    together = search(catalogue, model, device, beam_size, seen)
    for row in range(BATCH):
        alone = search(catalogue, model.row(row), device, beam_size, seen[row : row + 1])
        assert all(torch.equal(a[row : row + 1], b) for a, b in zip(together, alone))


@relaxed
@given(catalogue=catalogues(), beam_size=st.integers(1, 12))
def test_relabelled_items_are_found_in_the_same_order(device, catalogue, beam_size):
    """Row numbers carry nothing into the search, ties included."""
    model = TableModel.random(catalogue.vocab_sizes, BATCH, catalogue.generator, device)
    new_of_old = torch.randperm(len(catalogue.sem_ids), generator=catalogue.generator)
    old_of_new = new_of_old.argsort()
    relabelled = Catalogue(catalogue.sem_ids[old_of_new], catalogue.vocab_sizes, catalogue.item_order[old_of_new], catalogue.generator)
    before, after = search(catalogue, model, device, beam_size), search(relabelled, model, device, beam_size)
    found = before.item_ids.cpu()
    assert torch.equal(torch.where(found == PAD, PAD, new_of_old[found]), after.item_ids.cpu())
    assert torch.equal(before.log_probs, after.log_probs)


# -- sampling ---------------------------------------------------------------------------------------------------------------------------


def test_sampling_with_a_generator_is_reproducible_and_differs_between_seeds(device):
    catalogue = make_catalogue([6, 5, 4], 60, unique=True, seed=11)
    model = TableModel.random(catalogue.vocab_sizes, 4, catalogue.generator, device)
    first, again, other = (
        search(catalogue, model, device, 10, temperature=2.0, generator=torch.Generator(device).manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first.item_ids, other.item_ids)


def test_sampling_at_a_tiny_temperature_is_the_search_for_the_best(device):
    catalogue = make_catalogue([6, 5, 4], 60, unique=True, seed=12)
    model = TableModel.random(catalogue.vocab_sizes, 4, catalogue.generator, device)
    seen = draw_seen(catalogue, 4, 10)
    best = search(catalogue, model, device, 10, seen, tuple_depth=2)
    drawn = search(catalogue, model, device, 10, seen, tuple_depth=2, temperature=1e-6, generator=torch.Generator(device).manual_seed(4))
    assert all(torch.equal(a, b) for a, b in zip(best, drawn))


def test_scores_of_drawn_items_are_their_log_probabilities_without_the_noise(device):
    catalogue = make_catalogue([6, 5, 4], 60, unique=True, seed=13)
    model = TableModel.random(catalogue.vocab_sizes, 4, catalogue.generator, device)
    for row, found in enumerate(rows_of(search(catalogue, model, device, 10, temperature=3.0))):
        scores = model.item_scores(catalogue, row)
        assert [score for _, score in found] == pytest.approx([scores[item] for item, _ in found], abs=1e-5)


def test_one_beam_at_temperature_one_draws_items_as_often_as_the_model_says(device):
    catalogue = make_catalogue([3, 2, 2], 12, unique=True, seed=14)  # the whole space, so that no probability is lost
    model = TableModel.random(catalogue.vocab_sizes, 1, catalogue.generator, device)
    expected = torch.tensor(model.item_scores(catalogue, 0)).exp()
    many = TableModel([table.expand(20_000, -1, -1) for table in model.tables])
    drawn = search(catalogue, many, device, 1, temperature=1.0, generator=torch.Generator(device).manual_seed(3)).item_ids
    share = torch.bincount(drawn.flatten().cpu(), minlength=12) / 20_000
    assert expected.sum().item() == pytest.approx(1, abs=1e-5)
    assert (share - expected).abs().max() < 0.02


# -- no values steer Python -------------------------------------------------------------------------------------------------------------


class NoValues(TorchDispatchMode):
    """Refuses every operation that brings a value to the host, to steer Python or to size a result."""

    forbidden = ("_local_scalar_dense", "nonzero.", "masked_select", "_unique", "unique_", "equal.", "repeat_interleave.Tensor")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        by_mask = name.startswith("index.") and any(index is not None and index.dtype == torch.bool for index in args[1])
        if by_mask or name.startswith(self.forbidden):
            raise AssertionError(f"{name} reads values")
        return func(*args, **(kwargs or {}))


def test_reading_a_value_is_noticed():
    with pytest.raises(AssertionError, match="reads values"), NoValues():
        bool(torch.ones(1).any())
    for reading in (lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.unique()):
        with pytest.raises(AssertionError, match="reads values"), NoValues():
            reading(torch.ones(3))


@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_value_steers_the_search(device, unique, temperature):
    catalogue = make_catalogue([6, 5, 4], 60, unique, seed=15)
    model = TableModel.random(catalogue.vocab_sizes, 4, catalogue.generator, device)
    trie, seen = catalogue.trie(device), draw_seen(catalogue, 4, 10).to(device)
    with NoValues(), mock.patch.object(beam_search, "may_wait", return_value=False):  # as on a GPU
        result = constrained_beam_search(model, trie, 4, 10, seen, tuple_depth=2, temperature=temperature)
    assert (result.item_ids != PAD).all()
