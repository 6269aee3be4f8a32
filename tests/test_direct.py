"""Tokenizers without a network: what each code means, how much it keeps, and that a saved one comes back."""

import pytest
import torch

from data.schemas import UserError
from modules.rqvae import RqVae, RqVaeConfig
from modules.tokenizer import direct
from modules.tokenizer.direct import DirectTokenizer
from modules.tokenizer.registry import KINDS as ALL
from modules.tokenizer.registry import kind_of, make_tokenizer
from tests.test_rqvae import catalogue

SHAPE = {"input_dim": 32, "codebook_size": 16, "num_levels": 3}
KINDS = [name for name, kind in ALL.items() if not kind.trains]
LEARNED = ("rqkmeans", "pq", "opq")


def fitted(kind: str, items: torch.Tensor, seed: int = 0, **changes: object) -> DirectTokenizer:
    made = make_tokenizer(kind, kind_of(kind).config(**{**SHAPE, **changes}))
    made.fit(items, seed)
    return made


def loss(made: DirectTokenizer, items: torch.Tensor) -> float:
    return (made.decode(made.get_semantic_ids(items)) - made.normalize(items)).square().sum(1).mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_codes_lie_in_their_codebooks_and_come_again_with_the_seed(kind):
    items = catalogue(300)
    for sizes in (16, (32, 16, 8)):
        made = fitted(kind, items, codebook_size=sizes)
        codes = made.get_semantic_ids(items)
        assert codes.shape == (300, 3)
        assert (codes >= 0).all()
        assert (codes.max(0).values < torch.tensor(made.codebook_sizes)).all()
        assert torch.equal(codes, fitted(kind, items, codebook_size=sizes).get_semantic_ids(items))
        if kind in ("lsh", "random"):
            assert not torch.equal(codes, fitted(kind, items, seed=1, codebook_size=sizes).get_semantic_ids(items))


@pytest.mark.parametrize("kind", KINDS)
def test_the_own_code_is_the_nearest_and_each_distance_is_that_of_its_code(kind):
    items = catalogue(300)
    made = fitted(kind, items)
    codes = made.get_semantic_ids(items)
    for level in range(3):
        distances = made.level_distances(items, codes, level)
        assert distances.shape == (300, 16)
        if kind != "random":
            assert torch.equal(distances.argmin(1), codes[:, level])


def test_an_rqvae_s_own_code_is_the_nearest_too():
    torch.manual_seed(0)
    items, made = catalogue(300), RqVae(RqVaeConfig(**SHAPE, embed_dim=8, hidden_dims=(32,), distance="cosine", codebook_normalize=True))
    made.normalizer.fit(items)
    made.kmeans_init(items, 0)
    codes = made.get_semantic_ids(items)
    for level in range(3):
        assert torch.equal(made.level_distances(items, codes, level).argmin(1), codes[:, level])


def test_the_distances_of_hashed_codes_are_the_margins_of_the_bits_that_differ():
    items = catalogue(20)
    made = fitted("lsh", items)
    margins = (made.latents(items) @ made.hyperplanes).abs().view(20, 3, 4)
    codes = made.get_semantic_ids(items)
    for other in (0, 5, 15):
        differs = (codes[:, 1, None] ^ other) >> torch.arange(4) & 1
        expected = (margins[:, 1] * differs).sum(1)
        torch.testing.assert_close(made.level_distances(items, codes, 1)[:, other], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", LEARNED)
def test_an_item_is_decoded_to_the_sum_of_its_codewords(kind):
    items = catalogue(300)
    made = fitted(kind, items)
    codes, books = made.get_semantic_ids(items), made.codebooks()
    total = books[0][codes[:, 0]] + books[1][codes[:, 1]] + books[2][codes[:, 2]]
    rotated = total if made.projection is None else total @ made.projection.T
    torch.testing.assert_close(made.decode(made.get_semantic_ids(items)), rotated)


@pytest.mark.parametrize("kind", LEARNED)
def test_more_levels_and_more_codes_keep_more(kind):
    items = catalogue(600)
    coarse, deep, wide = (fitted(kind, items, **more) for more in ({}, {"num_levels": 6}, {"codebook_size": 64}))
    assert loss(deep, items) < 0.9 * loss(coarse, items)
    assert loss(wide, items) < 0.9 * loss(coarse, items)


def test_the_learned_rotation_loses_less_than_the_dimensions_as_they_come():
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(3, 0.1, 32)  # all the variance lies in the first part
    items = torch.randn(800, 32, generator=generator) * scale
    assert loss(fitted("opq", items, input_norm="none"), items) < 0.9 * loss(fitted("pq", items, input_norm="none"), items)


@pytest.mark.parametrize("kind", LEARNED)
def test_principal_components_that_hold_everything_change_nothing_that_matters(kind):
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(500, 6, generator=generator) @ torch.randn(6, 32, generator=generator)
    whole, cut = fitted(kind, items, pca_dim=0), fitted(kind, items, pca_dim=6)
    assert [int((book != 0).any(0).sum()) for book in cut.codebooks()] == ([6, 6, 6] if kind == "rqkmeans" else [2, 2, 2])
    assert loss(cut, items) < 1.15 * loss(whole, items)
    torch.testing.assert_close(cut.projection.T @ cut.projection, torch.eye(6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_weights_give_the_same_codes(kind):
    items = catalogue(300)
    made = fitted(kind, items, pca_dim=12)
    again = make_tokenizer(kind, made.config)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.get_semantic_ids(items), made.get_semantic_ids(items))


def test_only_the_codes_of_the_controls_say_nothing_of_the_item():
    """Neighbours of a cluster share their first code far more often than strangers, but not with random codes."""
    items = catalogue(600)
    near = torch.nn.functional.normalize(items - items.mean(0), dim=1)
    nearest = (near @ near.T).fill_diagonal_(-2).argmax(1)
    shared = {kind: (codes := fitted(kind, items).get_semantic_ids(items)[:, 0])[nearest].eq(codes).float().mean().item() for kind in KINDS}
    assert shared["random"] < 0.15
    assert min(shared[kind] for kind in KINDS if kind != "random") > 0.3
    assert shared["rqkmeans"] > shared["lsh"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "kmeans"}, "it can be one of 'rqvae'"),
        ({"kind": "lsh", "codebook_size": (16, 12, 16)}, "powers of two"),
        ({"pca_dim": 33}, "at most train.vae_input_dim = 32"),
        ({"kind": "pq", "num_levels": 5, "pca_dim": 4}, "lower train.vae_n_layers"),
        ({"codebook_size": (16, 16)}, "one number for each level"),
        ({"input_norm": "l1"}, "'center_unit'"),
    ],
)
def test_shapes_that_cannot_be_are_refused_in_words(changes, said):
    with pytest.raises(UserError, match=said):
        kind_of(changes.pop("kind", "rqkmeans")).config(**{**SHAPE, **changes})


@pytest.mark.parametrize("kind", LEARNED)
def test_fewer_items_than_codes_are_refused_in_words(kind):
    with pytest.raises(UserError, match=r"got 10 items for 16; lower train.vae_codebook_size"):
        fitted(kind, catalogue(10))


@pytest.mark.parametrize("kind", LEARNED)
def test_balanced_items_share_the_codes_of_every_level_evenly(kind):
    items = catalogue(300)
    made = fitted(kind, items, balanced=True)
    codes = made.get_semantic_ids(items)
    assert max(int(torch.bincount(level).max()) for level in codes.T) <= -(-300 // 16)
    assert max(int(torch.bincount(level).max()) for level in fitted(kind, items).get_semantic_ids(items).T) > -(-300 // 16)


def test_codes_that_need_no_catalogue_are_fitted_without_its_vectors(monkeypatch):
    seen = []
    monkeypatch.setattr(DirectTokenizer, "latents", lambda self, items: (seen.append(len(items)), items)[1])
    for kind in KINDS:
        fitted(kind, catalogue(300))
    assert seen == [300, 300, 300, 0, 0]


def test_of_a_large_catalogue_codebooks_see_a_seeded_share(monkeypatch):
    items = catalogue(300)
    whole = fitted("rqkmeans", items)
    monkeypatch.setattr(direct, "FITTED", 100)
    share = fitted("rqkmeans", items)
    assert not torch.equal(share.levels[0], whole.levels[0])
    assert torch.equal(share.levels[0], fitted("rqkmeans", items).levels[0])
    assert share.get_semantic_ids(items).shape == (300, 3)
