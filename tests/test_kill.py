"""A script killed with SIGKILL at forty moments: the next start goes on or begins anew, and ends with the unbroken run's figures."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRIALS = 40
STAGES = ("rqvae", "decoder")


@pytest.fixture(scope="module")
def killers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The trials of both scripts, side by side."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    started = {}
    for stage in STAGES:
        command = [sys.executable, "-m", "tests.kill", stage, str(TRIALS), str(tmp_path_factory.mktemp(stage))]
        started[stage] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield started
    for process in started.values():
        process.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks of one process, which this system does not have")
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_goes_on_to_the_same_figures(stage: str, killers: dict[str, subprocess.Popen[str]]) -> None:
    output, errors = killers[stage].communicate(timeout=3600)
    assert killers[stage].returncode == 0, errors
    trials = [json.loads(line) for line in output.splitlines()]
    assert len(trials) == TRIALS
    assert [trial for trial in trials if "at_event" in trial and not trial["killed"]] == []
    assert [trial["had"] for trial in trials[:2]] == ["nothing", "checkpoint"]  # where the kill was placed
    assert [trial for trial in trials if trial["second"] != 0 or not trial["same"] or trial["left"]] == []
