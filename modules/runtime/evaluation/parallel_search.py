"""Several batches searched at once on the cores of a CPU, one after the other elsewhere."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from data.schemas import SeqBatch

T = TypeVar("T")

SEARCHES_AT_ONCE = 8
"""Each takes memory of its own, about .2 GB for 64 users and 50 beams."""


def search_all(find: Callable[[SeqBatch], T], batches: Iterable[SeqBatch], device: torch.device, pause: Callable[[], None]) -> list[T]:
    """What ``find`` gives for each batch, in their order.

    A CPU searches several batches at a time, each by one of its threads where there are no more than ``SEARCHES_AT_ONCE``: a search is
    too many small operations for several threads to share one, above all where other processes are busy too.

    Args:
        find: called by several threads at once on a CPU.
        batches: on the device.
        device: where ``find`` computes.
        pause: called while results are waited for; may raise to end it.
    """
    threads = torch.get_num_threads()
    workers = min(threads, SEARCHES_AT_ONCE) if device.type == "cpu" else 1
    if workers == 1:
        return [find(batch) for batch in batches]
    found, pending = [], deque[Future[T]]()
    # Said in every thread, because each has a count of its own in OpenMP and MKL, and here, because new threads begin with torch's.
    few = partial(torch.set_num_threads, threads // workers)
    few()
    try:
        with ThreadPoolExecutor(workers, initializer=few) as pool:
            try:
                for batch in batches:
                    pending.append(pool.submit(find, batch))
                    if len(pending) > workers:
                        found.append(pending.popleft().result())
                while pending:
                    pause()
                    found.append(pending.popleft().result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return found
    finally:
        torch.set_num_threads(threads)
