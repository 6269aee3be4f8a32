"""Checkpoints: a resumed training is the unbroken one, loss by loss; the newest two stay."""

import pytest
import torch
from torch import nn

from data.schemas import UserError
from modules.runtime.checkpoint import checkpoints, load_weights, resume_from, save_checkpoint, save_weights


def toy() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> list[float]:
    losses = []
    for _ in range(number):
        loss = model(torch.randn(16, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_resumed_training_equals_the_unbroken_one_loss_by_loss(tmp_path):
    torch.manual_seed(0)
    model, optimizer = toy()
    steps(model, optimizer, 5)
    save_checkpoint(tmp_path, 5, model, optimizer, {"best": 0.25})
    unbroken = steps(model, optimizer, 10)

    torch.manual_seed(99)
    other, other_optimizer = toy()
    resumed = resume_from(tmp_path, other, other_optimizer)
    assert (resumed.step, resumed.state) == (5, {"best": 0.25})
    assert steps(other, other_optimizer, 10) == unbroken
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), other.parameters()))


def test_the_newest_two_stay(tmp_path):
    model, optimizer = toy()
    for step in (1, 5, 20, 100):
        save_checkpoint(tmp_path, step, model, optimizer, {})
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-00000020", "checkpoint-00000100"]
    assert resume_from(tmp_path, model, optimizer).step == 100
    assert len(list(tmp_path.iterdir())) == 2


def test_saving_a_step_again_replaces_it(tmp_path):
    model, optimizer = toy()
    save_checkpoint(tmp_path, 3, model, optimizer, {"best": 1})
    save_checkpoint(tmp_path, 3, model, optimizer, {"best": 2})
    assert resume_from(tmp_path, model, optimizer).state == {"best": 2}


def test_what_a_killed_save_left_is_ignored_and_overwritten(tmp_path):
    model, optimizer = toy()
    leftover = tmp_path / "checkpoint-00000009.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert resume_from(tmp_path, model, optimizer) is None
    save_checkpoint(tmp_path, 4, model, optimizer, {})
    assert resume_from(tmp_path, model, optimizer).step == 4
    save_checkpoint(tmp_path, 9, model, optimizer, {})
    assert resume_from(tmp_path, model, optimizer).step == 9
    assert not leftover.exists()


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
