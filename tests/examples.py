"""Small good files of every source: the ``EXAMPLES`` at the end of the tests in ``tests/data/sources``."""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data.processed import RecDataset

TESTS = Path(__file__).parent / "data" / "sources"


class Example(NamedTuple):
    """What writes planted data in the layout of a source."""

    dataset: RecDataset
    split: str
    write: Callable[[Path, str, int, int], object]  # (folder, split, users, items); the files lie in <folder>/raw afterwards
    users: int = 60  # so many that the filters of the source's configs leave most of 600 items


@functools.cache
def examples() -> tuple[Example, ...]:
    """All of them, in the order of the files; a source may have several."""
    modules = [importlib.import_module(f"tests.data.sources.{path.stem}") for path in sorted(TESTS.glob("test_*.py"))]
    return tuple(example for module in modules for example in getattr(module, "EXAMPLES", ()))


def example_of(dataset: RecDataset, split: str) -> Example:
    """The example of a source with this split, else its first."""
    of_source = [example for example in examples() if example.dataset is dataset]
    return next((example for example in of_source if example.split == split), of_source[0])
