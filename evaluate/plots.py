"""Pictures of a run: how the codes are used, recall over the length of the list, and how training went.

matplotlib is imported where a picture is drawn, and drawn on Figure objects: no window, no global state. Colours are Okabe and Ito's,
told apart by colour-blind readers too. Shape letters: I items, L levels, K codebook size, U users, k length of a ranked list.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.schemas import UserError
from evaluate.codebook import code_counts, codebook_health, collision_groups
from evaluate.evaluation import Evaluation, check_one_part
from evaluate.metrics import bootstrap_interval, per_user_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "x")


def codebook_plot(codes: Tensor, sizes: Sequence[int]) -> "Figure":
    """How often each code of a level is used, most frequent first, beside even use; and how many items share whole tuples.

    Args:
        codes: [I, L] int64 without the collision code.
        sizes: K of each level.

    Raises:
        ValueError: codes and sizes do not belong together (see ``codebook_health``).
    """
    health, groups = codebook_health(codes, sizes), collision_groups(codes)
    figure, axes = panels(len(sizes) + 1)
    for level, (axis, counts, size) in enumerate(zip(axes, code_counts(codes, sizes), sizes)):
        axis.fill_between(range(1, size + 1), counts.sort(descending=True).values.tolist(), step="mid", color=COLOURS[0], linewidth=0)
        axis.axhline(len(codes) / size, color=COLOURS[1], linestyle="--", label=f"even use: {len(codes) / size:.1f}")
        axis.set_title(f"level {level}: {health.usage[level]:.1%} used, perplexity {health.perplexity[level]:.0f} of {size}")
        axis.set(xlabel="code, most frequent first", ylabel="items", xlim=(0.5, size + 0.5), ylim=(0, None))
        axis.legend()
    last, shared = axes[-1], torch.bincount(groups)
    group_sizes = shared.nonzero()[:, 0].tolist()
    thick = max(0.8, (group_sizes[-1] - group_sizes[0]) / 100)  # to be seen beside one giant group
    bars = last.bar(group_sizes, shared[group_sizes].tolist(), width=thick, color=COLOURS[0])
    if len(bars) <= 20:
        last.bar_label(bars, fmt="{:,.0f}", fontsize=7)
    last.set_title(f"collision rate {health.collision_rate:.1%}, largest group {health.largest_group}")
    last.set(xlabel="items that share all their codes", ylabel="groups (log scale)", yscale="log")
    last.set_ylim(0.7, 3 * int(shared.max()))
    last.xaxis.set_major_locator(_whole_numbers())
    figure.suptitle(f"Codes of {len(codes):,} items")
    return figure


def recall_plot(evaluations: Sequence[tuple[str, Evaluation]]) -> "Figure":
    """recall@k for k = 1 to the length of the shortest lists; the first row with its 95 % interval over users.

    Args:
        evaluations: (name, evaluation) of one part: the model first, then the baselines.

    Raises:
        UserError: validation and test figures would stand in one picture, or there are none.
    """
    check_one_part([evaluation for _, evaluation in evaluations])
    first = evaluations[0][1]
    cutoffs = list(range(1, min(evaluation.list_length for _, evaluation in evaluations) + 1))
    figure, (axis,) = panels(1, width=7.0, height=4.5)
    for number, (name, evaluation) in enumerate(evaluations):
        hits = per_user_metrics(evaluation.ranks, cutoffs)
        recall = [hits[f"recall@{k}"].mean().item() for k in cutoffs]
        axis.plot(cutoffs, recall, color=COLOURS[number % 7], marker=MARKERS[number % 7], markersize=4, label=name)
        if not number:
            spans = [bootstrap_interval(hits[f"recall@{k}"]) for k in cutoffs]
            low, high = [span.low for span in spans], [span.high for span in spans]
            axis.fill_between(cutoffs, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label=f"{name}, 95 % over users")
    barred = {evaluation.filter_history for _, evaluation in evaluations}
    note = ", history barred" if barred == {True} else ", history not barred" if barred == {False} else ""
    axis.set_title(f"Recall, {first.part}, {first.users:,} users, full ranking{note}")
    axis.set(xlabel="k, length of the list", ylabel="recall@k", ylim=(0, None))
    axis.xaxis.set_major_locator(_whole_numbers())
    axis.legend()
    return figure


def loss_plot(lines: Sequence[Mapping[str, object]]) -> "Figure":
    """Training and validation over the steps, for the log of either stage; a panel for each kind of figure that the log holds.

    Args:
        lines: the objects of log.jsonl, each with its ``step``.

    Raises:
        UserError: no line holds a figure that is drawn.
    """
    losses = {
        "training loss": _series(lines, "loss"),
        "reconstruction": _series(lines, "reconstruction"),
        "distance to the codewords, all levels": _series(lines, "codebook_loss"),
        "validation loss": _series(lines, "validation_loss"),
    }
    # One level's loss is a cross-entropy in nats; stage 1's terms are squared distances.
    unit = "loss, nats an item" if any("level_losses" in line for line in lines) else "squared distance an item"
    validated = [{"step": line["step"], **figures} for line in lines if isinstance(figures := line.get("validation"), Mapping)]
    ranking = {f"validation {name}": _series(validated, name) for name in ("recall@10", "ndcg@10")}
    levels = max((len(figures) for line in lines if isinstance(figures := line.get("perplexity"), (list, tuple))), default=0)
    perplexity = {f"level {level}": _series(lines, "perplexity", level) for level in range(levels)}
    collisions = {"all items": _series(lines, "collision_rate")}
    candidates = [
        ("Loss", unit, losses),
        ("Validation, full ranking", "recall, ndcg", ranking),
        ("Perplexity of the codes", "codes", perplexity),
        ("Collision rate", "share of items", collisions),
    ]
    drawn = [
        (title, label, kept) for title, label, series in candidates if (kept := {name: points for name, points in series.items() if points})
    ]
    if not drawn:
        raise UserError(
            "the log holds no losses or validation figures yet; a run writes the first after train.log_every or eval_every steps"
        )
    figure, axes = panels(len(drawn))
    for axis, (title, label, series) in zip(axes, drawn):
        for number, (name, points) in enumerate(series.items()):
            steps, values = zip(*points)
            marker = MARKERS[number] if len(points) < 40 else None
            axis.plot(steps, values, color=COLOURS[number % 7], marker=marker, markersize=4, label=name)
        axis.set_title(title)
        axis.set(xlabel="training step", ylabel=label)
        if title != "Loss":  # a cut axis would make much of little
            axis.set_ylim(0, 1.1 * max(value for points in series.values() for _, value in points) or 1.0)
        if len(series) > 1:
            axis.legend()
    figure.suptitle(f"Training, {max(int(str(line['step'])) for line in lines):,} steps")
    return figure


def png(figure: "Figure") -> bytes:
    """A picture as a file's content; letters that the font lacks become boxes, without a warning for each."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def panels(count: int, width: float = 5.0, height: float = 3.6) -> tuple["Figure", list["Axes"]]:
    """A figure with ``count`` axes, drawn without pyplot; up to three side by side, more in two columns."""
    from matplotlib.figure import Figure

    columns = count if count <= 3 else 2
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = [axis for row in figure.subplots(rows, columns, squeeze=False) for axis in row]
    for axis in grid:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in grid[count:]:
        axis.remove()
    return figure, grid[:count]


def _whole_numbers() -> "Locator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _series(lines: Sequence[Mapping[str, object]], name: str, index: int | None = None) -> list[tuple[int, float]]:
    """(step, figure) of every line that holds the figure; of a list, its element ``index``."""
    points = []
    for line in lines:
        value = line.get(name)
        if isinstance(value, (list, tuple)) and index is not None:
            value = value[index]
        if isinstance(value, (int, float)):
            points.append((int(str(line["step"])), float(value)))
    return points
