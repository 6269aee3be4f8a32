"""A run that left its test part unread reads it later, trains nothing for it, and counts every start of a reading."""

import json
from pathlib import Path

import pytest

from data.schemas import UserError
from modules.runtime.evaluation.evaluator import Evaluator
from modules.runtime.runs.run import Run
from modules.runtime.runs.run import test_readings as readings_of
from tests.runs import lines, run_decoder, run_rqvae

SHORT = ["iterations=20", "full_eval_every=10", "partial_eval_every=10", "save_model_every=10", "eval_users=50"]


def files_of(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in ("model.safetensors", "config.gin", "environment.json", "log.jsonl")}


def test_the_test_part_is_read_later_as_it_would_have_been_and_each_start_counts(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_decoder(trained, *SHORT, f"save_dir_root={tmp_path}/whole")
    whole, run = tmp_path / "whole" / "beauty", tmp_path / "later" / "beauty"
    assert len(readings_of(whole)) == 1

    run_decoder(trained, *SHORT, f"save_dir_root={tmp_path}/later", "do_eval=False")
    assert readings_of(run) == []
    before, metrics = files_of(run), json.loads((run / "metrics.json").read_text())
    assert "test" not in metrics
    capsys.readouterr()
    run_decoder(trained, *SHORT, f"save_dir_root={tmp_path}/later", "do_eval=False")
    assert "is finished" in capsys.readouterr().out

    def broken(*given: object) -> None:
        raise UserError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "unseen", broken)
        run_decoder(trained, *SHORT, f"save_dir_root={tmp_path}/later", code=2)
    assert len(readings_of(run)) == 1
    assert json.loads((run / "metrics.json").read_text()) == metrics

    for folder in run.glob("checkpoint-*"):  # somebody needed the space
        folder.rename(tmp_path / folder.name)
    run_decoder(trained, *SHORT, f"save_dir_root={tmp_path}/later")
    assert len(readings_of(run)) == 2
    assert files_of(run) == before
    own, other = (json.loads((folder / "metrics.json").read_text()) for folder in (run, whole))
    assert own.pop("training_seconds") == metrics["training_seconds"]
    assert other.pop("training_seconds")
    assert own == other
    assert lines(run) == lines(whole)

    capsys.readouterr()
    for do_eval in ("True", "False"):
        run_decoder(trained, *SHORT, f"save_dir_root={tmp_path}/later", f"do_eval={do_eval}")
        assert "is finished" in capsys.readouterr().out
    assert len(readings_of(run)) == 2


def test_the_held_out_items_of_stage_one_are_a_setting_that_must_not_change(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_rqvae(trained, "do_eval=True", code=2)
    assert "do_eval was False and is now True" in capsys.readouterr().err


def test_what_tells_the_readings_is_refused_when_damaged(tmp_path: Path) -> None:
    assert readings_of(tmp_path) == []
    with Run(str(tmp_path), "run", {"resume": True}) as run:
        run.record_test_reading()
        run.record_test_reading()
        assert len(readings_of(run.folder)) == 2
        (run.folder / "test_readings.json").write_text("[")
        with pytest.raises(UserError, match=r"test_readings\.json cannot be read"):
            readings_of(run.folder)
