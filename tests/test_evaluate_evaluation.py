"""One evaluation as numbers, several as a table, recommendations as titles."""

import json

import pytest
import torch

from data.schemas import PAD, UserError
from evaluate.console import WIDTH, format_number, shorten
from evaluate.evaluation import Row, evaluate_lists, evaluation_report, metrics_table, sample_table

USERS = 40


def lists(hit_at: list[int | None], k: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranked lists in which user u finds the target at hit_at[u]."""
    targets = torch.arange(len(hit_at)) + 1000
    ranked = torch.arange(k).repeat(len(hit_at), 1)
    for user, position in enumerate(hit_at):
        if position is not None:
            ranked[user, position] = targets[user]
    return ranked, targets


def evaluation(hit_at, part="validation", barred=True, **more):
    return evaluate_lists(*lists(hit_at), part=part, filter_history=barred, resamples=200, **more)


def test_a_hit_is_the_item_and_the_code_level_claim_stands_beside_it():
    # Four users; the code tuple is found for three of them, the item itself only for two.
    ranked, targets = lists([0, 4, None, None])
    code_ranked, code_targets = lists([0, 2, 6, None])
    result = evaluate_lists(ranked, targets, "test", True, code_ranked=code_ranked, code_targets=code_targets)
    assert (result.metrics["recall@1"], result.metrics["recall@5"], result.metrics["recall@10"]) == (0.25, 0.5, 0.5)
    assert (result.metrics["code_recall@1"], result.metrics["code_recall@5"], result.metrics["code_recall@10"]) == (0.25, 0.5, 0.75)
    assert result.metrics["code_gap@10"] == 0.25
    assert result.intervals["recall@10"].mean == 0.5
    assert set(result.intervals) == {"recall@10", "ndcg@10"}
    assert (result.part, result.users, result.filter_history) == ("test", 4, True)


def test_figures_without_codes_have_no_code_level():
    assert list(evaluation([0, None]).metrics) == ["recall@1", "recall@5", "recall@10", "ndcg@1", "ndcg@5", "ndcg@10", "mrr@10"]


def test_cutoffs_can_be_chosen_and_the_interval_follows():
    result = evaluate_lists(*lists([0, 15, None], k=20), "validation", True, cutoffs=(5, 20))
    assert result.metrics["recall@20"] == pytest.approx(2 / 3)
    assert set(result.intervals) == {"recall@20", "ndcg@20"}


def test_the_same_lists_give_the_same_evaluation():
    first, second = evaluation([0, 3, None] * 10), evaluation([0, 3, None] * 10)
    assert first.to_json() == second.to_json()


def test_the_json_is_plain_strict_and_complete():
    result = evaluation([0, None, 3, 9], code_ranked=lists([0, 1, 2, 3])[0], code_targets=lists([0, 1, 2, 3])[1])
    read = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert set(read) == {"part", "users", "filter_history", "metrics", "intervals"}
    assert read["metrics"] == result.metrics
    assert read["intervals"]["ndcg@10"] == result.intervals["ndcg@10"]._asdict()


def test_lists_too_short_for_a_cutoff_are_refused_rather_than_counted_as_hits():
    with pytest.raises(UserError, match="hold 5 entries but a cutoff of 10"):
        evaluate_lists(*lists([None, None], k=5), "validation", True)
    with pytest.raises(UserError, match="hold 5 entries"):
        evaluate_lists(*lists([0, 0]), "test", True, code_ranked=lists([0, 0], k=5)[0], code_targets=torch.tensor([0, 1]))


def test_half_a_code_level_an_unknown_part_and_no_users_are_refused():
    with pytest.raises(ValueError, match="only one of them"):
        evaluation([0], code_targets=torch.tensor([0]))
    with pytest.raises(UserError, match="'train'"):
        evaluation([0], part="train")
    with pytest.raises(UserError, match="no users"):
        evaluate_lists(torch.full((0, 10), PAD), torch.empty(0, dtype=torch.int64), "test", True)


def test_validation_is_never_shown_beside_test():
    validation, test = evaluation([0] * USERS), evaluation([0] * USERS, part="test")
    with pytest.raises(UserError, match="never validation with test"):
        evaluation_report([("a", validation), ("b", test)])


def test_report_names_the_part_the_users_the_intervals_and_what_was_not_barred():
    text = evaluation_report([("ours", evaluation([0, None] * 20)), ("ours, plain", evaluation([1, None] * 20, barred=False))])
    assert text.startswith("validation, 40 users, full ranking\n")
    assert "ours, plain [1]" in text
    assert "[1] items of the history are not barred" in text
    assert "  ours: recall@10 .5000 [." in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_report_shows_code_level_columns_even_if_only_a_later_row_has_them():
    with_codes = evaluation([0, None], code_ranked=lists([0, 1])[0], code_targets=lists([0, 1])[1])
    text = evaluation_report([("markov", evaluation([0, 0])), ("tiger", with_codes)])
    assert "code_recall@10" in text
    assert "code_gap@10" in text


def test_table_is_aligned_and_marks_the_best_even_if_a_baseline_wins():
    rows = [
        Row("most popular", {"recall@10": 0.0115, "ndcg@10": 0.0054}),
        Row("last item Markov", {"recall@10": 0.0668, "ndcg@10": 0.0439}, "counts from the training part"),
        Row("TIGER", {"recall@10": 0.0648, "code_recall@10": 1.0}),
    ]
    assert metrics_table(rows, ["recall@10", "ndcg@10", "code_recall@10"], "Beauty, test").splitlines() == [
        "Beauty, test",
        "                      recall@10   ndcg@10   code_recall@10",
        "most popular              .0115     .0054                -",
        "last item Markov [1]      .0668*    .0439*               -",
        "TIGER                     .0648         -           1.0000",
        "[1] counts from the training part",
        "* best of the column",
    ]


def test_equals_are_all_marked_and_a_row_alone_is_not():
    table = metrics_table([Row("a", {"x": 0.50001}), Row("b", {"x": 0.50002}), Row("c", {"x": float("nan")})], ["x"], "t")
    assert table.count(".5000*") == 2
    assert "nan*" not in table
    assert "*" not in metrics_table([Row("a", {"x": 0.5})], ["x"], "t")


def test_code_level_claims_have_no_best():
    rows = [Row("a", {"code_recall@10": 0.2, "code_gap@10": 0.1}), Row("b", {"code_recall@10": 0.3, "code_gap@10": 0.2})]
    assert "*" not in metrics_table(rows, ["code_recall@10", "code_gap@10"], "t")


def test_a_wide_table_continues_below_and_stays_within_the_console():
    columns = [f"{name}@{k}" for name in ("recall", "ndcg", "code_recall") for k in (1, 5, 10, 20)]
    rows = [
        Row("a model with a name that is far too long to be readable " + str(i), dict.fromkeys(columns, 0.1), "why " * 60) for i in "ab"
    ]
    lines = metrics_table(rows, columns, "title").splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert all(sum(column in line.split() for line in lines) == 1 for column in columns)
    assert sum("… [1]" in line for line in lines) >= 4  # the shortened name keeps its note, in every block


def test_numbers_drop_the_zero_before_the_point_only():
    assert [format_number(v) for v in (0.0859, 1.0, -0.0123, 0.0, -0.00001, 10.5)] == [
        ".0859",
        "1.0000",
        "-.0123",
        ".0000",
        ".0000",
        "10.5000",
    ]


def test_samples_show_history_target_and_the_hit():
    text = sample_table([["a", "b", "c", "d"], []], ["x", "y"], [["w", "x"], ["q"]])
    assert text.splitlines() == [
        "sample 1, history of 4: hit at 2",
        "  history     b",
        "              c",
        "              d",
        "  held out    x",
        "  recommended    1  w",
        "              *  2  x",
        "",
        "sample 2, history of 0: not among the 1 recommended",
        "  history     (empty)",
        "  held out    y",
        "  recommended    1  q",
    ]


def test_given_ranks_decide_the_hit_where_different_items_share_a_title():
    text = sample_table([["a"]] * 2, ["lipstick"] * 2, [["lipstick", "lipstick"]] * 2, hit_ranks=torch.tensor([1, 2]).tolist())
    assert "*  2  lipstick" in text
    assert "*  1" not in text
    assert "sample 2, history of 1: not among the 2 recommended" in text


def test_only_the_asked_number_of_users_and_titles_is_shown():
    text = sample_table([["h"]] * 9, ["t"] * 9, [[str(i) for i in range(20)] + ["t"]] * 9, top=3)
    assert text.count("held out") == 5
    assert "hit at 21" in text
    assert "  4  " not in text


def test_hostile_titles_stay_one_short_printable_line():
    title = "one\ntwo\x1b[31m " + "long " * 60
    text = sample_table([[title]], [title], [[title]])
    assert all(line.isprintable() and len(line) <= WIDTH for line in text.splitlines())
    assert len(text.splitlines()) == 4
    assert text.count("…") == 3


def test_shortening_counts_wide_characters_twice():
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abcde…"
    assert shorten("化粧水化粧水", 7) == "化粧水…"
