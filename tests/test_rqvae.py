"""The RQ-VAE: residual arithmetic, normalisation, saved state, and a short training that keeps its codebooks in use."""

import pytest
import torch

from data.schemas import UserError
from modules.quantize import QuantizeForwardMode
from modules.rqvae import RqVae, RqVaeConfig

MODES = list(QuantizeForwardMode)


def config(**changes) -> RqVaeConfig:
    return RqVaeConfig(**{"input_dim": 32, "embed_dim": 8, "hidden_dims": (32,), "codebook_size": 16, "num_levels": 3, **changes})


def catalogue(number: int = 600, seed: int = 0) -> torch.Tensor:
    """Unit-norm vectors in 60 clusters, whose mean cosine is about .85 as that of sentence embeddings."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.nn.functional.normalize(torch.randn(60, 32, generator=generator), dim=1)
    noise = torch.randn(number, 32, generator=generator) / 32**0.5
    own = torch.nn.functional.normalize(centers[torch.randint(60, (number,), generator=generator)] + 0.4 * noise, dim=1)
    shared = torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=0)
    return torch.nn.functional.normalize(0.85**0.5 * shared + 0.15**0.5 * own, dim=1)


def untrained(seed: int = 0, **changes) -> RqVae:
    torch.manual_seed(seed)
    return RqVae(config(**changes))


def usage(model: RqVae, items: torch.Tensor) -> list[float]:
    return [len(codes.unique()) / model.config.codebook_size for codes in model.eval().get_semantic_ids(items).T]


def trained(items: torch.Tensor, warm_up: int, kmeans: bool, steps: int = 150, **changes) -> tuple[RqVae, list[float]]:
    """A short training; the losses on the whole catalogue before and after stand in the list."""
    model = untrained(**changes).to(items.device)
    model.normalizer.fit(items)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(len(items), (128,), generator=generator).to(items.device) for _ in range(warm_up + steps)]
    for batch in batches[:warm_up]:
        optimizer.zero_grad()
        model.autoencoding_loss(items[batch]).backward()
        optimizer.step()
    if kmeans:
        model.kmeans_init(items, seed=0)
    losses = []
    for batch in batches[warm_up:]:
        loss = model(items[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, losses


@pytest.mark.parametrize("mode", MODES)
def test_shapes(mode, device):
    model = untrained(mode=mode).to(device)
    output = model(torch.randn(5, 32, device=device))
    assert output.codes.shape == (5, 3)
    assert output.residual_norms.shape == (3,)
    for loss in (output.loss, output.reconstruction_loss, output.codebook_loss, output.commitment_loss):
        assert loss.shape == ()
    expected = output.reconstruction_loss + output.codebook_loss + 0.25 * output.commitment_loss
    torch.testing.assert_close(output.loss, expected)


def test_codewords_and_the_last_residual_add_up_to_the_latent():
    model, latent = untrained(), torch.randn(7, 8)
    quantized = model.quantize(latent)
    last = quantized.residuals[-1] - quantized.codewords[-1]
    torch.testing.assert_close(sum(quantized.codewords) + last, latent)
    assert torch.equal(quantized.residuals[0], latent)
    for level in range(2):
        torch.testing.assert_close(quantized.residuals[level + 1], quantized.residuals[level] - quantized.codewords[level])


@pytest.mark.parametrize("mode", MODES)
def test_the_decoder_reads_the_sum_of_the_codewords_that_the_codes_name(mode):
    model, items = untrained(mode=mode).eval(), torch.randn(20, 32)
    latent = model.encoder(model.normalize(items))
    quantized = model.quantize(latent)
    codes = model.get_semantic_ids(items)
    looked_up = sum(level.codebook[codes[:, number]] for number, level in enumerate(model.levels))
    assert torch.equal(codes, model(items).codes)
    torch.testing.assert_close(model.estimate(latent, quantized), looked_up)
    loss = (model.decoder(looked_up) - model.normalize(items)).square().sum(1).mean()
    torch.testing.assert_close(model(items).reconstruction_loss, loss)


def test_center_unit_removes_the_mean_and_gives_unit_rows(device):
    items = catalogue().to(device)
    model = untrained(input_norm="center_unit").to(device)
    model.normalizer.fit(items)
    torch.testing.assert_close(model.normalize(items), torch.nn.functional.normalize(items - items.mean(0), dim=1))
    torch.testing.assert_close(model.normalize(items).norm(dim=1), torch.ones(len(items), device=device))


def test_standardize_gives_mean_zero_and_deviation_one():
    items = catalogue()
    items[:, 3] = 0.7  # a constant feature must not divide by zero
    model = untrained(input_norm="standardize")
    model.normalizer.fit(items)
    out = model.normalize(items)
    assert bool(torch.isfinite(out).all())
    varying = [column for column in range(32) if column != 3]
    torch.testing.assert_close(out.mean(0)[varying], torch.zeros(31), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0)[varying], torch.ones(31), atol=1e-3, rtol=0)


def test_none_leaves_the_input_alone():
    items = catalogue()
    model = untrained(input_norm="none")
    model.normalizer.fit(items)
    assert torch.equal(model.normalize(items), items)


def test_statistics_and_initialised_codebooks_survive_a_save():
    items = catalogue()
    model = untrained(input_norm="standardize")
    model.normalizer.fit(items)
    model.kmeans_init(items, seed=0)
    fresh = untrained(seed=1, input_norm="standardize")
    fresh.load_state_dict(model.state_dict())
    fresh.kmeans_init(items, seed=5)
    for ours, theirs in zip(model.levels, fresh.levels):
        assert torch.equal(ours.codebook, theirs.codebook)
    assert torch.equal(model.normalize(items), fresh.normalize(items))
    assert torch.equal(model.get_semantic_ids(items), fresh.get_semantic_ids(items))


def test_kmeans_initialises_every_level_with_all_codes_in_use():
    items, model = catalogue(), untrained()
    model.normalizer.fit(items)
    model.kmeans_init(items, seed=0)
    assert all(bool(level.initialised) for level in model.levels)
    assert min(usage(model, items)) == 1.0


def test_fewer_items_than_codes_is_a_user_error():
    with pytest.raises(UserError, match="10 items for 16 codes"):
        untrained().kmeans_init(catalogue(10), seed=0)


@pytest.mark.parametrize("input_norm", ["center_unit", "standardize", "none"])
def test_half_precision_rows_in_chunks_give_the_statistics_and_codes_of_the_same_in_full(input_norm):
    items = catalogue().half()
    half, full = untrained(input_norm=input_norm), untrained(input_norm=input_norm)
    half.normalizer.fit(items, chunk_size=37)
    full.normalizer.fit(items.float())
    torch.testing.assert_close(half.normalizer.mean, full.normalizer.mean)
    torch.testing.assert_close(half.normalizer.scale, full.normalizer.scale)
    full.load_state_dict(half.state_dict())
    assert half.normalize(items).dtype == torch.float32
    assert torch.equal(half.get_semantic_ids(items, chunk_size=37), full.get_semantic_ids(items.float(), chunk_size=37))
    assert torch.equal(half(items).loss, full(items.float()).loss)


@pytest.mark.parametrize("n_cat_feats", [0, 4])
def test_losses_and_gradients_of_a_step_are_those_of_the_plain_formulas(n_cat_feats):
    items = catalogue()
    items[:, 32 - n_cat_feats :] = (items[:, 32 - n_cat_feats :] > 0).float()
    model = untrained(n_cat_feats=n_cat_feats)
    model.normalizer.fit(items)
    output = model(items[:64])
    found = torch.autograd.grad(output.loss, list(model.parameters()))

    dense, tail = items[:64, : 32 - n_cat_feats], items[:64, 32 - n_cat_feats :]
    dense = dense - items[:, : 32 - n_cat_feats].mean(0)
    x = torch.cat([dense / dense.norm(dim=1, keepdim=True), tail], dim=1)
    latent = residual = model.encoder(x)
    codebook, commitment, total = 0.0, 0.0, 0.0
    for codewords in model.codebooks():
        chosen = codewords[(residual.unsqueeze(1) - codewords).square().sum(2).argmin(1)]
        codebook += (residual.detach() - chosen).square().sum(1).mean()
        commitment += (residual - chosen.detach()).square().sum(1).mean()
        residual, total = residual - chosen.detach(), total + chosen.detach()
    decoded = model.decoder(latent + (total - latent).detach())
    split = decoded.shape[1] - n_cat_feats
    entropy = torch.nn.functional.softplus(decoded[:, split:]) - decoded[:, split:] * x[:, split:]
    reconstruction = ((decoded[:, :split] - x[:, :split]).square().sum(1) + entropy.sum(1)).mean()
    loss = reconstruction + codebook + 0.25 * commitment
    torch.testing.assert_close(output.reconstruction_loss, reconstruction)
    torch.testing.assert_close(output.loss, loss)
    for ours, theirs in zip(found, torch.autograd.grad(loss, list(model.parameters()))):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_semantic_ids_in_chunks_are_those_at_once():
    items, model = catalogue(), untrained()
    model.normalizer.fit(items)
    assert torch.equal(model.get_semantic_ids(items, chunk_size=37), model.get_semantic_ids(items))


def test_evaluation_takes_nearest_codes_in_every_mode():
    items = catalogue(50)
    model = untrained(mode=QuantizeForwardMode.GUMBEL_SOFTMAX)
    model.eval()
    assert torch.equal(model(items).codes, model(items).codes)
    assert torch.equal(model(items).codes, model.get_semantic_ids(items))


def test_unknown_normalisation_and_empty_shapes_are_user_errors():
    with pytest.raises(UserError, match="center_unit"):
        config(input_norm="unit")
    with pytest.raises(UserError, match="at least 1"):
        config(num_levels=0)


def test_centring_warm_up_and_kmeans_keep_the_codebooks_in_use_where_raw_input_collapses():
    items = catalogue()
    cosine = items @ items.T
    assert float(cosine.mean()) == pytest.approx(0.85, abs=0.03)
    kept = usage(trained(items, warm_up=100, kmeans=True)[0], items)
    raw = usage(trained(items, warm_up=0, kmeans=False, input_norm="none")[0], items)
    assert min(kept) >= 0.9, kept
    assert min(raw) <= 0.5, raw


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_falls_in_every_mode(mode, device):
    losses = trained(catalogue().to(device), warm_up=50, kmeans=True, mode=mode)[1]
    assert sum(losses[-20:]) < 0.95 * sum(losses[:20])


def test_every_level_may_have_its_own_number_of_codes():
    model, items = untrained(codebook_size=(24, 16, 8)), catalogue()
    assert model.config.codebook_sizes == (24, 16, 8)
    model.normalizer.fit(items)
    model.kmeans_init(items, seed=0)
    assert [len(codes.unique()) for codes in model.get_semantic_ids(items).T] == [24, 16, 8]
    assert [tuple(book.shape) for book in model.codebooks()] == [(24, 8), (16, 8), (8, 8)]


def test_one_size_stands_for_every_level_and_another_number_of_sizes_is_refused():
    assert config(codebook_size=16).codebook_sizes == (16, 16, 16)
    with pytest.raises(UserError, match=r"vae_codebook_size = \[16, 8\] has 2 numbers for train.vae_n_layers = 3"):
        config(codebook_size=(16, 8))
