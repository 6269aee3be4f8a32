"""A run neither goes on with other data than it began on, nor says that it is finished with them."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from modules.runtime.runs.data_record import RECORD
from modules.runtime.runs.run import Run
from tests.runs import RUN, interrupt_at, lines
from tests.test_resume import same_run

SHORT = {
    "rqvae": ["iterations=100", "save_model_every=30", "log_every=10"],
    "decoder": ["iterations=60", "full_eval_every=30", "save_model_every=30"],
}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "picture", lambda self, name, figure: None)


@pytest.fixture
def data(trained: Path, tmp_path: Path) -> Path:
    """Data that a test may change, with a run of stage 1."""
    return Path(shutil.copytree(trained, tmp_path / "data", ignore=shutil.ignore_patterns("decoder", "checkpoint-*", "processed")))


def turn_histories_round(data: Path) -> None:
    path = data / "raw" / "beauty" / "sequential_data.txt"
    rows = [line.split() for line in path.read_text().splitlines()]
    path.write_text("".join(" ".join([user, *reversed(items)]) + "\n" for user, *items in rows))


def append_a_row(data: Path) -> None:
    """The first user has one item more."""
    path = data / "raw" / "beauty" / "sequential_data.txt"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([f"{first} {first.split()[1]}", *others]) + "\n")


def change_a_vector(data: Path) -> None:
    vectors = np.load(data / "items.npy")
    vectors[3] += 1
    np.save(data / "items.npy", vectors)


CHANGES = {"histories turned round": (turn_histories_round, "the histories are"), "a row appended": (append_a_row, "the histories are")}


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_stopped_run_does_not_go_on_with_other_data(stage: str, change: str, data: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(40, signal.SIGTERM, patch)
        RUN[stage](data, f"save_dir_root={root}", *SHORT[stage], code=128 + signal.SIGTERM)
    capsys.readouterr()
    kept = (data / "raw" / "beauty" / "sequential_data.txt").read_text()
    alter, words = CHANGES[change]
    alter(data)
    before = lines(root / "beauty")
    RUN[stage](data, f"save_dir_root={root}", *SHORT[stage], code=2)
    said = capsys.readouterr().err
    assert f"is being trained on other data: {words} other ones now; set train.resume = False" in said
    assert lines(root / "beauty") == before
    (data / "raw" / "beauty" / "sequential_data.txt").write_text(kept)
    RUN[stage](data, f"save_dir_root={root}", *SHORT[stage])
    RUN[stage](data, f"save_dir_root={tmp_path / 'unbroken'}", *SHORT[stage])
    same_run(tmp_path / "unbroken" / "beauty", root / "beauty")


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_a_finished_run_says_what_changed_and_what_to_type(stage: str, data: Path, tmp_path: Path, capsys) -> None:
    asked = [f"save_dir_root={tmp_path / 'out'}", *SHORT[stage]]
    RUN[stage](data, *asked)
    RUN[stage](data, *asked)
    assert "is finished" in capsys.readouterr().out
    append_a_row(data)
    RUN[stage](data, *asked, code=2)
    assert "was trained on other data: the histories are other ones now; set train.resume = False" in capsys.readouterr().err
    RUN[stage](data, *asked, "resume=False")
    assert (tmp_path / "out" / "beauty_1").is_dir() or len(list((tmp_path / "out").iterdir())) == 2


def test_other_vectors_at_the_same_path_are_noticed(data: Path, tmp_path: Path, capsys) -> None:
    asked = [f"save_dir_root={tmp_path / 'out'}", *SHORT["rqvae"]]
    RUN["rqvae"](data, *asked)
    change_a_vector(data)
    RUN["rqvae"](data, *asked, code=2)
    assert "was trained on other data: the items' vectors are other ones now" in capsys.readouterr().err


def test_a_finished_run_whose_data_are_gone_still_shows_its_report(data: Path, tmp_path: Path, capsys) -> None:
    asked = [f"save_dir_root={tmp_path / 'out'}", *SHORT["decoder"]]
    RUN["decoder"](data, *asked)
    (data / "raw").rename(tmp_path / "away")
    shutil.rmtree(data / "processed")
    capsys.readouterr()
    RUN["decoder"](data, *asked, "dataset_split=beauty")
    said = capsys.readouterr().out
    assert "data     not compared with those of the run: " in said
    assert "is finished" in said


def test_the_record_holds_hashes_alone(trained: Path) -> None:
    for stage in ("rqvae", "decoder"):
        record = json.loads((trained / stage / "beauty" / RECORD).read_text())
        assert {"histories", "items", "texts"} <= record.keys() <= {"histories", "items", "texts", "vectors"}
        assert all(len(value) <= 16 for value in record.values())
