"""One codebook, and the losses by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schemas import UserError
from modules.loss import codebook_loss, commitment_loss, reconstruction_loss
from modules.quantize import Quantize


def test_losses_by_hand():
    residual, codeword = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    for loss in (reconstruction_loss, codebook_loss, commitment_loss):
        assert float(loss(residual, codeword)) == (5 + 25) / 2


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


def test_scale_of_latents_and_codewords_leaves_the_sampled_codes_alone():
    torch.manual_seed(0)
    level, residual = Quantize(5, 3).double(), torch.randn(50, 3, dtype=torch.float64)
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
