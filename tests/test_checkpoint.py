"""Checkpoints: whole or absent, the newest stay, damage is noticed."""

import errno
import os

import pytest
import torch
from torch import nn

from data.schemas import UserError
from modules.runtime.training.checkpoint import (
    checkpoints,
    load_weights,
    restore_best,
    resume_from,
    save_checkpoint,
    save_weights,
    set_damaged_aside,
)


def toy() -> tuple[nn.Module, torch.optim.Optimizer, torch.amp.GradScaler]:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.05), torch.amp.GradScaler("cpu", init_scale=64.0)


def save(run, step, parts, state=None, keep=2):
    return save_checkpoint(run, step, *parts, {"script": state or {}}, keep)


def test_weights_optimizer_scaler_and_state_come_back(tmp_path):
    model, optimizer, scaler = toy()
    scaler.scale(model(torch.randn(16, 4)).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update(new_scale=32.0)
    save(tmp_path, 5, (model, optimizer, scaler), {"best": 0.25})
    other, other_optimizer, other_scaler = toy()
    other_scaler.scale(torch.ones(()))  # a scaler is set up by its first use
    resumed = resume_from(tmp_path, other, other_optimizer, other_scaler)
    assert (resumed.step, resumed.state) == (5, {"script": {"best": 0.25}})
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), other.parameters()))
    ours, theirs = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert all(torch.equal(ours[index][name], theirs[index][name]) for index in ours for name in ("exp_avg", "exp_avg_sq", "step"))
    assert other_scaler.get_scale() == 32.0


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay(tmp_path, keep):
    parts = toy()
    for step in (1, 5, 20, 100):
        save(tmp_path, step, parts, keep=keep)
    assert [int(path.name[-8:]) for path in checkpoints(tmp_path)] == [1, 5, 20, 100][-keep:]
    assert resume_from(tmp_path, *parts).step == 100
    assert len(list(tmp_path.iterdir())) == keep


def test_saving_a_step_again_replaces_it(tmp_path):
    parts = toy()
    save(tmp_path, 3, parts, {"best": 1})
    save(tmp_path, 3, parts, {"best": 2})
    assert resume_from(tmp_path, *parts).state == {"script": {"best": 2}}


def test_what_a_killed_save_left_is_ignored_and_overwritten(tmp_path):
    parts = toy()
    leftover = tmp_path / "checkpoint-00000009.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert resume_from(tmp_path, *parts) is None
    save(tmp_path, 4, parts)
    assert resume_from(tmp_path, *parts).step == 4
    save(tmp_path, 9, parts)
    assert resume_from(tmp_path, *parts).step == 9
    assert not leftover.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json", "checksums.json", "best.safetensors"])
def test_a_flipped_byte_means_that_the_previous_checkpoint_is_used_and_that_is_said(tmp_path, name, caplog):
    parts = toy()
    save_weights(parts[0], tmp_path / "model.safetensors")
    save(tmp_path, 4, parts)
    newest = save(tmp_path, 9, parts)
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / name).write_bytes(content)
    set_damaged_aside(tmp_path)
    assert resume_from(tmp_path, *parts).step == 4
    assert "checkpoint-00000009 is damaged" in caplog.text
    assert "going on from checkpoint-00000004" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json", "checksums.json"])
def test_a_checkpoint_without_one_of_its_files_is_passed_over(tmp_path, name, caplog):
    parts = toy()
    newest = save(tmp_path, 9, parts)
    (newest / name).unlink()
    set_damaged_aside(tmp_path)
    assert resume_from(tmp_path, *parts) is None
    assert name in caplog.text
    assert "starting anew" in caplog.text


def test_a_damaged_checkpoint_does_not_push_out_good_ones(tmp_path):
    parts = toy()
    newest = save(tmp_path, 9, parts)
    (newest / "state.json").write_text("{}")
    set_damaged_aside(tmp_path)
    for step in (2, 4):
        save(tmp_path, step, parts, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-00000004"]
    assert (tmp_path / "damaged-checkpoint-00000009").is_dir()


def test_a_directory_of_the_users_own_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoint-backup").mkdir()
    assert checkpoints(tmp_path) == []


def test_the_best_weights_are_those_of_the_checkpoint_that_a_run_goes_on_from(tmp_path):
    parts, best = toy(), tmp_path / "model.safetensors"
    first = save(tmp_path, 1, parts)
    save_weights(parts[0], best)
    second = save(tmp_path, 2, parts)
    kept = best.read_bytes()
    nn.init.zeros_(parts[0][0].weight)
    save_weights(parts[0], best)  # a later validation, which no checkpoint knows of
    restore_best(tmp_path, second)
    assert best.read_bytes() == kept
    restore_best(tmp_path, first)
    assert not best.exists()


def test_a_write_that_fails_leaves_the_checkpoint_before_and_no_part_of_the_new_one(tmp_path, monkeypatch):
    parts = toy()
    save(tmp_path, 4, parts)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        save(tmp_path, 9, parts)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000004"]


def test_weights_come_back_bit_for_bit(tmp_path):
    model, other = toy()[0], toy()[0]
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.state_dict().values(), other.state_dict().values()))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_absent_damaged_and_unfitting_weights_are_user_errors(tmp_path):
    model, path = toy()[0], tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no weights"):
        load_weights(model, path)
    save_weights(model, path)
    with pytest.raises(UserError, match="do not fit"):
        load_weights(nn.Linear(2, 2), path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="do not fit"):
        load_weights(model, path)
