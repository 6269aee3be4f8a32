"""The pictures show the numbers they were given."""

import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure

from data.schemas import UserError
from evaluate.evaluation import Evaluation, evaluate_lists
from evaluate.plots import codebook_plot, loss_plot, png, recall_plot
from tests.test_imports import ROOT


def evaluation(ranks: list[int], part: str = "validation", filter_history: bool = True) -> Evaluation:
    """One whose user u has the target at rank ranks[u] of a list of ten."""
    ranked = torch.arange(10).repeat(len(ranks), 1)
    return evaluate_lists(ranked, torch.tensor(ranks), part, filter_history)


def curve(figure: Figure, panel: int, label: str) -> tuple[list[float], list[float]]:
    line = next(line for line in figure.axes[panel].lines if line.get_label() == label)
    return [float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()]


def test_the_codebook_picture_names_usage_perplexity_and_collisions() -> None:
    codes = torch.tensor([[0, 0], [0, 0], [1, 1], [2, 1]])
    figure = codebook_plot(codes, [4, 2])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == "level 0: 75.0% used, perplexity 3 of 4"  # exp(entropy of 1/2, 1/4, 1/4) = 2.83
    assert titles[1] == "level 1: 100.0% used, perplexity 2 of 2"
    assert titles[2] == "collision rate 25.0%, largest group 2"
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in figure.axes[2].patches] == [(1, 2), (2, 1)]


def test_codes_are_drawn_most_frequent_first() -> None:
    codes = torch.tensor([[2], [2], [2], [0], [0], [1]])
    axis = codebook_plot(codes, [4]).axes[0]
    heights = axis.collections[0].get_paths()[0].vertices
    at = [max(y for x, y in heights if abs(x - code) <= 0.5) for code in (1, 4)]
    assert at == [3, 1]  # the fourth code is unused; its left edge is the third's height
    assert axis.get_xlim() == (0.5, 4.5)


def test_one_giant_group_is_wide_enough_to_be_seen() -> None:
    codes = torch.cat([torch.zeros(1000, dtype=torch.int64), torch.arange(1, 5)])[:, None]
    bars = codebook_plot(codes, [8]).axes[1].patches
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in bars] == [(1, 4), (1000, 1)]
    assert min(bar.get_width() for bar in bars) > 5


def test_recall_rises_as_counted_by_hand_for_every_row() -> None:
    figure = recall_plot([("TIGER", evaluation([0, 2, 10, 10])), ("popular", evaluation([10, 9, 9, 9]))])
    assert curve(figure, 0, "TIGER") == ([*range(1, 11)], [0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert curve(figure, 0, "popular")[1] == [0.0] * 9 + [0.75]
    assert figure.axes[0].get_title() == "Recall, validation, 4 users, full ranking, history barred"


def test_only_the_first_row_has_an_interval_and_it_holds_its_curve() -> None:
    figure = recall_plot([("TIGER", evaluation([0, 2, 10, 10])), ("popular", evaluation([9, 9, 9, 9]))])
    (band,) = figure.axes[0].collections
    corners = band.get_paths()[0].vertices
    for k, recall in zip(*curve(figure, 0, "TIGER")):
        spread = [y for x, y in corners if x == k]
        assert min(spread) <= recall <= max(spread)
    assert corners[:, 1].max() > 0.5


def test_validation_and_test_never_share_a_picture() -> None:
    with pytest.raises(UserError, match="never validation with test"):
        recall_plot([("a", evaluation([0])), ("b", evaluation([0], "test"))])


def test_a_mixture_of_barred_and_plain_lists_is_not_called_barred() -> None:
    figure = recall_plot([("a", evaluation([0])), ("b", evaluation([0], filter_history=False))])
    assert "barred" not in figure.axes[0].get_title()


def test_the_decoder_log_becomes_losses_and_ranking_figures() -> None:
    log = [
        {"step": 100, "loss": 17.0, "level_losses": [6.0, 5.0, 6.0], "lr": 0.1},
        {"step": 200, "loss": 15.0, "level_losses": [5.0, 5.0, 5.0], "lr": 0.1},
        {"step": 200, "seconds": 3, "validation_loss": 16.0},
        {"step": 300, "seconds": 5, "validation": {"recall@10": 0.2, "ndcg@10": 0.1, "mrr@10": 0.0}},
    ]
    figure = loss_plot(log)
    assert [axis.get_title() for axis in figure.axes] == ["Loss", "Validation, full ranking"]
    assert curve(figure, 0, "training loss") == ([100, 200], [17.0, 15.0])
    assert curve(figure, 0, "validation loss") == ([200], [16.0])
    assert curve(figure, 1, "validation ndcg@10") == ([300], [0.1])
    assert "nats" in figure.axes[0].get_ylabel()
    assert "300 steps" in figure.get_suptitle()


def test_the_rqvae_log_becomes_losses_perplexity_and_collisions() -> None:
    log = [
        {"step": step, "loss": 0.9, "reconstruction": 0.5, "codebook_loss": 0.3, "perplexity": [7.0, 6.0], "collision_rate": 0.05}
        for step in (50, 100)
    ]
    figure = loss_plot(log)
    assert [axis.get_title() for axis in figure.axes] == ["Loss", "Perplexity of the codes", "Collision rate"]
    assert curve(figure, 0, "reconstruction") == ([50, 100], [0.5, 0.5])
    assert curve(figure, 1, "level 1") == ([50, 100], [6.0, 6.0])
    assert curve(figure, 2, "all items")[1] == [0.05, 0.05]
    assert [axis.get_ylim()[0] for axis in figure.axes[1:]] == [0, 0]
    assert "distance" in figure.axes[0].get_ylabel()


def test_a_log_without_figures_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="holds no losses"):
        loss_plot([{"step": 1, "seconds": 2}])


def test_every_axis_is_labelled() -> None:
    figures = [codebook_plot(torch.tensor([[0], [1]]), [2]), recall_plot([("a", evaluation([0]))]), loss_plot([{"step": 1, "loss": 1.0}])]
    for axis in (axis for figure in figures for axis in figure.axes):
        assert axis.get_xlabel()
        assert axis.get_ylabel()
        assert axis.get_title()


def test_a_picture_becomes_a_png() -> None:
    assert png(loss_plot([{"step": 1, "loss": 1.0}])).startswith(b"\x89PNG")


def test_a_picture_needs_no_pyplot_and_no_window() -> None:
    code = (
        "import sys; from evaluate.plots import loss_plot\nloss_plot([{'step': 1, 'loss': 1.0}]); print('matplotlib.pyplot' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
