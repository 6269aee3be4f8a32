"""Tracking: nothing where it is off, no questions, no dead training, one wandb run for all continuations."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.schemas import UserError
from modules.runtime.config.main import ROOT
from modules.runtime.runs.tracker import Tracker, flatten, start_tracker

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed (dependency group tracking)")


class Colour(Enum):
    RED = 1


class FakeRun:
    id, url, dir = "run-7", "https://wandb.invalid/run-7", "/runs/wandb/offline-run-7/files"

    def __init__(self) -> None:
        self.logged: list[dict[str, object]] = []
        self.metrics: list[tuple[str, str | None]] = []
        self.summary: dict[str, object] = {}
        self.ended = False

    def log(self, data: dict[str, object]) -> None:
        self.logged.append(data)

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def finish(self) -> None:
        self.ended = True


class FakeWandb:
    """Records what is asked of it; ``refuse`` makes every start that is not offline fail."""

    def __init__(self, mode: str = "online", key: str | None = "k" * 40, refuse: bool = False, version: str = "0.31.0") -> None:
        self.configured = SimpleNamespace(mode=mode, api_key=key, base_url="https://api.example.org")
        self.refuse, self.run, self.starts, self.torn_down = refuse, FakeRun(), [], 0
        self.__version__ = version
        self.Settings = type("Settings", (), {"base_url": "https://api.public.example"})

    def setup(self) -> SimpleNamespace:
        return SimpleNamespace(settings=self.configured)

    def init(self, **arguments: object) -> FakeRun:
        self.starts.append(arguments)
        if self.refuse and arguments["mode"] != "offline":
            raise RuntimeError("no such host\nand more")
        return self.run

    def teardown(self) -> None:
        self.torn_down += 1

    def Table(self, **arguments: object) -> tuple[str, dict[str, object]]:
        return ("table", arguments)

    def Image(self, path: str) -> tuple[str, bytes]:
        return ("image", Path(path).read_bytes()[:8])

    def login(self, *arguments: object, **named: object) -> None:
        raise AssertionError("login would ask")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own wandb settings reaches a test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))


def start(monkeypatch: pytest.MonkeyPatch, wandb: FakeWandb, run_id: str | None = None) -> Tracker:
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    settings = {"iterations": 5, "vae_codebook_mode": Colour.RED, "vae_hidden_dims": (4, 2)}
    return start_tracker(True, Path("/runs"), "train.iterations = 5", settings, "rqvae beauty", "tiger", run_id)


def test_nested_figures_get_flat_names_and_none_is_left_out() -> None:
    nested = {"loss": 1.5, "usage": [1.0, 0.5], "validation": {"recall@10": 0.1, "by": {"level": (7,)}}, "held_out": None}
    assert flatten(nested) == {"loss": 1.5, "usage/0": 1.0, "usage/1": 0.5, "validation/recall@10": 0.1, "validation/by/level/0": 7}


def test_wandb_is_not_even_imported_where_tracking_is_off() -> None:
    code = (
        "import sys; from pathlib import Path; from modules.runtime.runs.tracker import start_tracker\n"
        "tracker = start_tracker(False, Path('nowhere'), '', {}, 'a', 'b', 'kept')\n"
        "tracker.log(1, {'loss': 1.0}); tracker.table('t', ['a'], [[1]]); tracker.figure('f', Path('x.png')); tracker.finish({})\n"
        "print(tracker.run_id, [name for name in ('wandb', 'matplotlib') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "kept []"


def test_a_missing_wandb_is_told_with_the_line_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install .*wandb.*train\.wandb_logging = False"):
        start_tracker(True, Path("/runs"), "", {}, "a", "b", None)


def test_a_start_hands_over_the_config_the_id_and_the_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wandb = FakeWandb()
    tracker = start(monkeypatch, wandb, run_id="run-7")
    (asked,) = wandb.starts
    config = {"iterations": 5, "vae_codebook_mode": "RED", "vae_hidden_dims": [4, 2], "gin": "train.iterations = 5"}
    assert asked["config"] == config
    assert (asked["id"], asked["resume"], asked["dir"], asked["mode"]) == ("run-7", "allow", "/runs", None)
    assert (asked["project"], asked["name"]) == ("tiger", "rqvae beauty")
    settings = asked["settings"]
    assert isinstance(settings, dict)
    assert settings["console"] == "off"
    assert max(settings["init_timeout"], settings["finish_timeout"]) <= 120
    assert wandb.run.metrics == [("step", None), ("*", "step")]
    assert tracker.run_id == "run-7"
    assert capsys.readouterr().out == "tracking W&B https://wandb.invalid/run-7\n"


@pytest.mark.parametrize(
    ("version", "works"), [("0.28.1", False), ("0.9.12", False), ("0.28.2", True), ("0.31.0", True), ("1.0.0rc1", True)]
)
def test_a_wandb_that_would_wait_for_ever_is_refused(version: str, works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb(version=version)
    if works:
        assert start(monkeypatch, wandb).run_id == "run-7"
    else:
        with pytest.raises(UserError, match=rf"newer wandb than {version}.*pip install"):
            start(monkeypatch, wandb)


def test_the_step_travels_as_a_figure_so_that_a_resumed_run_may_log_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb()
    tracker = start(monkeypatch, wandb)
    tracker.log(20, {"loss": 1.0})
    tracker.log(10, {"usage": [0.5]})
    tracker.table("hits", ["user", "hit"], [(1, "yes"), (2, None)])
    assert wandb.run.logged[:2] == [{"step": 20, "loss": 1.0}, {"step": 10, "usage/0": 0.5}]
    table = {"columns": ["user", "hit"], "data": [[1, "yes"], [2, None]], "allow_mixed_types": True}
    assert wandb.run.logged[2] == {"hits": ("table", table)}
    tracker.finish({"test": {"recall@10": 0.25}})
    assert wandb.run.summary == {"test/recall@10": 0.25}
    assert wandb.run.ended


def test_a_figure_and_a_png_file_are_both_recorded_as_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    figure.subplots().plot([1, 2])
    figure.savefig(tmp_path / "plot.png")
    wandb = FakeWandb()
    tracker = start(monkeypatch, wandb)
    tracker.figure("drawn", figure)
    tracker.figure("read", tmp_path / "plot.png")
    png = ("image", b"\x89PNG\r\n\x1a\n")
    assert wandb.run.logged == [{"drawn": png}, {"read": png}]


@pytest.mark.parametrize("mode", ["online", "offline", "dryrun"])
def test_without_a_key_or_as_asked_it_writes_offline_and_says_so_once(
    mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = FakeWandb(mode, key=None if mode == "online" else "k" * 40)
    start(monkeypatch, wandb).log(1, {"loss": 1.0})
    assert [asked["mode"] for asked in wandb.starts] == ["offline"]
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "wandb sync /runs/wandb/offline-run-7" in said


def test_a_disabled_wandb_stays_off_and_keeps_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb("disabled")
    assert start(monkeypatch, wandb, "run-7").run_id == "run-7"
    assert wandb.starts == []


@pytest.mark.parametrize(("host", "modes"), [("api.example.org", [None]), ("elsewhere.org", ["offline"])])
def test_a_key_in_netrc_counts_for_its_own_host(
    host: str, modes: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text(f"machine {host}\n login user\n password {'k' * 40}\n")
    wandb = FakeWandb(key=None)
    start(monkeypatch, wandb)
    assert [asked["mode"] for asked in wandb.starts] == modes


def test_an_unreachable_server_leaves_the_run_offline_under_the_same_id(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = FakeWandb(refuse=True)
    start(monkeypatch, wandb, "run-7").log(1, {"loss": 1.0})
    assert [(asked["mode"], asked["id"]) for asked in wandb.starts] == [(None, "run-7"), ("offline", "run-7")]
    assert wandb.torn_down == 1
    assert wandb.run.logged == [{"step": 1, "loss": 1.0}]
    assert "no such host" in capsys.readouterr().out


def test_a_tracker_that_breaks_is_reported_once_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = FakeWandb()
    tracker = start(monkeypatch, wandb)
    capsys.readouterr()

    def gone(data: dict[str, object]) -> None:
        raise BrokenPipeError("service gone")

    monkeypatch.setattr(wandb.run, "log", gone)
    tracker.log(1, {"loss": 1.0})
    tracker.log(2, {"loss": 1.0})
    tracker.finish({})
    assert capsys.readouterr().out.count("service gone") == 1
    assert not wandb.run.ended


@needs_wandb
def test_the_real_wandb_keeps_one_id_over_a_resume_and_asks_nothing(tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from modules.runtime.runs.tracker import start_tracker\n"
        "ids = [None]\n"
        "for steps in ((10, 20), (15, 30)):\n"
        f"    tracker = start_tracker(True, Path({str(tmp_path)!r}), 'train.seed = 0', {{'seed': 0}}, 'name', 'tiger', ids[-1])\n"
        "    ids.append(tracker.run_id)\n"
        "    for step in steps: tracker.log(step, {'validation': {'recall@10': step / 100}})\n"
        "    tracker.table('hits', ['user', 'hit'], [[1, 'yes'], [2, 3.0]])\n"
        "    tracker.finish({'final': 0.5})\n"
        "print(json.dumps(ids[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert first == second
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(first in folder.name for folder in folders)  # two starts within a second get a suffix
    written = [record for folder in folders for record in records(next(folder.glob("*.wandb")))]
    assert {record.run.run_id for record in written if record.HasField("run")} == {first}
    logged = [{"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item} for record in written]
    steps = [(int(items["step"]), float(items["validation/recall@10"])) for items in logged if "validation/recall@10" in items]
    assert sorted(steps) == [(10, 0.1), (15, 0.15), (20, 0.2), (30, 0.3)]
    config = {item.key: item.value_json for record in written for item in record.run.config.update}
    assert config["gin"] == '"train.seed = 0"'


def records(path: Path) -> list:
    """The records of wandb's datastore: a header of 7 bytes, then frames of checksum, length and type in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, found, partial = path.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # the rest of a block is padding
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        partial += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(partial))
            partial = b""
    return found
