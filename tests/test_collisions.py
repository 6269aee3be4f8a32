"""What happens to items that share all their codes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schemas import UserError
from modules.rqvae import RqVae, RqVaeConfig
from modules.tokenizer import collisions
from modules.tokenizer.collisions import collision_codes, reassign_collisions
from modules.tokenizer.direct import DirectTokenizer
from modules.tokenizer.registry import kind_of, make_tokenizer
from modules.tokenizer.semids import SemanticIdTokenizer, TokenizerInfo, seeded_order
from tests.test_semids import keys_of


def fresh(kind: str, **shape: int) -> DirectTokenizer:
    tokenizer = make_tokenizer(kind, kind_of(kind).config(**shape))
    assert isinstance(tokenizer, DirectTokenizer)
    return tokenizer


class Fixed:
    """A coder whose distances are given: [L][I, K], the same whatever the codes above."""

    def __init__(self, distances: list[torch.Tensor], items: torch.Tensor) -> None:
        self.distances = distances
        self.rows = {tuple(item.tolist()): row for row, item in enumerate(items)}

    @property
    def codebook_sizes(self):
        return tuple(level.shape[1] for level in self.distances)

    def level_distances(self, items, codes, level):
        return self.distances[level][[self.rows[tuple(item.tolist())] for item in items]]


def slow(distances: list[torch.Tensor], codes: torch.Tensor, order: torch.Tensor) -> list[list[int]]:
    """The same rule, one item and one code at a time."""
    by_order = order.argsort().tolist()
    result, taken, waiting = codes.tolist(), set(), []
    for row in by_order:
        (waiting.append if tuple(result[row]) in taken else taken.add)(row if tuple(result[row]) in taken else tuple(result[row]))
    above = distances[-2].argsort(dim=1, stable=True).tolist()
    for rank in range(distances[-2].shape[1]):
        while waiting:
            best = {}
            for row in waiting:
                prefix = codes[row].tolist()[:-1] if rank == 0 else [*codes[row].tolist()[:-2], above[row][rank]]
                free = [(float(distances[-1][row, code]), code) for code in range(distances[-1].shape[1]) if (*prefix, code) not in taken]
                if free:
                    distance, code = min(free)
                    best.setdefault((*prefix, code), []).append((distance, int(order[row]), row))
            if not best:
                break
            for key, asking in best.items():
                row = min(asking)[2]
                result[row] = list(key)
                taken.add(key)
                waiting.remove(row)
    assert not waiting
    return result


def crowd(items: int, sizes: tuple[int, ...], seed: int) -> tuple[Fixed, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(items, 4, generator=generator)
    distances = [torch.rand(items, size, generator=generator) for size in sizes]
    codes = torch.stack([level.argmin(1) for level in distances], dim=1)
    return Fixed(distances, embeddings), embeddings, codes, torch.randperm(items, generator=generator)


def test_by_hand_the_first_stays_and_the_others_take_the_nearest_free_code():
    items = torch.arange(4.0).unsqueeze(1)
    last = torch.tensor([[0.0, 1, 2], [0.0, 1, 2], [0.0, 3, 2], [9.0, 0, 9]])
    codes = torch.tensor([[0, 0], [0, 0], [0, 0], [0, 1]])
    # Item 3 is alone with code 1. Of the three at code 0 item 1 stays; items 0 and 2 both want code 2, equally near, and item 2 is first in
    # the order; nothing is left behind code 0 of the level above, so item 0 goes to its second nearest there.
    coder = Fixed([torch.tensor([[0.0, 1.0]]).expand(4, 2), last], items)
    assert reassign_collisions(coder, items, codes, torch.tensor([2, 0, 1, 3])).tolist() == [[1, 0], [0, 0], [0, 2], [0, 1]]


@pytest.mark.parametrize(("items", "sizes"), [(60, (1, 8, 8)), (70, (1, 12, 6)), (24, (5, 5)), (200, (2, 16, 16))])
@pytest.mark.parametrize("seed", range(4))
def test_it_moves_items_as_a_slow_loop_does(items, sizes, seed):
    coder, embeddings, codes, order = crowd(items, sizes, seed)
    assert reassign_collisions(coder, embeddings, codes, order).tolist() == slow(coder.distances, codes, order)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), items=st.integers(1, 64))
def test_ids_become_unique_prefixes_stay_where_they_can_and_nobody_moves_without_need(seed, items):
    coder, embeddings, codes, order = crowd(items, (1, 8, 8), seed)
    result = reassign_collisions(coder, embeddings, codes, order)
    assert len(result.unique(dim=0)) == items
    moved = (result != codes).any(1)
    assert moved.sum() == items - len(codes.unique(dim=0))
    assert (collision_codes(codes, order)[~moved] == 0).all()


def test_one_level_and_a_full_house_work_and_one_item_more_is_refused():
    for items in (8, 9):
        embeddings = torch.arange(float(items)).unsqueeze(1)
        coder = Fixed([torch.rand(items, 8, generator=torch.Generator().manual_seed(0))], embeddings)
        codes, order = torch.zeros(items, 1, dtype=torch.int64), torch.arange(items)
        if items == 8:
            assert sorted(reassign_collisions(coder, embeddings, codes, order)[:, 0].tolist()) == list(range(8))
        else:
            with pytest.raises(UserError, match=r"no free code for 1 items; raise train.vae_codebook_size"):
                reassign_collisions(coder, embeddings, codes, order)


def test_too_many_possible_ids_are_refused_in_words():
    coder, embeddings, codes, order = crowd(4, (2,), 0)
    coder.distances = [torch.rand(4, 2048)] * 6
    with pytest.raises(UserError, match="too many"):
        reassign_collisions(coder, embeddings, codes.expand(4, 6), order)


def test_many_equal_items_fill_the_codes_in_their_order_and_fast():
    items = torch.zeros(600, 1)
    last = torch.arange(256.0).expand(600, 256)
    coder = Fixed([torch.arange(4.0).expand(600, 4), last], items)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    result = reassign_collisions(coder, items, torch.zeros(600, 2, dtype=torch.int64), order)
    assert (result[:, 0] * 256 + result[:, 1]).tolist() == order.tolist()


def test_chunks_of_movers_end_unique(monkeypatch):
    coder, embeddings, codes, order = crowd(200, (2, 16, 16), 0)
    monkeypatch.setattr(collisions, "CHUNK", 16 * 7)
    assert len(reassign_collisions(coder, embeddings, codes, order).unique(dim=0)) == 200


@pytest.mark.parametrize("seed", range(60))
def test_random_codes_are_moved_as_long_as_one_is_free(seed):
    items = torch.zeros(16, 4)
    coder = fresh("random", input_dim=4, codebook_size=4, num_levels=2)
    coder.fit(items, seed)
    codes = coder.get_semantic_ids(items)
    assert len(reassign_collisions(coder, items, codes, torch.arange(16)).unique(dim=0)) == 16


@pytest.mark.parametrize("kind", ["rqkmeans", "pq", "lsh", "random"])
def test_every_policy_makes_a_tokenizer_of_every_kind(kind):
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(150, 8, generator=generator)
    coder = fresh(kind, input_dim=8, codebook_size=8, num_levels=3)
    coder.fit(items, 0)
    codes = coder.get_semantic_ids(items)
    extra, moved, none = (
        SemanticIdTokenizer.from_coder(coder, items, keys_of(150), "hash", 0, policy) for policy in ("extra_code", "reassign", "none")
    )
    assert torch.equal(extra.sem_ids[:, :3], codes)
    assert torch.equal(none.sem_ids, codes)
    assert moved.vocab_sizes == none.vocab_sizes == (8, 8, 8)
    assert len(extra.sem_ids.unique(dim=0)) == len(moved.sem_ids.unique(dim=0)) == 150
    assert moved.trie.one_item_a_leaf


def test_items_that_share_an_id_are_listed_by_the_order_that_is_given_and_saved(tmp_path):
    items = torch.zeros(30, 8)
    coder = fresh("lsh", input_dim=8, codebook_size=8, num_levels=2)
    coder.fit(items, 0)
    made = SemanticIdTokenizer.from_coder(coder, items, keys_of(30), "hash", 0, "none")
    assert made.trie.items.tolist() == seeded_order(keys_of(30), 0).argsort().tolist()
    popularity = torch.arange(30).flip(0)
    made.ordered_by(popularity).save(tmp_path)
    loaded = SemanticIdTokenizer.load(tmp_path)
    assert loaded.trie.items.tolist() == popularity.argsort().tolist()
    assert torch.equal(loaded.sem_ids, made.sem_ids)


def test_where_every_id_is_one_item_s_an_order_changes_nothing():
    sem_ids = torch.tensor(list(itertools.product(range(3), range(2))))
    made = SemanticIdTokenizer(sem_ids, [], TokenizerInfo(keys_of(6), "", [3, 2], 0))
    assert made.ordered_by(torch.arange(6).flip(0)) is made


@pytest.mark.parametrize("last_level", ["none", "last_level"])
def test_where_no_items_collide_nothing_moves(last_level):
    torch.manual_seed(0)
    items = torch.randn(8, 6)
    coder = RqVae(RqVaeConfig(input_dim=6, embed_dim=4, hidden_dims=(8,), codebook_size=8, num_levels=2, sinkhorn=last_level)).eval()
    coder.normalizer.fit(items)
    coder.kmeans_init(items, 0)
    codes = coder.get_semantic_ids(items)
    assert len(codes.unique(dim=0)) == 8
    assert torch.equal(reassign_collisions(coder, items, codes, torch.arange(8)), codes)
