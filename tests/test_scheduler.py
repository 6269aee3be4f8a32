"""Learning-rate factors, by hand."""

import math

import pytest

from modules.scheduler import SCHEDULES, learning_rate_factor


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_linearly_to_the_peak(schedule):
    assert [learning_rate_factor(schedule, step, 4, 100) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate_factor(schedule, 4, 4, 100) == 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_the_first_step_has_the_peak_rate(schedule):
    assert learning_rate_factor(schedule, 0, 0, 100) == 1.0


def test_cosine_falls_by_the_numbers_computed_by_hand():
    assert learning_rate_factor("cosine", 6, 4, 12) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert learning_rate_factor("cosine", 8, 4, 12) == pytest.approx(0.5)
    assert learning_rate_factor("cosine", 12, 4, 12) == pytest.approx(0.0)


def test_cosine_ends_at_its_floor_and_stays_there():
    assert learning_rate_factor("cosine", 8, 4, 12, floor=0.1) == pytest.approx(0.55)
    assert learning_rate_factor("cosine", 12, 4, 12, floor=0.1) == pytest.approx(0.1)
    assert learning_rate_factor("cosine", 1000, 4, 12, floor=0.1) == pytest.approx(0.1)


def test_inverse_sqrt_falls_by_the_numbers_computed_by_hand():
    assert learning_rate_factor("inverse_sqrt", 16, 4, 100) == pytest.approx(0.5)
    assert learning_rate_factor("inverse_sqrt", 400, 4, 100) == pytest.approx(0.1)
    assert learning_rate_factor("inverse_sqrt", 4, 0, 100) == pytest.approx(0.5)


def test_constant_stays_at_the_peak():
    assert {learning_rate_factor("constant", step, 4, 12) for step in range(4, 30)} == {1.0}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 7, 20])
def test_every_factor_is_above_zero_before_the_end_and_never_above_one(schedule, warmup):
    factors = [learning_rate_factor(schedule, step, warmup, 20) for step in range(20)]
    assert all(0 < factor <= 1 for factor in factors)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(factors[warmup:], factors[warmup + 1 :]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warm_up_longer_than_the_run_is_no_error(schedule):
    assert learning_rate_factor(schedule, 2, 6, 3) == 0.5
    assert 0 <= learning_rate_factor(schedule, 6, 6, 3) <= 1


def test_an_unknown_schedule_is_refused_with_the_names_that_are_known():
    with pytest.raises(ValueError, match=r"linear.*cosine, inverse_sqrt, constant"):
        learning_rate_factor("linear", 0, 1, 10)
