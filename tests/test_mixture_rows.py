"""Rows of other shares of search, items and memory: found as a run with such weights finds them, or by a formula over all items."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch

from data.schemas import PAD, UserError
from modules.mixture import Shares, parse_shares
from modules.runtime.evaluation import mixtures
from modules.runtime.evaluation.evaluator import Evaluator
from modules.runtime.evaluation.mixtures import mixed
from modules.runtime.runs.memory_files import load_memory
from modules.runtime.runs.ranks_file import RANKS
from modules.runtime.runs.run import Run
from modules.runtime.runs.searcher import Searcher
from tests.runs import ITEMS, run_decoder
from tests.test_memory_weight import HISTORIES, USERS, of_head, q_of, weighing

ROWS = ["0.4,0.2,0.4", "1,0,0", "0,0.5,0.5", "0,1,0"]
OPTIONS = ["iterations=20", "full_eval_every=20", "save_model_every=20", "history_tokens=items", "code_softmax=children", "item_head=True",
           "memory_weight=0.4", "head_weight=0.2", f"mixtures={json.dumps(ROWS)}", "do_eval=False"]  # fmt: skip


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory) -> Path:
    """A short run with an item head and a memory."""
    folder = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "picture", lambda self, name, figure: None)
        run_decoder(trained, f"save_dir_root={folder}", *OPTIONS)
    return folder / "beauty"


def test_the_report_has_a_row_for_each_mixture(run: Path) -> None:
    rows = json.loads((run / "metrics.json").read_text())["validation"]
    names = [name for name in rows if name.startswith("TIGER")]
    assert names == [
        "TIGER", "TIGER: search .4 + items .2 + memory .4", "TIGER: search", "TIGER: items .5 + memory .5", "TIGER: items",
    ]  # fmt: skip
    assert rows["TIGER"]["metrics"] == rows["TIGER: search .4 + items .2 + memory .4"]["metrics"]
    answers = pl.read_parquet(run / RANKS).filter(pl.col("part") == "validation")
    own, same = (answers.filter(pl.col("row") == name).drop("row") for name in names[:2])
    assert own.equals(same)
    assert "code_recall@10" in rows["TIGER: search"]["metrics"]


@pytest.mark.parametrize("shares", [Shares(0.0, 0.5, 0.5), Shares(0.0, 1.0, 0.0), Shares(0.0, 0.0, 1.0)])
@pytest.mark.parametrize("barred", [True, False], ids=["barred", "not barred"])
def test_without_the_search_all_items_are_ranked_by_the_formula(run: Path, shares: Shares, barred: bool) -> None:
    searcher, memory = Evaluator.for_run(run, "cpu").ranker, load_memory(run, ITEMS)
    assert isinstance(searcher, Searcher)
    width = max(map(len, HISTORIES))
    history = torch.tensor([[*items, *[PAD] * (width - len(items))] for items in HISTORIES])
    batch = searcher.batch_of(history, torch.tensor(USERS), searcher.model.config.max_seq_len)
    found = mixed(searcher, memory, shares).ranked(batch, ITEMS, barred)
    for row, (items, user) in enumerate(zip(HISTORIES, USERS)):
        left = [item for item in range(ITEMS) if not (barred and item in items)]
        h, q = of_head(weighing(searcher.retriever, 0.0), items, user, left), q_of(memory, items, left)
        expected = {item: shares.items * h[item] + shares.memory * q[item] for item in left}
        own = [item for item in found.item_ids[row].tolist() if item != PAD]
        assert sorted(own) == left
        assert found.scores[row, : len(own)].tolist() == pytest.approx([expected[item] for item in own], rel=1e-4)
        assert found.scores[row, : len(own)].tolist() == pytest.approx(sorted(expected.values(), reverse=True), rel=1e-4)


def test_the_command_prints_every_mixture_that_the_run_has_parts_for(run: Path, capsys) -> None:
    assert mixtures.main([str(run), "--users", "50"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("TIGER: ")]
    rows = {line.partition("  ")[0] for line in lines}
    assert {"TIGER: search", "TIGER: items", "TIGER: memory", "TIGER: search .5 + memory .5"} <= rows
    assert any(line.startswith("TIGER: search .1 + items .4") for line in lines)


def test_the_command_gives_the_reports_figures(run: Path, capsys) -> None:
    assert mixtures.main([str(run), "--shares", *ROWS]) == 0
    lines = [" ".join(line.replace("*", "").split()) for line in capsys.readouterr().out.splitlines()]
    report = [" ".join(line.replace("*", "").split()) for line in (run / "report.txt").read_text().splitlines()]
    for line in lines:
        if line.startswith("TIGER: ") and "recall@10" not in line:
            assert line in report


@pytest.mark.parametrize("text", ["0.5,0.5", "0.5,0.5,0.5", "a,b,c", "1.5,-0.5,0", ""])
def test_shares_that_are_none_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="is not three shares that sum to 1; write search,items,memory, such as"):
        parse_shares(text)


@pytest.mark.parametrize(
    ("model", "shares", "sentence"),
    [
        ("tiger", "0.5,0.5,0", "'0.5,0.5,0' has a share of the items, which needs train.item_head = True; give it 0"),
        ("sasrec", "0.5,0.5,0", "'0.5,0.5,0' has a share of the search, which SASRec has not; give it 0"),
        ("tiger", "1", "the mixture '1' is not three shares that sum to 1"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_before_the_training(model, shares, sentence, trained: Path, tmp_path: Path, capsys) -> None:
    run_decoder(trained, f"save_dir_root={tmp_path}", f"model={model}", f"mixtures=['{shares}']", code=2)
    assert f"train.mixtures: {sentence}" in capsys.readouterr().err


def test_a_part_that_a_run_has_not_is_refused_in_one_sentence(run: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(Searcher, "scores_items", False)
    assert mixtures.main([str(run), "--shares", "0.5,0.5,0"]) == 2
    assert "has a share of the items, which needs train.item_head = True; give it 0" in capsys.readouterr().err
