"""Collapse: each known cause, as the old mistake and as it is here; and the defaults, healthy on catalogues of every kind."""

import pytest
import torch
from torch import Tensor

import benchmarks.health
import modules.tokenizer.autoencoder
from modules.gradients import rotation_trick, straight_through
from modules.loss import reconstruction_loss
from modules.quantize import QuantizeForwardMode
from modules.rqvae import RqVae, RqVaeConfig
from modules.runtime.options.rqvae import RqVaeOptions

ROTATION = QuantizeForwardMode.ROTATION_TRICK
DEAD_CODE_STEPS = RqVaeOptions().vae_dead_code_steps

ALONE = {"warm_up": 0, "steps": 150, "dead_code_steps": 0}
"""Without what else would keep codes in use, so that one cause shows."""


def vectors(number: int = 600, width: int = 128, clusters: int = 120, spread: float = 0.4) -> Tensor:
    """Anisotropic unit rows of mean cosine .85, as the health benchmark has them."""
    return benchmarks.health.vectors(number, width, clusters, spread)


def trained(items: Tensor, warm_up: int = 80, steps: int = 100, start: str = "kmeans", **changes: object) -> RqVae:
    """A short training as the script does it: warm-up, start of the codebooks, quantizer, codebook_updates."""
    torch.manual_seed(0)
    shape = {"input_dim": items.shape[1], "embed_dim": 16, "hidden_dims": (64,), "codebook_size": 64, "dead_code_steps": DEAD_CODE_STEPS}
    model = RqVae(RqVaeConfig(**{**shape, **changes}))
    model.normalizer.fit(items)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    codebook_updates = model.codebook_updates(optimizer, warm_up, warm_up + steps, batch_size=256)
    generator = torch.Generator().manual_seed(0)
    for step in range(warm_up + steps):
        if step == warm_up and start != "none":
            {"kmeans": model.kmeans_init, "sample": model.sample_init}[start](items, seed=0)
        batch = items[torch.randint(len(items), (256,), generator=generator)]
        codebook_updates.begin(step)
        optimizer.zero_grad()
        (model.autoencoding_loss(batch) if step < warm_up else model(batch).loss).backward()
        optimizer.step()
    return model.eval()


def usage(model: RqVae, items: Tensor) -> list[float]:
    return [len(codes.unique()) / size for codes, size in zip(model.get_semantic_ids(items).T, model.config.codebook_sizes)]


def distinct(model: RqVae, items: Tensor) -> float:
    return len(model.get_semantic_ids(items).unique(dim=0)) / len(items)


def test_uncentred_input_collapses_and_centred_does_not():
    items = vectors()
    assert float((items @ items.T).mean()) == pytest.approx(0.85, abs=0.03)
    old, ours = (trained(items, start="none", **ALONE, input_norm=norm) for norm in ("none", "center_unit"))
    assert min(usage(old, items)) < 0.1
    assert distinct(old, items) < 0.1
    assert min(usage(ours, items)) > 0.3
    assert distinct(ours, items) > 0.8


def test_a_reconstruction_loss_averaged_over_the_width_collapses_and_the_sum_does_not(monkeypatch):
    items = vectors()
    ours = trained(items, start="none", **ALONE)
    monkeypatch.setattr(modules.tokenizer.autoencoder, "reconstruction_loss", lambda *given: reconstruction_loss(*given) / items.shape[1])
    old = trained(items, start="none", **ALONE)
    assert max(usage(old, items)) < 0.2
    assert distinct(old, items) < 0.1
    assert min(usage(ours, items)) > 0.3
    assert distinct(ours, items) > 0.8


def test_random_codebooks_before_an_untrained_encoder_lose_codes_and_random_items_after_a_warm_up_do_not():
    items = vectors()
    old, ours = trained(items, start="none", **ALONE), trained(items, start="sample", dead_code_steps=0)
    assert usage(old, items)[0] < 0.7
    assert min(usage(ours, items)) > 0.8


def test_a_lost_kmeans_flag_gives_a_loaded_tokenizer_other_codes_and_the_saved_one_does_not():
    items = vectors(300)
    model = trained(items, steps=20)
    codes = model.get_semantic_ids(items)
    for lost in (True, False):
        loaded = RqVae(model.config)
        loaded.load_state_dict(model.state_dict())
        if lost:
            for level in loaded.codebook_levels():
                level.initialised.fill_(False)
        loaded.kmeans_init(items[:100], seed=0)  # what a first batch after loading would do
        changed = (loaded.eval().get_semantic_ids(items) != codes).any(1).float().mean()
        assert float(changed) > 0.9 if lost else float(changed) == 0


def test_residuals_of_the_straight_through_output_leave_deep_levels_without_gradient_and_those_of_codewords_do_not():
    model = RqVae(RqVaeConfig(input_dim=8, embed_dim=4, hidden_dims=(8,), codebook_size=4, num_levels=3, input_norm="none"))
    latent = model.encode(torch.randn(20, 8)).detach().requires_grad_()
    residual, old = latent, []
    for level in model.codebook_levels():
        codeword = level(residual).codeword
        old.append((residual - codeword.detach()).square().sum())
        residual = residual - straight_through(residual, codeword)
    quantized = model.quantize(latent)
    ours = [(residual - codeword.detach()).square().sum() for residual, codeword in zip(quantized.residuals, quantized.codewords)]
    norms = [[float(torch.autograd.grad(loss, latent, retain_graph=True)[0].norm()) for loss in losses] for losses in (old, ours)]
    assert norms[0][0] > 0.1
    assert max(norms[0][1:]) < 1e-5
    assert min(norms[1]) > 0.1


CATALOGUES: dict[str, tuple[Tensor, dict[str, object]]] = {
    "anisotropic": (vectors(), {}),
    "tiny": (vectors(300), {}),
    "near_duplicates": (vectors(600, clusters=150, spread=0.002), {}),
    "wide": (vectors(400, width=2048), {}),
    "many_codes": (vectors(1500, clusters=1500), {"codebook_size": 1024, "num_levels": 2}),
    "two_levels": (vectors(), {"num_levels": 2}),
    "six_levels": (vectors(), {"num_levels": 6}),
}


@pytest.mark.parametrize("name", CATALOGUES)
def test_the_defaults_stay_healthy(name):
    items, changes = CATALOGUES[name]
    model = trained(items, **changes)
    assert min(usage(model, items)) > 0.6
    assert distinct(model, items) > (0.95 * 150 / 600 if name == "near_duplicates" else 0.6)  # 150 of these 600 differ


def test_the_rotation_trick_pulls_a_cell_to_the_origin_and_straight_through_does_not():
    codeword, angle = torch.tensor([[2.0, 0.0]] * 2), torch.tensor(0.3)
    latents = torch.tensor([[2.0, 2 * angle.tan()], [2.0, -2 * angle.tan()]])
    pushes = torch.tensor([[0.0, 1.0], [0.0, -1.0]])  # away from the codeword
    moves = []
    for estimator in (straight_through, rotation_trick):
        latent = latents.clone().requires_grad_()
        (estimator(latent, codeword) * -pushes).sum().backward()
        moves.append(-latent.grad.mean(0))
    torch.testing.assert_close(moves[0], torch.zeros(2))
    torch.testing.assert_close(moves[1], torch.tensor([-angle.cos() * angle.sin(), 0.0]))


def test_under_the_rotation_trick_free_latents_shrink_and_those_of_length_one_cannot():
    items = vectors()
    lengths = {}
    for name, changes in (("straight", {}), ("rotated", {"mode": ROTATION}), ("unit", {"mode": ROTATION, "codebook_normalize": True})):
        model = trained(items, warm_up=60, **changes)
        lengths[name] = float(model.encode(model.normalize(items)).norm(dim=1).mean().detach())
        assert name == "rotated" or min(usage(model, items)) > 0.8
    assert lengths["rotated"] < 0.8 * lengths["straight"]
    assert lengths["unit"] == pytest.approx(1)
