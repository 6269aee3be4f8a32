"""Between steps: dead codes revived, moving averages; by hand, in several processes, and across a save."""

import pytest
import torch

from data.schemas import UserError
from modules.codebook_updates import CodebookUpdates, average, draw
from modules.quantize import Quantize, QuantizeForwardMode
from modules.rqvae import RqVae, RqVaeConfig
from modules.runtime.training.checkpoint import load_weights, save_weights
from modules.tokenizer.collisions import reassign_collisions
from tests.test_sinkhorn import together


def rqvae(**changes: object) -> RqVae:
    torch.manual_seed(0)
    shape = {"input_dim": 6, "embed_dim": 2, "hidden_dims": (8,), "codebook_size": 4, "num_levels": 1, "input_norm": "none"}
    return RqVae(RqVaeConfig(**{**shape, "dead_code_steps": 0, **changes}))


def optimizer_of(model: RqVae, rate: float = 1e-4) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)


def far_codes(model: RqVae, dead: tuple[int, ...]) -> None:
    """Puts the ``dead`` codewords of every level where nothing takes them."""
    with torch.no_grad():
        for level in model.codebook_levels():
            level.codebook[list(dead)] = 1000.0


def steps(model: RqVae, codebook_updates: CodebookUpdates, optimizer: torch.optim.Optimizer, items: torch.Tensor, numbers: range) -> None:
    for step in numbers:
        codebook_updates.begin(step)
        optimizer.zero_grad()
        model(items).loss.backward()
        optimizer.step()


ITEMS = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sim_vq", [False, True])
def test_a_code_without_items_for_the_period_takes_an_input_one_step_after_it_and_starts_anew(sim_vq):
    model = rqvae(dead_code_steps=3, sim_vq=sim_vq)
    model.kmeans_init(ITEMS, seed=0)
    far_codes(model, (1, 3))
    optimizer, level = optimizer_of(model), model.codebook_levels()[0]
    codebook_updates = model.codebook_updates(optimizer, first=0, iterations=100, batch_size=32)
    steps(model, codebook_updates, optimizer, ITEMS, range(3))
    assert float(level.codebook.detach()[[1, 3]].min()) > 900
    alive = level.codewords().detach()[[0, 2]].clone()
    steps(model, codebook_updates, optimizer, ITEMS, range(3, 4))
    revived, residuals = level.codewords().detach()[[1, 3]], level.seen[0].residuals
    for codeword in revived:
        assert float((residuals - codeword).norm(dim=1).min()) < 1e-4
    assert not torch.allclose(revived[0], revived[1])
    torch.testing.assert_close(level.codewords().detach()[[0, 2]], alive, atol=1e-2, rtol=0)
    assert level.uses.tolist() == [0, 0, 0, 0]
    if not sim_vq:
        first, second = (optimizer.state[level.codebook][moment] for moment in ("exp_avg", "exp_avg_sq"))
        assert not first[[1, 3]].any()
        assert bool(first[[0, 2]].any())
        torch.testing.assert_close(second[[1, 3]], second[[0, 2]].mean(0).expand(2, -1))


def test_no_code_is_revived_in_the_last_tenth_of_the_steps():
    model = rqvae(dead_code_steps=1)
    optimizer, level = optimizer_of(model), model.codebook_levels()[0]
    codebook_updates = model.codebook_updates(optimizer, first=0, iterations=20, batch_size=32)
    for step, revived in ((17, True), (18, False), (19, False)):
        far_codes(model, (1,))
        steps(model, codebook_updates, optimizer, ITEMS, range(step, step + 1))
        assert (float(level.codebook.detach()[1].max()) < 900) is revived


def test_the_period_counts_from_the_first_step_with_the_quantizer():
    model = rqvae(dead_code_steps=4)
    far_codes(model, (1,))
    optimizer, level = optimizer_of(model), model.codebook_levels()[0]
    codebook_updates = model.codebook_updates(optimizer, first=2, iterations=100, batch_size=32)
    for step in range(2):
        codebook_updates.begin(step)
        model.autoencoding_loss(ITEMS).backward()
        optimizer.step()
    steps(model, codebook_updates, optimizer, ITEMS, range(2, 6))
    assert float(level.codebook.detach()[1].min()) > 900
    steps(model, codebook_updates, optimizer, ITEMS, range(6, 7))
    assert float(level.codebook.detach()[1].max()) < 900


def test_draws_are_different_and_follow_the_error():
    errors, counts = torch.tensor([0.0, 1.0, 3.0, 0.0]), torch.zeros(4)
    for seed in range(400):
        drawn = draw(errors, 2, torch.Generator().manual_seed(seed))
        assert sorted(drawn.tolist()) == [1, 2]
        counts[drawn[0]] += 1
    assert float(counts[2]) / 400 == pytest.approx(0.75, abs=0.07)
    assert len(draw(errors, 9, torch.Generator())) == 4


def test_moving_averages_by_hand():
    level = Quantize(2, 1, averaged=True)
    level.average_counts.copy_(torch.tensor([1.0, 1.0]))
    level.average_sums.copy_(torch.tensor([[4.0], [7.0]]))
    average(level, torch.tensor([3.0, 1.0]), torch.tensor([[18.0], [9.0]]), 0.5)
    assert level.average_counts.tolist() == [2, 1]
    torch.testing.assert_close(level.codebook.detach(), torch.tensor([[5.5], [8.0]]), atol=1e-4, rtol=0)


def test_averaged_codewords_have_no_gradient_no_decay_and_end_at_the_means_of_their_residuals():
    model = rqvae(ema_decay=0.5)
    optimizer, level = optimizer_of(model, rate=0.0), model.codebook_levels()[0]
    model.kmeans_init(ITEMS, seed=0)
    codebook_updates = model.codebook_updates(optimizer, first=0, iterations=100, batch_size=32)
    steps(model, codebook_updates, optimizer, ITEMS, range(40))
    assert level.codebook.grad is None
    residuals, codes, _ = level.seen[0]
    means = torch.stack([residuals[codes == code].mean(0) for code in range(4)])
    torch.testing.assert_close(level.codebook.detach(), means, atol=1e-3, rtol=0)


@pytest.mark.parametrize("remedy", [{"dead_code_steps": 2}, {"ema_decay": 0.9}, {"dead_code_steps": 2, "ema_decay": 0.9}])
@pytest.mark.parametrize("micro", [1, 2])
def test_processes_that_share_batches_end_with_the_codebooks_of_one(remedy, micro):
    models = [rqvae(num_levels=2, **remedy) for _ in range(3)]
    for model in models:
        far_codes(model, (1, 3))
    parts = ITEMS.split(32 // micro)

    def run(model: RqVae, shard=None) -> list[torch.Tensor]:
        optimizer = optimizer_of(model, rate=0.0)
        codebook_updates = (
            model.codebook_updates(optimizer, 0, 100, 32 // micro)
            if shard is None
            else model.codebook_updates(optimizer, 0, 100, 32 // micro, 0, shard)
        )
        for step in range(4):
            codebook_updates.begin(step)
            for part in parts:
                model(part if shard is None else part[shard.index :: 2])
            optimizer.step()
        return [codebook.detach() for codebook in model.codebooks()]

    alone = run(models[0])
    for codebooks in together([lambda shard, model=model: run(model, shard) for model in models[1:]]):
        for ours, theirs in zip(codebooks, alone):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_without_a_remedy_nothing_is_kept_and_the_codes_of_evaluation_never_are():
    for remedy, kept in (({}, 0), ({"dead_code_steps": 2}, 1)):
        model = rqvae(**remedy)
        model(ITEMS)
        model.get_semantic_ids(ITEMS)
        model.eval()(ITEMS)
        assert len(model.codebook_levels()[0].seen) == kept


def test_the_state_of_remedies_is_saved_and_weights_of_other_remedies_load(tmp_path):
    remedied, plain = rqvae(dead_code_steps=3, ema_decay=0.9), rqvae()
    save_weights(plain, tmp_path / "plain")
    remedied.codebook_levels()[0].uses += 7
    save_weights(remedied, tmp_path / "remedied")
    again = rqvae(dead_code_steps=3, ema_decay=0.9)
    load_weights(again, tmp_path / "remedied")
    assert again.codebook_levels()[0].uses.tolist() == [7] * 4
    load_weights(again, tmp_path / "plain")
    level = again.codebook_levels()[0]
    assert level.uses.tolist() == [0] * 4
    assert level.average_counts.tolist() == [1] * 4
    assert torch.equal(level.average_sums, plain.codebook_levels()[0].codebook)
    load_weights(plain, tmp_path / "remedied")
    assert torch.equal(plain.codebook_levels()[0].codebook, remedied.codebook_levels()[0].codebook)
    assert set(plain.codebook_levels()[0].state_dict()) == {"codebook", "initialised"}


def test_averages_are_refused_where_codewords_learn_otherwise():
    with pytest.raises(UserError, match=r"train\.vae_ema_decay moves codewords to averages and train\.vae_sim_vq freezes them"):
        rqvae(ema_decay=0.9, sim_vq=True)
    with pytest.raises(UserError, match="GUMBEL_SOFTMAX"):
        rqvae(ema_decay=0.9, mode=QuantizeForwardMode.GUMBEL_SOFTMAX)


@pytest.mark.parametrize(
    "remedy",
    [{"dead_code_steps": 2}, {"ema_decay": 0.9}, {"sinkhorn": "training"}, {"sinkhorn": "last_level"}, {"sim_vq": True}],
    ids=lambda remedy: next(iter(remedy)),
)
def test_levels_of_unequal_size_work_with_every_remedy_and_policy(remedy):
    model = rqvae(codebook_size=(8, 6, 4), num_levels=3, **remedy)
    model.normalizer.fit(ITEMS)
    model.kmeans_init(ITEMS, seed=0)
    optimizer = optimizer_of(model, rate=1e-2)
    steps(model, model.codebook_updates(optimizer, first=0, iterations=100, batch_size=32), optimizer, ITEMS, range(12))
    codes = model.eval().get_semantic_ids(ITEMS)
    assert (codes.max(0).values < torch.tensor([8, 6, 4])).all()
    assert len(reassign_collisions(model, ITEMS, codes, torch.arange(32)).unique(dim=0)) == 32
    assert model.decode(codes).shape == ITEMS.shape
