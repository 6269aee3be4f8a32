"""Finite scalar quantization: the grid, its arithmetic, the gradient, and what a trained tokenizer keeps."""

import itertools
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.schemas import UserError
from evaluate.codebook import codebook_health
from modules.runtime.runs.stage1_run import load_tokenizer
from modules.runtime.training.checkpoint import load_weights, save_weights
from modules.tokenizer.collisions import reassign_collisions
from modules.tokenizer.fsq import FEWEST, Fsq, FsqConfig, from_codes, grid_sides, to_codes, to_digits, to_values
from tests.runs import interrupt_at, lines, run_decoder, run_rqvae, write_data
from tests.test_rqvae import catalogue

SHAPE = {"input_dim": 32, "hidden_dims": (32,), "codebook_size": 64, "num_levels": 2}


def fsq(**changes: object) -> Fsq:
    torch.manual_seed(0)
    return Fsq(FsqConfig(**{**SHAPE, **changes}))


def trained(model: Fsq, items: torch.Tensor, steps: int = 300, warm_up: int = 100) -> Fsq:
    model.normalizer.fit(items)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        batch = items[torch.randint(len(items), (256,), generator=generator)]
        optimizer.zero_grad()
        model.losses(batch, None if step < warm_up else 1.0).loss.backward()
        optimizer.step()
    return model.eval()


def loss_of(model: Fsq, items: torch.Tensor) -> float:
    return (model.decode(model.get_semantic_ids(items)) - model.normalize(items)).square().sum(1).mean().item()


def test_every_channel_is_rounded_to_the_nearest_of_its_evenly_spaced_values() -> None:
    """Five values at -1, -.5, 0, .5, 1; four at -1, -1/3, 1/3, 1; two at -1 and 1; one."""
    latent = torch.tensor([[-1.0, -0.7, -0.01, 0.9], [-0.76, -0.6, 0.01, -0.9], [0.2, 0.0001, 1.0, 0.0], [0.8, 1.0, -1.0, 0.3]])
    sides = torch.tensor([5, 4, 2, 1])
    digits = to_digits(latent, sides)
    assert digits.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [2, 2, 1, 0], [4, 3, 0, 0]]
    third = 1 / 3
    expected = torch.tensor([[-1, -1, -1, -1], [-1, -third, 1, -1], [0, third, 1, -1], [1, 1, -1, -1]])
    torch.testing.assert_close(to_values(digits, sides), expected)


def test_a_code_counts_the_cells_of_its_grid_the_first_channel_fastest() -> None:
    digits = torch.tensor([[0, 0, 0], [1, 0, 0], [6, 0, 0], [0, 1, 0], [0, 0, 1], [3, 2, 4], [6, 5, 5]])
    codes = [0, 1, 6, 7, 42, 3 + 7 * 2 + 42 * 4, 251]
    assert to_codes(digits, (7, 6, 6)).tolist() == codes
    assert torch.equal(from_codes(torch.tensor(codes), (7, 6, 6)), digits)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_codes_and_cells_stand_for_each_other_one_to_one(sides: list[int]) -> None:
    cells = torch.tensor(list(itertools.product(*map(range, sides))))
    codes = to_codes(cells, sides)
    assert sorted(codes.tolist()) == list(range(math.prod(sides)))
    assert torch.equal(from_codes(codes, sides), cells)
    assert torch.equal(to_digits(to_values(cells, torch.tensor(sides)), torch.tensor(sides)), cells)


@pytest.mark.parametrize(
    ("cells", "sides"), [(4, (4,)), (16, (16,)), (64, (8, 8)), (256, (7, 6, 6)), (512, (8, 8, 8)), (1024, (8, 5, 5, 5))]
)
def test_the_grid_of_a_codebook_size_is_the_largest_that_fits(cells: int, sides: tuple[int, ...]) -> None:
    assert grid_sides(cells) == sides


@given(st.integers(1, 5000))
def test_a_grid_never_has_more_cells_than_asked_for_and_nearly_as_many(cells: int) -> None:
    sides = grid_sides(cells)
    assert 0.75 * cells <= math.prod(sides) <= cells
    assert list(sides) == sorted(sides, reverse=True)
    assert len(sides) == 1 or (min(sides) >= FEWEST and FEWEST ** (len(sides) + 1) > cells)


def test_every_code_has_channels_of_its_own_and_its_own_size() -> None:
    config = FsqConfig(codebook_size=(256, 64, 16), num_levels=3)
    assert config.grids == ((7, 6, 6), (8, 8), (16,))
    assert config.codebook_sizes == (252, 64, 16)
    assert config.latent_dim == 6
    books = Fsq(config).codebooks()
    assert [book.shape for book in books] == [(252, 6), (64, 6), (16, 6)]
    assert [book.any(0).tolist() for book in books] == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]]
    assert all(len(book.unique(dim=0)) == len(book) for book in books)


def test_shapes_that_cannot_be_are_refused_in_words() -> None:
    with pytest.raises(UserError, match="one number for each level"):
        FsqConfig(codebook_size=(16, 16), num_levels=3)
    with pytest.raises(UserError, match=r"vae_n_cat_feats is 32 of 32"):
        FsqConfig(**SHAPE, n_cat_feats=32)


def test_the_gradient_passes_the_rounding_as_if_it_were_not_there() -> None:
    """The decoder reads rounded values and its gradient reaches the encoder whole: with a linear decoder, as it reaches the values."""
    model, items = fsq(input_norm="none"), catalogue(40)
    latent = model.encode(items).detach().requires_grad_()
    values = to_values(to_digits(latent.detach(), model.sides), model.sides).requires_grad_()
    model.reconstruction_loss(values, items).backward()
    model.encode = lambda x: latent  # type: ignore[method-assign, assignment]
    loss, parts = model.losses(items, 1.0)
    loss.backward()
    torch.testing.assert_close(latent.grad, values.grad)
    assert values.grad.abs().sum() > 0
    torch.testing.assert_close(loss.detach(), (model.decoder(values) - items).square().sum(1).mean().detach())
    assert parts["reconstruction"] == loss.detach()


def test_before_the_quantizer_starts_the_latent_is_not_rounded() -> None:
    model, items = fsq(), catalogue(40)
    loss, parts = model.losses(items, None)
    torch.testing.assert_close(loss, model.autoencoding_loss(items))
    assert parts["residual_norms"][-1] == 0
    assert not torch.allclose(loss, model.losses(items, 1.0).loss)


def test_residual_norms_are_what_the_codewords_so_far_leave_of_the_latent() -> None:
    model, items = fsq(codebook_size=(64, 16), num_levels=2), catalogue(50)
    codes, books, latents = model.get_semantic_ids(items), model.codebooks(), model.latents(items)
    one = latents - books[0][codes[:, 0]]
    two = one - books[1][codes[:, 1]]
    expected = torch.stack([one.norm(dim=1).mean(), two.norm(dim=1).mean()])
    torch.testing.assert_close(model.losses(items, 1.0).parts["residual_norms"], expected.detach())


def test_an_items_code_is_the_nearest_cell_and_it_is_decoded_from_the_sum_of_its_codewords() -> None:
    model, items = fsq(codebook_size=(64, 30), num_levels=2), catalogue(300)
    model.normalizer.fit(items)
    codes, books = model.get_semantic_ids(items), model.codebooks()
    for level in range(2):
        distances = model.level_distances(items, codes, level)
        assert torch.equal(distances.argmin(1), codes[:, level])
        own = model.latents(items) * books[level].any(0)
        torch.testing.assert_close(distances, torch.cdist(own, books[level]).square(), atol=1e-5, rtol=0)
    total = books[0][codes[:, 0]] + books[1][codes[:, 1]]
    torch.testing.assert_close(model.decode(codes), model.decoder(total))
    assert torch.equal(model.get_semantic_ids(items, chunk_size=7), codes)


def test_planted_clusters_get_codes_of_their_own_and_most_codes_are_used() -> None:
    items = catalogue(2000)  # 60 clusters
    model = trained(fsq(), items)
    codes = model.get_semantic_ids(items)
    health = codebook_health(codes, model.codebook_sizes)
    assert min(health.usage) > 0.8
    assert min(health.perplexity) > 25
    assert loss_of(model, items) < 0.6 * model.normalize(items).square().sum(1).mean().item()
    near = torch.nn.functional.normalize(items - items.mean(0), dim=1)
    nearest = (near @ near.T).fill_diagonal_(-2).argmax(1)
    assert (codes[nearest] == codes).any(1).float().mean() > 2 * (codes[nearest.roll(1)] == codes).any(1).float().mean()


def test_more_codes_and_larger_grids_keep_more() -> None:
    items = catalogue(2000)
    base, deep, wide = (loss_of(trained(fsq(**more), items), items) for more in ({}, {"num_levels": 4}, {"codebook_size": 512}))
    assert deep < 0.9 * base
    assert wide < 0.9 * base


def test_saved_weights_give_the_same_codes_and_the_same_reconstruction(tmp_path: Path) -> None:
    items = catalogue(300)
    model = trained(fsq(), items, steps=20, warm_up=5)
    save_weights(model, tmp_path / "weights.safetensors")
    again = fsq().eval()
    assert not torch.equal(again.get_semantic_ids(items), model.get_semantic_ids(items))
    load_weights(again, tmp_path / "weights.safetensors")
    codes = model.get_semantic_ids(items)
    assert torch.equal(again.get_semantic_ids(items), codes)
    assert torch.equal(again.decode(codes), model.decode(codes))


def test_categorical_features_are_reconstructed_as_logits() -> None:
    items = torch.cat([catalogue(100)[:, :28], (torch.arange(400).view(100, 4) % 3 == 0).float()], dim=1)
    model = trained(fsq(n_cat_feats=4), items, steps=150, warm_up=50)
    rebuilt = model.decode(model.get_semantic_ids(items))
    assert ((rebuilt[:, 28:] > 0) == items[:, 28:].bool()).float().mean() > 0.9


def test_a_run_of_it_goes_on_to_the_digit_starts_another_and_feeds_stage_two(tmp_path: Path, monkeypatch, capsys) -> None:
    write_data(tmp_path)
    given = ["tokenizer=fsq", "learning_rate=5e-3"]
    run_rqvae(tmp_path, *given)
    folder = tmp_path / "rqvae" / "beauty"
    assert "8 + 8 + 8 codes without a codebook" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        interrupt_at(130, signal.SIGTERM, patch)
        run_rqvae(tmp_path, *given, f"save_dir_root={tmp_path}/again", code=128 + signal.SIGTERM)
    run_rqvae(tmp_path, *given, f"save_dir_root={tmp_path}/again")
    assert lines(tmp_path / "again" / "beauty") == lines(folder)
    logged = [line for line in lines(folder) if "loss" in line]
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert len(logged[-1]["residual_norms"]) == 3
    first, second = load_tokenizer(folder), load_tokenizer(tmp_path / "again" / "beauty")
    assert torch.equal(first.tokenizer.sem_ids, second.tokenizer.sem_ids)
    kept = json.loads((folder / "metrics.json").read_text())
    assert kept["reconstruction"]["cosine"] > 0.5
    assert min(kept["usage"]) > 0.7
    run_rqvae(tmp_path, *given, f"pretrained_rqvae_path={tmp_path}/rqvae", f"save_dir_root={tmp_path}/more")
    assert next(line for line in lines(tmp_path / "more" / "beauty") if "loss" in line)["loss"] < logged[0]["loss"]
    run_rqvae(tmp_path, f"pretrained_rqvae_path={tmp_path}/rqvae", f"save_dir_root={tmp_path}/other", code=2)
    assert "is 'fsq', not 'rqvae' to start from" in capsys.readouterr().err
    run_decoder(tmp_path, "iterations=50", "do_eval=False")
    run_decoder(tmp_path, "vae_embed_dim=8", f"save_dir_root={tmp_path}/refused", code=2)
    assert "is 'fsq', which has none; remove the line" in capsys.readouterr().err


def test_items_that_share_all_codes_can_move_to_free_cells_nearby() -> None:
    items = catalogue(300)
    model = fsq(codebook_size=25)  # untrained: most items lie in a few of the 625 cells
    model.normalizer.fit(items)
    codes, order = model.get_semantic_ids(items), torch.arange(300)
    assert len(codes.unique(dim=0)) < 100
    moved = reassign_collisions(model, items, codes, order)
    assert len(moved.unique(dim=0)) == 300
    assert (moved < 25).all()
