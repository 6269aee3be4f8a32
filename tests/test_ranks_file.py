"""ranks.parquet: whole, and enough to compute every figure of metrics.json again."""

import json
import math
from pathlib import Path

import polars as pl
import pytest
import torch

from data.schemas import PAD, UserError
from evaluate.metrics import bootstrap_interval
from modules.runtime.runs.ranks_file import RankedUsers, RanksFile, read_row

USERS, ITEMS = ["u0", "u1", "u2"], ["a", "b", "c"]


def found(**changed) -> RankedUsers:
    given = {
        "users": torch.tensor([2, 0]),
        "histories": torch.tensor([4, 1]),
        "targets": torch.tensor([1, 2]),
        "ranks": torch.tensor([1, 3]),
        "code_ranks": torch.tensor([0, 3]),
        "items": torch.tensor([[2, 1, PAD], [0, 1, PAD]]),
        "scores": torch.tensor([[-0.5, -1.0, -math.inf], [-0.25, -2.0, -math.inf]]),
    }
    return RankedUsers(**given | changed)


def written(folder: Path, **rows: RankedUsers) -> pl.DataFrame:
    file = RanksFile(folder, USERS, ITEMS, torch.tensor([5, 0, 2]))
    for name, row in rows.items():
        file.add(name, "validation", row)
    file.finish()
    return pl.read_parquet(folder / "ranks.parquet")


def test_a_row_of_the_report_is_a_line_for_every_user(tmp_path: Path) -> None:
    first, second = written(tmp_path, model=found()).to_dicts()
    assert first == {
        "row": "model", "part": "validation", "user": "u2", "history": 4, "target": "b", "target_count": 0, "rank": 2, "code_rank": 1,
        "items": ["c", "b"], "scores": [-0.5, -1.0],
    }  # fmt: skip
    assert (second["user"], second["target_count"], second["rank"], second["code_rank"]) == ("u0", 2, None, None)
    assert second["items"] == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["ranks.parquet"]


def test_a_row_without_codes_or_scores_has_none(tmp_path: Path) -> None:
    table = written(tmp_path, model=found(), plain=found(code_ranks=None, scores=None), empty=found(items=torch.full((2, 3), PAD)))
    plain, empty = (table.filter(pl.col("row") == name) for name in ("plain", "empty"))
    assert plain["code_rank"].to_list() == plain["scores"].to_list() == [None, None]
    assert empty["items"].to_list() == [[], []]


def test_a_file_that_cannot_be_finished_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(tmp_path, model=found())
    file = RanksFile(tmp_path, USERS, ITEMS, torch.tensor([5, 0, 2]))
    file.add("other", "validation", found())
    monkeypatch.setattr(pl, "scan_parquet", lambda paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        file.finish()
    assert pl.read_parquet(tmp_path / "ranks.parquet").equals(before)
    assert not list(tmp_path.glob(".ranks*"))


def test_what_a_killed_process_left_is_no_part_of_the_next_file(tmp_path: Path) -> None:
    RanksFile(tmp_path, USERS, ITEMS, torch.tensor([5, 0, 2])).add("killed", "validation", found())
    assert written(tmp_path, model=found())["row"].unique().to_list() == ["model"]


def again(lines: pl.DataFrame, names: list[str]) -> dict[str, torch.Tensor]:
    """Each metric user by user, from its definition."""
    values = {}
    for name in names:
        kind, _, at = name.partition("@")
        ranks = lines["code_rank" if kind == "code_recall" else "rank"].to_list()
        hits = [rank is not None and rank <= int(at) for rank in ranks]
        gains = {"ndcg": lambda rank: 1 / math.log2(rank + 1), "mrr": lambda rank: 1 / rank}.get(kind, lambda rank: 1.0)
        values[name] = torch.tensor([gains(rank) if hit else 0.0 for rank, hit in zip(ranks, hits)], dtype=torch.float64)
    return values


def check_every_figure(run: Path) -> int:
    """Computes each figure of metrics.json again; returns the number of rows."""
    metrics, table, rows = json.loads((run / "metrics.json").read_text()), pl.read_parquet(run / "ranks.parquet"), 0
    for part, unseen in (("validation", False), ("test", False), ("test, unseen items", True)):
        for row, printed in metrics.get(part, {}).items():
            lines = table.filter(pl.col("row") == row, pl.col("part") == printed["part"])
            lines = lines.filter(pl.col("target_count") == 0) if unseen else lines
            assert len(lines) == lines["user"].n_unique() == printed["users"]
            values = again(lines, [name for name in printed["metrics"] if not name.startswith("code_gap")])
            means = {name: value.mean().item() for name, value in values.items()}
            means |= {name: means[f"code_recall@{name[9:]}"] - means[f"recall@{name[9:]}"] for name in printed["metrics"] if "gap" in name}
            assert means == pytest.approx(printed["metrics"], abs=1e-12)
            for name, interval in printed["intervals"].items():
                assert bootstrap_interval(values[name])._asdict() == pytest.approx(interval)
            rows += 1
    assert rows >= table.select("row", "part").n_unique()
    return rows


def test_every_printed_figure_can_be_computed_again(trained: Path) -> None:
    run = trained / "decoder" / "beauty"
    assert check_every_figure(run) == 6 + 7
    table = pl.read_parquet(run / "ranks.parquet")
    assert (table["items"].list.n_unique() == 10).all()
    assert (table["scores"].list.len() == 10).all()
    at_rank = table.filter(pl.col("rank").is_not_null()).with_columns(pl.col("items").list.get(pl.col("rank") - 1).alias("hit"))
    assert (at_rank["hit"] == at_rank["target"]).all()
    assert (table["scores"].list.sort(descending=True) == table["scores"]).all()
    assert table.filter(pl.col("row") == "TIGER")["scores"].list.max().max() <= 0  # log-probabilities


def test_a_row_that_is_not_there_is_refused_in_a_sentence(trained: Path, tmp_path: Path) -> None:
    run = trained / "decoder" / "beauty"
    assert read_row(run, "validation").name == "TIGER"
    assert read_row(run, "test", "memory").users.height == read_row(run, "test").users.height
    with pytest.raises(UserError, match="no row 'SASRec' on test; it has 'TIGER', 'TIGER, history not barred', 'most popular'"):
        read_row(run, "test", "SASRec")
    with pytest.raises(UserError, match="is not a finished run"):
        read_row(tmp_path, "test")
    (tmp_path / "metrics.json").write_text(json.dumps({"data": {"split": "abc"}, "validation": {"TIGER": {"filter_history": True}}}))
    with pytest.raises(UserError, match="has no figures of the test part, only of validation"):
        read_row(tmp_path, "test")
    with pytest.raises(UserError, match=r"has no ranks\.parquet"):
        read_row(tmp_path, "validation")
    (tmp_path / "ranks.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"ranks\.parquet cannot be read"):
        read_row(tmp_path, "validation")
