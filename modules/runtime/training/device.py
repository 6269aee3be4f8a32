"""Which device a run uses, which dtype its products run in, what to do when its memory ends, and the seeds.

bf16 is used where the device has instructions for it. Nothing is timed, so the load of the machine changes no answer: on a CPU the rule is
``BF16_INSTRUCTIONS``. All processes of a run use one precision, bf16 only if the device of each has it. On a CPU a run that goes on keeps
the one that it began with. ``train.amp = False`` (or ``train.mixed_precision_type = "no"``) pins fp32, which every device has.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.schemas import UserError
from modules.runtime.training.allocator import keep_freed_memory
from modules.runtime.training.processes import Ranks

PRECISIONS = ("bf16", "fp16", "no")

BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")
"""A CPU that has one of these multiplies bf16 faster than fp32: Intel from Sapphire Rapids on, AMD from Zen 4 on (and Cooper Lake), Arm
from Armv8.6 on. Without them bf16 products are emulated: slower than fp32 on AMD Zen 3. Not tried on Arm."""


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


def place(device: str, amp: bool, mixed_precision_type: str, ranks: Ranks | None = None) -> Placement:
    """Decides device and autocast, and on a CPU lets the process keep the memory that it frees.

    Args:
        device: ``auto`` takes CUDA, then MPS, then the CPU; or a torch device string.
        amp: use mixed precision where the device is faster with it.
        mixed_precision_type: ``bf16`` (on a CPU only where it has instructions for it), ``fp16`` (CUDA only) or ``no``.
        ranks: the processes of the run, which all get the same precision; None where there is one process.

    Raises:
        UserError: a device that is not there, or a precision that it does not offer.
    """
    if mixed_precision_type not in PRECISIONS:
        raise UserError(f"train.mixed_precision_type is {mixed_precision_type!r}; it can be 'bf16', 'fp16' or 'no'")
    chosen = (ranks.device if ranks is not None else None) or _device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    if not amp or mixed_precision_type == "no":
        return Placement(chosen, None, f"{_name(chosen)}, fp32 (as asked)")
    if mixed_precision_type == "fp16":
        if chosen.type != "cuda":
            raise UserError(
                f"train.mixed_precision_type = 'fp16' is for CUDA, and this run is on {chosen.type}, which is slow or imprecise at it; "
                "set it to 'bf16', which is used where it is fast"
            )
        return Placement(chosen, torch.float16, f"{_name(chosen)}, fp16 autocast with loss scaling")
    fast, why = has_bf16(chosen)
    answers = [answer for own in ranks.gather([fast]) for answer in own] if ranks is not None else [fast]
    if all(answers):
        return Placement(chosen, torch.bfloat16, f"{_name(chosen)}, bf16 autocast ({why})")
    if fast:
        why = f"the device of process {answers.index(False)} has no bf16"
    return Placement(chosen, None, f"{_name(chosen)}, fp32 ({why})")


class Bf16(NamedTuple):
    fast: bool
    why: str  # a few words


def has_bf16(device: torch.device) -> Bf16:
    """Whether a device has instructions for bf16; a property of its kind, the same at every call."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Bf16(True, "in hardware")
        return Bf16(False, "it has no bf16; train.mixed_precision_type = 'fp16' may be faster")
    if device.type != "cpu":
        return Bf16(False, f"bf16 is not used on {device.type}")
    found = [name for name in BF16_INSTRUCTIONS if name in cpu_instructions()]
    if found and torch.backends.mkldnn.is_available():
        return Bf16(True, f"it has {found[0]}; train.amp = False pins fp32")
    return Bf16(False, "no bf16 instructions" if not found else "this build of torch does not use its bf16 instructions")


def cpu_instructions() -> set[str]:
    """Names of this CPU's instruction sets; a torch that does not tell them leaves Linux to, which has the same names."""
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, there in torch.cpu.get_capabilities().items() if there}
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else str(device)


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
