"""What Python runs first in every process of the tests: where TESTS_BF16 says so, it answers in the CPU's place whether that has bf16.

``on`` and ``off`` are the answers of every process; ``first`` is yes in the first of several processes and no in the others; ``probe``, or
nothing, leaves the question to the CPU. The answer is put in when the module that asks is imported, so other processes import nothing.
"""

import importlib.abc
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

ASKS = "modules.runtime.training.device"


def answer(asks: ModuleType) -> None:
    """Makes the module's ``has_bf16`` say what the environment says at the time of the question."""
    ask = asks.has_bf16

    def has_bf16(device: object) -> object:
        said = os.environ.get("TESTS_BF16", "probe")
        if said == "probe" or device.type != "cpu":
            return ask(device)
        return asks.Bf16(said == "on" or (said == "first" and os.environ.get("RANK", "0") == "0"), f"TESTS_BF16 is {said}")

    asks.has_bf16 = has_bf16


class BeforeTheQuestion(importlib.abc.MetaPathFinder):
    """Finds the module that asks and has the answer put in once it is loaded."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != ASKS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_answer(module: ModuleType) -> None:
            load(module)
            answer(module)

        spec.loader.exec_module = load_and_answer
        return spec


if not any(type(finder).__name__ == BeforeTheQuestion.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, BeforeTheQuestion())
