"""Honest timing on a noisy machine: contestants in turn, medians, and what the machine is.

Two clocks: the CPU time of this process with one thread, which other processes hardly disturb, and the wall time with all threads.
On CUDA there is one clock, the wall time of synchronised calls.
"""

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from modules.runtime.runs.run import environment

RESULTS = Path(__file__).parent / "results"
Job = Callable[[], object]


def medians(jobs: Mapping[str, Job], rounds: int, threads: int, clock: Callable[[], float], warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each job; every round runs all of them once, so that a slow minute slows all."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for job in list(jobs.values()) * warm_up:
            job()
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(rounds):
            for name, job in jobs.items():
                start = clock()
                job()
                seconds[name].append(clock() - start)
    finally:
        torch.set_num_threads(before)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare(jobs: Mapping[str, Job], rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Median seconds of each job under each clock that the device has."""
    if device.type == "cuda":

        def wall() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return {"wall": medians(jobs, rounds, torch.get_num_threads(), wall, warm_up=3)}
    return {
        "cpu, 1 thread": medians(jobs, rounds, 1, time.process_time),
        "wall, 2 threads": medians(jobs, rounds, 2, time.perf_counter, warm_up=0),
    }


def save(name: str, result: Mapping[str, object]) -> Path:
    """Writes a result with the machine's description; of absolute paths in its command the last part."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {key: value for key, value in environment().items() if key != "uncommitted_changes"}
    machine["command"] = re.sub(r"(?<=\s)/\S*/", "", str(machine["command"]))
    path.write_text(json.dumps({"machine": machine, **result}, indent=1) + "\n")
    return path
