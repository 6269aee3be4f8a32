"""The JSON of ``python -m evaluate.reproduce`` as Markdown: its own page, and the tables of docs/results.md."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from evaluate.console import format_number, markdown

Result = Mapping[str, Any]
PARTS = {"validation": "Validation", "test": "Test"}


def result_page(result: Result) -> str:
    """One result: a table for each scale, the verdict, what was published, and what each run cost."""
    return f"# {title(result)}\n\n{result_section(result)}\n"


def results_section(folder: Path) -> str:
    """All results of a folder of JSON files, by their names; what is to be done where there is none."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not results:
        return "None yet: `python -m evaluate.reproduce CONFIG` writes a JSON, which belongs into `benchmarks/quality`."
    return "\n\n".join(f"### {title(result)}\n\n{result_section(result)}" for result in results)


def title(result: Result) -> str:
    return f"{', '.join(result['configs'])} on {result['dataset']} {result['split']}"


def result_section(result: Result) -> str:
    """What ``result_page`` has below its title."""
    return "\n\n".join(block.rstrip("\n") for block in _blocks(result))


def _blocks(result: Result) -> Iterator[str]:
    count, commit = len(result["seeds"]), _short(result["commit"])
    changed = " with uncommitted changes" if result["uncommitted_changes"] else ""
    yield (
        f"Commit {commit}{changed}, {result['date'][:10]}; {_counted(count, 'seed')}. A figure is the mean over users and seeds, "
        "± the standard deviation over seeds, [the 95 % interval over users]."
    )
    if count < 3:
        yield "With fewer than three seeds the verdicts speak of these runs, not of the configs."
    for part, scales in result["parts"].items():
        for scale, found in scales.items():
            yield f"**{PARTS[part]}**, {found['users']:,} users, items of the history {scale}:"
            yield markdown(list(_table(found)))
            verdict = [*found["verdict"], *found.get("published_verdict", [])]
            yield "\n".join(f"* {entry['words']}" for entry in verdict) or "No row to compare with."
    yield from _published(result["published"])
    read = [times for times in result["test_readings"].values() if times]
    told = f"{_counted(len(read), 'run')} read the test part, {_counted(sum(read), 'time')} in all."
    yield told if read else "The test part was not read."
    yield markdown(list(_runs(result["runs"])))


def _table(found: Mapping[str, Any]) -> Iterator[list[str]]:
    rows = found["models"] | found["baselines"]
    metrics = list(next(iter(rows.values())))
    yield ["row", *metrics]
    for name, figures in rows.items():
        yield [name, *(_cell(figures[metric]) for metric in metrics)]


def _cell(figure: Mapping[str, Any]) -> str:
    deviation = figure.get("deviation")
    own = "" if deviation is None else f" ± {format_number(deviation)}"
    return f"{format_number(figure['mean'])}{own} [{format_number(figure['low'])}, {format_number(figure['high'])}]"


def _published(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table for each protocol; barred and not barred are two scales."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["metrics"]))
    for protocol in ("barred", "not barred", "not stated"):
        chosen = [row for row in rows if row["protocol"] == protocol]
        if chosen:
            scale = "protocol not stated" if protocol == "not stated" else f"items of the history {protocol}"
            yield f"Published by others on **test**, {scale}; to be compared with test figures of the same protocol only:"
            lines = [["row", *metrics, "source"]]
            for row in chosen:
                figures = cast(Mapping[str, float], row["metrics"])
                cells = [format_number(figures[metric]) if metric in figures else "-" for metric in metrics]
                lines.append([row["model"], *cells, row["source"] + (f" ({row['note']})" if "note" in row else "")])
            yield markdown(lines)


def _runs(runs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    yield ["run", "wall s", "CPU s", "starts", "precision", "processor", "torch", "commit"]
    for run in runs:
        seconds = [f"{run[key]:,.0f}" for key in ("wall_seconds", "cpu_seconds")]
        rest = [run["precision"] or "-", run["processor"], run["torch"], _short(run["commit"])]
        yield [f"{run['config']}, seed {run['seed']}", *seconds, str(run["starts"]), *rest]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _short(commit: str | None) -> str:
    return "unknown" if commit is None else commit[:7]
