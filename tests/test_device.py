"""Devices, dtypes and exhausted memory: mistakes become sentences."""

import pytest
import torch

from data.schemas import UserError
from modules.runtime.device import memory_advice, place, seed_step


@pytest.mark.parametrize(("precision", "words"), [("fp16", "is for CUDA"), ("bfloat", "'bf16', 'fp16' or 'no'")])
def test_a_precision_that_is_not_offered_is_refused(precision, words):
    with pytest.raises(UserError, match=words):
        place("cpu", True, precision)


@pytest.mark.parametrize("name", ["quantum", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match=r"train\.device"):
        place(name, False, "no")


def test_auto_finds_a_device_and_says_why():
    placement = place("auto", True, "bf16")
    torch.empty(1, device=placement.device)
    assert placement.why
    with place("cpu", False, "bf16").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_step_draws_the_same_numbers_whatever_was_drawn_before():
    seed_step(3, 7, 0)
    first = torch.rand(5)
    torch.rand(100)
    seed_step(3, 7, 0)
    assert torch.equal(torch.rand(5), first)
    for other in ((3, 8, 0), (4, 7, 0), (3, 7, 1)):
        seed_step(*other)
        assert not torch.equal(torch.rand(5), first)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_exhausted_memory_names_the_knob(error):
    with pytest.raises(UserError, match=r"out of memory.*lower train\.batch_size"), memory_advice("train.batch_size"):
        raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), memory_advice("train.batch_size"):
        raise RuntimeError("shapes do not match")
