"""What a reader sees: one evaluation as numbers with intervals, and several side by side; the tables are those of ``tables.py``.

The model and the baselines go through ``evaluate_lists``, the very same code. Shape letters: U users, k length of a ranked list,
W nodes of a code-level list.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from data.schemas import UserError
from evaluate.console import Row, format_number, metrics_table, sample_table, shorten
from evaluate.metrics import CUTOFFS, Interval, bootstrap_interval, mean_metrics, per_user_metrics, target_ranks

__all__ = ["Evaluation", "Row", "evaluate_lists", "evaluation_report", "metrics_table", "sample_table"]

Part = Literal["validation", "test"]


class Evaluation(NamedTuple):
    """One model or baseline on one part of the data."""

    part: Part
    users: int
    filter_history: bool  # whether items of the history were barred
    metrics: dict[str, float]  # recall@k, ndcg@k, mrr@10; with code lists also code_recall@k and code_gap@k
    intervals: dict[str, Interval]  # 95 % over users, of recall and ndcg at 10 (at the largest cutoff where 10 is not asked for)
    ranks: Tensor  # [U] int64, 0-based rank of each user's target, list_length where absent; not part of the JSON
    list_length: int  # no cutoff beyond it can be read from the ranks; not part of the JSON
    targets: Tensor  # [U] int64, the held-out items; not part of the JSON
    among: str = ""  # which of the part's users these are, where not all

    def to_json(self) -> dict[str, object]:
        """Everything but the ranks and their list length, as plain values for ``json.dump``."""
        return {
            "part": self.part,
            "users": self.users,
            **({"among": self.among} if self.among else {}),
            "filter_history": self.filter_history,
            "metrics": dict(self.metrics),
            "intervals": {name: interval._asdict() for name, interval in self.intervals.items()},
        }


def evaluate_lists(
    ranked: Tensor,
    targets: Tensor,
    part: Part,
    filter_history: bool,
    cutoffs: Sequence[int] = CUTOFFS,
    code_ranked: Tensor | None = None,
    code_targets: Tensor | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Metrics of ranked lists: a hit is the one target item; the code-level claim and its distance from the truth stand beside it.

    Args:
        ranked: [U, k] int64 item ids, best first, PAD where a list is shorter; k at least the largest cutoff and 10 (for mrr).
        targets: [U] int64, the held-out items.
        part: which held-out item the targets are.
        filter_history: whether items of the history were barred from the lists.
        cutoffs: of recall and ndcg.
        code_ranked: [U, W] ids of distinct L-tuples of the same search, best first, PAD-filled; None where there are no codes.
        code_targets: [U] ids of the targets' own L-tuples.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: lists shorter than a cutoff, no users, an unknown part.
        ValueError: only one of code_ranked and code_targets is given.
    """
    if part not in ("validation", "test"):
        raise UserError(f'an evaluation is of "validation" or "test": got {part!r}')
    if (code_ranked is None) != (code_targets is None):
        raise ValueError("code-level figures need both code_ranked and code_targets: got only one of them")
    _check_length(ranked, max(*cutoffs, 10))
    ranks = target_ranks(ranked, targets)
    metrics = mean_metrics(ranks, cutoffs)
    head = 10 if 10 in cutoffs else max(cutoffs)
    if code_ranked is not None and code_targets is not None:
        _check_length(code_ranked, max(cutoffs))
        code_metrics = mean_metrics(target_ranks(code_ranked, code_targets), cutoffs)
        metrics |= {f"code_recall@{c}": code_metrics[f"recall@{c}"] for c in cutoffs}
        metrics[f"code_gap@{head}"] = metrics[f"code_recall@{head}"] - metrics[f"recall@{head}"]
    values = per_user_metrics(ranks, cutoffs)
    intervals = {name: bootstrap_interval(values[name], resamples, seed=seed) for name in (f"recall@{head}", f"ndcg@{head}")}
    return Evaluation(part, len(ranks), filter_history, metrics, intervals, ranks, ranked.shape[1], targets)


def slice_users(evaluation: Evaluation, chosen: Tensor, among: str, cutoffs: Sequence[int] = CUTOFFS, seed: int = 0) -> Evaluation:
    """The same lists for some of the users, item-level figures only.

    Args:
        evaluation: of all users.
        chosen: [U] bool, at least one True.
        among: continues "users", as in "whose item training never saw".
        cutoffs: of recall and ndcg, no longer than the lists.
        seed: of the bootstrap.
    """
    ranks = evaluation.ranks[chosen]
    head = 10 if 10 in cutoffs else max(cutoffs)
    values = per_user_metrics(ranks, cutoffs)
    intervals = {name: bootstrap_interval(values[name], seed=seed) for name in (f"recall@{head}", f"ndcg@{head}")}
    figures = mean_metrics(ranks, cutoffs)
    return evaluation._replace(
        users=len(ranks), metrics=figures, intervals=intervals, ranks=ranks, targets=evaluation.targets[chosen], among=among
    )


def evaluation_report(evaluations: Sequence[tuple[str, Evaluation]], columns: Sequence[str] | None = None) -> str:
    """Named evaluations of one part as a table, with the intervals and what was barred as notes.

    Args:
        evaluations: (name, evaluation), in the order of the lines.
        columns: metrics to show; None: all there are.

    Raises:
        UserError: validation and test figures would stand in one table.
    """
    check_one_part([evaluation for _, evaluation in evaluations])
    first = evaluations[0][1]
    rows = [Row(name, e.metrics, "" if e.filter_history else "items of the history are not barred") for name, e in evaluations]
    columns = columns or list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    users = f"{first.users:,} users{f' {first.among}' if first.among else ''}"
    table = metrics_table(rows, columns, f"{first.part}, {users}, full ranking")
    spans = [f"  {shorten(name, 36)}: " + ", ".join(_span(metric, i) for metric, i in e.intervals.items()) for name, e in evaluations]
    return "\n".join([table, "95 % intervals over users, for one checkpoint each", *spans])


def _span(metric: str, interval: Interval) -> str:
    return f"{metric} {format_number(interval.mean)} [{format_number(interval.low)}, {format_number(interval.high)}]"


def _check_length(ranked: Tensor, needed: int) -> None:
    if ranked.shape[1] < needed:
        raise UserError(
            f"the ranked lists hold {ranked.shape[1]} entries but a cutoff of {needed} is evaluated; "
            "ask the search for longer lists (a wider beam) or lower the cutoff"
        )


def check_one_part(evaluations: Sequence[Evaluation]) -> None:
    """Refuses evaluations that must not stand side by side.

    Raises:
        UserError: they are of different parts or numbers of users, or there are none.
    """
    if len({(e.part, e.users, e.among) for e in evaluations}) != 1:
        seen = ", ".join(f"{e.part} ({e.users:,} users)" for e in evaluations) or "nothing"
        raise UserError(f"only evaluations of the same users and part are compared, never validation with test: got {seen}")
