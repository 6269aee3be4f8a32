"""An evaluation by several threads is that by one, and ends when it is told to."""

import threading

import pytest
import torch

from modules.runtime.evaluation.evaluator import Evaluator, Protocol
from modules.runtime.runs.searcher import Searcher


@pytest.fixture
def evaluator(trained_retriever, trained_data) -> Evaluator:
    return Evaluator(Searcher(trained_retriever), trained_data, Protocol(True, (5, 10), 16, None, 0))


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_several_threads_find_what_one_finds_in_the_same_order(evaluator, three_threads, monkeypatch):
    used, met = set(), threading.Event()
    search = evaluator.ranker.model.generate_next_sem_id

    def watched(*args, **named):
        used.add((threading.get_ident(), torch.get_num_threads()))
        if len(used) > 1 or not met.wait(60):  # a thread that has searched everything before another begins is no answer
            met.set()
        assert not torch.is_grad_enabled()
        return search(*args, **named)

    monkeypatch.setattr(evaluator.ranker.model, "generate_next_sem_id", watched)
    by_three = evaluator.model("validation", True)
    assert len(used) > 1
    assert {threads for _, threads in used} == {1}
    torch.set_num_threads(1)
    by_one = evaluator.model("validation", True)
    torch.set_num_threads(3)
    assert by_three.metrics == by_one.metrics
    assert torch.equal(by_three.targets, by_one.targets)
    assert torch.equal(by_three.ranks, by_one.ranks)


def test_an_interruption_ends_an_evaluation_by_several_threads(evaluator, three_threads):
    begun = []

    def pause():
        begun.append(None)
        if len(begun) == 9:
            raise KeyboardInterrupt

    evaluator.pause = pause
    with pytest.raises(KeyboardInterrupt):
        evaluator.model("validation", True)
    assert len(begun) == 9


def test_an_error_in_one_search_ends_the_others(evaluator, three_threads, monkeypatch):
    begun, search = [], evaluator.ranker.model.generate_next_sem_id

    def failing(*args, **named):
        begun.append(None)
        if len(begun) == 2:
            raise MemoryError("no more")
        return search(*args, **named)

    monkeypatch.setattr(evaluator.ranker.model, "generate_next_sem_id", failing)
    with pytest.raises(MemoryError, match="no more"):
        evaluator.model("validation", True)
    assert len(begun) <= 6


def test_more_threads_than_searches_at_once_share_the_searches(evaluator, three_threads, monkeypatch):
    used, search = set(), evaluator.ranker.model.generate_next_sem_id

    def watched(*args, **named):
        used.add((threading.get_ident(), torch.get_num_threads()))
        return search(*args, **named)

    monkeypatch.setattr("modules.runtime.evaluation.parallel_search.SEARCHES_AT_ONCE", 2)
    monkeypatch.setattr(evaluator.ranker.model, "generate_next_sem_id", watched)
    torch.set_num_threads(5)
    evaluator.model("validation", True)
    assert torch.get_num_threads() == 5
    torch.set_num_threads(3)
    assert len(used) <= 2
    assert {threads for _, threads in used} == {2}
