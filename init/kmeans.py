"""k-means for codebooks: k-means++ seeding, Lloyd iterations, empty clusters re-seeded; bounded time and memory.

Lloyd (1982), "Least squares quantization in PCM"; Arthur & Vassilvitskii (2007), "k-means++"; Dhillon & Modha (2001), "Concept
decompositions", for the spherical kind; Bradley, Bennett & Demiriz (2000), "Constrained k-means clustering", for the balanced kind (their
limit on the sizes; their flow problem is replaced by a greedy assignment). TIGER (section 3.1) initialises its codebooks by k-means
against collapse.
Shape letters: N points, D width, K clusters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class Shard:
    """One of several processes that cluster the same points: each assigns every ``count``-th of them and sums are taken over all."""

    index: int = 0
    count: int = 1
    total: Callable[[Tensor], Tensor] = lambda x: x  # the sum of every process' tensor

    def whole(self, own: Tensor, length: int) -> Tensor:
        """Puts the processes' interleaved parts of a tensor together: ``own`` is that of the rows ``index``, ``index + count``, ..."""
        if self.count == 1:
            return own
        full = own.new_zeros(length, *own.shape[1:])
        full[self.index :: self.count] = own
        return self.total(full)

    def of_first(self, x: Tensor) -> Tensor:
        """The first process' tensor, on all: their random numbers may differ where their devices do."""
        return x if self.count == 1 else self.total(x if self.index == 0 else torch.zeros_like(x))


ALONE = Shard()

SEEDING_POINTS = 64
"""Points a cluster that k-means++ looks at; beyond, a seeding would take longer than the iterations that follow it."""


class KmeansResult(NamedTuple):
    centroids: Tensor  # [K, D], means of the points as given, spherical or not
    codes: Tensor  # [N] int64, nearest centroid of every point (spherical: nearest in direction; balanced: see there)
    inertia: Tensor  # scalar: sum of squared distances to the centroids of the codes (spherical: between directions, 2 - 2 cos)
    iterations: int  # Lloyd iterations that were run


class Assigned(NamedTuple):
    codes: Tensor  # [N] int64, the centroid of every point
    distances: Tensor  # [N], the squared distance to it


def kmeans(
    points: Tensor,
    num_clusters: int,
    seed: int = 0,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    chunk_size: int = 4096,
    spherical: bool = False,
    shard: Shard = ALONE,
    balanced: bool = False,
) -> KmeansResult:
    """Clusters points around ``num_clusters`` centroids.

    Args:
        points: [N, D], floating point, on any device.
        num_clusters: K, at most N. Fewer than K distinct points is allowed: some centroids then coincide.
        seed: fixes the seeding and with it the result on a given device.
        max_iterations: bound on the Lloyd iterations.
        tolerance: stop when an iteration lowers the inertia by less than this share.
        chunk_size: points held against all centroids at once; bounds the memory to chunk_size x K distances.
        spherical: cluster the points' directions by cosine; a centroid is still the mean of its points as given and so has their length.
        shard: this process among those that were all given the same points.
        balanced: no cluster holds more than ceil(N / K) points. Points take the nearest centroid with room, those that are nearest to
            theirs first; every process does all of that, because it is one sequence.

    Returns:
        Centroids, codes, inertia and the iterations used.

    Raises:
        ValueError: fewer points than clusters, or points that are not finite.
    """
    if points.dim() != 2 or len(points) < num_clusters:
        raise ValueError(f"k-means needs at least num_clusters points: got {tuple(points.shape)} for {num_clusters} clusters")
    if not bool(torch.isfinite(torch.stack(torch.aminmax(points))).all()):
        raise ValueError("k-means needs finite points: found NaN or infinity")
    points = points.detach()
    compared = normalize(points, dim=1) if spherical else points
    centroids = shard.of_first(_plus_plus(compared, num_clusters, torch.Generator(points.device).manual_seed(seed)))
    assign = assign_evenly if balanced else _assign
    codes, distances = assign(compared, centroids, chunk_size, shard)
    previous, iterations = distances.sum(), 0
    while iterations < max_iterations:
        centroids = _means(compared, codes, distances, centroids, shard)
        if spherical:
            centroids = normalize(centroids, dim=1)
        codes, distances = assign(compared, centroids, chunk_size, shard)
        inertia, iterations = distances.sum(), iterations + 1
        if bool(previous - inertia <= tolerance * previous):
            break
        previous = inertia
    if spherical:
        centroids = _means(points, codes, distances, centroids, shard)
        codes, distances = assign(compared, normalize(centroids, dim=1), chunk_size, shard)
    return KmeansResult(centroids, codes, distances.sum(), iterations)


def _plus_plus(points: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ seeds: of 2 + ln K candidates, drawn with probability proportional to the squared distance to the nearest seed so
    far, the one that lowers the inertia most becomes the next seed. More than SEEDING_POINTS points a cluster are sampled down to that."""
    if len(points) > SEEDING_POINTS * num_clusters:
        points = points[torch.randperm(len(points), generator=generator, device=points.device)[: SEEDING_POINTS * num_clusters]]
    norms = points.square().sum(1)
    columns = points.T.contiguous()  # distances as [candidates, N]: sums and minima along the memory take a third of the time
    num_candidates = 2 + int(math.log(num_clusters))
    precision = widest(points.device)
    chosen = torch.randint(len(points), (1,), generator=generator, device=points.device)
    seeds = [chosen]
    nearest = (norms - 2 * (points @ points[chosen[0]]) + norms[chosen]).clamp_min_(0)
    for _ in range(num_clusters - 1):
        # Inverse of the cumulative distribution; where every point is already a seed all weights are zero and any point will do.
        cumulative = nearest.cumsum(0, dtype=precision)
        draws = torch.rand(num_candidates, generator=generator, device=points.device, dtype=precision) * cumulative[-1]
        candidates = torch.searchsorted(cumulative, draws, right=True).clamp_max_(len(points) - 1)
        distances = torch.addmm(norms, points[candidates], columns, alpha=-2).add_(norms[candidates][:, None])
        distances = torch.minimum(distances.clamp_min_(0), nearest)
        best = distances.sum(1).argmin()
        nearest = distances[best]
        seeds.append(candidates[best : best + 1])
    return points[torch.cat(seeds)].clone()


def widest(device: torch.device) -> torch.dtype:
    """The most precise floating-point type of a device: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _assign(points: Tensor, centroids: Tensor, chunk_size: int, shard: Shard) -> Assigned:
    """Nearest centroid of every point and the squared distance to it."""
    own = points[shard.index :: shard.count]
    half_norms = centroids.square().sum(1) / 2
    codes = torch.empty(len(own), dtype=torch.int64, device=points.device)
    distances = torch.empty(len(own), dtype=points.dtype, device=points.device)
    for start in range(0, len(own), chunk_size):
        chunk = own[start : start + chunk_size]
        nearest = torch.addmm(half_norms, chunk, centroids.T, alpha=-1).min(1)
        codes[start : start + chunk_size] = nearest.indices
        distances[start : start + chunk_size] = (2 * nearest.values + chunk.square().sum(1)).clamp_min_(0)
    return Assigned(shard.whole(codes, len(points)), shard.whole(distances, len(points)))


def assign_evenly(points: Tensor, centroids: Tensor, chunk_size: int = 4096, shard: Shard = ALONE) -> Assigned:
    """A centroid [K, D] for every point [N, D], at most ceil(N / K) points each.

    In every round the points without a centroid ask the nearest one with room, and it takes the nearest of those that ask. Every process
    does all of that.
    """
    room = torch.full((len(centroids),), -(-len(points) // len(centroids)), device=points.device)
    codes = torch.empty(len(points), dtype=torch.int64, device=points.device)
    distances = torch.empty_like(points[:, 0])
    waiting = torch.arange(len(points), device=points.device)
    while len(waiting):
        open_ones = (room > 0).nonzero().squeeze(1)
        asked, squared = _assign(points[waiting], centroids[open_ones], chunk_size, ALONE)
        asked = open_ones[asked]
        by_distance = squared.argsort(stable=True)
        order = by_distance[asked[by_distance].argsort(stable=True)]  # centroid by centroid, nearest points first
        asking = torch.bincount(asked, minlength=len(centroids))
        place = torch.arange(len(order), device=points.device) - (asking.cumsum(0) - asking)[asked[order]]
        taken = order[place < room[asked[order]]]
        codes[waiting[taken]], distances[waiting[taken]] = asked[taken], squared[taken]
        room = room - torch.minimum(asking, room)
        left = torch.ones_like(waiting, dtype=torch.bool)
        left[taken] = False
        waiting = waiting[left]
    return Assigned(codes, distances)


def _means(points: Tensor, codes: Tensor, distances: Tensor, centroids: Tensor, shard: Shard) -> Tensor:
    """Mean of every cluster; an empty cluster takes one of the points that lie farthest from their centroid."""
    num_clusters = len(centroids)
    counts = torch.bincount(codes, minlength=num_clusters)
    own = slice(shard.index, None, shard.count)
    sums = shard.total(torch.zeros_like(centroids).index_add_(0, codes[own], points[own]))
    means = sums / counts.clamp_min(1).unsqueeze(1)
    empty = counts == 0
    farthest = distances.topk(num_clusters).indices
    replacement = points[farthest[(empty.cumsum(0) - 1).clamp_min(0)]]
    return torch.where(empty.unsqueeze(1), replacement, means)
