"""Runs that survive: interrupted anywhere and gone on with, they equal the unbroken run line by line of the log."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modules.rqvae import RqVae
from modules.runtime.config.main import ROOT, run_script
from modules.runtime.runs.run import Run
from modules.runtime.training import trainer
from tests import runs
from tests.runs import RQVAE, RUN, interrupt_at, lines, losses, run_decoder

SHORT = ["iterations=100", "save_model_every=15"]
STEPS = {"rqvae": [0, 1, 79, 80, 81, 99, 119, 149, 200, 249], "decoder": [0, 5, 49, 50, 99, 100, 101, 133, 199, 250, 299]}
"""Updates after which a signal comes: the first and the last, those around k-means, log lines, validations and checkpoints."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes as long as such a run; what is at stake here is in the other files."""
    monkeypatch.setattr(Run, "picture", lambda self, name, figure: None)


def same_run(first: Path, second: Path) -> None:
    """Equal weights, logs and metrics, but for the clock."""
    assert lines(first) == lines(second)
    ours, theirs = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    left, right = (json.loads((folder / "metrics.json").read_text()) for folder in (first, second))
    for clock in ("seconds", "training_seconds"):
        left.pop(clock, None), right.pop(clock, None)
    assert left == right


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_a_run_interrupted_at_many_steps_equals_an_unbroken_one(stage: str, trained: Path, tmp_path: Path, capfd) -> None:
    for turn, step in enumerate(STEPS[stage]):
        number = (signal.SIGINT, signal.SIGTERM)[turn % 2]
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(step, number, patch)
            RUN[stage](trained, f"save_dir_root={tmp_path}", code=128 + number)
        assert f"stopped, saved at step {step + 1}" in capfd.readouterr().err
    RUN[stage](trained, f"save_dir_root={tmp_path}")
    same_run(trained / stage / "beauty", tmp_path / "beauty")


@pytest.mark.parametrize("pause", [2, 9, 12])
def test_an_evaluation_cut_short_is_done_again_and_the_run_equals_an_unbroken_one(
    pause: int, trained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    searches = 0
    search = trainer.Trainer.interruption_point

    def signal_once(self) -> None:
        nonlocal searches
        searches += 1
        if searches == pause:
            os.kill(os.getpid(), signal.SIGTERM)
        search(self)

    monkeypatch.setattr(trainer.Trainer, "interruption_point", signal_once)
    run_decoder(trained, f"save_dir_root={tmp_path}", code=128 + signal.SIGTERM)
    assert f"saved at step {50 if pause < 8 else 100}" in capsys.readouterr().err
    run_decoder(trained, f"save_dir_root={tmp_path}")
    same_run(trained / "decoder" / "beauty", tmp_path / "beauty")


def test_patience_survives_an_interruption(trained: Path, tmp_path: Path, monkeypatch) -> None:
    settings = ["learning_rate=1e-9", "full_eval_every=20", "patience=3", "iterations=400"]
    run_decoder(trained, f"save_dir_root={tmp_path}/whole", *settings)
    with monkeypatch.context() as patch:
        interrupt_at(47, signal.SIGINT, patch)
        run_decoder(trained, f"save_dir_root={tmp_path}/broken", *settings, code=130)
    run_decoder(trained, f"save_dir_root={tmp_path}/broken", *settings)
    assert max(line["step"] for line in lines(tmp_path / "whole" / "beauty")) < 400
    same_run(tmp_path / "whole" / "beauty", tmp_path / "broken" / "beauty")


def test_a_run_killed_in_its_final_report_neither_trains_again_nor_changes_its_figures(trained: Path, tmp_path: Path, monkeypatch) -> None:
    def kill(self, metrics) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", kill)
        run_decoder(trained, f"save_dir_root={tmp_path}", code=130)
    updates: list[int] = []
    update = trainer.seed_step
    monkeypatch.setattr(trainer, "seed_step", lambda seed, step, rank: updates.append(step) or update(seed, step, rank))
    run_decoder(trained, f"save_dir_root={tmp_path}")
    assert updates == []
    same_run(trained / "decoder" / "beauty", tmp_path / "beauty")


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_the_run_equals_an_unbroken_one(
    stage: str, trained: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(190, signal.SIGINT, patch)
        RUN[stage](trained, f"save_dir_root={tmp_path}", code=130)
    weights = tmp_path / "beauty" / "checkpoint-00000191" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    RUN[stage](trained, f"save_dir_root={tmp_path}")
    assert "checkpoint-00000191 is damaged" in caplog.text
    same_run(trained / stage / "beauty", tmp_path / "beauty")


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_a_run_directory_s_own_config_goes_on_with_the_run(stage: str, trained: Path, tmp_path: Path, monkeypatch) -> None:
    script = {"rqvae": runs.train_rqvae, "decoder": runs.train_decoder}[stage]
    RUN[stage](trained, f"save_dir_root={tmp_path}")
    with monkeypatch.context() as patch:
        interrupt_at(150, signal.SIGINT, patch)
        RUN[stage](trained, f"save_dir_root={tmp_path}", "resume=False", code=130)
    assert run_script(script.train, "", [str(tmp_path / "beauty-2" / "config.gin")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beauty", "beauty-2"]
    same_run(tmp_path / "beauty", tmp_path / "beauty-2")


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_a_run_directory_that_was_moved_goes_on_where_it_is_now(stage: str, trained: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(150, signal.SIGINT, patch)
        RUN[stage](trained, f"save_dir_root={tmp_path}/before", code=130)
    (tmp_path / "before").rename(tmp_path / "after")
    script = {"rqvae": runs.train_rqvae, "decoder": runs.train_decoder}[stage]
    assert run_script(script.train, "", [str(tmp_path / "after" / "beauty" / "config.gin")]) == 0
    assert not (tmp_path / "before").exists()
    same_run(trained / stage / "beauty", tmp_path / "after" / "beauty")


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_a_trailing_slash_means_the_same_directory(stage: str, trained: Path, capsys) -> None:
    RUN[stage](trained, f"save_dir_root={trained}/{stage}/", f"dataset_folder={trained}/")
    assert "is finished" in capsys.readouterr().out


def cut_a_log_line(run: Path) -> None:
    with open(run / "log.jsonl", "a") as file:
        file.write('{"step": 151, "validation": {"recall@10": 0.5}')


DAMAGE = {
    "a log line cut behind a brace": cut_a_log_line,
    "an empty metrics.json": lambda run: (run / "metrics.json").write_text(""),
    "no tokenizer.json": lambda run: (run / "tokenizer.json").unlink(missing_ok=True),
    "a copy of a checkpoint": lambda run: shutil.copytree(run / "checkpoint-00000151", run / "checkpoint-backup"),
    "half a checkpoint": lambda run: (run / "checkpoint-00000200.tmp").mkdir(),
    "half a tracker.json": lambda run: (run / "tracker.json").write_text('{"run_'),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_a_run_directory_that_somebody_tidied_goes_on(stage: str, damage: str, trained: Path, interrupted: dict, tmp_path: Path) -> None:
    run = tmp_path / "beauty"
    shutil.copytree(interrupted[stage], run)
    DAMAGE[damage](run)
    RUN[stage](trained, f"save_dir_root={tmp_path}")
    same_run(trained / stage / "beauty", run)
    assert not list(run.glob("*.tmp"))


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_a_begun_run_without_its_config_is_not_gone_on_with(stage: str, trained: Path, interrupted: dict, tmp_path: Path, capsys) -> None:
    shutil.copytree(interrupted[stage], tmp_path / "beauty")
    (tmp_path / "beauty" / "config.gin").unlink()
    RUN[stage](trained, f"save_dir_root={tmp_path}", code=2)
    assert "config.gin is gone" in capsys.readouterr().err


@pytest.fixture(scope="module")
def interrupted(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each script, interrupted behind step 150."""
    folder = tmp_path_factory.mktemp("interrupted")
    for stage, run in RUN.items():
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(150, signal.SIGINT, patch)
            run(trained, f"save_dir_root={folder}/{stage}", code=130)
    return {stage: folder / stage / "beauty" for stage in RUN}


def test_a_signal_in_the_last_look_is_not_forgotten(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    look = runs.train_rqvae.look

    def look_and_signal(model, items, held_out, trainer, run, step, warned) -> None:
        look(model, items, held_out, trainer, run, step, warned)
        if step == 250:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(runs.train_rqvae, "look", look_and_signal)
        RUN["rqvae"](trained, f"save_dir_root={tmp_path}", code=130)
    assert "saved at step 250" in capsys.readouterr().err
    RUN["rqvae"](trained, f"save_dir_root={tmp_path}")
    same_run(trained / "rqvae" / "beauty", tmp_path / "beauty")


@pytest.mark.parametrize("where", ["kmeans", "finish"])
def test_memory_that_ends_outside_a_step_is_told_in_a_sentence_too(where: str, trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def exhaust(*arguments: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    if where == "kmeans":
        monkeypatch.setattr(RqVae, "kmeans_init", exhaust)
    else:
        monkeypatch.setattr(runs.train_rqvae, "mean_reconstruction", exhaust)
    RUN["rqvae"](trained, *SHORT, f"save_dir_root={tmp_path}", code=2)
    assert "error: out of memory" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 is for CUDA, and there is none")
@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_fp16_on_cuda_trains_and_goes_on(stage: str, trained: Path, tmp_path: Path, monkeypatch) -> None:
    settings = ["device=cuda", "mixed_precision_type=fp16", *SHORT]
    RUN[stage](trained, *settings, f"save_dir_root={tmp_path}/whole")
    with monkeypatch.context() as patch:
        interrupt_at(60, signal.SIGINT, patch)
        RUN[stage](trained, *settings, f"save_dir_root={tmp_path}/broken", code=130)
    RUN[stage](trained, *settings, f"save_dir_root={tmp_path}/broken")
    whole, broken = (losses(tmp_path / name / "beauty") for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert all(broken[step] == pytest.approx(whole[step], rel=0.02) for step in whole)


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_an_interrupted_run_is_one_tracked_run(stage: str, trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("wandb", reason="wandb is optional")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked = [f"save_dir_root={tmp_path}", "wandb_logging=True"]
    with monkeypatch.context() as patch:
        interrupt_at(150, signal.SIGINT, patch)
        RUN[stage](trained, *tracked, code=130)
    kept = json.loads((tmp_path / "beauty" / "tracker.json").read_text())["run_id"]
    RUN[stage](trained, *tracked)
    runs = [path.name.rpartition("-")[2] for path in (tmp_path / "beauty" / "wandb").glob("offline-run-*")]
    assert set(runs) == {kept}
    assert capsys.readouterr().out.count("W&B offline") == 2
    same_run(trained / stage / "beauty", tmp_path / "beauty")


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_a_second_run_in_the_same_directory_is_refused_while_the_first_trains(
    stage: str, trained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    seed_step = trainer.seed_step

    def start_another(seed: int, step: int, rank: int) -> None:
        if step == 5:
            monkeypatch.setattr(trainer, "seed_step", seed_step)
            RUN[stage](trained, f"save_dir_root={tmp_path}", code=2)
            assert "another process is training in" in capsys.readouterr().err
        seed_step(seed, step, rank)

    monkeypatch.setattr(trainer, "seed_step", start_another)
    RUN[stage](trained, f"save_dir_root={tmp_path}")
    same_run(trained / stage / "beauty", tmp_path / "beauty")


@pytest.fixture(scope="module")
def short(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short unbroken run of each script."""
    folder = tmp_path_factory.mktemp("short")
    for stage, run in RUN.items():
        run(trained, *SHORT, f"save_dir_root={folder}/{stage}")
    return {stage: folder / stage / "beauty" for stage in RUN}


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
@pytest.mark.parametrize("write", [0, 4, 23])
def test_a_full_disk_is_told_in_one_sentence_and_the_run_goes_on_when_there_is_space(
    stage: str, write: int, trained: Path, short: dict[str, Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    writes, fsync = 0, os.fsync

    def fill(descriptor: int) -> None:
        nonlocal writes
        writes += 1
        if writes > write:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill)
        RUN[stage](trained, *SHORT, f"save_dir_root={tmp_path}", code=2)
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: cannot write")
    assert "No space left on device" in told
    assert not list(tmp_path.rglob("*.tmp"))
    RUN[stage](trained, *SHORT, f"save_dir_root={tmp_path}")
    same_run(short[stage], tmp_path / "beauty")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is where not even the superuser can make a directory")
@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_a_place_that_cannot_be_written_to_is_told_in_one_sentence(stage: str, trained: Path, capsys) -> None:
    RUN[stage](trained, "save_dir_root=/proc/nowhere", code=2)
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: cannot write the run directory /proc/nowhere/beauty")
    assert told.endswith("set train.save_dir_root")
    assert "\n" not in told


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
def test_a_log_that_cannot_grow_is_told_in_one_sentence(trained: Path, tmp_path: Path) -> None:
    settings = [f"dataset_folder={trained}", f"item_embeddings={trained}/items.npy", f"save_dir_root={tmp_path}", *RQVAE, "log_every=1"]
    code = (
        "import resource, sys, train_rqvae; from modules.runtime.config.main import run_script\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\n"
        "sys.exit(run_script(train_rqvae.train, '', sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "configs/rqvae_amazon.gin", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: cannot write" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("stage", "setting"), [("rqvae", "learning_rate=1e30"), ("decoder", "learning_rate=1e30")])
def test_a_loss_that_is_not_finite_names_step_rate_and_checkpoint(stage: str, setting: str, trained: Path, tmp_path: Path, capsys) -> None:
    extra = ["max_grad_norm=0.0", "warmup_steps=100", "save_model_every=1", "autoencoder_steps=0"][: 4 if stage == "rqvae" else 3]
    RUN[stage](trained, setting, *extra, f"save_dir_root={tmp_path}", code=2)
    error = capsys.readouterr().err
    assert "not finite at step" in error
    assert "learning rate" in error
    assert "checkpoint-0000" in error
    newest = sorted((tmp_path / "beauty").glob("checkpoint-*"))[-1]
    assert all(tensor.isfinite().all() for tensor in load_file(newest / "model.safetensors").values())
