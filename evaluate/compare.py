"""Is one run better than another? Two runs compared user by user, from the answers that their reports kept.

    python -m evaluate.compare RUN_A RUN_B                              # the models of two runs, on validation
    python -m evaluate.compare RUN RUN:memory                           # a run's model with a row of its own report
    python -m evaluate.compare RUN_A RUN_B --part test --row item-kNN   # the same row of both
    python -m evaluate.compare --a RUN RUN RUN --b RUN RUN RUN          # several seeds on each side

Nothing is searched: it reads ranks.parquet and metrics.json of the run directories. Printed are the means of A and B, the difference A - B
with a paired 95 % interval (bootstrap over users), and how many users A serves better, worse and equally well: of all users, by the length
of the history, by how often the target occurs in training, and of targets that training never saw. With several seeds a user's value is the
mean over them, and the deviation between the seeds' means stands behind it. The interval speaks for these checkpoints.

From Python: ``from evaluate.compare import compare``; ``compare("RUN_A", ["RUN_B1", "RUN_B2"])`` returns the table as a polars DataFrame.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import polars as pl

from data.schemas import UserError
from evaluate.comparison import METRICS, RunRow, check_comparable, compare_rows
from evaluate.console import format_number, table
from modules.runtime.runs.ranks_file import read_row

Runs = str | Path | Sequence[str | Path]


def compare(a: Runs, b: Runs, part: str = "validation", row: str | None = None, seed: int = 0) -> pl.DataFrame:
    """The difference A - B, user by user; ``evaluate.comparison.compare_rows`` says what the columns hold.

    Args:
        a, b: a run directory, or RUN:ROW for a row of its report; several that differ in their seed.
        part: "validation" or "test".
        row: of runs that are given without one; None: their model's.
        seed: of the bootstrap.

    Raises:
        UserError: a run without the answers, or two sides that are not on one scale.
    """
    return compare_rows(opened(a, part, row), opened(b, part, row), seed=seed)


def opened(runs: Runs, part: str, row: str | None = None) -> list[RunRow]:
    """The rows of one side; see ``compare``."""
    words = [runs] if isinstance(runs, (str, Path)) else list(runs)
    rows = []
    for word in words:
        run, name = run_and_row(str(word))
        rows.append(read_row(run, part, name or row))
    if len({(found.run.resolve(), found.name) for found in rows}) < len(rows):
        raise UserError(f"the same run stands twice on one side: {' '.join(map(str, words))}; give each seed once")
    return rows


def run_and_row(word: str) -> tuple[Path, str | None]:
    """The parts of RUN:ROW, either of which may hold a colon; no row where ``word`` is a directory, or no beginning of it is."""
    ends = [found.start() for found in re.finditer(":", word)]
    for end in [] if Path(word).exists() else ends:
        if Path(word[:end]).exists():
            return Path(word[:end]), word[end + 1 :]
    return Path(word), None


def described(side: str, rows: Sequence[RunRow]) -> str:
    """A line that says what a side is."""
    return f"{side}  " + (rows[0].describe() if len(rows) == 1 else f"{len(rows)} runs: {', '.join(row.describe() for row in rows)}")


def printed(differences: pl.DataFrame) -> Iterator[str]:
    """A table for each thing that users are grouped by."""
    for by, group in groupby(differences.iter_rows(named=True), key=lambda line: line["by"]):
        lines = list(group)
        rows = [[by, "metric", "users", "A", "B", "A - B", "95 % interval", "wins", "losses", "ties"]]
        for line in lines:
            sides = [_figure(line[side], line[f"{side}_deviation"]) for side in "ab"]
            interval = f"[{_signed(line['low'])}, {_signed(line['high'])}]"
            counts = [f"{line[name]:,}" for name in ("wins", "losses", "ties")]
            users = f"{line['users']:,}"
            rows.append([line["group"], line["metric"], users, *sides, _signed(line["difference"]), interval, *counts])
        yield table(rows)


def _figure(mean: float, deviation: float | None) -> str:
    return format_number(mean) + ("" if deviation is None else f" ± {format_number(deviation)}")


def _signed(value: float) -> str:
    return ("+" if round(value, 4) > 0 else "") + format_number(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="two run directories of train_decoder.py; RUN:ROW is a row of its report")
    parser.add_argument("--a", nargs="+", metavar="RUN", help="the runs (seeds) of side A")
    parser.add_argument("--b", nargs="+", metavar="RUN", help="the runs (seeds) of side B")
    parser.add_argument("--part", choices=["validation", "test"], default="validation")
    parser.add_argument("--row", help="of runs given without one; the model's if it is left out")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    given = parser.parse_args(arguments)
    try:
        if given.a and given.b and not given.runs:
            sides: tuple[Runs, Runs] = given.a, given.b
        elif len(given.runs) == 2 and not given.a and not given.b:
            sides = given.runs[0], given.runs[1]
        else:
            raise UserError("give two runs, RUN_A RUN_B, or the runs of both sides, --a RUN [RUN ...] --b RUN [RUN ...]")
        a, b = (opened(side, given.part, given.row) for side in sides)
        check_comparable([*a, *b])
        differences = compare_rows(a, b, METRICS, given.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    barred = "" if a[0].filter_history else " not"
    print(f"{given.part}, {a[0].users.height:,} users, items of the history{barred} barred\n{described('A', a)}\n{described('B', b)}\n")
    print("\n\n".join(printed(differences)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
