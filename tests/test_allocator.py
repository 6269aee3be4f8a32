"""Freed memory stays with the process: counted in pages that the system had to clear, not in time."""

import subprocess
import sys

import pytest

from modules.runtime.training import allocator as heap

PROGRAM = """
import ctypes, resource, sys, torch
from modules.runtime.training.allocator import MMAP_THRESHOLD, TRIM_THRESHOLD, keep_freed_memory
for parameter in (TRIM_THRESHOLD, MMAP_THRESHOLD):
    ctypes.CDLL(None).mallopt(parameter, 131072)  # where glibc begins; it adapts, or not
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
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_that_a_step_frees_serves_the_next_one():
    if not heap.keep_freed_memory():
        pytest.skip("mallopt is glibc's")
    assert 20 * faults("keep") < faults("plain")


@pytest.mark.parametrize(("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=1")])
def test_what_the_user_set_stays(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not heap.keep_freed_memory()


def test_elsewhere_than_on_linux_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not heap.keep_freed_memory()
