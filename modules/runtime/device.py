"""Which device a run uses, which dtype its products run in, what to do when its memory ends, and the seeds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from data.schemas import UserError
from modules.runtime.heap import keep_freed_memory

PRECISIONS = ("bf16", "fp16", "no")


class Placement(NamedTuple):
    device: torch.device
    autocast_dtype: torch.dtype | None  # None: no autocast
    why: str  # one line for the start of the run

    def autocast(self) -> torch.autocast:
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, self.autocast_dtype or torch.bfloat16, enabled=self.autocast_dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss so that fp16 gradients do not underflow; does nothing for other dtypes."""
        return torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype == torch.float16)


def place(device: str, amp: bool, mixed_precision_type: str, own: torch.device | None = None) -> Placement:
    """Decides device and autocast, and on a CPU lets the process keep the memory that it frees.

    Args:
        device: ``auto`` takes CUDA, then MPS, then the CPU; or a torch device string.
        amp: use mixed precision where the device is faster with it.
        mixed_precision_type: ``bf16``, ``fp16`` (CUDA only) or ``no``.
        own: the GPU that belongs to this one of several processes.

    Raises:
        UserError: a device that is not there, or a precision that it does not offer.
    """
    if mixed_precision_type not in PRECISIONS:
        raise UserError(f"train.mixed_precision_type is {mixed_precision_type!r}; it can be 'bf16', 'fp16' or 'no'")
    chosen = own or _device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    if not amp or mixed_precision_type == "no":
        return Placement(chosen, None, f"{chosen}, fp32 (as asked)")
    if mixed_precision_type == "fp16":
        if chosen.type != "cuda":
            raise UserError(
                f"train.mixed_precision_type = 'fp16' is for CUDA, and this run is on {chosen.type}, which is slow or imprecise at it; "
                "set it to 'bf16', which is used where it is fast"
            )
        return Placement(chosen, torch.float16, f"{torch.cuda.get_device_name(chosen)}, fp16 autocast with loss scaling")
    if chosen.type == "cuda":
        name = torch.cuda.get_device_name(chosen)
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return Placement(chosen, None, f"{name}, fp32 (it has no bf16; train.mixed_precision_type = 'fp16' may be faster)")
        return Placement(chosen, torch.bfloat16, f"{name}, bf16 autocast")
    if chosen.type != "cpu":
        return Placement(chosen, None, f"{chosen}, fp32")
    gain = _bf16_gain()
    if gain > 1.5:
        return Placement(chosen, torch.bfloat16, f"CPU, {torch.get_num_threads()} threads, bf16 autocast (products {gain:.1f}x faster)")
    return Placement(chosen, None, f"CPU, {torch.get_num_threads()} threads, fp32 (bf16 products run at {gain:.2f}x its speed here)")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"train.device = {name!r} is not here ({str(error).splitlines()[0]}); use 'auto', 'cuda', 'mps' or 'cpu'"
        ) from error
    return device


def _bf16_gain() -> float:
    """How many times faster this CPU multiplies in bf16 than in fp32; about 0.1 s."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(512, 384, dtype=dtype), torch.ones(384, 384, dtype=dtype)
        left @ right
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - start)
        seconds[dtype] = best
    return seconds[torch.float32] / seconds[torch.bfloat16]


def set_seed(seed: int) -> None:
    """Seeds torch on every device; data order and k-means have generators of their own, made from the same seed."""
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds a step's dropout and noise by its number, so that a run that goes on draws what the unbroken one drew, on any device.

    Evaluations between two steps, and how many processes wrote the checkpoint, change nothing.
    """
    torch.manual_seed((seed * 1_000_003 + step * 4_099 + rank) % (1 << 63))


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on the device; from the CPU to a GPU through pinned memory, so that the caller does not wait for what the GPU has yet to do."""
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


EXHAUSTED = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "not enough memory")
"""What libraries say of an exhausted memory in errors of no particular type."""


@contextmanager
def memory_advice(knobs: str) -> Iterator[None]:
    """Turns an exhausted memory into a sentence.

    Args:
        knobs: what to turn, as the end of "lower ...".

    Raises:
        UserError: the block needed more memory than there is.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        exhausted = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in EXHAUSTED)
        if not exhausted:
            raise
        raise UserError(f"out of memory ({str(error).splitlines()[0] if str(error) else 'on the CPU'}); lower {knobs}") from error
