"""The beam search as CUDA graphs: recorded once for each shape, then replayed without a kernel being launched from Python.

A search is some hundreds of small kernels, and a GPU that is done with one sooner than Python has launched the next waits for Python.
Shapes are rounded up, so that an evaluation needs few recordings. Weights are read where they lie: a replay uses what training has made
of them.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs has the rules that a recording must keep.
Shape letters: B batch, N history length, S items to bar.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from data.schemas import PAD, SeqBatch
from modules.beam_search import SearchResult

HISTORY_STEP = 4
"""Histories are padded to a multiple of so many items."""

Inputs = tuple[Tensor, ...]


class Recording:
    """One CUDA graph and the tensors that it reads and writes.

    Args:
        search: what is recorded.
        inputs: of the shapes that it will have in every replay.
        pool: handle of the memory that the graphs share, as no two are replayed at once and results are copied out.
    """

    def __init__(self, search: Callable[..., SearchResult], inputs: Inputs, pool: Any) -> None:
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # the first call of a kernel may allocate what a recording may not
            search(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.result = search(*self.inputs)

    def replay(self, inputs: Inputs) -> SearchResult:
        for kept, tensor in zip(self.inputs, inputs):
            kept.copy_(tensor)
        self.graph.replay()
        return SearchResult(*(field.clone() for field in self.result))


class Search(Protocol):
    """What is recorded: ``Searcher``'s own computation."""

    def __call__(self, batch: SeqBatch, beam_size: int, barred: Tensor | None, cached: bool = True) -> SearchResult:
        """Finds the best items of every row but the ``barred`` [B, S]; not ``cached``: autocast keeps no weights that it cast."""


class ReplayedSearch:
    """Searches as ``compute`` does, by replaying recordings of it.

    Args:
        compute: a search on a GPU.
    """

    def __init__(self, compute: Search) -> None:
        self.compute = compute
        self.recordings: dict[tuple[object, ...], Recording] = {}
        self._pool: Any = None

    @torch.no_grad()
    def search(self, batch: SeqBatch, beam_size: int, barred: Tensor | None) -> SearchResult:
        """What ``compute`` finds."""
        history = _widened(batch.item_ids, -(-batch.item_ids.shape[1] // HISTORY_STEP) * HISTORY_STEP)
        inputs: Inputs = (batch.user_ids, history)
        if barred is not None:
            inputs += (_widened(barred, 1 << max(barred.shape[1] - 1, 0).bit_length()),)
        key = (beam_size, *(tensor.shape for tensor in inputs))
        if key not in self.recordings:
            self.recordings[key] = self._record(beam_size, inputs)
        return self.recordings[key].replay(inputs)

    def _record(self, beam_size: int, inputs: Inputs) -> Recording:
        def search(user_ids: Tensor, history: Tensor, barred: Tensor | None = None) -> SearchResult:
            # Without its cache autocast casts the weights within the graph, so that a replay sees what they have become.
            return self.compute(SeqBatch(user_ids, history, history[:, :1], barred), beam_size, barred, cached=False)

        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return Recording(search, inputs, self._pool)


def _widened(rows: Tensor, width: int) -> Tensor:
    """[B, n] padded with PAD to [B, width]."""
    return pad(rows, (0, width - rows.shape[1]), value=PAD)
