"""Gumbel noise and the Gumbel-softmax sample, against the distribution's known figures."""

import math

import pytest
import torch

from distributions.gumbel import annealed_temperature, gumbel_noise, gumbel_softmax_sample


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_has_the_mean_and_variance_of_a_gumbel():
    noise = gumbel_noise(torch.empty(400_000), generator())
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)
    assert bool(torch.isfinite(noise).all())


def test_noise_takes_shape_and_dtype_of_its_model():
    noise = gumbel_noise(torch.empty(3, 4, dtype=torch.float64), generator())
    assert noise.shape == (3, 4)
    assert noise.dtype == torch.float64


def test_samples_are_points_of_the_simplex():
    sample = gumbel_softmax_sample(torch.randn(100, 7, generator=generator()), 0.7, generator(1))
    assert bool((sample >= 0).all())
    torch.testing.assert_close(sample.sum(-1), torch.ones(100))


def test_the_largest_entry_follows_the_softmax_of_the_logits():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    sample = gumbel_softmax_sample(logits.expand(100_000, 4), 0.5, generator())
    frequencies = torch.bincount(sample.argmax(-1), minlength=4) / 100_000
    torch.testing.assert_close(frequencies, logits.softmax(0), atol=0.006, rtol=0)


def test_low_temperature_is_nearly_one_hot_and_high_nearly_uniform():
    logits = torch.randn(500, 5, generator=generator())
    assert float(gumbel_softmax_sample(logits, 0.01, generator()).max(-1).values.mean()) > 0.99
    assert float(gumbel_softmax_sample(logits, 1000.0, generator()).max(-1).values.mean()) < 0.21


def test_a_generator_fixes_the_sample():
    logits = torch.zeros(10, 5)
    assert torch.equal(gumbel_softmax_sample(logits, 1.0, generator(2)), gumbel_softmax_sample(logits, 1.0, generator(2)))
    assert not torch.equal(gumbel_softmax_sample(logits, 1.0, generator(2)), gumbel_softmax_sample(logits, 1.0, generator(3)))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_not_above_zero_is_refused(temperature):
    with pytest.raises(ValueError, match="above 0"):
        gumbel_softmax_sample(torch.zeros(2, 2), temperature)


def test_temperature_falls_from_start_to_end_over_four_fifths_of_the_steps():
    assert annealed_temperature(0, 100, 2.0, 0.5) == 2.0
    assert annealed_temperature(40, 100, 2.0, 0.5) == pytest.approx(1.0)  # half way: the geometric mean
    assert annealed_temperature(80, 100, 2.0, 0.5) == pytest.approx(0.5)
    assert annealed_temperature(100, 100, 2.0, 0.5) == pytest.approx(0.5)
    assert math.isfinite(annealed_temperature(0, 0, 2.0, 0.5))
