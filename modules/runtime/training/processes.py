"""Several processes as one run: who am I, what do we have together. One process needs none of it and pays nothing for it.

    torchrun --nproc-per-node 2 train_decoder.py CONFIG        or        accelerate launch train_decoder.py CONFIG

Processes are started by either; accelerate (https://huggingface.co/docs/accelerate) finds the others and wraps the model for
DistributedDataParallel. Every process computes on its share of the same batch; the first one alone writes and prints.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn

from data.schemas import UserError

T = TypeVar("T")

PATIENCE = timedelta(hours=24)
"""How long the others wait for what the first process does alone: a download, an encoding, the baselines."""


class OtherProcessFailed(UserError):
    """Ends a process whose fellow has told the user why."""


class Ranks:
    """This process among those of the run.

    Args:
        device: train.device. Each process takes a GPU, or all of them the CPU where that is asked for or CUDA is not there.

    Raises:
        UserError: a device that several processes cannot share, or that is not there.
    """

    def __init__(self, device: str = "auto") -> None:
        self.index, self.count, self._accelerator = 0, 1, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator, InitProcessGroupKwargs

            gpus = torch.cuda.is_available()
            if device.startswith("mps") or (device.startswith("cuda") and not gpus):
                why = "is one device" if device.startswith("mps") else "is not here"
                raise UserError(f"train.device = {device!r} {why}, and this run has several processes; use 'auto' or 'cpu'")
            handlers = [InitProcessGroupKwargs(timeout=PATIENCE)]
            # Told to look for itself, accelerate leaves processes without a GPU unconnected: each would be the first of one.
            self._accelerator = Accelerator(cpu=device == "cpu" or not gpus, mixed_precision="no", kwargs_handlers=handlers)
            self.index, self.count = self._accelerator.process_index, self._accelerator.num_processes

    @property
    def main(self) -> bool:
        """Is this the process that writes and prints?"""
        return self.index == 0

    @property
    def device(self) -> torch.device | None:
        """The GPU of this one of several processes, or their CPU; None where there is one process, which may choose."""
        return None if self._accelerator is None else self._accelerator.device

    def wrap(self, module: nn.Module, some_unused: bool = False) -> nn.Module:
        """The module with its gradients averaged over the processes; itself where there is one.

        ``some_unused``: a step may leave parameters out, for which every step must then look.
        """
        if self._accelerator is None:
            return module
        from accelerate import DistributedDataParallelKwargs

        self._accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=some_unused)
        return self._accelerator.prepare_model(module)

    def unsynchronised(self, module: nn.Module, when: bool) -> AbstractContextManager[None]:
        """A block whose backward pass leaves gradients unaveraged: all but the last of an accumulated batch."""
        return self._accelerator.no_sync(module) if self._accelerator is not None and when else nullcontext()

    def total(self, x: Tensor) -> Tensor:
        """The sum of every process' ``x``."""
        return x if self._accelerator is None else self._accelerator.reduce(x, reduction="sum")

    def gather(self, values: list[T]) -> list[list[T]]:
        """Every process' list, in the order of the processes."""
        if self._accelerator is None:
            return [values]
        from accelerate.utils import gather_object

        return gather_object([values])

    def from_main(self, value: T) -> T:
        """The first process' value, on all."""
        if self._accelerator is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until all are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A block that the first process leaves before the others enter: what it downloads and caches they read.

        Raises:
            OtherProcessFailed: in the others, where the first raised a UserError, which it tells.
        """
        if self.main:
            try:
                yield
            except UserError:
                self.from_main(True)
                raise
            self.from_main(False)
            return
        if self.from_main(False):
            raise OtherProcessFailed("the first process has told what is wrong")
        yield

    def close(self) -> None:
        """Ends the processes' connection; without it the library complains at exit.

        They wait for each other first: a thread of the connection that still lets go of a tensor when Python has ended aborts the process.
        """
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
            self._accelerator.end_training()
