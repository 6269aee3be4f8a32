"""The RQ-VAE's switches, alone and together, under every gradient estimator; and what each changes around the codebooks."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from data.schemas import UserError
from modules.input_norm import INPUT_NORMS
from modules.quantize import QuantizeForwardMode
from modules.rqvae import RqVae, RqVaeConfig
from modules.runtime.training.checkpoint import load_weights, save_weights

MODES = list(QuantizeForwardMode)
SWITCHES: dict[str, dict[str, object]] = {
    "default": {},
    "cosine": {"distance": "cosine"},
    "sim_vq": {"sim_vq": True},
    "normalized": {"codebook_normalize": True},
    "categorical": {"n_cat_feats": 5},
    "all": {"distance": "cosine", "sim_vq": True, "codebook_normalize": True, "n_cat_feats": 5},
}
WIDTH, DENSE, WARM_UP = 24, 19, 20


def rqvae(seed: int = 0, **changes: object) -> RqVae:
    torch.manual_seed(seed)
    shape = {"input_dim": WIDTH, "embed_dim": 8, "hidden_dims": (32,), "codebook_size": 16, "num_levels": 3, "dead_code_steps": 0}
    return RqVae(RqVaeConfig(**{**shape, **changes}))


def catalogue() -> torch.Tensor:
    """300 items in 40 clusters: 19 dense features with a common mean, 5 binary ones that depend on the cluster."""
    generator = torch.Generator().manual_seed(0)
    cluster = torch.randint(40, (300,), generator=generator)
    dense = torch.randn(40, DENSE, generator=generator)[cluster] + 0.3 * torch.randn(300, DENSE, generator=generator) + 2
    tail = (torch.rand(40, WIDTH - DENSE, generator=generator) < 0.5).float()[cluster]
    return torch.cat([dense, tail], dim=1)


def trained(model: RqVae, items: torch.Tensor, steps: int) -> list[float]:
    """Warm-up, k-means, then ``steps`` steps on all items; their reconstruction losses."""
    model.normalizer.fit(items)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(WARM_UP + steps):
        if step < WARM_UP:
            loss = model.autoencoding_loss(items)
        else:
            if step == WARM_UP:
                model.kmeans_init(items, seed=0)
            output = model(items, 0.3, torch.Generator().manual_seed(step))
            loss = output.loss
            losses.append(output.reconstruction_loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
def test_gradients_reach_the_encoder_and_every_level_from_either_side(changes, mode):
    model, items = rqvae(mode=mode, **changes), catalogue()
    model.normalizer.fit(items)
    model.kmeans_init(items, seed=0)
    encoder = list(model.encoder.parameters())
    output = model(items, 0.5, torch.Generator().manual_seed(0))
    for loss in (output.reconstruction_loss, output.commitment_loss):
        assert all(bool(gradient.any()) for gradient in torch.autograd.grad(loss, encoder, retain_graph=True))
    learning = [level.codebook if level.projection is None else level.projection for level in model.levels]
    assert all(bool(gradient.any()) for gradient in torch.autograd.grad(output.codebook_loss, learning, retain_graph=True))
    latent = model.encode(model.normalize(items))
    quantized = model.quantize(latent, 0.5 if mode == QuantizeForwardMode.GUMBEL_SOFTMAX else None, torch.Generator().manual_seed(0))
    for residual, codeword in zip(quantized.residuals, quantized.codewords):
        loss = (residual - codeword.detach()).square().sum(-1).mean()
        assert all(bool(gradient.any()) for gradient in torch.autograd.grad(loss, encoder, retain_graph=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
def test_a_short_training_learns_keeps_its_codes_and_comes_back_from_disk_bit_for_bit(changes, mode, tmp_path):
    model, items = rqvae(mode=mode, **changes), catalogue()
    losses = trained(model, items, steps=40)
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    codes = model.eval().get_semantic_ids(items)
    assert min(len(level.unique()) for level in codes.T) >= 12
    save_weights(model, tmp_path / "model.safetensors")
    fresh = rqvae(seed=1, mode=mode, **changes)
    load_weights(fresh, tmp_path / "model.safetensors")
    assert torch.equal(fresh.get_semantic_ids(items), codes)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.codebooks(), fresh.codebooks()))


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
def test_the_decoder_reads_the_sum_of_the_effective_codewords(changes):
    model, items = rqvae(**changes), catalogue()
    trained(model, items, steps=5)
    latent = model.encode(model.normalize(items))
    codes = model.eval().get_semantic_ids(items)
    looked_up = torch.stack([codebook[codes[:, number]] for number, codebook in enumerate(model.codebooks())]).sum(0)
    torch.testing.assert_close(model.estimate(latent, model.quantize(latent)), looked_up)


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
def test_semantic_ids_under_autocast_are_those_without(changes, device):
    model, items = rqvae(**changes).to(device), catalogue().to(device)
    trained(model, items, steps=5) if device.type == "cpu" else model.normalizer.fit(items)
    plain = model.eval().get_semantic_ids(items)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(model.get_semantic_ids(items), plain)


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
def test_a_config_survives_json(changes):
    config = rqvae(**changes).config
    read = json.loads(json.dumps(asdict(config) | {"mode": config.mode.name}))
    hidden_dims, mode = tuple(read.pop("hidden_dims")), QuantizeForwardMode[read.pop("mode")]
    assert RqVaeConfig(**read, hidden_dims=hidden_dims, mode=mode) == config


def test_the_state_without_remedies_is_the_statistics_the_network_and_the_codebooks():
    names = {name for name in rqvae().state_dict() if not name.startswith(("encoder.", "decoder."))}
    codebooks = {f"levels.{level}.{part}" for level in range(3) for part in ("codebook", "initialised")}
    assert names == {"normalizer.mean", "normalizer.scale"} | codebooks


def test_normalised_latents_and_first_codewords_have_length_one_and_each_level_leaves_less():
    model, items = rqvae(codebook_normalize=True), catalogue()
    model.normalizer.fit(items)
    model.kmeans_init(items, seed=0)
    latent = model.encode(model.normalize(items))
    torch.testing.assert_close(latent.norm(dim=1), torch.ones(300))
    first, second, third = (codebook.detach().norm(dim=1) for codebook in model.codebooks())
    torch.testing.assert_close(first, torch.ones(16))
    assert float(second.mean()) < 0.9
    assert float(third.mean()) < float(second.mean())
    norms = model(items).residual_norms.tolist()
    assert 1 > norms[0] > norms[1] > norms[2]


@pytest.mark.parametrize("input_norm", INPUT_NORMS)
def test_categorical_features_pass_the_normalisation_unchanged_and_leave_the_others_to_it(input_norm):
    items = catalogue()
    model, alone = rqvae(input_norm=input_norm, n_cat_feats=5), rqvae(input_norm=input_norm, input_dim=DENSE)
    model.normalizer.fit(items)
    alone.normalizer.fit(items[:, :DENSE])
    out = model.normalize(items)
    assert torch.equal(out[:, DENSE:], items[:, DENSE:])
    torch.testing.assert_close(out[:, :DENSE], alone.normalize(items[:, :DENSE]))


def test_the_decoders_last_outputs_are_logits_of_the_categorical_features():
    model, items = rqvae(n_cat_feats=5).eval(), catalogue()
    model.normalizer.fit(items)
    x = model.normalize(items)
    out = model.decoder(torch.stack(model.quantize(model.encode(x)).codewords).sum(0))
    probability = torch.sigmoid(out[:, DENSE:])
    likelihood = torch.where(x[:, DENSE:] == 1, probability, 1 - probability)
    expected = (out[:, :DENSE] - x[:, :DENSE]).square().sum(1) - likelihood.log().sum(1)
    torch.testing.assert_close(model(items).reconstruction_loss, expected.mean())


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan")])
@pytest.mark.parametrize("input_norm", INPUT_NORMS)
def test_categorical_features_outside_zero_to_one_are_a_user_error(input_norm, bad):
    items = catalogue()
    items[7, -1] = bad
    with pytest.raises(UserError, match=rf"last 5 features .* train\.vae_n_cat_feats .* \[0, 1\]: got {bad:g}"):
        rqvae(input_norm=input_norm, n_cat_feats=5).normalizer.fit(items)
    rqvae(input_norm=input_norm).normalizer.fit(items)


def test_impossible_switches_are_user_errors():
    with pytest.raises(UserError, match=r"train\.vae_distance is 'dot'; it can be one of 'l2', 'cosine'"):
        rqvae(distance="dot")
    for number in (WIDTH, WIDTH + 1, -1):
        with pytest.raises(UserError, match=rf"train\.vae_n_cat_feats is {number} of 24 input features"):
            rqvae(n_cat_feats=number)


def test_a_saved_run_of_other_switches_is_refused(tmp_path: Path):
    save_weights(rqvae(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="do not fit this model"):
        load_weights(rqvae(sim_vq=True), tmp_path / "model.safetensors")
