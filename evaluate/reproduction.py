"""What several seeds of one or more configs found, as one JSON: figures with their spread, baselines, published rows, and a verdict.

Shape letters: S seeds, U users.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluate.comparison import METRICS, RunRow, check_comparable, compare_rows, spread, user_values
from evaluate.console import format_number

PUBLISHED = Path(__file__).with_name("published.json")
"""Figures of papers and repositories on the test part, each with its protocol and source; none was made here."""


class Answers(NamedTuple):
    """Rows of reports on one part that are on one scale."""

    models: dict[str, list[RunRow]]  # by the config's name, one for each seed
    baselines: dict[str, RunRow]  # of the first run


def summary(answers: Answers, metrics: Sequence[str]) -> dict[str, Any]:
    """The figures of a part as plain values.

    Args:
        answers: what models and baselines found.
        metrics: names such as recall@10, of the item level.

    Returns:
        ``users``; for models and baselines by name each metric's ``mean`` over users and seeds, the bootstrap interval over users of it
        (``low``, ``high``), the standard deviation over seeds (``deviation``) and each seed's own figure (``seeds``); and ``verdict``.

    Raises:
        UserError: the rows are not on one scale.
    """
    every = [row for rows in answers.models.values() for row in rows] + list(answers.baselines.values())
    check_comparable(every)
    return {
        "users": every[0].users.height,
        "models": {name: _figures(rows, metrics) for name, rows in answers.models.items()},
        "baselines": {name: _figures([row], metrics) for name, row in answers.baselines.items()},
        "verdict": verdict(answers),
    }


def _figures(rows: Sequence[RunRow], metrics: Sequence[str]) -> dict[str, dict[str, object]]:
    found = {metric: spread(user_values(rows, metric)) for metric in metrics}
    return {
        metric: {**own.interval._asdict(), **({"deviation": own.deviation, "seeds": own.means} if len(rows) > 1 else {})}
        for metric, own in found.items()
    }


def verdict(answers: Answers) -> list[dict[str, object]]:
    """Every model against every later model and every baseline, by the paired interval of the users' means over the seeds.

    Each entry has the two names, the metric, ``difference``, ``low``, ``high``, and ``words``.
    """
    names, found = list(answers.models), []
    sides: Mapping[str, list[RunRow]] = answers.models | {name: [row] for name, row in answers.baselines.items()}
    for number, name in enumerate(names):
        for other in [*names[number + 1 :], *answers.baselines]:
            lines = compare_rows(sides[name], sides[other], METRICS).filter(by="all users")
            for line in lines.select("metric", "difference", "low", "high").to_dicts():
                stands = "is above" if line["low"] > 0 else "is below" if line["high"] < 0 else "is not told apart from"
                gain, low, high = (_signed(line[key]) for key in ("difference", "low", "high"))
                words = f"{name} {stands} {other} by {line['metric']}: {gain} [{low}, {high}]"
                found.append({"model": name, "other": other, **line, "words": words})
    return found


def _signed(value: float) -> str:
    return ("+" if round(value, 4) > 0 else "") + format_number(value)


def published_rows(dataset: str, split: str, users: int, items: int) -> list[dict[str, object]]:
    """What others published on the test part of these data: ``model``, ``protocol``, ``metrics``, ``source``, maybe ``note``.

    The protocol is "barred" or "not barred" (items of the history), or "not stated". There are rows only where the numbers of users and
    items are those of the published data too: a filter or another edition makes other data of the same name.
    """
    known = json.loads(PUBLISHED.read_text())
    found = [own["rows"] for own in known if (own["dataset"], own["split"], own["users"], own["items"]) == (dataset, split, users, items)]
    return found[0] if found else []


def against_published(
    models: Mapping[str, Mapping[str, Mapping[str, float]]], rows: Sequence[Mapping[str, Any]], scale: str
) -> list[dict[str, object]]:
    """Where published figures of one protocol lie beside the intervals of our test figures; not paired, as nobody publishes users.

    Args:
        models: figures by model and metric, as ``summary`` gives them, of the test part.
        rows: from ``published_rows``; those of other protocols are left out.
        scale: "barred" or "not barred".

    Returns:
        Entries with ``model``, ``other``, ``metric`` and ``words``.
    """
    found = []
    for name, figures in models.items():
        for row in rows:
            for metric in METRICS:
                if row["protocol"] == scale and metric in row["metrics"]:
                    own, other = figures[metric], row["metrics"][metric]
                    stands = "is above" if own["low"] > other else "is below" if own["high"] < other else "holds"
                    interval = f"{format_number(own['mean'])} [{format_number(own['low'])}, {format_number(own['high'])}]"
                    published = f"{format_number(other)}, published for {row['model']} ({row['source']})"
                    words = f"{name} by {metric}: {interval} {stands} {published}"
                    found.append({"model": name, "other": row["model"], "metric": metric, "words": words})
    return found
