"""Freed memory stays with the process: counted in pages that the system had to clear, not in time."""

import os
import subprocess
import sys

import pytest

from modules.runtime import heap

PROGRAM = """
import resource, sys, torch
from modules.runtime.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
def step():
    kept = [torch.ones(1 << 21) for _ in range(8)]  # 8 x 8 MiB
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    returning = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}  # where glibc begins; it adapts, or not
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, env=os.environ | returning)
    return int(done.stdout)


def test_memory_that_a_step_frees_serves_the_next_one():
    if not heap.keep_freed_memory():
        pytest.skip("mallopt is glibc's")
    assert faults("keep") < 1_000 < 50_000 < faults("plain")  # 64 MiB are 16,384 pages of 4 KiB


def test_elsewhere_than_on_linux_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not heap.keep_freed_memory()
