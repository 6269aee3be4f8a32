"""A run directory: what ran (config.gin, environment.json), how it went (log.jsonl), what came out (metrics.json and the weights)."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from data.schemas import UserError
from modules.runtime.config import ROOT, config_text

NOT_COMPARED = {"resume", "device", "save_model_every", "force_dataset_process", "allow_collapse"}
"""Parameters that may differ between a run and its continuation."""


class Run:
    """A run's directory and its rerun rule: unfinished goes on, finished says so, another config is refused.

    Args:
        folder: the directory; made if absent.
        resolved: the script's parameters.

    Raises:
        UserError: the directory holds a run with another config, or cannot be written.
    """

    def __init__(self, folder: Path, resolved: Mapping[str, object]) -> None:
        text = config_text(dict(resolved))
        if not resolved["resume"]:
            folder = _free_sibling(folder)
        self.folder = folder
        config = folder / "config.gin"
        try:
            if config.exists():
                differing = _differing(config.read_text(), text)
                if differing:
                    raise UserError(
                        f"{folder} holds a run with another config: {'; '.join(differing)}; "
                        "give this one another train.save_dir_root, or train.resume = False for a directory beside it"
                    )
            if self.finished:  # its files say what ran then, not now
                return
            folder.mkdir(parents=True, exist_ok=True)
            write_text(config, text)
            write_text(folder / "environment.json", json.dumps(environment(), indent=1))
        except OSError as error:
            raise UserError(f"cannot write the run directory {folder}: {error.strerror}; set train.save_dir_root") from error

    @property
    def finished(self) -> bool:
        """Did the run reach its end? Its metrics.json is written last."""
        return (self.folder / "metrics.json").exists()

    def log(self, **figures: object) -> None:
        """Appends a line to log.jsonl."""
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(figures) + "\n")

    def cut_log(self, step: int) -> None:
        """Drops the lines after ``step`` when a run goes on from an earlier checkpoint, so that no step stands there twice."""
        path = self.folder / "log.jsonl"
        if path.exists():
            whole = [line for line in path.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
            kept = [line for line in whole if json.loads(line).get("step", 0) <= step]
            write_text(path, "".join(line + "\n" for line in kept))

    def finish(self, metrics: Mapping[str, object]) -> None:
        """Writes metrics.json, which marks the run as finished."""
        write_text(self.folder / "metrics.json", json.dumps(metrics, indent=1))


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def environment() -> dict[str, object]:
    """What a reader needs to judge a figure: commit, command, versions, machine."""
    commit = _git("rev-parse", "HEAD")
    return {
        "commit": commit,
        "uncommitted_changes": None if commit is None else _git("status", "--porcelain") is not None,
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


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


def _differing(old: str, new: str) -> list[str]:
    def lines(text: str) -> dict[str, str]:
        pairs = (line.partition(" = ") for line in text.splitlines() if line.startswith("train."))
        return {name.removeprefix("train."): value for name, _, value in pairs if name.removeprefix("train.") not in NOT_COMPARED}

    before, now = lines(old), lines(new)
    names = sorted(before.keys() | now.keys())
    return [f"{name} was {before.get(name)} and is now {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def _free_sibling(folder: Path) -> Path:
    number, free = 2, folder
    while free.exists():
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return free
