"""Runs compared user by user: differences worked out by hand, groups of users, seeds, and what is refused."""

import json
import math
from pathlib import Path

import polars as pl
import pytest
import torch

from data.schemas import PAD, UserError
from evaluate.compare import compare, main
from modules.runtime.runs.ranks_file import RankedUsers, RanksFile
from tests.runs import run_decoder

USERS = 60
WIDTH = 10


def write_run(
    folder: Path, rows: dict[str, list[int | None]], part: str = "validation", split: str = "abc", barred: bool = True, shift: int = 0
) -> Path:
    """A finished run whose rows found the target of user u at rank ``rows[name][u]`` (1 = the best, None: not at all).

    User u has u % 3 + 2 items of history and the target number u + ``shift``, which occurs u % 4 times in training.
    """
    folder.mkdir(parents=True)
    count = len(next(iter(rows.values())))
    items = count + shift
    file = RanksFile(folder, [f"u{user:03}" for user in range(count)], [f"i{item}" for item in range(items)], torch.arange(items) % 4)
    users = torch.arange(count).flip(0)  # the evaluator takes users by the length of their history
    for name, ranks in rows.items():
        found = torch.tensor([WIDTH if ranks[user] is None else ranks[user] - 1 for user in users.tolist()])
        lists = torch.full((count, WIDTH), PAD)
        file.add(name, part, RankedUsers(users, users % 3 + 2, users + shift, found, None, lists, None))
    file.finish()
    figures = {name: {"filter_history": barred} for name in rows}
    (folder / "metrics.json").write_text(json.dumps({"data": {"split": split}, part: figures}))
    return folder


def line(differences: pl.DataFrame, metric: str, by: str = "all users", group: str = "") -> dict:
    (found,) = differences.filter(pl.col("metric") == metric, pl.col("by") == by, pl.col("group").str.starts_with(group)).to_dicts()
    return found


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A finds half of the targets first; B finds a quarter of them first and another quarter third."""
    a = write_run(tmp_path / "a", {"TIGER": [1, None] * (USERS // 2), "memory": [None] * USERS})
    b = write_run(tmp_path / "b", {"TIGER": [1, None, 3, 7] * (USERS // 4)})
    return a, b


def test_the_difference_is_the_exact_one_and_its_interval_holds_it(two) -> None:
    differences = compare(*two)
    recall = line(differences, "recall@10")
    assert (recall["users"], recall["a"], recall["b"], recall["difference"]) == (USERS, 0.5, 0.75, -0.25)
    assert recall["low"] < -0.25 < recall["high"] < 0
    assert (recall["wins"], recall["losses"], recall["ties"]) == (0, USERS // 4, 3 * USERS // 4)
    ndcg = line(differences, "ndcg@10")
    assert ndcg["a"] == 0.5
    assert ndcg["b"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)  # 1 / log2(rank + 1) of ranks 1, 3 and 7
    assert ndcg["difference"] == pytest.approx(0.5 - (1 + 1 / 2 + 1 / 3) / 4)
    assert ndcg["low"] < ndcg["difference"] < ndcg["high"]
    assert (ndcg["wins"], ndcg["losses"], ndcg["ties"]) == (USERS // 4, USERS // 4, USERS // 2)
    assert recall["a_deviation"] is recall["b_deviation"] is None


def test_the_other_way_round_is_the_same_with_the_other_sign_and_again_the_same_digits(two) -> None:
    a, b = two
    there, back = line(compare(a, b), "ndcg@10"), line(compare(b, a), "ndcg@10")
    assert back["difference"] == -there["difference"]
    assert (back["wins"], back["losses"]) == (there["losses"], there["wins"])
    assert compare(a, b).equals(compare(a, b))


def test_a_run_is_compared_with_itself_and_with_a_row_of_its_own(two) -> None:
    a, _ = two
    same = line(compare(a, a), "ndcg@10")
    assert (same["difference"], same["low"], same["high"], same["ties"]) == (0.0, 0.0, 0.0, USERS)
    assert line(compare(a, f"{a}:memory"), "recall@10")["difference"] == 0.5
    assert line(compare(a, a, row="memory"), "recall@10")["a"] == 0.0


def test_a_row_s_name_and_a_run_s_may_hold_a_colon(tmp_path: Path) -> None:
    run = write_run(tmp_path / "at 12:30", {"TIGER": [1] * USERS, "TIGER: search 0.5, memory 0.5": [None] * USERS})
    assert line(compare(run, f"{run}:TIGER: search 0.5, memory 0.5"), "recall@10")["difference"] == 1.0
    with pytest.raises(UserError, match=r"nowhere:memory is not a finished run"):
        compare(run, f"{tmp_path}/nowhere:memory")


def test_users_are_grouped_by_history_by_popularity_and_by_unseen_targets(two) -> None:
    differences = compare(*two)
    assert differences["by"].unique(maintain_order=True).to_list() == ["all users", "history", "target"]
    names = differences.filter(pl.col("metric") == "recall@10")["group"].to_list()
    assert names == [
        "", "short: 2 items", "middle: 3 items", "long: 4 items",
        "tail: 1 times in training", "middle: 2 times in training", "head: 3 times in training", "unseen: never in training",
    ]  # fmt: skip
    for by in ("history", "target"):
        assert differences.filter(pl.col("metric") == "recall@10", pl.col("by") == by)["users"].sum() == USERS
    # User u's target occurs u % 4 times in training, and B finds it first, not at all, third and seventh.
    for group, a, b in (("unseen", 1.0, 1.0), ("tail", 0.0, 0.0), ("middle", 1.0, 1 / 2), ("head", 0.0, 1 / 3)):
        found = line(differences, "ndcg@10", "target", group)
        assert (found["users"], found["a"], found["b"]) == (USERS // 4, a, pytest.approx(b))


def test_the_seeds_of_a_side_are_averaged_user_by_user_and_their_spread_stands_beside(tmp_path: Path) -> None:
    half, none, whole = [1, None] * (USERS // 2), [None] * USERS, [1] * USERS
    runs = {name: write_run(tmp_path / name, {"TIGER": ranks}) for name, ranks in {"x": half, "y": whole, "z": none}.items()}
    found = line(compare([runs["x"], runs["y"]], runs["z"]), "recall@10")
    assert (found["a"], found["b"], found["difference"]) == (0.75, 0.0, 0.75)
    assert found["a_deviation"] == pytest.approx(math.sqrt(2 * 0.25**2))  # of .5 and 1, n - 1
    assert found["b_deviation"] is None
    assert (found["wins"], found["ties"]) == (USERS, 0)
    # Every other user has .5 and 1: the interval is that of the users' means, not of a run's users.
    wide = line(compare(runs["x"], runs["z"]), "recall@10")
    assert (found["high"] - found["low"]) == pytest.approx((wide["high"] - wide["low"]) / 2)


def test_averages_that_are_equal_up_to_rounding_are_ties(tmp_path: Path) -> None:
    a = [write_run(tmp_path / f"a{seed}", {"TIGER": [rank] * 4}) for seed, rank in enumerate([2, 3, 5])]
    b = [write_run(tmp_path / f"b{seed}", {"TIGER": [rank] * 4}) for seed, rank in enumerate([5, 2, 3])]
    assert line(compare(a, b), "ndcg@10")["ties"] == 4


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_what_is_not_on_one_scale_is_refused_in_a_sentence(two, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, _ = two
    ranks = {"TIGER": [1] * USERS}
    other = write_run(tmp_path / "split", ranks, split="xyz")
    assert "have split different data, or the same data differently (abc and xyz)" in refused(capsys, a, other)
    free = write_run(tmp_path / "free", ranks, barred=False)
    assert f"{a} (TIGER) bars items of the history and {free} (TIGER) does not" in refused(capsys, a, free)
    assert f"{a} (TIGER) bars items of the history and {free} (TIGER) does not" in refused(capsys, free, a)
    fewer = write_run(tmp_path / "fewer", {"TIGER": [1] * (USERS - 1)})
    assert "other users or other targets on validation (60 and 59 users)" in refused(capsys, a, fewer)
    elsewhere = write_run(tmp_path / "elsewhere", ranks, shift=4)
    assert "other users or other targets" in refused(capsys, a, elsewhere)
    assert "other users or other targets" in refused(capsys, "--a", a, elsewhere, "--b", a)
    assert "has no figures of the test part" in refused(capsys, a, a, "--part", "test")
    assert "has no row 'SASRec' on validation; it has 'TIGER', 'memory'" in refused(capsys, a, f"{a}:SASRec")
    assert "is not a finished run" in refused(capsys, a, tmp_path)
    assert "stands twice on one side" in refused(capsys, "--a", a, a, "--b", a)
    for arguments in ([], [a], [a, a, a], ["--a", a], [a, "--a", a, "--b", a]):
        assert "give two runs, RUN_A RUN_B, or the runs of both sides" in refused(capsys, *arguments)
    with pytest.raises(UserError, match="split different data"):
        compare(a, other)


def test_the_command_prints_both_sides_and_a_table_for_each_grouping(two, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = two
    assert main([str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"validation, 60 users, items of the history barred\nA  {a} (TIGER)\nB  {b} (TIGER)\n")
    row = next(text for text in out.splitlines() if "recall@10" in text).split()
    assert row[:5] == ["recall@10", "60", ".5000", ".7500", "-.2500"]
    assert row[-3:] == ["0", "15", "45"]
    assert sum(text.startswith(("all users", "history", "target")) for text in out.splitlines()) == 3
    assert main(["--a", str(a), str(b), "--b", str(b)]) == 0
    out = capsys.readouterr().out
    assert f"A  2 runs: {a} (TIGER), {b} (TIGER)" in out
    assert ".6250 ± .1768" in out


def test_two_trained_runs_are_compared_by_the_answers_of_their_reports(trained: Path, tmp_path: Path) -> None:
    run_decoder(trained, "iterations=2", f"save_dir_root={tmp_path}", "do_eval=False", "full_eval_every=1")
    whole, short = trained / "decoder" / "beauty", tmp_path / "beauty"
    figures = [json.loads((run / "metrics.json").read_text())["validation"]["TIGER"]["metrics"] for run in (whole, short)]
    for metric in ("recall@10", "ndcg@10"):
        found = line(compare(whole, short), metric)
        assert (found["a"], found["b"]) == pytest.approx((figures[0][metric], figures[1][metric]))
        assert 0 < found["low"] <= found["difference"] <= found["high"]
    assert line(compare(whole, f"{whole}:memory", part="test"), "recall@10")["users"] == 400
