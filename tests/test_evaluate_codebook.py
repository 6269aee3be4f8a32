"""Usage, perplexity and collisions of codes, and the warning when a level has collapsed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.codebook import (
    CodebookHealth,
    codebook_health,
    codebook_perplexity,
    codebook_usage,
    collapse_warnings,
    collision_groups,
    collision_rate,
)

CODES = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 2], [1, 2], [3, 3]])
"""Level 0 uses 3 of 4 codes with counts 2, 3, 0, 1; level 1 uses 4 of 8 with counts 1, 1, 3, 1; four distinct pairs."""


@st.composite
def code_tables(draw):
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    items = draw(st.integers(1, 40))
    return torch.stack([torch.randint(0, size, (items,), generator=generator) for size in sizes], dim=1), sizes


def test_usage_and_perplexity_equal_the_numbers_computed_by_hand():
    assert codebook_usage(CODES, (4, 8)) == [0.75, 0.5]
    first = math.exp(-(2 / 6 * math.log(2 / 6) + 3 / 6 * math.log(3 / 6) + 1 / 6 * math.log(1 / 6)))
    second = math.exp(-(3 * 1 / 6 * math.log(1 / 6) + 3 / 6 * math.log(3 / 6)))
    assert codebook_perplexity(CODES, (4, 8)) == pytest.approx([first, second])


def test_collisions_equal_the_numbers_computed_by_hand():
    assert collision_rate(CODES) == pytest.approx(2 / 6)
    assert collision_groups(CODES).tolist() == [3, 1, 1, 1]


def test_health_gathers_the_single_figures():
    health = codebook_health(CODES, (4, 8))
    assert health == CodebookHealth(codebook_usage(CODES, (4, 8)), codebook_perplexity(CODES, (4, 8)), collision_rate(CODES), 3)


def test_even_use_of_every_code_has_full_usage_and_full_perplexity():
    health = codebook_health(torch.arange(16)[:, None], (16,))
    assert health.usage == [1.0]
    assert health.perplexity == pytest.approx([16.0])
    assert (health.collision_rate, health.largest_group) == (0.0, 1)


def test_one_code_for_everything_has_perplexity_one_and_collides_all():
    health = codebook_health(torch.zeros(10, 2, dtype=torch.int64), (256, 256))
    assert health.perplexity == [1.0, 1.0]
    assert (health.collision_rate, health.largest_group) == (0.9, 10)


@given(code_tables())
@settings(max_examples=60, deadline=None)
def test_figures_stay_in_range_and_ignore_the_order_of_items(table):
    codes, sizes = table
    health = codebook_health(codes, sizes)
    for usage, perplexity, size in zip(health.usage, health.perplexity, sizes):
        assert 0 < usage <= 1
        assert 1 - 1e-9 <= perplexity <= usage * size + 1e-9  # never more than the codes in use
    distinct = {tuple(row) for row in codes.tolist()}
    assert health.collision_rate == (len(codes) - len(distinct)) / len(codes)
    assert collision_groups(codes).sum() == len(codes)
    assert codebook_health(codes.flip(0), sizes) == health


def test_codes_outside_their_codebook_are_refused_with_the_place():
    with pytest.raises(ValueError, match="code 8 of item 1 at level 1 is outside its codebook of 8"):
        codebook_usage(torch.tensor([[0, 0], [0, 8]]), (4, 8))
    with pytest.raises(ValueError, match="code -1 of item 0 at level 0"):
        codebook_perplexity(torch.tensor([[-1, 0]]), (4, 8))


def test_no_items_and_a_wrong_number_of_levels_are_refused():
    with pytest.raises(ValueError, match="hold no items"):
        collision_rate(torch.empty(0, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one item"):
        codebook_health(torch.empty(0, 2, dtype=torch.int64), (4, 8))
    with pytest.raises(ValueError, match="for 3 codebooks"):
        codebook_usage(CODES, (4, 8, 8))


def test_collapse_is_named_with_its_level_usage_and_cure():
    codes = torch.stack([torch.arange(300) % 3, torch.arange(300) % 256, torch.zeros(300, dtype=torch.int64)], dim=1)
    warnings = collapse_warnings(codebook_health(codes, (256, 256, 256)), (256, 256, 256))
    assert len(warnings) == 2
    assert "level 0: 3 of 256 codes in use (1.2%)" in warnings[0]
    assert "level 2: 1 of 256 codes in use (0.4%)" in warnings[1]
    for warning in warnings:
        assert 'train.vae_input_norm = "center_unit"' in warning
        assert "train.use_kmeans_init = True" in warning
        assert warning.endswith(".")
        assert "\n" not in warning


def test_a_healthy_codebook_is_silent_and_the_threshold_itself_is_healthy():
    assert collapse_warnings(CodebookHealth([0.05, 1.0], [2.0, 16.0], 0.0, 1), (40, 16)) == []
    assert len(collapse_warnings(CodebookHealth([0.05, 1.0], [2.0, 16.0], 0.0, 1), (40, 16), threshold=0.06)) == 1
