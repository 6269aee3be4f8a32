"""A run directory: what ran (config.gin, environment.json), how it went (log.jsonl), what came out (metrics.json and the weights).

The rerun rule, said at every start: an unfinished run goes on, a finished one says so, another config in the same directory is refused,
and train.resume = False trains anew in a directory beside it. A run of stage 2 that ended without reading its test part is finished, and
unfinished for a command with train.do_eval = True, which reads it and trains no step.
"""

import ast
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout

from data.io.files import write_whole
from data.schemas import UserError
from data.shell import command
from evaluate.plots import png
from modules.runtime.config.declaration import declared_options
from modules.runtime.config.main import ROOT, config_text
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.options.groups import DataOptions
from modules.runtime.options.rqvae import RqVaeOptions
from modules.runtime.runs.tracker import Tracker, start_tracker
from modules.runtime.training.checkpoint import WEIGHTS, checkpoints
from modules.runtime.training.processes import Ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG, METRICS, READINGS = "log.jsonl", "metrics.json", "test_readings.json"
DATA = declared_options(DataOptions).keys() - {"force_dataset_process"}
"""Options that both stages have and that say what the data is."""


class Run:
    """A run's directory, held by one process (group) at a time.

    Args:
        root: train.save_dir_root.
        name: the directory's name in it, unless train.run_name is set.
        resolved: the script's parameters.
        ranks: the first of them writes.

    Raises:
        UserError: the directory holds a run with another config, is in use, or cannot be written.
    """

    def __init__(self, root: str, name: str, resolved: Mapping[str, object], ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        folder = Path(root).expanduser() / str(resolved.get("run_name") or name)
        if self.ranks.main and not resolved["resume"]:
            folder = _free_sibling(folder)
        self.folder = self.ranks.from_main(folder)
        # What is written down goes on where it is, also when it was begun in a directory beside another.
        self.settings = dict(resolved) | {"resume": True, "run_name": self.folder.name if self.folder.name != name else None}
        self.metrics = self.ranks.from_main(self._written_metrics())
        """The figures of a run whose training ended; None of another."""
        unread = self.metrics is not None and "validation" in self.metrics and "test" not in self.metrics
        self.finished = self.metrics is not None and not (unread and resolved.get("do_eval"))
        self._lock: FileLock | None = None
        self.tracker = Tracker()
        with self.ranks.main_first():
            if self.ranks.main:
                self._open()

    def _open(self) -> None:
        config, text = self.folder / "config.gin", config_text(self.settings)
        if self.begun and not config.exists():
            raise UserError(
                f"{self.folder} holds a run whose config.gin is gone, so nothing says whether this one goes on with it; "
                "put it back, or set train.resume = False for a directory beside it"
            )
        if config.exists():
            differing = _differing(config.read_text(), text, self._declared())
            if differing and self.begun:
                raise UserError(
                    f"{self.folder} holds a run with another config: {'; '.join(differing)}; "
                    "give this one another train.save_dir_root, or train.resume = False for a directory beside it"
                )
        if self.finished:  # its files say what ran then, not now
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / ".lock")
            self._lock.acquire(timeout=0)  # the system lets go of it when the process ends, however it ends
        except Timeout as error:
            raise UserError(
                f"another process is training in {self.folder}; wait for it, stop it, or set train.resume = False for a directory beside it"
            ) from error
        except OSError as error:
            raise UserError(f"cannot write the run directory {self.folder}: {error.strerror}; set train.save_dir_root") from error
        for left in self.folder.glob("checkpoint-*.tmp"):  # by a process that was killed while it wrote
            shutil.rmtree(left)
        if self.metrics is None:
            write_whole(config, text)
            write_whole(self.folder / "environment.json", json.dumps(environment(self.ranks.count), indent=1))

    def _written_metrics(self) -> dict[str, object] | None:
        path = self.folder / METRICS
        return _parsed(path.read_text()) if path.exists() and (self.folder / WEIGHTS).exists() else None

    def _declared(self) -> dict[str, Field[object]]:
        """The options of the stage that this is a run of."""
        return declared_options(DecoderOptions if "pretrained_decoder_path" in self.settings else RqVaeOptions)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        self.close()
        if kind is None:
            self.ranks.close()

    @property
    def begun(self) -> bool:
        """Is there anything to lose: a line of the log, a checkpoint or results? A start that failed before leaves none."""
        return self.metrics is not None or (self.folder / LOG).exists() or bool(checkpoints(self.folder))

    def say(self, text: str) -> None:
        """Prints a line, once."""
        if self.ranks.main:
            print(text, flush=True)

    def describe(self) -> str:
        """Where the run is and how it begins, for the start's lines."""
        begins = "goes on" if checkpoints(self.folder) else "new"
        return f"{self.folder} ({begins}; once interrupted, it goes on by: {self.command()})"

    def command(self) -> str:
        """What to type for the run to go on."""
        return command(Path(sys.argv[0]).name, self.folder / "config.gin")

    def stage_two_command(self) -> str:
        """What to type for stage 2 on the codes of this run: the config beside this one's that has its name, and the data given with it."""
        given = sys.argv[1:]
        own = next((Path(word) for word in given if word.endswith(".gin") and "=" not in word), Path())
        config = config_of_other_stage(own) or "CONFIG"
        data = [word for word in given if word.partition("=")[0].removeprefix("--").removeprefix("train.") in DATA]
        return command("train_decoder.py", config, *data, f"pretrained_rqvae_path={self.folder}")

    def log(self, **figures: object) -> None:
        """Appends a line to log.jsonl."""
        if self.ranks.main:
            with open(self.folder / LOG, "a") as file:
                file.write(json.dumps(figures) + "\n")
            self.tracker.log(int(str(figures["step"])), {name: value for name, value in figures.items() if name != "step"})

    def lines(self) -> list[dict[str, object]]:
        """The lines of log.jsonl."""
        path = self.folder / LOG
        return [line for text in path.read_text().splitlines() if (line := _parsed(text))] if path.exists() else []

    def cut_log(self, step: int) -> None:
        """Drops the lines from ``step`` on when a run goes on from that checkpoint, so that no step stands there twice."""
        path = self.folder / LOG
        if self.ranks.main and path.exists():
            write_whole(path, "".join(json.dumps(line) + "\n" for line in self.lines() if int(str(line.get("step", 0))) < step))

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file of the run, whole or not at all."""
        if self.ranks.main:
            write_whole(self.folder / name, content)

    def picture(self, name: str, figure: "Figure") -> None:
        """Writes a picture into the run, and shows it where the run is tracked."""
        self.write(f"{name}.png", png(figure))
        self.tracker.figure(name, self.folder / f"{name}.png")

    def track(self, enabled: bool, project: str) -> None:
        """Starts tracking, or goes on with it: the tracked run's id is kept in the directory."""
        if not (enabled and self.ranks.main):
            return
        kept = self.folder / "tracker.json"
        known = _parsed(kept.read_text()) if kept.exists() else None
        run_id = None if known is None or known.get("run_id") is None else str(known["run_id"])
        name = f"{self.folder.parent.name}/{self.folder.name}"
        self.tracker = start_tracker(True, self.folder, config_text(self.settings), self.settings, name, project, run_id)
        write_whole(kept, json.dumps({"run_id": self.tracker.run_id}))

    def record_test_reading(self) -> None:
        """Notes that the test part is being read, before it is: test_readings.json holds the time of each such start."""
        self.write(READINGS, json.dumps([*test_readings(self.folder), time.strftime("%Y-%m-%dT%H:%M:%S%z")]))

    def finish(self, metrics: Mapping[str, object]) -> None:
        """Writes metrics.json, which marks the run as finished, and lets go of the directory."""
        self.write(METRICS, json.dumps(metrics, indent=1))
        self.tracker.finish(metrics)
        self.close()

    def close(self) -> None:
        """Lets go of the directory."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def config_of_other_stage(config: Path) -> Path | None:
    """The config beside this one that has its name: decoder_NAME.gin for rqvae_NAME.gin, and the other way round; None without one."""
    for own, other in (("rqvae", "decoder"), ("decoder", "rqvae")):
        if config.name.startswith(own):
            pair = config.with_name(config.name.replace(own, other, 1))
            return pair if pair.exists() or (ROOT / pair).exists() else None
    return None


def test_readings(folder: Path) -> list[str]:
    """When the test part of a run's data was read for its figures; of a run by an earlier version, which did not note it, [].

    Raises:
        UserError: a damaged file.
    """
    path = folder / READINGS
    if not path.exists():
        return []
    try:
        return [str(moment) for moment in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again, or train anew") from error


def environment(processes: int = 1) -> dict[str, object]:
    """What a reader needs to judge a figure: commit, command, versions, machine."""
    commit = _git("rev-parse", "HEAD")
    return {
        "commit": commit,
        "uncommitted_changes": None if commit is None else _git("status", "--porcelain") is not None,
        "command": " ".join([_in_the_project(sys.argv[0]), *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _in_the_project(script: str) -> str:
    path = Path(script).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _git(*arguments: str) -> str | None:
    """What git prints about this checkout; None where that is nothing, or where there is no git."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _differing(old: str, new: str, declared: Mapping[str, Field[object]]) -> list[str]:
    paths, free = ({name for name, own in declared.items() if own.metadata[what]} for what in ("path", "may_differ"))

    def lines(text: str) -> dict[str, str]:
        pairs = (line.partition(" = ") for line in text.splitlines() if line.startswith("train."))
        return {name.removeprefix("train."): value for name, _, value in pairs if name.removeprefix("train.") not in free}

    before, now = lines(old), lines(new)
    # A name that one of them lacks came or went with a version of this project; what a run did without it is its default.
    names = sorted(before.keys() & now.keys())
    differ = [name for name in names if before[name] != now[name] and not (name in paths and _same_place(before[name], now[name]))]
    return [f"{name} was {before[name]} and is now {now[name]}" for name in differ]


def _same_place(one: str, other: str) -> bool:
    return one != "None" and other != "None" and Path(ast.literal_eval(one)).resolve() == Path(ast.literal_eval(other)).resolve()


def _parsed(text: str) -> dict[str, object] | None:
    """A JSON object; None where a killed process or a full disk left half of one."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _free_sibling(folder: Path) -> Path:
    number, free = 2, folder
    while free.exists():
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return free
