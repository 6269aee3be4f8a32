"""Two sides compared user by user: paired differences with intervals, for all users and for groups of them.

A side is a row of one run's report, or of several runs that differ in their seed: a user's value is then the mean over the seeds.
Shape letters: S runs (seeds) of a side, U users.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.schemas import UserError
from evaluate.metrics import Interval, bootstrap_interval, paired_interval, per_user_metrics

if TYPE_CHECKING:
    import polars as pl

METRICS = ("recall@10", "ndcg@10")
ABSENT = 2**20
"""The 0-based rank of a target that is not among the answers: beyond every cut-off."""


class RunRow(NamedTuple):
    """A row of a run's report on one part, user by user."""

    run: Path
    name: str
    part: str
    split: str  # names the data and their split
    filter_history: bool  # whether items of the history were barred
    users: "pl.DataFrame"  # one line a user, sorted by their ids: user, history, target, target_count, rank (see runs.ranks_file)

    def describe(self) -> str:
        return f"{self.run} ({self.name})"


class Spread(NamedTuple):
    """A metric over the runs of a side."""

    interval: Interval  # of the mean over the runs, by bootstrap over users
    deviation: float | None  # between the runs' own means (n - 1); None where there is one run
    means: list[float]  # [S]


def user_values(rows: Sequence[RunRow], metric: str) -> Tensor:
    """A metric of every user in every run: [S, U] float64.

    Args:
        rows: the runs of a side.
        metric: recall@k, ndcg@k or mrr@k, k at most the length of the lists.
    """
    at = int(metric.partition("@")[2])
    ranks = [torch.from_numpy(row.users["rank"].fill_null(ABSENT).to_numpy().astype(np.int64) - 1) for row in rows]
    return torch.stack([per_user_metrics(own, (at,), at)[metric] for own in ranks])


def spread(values: Tensor, seed: int = 0) -> Spread:
    """Mean, interval and deviation of values [S, U]."""
    means = values.mean(1)
    return Spread(bootstrap_interval(values.mean(0), seed=seed), deviation_of(means.tolist()), means.tolist())


def deviation_of(figures: Sequence[float]) -> float | None:
    """The standard deviation (n - 1) of several runs' figures; None of a single one."""
    return float(np.std(figures, ddof=1)) if len(figures) > 1 else None


def check_comparable(rows: Sequence[RunRow]) -> None:
    """Refuses rows that must not stand on one scale.

    Raises:
        UserError: another part, split, barring, other users or targets.
    """
    first = rows[0]
    for row in rows[1:]:
        both = f"{first.describe()} and {row.describe()}"
        if row.part != first.part:
            raise UserError(f"{both} are of {first.part} and {row.part}, which are never compared; give one part")
        if row.split != first.split:
            raise UserError(
                f"{both} have split different data, or the same data differently ({first.split} and {row.split}); compare runs on one split"
            )
        if row.filter_history != first.filter_history:
            barring, free = (first, row) if first.filter_history else (row, first)
            raise UserError(
                f"{barring.describe()} bars items of the history and {free.describe()} does not, which are two scales; compare rows of one"
            )
        if not row.users.select("user", "target").equals(first.users.select("user", "target")):
            counts = f"{first.users.height:,} and {row.users.height:,} users"
            raise UserError(f"{both} answer other users or other targets on {row.part} ({counts}); compare rows of the same users")


def compare_rows(a: Sequence[RunRow], b: Sequence[RunRow], metrics: Sequence[str] = METRICS, seed: int = 0) -> "pl.DataFrame":
    """The difference A - B of every metric, for all users and for groups of them.

    Args:
        a, b: the runs of each side, all of the same users.
        metrics: as of ``user_values``.
        seed: of the bootstrap.

    Returns:
        One line a metric and group: ``by``, ``group``, ``metric``, ``users``; ``a``, ``a_deviation``, ``b``, ``b_deviation`` (means over
        users and runs, deviations between runs); ``difference``, ``low``, ``high`` (a paired bootstrap over users, 95 %); ``wins``,
        ``losses``, ``ties`` (users whom A serves better, worse, equally well).

    Raises:
        UserError: as of ``check_comparable``.
    """
    import polars as pl

    check_comparable([*a, *b])
    lines = []
    values = {metric: (user_values(a, metric), user_values(b, metric)) for metric in metrics}
    for by, group, chosen in user_groups(a[0].users):
        for metric, (of_a, of_b) in values.items():
            mine, theirs = of_a[:, chosen], of_b[:, chosen]
            gain = paired_interval(mine.mean(0), theirs.mean(0), seed=seed)
            apart = (mine.mean(0) - theirs.mean(0)).round(decimals=12)  # sums of equal values may differ in their last bit
            lines.append(
                {
                    "by": by,
                    "group": group,
                    "metric": metric,
                    "users": mine.shape[1],
                    "a": mine.mean().item(),
                    "a_deviation": deviation_of(mine.mean(1).tolist()),
                    "b": theirs.mean().item(),
                    "b_deviation": deviation_of(theirs.mean(1).tolist()),
                    "difference": gain.mean,
                    "low": gain.low,
                    "high": gain.high,
                    "wins": int((apart > 0).sum()),
                    "losses": int((apart < 0).sum()),
                    "ties": int((apart == 0).sum()),
                }
            )
    return pl.DataFrame(lines, schema_overrides={"a_deviation": pl.Float64, "b_deviation": pl.Float64})


def user_groups(users: "pl.DataFrame") -> Iterator[tuple[str, str, Tensor]]:
    """All users, thirds of them by the length of their history and by how popular their target is, and those with an unseen target.

    Gives what a group is by, its name, and which users [U] bool it has. Equal values stay together, so that thirds may be uneven.
    """
    histories, counts = (torch.from_numpy(users[name].to_numpy().astype(np.int64)) for name in ("history", "target_count"))
    yield "all users", "", torch.ones(len(histories), dtype=torch.bool)
    for name, chosen in _thirds(histories, histories > -1, ("short", "middle", "long"), "items"):
        yield "history", name, chosen
    for name, chosen in _thirds(counts, counts > 0, ("tail", "middle", "head"), "times in training"):
        yield "target", name, chosen
    if (counts == 0).any():
        yield "target", "unseen: never in training", counts == 0


def _thirds(values: Tensor, among: Tensor, names: Sequence[str], unit: str) -> Iterator[tuple[str, Tensor]]:
    """The lowest, middle and highest third of the users ``among`` [U] bool by ``values`` [U], those that are not empty."""
    own = values[among]
    if not len(own):
        return
    first, second = (int(np.quantile(own.numpy(), share, method="lower")) for share in (1 / 3, 2 / 3))
    below = (values <= first, (values > first) & (values <= second), values > second)
    for name, part in zip(names, below):
        chosen = part & among
        if chosen.any():
            low, high = int(values[chosen].min()), int(values[chosen].max())
            yield f"{name}: {low}{'' if low == high else f' to {high}'} {unit}", chosen
