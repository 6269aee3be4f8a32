"""Usage, perplexity, branching and collisions of codes, residual norms and reconstruction."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.codebook import (
    CodebookHealth,
    branching,
    codebook_health,
    codebook_perplexity,
    codebook_usage,
    collision_groups,
    collision_rate,
    partial_sums,
    prefix_nodes,
    reconstruction_quality,
    residual_norms,
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
    usage, perplexity = codebook_usage(CODES, (4, 8)), codebook_perplexity(CODES, (4, 8))
    assert health == CodebookHealth(usage, perplexity, collision_rate(CODES), 3, [3.0, 4 / 3], 0.5, {1: 3, 3: 1})


def test_nodes_number_the_prefixes_of_each_depth_in_their_order():
    assert prefix_nodes(CODES).tolist() == [[0, 0], [0, 1], [1, 2], [1, 2], [1, 2], [2, 3]]
    assert prefix_nodes(torch.tensor([[5, 1], [2, 9], [5, 0]])).tolist() == [[1, 2], [0, 0], [1, 1]]


def test_branching_is_the_mean_number_of_children():
    assert branching(prefix_nodes(CODES)) == [3.0, 4 / 3]  # the root has 0, 1, 3; of these the first has two children
    full = torch.cartesian_prod(torch.arange(4), torch.arange(3), torch.arange(2))
    assert branching(prefix_nodes(full)) == [4.0, 3.0, 2.0]


def test_more_codes_than_a_packed_key_could_hold_are_still_told_apart():
    codes = torch.arange(2).repeat(12, 1).T * 65535  # 65536 ** 12 is far beyond int64
    assert prefix_nodes(codes).tolist() == [[0] * 12, [1] * 12]


def test_residual_norms_equal_the_numbers_computed_by_hand():
    codebooks = [torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])]
    vectors, codes = torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([[0, 0], [0, 1]])
    known = list(partial_sums(codes, codebooks))
    assert [part.tolist() for part in known] == [[[3, 0], [3, 0]], [[3, 4], [3, 0]]]
    assert residual_norms(vectors, known) == [5.0, 4.0, 2.0]


def test_reconstruction_is_judged_by_angle_and_by_distance():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = reconstruction_quality(vectors, torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    assert found.cosine == pytest.approx(0.5)  # 1 and 0
    assert found.squared_l2 == pytest.approx(1.5)  # 1 and 2


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
    assert sum(size * groups for size, groups in health.group_sizes.items()) == len(codes)
    assert health.singleton_share == health.group_sizes.get(1, 0) / len(codes)
    assert math.prod(health.branching) == pytest.approx(len(distinct))
    prefixes = [{tuple(row[: depth + 1]) for row in codes.tolist()} for depth in range(len(sizes))]
    assert [len(level.unique()) for level in prefix_nodes(codes).unbind(dim=1)] == [len(prefix) for prefix in prefixes]
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
