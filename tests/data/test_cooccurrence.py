"""Collaborative vectors: counts by hand, no leak, one result, and what they do to the catalogue."""

import numpy as np
import pytest
import torch

from data.cooccurrence import WINDOW, append_collaborative, cooccurrence_vectors, positive_information
from data.processed import ItemData
from data.schemas import UserError
from data.splits import leave_one_out
from tests.synthetic import planted, to_histories, to_lists


def items(count: int, width: int = 6) -> ItemData:
    vectors = torch.randn(count, width, generator=torch.Generator().manual_seed(0)) + 2
    return ItemData(vectors, [f"i{row}" for row in range(count)], [""] * count, "0" * 16)


def test_information_of_three_items_by_hand():
    # Pairs within one step: 0-1 twice, 1-2 once; each counts in both directions: n = 6, n_0 = 2, n_1 = 3, n_2 = 1.
    train = to_histories([[0, 1], [0, 1, 2], [3]])
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = np.log(2 * 6 / (2 * 3))
    expected[1, 2] = expected[2, 1] = np.log(1 * 6 / (3 * 1))
    np.testing.assert_allclose(positive_information(train, 4, window=1).toarray(), expected)


def test_pairs_are_those_of_a_loop_over_users_and_positions():
    histories = planted(60, 40).histories
    counts = np.zeros((40, 40))
    for history in histories:
        for position, item in enumerate(history):
            for other in history[position + 1 : position + 1 + 3]:
                counts[item, other] += 1
                counts[other, item] += 1
    totals = counts.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.nan_to_num(np.log(counts * totals.sum() / np.outer(totals, totals)).clip(0))
    np.testing.assert_allclose(positive_information(to_histories(histories), 40, window=3).toarray(), expected)


def test_vectors_are_those_of_the_whole_decomposition_up_to_their_length():
    train = leave_one_out(to_histories(planted(120, 40).histories)).train
    found = cooccurrence_vectors(train, 40, 6).double().numpy()
    left, values, _ = np.linalg.svd(positive_information(train, 40).toarray())
    expected = left[:, :6] * np.sqrt(values[:6])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    assert np.all(np.abs(found).max(0) > 0)


def test_random_validation_and_test_items_leave_every_bit_as_it_was():
    histories = planted(200, 60).histories
    rng = np.random.default_rng(0)
    others = [history[:-2] + rng.integers(60, size=2).tolist() for history in histories]
    assert sum(a != b for a, b in zip(histories, others)) > 190
    one, other = (append_collaborative(items(60), to_histories(lists), 0.5, 8) for lists in (histories, others))
    assert torch.equal(one.embeddings, other.embeddings)
    assert one.embeddings_hash == other.embeddings_hash


def test_one_changed_training_item_is_seen_in_vectors_and_hash():
    histories = planted(200, 60).histories
    changed = [list(history) for history in histories]
    changed[3][0] = next(item for item in range(60) if item not in changed[3])
    one, other = (append_collaborative(items(60), to_histories(lists), 0.5, 8) for lists in (histories, changed))
    assert not torch.equal(one.embeddings, other.embeddings)
    assert one.embeddings_hash != other.embeddings_hash


def test_the_hash_names_text_histories_weight_and_width():
    histories = to_histories(planted(100, 40).histories)
    hashes = [append_collaborative(items(40), histories, weight, dim).embeddings_hash for weight, dim in ((0.5, 8), (1.0, 8), (0.5, 9))]
    hashes += [items(40).embeddings_hash, append_collaborative(items(40)._replace(embeddings_hash="1"), histories, 0.5, 8).embeddings_hash]
    assert len(set(hashes)) == 5


def test_items_without_a_partner_have_zero_vectors_and_all_others_length_one():
    histories = [[0, 1, 2], [2, 1, 0], [3], [4, 4], [1, 0]]
    vectors = cooccurrence_vectors(to_histories(histories), 6, 2)
    assert bool((vectors[3:] == 0).all())
    torch.testing.assert_close(vectors[:3].norm(dim=1), torch.ones(3))


def test_the_largest_entry_of_every_column_before_normalisation_is_positive_so_that_signs_are_fixed():
    train = leave_one_out(to_histories(planted(200, 60).histories)).train
    first, second = cooccurrence_vectors(train, 60, 8), cooccurrence_vectors(train, 60, 8)
    assert torch.equal(first, second)
    turned = train._replace(item_ids=train.item_ids.flip(0), offsets=(len(train.item_ids) - train.offsets).flip(0))
    torch.testing.assert_close(cooccurrence_vectors(turned, 60, 8), first, atol=1e-4, rtol=0)  # counts know no direction


def test_neighbours_in_histories_are_neighbours_in_the_vectors():
    truth = planted(300, 60)
    vectors = cooccurrence_vectors(leave_one_out(to_histories(truth.histories)).train, 60, 6)
    alike = torch.from_numpy(truth.cluster[:, None] == truth.cluster)
    products = vectors @ vectors.T
    assert products[alike].mean() > products[~alike].mean() + 0.5


def test_text_rows_are_centred_and_of_length_one_and_the_rest_has_the_weight_as_its_length():
    histories, catalogue = to_histories(planted(200, 60).histories), items(60)
    found = append_collaborative(catalogue, histories, 0.5, 8)
    centred = catalogue.embeddings - catalogue.embeddings.mean(0)
    torch.testing.assert_close(found.embeddings[:, :6], torch.nn.functional.normalize(centred, dim=1))
    torch.testing.assert_close(found.embeddings[:, 6:].norm(dim=1), torch.full((60,), 0.5))
    assert found.keys == catalogue.keys


@pytest.mark.parametrize("window", [1, WINDOW])
def test_users_never_meet(window):
    information = positive_information(to_histories([[0, 1]] * 3 + [[2, 3]] * 3), 4, window)
    assert set(zip(*information.nonzero())) == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert to_lists(to_histories([[0], [1]])) == [[0], [1]]
    assert positive_information(to_histories([[0], [1]]), 2, window).nnz == 0


def test_too_many_dimensions_and_histories_without_pairs_are_told_with_what_to_do():
    with pytest.raises(UserError, match="collaborative_dim is 4 for 4 items; it must be below"):
        cooccurrence_vectors(to_histories([[0, 1, 2, 3]]), 4, 4)
    with pytest.raises(UserError, match="no two items are neighbours"):
        cooccurrence_vectors(to_histories([[0], [1]]), 4, 2)
