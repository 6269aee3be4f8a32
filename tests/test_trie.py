"""The prefix trie against sets of tuples and a slow tree."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.schemas import PAD, UserError
from modules.tokenizer.trie import PrefixTrie

relaxed = settings(deadline=None, max_examples=60)


class Catalogue(NamedTuple):
    sem_ids: Tensor  # [I, C]
    vocab_sizes: list[int]
    item_order: Tensor  # [I], the rank of each item
    generator: torch.Generator

    def trie(self, device: torch.device) -> PrefixTrie:
        return PrefixTrie(self.sem_ids, self.vocab_sizes, self.item_order).to(device)

    def ids(self) -> list[tuple[int, ...]]:
        return [tuple(row) for row in self.sem_ids.tolist()]

    def nodes(self, depth: int) -> list[tuple[int, ...]]:
        """The distinct prefixes of length ``depth`` in order: a node's number is its place."""
        return sorted({row[:depth] for row in self.ids()})

    def listing(self) -> list[int]:
        """Items by ID, those with one ID by rank."""
        ids, ranks = self.ids(), self.item_order.tolist()
        return sorted(range(len(ids)), key=lambda item: (ids[item], ranks[item]))


def make_catalogue(vocab_sizes: list[int], num_items: int, unique: bool, seed: int) -> Catalogue:
    generator = torch.Generator().manual_seed(seed)
    space = int(torch.tensor(vocab_sizes).prod())
    drawn = torch.randperm(space, generator=generator)[:num_items] if unique else torch.randint(space, (num_items,), generator=generator)
    columns = []
    for size in reversed(vocab_sizes):
        columns.insert(0, drawn % size)
        drawn = drawn // size
    sem_ids = torch.stack(columns, dim=1)
    return Catalogue(sem_ids, vocab_sizes, torch.randperm(len(sem_ids), generator=generator), generator)


@st.composite
def catalogues(draw, unique: bool | None = None) -> Catalogue:
    vocab_sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    return make_catalogue(
        vocab_sizes, draw(st.integers(1, 40)), draw(st.booleans()) if unique is None else unique, draw(st.integers(0, 100_000))
    )


def draw_seen(catalogue: Catalogue, rows: int, width: int) -> Tensor:
    """[rows, width] items, some twice, some PAD; whole subtrees first, so that nodes do fill up."""
    listing, num_items = torch.tensor(catalogue.listing()), len(catalogue.sem_ids)
    result = torch.full((rows, width), PAD)
    for row in range(rows):
        start, length = (int(torch.randint(high, (), generator=catalogue.generator)) for high in (num_items, width + 1))
        run = listing[start : start + length]
        result[row, : len(run)] = run
        extra = torch.randint(-1, num_items, (width - len(run),), generator=catalogue.generator)
        result[row, len(run) :] = torch.where(torch.rand(len(extra), generator=catalogue.generator) < 0.5, extra, PAD)
        result[row] = result[row, torch.randperm(width, generator=catalogue.generator)]
    return result


# -- by hand ----------------------------------------------------------------------------------------------------------------------------


def test_a_small_tree_is_numbered_as_by_hand(device):
    sem_ids = torch.tensor([[2, 0], [0, 3], [0, 1], [2, 0]])
    trie = PrefixTrie(sem_ids, [3, 4], item_order=torch.tensor([3, 0, 1, 2])).to(device)
    assert (trie.num_items, trie.depth, trie.vocab_sizes) == (4, 2, (3, 4))
    assert [trie.num_nodes(depth) for depth in range(3)] == [1, 2, 3]
    assert trie.widest == (2, 2, 2)
    assert trie.items.tolist() == [2, 1, 3, 0]
    assert trie.item_position.tolist() == [3, 1, 0, 2]
    assert trie.code(1, torch.arange(2, device=device)).tolist() == [0, 2]
    assert trie.code(2, torch.arange(3, device=device)).tolist() == [1, 3, 0]
    first, count = trie.children_of(1, torch.arange(2, device=device))
    assert (first.tolist(), count.tolist()) == ([0, 2], [2, 1])
    assert trie.find(torch.tensor([[0, 1], [2, 0], [2, 1], [1, 0]], device=device)).tolist() == [0, 2, PAD, PAD]


def test_a_node_is_exhausted_as_by_hand(device):
    trie = PrefixTrie(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 0]]), [2, 2]).to(device)
    firsts, leaves, positions = trie.exhausted(torch.tensor([[1, PAD, 0, 1], [2, 1, PAD, PAD]], device=device))
    assert [set(row) - {PAD} for row in firsts.tolist()] == [{0}, set()]
    assert [set(row) - {PAD} for row in leaves.tolist()] == [{0, 1}, {1}]
    assert [sorted(row) for row in positions.tolist()] == [[PAD, PAD, 0, 1], [PAD, PAD, 1, 2]]


# -- prefixes ---------------------------------------------------------------------------------------------------------------------------


@relaxed
@given(catalogue=catalogues())
def test_exactly_the_prefixes_of_the_catalogue_exist(device, catalogue):
    trie = catalogue.trie(device)
    for length in range(len(catalogue.vocab_sizes) + 1):
        nodes = catalogue.nodes(length)
        columns = [torch.randint(-2, size + 3, (60,), generator=catalogue.generator) for size in catalogue.vocab_sizes[:length]]
        drawn = torch.stack(columns, dim=1) if columns else torch.empty(60, 0, dtype=torch.int64)
        prefixes = torch.cat([torch.tensor(nodes, dtype=torch.int64).reshape(len(nodes), length), drawn])
        expected = [nodes.index(prefix) if prefix in nodes else PAD for prefix in map(tuple, prefixes.tolist())]
        assert trie.find(prefixes.to(device)).tolist() == expected
        assert trie.exists_prefix(prefixes.to(device)).tolist() == [node != PAD for node in expected]


@relaxed
@given(catalogue=catalogues())
def test_every_code_of_a_small_space_is_judged_as_by_a_set(device, catalogue):
    trie, known = catalogue.trie(device), set(catalogue.nodes(1))
    codes = torch.arange(-3, catalogue.vocab_sizes[0] + 4).unsqueeze(1)
    assert trie.exists_prefix(codes.to(device)).tolist() == [(code,) in known for (code,) in codes.tolist()]


def test_prefixes_may_stand_in_any_shape(device):
    catalogue = make_catalogue([5, 4, 3], 30, unique=True, seed=1)
    trie = catalogue.trie(device)
    whole = catalogue.sem_ids.to(device)
    assert torch.equal(trie.find(whole.reshape(2, 5, 3, 3)), trie.find(whole).reshape(2, 5, 3))
    assert trie.find(whole[0]).shape == ()
    assert trie.find(whole[:0]).shape == (0,)


def test_prefixes_twelve_codes_deep_are_found_and_their_neighbours_are_not(device):
    generator = torch.Generator().manual_seed(2)
    sem_ids = torch.randint(100_000, (50, 12), generator=generator)
    sem_ids[25:, :11] = sem_ids[:25, :11]  # pairs that part only at the last code
    trie = PrefixTrie(sem_ids, [100_000] * 12).to(device)
    assert trie.exists_prefix(sem_ids.to(device)).all()
    assert trie.num_nodes(11) == 25
    assert trie.num_nodes(12) == 50
    for level in range(12):
        other = sem_ids.clone()
        other[:, level] = (other[:, level] + 1) % 100_000
        assert not trie.exists_prefix(other.to(device)).any()
        assert trie.exists_prefix(other[:, :level].to(device)).all()


# -- tree -------------------------------------------------------------------------------------------------------------------------------


@relaxed
@given(catalogue=catalogues())
def test_children_codes_parents_and_ranges_agree_with_a_slow_tree(device, catalogue):
    trie, listing, ids = catalogue.trie(device), catalogue.listing(), catalogue.ids()
    depth_of_leaves = len(catalogue.vocab_sizes)
    widest = []
    for depth in range(depth_of_leaves + 1):
        nodes = catalogue.nodes(depth)
        numbers = torch.arange(len(nodes), device=device)
        assert trie.num_nodes(depth) == len(nodes)
        below = [ids[item] for item in listing] if depth == depth_of_leaves else catalogue.nodes(depth + 1)
        children = [[number for number, child in enumerate(below) if child[:depth] == node] for node in nodes]
        widest.append(max(map(len, children)))
        first, count = trie.children_of(depth, numbers)
        assert first.tolist() == [group[0] for group in children]
        assert count.tolist() == [len(group) for group in children]
        parents = [nodes.index(child[:depth]) for child in below]
        assert trie.parent(depth + 1, torch.arange(len(below), device=device)).tolist() == parents
        if depth:
            assert trie.code(depth, numbers).tolist() == [node[-1] for node in nodes]
        positions = [[place for place, item in enumerate(listing) if ids[item][:depth] == node] for node in nodes]
        start, end = trie.item_range(depth, numbers)
        assert start.tolist() == [group[0] for group in positions]
        assert end.tolist() == [group[-1] + 1 for group in positions]
    assert trie.widest == tuple(widest)


@relaxed
@given(catalogue=catalogues(unique=False))
def test_leaves_list_their_items_in_the_given_order(device, catalogue):
    trie = catalogue.trie(device)
    assert trie.items.tolist() == catalogue.listing()
    assert trie.items[trie.item_position.long()].tolist() == list(range(len(catalogue.sem_ids)))


def test_without_an_order_leaves_list_their_items_by_row(device):
    trie = PrefixTrie(torch.tensor([[1], [0], [1], [0], [1]]), [2]).to(device)
    assert trie.items.tolist() == [1, 3, 0, 2, 4]


@relaxed
@given(catalogue=catalogues())
def test_the_path_of_an_item_is_the_nodes_of_its_prefixes(device, catalogue):
    trie = catalogue.trie(device)
    expected = [[catalogue.nodes(depth).index(ids[:depth]) for depth in range(1, trie.depth + 1)] for ids in catalogue.ids()]
    items = torch.arange(len(expected), device=device)
    assert trie.path(items).tolist() == expected
    assert trie.path(items[:1].reshape(1, 1)).shape == (1, 1, trie.depth)


@relaxed
@given(catalogue=catalogues(), width=st.integers(0, 12))
def test_positions_of_items_are_distinct_and_sorted(device, catalogue, width):
    trie, listing = catalogue.trie(device), catalogue.listing()
    items = draw_seen(catalogue, 3, width)
    for row, found in zip(items.tolist(), trie.positions(items.to(device)).tolist()):
        expected = sorted({listing.index(item) for item in row if item != PAD})
        assert found == expected + [len(listing)] * (width - len(expected))


# -- histories --------------------------------------------------------------------------------------------------------------------------


@relaxed
@given(catalogue=catalogues(), width=st.integers(1, 12))
def test_a_node_is_exhausted_exactly_when_every_item_below_it_was_seen(device, catalogue, width):
    trie, listing, ids = catalogue.trie(device), catalogue.listing(), catalogue.ids()
    seen = draw_seen(catalogue, 4, width)
    found = trie.exhausted(seen.to(device))
    assert len(found) == len(catalogue.vocab_sizes) + 1
    for row, items in enumerate(seen.tolist()):
        for depth in range(1, len(catalogue.vocab_sizes) + 1):
            nodes = catalogue.nodes(depth)
            full = {nodes.index(node) for node in nodes if all(item in items for item in listing if ids[item][:depth] == node)}
            assert set(found[depth - 1][row].tolist()) - {PAD} == full
        positions = [place for place in found[-1][row].tolist() if place != PAD]
        assert sorted(positions) == [place for place, item in enumerate(listing) if item in items]


@relaxed
@given(catalogue=catalogues(), width=st.integers(1, 12))
def test_items_that_may_not_be_found_do_not_keep_a_node_from_being_exhausted(device, catalogue, width):
    trie, ids = catalogue.trie(device), catalogue.ids()
    seen, among = draw_seen(catalogue, 4, width), torch.rand(len(ids), generator=catalogue.generator) < 0.6
    found = trie.exhausted(seen.to(device), among.to(device))
    for row, items in enumerate(seen.tolist()):
        for depth in range(1, len(catalogue.vocab_sizes) + 1):
            full = set()
            for number, node in enumerate(catalogue.nodes(depth)):
                below = [item for item, own in enumerate(ids) if own[:depth] == node and among[item]]
                if below and set(below) <= set(items):
                    full.add(number)
            assert set(found[depth - 1][row].tolist()) - {PAD} == full


def test_an_empty_history_exhausts_nothing(device):
    trie = make_catalogue([3, 3], 6, unique=True, seed=3).trie(device)
    assert all((nodes == PAD).all() for nodes in trie.exhausted(torch.full((2, 5), PAD, device=device)))
    assert [nodes.shape for nodes in trie.exhausted(torch.empty(2, 0, dtype=torch.int64, device=device))] == [(2, 0)] * 3


def test_a_history_of_everything_exhausts_every_node(device):
    catalogue = make_catalogue([3, 3], 7, unique=False, seed=4)
    trie = catalogue.trie(device)
    found = trie.exhausted(torch.arange(7, device=device).flip(0).unsqueeze(0))
    assert [set(nodes[0].tolist()) for nodes in found] == [
        set(range(trie.num_nodes(1))),
        set(range(trie.num_nodes(2))),
        set(range(7)),
    ]


# -- the module -------------------------------------------------------------------------------------------------------------------------


def test_the_tree_moves_whole_to_another_device_and_adds_nothing_to_saved_weights(device):
    trie = make_catalogue([3, 3], 6, unique=True, seed=5).trie(device)
    assert {buffer.device.type for buffer in trie.buffers()} == {device.type}
    assert trie.state_dict() == {}


@pytest.mark.parametrize(
    ("sem_ids", "message"),
    [
        (torch.tensor([[0, 3]]), "outside their vocabularies"),
        (torch.tensor([[0, 0], [-1, 0]]), "outside their vocabularies"),
        (torch.tensor([[0, 0, 0]]), r"items x 2 codes: got shape \(1, 3\)"),
        (torch.tensor([0, 1]), "items x 2 codes"),
        (torch.empty(0, 2, dtype=torch.int64), "items x 2 codes"),
    ],
)
def test_ids_that_are_no_table_of_codes_are_refused(sem_ids, message):
    with pytest.raises(UserError, match=message):
        PrefixTrie(sem_ids, [2, 3])
