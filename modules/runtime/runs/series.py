"""Several runs, each as a process of its own: a script, a config and overrides; finished ones are not run again, unfinished ones go on.

What a run prints is appended to log.txt beside its directory, and spent.json there adds up what it has cost over all its starts.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from data.io.files import write_whole
from data.schemas import UserError
from modules.runtime.config.gin import ROOT
from modules.runtime.runs.run import METRICS
from modules.runtime.training.signals import Interrupted

LOG, SPENT = "log.txt", "spent.json"


class Job(NamedTuple):
    """A run to be had."""

    name: str  # for people
    script: str  # of the project
    config: str
    overrides: tuple[str, ...]
    root: Path  # its save_dir_root
    split: str  # the run directory is root / split
    figures: tuple[str, ...] = ()  # what its metrics must hold for it to be finished

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.root / self.split

    @property
    def finished(self) -> bool:
        """Are all its figures there?"""
        try:
            return set(self.figures) <= json.loads((self.folder / METRICS).read_text()).keys()
        except (OSError, ValueError, AttributeError):
            return False

    def command(self) -> list[str]:
        return [sys.executable, str(ROOT / self.script), self.config, *self.overrides, f"save_dir_root={self.root}"]


class Spent(NamedTuple):
    """What a run has cost so far; starts of a finished run are not counted."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    starts: int = 0


def spent_on(root: Path) -> Spent:
    """What spent.json beside a run says; nothing where there is none."""
    try:
        return Spent(**json.loads((root / SPENT).read_text()))
    except (OSError, ValueError, TypeError):
        return Spent()


def run_all(jobs: Sequence[Job], at_once: int = 1, say: Callable[[str], None] = print) -> None:
    """Runs all jobs, ``at_once`` at a time; after one that failed no other is started.

    A finished run is started too, because it compares its config with this one; that takes seconds and is not counted.

    Raises:
        UserError: what the first that failed said.
        KeyboardInterrupt: a signal came; the runs were told, and saved what they had.
    """
    children = _Children(threads=max(1, (os.cpu_count() or 1) // at_once) if at_once > 1 else None)
    pool = ThreadPoolExecutor(at_once)
    try:
        for future in as_completed([pool.submit(children.run, job, say) for job in jobs]):
            future.result()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            children.stop(signal.SIGTERM)
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


class _Children:
    """The processes that are running; those of a terminal's Ctrl-C hear it once, from here."""

    def __init__(self, threads: int | None) -> None:
        self.pids: set[int] = set()
        self.stopping = False
        self._lock = threading.Lock()
        self.environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))})

    def run(self, job: Job, say: Callable[[str], None]) -> None:
        finished = job.finished
        job.root.mkdir(parents=True, exist_ok=True)
        begin, log = time.perf_counter(), job.root / LOG
        with log.open("ab") as file:
            start = file.tell()
            with self._lock:
                if self.stopping:
                    return
                child = subprocess.Popen(job.command(), stdout=file, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True)
                self.pids.add(child.pid)
            if not finished:
                say(f"{job.name}: {'goes on' if job.folder.exists() else 'runs'}, see {log}")
            _, status, usage = os.wait4(child.pid, 0)
            with self._lock:
                self.pids.discard(child.pid)
            child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begin
        if not finished:
            before = spent_on(job.root)
            cpu = usage.ru_utime + usage.ru_stime
            now = Spent(round(before.wall_seconds + seconds, 1), round(before.cpu_seconds + cpu, 1), before.starts + 1)
            write_whole(job.root / SPENT, json.dumps(now._asdict()))
        if child.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise Interrupted(child.returncode - 128)
        if child.returncode:
            raise UserError(f"{job.name} did not end well: {_last_words(log, start)}; all that it printed is in {log}")
        say(f"{job.name}: {'was finished' if finished else f'finished in {seconds:.0f} s'}")

    def stop(self, number: int) -> None:
        """Tells all that run, and starts no more."""
        with self._lock:
            self.stopping = True
            for pid in self.pids:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, number)


def precision_of(job: Job) -> str | None:
    """fp32, bf16 or fp16, as the run said at its last start; None if it said nothing."""
    said = re.findall(r"^device .*?\b(fp32|bf16|fp16)\b", (job.root / LOG).read_text(errors="replace"), re.MULTILINE)
    return said[-1] if said else None


def _last_words(log: Path, start: int) -> str:
    """The error that a process printed last, else its last line."""
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it printed nothing"])[-1]
