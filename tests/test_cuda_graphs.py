"""The search behind recordings finds what the search itself finds, with few recordings. What a GPU records is tested where there is one."""

import pytest
import torch

from data.schemas import PAD
from modules.runtime.evaluation import cuda_graphs as graphs
from modules.runtime.evaluation.cuda_graphs import ReplayedSearch
from modules.runtime.runs.searcher import Searcher
from modules.runtime.runs.stage2_run import SearchSettings, load_retriever


class Rerun:
    """In the place of a recording: the same calls, the search run anew."""

    def __init__(self, search, inputs, pool):
        self.search, self.shapes = search, [tensor.shape for tensor in inputs]

    def replay(self, inputs):
        assert [tensor.shape for tensor in inputs] == self.shapes
        return self.search(*inputs)


@pytest.mark.parametrize("barred", [True, False])
def test_padded_inputs_find_the_same_items_with_few_recordings(trained_retriever, trained_data, barred, monkeypatch):
    monkeypatch.setattr(graphs, "Recording", Rerun)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    searcher, shapes = Searcher(trained_retriever._replace(settings=SearchSettings(precision="fp32"))), set()
    replayed = ReplayedSearch(searcher._search)
    for batch in trained_data.eval_batches("test", 16):
        seen = batch.seen if barred else None
        found, expected = replayed.search(batch, 10, seen), searcher.search(batch, barred, 10)
        assert torch.equal(found.item_ids, expected.item_ids)
        torch.testing.assert_close(found.log_probs, expected.log_probs)
        shapes.add((batch.item_ids.shape, batch.seen.shape))
    assert len(replayed.recordings) < len(shapes)


def test_rows_are_padded_behind_what_they_hold():
    rows = torch.tensor([[3, 4, PAD], [5, 6, 7]])
    assert graphs._widened(rows, 4).tolist() == [[3, 4, PAD, PAD], [5, 6, 7, PAD]]


def test_without_cuda_nothing_is_recorded(trained_retriever, trained_data, monkeypatch):
    monkeypatch.setattr(graphs, "Recording", None)
    batch = next(trained_data.eval_batches("test", 16))
    assert Searcher(trained_retriever, cuda_graphs=True).search(batch, True).item_ids.shape == (16, trained_retriever.settings.beam_size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replay_equals_the_search_also_after_the_weights_changed(trained, trained_data, precision):
    device = torch.device("cuda")
    loaded, moved = load_retriever(trained / "decoder" / "beauty", device), trained_data.to(device)
    retriever = loaded._replace(settings=loaded.settings._replace(precision=precision))
    eager, replayed = Searcher(retriever), Searcher(retriever, cuda_graphs=True)
    for _ in range(2):
        for batch in moved.eval_batches("test", 16):
            expected, found = eager.search(batch, True, 10), replayed.search(batch, True, 10)
            torch.testing.assert_close(found.log_probs, expected.log_probs, atol=2e-2, rtol=0)
        with torch.no_grad():
            for parameter in retriever.model.parameters():
                parameter.mul_(1.1)
