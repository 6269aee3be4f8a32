"""One codebook, and the losses by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schemas import UserError
from distributions.gumbel import gumbel_noise
from modules.loss import codebook_loss, commitment_loss, reconstruction_loss
from modules.quantize import DISTANCES, Quantize


def test_losses_by_hand():
    residual, codeword = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    for loss in (reconstruction_loss, codebook_loss, commitment_loss):
        assert float(loss(residual, codeword)) == (5 + 25) / 2


def test_categorical_features_at_the_end_cost_their_cross_entropy_by_hand():
    reconstruction = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, math.log(3), -math.log(3)]])
    target = torch.tensor([[0.0, 0.0, 1.0, 0.0], [3.0, 4.0, 0.0, 0.0]])
    # sigmoid(0) = 1/2, sigmoid(log 3) = 3/4: ln 2 + ln 2 in the first row, ln 4 + ln 4/3 in the second
    expected = (5 + 2 * math.log(2) + 25 + math.log(4) + math.log(4 / 3)) / 2
    assert float(reconstruction_loss(reconstruction, target, num_categorical=2)) == pytest.approx(expected)
    assert float(reconstruction_loss(reconstruction[:, :2], target[:, :2])) == (5 + 25) / 2


def test_losses_send_their_gradient_to_one_side():
    residual = torch.tensor([[1.0, 2.0]], requires_grad=True)
    codeword = torch.tensor([[0.0, 0.0]], requires_grad=True)
    codebook_loss(residual, codeword).backward()
    assert residual.grad is None
    assert codeword.grad.tolist() == [[-2.0, -4.0]]
    codeword.grad = None
    commitment_loss(residual, codeword).backward()
    assert codeword.grad is None
    assert residual.grad.tolist() == [[2.0, 4.0]]


def test_reconstruction_is_summed_over_the_width_and_averaged_over_the_batch():
    for batch, width in ((1, 10), (4, 10), (4, 768)):
        assert float(reconstruction_loss(torch.ones(batch, width), torch.zeros(batch, width))) == width


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 20), size=st.integers(1, 30), width=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_the_nearest_code_is_that_of_brute_force(batch, size, width, seed):
    torch.manual_seed(seed)
    level, residual = Quantize(size, width).double(), torch.randn(batch, width, dtype=torch.float64)
    brute = torch.stack([(row - level.codebook).square().sum(1).argmin() for row in residual])
    output = level(residual)
    assert torch.equal(output.codes, brute)
    assert torch.equal(output.codeword, level.codebook[brute])
    assert output.relaxed is None


def test_sampled_codes_come_with_a_mixture_of_codewords():
    torch.manual_seed(0)
    level, residual = Quantize(5, 3), torch.randn(20, 3)
    output = level(residual, 1.0, torch.Generator().manual_seed(0))
    assert output.relaxed.shape == (20, 3)
    again = level(residual, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(output.codes, again.codes)
    assert not torch.equal(output.codes, level(residual, 1.0, torch.Generator().manual_seed(1)).codes)


def test_low_temperature_samples_the_nearest_code():
    torch.manual_seed(0)
    level = Quantize(5, 3)
    residual = level.codebook.detach()[[4, 2, 0]] + 0.001
    output = level(residual, 0.01, torch.Generator().manual_seed(0))
    assert output.codes.tolist() == [4, 2, 0]
    torch.testing.assert_close(output.relaxed, output.codeword)


@pytest.mark.parametrize("distance", DISTANCES)
def test_scale_of_latents_and_codewords_leaves_the_sampled_codes_alone(distance):
    torch.manual_seed(0)
    level, residual = Quantize(5, 3, distance).double(), torch.randn(50, 3, dtype=torch.float64)
    before = level(residual, 0.5, torch.Generator().manual_seed(0)).codes
    with torch.no_grad():
        level.codebook.mul_(100)
    assert torch.equal(level(residual * 100, 0.5, torch.Generator().manual_seed(0)).codes, before)


def test_kmeans_marks_the_codebook_and_the_mark_is_saved():
    torch.manual_seed(0)
    level, residuals = Quantize(4, 3), torch.randn(40, 3)
    assert not bool(level.initialised)
    codes = level.kmeans_init(residuals, seed=0)
    assert bool(level.initialised)
    assert torch.equal(codes, level.nearest(residuals))
    assert "initialised" in level.state_dict()
    fresh = Quantize(4, 3)
    fresh.load_state_dict(level.state_dict())
    assert bool(fresh.initialised)
    assert torch.equal(fresh.codebook, level.codebook)


def test_fewer_items_than_codes_is_told_with_both_numbers_and_the_cure():
    with pytest.raises(UserError) as error:
        Quantize(256, 4).kmeans_init(torch.randn(120, 4), seed=0)
    message = str(error.value)
    for part in ("120 items", "256 codes", "train.vae_codebook_size", "train.use_kmeans_init = False"):
        assert part in message
    assert "\n" not in message


def test_nearest_by_angle_and_by_distance_differ_by_hand():
    residual, codebook = torch.tensor([[3.0, 2.0]]), torch.tensor([[10.0, 0.0], [0.0, 1.0]])
    for distance, code in (("l2", 1), ("cosine", 0)):  # 53 against 10; 3 against 2
        level = Quantize(2, 2, distance)
        level.load_state_dict({"codebook": codebook, "initialised": torch.tensor(True)})
        assert level.nearest(residual).tolist() == level(residual).codes.tolist() == [code]
        assert torch.equal(level(residual).codeword[0], codebook[code])  # with its own length


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 20), size=st.integers(1, 30), width=st.integers(2, 8), seed=st.integers(0, 10_000))
def test_codes_by_cosine_are_those_of_brute_force_at_any_length_of_the_residual(batch, size, width, seed):
    torch.manual_seed(seed)
    level, residual = Quantize(size, width, "cosine").double(), torch.randn(batch, width, dtype=torch.float64)
    brute = torch.nn.functional.cosine_similarity(residual[:, None], level.codebook[None], dim=2).argmax(1)
    assert torch.equal(level(residual).codes, brute)
    assert torch.equal(level.nearest(residual * 10 ** torch.linspace(-3, 3, batch, dtype=torch.float64)[:, None]), brute)


def test_sampling_by_cosine_divides_by_the_mean_angular_distance_to_the_nearest():
    torch.manual_seed(0)
    level, residual, t = Quantize(6, 4, "cosine").double(), torch.randn(7, 4, dtype=torch.float64), 0.8
    codebook = level.codebook.detach()
    distance = 2 - 2 * torch.nn.functional.cosine_similarity(residual[:, None], codebook[None], dim=2)
    noise = gumbel_noise(distance, torch.Generator().manual_seed(5))
    weights = ((-distance / (distance.min(1).values.mean() * t) + noise) / t).softmax(1)
    output = level(residual, t, torch.Generator().manual_seed(5))
    torch.testing.assert_close(output.relaxed, weights @ codebook)
    assert torch.equal(output.codes, weights.argmax(1))


def test_between_vectors_of_length_one_both_distances_sample_the_same():
    torch.manual_seed(0)
    residual = torch.nn.functional.normalize(torch.randn(9, 4, dtype=torch.float64), dim=1)
    levels = [Quantize(6, 4, distance, unit_codewords=True).double() for distance in DISTANCES]
    levels[1].load_state_dict(levels[0].state_dict())
    l2, cosine = (level(residual, 0.5, torch.Generator().manual_seed(0)).relaxed for level in levels)
    torch.testing.assert_close(l2, cosine)


def test_a_code_of_kmeans_by_cosine_is_the_mean_of_its_residuals():
    torch.manual_seed(0)
    level, residuals = Quantize(8, 3, "cosine"), torch.randn(200, 3) * torch.rand(200, 1)
    codes = level.kmeans_init(residuals, seed=0)
    assert torch.equal(codes, level.nearest(residuals))
    means = torch.stack([residuals[codes == code].mean(0) for code in range(8)])
    assert float(torch.nn.functional.cosine_similarity(means, level.codewords()).min().detach()) > 0.98
    torch.testing.assert_close(level.codewords().norm(dim=1), means.norm(dim=1), rtol=0.1, atol=0)


def test_unit_codewords_have_length_one_and_learn_across_it():
    torch.manual_seed(0)
    level, residual = Quantize(5, 3, unit_codewords=True), torch.randn(20, 3)
    torch.testing.assert_close(level.codewords().norm(dim=1), torch.ones(5))
    output = level(residual)
    assert torch.equal(output.codeword, level.codewords()[output.codes])
    codebook_loss(residual, output.codeword).backward()
    assert bool(level.codebook.grad.any())
    torch.testing.assert_close((level.codebook.grad * level.codebook).sum(1), torch.zeros(5), atol=1e-5, rtol=0)


def test_sim_vq_starts_as_the_centroids_and_its_map_has_the_gradient_by_hand():
    torch.manual_seed(0)
    level, plain, residuals = Quantize(4, 3, sim_vq=True), Quantize(4, 3), torch.randn(40, 3)
    assert torch.equal(level.kmeans_init(residuals, seed=0), plain.kmeans_init(residuals, seed=0))
    assert torch.equal(level.codewords(), plain.codewords())
    output = level(residuals[:1])
    codebook_loss(residuals[:1], output.codeword).backward()
    chosen = level.codebook[output.codes[0]]
    torch.testing.assert_close(level.projection.grad, -2 * torch.outer(residuals[0] - chosen, chosen))
    assert level.codebook.grad is None


@pytest.mark.parametrize("unit_codewords", [False, True])
def test_sim_vq_moves_every_code_with_the_chosen_one_and_never_the_codebook(unit_codewords):
    torch.manual_seed(0)
    level = Quantize(50, 8, sim_vq=True, unit_codewords=unit_codewords)
    codebook, before = level.codebook.clone(), level.codewords().detach()
    optimizer = torch.optim.AdamW(level.parameters(), lr=0.01, weight_decay=0.5)
    residual = torch.randn(1, 8)
    codebook_loss(residual, level(residual).codeword).backward()
    optimizer.step()
    assert bool(((level.codewords() - before).abs().amax(1) > 1e-6).all())
    assert torch.equal(level.codebook, codebook)


def test_sim_vq_without_kmeans_starts_from_a_gaussian_of_variance_one_over_the_width():
    torch.manual_seed(0)
    codewords = Quantize(4096, 16, sim_vq=True).codewords().detach()
    assert float(codewords.std()) == pytest.approx(0.25, rel=0.02)
    assert float((codewords.abs() < 0.25).float().mean()) == pytest.approx(0.683, abs=0.01)


def test_only_sim_vq_adds_to_the_saved_state():
    assert set(Quantize(4, 3, "cosine", unit_codewords=True).state_dict()) == {"codebook", "initialised"}
    assert set(Quantize(4, 3, sim_vq=True).state_dict()) == {"codebook", "initialised", "projection"}
