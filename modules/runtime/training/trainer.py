"""The training loop that both scripts share: what a step is, and what must survive it.

    with trainer.running("decoder") as steps:
        for step in steps:                    # updates done so far; a resumed run begins where it stopped
            if trainer.due(step, log_every):  # log, validate: the weights are those after `step` updates
                ...
            trainer.update(step, losses)      # one optimizer step, and a checkpoint where one is due

A checkpoint is written right after an update, before anything at the new step is logged or validated; a resumed run does that again and so
leaves the same lines as an unbroken one. Everything random in a step is seeded by its number.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.io.progress import progress, write_above
from data.schemas import UserError
from modules.runtime.runs.run import Run
from modules.runtime.training.checkpoint import Figure, Resumed, checkpoints, restore_best, resume_from, save_checkpoint, set_damaged_aside
from modules.runtime.training.device import Placement, memory_advice, seed_step
from modules.runtime.training.processes import Ranks
from modules.runtime.training.signals import Deferred, Interrupted

SMALLEST_SCALE = 1e-3
"""An fp16 loss scale below this means that no scale helps."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how fast and how safely to train; its fields are options of both scripts, but for ``factor``."""

    iterations: int  # optimizer steps
    batch_size: int  # examples a batch, over all processes
    gradient_accumulate_every: int  # batches an optimizer step
    learning_rate: float
    max_grad_norm: float  # 0: gradients are left as they are
    save_model_every: int
    keep_checkpoints: int
    seed: int
    factor: Callable[[int], float] = lambda step: 1.0  # of the learning rate, by step


class LossShare(NamedTuple):
    """This process' part of a batch's loss."""

    loss: Tensor  # scalar, the mean over its own examples
    size: Tensor | int  # how many these are
    parts: dict[str, Tensor]  # by name, of any shape: what the loss is made of and what else the log shows; means as well, no gradient


class Trainer:
    """Updates a model and keeps what a continuation needs.

    Args:
        run: where checkpoints go.
        model: whose weights are saved.
        objective: the module whose forward pass gives the loss; holds the model.
        optimizer: over the model's parameters.
        plan: see there.
        placement: device and autocast.
        ranks: the processes that share each batch.
        state: figures of the script's own that a continuation needs, with their first values; all numbers.
        some_unused: a step may leave parameters without a gradient.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        placement: Placement,
        ranks: Ranks,
        state: dict[str, float],
        some_unused: bool = False,
    ) -> None:
        self.run, self.model, self.optimizer, self.plan, self.placement, self.ranks = run, model, optimizer, plan, placement, ranks
        self.state = dict(state)
        self.scaler = placement.scaler()
        self.start, self.seconds, self.stopped = 0, 0.0, False
        self._signal = Deferred()
        self._sums: dict[str, Tensor] = {}  # of the loss and its parts, since the last line of the log
        self._count, self._lap = 0, time.perf_counter()
        self._bad = torch.full((), -1, dtype=torch.int64, device=placement.device)
        self._saved: int | None = None
        self._shown: dict[str, str] = {}
        if plan.batch_size < ranks.count:
            raise UserError(f"train.batch_size is {plan.batch_size} for {ranks.count} processes; each needs at least 1 example: raise it")
        with ranks.main_first():
            if ranks.main:
                set_damaged_aside(run.folder)
        resumed = resume_from(run.folder, model, optimizer, self.scaler)
        if resumed:
            self._restore(resumed)
        run.cut_log(self.start)
        ranks.wait()
        self.objective = ranks.wrap(objective, some_unused)

    def _restore(self, resumed: Resumed) -> None:
        self.start, self._saved = resumed.step, resumed.step
        own = {name: float(value) for name, value in resumed.state["trainer"].items() if not isinstance(value, list)}
        if own["batch_size"] != self.plan.batch_size:
            raise UserError(
                f"{self.run.folder} was trained with batches of {own['batch_size']:.0f} over all processes, which would now be "
                f"{self.plan.batch_size}; set train.split_batches = True (train.batch_size is then that of all processes together)"
            )
        kept = ""
        if self.placement.device.type == "cpu" and bool(own["bf16"]) != (self.placement.autocast_dtype is not None):
            # This CPU, or that of another process, is not of the kind that the run began on.
            kept = f", in {'bf16' if own['bf16'] else 'fp32'} as it began"
            self.placement = self.placement._replace(autocast_dtype=torch.bfloat16 if own["bf16"] else None)
        self.seconds, sums = own["seconds"], resumed.state["sums"]
        if "loss" in sums or not own["summed"]:  # an earlier version numbered the parts; the log's next line then leaves them out
            self._count = int(own["summed"])
            self._sums = {name: torch.tensor(value, device=self.placement.device) for name, value in sums.items()}
        self.state = {name: float(value) for name, value in resumed.state["script"].items() if not isinstance(value, list)}
        if self.ranks.main:
            restore_best(self.run.folder, resumed.folder)
            print(f"resumed  from step {resumed.step} ({resumed.folder.name}){kept}", flush=True)

    @property
    def learning_rate(self) -> float:
        """Of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    @contextmanager
    def running(self, name: str) -> Iterator[Iterator[int]]:
        """A block in which signals wait for a checkpoint; gives the numbers of updates done, the last one ``plan.iterations``."""
        total, shown = self.plan.iterations, self.ranks.main
        bar = progress(initial=self.start, total=total, desc=name, disable=not shown)
        with self._signal.installed(), bar as self.bar:
            self.model.train()
            self._lap = time.perf_counter()
            yield self._steps()
            asked = max(number for numbers in self.ranks.gather([self._signal.number]) for number in numbers)
            if asked:
                raise self._interrupted(asked)

    def _steps(self) -> Iterator[int]:
        for step in range(self.start, self.plan.iterations + 1):
            yield step
            if self.stopped:
                break
            self.bar.update(step < self.plan.iterations)

    def due(self, step: int, every: int) -> bool:
        """Is ``step`` a multiple of ``every``, or the end?"""
        return step > 0 and (step % every == 0 or step == self.plan.iterations)

    def update(self, step: int, share: Callable[[int], LossShare], save: bool = False) -> None:
        """One optimizer step; does nothing at the end.

        Args:
            step: updates done before it.
            share: this process' part of micro-batch 0 .. accumulate - 1, computed through ``objective`` under autocast.
            save: leave a checkpoint behind it, whatever train.save_model_every says.

        Raises:
            UserError: the memory is exhausted.
            Interrupted: a signal came; the state is saved.
        """
        plan = self.plan
        if step == plan.iterations or self.stopped:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = plan.learning_rate * plan.factor(step)
        seed_step(plan.seed, step, self.ranks.index)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.placement.device)
        with memory_advice(
            "train.batch_size, and raise train.gradient_accumulate_every to keep the size of a step (with train.resume = False: "
            "that is another run)"
        ):
            for micro in range(plan.gradient_accumulate_every):
                with self.ranks.unsynchronised(self.objective, micro < plan.gradient_accumulate_every - 1):
                    with self.placement.autocast():
                        loss, size, parts = share(micro)
                    # Processes average their gradients: weighted so, the average is that of the whole batch's mean loss.
                    weight = self._weight(size) / plan.gradient_accumulate_every
                    loss = loss * weight
                    self.scaler.scale(loss).backward()
                total = total + loss.detach()
                for name, value in {"loss": loss.detach(), **{name: part * weight for name, part in parts.items()}}.items():
                    self._sums[name] = self._sums.get(name, 0) + value.float()
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), plan.max_grad_norm or torch.inf)
            self._watch(step, total, norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self._count += 1
        asked = self._asked(step)
        if (step + 1) % plan.save_model_every == 0 or step + 1 == plan.iterations or save or asked:
            self.save(step + 1)
        if asked:
            raise self._interrupted(asked)

    def _weight(self, size: Tensor | int) -> Tensor | float:
        if self.ranks.count == 1:
            return 1.0
        own = torch.as_tensor(size, device=self.placement.device, dtype=torch.float32)
        return own * self.ranks.count / self.ranks.total(own.clone()).clamp_min(1)

    def _watch(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Notes the first step whose loss or gradient is not finite, on the device; fp16 overflow is the scaler's to handle."""
        finite = torch.isfinite(loss) if self.scaler.is_enabled() else torch.isfinite(loss) & torch.isfinite(norm)
        self._bad = torch.where((self._bad < 0) & ~finite, step, self._bad)

    def _asked(self, step: int) -> int:
        """The signal that all processes know of; several of them look only now and then, because that makes them wait for each other."""
        if self.ranks.count == 1:
            return self._signal.number
        if step % 10:
            return 0
        return int(self.ranks.total(torch.tensor(self._signal.number, device=self.placement.device)).clamp_max(15).item())

    def _interrupted(self, number: int) -> Interrupted:
        return Interrupted(number, f"stopped, saved at step {self._saved}; it goes on from there by: {self.run.command()}")

    def interruption_point(self) -> None:
        """Ends a long evaluation when a signal came: its step is saved already, and a continuation begins with it."""
        if self._signal.number and self.ranks.count == 1:
            raise self._interrupted(self._signal.number)

    def means(self) -> dict[str, Figure]:
        """The loss and its parts by name, as means over the updates since the last call and over all processes.

        Raises:
            UserError: a loss was not finite.
        """
        self.check_finite()
        means = self._summed(max(self._count, 1))
        self._sums, self._count = {}, 0
        return means

    def _summed(self, count: int) -> dict[str, Figure]:
        """The sums over all processes, divided by their number and by ``count``."""
        if not self._sums:
            return {}
        names, shapes = list(self._sums), [part.shape for part in self._sums.values()]
        total = self.ranks.total(torch.cat([part.reshape(-1) for part in self._sums.values()])) / (self.ranks.count * count)
        parts = total.split([shape.numel() for shape in shapes])
        return {name: part.reshape(shape).tolist() for name, part, shape in zip(names, parts, shapes)}

    def check_finite(self) -> None:
        """Stops a run whose loss or gradient has ceased to be finite.

        Raises:
            UserError: with the step, its learning rate and the last good checkpoint.
        """
        bad = max(step for steps in self.ranks.gather([int(self._bad.item())]) for step in steps)
        if bad >= 0:
            found = checkpoints(self.run.folder)
            good = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
            rate = self.plan.learning_rate * self.plan.factor(bad)
            raise UserError(
                f"the loss or its gradient is not finite at step {bad} (learning rate {rate:.3g}); {good}; "
                f"lower train.learning_rate or {'lower' if self.plan.max_grad_norm else 'set'} train.max_grad_norm, "
                "in another directory or with train.resume = False"
            )
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise UserError(
                f"fp16 gradients overflow at every loss scale down to {SMALLEST_SCALE}; set train.mixed_precision_type = 'bf16' or 'no'"
            )

    @contextmanager
    def evaluating(self, knobs: str) -> Iterator[None]:
        """A block that counts neither as training time nor as training mode; ``knobs`` to lower if its memory ends."""
        self.seconds += time.perf_counter() - self._lap
        self.model.eval()
        with torch.no_grad(), memory_advice(knobs):
            yield
        self.model.train()
        self._lap = time.perf_counter()

    def show(self, what: str, text: str) -> None:
        """Puts figures behind the bar, in the place of the last ones of this kind."""
        self._shown[what] = text
        self.bar.set_postfix_str("; ".join(self._shown.values()), refresh=False)

    def say(self, text: str) -> None:
        """Prints a line above the bar, once."""
        if self.ranks.main:
            write_above(text)

    def save(self, step: int) -> None:
        """Writes a checkpoint of the state after ``step`` updates.

        Raises:
            UserError: a loss was not finite (the checkpoint before stays the last), or the disk cannot be written.
        """
        self.check_finite()
        now = time.perf_counter()
        self.seconds, self._lap = self.seconds + now - self._lap, now
        own = {
            "bf16": float(self.placement.autocast_dtype == torch.bfloat16),
            "batch_size": float(self.plan.batch_size),
            "seconds": self.seconds,
            "summed": float(self._count),
        }
        state: dict[str, Mapping[str, Figure]] = {"script": self.state, "trainer": own, "sums": self._summed(1)}
        if self.ranks.main:
            save_checkpoint(self.run.folder, step, self.model, self.optimizer, self.scaler, state, self.plan.keep_checkpoints)
        self._saved = step
        self.ranks.wait()
