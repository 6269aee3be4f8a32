"""Vectors by key: what has none, and what a grown numbering keeps."""

import torch

from data.schemas import PAD
from modules.keyed_vectors import KeyedVectors
from modules.tokenizer.trie import PrefixTrie


def numbered(names: list[int]):
    """Finds keys [n, 1] in a list of names."""
    return lambda keys: torch.tensor([names.index(key) if key in names else PAD for (key,) in keys.tolist()], dtype=torch.int64)


def make(names: list[int], keys: list[int], seed: int = 0) -> KeyedVectors:
    torch.manual_seed(seed)
    return KeyedVectors(numbered(names), len(names), torch.tensor(keys, dtype=torch.int64).reshape(-1, 1), 3, 1.0)


def test_an_entry_reads_the_vector_of_its_key_and_zero_without_one():
    vectors = make([7, 5, 9], keys=[9, 7])
    expected = torch.stack([vectors.vectors[2], torch.zeros(3), vectors.vectors[1]])
    assert torch.equal(vectors(torch.arange(3)), expected)
    assert torch.equal(vectors.table(), expected)
    assert vectors(torch.tensor([[0, 2]])).shape == (1, 2, 3)
    assert (expected[[0, 2]] != 0).all()


def test_no_gradient_reaches_the_zero_vector():
    vectors = make([7, 5], keys=[7])
    (vectors(torch.tensor([0, 1, 1])).sum() + vectors.table().sum()).backward()
    assert vectors.vectors.grad.tolist() == [[0.0] * 3, [2.0] * 3]


def test_loaded_vectors_keep_their_keys_when_the_numbering_has_grown():
    before = make([7, 9], keys=[7, 9])
    after = make([5, 7, 8, 9], keys=[], seed=1)
    after.load_state_dict(before.state_dict())
    assert torch.equal(after.table(), torch.stack([torch.zeros(3), before.vectors[1], torch.zeros(3), before.vectors[2]]))
    assert torch.equal(after.vectors, before.vectors)


def test_keys_that_only_the_loading_table_has_keep_their_vectors():
    before, after = make([7, 9], keys=[7, 9]), make([5, 7, 9], keys=[5, 7, 9], seed=1)
    own = after.vectors[1].clone()
    after.load_state_dict(before.state_dict())
    assert torch.equal(after.table(), torch.stack([own, before.vectors[1], before.vectors[2]]))
    assert after.vectors.requires_grad


def test_vectors_of_entries_that_are_gone_are_kept_unread():
    before, after = make([7, 9], keys=[7, 9]), make([9], keys=[], seed=1)
    after.load_state_dict(before.state_dict())
    assert torch.equal(after.table(), before.vectors[2:])
    assert torch.equal(after.state_dict()["vectors"], before.vectors)


def test_the_same_keys_are_loaded_into_the_parameter_that_an_optimizer_holds():
    before, after = make([7, 9], keys=[7, 9]), make([7, 9], keys=[7, 9], seed=1)
    parameter = after.vectors
    after.load_state_dict(before.state_dict())
    assert after.vectors is parameter
    assert torch.equal(parameter, before.vectors)


def test_prefixes_of_a_trie_are_keys(device):
    small, grown = (PrefixTrie(torch.tensor(ids), [4, 4]).to(device) for ids in ([[1, 1], [3, 0]], [[1, 1], [3, 0], [0, 2], [1, 0]]))
    keys = torch.tensor([[1, 1], [3, 0]], device=device)
    before = KeyedVectors(small.find, 2, keys, 3, 1.0).to(device)
    after = KeyedVectors(grown.find, 4, keys[:0], 3, 1.0).to(device)
    after.load_state_dict(before.state_dict())
    zero = torch.zeros(3, device=device)
    assert torch.equal(after.table(), torch.stack([zero, zero, before.vectors[1], before.vectors[2]]))  # (0, 2), (1, 0), (1, 1), (3, 0)
