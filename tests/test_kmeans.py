"""k-means: a case by hand, invariants, and scikit-learn as the independent judge."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from init.kmeans import SEEDING_POINTS, Shard, _assign, _means, _plus_plus, assign_evenly, kmeans, widest


def clustered(num_points: int = 600, num_centers: int = 12, width: int = 8, seed: int = 0) -> torch.Tensor:
    """Points scattered narrowly around random centers."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_centers, width, generator=generator) * 4
    owner = torch.randint(num_centers, (num_points,), generator=generator)
    return centers[owner] + 0.3 * torch.randn(num_points, width, generator=generator)


def inertia_of(points: torch.Tensor, centroids: torch.Tensor) -> float:
    return float(torch.cdist(points.double(), centroids.double()).min(1).values.square().sum())


def test_two_pairs_on_a_line_give_their_means():
    result = kmeans(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), 2)
    assert sorted(result.centroids.flatten().tolist()) == [0.5, 10.5]
    assert result.codes[0] == result.codes[1] != result.codes[2] == result.codes[3]
    assert float(result.inertia) == pytest.approx(4 * 0.25)


def test_codes_and_inertia_belong_to_the_returned_centroids(device):
    points = clustered().to(device)
    result = kmeans(points, 12)
    torch.testing.assert_close(result.codes, torch.cdist(points.double(), result.centroids.double()).argmin(1))
    assert float(result.inertia) == pytest.approx(inertia_of(points, result.centroids), rel=1e-3)


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_chunks_change_nothing_but_rounding(chunk_size):
    points = clustered(200)
    whole, chunked = kmeans(points, 12), kmeans(points, 12, chunk_size=chunk_size)
    torch.testing.assert_close(chunked.centroids, whole.centroids, rtol=1e-4, atol=1e-4)
    assert torch.equal(chunked.codes, whole.codes)


@pytest.mark.parametrize("seed", range(8))
def test_inertia_is_never_above_that_of_the_seeding(seed):
    points = torch.randn(300, 6, generator=torch.Generator().manual_seed(seed))
    seeds = _plus_plus(points, 16, torch.Generator().manual_seed(seed))
    assert float(kmeans(points, 16, seed=seed).inertia) <= inertia_of(points, seeds) * (1 + 1e-5)


def test_inertia_is_within_five_percent_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    points = clustered(800, 40, 8)
    theirs = [cluster.KMeans(24, init="k-means++", n_init=1, random_state=seed).fit(points.numpy()).inertia_ for seed in range(5)]
    ours = [float(kmeans(points, 24, seed=seed).inertia) for seed in range(5)]
    assert sum(ours) <= 1.05 * sum(theirs)


@pytest.mark.parametrize(("num_points", "num_centers", "num_clusters"), [(600, 12, 12), (800, 40, 24), (800, 40, 80)])
def test_from_the_same_seeding_scikit_learn_ends_at_the_same_inertia(num_points, num_centers, num_clusters):
    cluster = pytest.importorskip("sklearn.cluster")
    points = clustered(num_points, num_centers)
    for seed in range(3):
        seeds = _plus_plus(points, num_clusters, torch.Generator().manual_seed(seed))
        theirs = cluster.KMeans(num_clusters, init=seeds.numpy(), n_init=1).fit(points.numpy()).inertia_
        assert float(kmeans(points, num_clusters, seed=seed).inertia) == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_every_code_is_used_where_there_are_enough_distinct_points(seed):
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(seed))
    assert len(kmeans(points, 64, seed=seed).codes.unique()) == 64
    assert len(kmeans(points, 200, seed=seed).codes.unique()) == 200


def test_empty_clusters_are_seeded_again_with_far_points():
    points = torch.tensor([[0.0], [1.0], [2.0], [50.0], [90.0]])
    centroids = torch.tensor([[1.0], [1000.0], [2000.0]])
    codes, distances = _assign(points, centroids, 16, Shard())
    assert codes.unique().tolist() == [0]
    means = _means(points, codes, distances, centroids, Shard())
    assert sorted(means[1:].flatten().tolist()) == [50.0, 90.0]


def test_fewer_distinct_points_than_clusters_survives():
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]).repeat(10, 1)
    result = kmeans(points, 8)
    assert bool(torch.isfinite(result.centroids).all())
    assert float(result.inertia) == pytest.approx(0, abs=1e-5)
    assert bool(torch.isfinite(kmeans(torch.zeros(20, 3), 5).centroids).all())


def test_a_seed_fixes_the_result(device):
    points = torch.randn(300, 5, generator=torch.Generator().manual_seed(1)).to(device)
    first, second, other = kmeans(points, 20, seed=3), kmeans(points, 20, seed=3), kmeans(points, 20, seed=4)
    torch.testing.assert_close(first.centroids, second.centroids)
    assert torch.equal(first.codes, second.codes)
    assert not torch.equal(first.codes, other.codes)


def test_the_points_are_left_as_they_were():
    points = clustered(50)
    before = points.clone()
    kmeans(points, 5)
    assert torch.equal(points, before)


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_the_iteration_bound_holds(bound):
    points = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert kmeans(points, 30, max_iterations=bound, tolerance=0.0).iterations == bound


def test_more_clusters_than_points_is_refused():
    with pytest.raises(ValueError, match="5 clusters"):
        kmeans(torch.randn(4, 2), 5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_points_that_are_not_finite_are_refused(bad):
    points = torch.zeros(10, 2)
    points[3, 1] = bad
    with pytest.raises(ValueError, match="finite"):
        kmeans(points, 2)


def test_spherical_clusters_are_directions_and_their_centroids_have_the_points_length():
    points = torch.tensor([[1.0, 0.0], [10.0, 0.0], [0.0, 1.0], [0.0, 10.0]])
    result = kmeans(points, 2, spherical=True)
    assert sorted(result.centroids.tolist()) == [[0.0, 5.5], [5.5, 0.0]]
    assert result.codes[0] == result.codes[1] != result.codes[2] == result.codes[3]
    assert float(result.inertia) == pytest.approx(0, abs=1e-6)
    by_distance = kmeans(points, 2).codes
    assert not (by_distance[0] == by_distance[1] and by_distance[2] == by_distance[3])


@pytest.mark.parametrize("seed", range(3))
def test_spherical_codes_and_inertia_belong_to_the_returned_centroids(seed, device):
    points = torch.randn(400, 6, generator=torch.Generator().manual_seed(seed)).to(device)
    result = kmeans(points, 20, seed=seed, spherical=True)
    cosine = torch.nn.functional.cosine_similarity(points.double()[:, None], result.centroids.double()[None], dim=2)
    assert torch.equal(result.codes, cosine.argmax(1))
    assert float(result.inertia) == pytest.approx(float((2 - 2 * cosine.max(1).values).sum()), rel=1e-3)
    assert len(result.codes.unique()) == 20


def test_spherical_clusters_are_rounder_in_direction_than_euclidean_ones():
    points = torch.randn(600, 6, generator=torch.Generator().manual_seed(0))
    points *= torch.rand(600, 1, generator=torch.Generator().manual_seed(1)) * 4 + 0.1

    def closeness(spherical: bool) -> float:
        result = kmeans(points, 24, spherical=spherical)
        return float(torch.nn.functional.cosine_similarity(points, result.centroids[result.codes]).mean())

    assert closeness(spherical=True) > closeness(spherical=False)


def test_spherical_codes_do_not_depend_on_the_scale_of_all_points():
    points = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kmeans(points, 12, spherical=True).codes, kmeans(64 * points, 12, spherical=True).codes)


def test_spherical_survives_points_without_a_direction():
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    points[::3] = 0
    assert bool(torch.isfinite(kmeans(points, 8, spherical=True).centroids).all())
    assert bool(torch.isfinite(kmeans(torch.zeros(20, 3), 5, spherical=True).centroids).all())


def test_seeding_asks_no_device_for_a_precision_it_lacks():
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("cpu")) == widest(torch.device("cuda")) == torch.float64


def test_two_processes_that_share_the_points_find_the_centroids_of_one():
    points = torch.randn(501, 6, generator=torch.Generator().manual_seed(0))
    alone = kmeans(points, 12, seed=3)
    meeting, sums = threading.Barrier(2), {}

    def total_of(index):
        def total(x):
            sums[index] = x.clone()
            meeting.wait()
            both = sums[0] + sums[1]
            meeting.wait()
            return both

        return total

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda index: kmeans(points, 12, seed=3, shard=Shard(index, 2, total_of(index))), range(2)))
    for result in found:
        torch.testing.assert_close(result.centroids, alone.centroids)
        assert torch.equal(result.codes, alone.codes)
        assert result.iterations == alone.iterations
    assert torch.equal(found[0].centroids, found[1].centroids)


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("spherical", [False, True])
def test_no_tensor_is_larger_than_the_points_or_the_distances_of_a_chunk(spherical):
    points = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        kmeans(points, 40, chunk_size=100, max_iterations=2, spherical=spherical)
    candidates = SEEDING_POINTS * 40 * (2 + 3)  # 2 + ln 40
    assert largest.elements <= max(points.numel(), 100 * 40, candidates)
    with Largest() as largest:
        kmeans(points, 40, chunk_size=5000, max_iterations=2, spherical=spherical)
    assert largest.elements == 5000 * 40  # the mode does see what it bounds


def test_seeds_of_many_points_come_from_a_sample_and_lose_nothing():
    cluster = pytest.importorskip("sklearn.cluster")
    points = torch.randn(SEEDING_POINTS * 24 * 4, 6, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        seeds = _plus_plus(points, 24, torch.Generator().manual_seed(0))
    assert largest.elements == SEEDING_POINTS * 24 * 6
    assert {tuple(row) for row in seeds.tolist()} <= {tuple(row) for row in points.tolist()}
    theirs = [cluster.KMeans(24, n_init=1, random_state=seed).fit(points.numpy()).inertia_ for seed in range(3)]
    ours = [float(kmeans(points, 24, seed=seed).inertia) for seed in range(3)]
    assert sum(ours) <= 1.02 * sum(theirs)


def test_balanced_clusters_on_a_line_by_hand():
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    result = kmeans(points, 2, balanced=True)
    assert sorted(result.centroids.flatten().tolist()) == [0.5, 6.0]
    assert float(result.inertia) == pytest.approx(2 * 0.25 + 2 * 16)
    assert sorted(kmeans(points, 2).centroids.flatten().tolist()) == [1.0, 10.0]


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize(("number", "clusters"), [(600, 12), (601, 40), (64, 64)])
def test_balanced_clusters_hold_at_most_their_share_and_cost_little_more(number, clusters, spherical, device):
    points = clustered(number).to(device)
    plain, even = (kmeans(points, clusters, spherical=spherical, balanced=balanced) for balanced in (False, True))
    sizes = torch.bincount(even.codes, minlength=clusters)
    assert int(sizes.max()) <= -(-number // clusters)
    assert int(sizes.sum()) == number
    total = float((points - points.mean(0)).square().sum()) if not spherical else 2.0 * number
    assert float(plain.inertia) * (1 - 1e-4) <= float(even.inertia) + 1e-4
    assert float(even.inertia) <= float(plain.inertia) + 0.35 * total


def test_balanced_codes_are_all_assigned_to_a_nearest_centroid_with_room():
    points = clustered(300, 5)
    centroids = points[:10]
    codes, distances = assign_evenly(points, centroids, 64, Shard())
    squared = torch.cdist(points, centroids).square()
    torch.testing.assert_close(distances, squared.gather(1, codes[:, None])[:, 0], atol=1e-3, rtol=1e-3)
    full = torch.bincount(codes, minlength=10) == 30
    nearer = squared < distances[:, None] - 1e-3
    assert not bool((nearer & ~full).any())
