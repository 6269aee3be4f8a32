"""Two processes on the CPU are one: same losses, same metrics, and a run may go on with another number of them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modules.runtime.config.main import ROOT
from tests.runs import DECODER, RQVAE, RUN, USERS, interrupt_at, losses

SHORT = {
    "rqvae": [*RQVAE, "iterations=120", "save_model_every=40", "log_every=1", "eval_every=40"],
    "decoder": [*DECODER, "iterations=60", "save_model_every=20", "full_eval_every=30", "partial_eval_every=20", "dropout_p=0.0"],
}
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"],
}  # fmt: skip


def launch(
    stage: str, data: Path, root: Path, launcher: str, *overrides: str, stop_at: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Starts two processes of a script, or ends them by SIGTERM in the update ``stop_at``."""
    given = [f"dataset_folder={data}", f"save_dir_root={root}", *SHORT[stage], *overrides]
    given += [f"item_embeddings={data}/items.npy"] if stage == "rqvae" else [f"pretrained_rqvae_path={data}/rqvae"]
    script = [f"train_{stage}.py"] if stop_at is None else ["tests/stop_at.py", str(stop_at), stage]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *LAUNCHERS[launcher], *script, f"configs/{stage}_amazon.gin", *given]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def single(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One unbroken run of one process for each stage."""
    folders = {}
    for stage in SHORT:
        folders[stage] = tmp_path_factory.mktemp(stage)
        RUN[stage](trained, f"save_dir_root={folders[stage]}", *SHORT[stage])
    return folders


def compare(stage: str, one: Path, other: Path) -> None:
    """Asserts the same losses within fp32 noise, and the same metrics."""
    ours, theirs = losses(one / "beauty"), losses(other / "beauty")
    assert ours.keys() == theirs.keys()
    assert max(abs(ours[step] - theirs[step]) / abs(ours[step]) for step in ours) < 1e-5
    left, right = (json.loads((folder / "beauty" / "metrics.json").read_text()) for folder in (one, other))
    if stage == "decoder":
        for part in ("validation", "test"):
            assert left[part].keys() == right[part].keys()
            for row in left[part]:
                assert left[part][row]["users"] == right[part][row]["users"] == USERS
                assert left[part][row]["metrics"] == pytest.approx(right[part][row]["metrics"], abs=1.5 / USERS)
    else:
        assert left["usage"] == right["usage"]
        assert left["reconstruction_loss"] == pytest.approx(right["reconstruction_loss"], rel=1e-3)


@pytest.mark.parametrize(("stage", "launcher"), [("rqvae", "torchrun"), ("decoder", "torchrun"), ("decoder", "accelerate")])
def test_two_processes_give_the_losses_and_metrics_of_one(stage: str, launcher: str, trained: Path, single, tmp_path: Path) -> None:
    done = launch(stage, trained, tmp_path, launcher)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert done.stdout.count("saved    ") == 1
    compare(stage, single[stage], tmp_path)


def test_what_is_wrong_is_told_once_and_ends_all_processes(trained: Path, single) -> None:
    done = launch("rqvae", trained, single["rqvae"], "torchrun", "seed=7")
    assert done.returncode != 0
    assert done.stderr.count("seed was 0 and is now 7") == 1
    assert "RuntimeError" not in done.stderr


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_a_run_goes_on_from_one_process_to_two_and_back(stage: str, trained: Path, single, tmp_path: Path, capsys) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(20, signal.SIGTERM, patch)
        RUN[stage](trained, f"save_dir_root={tmp_path}", *SHORT[stage], code=128 + signal.SIGTERM)
    done = launch(stage, trained, tmp_path, "torchrun", stop_at=40)
    assert "resumed  from step 21" in done.stdout
    assert "stopped, saved at step 41" in done.stderr
    RUN[stage](trained, f"save_dir_root={tmp_path}", *SHORT[stage])
    assert "resumed  from step 41" in capsys.readouterr().out
    compare(stage, single[stage], tmp_path)
