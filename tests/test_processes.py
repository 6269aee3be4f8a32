"""Two processes on the CPU are one: same losses, same metrics, one precision, and a run may go on with another number of them."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modules.runtime.config.main import ROOT
from tests.runs import BF16, DECODER, RQVAE, SASREC, USERS, interrupt_at, losses, run_sasrec
from tests.runs import RUN as STAGES
from tests.test_ranks_file import check_every_figure

SHORT = {
    "rqvae": [*RQVAE, "iterations=120", "save_model_every=40", "log_every=1", "eval_every=40"],
    "decoder": [*DECODER, "iterations=60", "save_model_every=20", "full_eval_every=30", "partial_eval_every=20", "dropout_p=0.0"],
    "sasrec": [*SASREC, "iterations=60", "save_model_every=20", "full_eval_every=30", "partial_eval_every=20", "dropout_p=0.0"],
}
RUN, SCRIPT = STAGES | {"sasrec": run_sasrec}, {"rqvae": "train_rqvae.py"}
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"],
}  # fmt: skip


def launch(stage: str, data: Path, root: Path, launcher: str, *overrides: str, stop_at: int | None = None, bf16: str | None = None):
    """Starts two processes of a script, or ends them by SIGTERM in the update ``stop_at``; ``bf16`` is as in tests/startup."""
    script = [SCRIPT.get(stage, "train_decoder.py")] if stop_at is None else ["-m", "tests.stop_at", str(stop_at), stage]
    command = [sys.executable, *LAUNCHERS[launcher], *script, f"configs/{stage}_amazon.gin", *places(stage, data, root)]
    return start([*command, *SHORT[stage], *overrides], **({} if bf16 is None else {"TESTS_BF16": bf16}))


def places(stage: str, data: Path, root: Path) -> list[str]:
    """Where a run reads and writes."""
    reads = f"item_embeddings={data}/items.npy" if stage == "rqvae" else f"pretrained_rqvae_path={data}/rqvae"
    return [f"dataset_folder={data}", f"save_dir_root={root}", reads]


def start(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the project's directory, as on a machine without a GPU."""
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    given = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path} | environment
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False, timeout=3600)


@pytest.fixture(scope="module")
def single(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One unbroken run of one process for each stage."""
    folders = {}
    for stage in SHORT:
        folders[stage] = tmp_path_factory.mktemp(stage)
        RUN[stage](trained, f"save_dir_root={folders[stage]}", *SHORT[stage])
    return folders


def apart(one: Path, other: Path) -> float:
    """The largest difference between the losses of two runs at the same step, as a share of the loss."""
    ours, theirs = losses(one / "beauty"), losses(other / "beauty")
    assert ours.keys() == theirs.keys()
    return max(abs(ours[step] - theirs[step]) / abs(ours[step]) for step in ours)


def compare(stage: str, one: Path, other: Path) -> None:
    """Asserts the same losses within fp32 noise, and the same metrics."""
    assert apart(one, other) < 1e-5
    left, right = (json.loads((folder / "beauty" / "metrics.json").read_text()) for folder in (one, other))
    if stage != "rqvae":
        for part in ("validation", "test"):
            assert left[part].keys() == right[part].keys()
            for row in left[part]:
                assert left[part][row]["users"] == right[part][row]["users"] == USERS
                assert left[part][row]["metrics"] == pytest.approx(right[part][row]["metrics"], abs=1.5 / USERS)
        check_every_figure(other / "beauty")
    else:
        assert left["usage"] == right["usage"]
        assert left["reconstruction_loss"] == pytest.approx(right["reconstruction_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("stage", "launcher"), [("rqvae", "torchrun"), ("decoder", "torchrun"), ("decoder", "accelerate"), ("sasrec", "torchrun")]
)
def test_two_processes_give_the_losses_and_metrics_of_one(stage: str, launcher: str, trained: Path, single, tmp_path: Path) -> None:
    done = launch(stage, trained, tmp_path, launcher)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert done.stdout.count("saved    ") == 1
    assert stage == "rqvae" or "find_unused_parameters" not in done.stderr  # it has none to look for
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


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_two_processes_in_bf16_give_the_losses_of_one_within_its_rounding(
    stage: str, trained: Path, single, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTS_BF16", "on")
    RUN[stage](trained, f"save_dir_root={tmp_path}/one", *SHORT[stage], *BF16)
    done = launch(stage, trained, tmp_path / "two", "torchrun", *BF16)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bf16 autocast") == 1
    assert apart(tmp_path / "one", tmp_path / "two") < 0.01
    assert apart(single[stage], tmp_path / "two") > 1e-5


def test_processes_that_differ_in_what_their_cpu_has_all_use_fp32_and_say_so_once(trained: Path, single, tmp_path: Path) -> None:
    done = launch("decoder", trained, tmp_path, "torchrun", *BF16, bf16="first")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("device   ") == done.stdout.count("fp32 (the device of process 1 has no bf16), 2 processes") == 1
    compare("decoder", single["decoder"], tmp_path)


def printed_lines() -> list[str]:
    """The commands of docs/training.md that start several processes on one machine."""
    found = re.findall(r"^ {4}((?:torchrun|accelerate launch) .*?)(?: +#.*)?$", (ROOT / "docs" / "training.md").read_text(), re.MULTILINE)
    return [line for line in found if "HOST" not in line]


def test_the_page_on_training_shows_both_launchers() -> None:
    assert [line.split()[0] for line in printed_lines()] == ["torchrun", "torchrun", "accelerate"]


@pytest.mark.parametrize("line", printed_lines())
def test_the_page_s_lines_work_on_a_machine_without_a_gpu(line: str, trained: Path, tmp_path: Path) -> None:
    program, *words = shlex.split(re.sub(r"(--nproc-per-node|--num_processes) 4", r"\1 2", line))
    # A free port, as the same line may be running beside this test.
    port = {"PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": "localhost:0"} if program == "torchrun" else {}
    words[1:1] = ["--main_process_port", "0"] if program == "accelerate" else []
    tiny = ["iterations=4", "batch_size=32", "beam_size=10", "eval_users=20", "decoder_embed_dim=32", "attn_embed_dim=32", "attn_heads=2"]
    command = [str(Path(sys.executable).parent / program), *words, *places("decoder", trained, tmp_path), *tiny]
    if "synthetic" in line:
        command += ["dataset=%data.processed.RecDataset.AMAZON", "dataset_split=beauty"]
    done = start(command, **port)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^device   CPU, .*, 2 processes$", done.stdout, re.MULTILINE)
    assert done.stdout.count("saved    ") == 1
