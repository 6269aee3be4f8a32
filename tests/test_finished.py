"""A finished run opened again with its data: the same figures as its report, and a sentence where the data are not its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks import beams
from data.schemas import UserError
from evaluate.rankers import CodeRanker, Ranker
from modules.runtime.evaluation.baselines import Untrained
from modules.runtime.evaluation.evaluator import Evaluator
from modules.runtime.runs.finished import open_finished
from modules.runtime.runs.searcher import Searcher
from modules.runtime.runs.text_vectors import load_vectors
from tests.runs import ITEMS, USERS, run_decoder
from tests.synthetic import write_p5


def copy_of(trained: Path, folder: Path) -> Path:
    """A run that a test may change."""
    return Path(shutil.copytree(trained / "decoder" / "beauty", folder, ignore=shutil.ignore_patterns("checkpoint-*")))


def test_a_run_opened_again_has_the_figures_of_its_report(trained: Path) -> None:
    run = trained / "decoder" / "beauty"
    evaluator, written = Evaluator.for_run(run, "cpu"), json.loads((run / "metrics.json").read_text())
    assert evaluator.split == written["data"]["split"]
    for part in ("validation", "test"):
        assert evaluator.model(part, True).to_json() == written[part]["TIGER"]
    assert evaluator.model("test", False).to_json() == written["test"]["TIGER, history not barred"]
    searcher, train = evaluator.ranker, evaluator.data.split.train
    assert isinstance(searcher, Searcher)
    rankers = Untrained(train, searcher.order, load_vectors(trained / "rqvae" / "beauty", ITEMS)).rankers()
    assert {name: row.to_json() for name, row in evaluator.baselines("test", True, rankers)} == {
        name: row for name, row in written["test"].items() if "TIGER" not in name
    }


@pytest.mark.parametrize(
    "split", [["split_by=leave_one_out"], ["encoder_attention=bidirectional", "max_seq_len=3"]], ids=["causal", "short"]
)
def test_a_run_without_the_record_of_its_search_is_opened_by_its_config(split: list[str], trained: Path, tmp_path: Path) -> None:
    run_decoder(trained, *split, "iterations=20", "amp=False", f"save_dir_root={tmp_path}")
    run = tmp_path / "beauty"
    (run / "search.json").unlink()
    config = run / "config.gin"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if "split_quantiles" not in line))
    written = json.loads((run / "metrics.json").read_text())
    assert Evaluator.for_run(run, "cpu").model("test", True).to_json() == written["test"]["TIGER"]
    assert open_finished(run, "cpu").recommender.settings.beam_size == 20


def test_other_users_beams_and_batches_may_be_asked_for(trained: Path) -> None:
    evaluator = Evaluator.for_run(trained / "decoder" / "beauty", "cpu", users=30, seed=1, beam_size=11, batch_size=7)
    assert evaluator.model("validation", True, sample=True).users == 30
    assert evaluator.protocol.batch_size == 7
    assert evaluator.ranker.ask([[3]]).item_ids.shape == (1, 11)
    other = Evaluator.for_run(trained / "decoder" / "beauty", "cpu", users=30, seed=2)
    assert not torch.equal(evaluator.sample, other.sample)


def test_a_run_of_other_data_is_refused_in_a_sentence(trained: Path, tmp_path: Path, capsys) -> None:
    run = copy_of(trained, tmp_path / "run")
    config = run / "config.gin"
    original = config.read_text()
    for users, items, words in ((USERS, ITEMS + 5, "125 items, not its own 120"), (USERS - 1, ITEMS, "their histories and split are")):
        write_p5(tmp_path / str(items), users, items)
        config.write_text(original.replace(f"dataset_folder = '{trained}'", f"dataset_folder = '{tmp_path}/{items}'"))
        assert beams.main([str(run), "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: the data in {tmp_path}/{items} are not those that the run in {run} was trained on: ")
        assert words in error
        assert error.count("\n") == 1
    with pytest.raises(UserError, match="not its own 120"):
        Evaluator.for_run(trained / "decoder" / "beauty", "cpu", dataset_folder=f"{tmp_path}/125")


def test_what_is_no_finished_run_is_refused_in_a_sentence(trained: Path, tmp_path: Path, capsys) -> None:
    run = copy_of(trained, tmp_path / "run")
    (run / "metrics.json").unlink()
    for folder in (run, tmp_path, trained / "rqvae" / "beauty"):
        assert beams.main([str(folder)]) == 2
        assert f"{folder} is not a" in capsys.readouterr().err


def test_the_widths_of_a_search_are_compared_on_a_run_s_own_data(trained: Path, monkeypatch, capsys) -> None:
    saved = {}
    monkeypatch.setattr(beams, "save", lambda name, result: saved.update({name: result}))
    assert beams.main([str(trained / "decoder" / "beauty"), "--users", "20", "--device", "cpu"]) == 0
    assert list(saved["beams"]["beams"]) == ["10", "20", "50", "100", str(ITEMS)]
    assert "recall@10" in capsys.readouterr().out


def test_a_new_baseline_is_a_class_of_a_name_and_a_list(trained_data, trained_retriever) -> None:
    class Backwards:
        name = "history, backwards"

        def recommend(self, batch, k: int, filter_history: bool) -> torch.Tensor:
            return torch.nn.functional.pad(batch.item_ids.flip(1)[:, :k], (0, max(0, k - batch.item_ids.shape[1])), value=-1)

    from modules.runtime.evaluation.evaluator import Protocol

    ranker: Ranker = Backwards()
    assert not isinstance(ranker, CodeRanker)
    assert isinstance(Searcher(trained_retriever), CodeRanker)
    evaluator = Evaluator(Searcher(trained_retriever), trained_data, Protocol(True, (5, 10), 16, None, 0))
    ((name, evaluation),) = evaluator.baselines("test", False, [ranker])
    assert (name, evaluation.users) == ("history, backwards", USERS)
    assert "code_recall@10" not in evaluation.metrics
