"""Balanced assignment: cases by hand, evenness, the optimal assignment as a judge, and collisions spread without new ones."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import modules.sinkhorn
from data.schemas import UserError
from init.kmeans import Shard
from modules.quantize import QuantizeForwardMode
from modules.rqvae import RqVae, RqVaeConfig
from modules.sinkhorn import balanced_codes, colliding, spread_collisions


def distances(rows: int, codes: int, seed: int = 0) -> torch.Tensor:
    """[1, rows, codes] to codewords of which some are far more central than others."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(rows, 4, generator=generator)
    codewords = torch.randn(codes, 4, generator=generator) * torch.linspace(0.3, 3, codes).unsqueeze(1)
    return torch.cdist(points, codewords).square()[None]


def together(calls: list) -> list:
    """Results of ``calls``, each of which is given the Shard of one process among all."""
    meeting, given = threading.Barrier(len(calls)), {}

    def total_of(index: int):
        def total(x: torch.Tensor) -> torch.Tensor:
            given[index] = x.clone()
            meeting.wait()
            both = sum(given[other] for other in range(len(calls)))
            meeting.wait()
            return both

        return total

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda index: calls[index](Shard(index, len(calls), total_of(index))), range(len(calls))))


def test_the_rows_that_lose_least_leave_a_crowded_code_by_hand():
    squared = torch.tensor([[[0.0, 1.0], [0.0, 4.0], [0.0, 2.0], [0.0, 3.0]]])
    assert balanced_codes(squared, 0.05).tolist() == [[1, 0, 1, 0]]


def test_fewer_rows_than_codes_take_one_each_and_the_nearest_of_them_by_hand():
    squared = torch.tensor([[[0.0, 1.0, 9.0, 9.0], [0.0, 3.0, 9.0, 9.0]]])
    assert balanced_codes(squared, 0.05).tolist() == [[1, 0]]


def test_a_batch_uses_its_codes_evenly_where_the_nearest_are_a_few():
    squared = distances(512, 16)
    nearest, balanced = (torch.bincount(codes[0], minlength=16) for codes in (squared.min(2).indices, balanced_codes(squared, 0.02)))
    assert int(nearest.max()) > 60
    assert 24 <= int(balanced.min()) <= int(balanced.max()) <= 40  # 32 each


@pytest.mark.parametrize("seed", range(3))
def test_as_many_rows_as_codes_cost_little_more_than_the_optimal_assignment(seed):
    optimize = pytest.importorskip("scipy.optimize")
    squared = distances(12, 12, seed)
    best = squared[0].numpy()[optimize.linear_sum_assignment(squared[0].numpy())].sum()
    codes = balanced_codes(squared, 0.05)[0]
    assert len(codes.unique()) >= 11
    assert float(squared[0].gather(1, codes[:, None]).sum()) == pytest.approx(best, rel=0.1)


@pytest.mark.parametrize("epsilon", [1e-6, 0.003, 100.0])
def test_any_softness_is_finite_and_takes_free_codes_only(epsilon):
    free = torch.tensor([[True, False] * 8])
    codes = balanced_codes(distances(40, 16), epsilon, free=free)
    assert bool(free[0, codes[0]].all())
    assert balanced_codes(torch.zeros(1, 5, 4), epsilon).shape == (1, 5)


def test_groups_and_rows_that_fill_them_up_leave_each_other_alone():
    first, second = distances(6, 8, 0), distances(4, 8, 1)
    filled = torch.cat([second, torch.zeros(1, 2, 8)], 1)
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    both = balanced_codes(torch.cat([first, filled]), 0.02, real=real)
    assert torch.equal(both[0], balanced_codes(first, 0.02)[0])
    assert torch.equal(both[1, :4], balanced_codes(second, 0.02)[0])


def test_processes_that_share_a_batch_balance_it_as_one():
    squared = distances(64, 8)
    shares = together([lambda shard, own=own: balanced_codes(squared[:, own::2], 0.02, shard) for own in range(2)])
    whole = balanced_codes(squared, 0.02)
    assert torch.equal(torch.stack([shares[0][0], shares[1][0]], 1).flatten(), whole[0])


def spread(codes: torch.Tensor, residuals: torch.Tensor, codewords: torch.Tensor) -> torch.Tensor:
    rows = colliding(codes)
    return spread_collisions(codes, rows, residuals[rows], lambda x: torch.cdist(x, codewords).square(), len(codewords), 0.02)


def test_colliding_items_part_and_all_others_keep_their_codes_by_hand():
    codewords = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    codes = torch.tensor([[5, 0], [5, 0], [5, 1], [6, 0], [6, 3]])
    residuals = torch.tensor([[0.0], [0.4], [1.0], [0.0], [3.0]])
    assert spread(codes, residuals, codewords).tolist() == [[5, 0], [5, 2], [5, 1], [6, 0], [6, 3]]
    assert torch.equal(spread(codes[2:], residuals[2:], codewords), codes[2:])


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("cells", [16, 512, 2**22])
def test_spreading_makes_no_new_collision_whatever_the_portions(levels, cells, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    residuals, codewords = torch.randn(120, 3, generator=generator), torch.randn(16, 3, generator=generator)
    nearest = torch.cdist(residuals, codewords).min(1).indices
    above = torch.randint(3, (120, levels - 1), generator=generator)
    codes = torch.cat([above, nearest[:, None]], 1)
    whole = spread(codes, residuals, codewords)
    monkeypatch.setattr(modules.sinkhorn, "CELLS", cells)
    after = spread(codes, residuals, codewords)
    alone = torch.ones(120, dtype=torch.bool)
    alone[colliding(codes)] = False
    assert torch.equal(after[:, :-1], codes[:, :-1])
    assert torch.equal(after[alone], codes[alone])
    if levels == 3 and cells > 16:  # 16 makes every item a portion of its own
        assert torch.equal(after, whole)
        assert len(after.unique(dim=0)) > 100 > 80 > len(codes.unique(dim=0))


def test_equal_residuals_stay_together():
    codewords = torch.tensor([[0.0], [1.0], [2.0]])
    after = spread(torch.tensor([[0], [0]]), torch.tensor([[0.1], [0.1]]), codewords)
    assert after[0].tolist() == after[1].tolist()


def rqvae(**changes: object) -> RqVae:
    torch.manual_seed(0)
    return RqVae(RqVaeConfig(**{"input_dim": 16, "embed_dim": 4, "hidden_dims": (16,), "codebook_size": 8, "num_levels": 3, **changes}))


def test_training_batches_are_balanced_at_the_levels_named_and_evaluation_never_is():
    items = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    for mode, balanced in (("none", []), ("last_level", [2]), ("training", [0, 1, 2])):
        model = rqvae(sinkhorn=mode, sinkhorn_epsilon=0.02, input_norm="none")
        for level in model.levels:
            torch.nn.init.normal_(level.codebook, std=0.2)
        codes = model.train()(items).codes
        even = [int(torch.bincount(level, minlength=8).max()) <= 65 for level in codes.T]  # 50 each
        assert [number for number in range(3) if even[number]] == balanced
        assert torch.equal(model.eval()(items).codes[:, :2], model.get_semantic_ids(items)[:, :2])


def test_the_last_level_at_inference_lowers_collisions_and_touches_no_other_item():
    items = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    model = rqvae(sinkhorn="last_level").eval()
    model.normalizer.fit(items)
    model.kmeans_init(items, seed=0)
    nearest = model(items).codes
    codes = model.get_semantic_ids(items, chunk_size=64)
    alone = torch.ones(300, dtype=torch.bool)
    alone[colliding(nearest)] = False
    assert torch.equal(codes[alone], nearest[alone])
    assert len(codes.unique(dim=0)) > len(nearest.unique(dim=0))
    assert torch.equal(codes[:, :2], nearest[:, :2])


def test_what_cannot_be_balanced_is_told():
    with pytest.raises(UserError, match=r"train\.vae_sinkhorn is 'all'; it can be one of 'none', 'training', 'last_level'"):
        rqvae(sinkhorn="all")
    with pytest.raises(UserError, match="GUMBEL_SOFTMAX samples codes"):
        rqvae(sinkhorn="training", mode=QuantizeForwardMode.GUMBEL_SOFTMAX)
