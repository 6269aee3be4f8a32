"""Products with the vectors of children: grouped by parent and in slices, against one by one."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modules import tree_softmax
from modules.code_losses import children_loss
from modules.distill import TeacherShares
from modules.tree_softmax import NodeVectors, _products, _ragged_products
from tests.test_trie import catalogues, make_catalogue

DIM = 4


def one_by_one(x: Tensor, table: NodeVectors, first: Tensor, number: Tensor) -> list[list[float]]:
    return [
        [float(state @ table.vectors[table.row[start + slot]]) for slot in range(count)]
        for state, start, count in zip(x, first.tolist(), number.tolist())
    ]


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    parents=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    slice_size=st.sampled_from([1, 100, 1 << 24]),
)
def test_products_with_children_equal_those_one_by_one(device, sizes, parents, slice_size):
    generator = torch.Generator().manual_seed(len(parents))
    counts = torch.tensor(sizes)
    node = torch.tensor(parents) % len(sizes)
    first, number = (counts.cumsum(0) - counts)[node], counts[node]
    table = NodeVectors(torch.randn(9, DIM, generator=generator), torch.randint(9, (sum(sizes),), generator=generator))
    x, width = torch.randn(len(node), DIM, generator=generator), max(sizes)
    slots = torch.arange(width)
    children = torch.where(slots < number[:, None], first[:, None] + slots, 0)
    x, table, first, number, children = (
        x.to(device), NodeVectors(*(t.to(device) for t in table)), first.to(device), number.to(device), children.to(device)
    )  # fmt: skip
    with mock.patch.object(tree_softmax, "SLICE", slice_size):
        found = [_ragged_products(x, table, first, number, width).tolist(), _products(x, table, children).tolist()]
    for row, expected in enumerate(one_by_one(x, table, first, number)):
        for products in found:
            if len(expected) > 1 or products is found[1]:
                assert products[row][: len(expected)] == pytest.approx(expected, abs=1e-5)


def test_gradients_of_grouped_products_are_those_of_the_slices(device):
    generator = torch.Generator().manual_seed(3)
    node = torch.randint(5, (40,), generator=generator).to(device)
    counts = torch.tensor([1, 2, 3, 9, 1], device=device)
    first, number, slots = (counts.cumsum(0) - counts)[node], counts[node], torch.arange(9, device=device)
    children = torch.where(slots < number[:, None], first[:, None] + slots, 0)
    weights = torch.randn(40, 9, generator=generator).to(device) * ((slots < number[:, None]) & (number[:, None] > 1))
    grads = []
    for grouped in (True, False):
        x = torch.randn(40, DIM, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
        vectors = torch.randn(16, DIM, generator=torch.Generator().manual_seed(2)).to(device).requires_grad_()
        table = NodeVectors(vectors, torch.arange(16, device=device))
        products = _ragged_products(x, table, first, number, 9) if grouped else _products(x, table, children)
        grads.append(torch.autograd.grad((products * weights).sum(), (x, vectors)))
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_no_more_is_gathered_than_twice_the_children(device):
    """One parent of 200 children and many of two: padded to the widest it would be a hundred times as much."""
    counts = torch.tensor([200] + [2] * 300, device=device)
    first, gathered = counts.cumsum(0) - counts, []
    embedding = torch.nn.functional.embedding

    def counting(index: Tensor, weight: Tensor) -> Tensor:
        gathered.append(index.numel())
        return embedding(index, weight)

    table = NodeVectors(torch.randn(801, DIM, device=device), torch.arange(800, device=device) + 1)
    with mock.patch.object(torch.nn.functional, "embedding", counting):
        _ragged_products(torch.randn(301, DIM, device=device), table, first, counts, 200)
    assert gathered[0] <= 2 * int(counts.sum())


def test_rows_without_siblings_gather_nothing(device):
    table = NodeVectors(torch.randn(4, DIM, device=device), torch.arange(3, device=device))
    one = torch.ones(3, dtype=torch.int64, device=device)
    assert not _ragged_products(torch.randn(3, DIM, device=device), table, torch.arange(3, device=device), one, 5).any()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_of_three_children_is_as_by_hand(smoothing):
    probabilities = torch.tensor([[0.5, 0.3, 0.2, 0.0]])
    logs = probabilities[0, :3].log()
    found = children_loss(probabilities.log() + 2, torch.tensor([1]), smoothing)
    assert found.item() == pytest.approx((-(1 - smoothing) * logs[1] - smoothing * logs.mean()).item())
    teacher = torch.tensor([[0.1, 0.2, 0.7, 0.0]])
    taught = children_loss(probabilities.log(), torch.tensor([1]), smoothing, teacher, 0.4)
    expected = -(1 - smoothing) * (0.6 * logs[1] + 0.4 * (teacher[0, :3] * logs).sum()) - smoothing * logs.mean()
    assert taught.item() == pytest.approx(expected.item())


@settings(deadline=None, max_examples=40)
@given(catalogue=catalogues())
def test_a_teachers_shares_are_its_items_probabilities_summed_below_the_children(device, catalogue):
    trie, ids = catalogue.trie(device), catalogue.ids()
    table = torch.randn(len(ids), DIM, generator=catalogue.generator)
    states = torch.randn(2, DIM, generator=catalogue.generator)
    teacher = TeacherShares(states.to(device), table.to(device), trie, 0.5)
    mass = (states.double() @ table.double().T).softmax(1)
    for depth in range(len(catalogue.vocab_sizes)):
        for node, prefix in enumerate(catalogue.nodes(depth)):
            children = [child for child in catalogue.nodes(depth + 1) if child[:depth] == prefix]
            found = teacher.of_children(depth, torch.tensor([node, node], device=device)).tolist()
            for row in range(2):
                own = [sum(mass[row, item].item() for item, code in enumerate(ids) if code[: depth + 1] == child) for child in children]
                assert found[row][: len(own)] == pytest.approx([value / sum(own) for value in own], abs=1e-4)
                assert not any(found[row][len(own) :])


def test_a_teacher_gets_no_gradient(device):
    catalogue = make_catalogue([3, 3], 7, unique=True, seed=1)
    states, table = (torch.randn(size, DIM, device=device, requires_grad=True) for size in (2, 7))
    shares = TeacherShares(states, table, catalogue.trie(device), 0.5).of_children(0, torch.zeros(2, dtype=torch.int64, device=device))
    assert not shares.requires_grad
