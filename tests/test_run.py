"""Run directories: the rerun rule, one process at a time, files that are whole."""

import json
import os

import pytest

from data.schemas import UserError
from modules.runtime.config.main import ROOT
from modules.runtime.runs.run import Run, environment

RESOLVED = {"iterations": 5, "seed": 0, "resume": True, "device": "cpu"}


def make(folder, **changed) -> Run:
    return Run(str(folder), "run", RESOLVED | changed)


def test_an_unfinished_run_goes_on_and_a_finished_one_says_so(tmp_path):
    with make(tmp_path) as run:
        run.log(step=1)
        assert not run.finished
        assert "new" in run.describe()
    with make(tmp_path, device="cuda") as again:
        assert again.folder == run.folder
        (again.folder / "checkpoint-00000012").mkdir()
        assert "(goes on; " in again.describe()
        (again.folder / "model.safetensors").write_bytes(b"")
        again.finish({"recall@10": 0.5})
    assert make(tmp_path).finished
    assert json.loads((run.folder / "metrics.json").read_text()) == {"recall@10": 0.5}
    assert {"torch", "commit", "command"} <= json.loads((run.folder / "environment.json").read_text()).keys()


def test_the_environment_names_the_script_as_the_project_does(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(ROOT / "train_decoder.py"), "a.gin"])
    assert environment()["command"] == "train_decoder.py a.gin"
    monkeypatch.setattr("sys.argv", [str(tmp_path / "elsewhere.py")])
    assert environment()["command"] == "elsewhere.py"


def test_a_trailing_slash_of_the_root_changes_nothing(tmp_path):
    with make(f"{tmp_path}/") as run:
        assert run.folder == tmp_path / "run"


def test_another_config_is_refused_by_the_parameters_that_differ(tmp_path):
    with make(tmp_path) as run:
        run.log(step=1)
    before = (tmp_path / "run" / "config.gin").read_text()
    with pytest.raises(UserError) as error:
        make(tmp_path, iterations=6)
    assert "iterations was 5 and is now 6" in str(error.value)
    assert "seed" not in str(error.value)
    assert (tmp_path / "run" / "config.gin").read_text() == before


def test_a_start_that_failed_before_it_trained_holds_the_directory_for_no_config(tmp_path):
    make(tmp_path).close()
    with make(tmp_path, iterations=6) as run:
        assert "train.iterations = 6" in (run.folder / "config.gin").read_text()


def test_without_resume_a_run_gets_a_directory_beside_the_old_one(tmp_path):
    runs = [make(tmp_path, resume=False, seed=seed) for seed in range(3)]
    assert [run.folder.name for run in runs] == ["run", "run-2", "run-3"]


def test_what_a_run_writes_down_goes_on_in_its_own_directory(tmp_path):
    make(tmp_path).close()
    with make(tmp_path, resume=False) as sibling:
        written = (sibling.folder / "config.gin").read_text()
    assert "train.resume = True" in written
    assert "train.run_name = 'run-2'" in written


def test_a_directory_is_held_by_one_process_at_a_time(tmp_path):
    first = make(tmp_path)
    with pytest.raises(UserError, match="another process is training"):
        make(tmp_path)
    first.close()
    make(tmp_path).close()


def test_a_run_directory_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="save_dir_root"):
        make(tmp_path / "file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser writes to read-only directories")
def test_a_read_only_directory_is_a_user_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="save_dir_root"):
        make(tmp_path)
    tmp_path.chmod(0o700)


def test_the_log_is_cut_at_the_checkpoint_it_goes_on_from(tmp_path):
    with make(tmp_path) as run:
        run.cut_log(3)
        for step in (1, 3, 5, 7):
            run.log(step=step, loss=0.5)
        with open(run.folder / "log.jsonl", "a") as file:
            file.write('{"step": 9, "lo')  # what a killed process left
        run.cut_log(5)
        run.log(step=5, loss=0.4)
        lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (3, 0.5), (5, 0.4)]
