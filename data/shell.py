"""Commands that are printed for the user to paste."""

import shlex
import shutil
import sys
from pathlib import Path


def command(*words: object) -> str:
    """The line that runs ``words`` with the Python of this process, quoted for a shell: ``python`` where that is the one, else its path."""
    return shlex.join([_python(), *map(str, words)])


def _python() -> str:
    own, found = Path(sys.executable), shutil.which("python")
    if found is not None and Path(found).absolute().parent == own.parent:
        return "python"
    here = Path.cwd()
    return str(own.relative_to(here)) if own.is_relative_to(here) else str(own)
