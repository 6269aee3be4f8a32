"""The floor: the matrix products of a computation alone, at their own shapes, without anything between them."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Shape = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.bmm.default: 0, torch.ops.aten.addmm.default: 1, torch.ops.aten.baddbmm.default: 1}
"""Operators, and the position of their left factor."""


class Recorder(TorchDispatchMode):
    """Counts the matrix products that run inside it, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Shape] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            left, right = args[PRODUCTS[function]], args[PRODUCTS[function] + 1]
            self.products[(tuple(left.shape), tuple(right.shape), left.dtype)] += 1
        return function(*args, **(kwargs or {}))


def recorded(computation: Callable[[], object]) -> Counter[Shape]:
    """The products of a computation and how often each runs."""
    with Recorder() as recorder:
        computation()
    return recorder.products


def flops(products: Counter[Shape]) -> int:
    """Multiplications and additions."""
    total = 0
    for (left, right, _), count in products.items():
        batch = left[0] if len(left) == 3 else 1
        total += 2 * count * batch * left[-2] * left[-1] * right[-1]
    return total


def replay(products: Counter[Shape], device: torch.device) -> Callable[[], None]:
    """A job that runs the same products on random factors."""
    factors: dict[tuple[tuple[int, ...], torch.dtype], Tensor] = {}

    def factor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return factors.setdefault((shape, dtype), torch.randn(shape, device=device).to(dtype))

    work = [(factor(left, dtype), factor(right, dtype), count) for (left, right, dtype), count in products.items()]

    def run() -> None:
        for left, right, count in work:
            for _ in range(count):
                torch.matmul(left, right)

    return run
