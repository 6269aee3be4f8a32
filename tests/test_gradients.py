"""Gradients across the quantizer, against formulas written out here with plain matrices."""

import pytest
import torch
from torch.autograd.functional import jacobian

from distributions.gumbel import gumbel_noise
from modules.gradients import detached_sum, rotation_trick, straight_through
from modules.quantize import Quantize, QuantizeForwardMode
from modules.rqvae import RqVae, RqVaeConfig

MODES = list(QuantizeForwardMode)
STRAIGHT_OR_ROTATED = [QuantizeForwardMode.STE, QuantizeForwardMode.ROTATION_TRICK]


def rqvae(num_levels: int, mode: QuantizeForwardMode = QuantizeForwardMode.STE) -> RqVae:
    torch.manual_seed(0)
    config = RqVaeConfig(input_dim=10, embed_dim=4, hidden_dims=(8,), codebook_size=6, num_levels=num_levels, mode=mode, input_norm="none")
    return RqVae(config).double()


def rotation_matrix(z: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """|q|/|z| (I - 2 r r^T + 2 q^ z^T) of two vectors."""
    z_hat, q_hat = z / z.norm(), q / q.norm()
    r = (z_hat + q_hat) / (z_hat + q_hat).norm()
    return q.norm() / z.norm() * (torch.eye(len(z), dtype=z.dtype) - 2 * torch.outer(r, r) + 2 * torch.outer(q_hat, z_hat))


def test_straight_through_is_the_identity_backward():
    z, q = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    torch.testing.assert_close(straight_through(z, q), q)
    torch.testing.assert_close(jacobian(lambda x: straight_through(x, q), z), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("num_levels", [1, 3, 6])
def test_the_quantized_sum_passes_the_identity_for_any_number_of_levels(num_levels):
    model = rqvae(num_levels)
    z = torch.randn(1, 4, dtype=torch.float64)
    got = jacobian(lambda latent: model.estimate(latent, model.quantize(latent)), z).reshape(4, 4)
    torch.testing.assert_close(got, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("num_levels", [1, 3, 6])
def test_the_quantized_sum_passes_one_rotation_for_any_number_of_levels(num_levels):
    model = rqvae(num_levels, QuantizeForwardMode.ROTATION_TRICK)
    z = torch.randn(1, 4, dtype=torch.float64)
    q = detached_sum(model.quantize(z).codewords)
    got = jacobian(lambda latent: model.estimate(latent, model.quantize(latent)), z).reshape(4, 4)
    torch.testing.assert_close(got, rotation_matrix(z[0], q[0]))


@pytest.mark.parametrize("seed", range(5))
def test_rotation_trick_is_the_papers_matrix_and_takes_the_latent_to_its_quantization(seed):
    generator = torch.Generator().manual_seed(seed)
    z, q = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    matrix = rotation_matrix(z, q)
    torch.testing.assert_close(matrix @ z, q)
    torch.testing.assert_close(jacobian(lambda x: rotation_trick(x, q), z), matrix)


def test_rotation_trick_acts_on_each_row_alone():
    z, q = torch.randn(2, 4, 3, dtype=torch.float64)
    got = jacobian(lambda x: rotation_trick(x, q), z)  # [4, 3, 4, 3]
    for row in range(4):
        for other in range(4):
            expected = rotation_matrix(z[row], q[row]) if row == other else torch.zeros(3, 3, dtype=torch.float64)
            torch.testing.assert_close(got[row, :, other], expected)


def test_rotation_trick_gives_exactly_the_quantization_forward():
    z, q = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotation_trick(z, q), q)


@pytest.mark.parametrize("estimator", [straight_through, rotation_trick])
def test_a_batch_of_one_stays_a_batch(estimator):
    assert estimator(torch.randn(1, 3), torch.randn(1, 3)).shape == (1, 3)


def test_rotation_trick_is_finite_at_zero_and_at_opposite_directions():
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 0.0]], requires_grad=True)
    q = torch.tensor([[1.0, 0.0], [-1.0, -2.0], [0.0, 0.0]])
    out = rotation_trick(z, q)
    out.sum().backward()
    torch.testing.assert_close(out.detach(), q)
    assert bool(torch.isfinite(z.grad).all())


def test_gumbel_softmax_gradient_is_the_softmax_jacobian_of_scaled_distances():
    torch.manual_seed(1)
    level, t = Quantize(6, 4).double(), 0.8
    z = torch.randn(4, dtype=torch.float64)
    codebook = level.codebook.detach()
    squared = (z - codebook).square().sum(1)
    s = squared.min()
    noise = gumbel_noise(torch.empty(1, 6, dtype=torch.float64), torch.Generator().manual_seed(5))[0]
    w = ((-squared / (s * t) + noise) / t).softmax(0)
    by_distance = codebook.T @ (torch.diag(w) - torch.outer(w, w)) * (-1 / (s * t * t))  # d out / d distance
    expected = by_distance @ (2 * (z - codebook))

    def relaxed(latent: torch.Tensor) -> torch.Tensor:
        return level(latent.unsqueeze(0), t, torch.Generator().manual_seed(5)).relaxed[0]

    torch.testing.assert_close(relaxed(z).detach(), w @ codebook)
    torch.testing.assert_close(jacobian(relaxed, z), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_levels", [3, 6])
def test_every_levels_commitment_reaches_the_encoder(num_levels, mode):
    model = rqvae(num_levels, mode)
    latent = model.encoder(torch.randn(5, 10, dtype=torch.float64))
    quantized = model.quantize(latent, 1.0 if mode == QuantizeForwardMode.GUMBEL_SOFTMAX else None, torch.Generator().manual_seed(0))
    for residual, codeword in zip(quantized.residuals, quantized.codewords):
        loss = (residual - codeword.detach()).square().sum(-1).mean()
        (gradient,) = torch.autograd.grad(loss, latent, retain_graph=True)
        # The levels above are constants: the gradient is that of one squared distance.
        torch.testing.assert_close(gradient, 2 * (residual - codeword).detach() / 5)
        assert float(gradient.norm()) > 0


@pytest.mark.parametrize("mode", STRAIGHT_OR_ROTATED)
def test_codebooks_learn_from_the_codebook_loss_only(mode):
    model = rqvae(3, mode).float()
    output = model(torch.randn(16, 10))
    books = [level.codebook for level in model.levels]
    for loss in (output.reconstruction_loss, output.commitment_loss):
        gradients = torch.autograd.grad(loss, books, retain_graph=True, allow_unused=True)
        assert all(gradient is None or not gradient.any() for gradient in gradients)
    assert all(bool(gradient.any()) for gradient in torch.autograd.grad(output.codebook_loss, books, retain_graph=True))


def test_the_codebook_loss_does_not_reach_the_encoder():
    model = rqvae(3).float()
    output = model(torch.randn(16, 10))
    gradients = torch.autograd.grad(output.codebook_loss, list(model.encoder.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)
