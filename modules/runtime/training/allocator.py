"""Keeps freed memory for the next step instead of giving it back to the system.

glibc returns large blocks at once; a training step, whose tensors are of a few megabytes and new each time, then spends 5 to 8 % of its CPU
time on having fresh pages cleared. mallopt(3) describes the two settings and the environment variables that set them too; where one of
those is set it stays so. Elsewhere than on Linux with glibc nothing is changed.
"""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in glibc's malloc.h."""

VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")

KEPT = 1 << 30
"""Bytes that may lie free at the end of the heap."""

SEPARATE = 32 << 20
"""Blocks of so many bytes, the most that glibc allows, still get pages of their own and return them when freed."""


def keep_freed_memory() -> bool:
    """Whether it could be arranged; holds for the whole process."""
    set_by_user = any(name in os.environ for name in VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if set_by_user or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(TRIM_THRESHOLD, KEPT)) and bool(mallopt(MMAP_THRESHOLD, SEPARATE))
