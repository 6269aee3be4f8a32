"""The shared training loop, on a model of one line: accumulation, fp16's overflow, losses that cease to be finite."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from data.schemas import UserError
from modules.runtime.runs.run import Run
from modules.runtime.training.checkpoint import checkpoints
from modules.runtime.training.device import Placement
from modules.runtime.training.processes import Ranks
from modules.runtime.training.trainer import SMALLEST_SCALE, LossShare, Plan, Trainer

FP32 = Placement(torch.device("cpu"), None, "")
FP16 = Placement(torch.device("cpu"), torch.float16, "")
SETTINGS = {"resume": True, "run_name": None}


def make(folder: Path, placement: Placement = FP32, **changed) -> Trainer:
    plan = Plan(**({"iterations": 8, "gradient_accumulate_every": 1, "learning_rate": 0.1, "factor": lambda step: 1.0, "max_grad_norm": 0.0,
                    "save_model_every": 3, "keep_checkpoints": 2, "seed": 0, "batch_size": 4} | changed))  # fmt: skip
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    run = Run(str(folder), "run", SETTINGS)
    return Trainer(run, model, model, torch.optim.SGD(model.parameters(), lr=0.1), plan, placement, Ranks(), {"best": -1.0})


def share_of(trainer: Trainer, batch: torch.Tensor) -> LossShare:
    loss = trainer.objective(batch).float().square().mean()
    return LossShare(loss, len(batch), {"twice": 2 * loss.detach(), "levels": torch.stack([loss.detach(), 3 * loss.detach()])})


BATCH = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def train(trainer: Trainer, shares) -> None:
    with trainer.running("test") as steps:
        for step in steps:
            trainer.update(step, lambda micro, step=step: shares(trainer, step, micro))


def test_an_accumulated_batch_gives_the_step_of_the_whole_one(tmp_path):
    whole, halves = make(tmp_path / "whole"), make(tmp_path / "halves", gradient_accumulate_every=2)
    train(whole, lambda trainer, step, micro: share_of(trainer, BATCH))
    train(halves, lambda trainer, step, micro: share_of(trainer, BATCH[2 * micro : 2 * micro + 2]))
    torch.testing.assert_close(whole.model.weight, halves.model.weight)
    one, other = whole.means(), halves.means()
    assert one == {name: pytest.approx(value, rel=1e-5) for name, value in other.items()}


def test_losses_and_their_parts_are_means_over_the_steps_since_the_last_line(tmp_path):
    trainer, losses = make(tmp_path, learning_rate=0.01), []

    def shares(trainer, step, micro):
        share = share_of(trainer, BATCH)
        losses.append(share.loss.item())
        return share

    train(trainer, shares)
    means, loss = trainer.means(), sum(losses) / 8
    assert means == {"loss": pytest.approx(loss), "twice": pytest.approx(2 * loss), "levels": pytest.approx([loss, 3 * loss])}


def test_gradients_are_clipped_to_the_norm(tmp_path):
    trainer = make(tmp_path, iterations=1, max_grad_norm=0.01)
    before = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    train(trainer, lambda trainer, step, micro: share_of(trainer, 100 * BATCH))
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_an_fp16_gradient_is_clipped_by_its_own_norm_not_by_the_scaled_one(tmp_path):
    trainer = make(tmp_path, FP16, iterations=1, max_grad_norm=0.01)
    trainer.scaler.scale(torch.ones(()))
    trainer.scaler.update(new_scale=1024.0)
    before = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    train(trainer, lambda trainer, step, micro: share_of(trainer, BATCH))
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_an_fp16_gradient_that_overflows_skips_its_step_and_lowers_the_scale(tmp_path):
    trainer = make(tmp_path, FP16, iterations=2, save_model_every=1, learning_rate=1e-3)
    before = trainer.model.weight.detach().clone()
    trainer.scaler.scale(torch.ones(()))
    scale = trainer.scaler.get_scale()
    with trainer.running("test") as steps:
        next(steps)
        trainer.update(0, lambda micro: share_of(trainer, 50 * BATCH))  # its scaled gradient is beyond 65504, fp16's largest number
        assert torch.equal(trainer.model.weight, before)
        assert trainer.scaler.get_scale() == scale / 2
        next(steps)
        trainer.scaler.update(new_scale=8.0)
        trainer.update(1, lambda micro: share_of(trainer, BATCH))
    assert not torch.equal(trainer.model.weight, before)
    assert trainer.model.weight.isfinite().all()
    trainer.run.close()
    assert make(tmp_path, FP16, iterations=2, save_model_every=1, learning_rate=1e-3).scaler.state_dict()["scale"] == 8.0


def test_fp16_that_overflows_at_every_scale_ends_with_a_sentence(tmp_path):
    trainer = make(tmp_path, FP16, iterations=60, save_model_every=60)
    trainer.scaler.scale(torch.ones(()))

    def shares(trainer, step, micro):
        trainer.scaler.update(new_scale=SMALLEST_SCALE / 2)
        return share_of(trainer, BATCH)

    with pytest.raises(UserError, match=r"overflow.*mixed_precision_type = 'bf16'"):
        train(trainer, shares)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_step_and_the_checkpoint_before(tmp_path, bad):
    trainer = make(tmp_path)
    with pytest.raises(UserError, match=r"not finite at step 4 \(learning rate 0\.1\).*checkpoint-00000003"):
        train(trainer, lambda trainer, step, micro: share_of(trainer, bad * BATCH if step == 4 else BATCH))
    assert [path.name for path in checkpoints(trainer.run.folder)] == ["checkpoint-00000003"]


@pytest.mark.parametrize("placement", [FP32, FP16])
def test_a_loss_that_is_not_finite_in_the_first_of_two_batches_is_noticed_too(tmp_path, placement):
    trainer = make(tmp_path, placement, gradient_accumulate_every=2)
    with pytest.raises(UserError, match="not finite at step 1"):
        train(trainer, lambda trainer, step, micro: share_of(trainer, math.nan * BATCH if (step, micro) == (1, 0) else BATCH))


def test_exhausted_memory_in_a_step_names_the_batch_size(tmp_path):
    def exhaust(trainer, step, micro):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(UserError, match=r"lower train\.batch_size, and raise train\.gradient_accumulate_every"):
        train(make(tmp_path), exhaust)


def test_a_run_goes_on_in_the_precision_that_it_began_with_whatever_this_cpu_has(tmp_path):
    bf16 = Placement(torch.device("cpu"), torch.bfloat16, "")
    first = make(tmp_path, bf16)
    train(first, lambda trainer, step, micro: share_of(trainer, BATCH))
    first.run.close()
    assert make(tmp_path, FP32).placement.autocast_dtype == torch.bfloat16


def test_a_run_does_not_go_on_with_batches_of_another_size(tmp_path):
    first = make(tmp_path)
    train(first, lambda trainer, step, micro: share_of(trainer, BATCH))
    first.run.close()
    with pytest.raises(UserError, match=r"batches of 4 over all processes, which would now be 8"):
        make(tmp_path, batch_size=8)
