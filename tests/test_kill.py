"""A script killed with SIGKILL at forty random moments: the next start goes on or begins anew, and ends with the unbroken run's figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRIALS = 40


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks of one process, which this system does not have")
@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_a_killed_run_goes_on_to_the_same_figures(stage: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.kill", stage, str(TRIALS), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == TRIALS
    assert sum(trial["killed"] for trial in trials) >= 0.9 * TRIALS
    assert {trial["had"] for trial in trials} >= {"start", "training"}
    assert [trial for trial in trials if trial["second"] != 0 or not trial["same"] or trial["left"]] == []
