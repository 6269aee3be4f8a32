"""ranks.parquet: what every row of a run's report found for every user, from which each of its figures can be computed again.

One line a row of the report, user and part:

    row           as in the report
    part          "validation" or "test"
    user          the user's external id
    history       items before the target
    target        the held-out item's external id
    target_count  how often the target occurs in the training part; 0: training never saw it
    rank          of the target among the first K answers, 1 = the best; null where it is not among them
    code_rank     the same of the target's tuple of codes among the distinct tuples; null too where a row has no codes
    items         external ids of the first K answers, best first
    scores        what ranks them, descending; null where a row has none

K is the largest cut-off of the metrics, at least 10. Scores of different rows are not comparable: of a model log-probabilities (of the
mixture's where train.memory_weight is above 0), of the baselines counts and sums (evaluate.baselines, item_knn, scorers).
Shape letters: U users, k length of a ranked list.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from data.io.files import whole_file
from data.schemas import PAD, UserError
from evaluate.comparison import RunRow
from modules.runtime.runs.run import METRICS

if TYPE_CHECKING:
    import polars as pl

RANKS = "ranks.parquet"


class RankedUsers(NamedTuple):
    """What a row found for some users; all on the CPU."""

    users: Tensor  # [U] rows of the users
    histories: Tensor  # [U] items before the target
    targets: Tensor  # [U] items
    ranks: Tensor  # [U] 0-based rank of the target, k where absent
    code_ranks: Tensor | None  # [U] the same of its tuple of codes
    items: Tensor  # [U, k] best first, PAD at the end where there are fewer
    scores: Tensor | None  # [U, k] float32


class RanksFile:
    """Collects the rows of a report, each in a file of its own until all are there, so that memory holds one row at a time.

    Args:
        folder: the run directory.
        user_keys: external ids of the users.
        item_keys: external ids of the items.
        popularity: [I] how often each item occurs in the training part.
    """

    def __init__(self, folder: Path, user_keys: Sequence[str], item_keys: Sequence[str], popularity: Tensor) -> None:
        self.path, self.popularity = folder / RANKS, popularity.cpu()
        self.user_keys, self.item_keys = user_keys, item_keys
        self._rows: list[Path] = []
        self._parts = folder / "ranks.tmp"

    def add(self, row: str, part: str, found: RankedUsers) -> None:
        """Takes a row of the report."""
        if not self._rows:
            shutil.rmtree(self._parts, ignore_errors=True)  # of a process that was killed
        path = self._parts / f"{len(self._rows):03}.parquet"
        with whole_file(path) as temporary:
            self._frame(row, part, found).write_parquet(temporary, compression="zstd")
        self._rows.append(path)

    def _frame(self, row: str, part: str, found: RankedUsers) -> "pl.DataFrame":
        import polars as pl

        users, items = pl.Series(self.user_keys, dtype=pl.String), pl.Series(self.item_keys, dtype=pl.String)
        width = found.items.shape[1]
        missing = pl.Series((found.items == PAD).flatten().numpy())

        def ranks(given: Tensor | None) -> pl.Series:
            numbers = pl.Series([None] * len(found.users), dtype=pl.Int32) if given is None else pl.Series(given.numpy() + 1).cast(pl.Int32)
            return numbers.set(numbers > width, None)

        def lists(flat: pl.Series) -> pl.Series:
            return flat.set(missing, None).reshape((len(found.users), width)).arr.to_list().list.drop_nulls()

        scores = None if found.scores is None else lists(pl.Series(found.scores.flatten().numpy()))
        return pl.DataFrame(
            {
                "row": pl.repeat(row, len(found.users), eager=True),
                "part": pl.repeat(part, len(found.users), eager=True),
                "user": users.gather(found.users.numpy()),
                "history": pl.Series(found.histories.numpy()).cast(pl.Int32),
                "target": items.gather(found.targets.numpy()),
                "target_count": pl.Series(self.popularity[found.targets].numpy()).cast(pl.Int32),
                "rank": ranks(found.ranks),
                "code_rank": ranks(found.code_ranks),
                "items": lists(items.gather(found.items.clamp(min=0).flatten().numpy())),
                "scores": pl.Series([None] * len(found.users), dtype=pl.List(pl.Float32)) if scores is None else scores,
            }
        )

    def finish(self) -> None:
        """Writes the file, whole or not at all, a piece at a time."""
        import polars as pl

        with whole_file(self.path) as temporary:
            pl.scan_parquet(self._rows).sink_parquet(temporary, compression="zstd")
        shutil.rmtree(self._parts, ignore_errors=True)


def read_row(run: Path, part: str, name: str | None = None) -> RunRow:
    """Reads a row of a run's report.

    Args:
        run: the directory of a finished run of train_decoder.py.
        part: "validation" or "test".
        name: the row's; None: the model's, which is the first.

    Raises:
        UserError: no finished run, one of before the file was written, or no such part or row.
    """
    import polars as pl

    rows, split = report_of(run, part)
    name = name or next(iter(rows))
    if name not in rows:
        raise UserError(f"{run} has no row {name!r} on {part}; it has {', '.join(map(repr, rows))}")
    if not (run / RANKS).exists():
        raise UserError(f"{run} has no {RANKS}: an earlier version finished it, or it was shared; train it again to compare user by user")
    try:
        columns = ["user", "history", "target", "target_count", "rank"]
        chosen = pl.scan_parquet(run / RANKS).filter(pl.col("row") == name, pl.col("part") == part).select(columns)
        users = chosen.collect().sort("user")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{run / RANKS} cannot be read ({str(error).splitlines()[0]}); copy it again, or train again") from error
    return RunRow(run, name, part, split, bool(rows[name]["filter_history"]), users)


def report_of(run: Path, part: str) -> tuple[dict[str, dict[str, object]], str]:
    """The rows of a finished run's metrics on one part, and the hash of its split; raises as ``read_row`` does."""
    try:
        metrics = json.loads((run / METRICS).read_text())
        split, parts = metrics["data"]["split"], [name for name in ("validation", "test") if name in metrics]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{run} is not a finished run of train_decoder.py ({error}); give the directory that it printed as 'saved'"
        ) from error
    if part not in parts:
        raise UserError(f"{run} has no figures of the {part} part, only of {' and '.join(parts) or 'stage 1'}")
    return metrics[part], split
