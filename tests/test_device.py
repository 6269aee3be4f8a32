"""Devices, dtypes and exhausted memory: mistakes become sentences."""

from pathlib import Path

import pytest
import torch

from data.schemas import UserError
from modules.runtime.training import device as devices
from modules.runtime.training.device import BF16_INSTRUCTIONS, cpu_instructions, has_bf16, memory_advice, place, seed_step
from modules.runtime.training.processes import Ranks

CPU = torch.device("cpu")


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


@pytest.mark.parametrize(
    ("instructions", "fast"),
    [
        ({"avx2", "fma3"}, False),  # AMD Zen 3
        ({"avx2", "avx512_f", "avx512_vnni"}, False),  # Intel Ice Lake
        ({"avx512_f", "avx512_bf16"}, True),  # AMD Zen 4
        ({"avx512_bf16", "amx_tile", "amx_bf16"}, True),  # Intel Sapphire Rapids
        ({"neon", "sve", "dot"}, False),  # Arm Neoverse N1
        ({"neon", "sve", "bf16", "i8mm"}, True),  # Arm Neoverse V1
        (set(), False),
    ],
)
def test_bf16_is_used_on_a_cpu_that_has_instructions_for_it_and_on_no_other(instructions, fast, monkeypatch):
    monkeypatch.setenv("TESTS_BF16", "probe")
    monkeypatch.setattr(devices, "cpu_instructions", lambda: instructions)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    placement = place("cpu", True, "bf16")
    assert placement.autocast_dtype == (torch.bfloat16 if fast else None)
    assert ("bf16 autocast" if fast else "fp32 (no bf16 instructions)") in placement.why
    for pinned in (place("cpu", False, "bf16"), place("cpu", True, "no")):
        assert pinned.autocast_dtype is None
        assert pinned.why.endswith("fp32 (as asked)")


def test_bf16_is_not_used_by_a_torch_without_the_products_for_it(monkeypatch):
    monkeypatch.setenv("TESTS_BF16", "probe")
    monkeypatch.setattr(devices, "cpu_instructions", lambda: {"bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_bf16(CPU).fast


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells the instructions there")
def test_an_older_torch_leaves_the_question_to_linux_which_answers_the_same(monkeypatch):
    by_torch = cpu_instructions().intersection(BF16_INSTRUCTIONS)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert "fpu" in cpu_instructions() or "fp" in cpu_instructions()
    assert cpu_instructions().intersection(BF16_INSTRUCTIONS) == by_torch


@pytest.mark.parametrize(
    ("own", "answers", "dtype", "words"),
    [
        ("on", [True, True], torch.bfloat16, "bf16 autocast"),
        ("on", [True, True, False], None, "fp32 (the device of process 2 has no bf16)"),
        ("off", [False, True], None, "fp32 (TESTS_BF16 is off)"),
    ],
)
def test_all_processes_use_bf16_or_none_does(own, answers, dtype, words, monkeypatch):
    monkeypatch.setenv("TESTS_BF16", own)
    ranks = Ranks()
    monkeypatch.setattr(ranks, "gather", lambda values: [[answer] for answer in answers])
    placement = place("cpu", True, "bf16", ranks)
    assert placement.autocast_dtype == dtype
    assert words in placement.why


@pytest.mark.parametrize(("device", "words"), [("mps", "is one device"), ("cuda", "is not here")])
def test_several_processes_refuse_a_device_that_they_cannot_share(device, words, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"train\.device = '{device}' {words}.*use 'auto' or 'cpu'"):
        Ranks(device)


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
