"""The memory in the search of a run: the lists are those of the formula over all items, and everybody who asks gets the evaluated ones."""

import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch

import recommend
from data.schemas import PAD, UserError
from modules.memory import Memory
from modules.runtime.evaluation import cuda_graphs as graphs
from modules.runtime.evaluation.evaluator import Evaluator
from modules.runtime.runs.export import export_search
from modules.runtime.runs.hub import from_pretrained, save_pretrained
from modules.runtime.runs.memory_files import MEMORY, load_memory
from modules.runtime.runs.run import Run
from modules.runtime.runs.searcher import Searcher
from modules.runtime.runs.stage2_run import Retriever, load_retriever
from tests.runs import ITEMS, interrupt_at, run_decoder
from tests.test_cuda_graphs import Rerun
from tests.test_resume import same_run
from tests.test_searcher import listed

SHORT = ["iterations=40", "full_eval_every=20", "partial_eval_every=10", "save_model_every=15", "log_every=5", "memory_weight=0.6"]
HEAD = ["history_tokens=items", "item_head=True", "head_weight=0.2"]
KINDS = {
    "codebook": [],
    "children": ["code_softmax=children", "history_tokens=items"],
    "codebook-head": HEAD,
    "children-head": ["code_softmax=children", *HEAD],
    "children-found": ["code_softmax=children", *HEAD, "head_scores=found"],
}
HISTORIES = [[3, 50, 7, 21], [5], list(range(20)), [7, 7]]
USERS = [0, 17, PAD, 4]


@pytest.fixture(scope="module", params=KINDS)
def run(request, trained: Path, tmp_path_factory) -> Path:
    """A short run with a memory, of either kind of model."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "picture", lambda self, name, figure: None)
        run_decoder(trained, f"save_dir_root={folder}", *SHORT, *KINDS[request.param])
    return folder / "beauty"


def q_of(memory: Memory, history: list[int], left: list[int]) -> dict[int, float]:
    """The memory's distribution over the items that are left, in plain Python."""
    found = memory.scores(torch.tensor([history]))
    assert found.items.shape[1] < memory.config.candidates or int((found.items != PAD).sum()) < memory.config.candidates
    scores = dict(zip(found.items[0].tolist(), found.scores[0].tolist()))
    mass = {item: math.exp(memory.config.sharpness * scores.get(item, 0.0)) for item in left}
    return {item: value / sum(mass.values()) for item, value in mass.items()}


def weighing(retriever: Retriever, memory: float, head: float = 0.0) -> Retriever:
    """The same run, searched with other weights."""
    return retriever._replace(settings=retriever.settings._replace(memory_weight=memory, head_weight=head))


def of_head(retriever: Retriever, history: list[int], user: int, left: list[int]) -> dict[int, float]:
    """The item head's distribution over the items that are left, in plain Python."""
    searcher, width = Searcher(weighing(retriever, 0.0)), retriever.model.config.max_seq_len
    batch = retriever.tokenizer(searcher.batch_of(torch.tensor([history]), torch.tensor([user]), min(width, len(history))))
    with torch.no_grad():
        state = retriever.model.encode(batch).states[0, -1]
        scores = (retriever.model.items.table() @ state).tolist()
    mass = {item: math.exp(scores[item]) for item in left}
    return {item: value / sum(mass.values()) for item, value in mass.items()}


def formula(retriever: Retriever, history: list[int], user: int, left: list[int]) -> dict[int, float]:
    """log(w q + v h + (1 - w - v) p) of every item that is left; p by a search of the model alone that is as wide as the catalogue."""
    weight, head, memory = retriever.settings.memory_weight, retriever.settings.head_weight, retriever.memory
    assert memory is not None
    found = Searcher(weighing(retriever, 0.0)).ask([history], [user], filter_history=False, beam_size=ITEMS)
    p = dict(zip(found.item_ids[0].tolist(), found.log_probs[0].double().exp().tolist()))
    if head and retriever.settings.head_scores == "found":  # a distribution over what was found, like the other two
        p = {item: p[item] / sum(p[other] for other in left) for item in left}
    q = q_of(memory, history, left)
    h = of_head(retriever, history, user, left) if head else dict.fromkeys(left, 0.0)
    return {item: math.log(weight * q[item] + head * h[item] + (1 - weight - head) * p[item]) for item in left}


def check_lists(searcher: Searcher, barred: bool, among: list[int] | None = None) -> None:
    """Is what a search as wide as the catalogue finds ranked as the formula ranks all items?"""
    finder = searcher if among is None else searcher.among(torch.tensor(among))
    found = finder.ask(HISTORIES, USERS, barred, beam_size=ITEMS)
    for row, (history, user) in enumerate(zip(HISTORIES, USERS)):
        left = [item for item in (range(ITEMS) if among is None else among) if not (barred and item in history)]
        expected = formula(searcher.retriever, history, user, left)
        own = [item for item in found.item_ids[row].tolist() if item != PAD]
        assert sorted(own) == left
        keys = found.keys[row, : len(own)].tolist()
        assert keys == sorted(keys, reverse=True)
        # A sum of masses in fp64 is exact to some 1e-16, which is much beside the least probable items.
        assert [math.exp(key) for key in keys] == pytest.approx([math.exp(expected[item]) for item in own], rel=2e-5, abs=1e-15)


@pytest.mark.parametrize("weight", [0.25, 0.6, 1.0])
@pytest.mark.parametrize("barred", [True, False], ids=["barred", "not barred"])
def test_a_search_of_full_width_ranks_all_items_that_are_left_as_the_formula_does(run: Path, weight: float, barred: bool) -> None:
    retriever = load_retriever(run)
    assert retriever.settings.memory_weight == 0.6
    head = min(retriever.settings.head_weight, 1 - weight)
    check_lists(Searcher(weighing(retriever, weight, head)), barred)
    check_lists(Searcher(weighing(retriever, 0.0 if head else weight, head)), barred)


def test_a_shortlist_is_ranked_by_a_memory_of_its_items_alone(run: Path) -> None:
    """Of a model of codebooks the collision code is scored within the shortlist, so its p is that of a search among the same items."""
    retriever, among = load_retriever(run), list(range(20, 75))
    if retriever.model.tree is not None:
        check_lists(Searcher(retriever), True, among)
        return
    head = retriever.settings.head_weight
    alone = Searcher(weighing(retriever, 0.0), torch.tensor(among))
    found = Searcher(retriever, torch.tensor(among)).ask(HISTORIES, USERS, beam_size=ITEMS)
    model = alone.ask(HISTORIES, USERS, filter_history=False, beam_size=ITEMS)
    for row, history in enumerate(HISTORIES):
        left = [item for item in among if item not in history]
        p, q = dict(zip(model.item_ids[row].tolist(), model.log_probs[row].exp().tolist())), q_of(retriever.memory, history, left)
        own = found.item_ids[row, : len(left)].tolist()
        assert sorted(own) == left
        h = of_head(retriever, history, USERS[row], left) if head else dict.fromkeys(left, 0.0)
        expected = [math.log(0.6 * q[item] + head * h[item] + (0.4 - head) * p[item]) for item in own]
        assert found.keys[row, : len(left)].tolist() == pytest.approx(expected, abs=2e-5)
        assert expected == pytest.approx(sorted(expected, reverse=True), abs=4e-5)


def test_the_memory_changes_what_is_found(run: Path) -> None:
    retriever = load_retriever(run)
    alone = Searcher(weighing(retriever, 0.0))
    assert not torch.equal(Searcher(retriever).ask(HISTORIES, USERS).item_ids, alone.ask(HISTORIES, USERS).item_ids)


def test_what_is_evaluated_is_what_is_served(run: Path, tmp_path: Path, capsys) -> None:
    evaluator, written = Evaluator.for_run(run, "cpu"), json.loads((run / "metrics.json").read_text())
    assert evaluator.model("test", True).to_json() == written["test"]["TIGER"]
    best = max(json.loads(line)["validation"]["ndcg@10"] for line in (run / "log.jsonl").read_text().splitlines() if '"validation"' in line)
    assert written["validation"]["TIGER"]["metrics"]["ndcg@10"] == pytest.approx(best, abs=1e-12)

    data, shared = evaluator.data, from_pretrained(str(save_pretrained(run, tmp_path / "shared")))
    keys, user_keys = shared.tokenizer.info.item_keys, json.loads((run / "users.json").read_text())
    batch = next(data.eval_batches("test", 12))
    evaluated = evaluator.ranker.recommend(batch, 10, True).tolist()
    for row, (user, seen) in enumerate(zip(batch.user_ids.tolist(), batch.seen.tolist())):
        history = [item for item in seen if item != PAD]
        assert Searcher(shared).ask([history], [user]).item_ids[0, :10].tolist() == evaluated[row]
        asked = [str(run), "--history", " | ".join(keys[item] for item in history), "--user", user_keys[user]]
        assert recommend.main(asked) == 0
        assert listed(capsys.readouterr().out) == [keys[item] for item in evaluated[row]]


@pytest.mark.parametrize("barred", [True, False], ids=["barred", "not barred"])
def test_the_search_behind_recordings_has_the_memory_too(run: Path, barred: bool, monkeypatch) -> None:
    monkeypatch.setattr(graphs, "Recording", Rerun)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    evaluator = Evaluator.for_run(run, "cpu")
    for batch in evaluator.data.eval_batches("test", 64):
        replayed = graphs.ReplayedSearch(evaluator.ranker._search).search(batch, 10, batch.seen if barred else None)
        assert torch.equal(replayed.item_ids, evaluator.ranker.search(batch, barred, 10).item_ids)


def test_in_bf16_only_the_model_rounds(run: Path) -> None:
    retriever = load_retriever(run)
    for weight, tolerance in ((0.6, 0.1), (1.0, 0.0)):
        weighed = weighing(retriever, weight, min(retriever.settings.head_weight, 1 - weight))
        full, half = (
            Searcher(weighed._replace(settings=weighed.settings._replace(precision=precision))).ask(HISTORIES, USERS)
            for precision in ("fp32", "bf16")
        )
        torch.testing.assert_close(half.keys, full.keys, rtol=0, atol=tolerance)


def test_the_exported_program_has_the_memory_in_it(run: Path) -> None:
    searcher = Searcher(load_retriever(run))
    found = searcher.ask(HISTORIES, USERS)
    program = export_search(searcher.retriever).module()
    history = torch.tensor([[*items, *[PAD] * (20 - len(items))] for items in HISTORIES])
    items, scores = program(history, torch.tensor(USERS))
    assert torch.equal(items, found.item_ids)
    torch.testing.assert_close(scores, found.keys)
    alone = program(history[1:2, :1], torch.tensor(USERS[1:2]))
    assert torch.equal(alone[0], found.item_ids[1:2])


def test_a_resumed_run_with_a_memory_equals_an_unbroken_one(trained: Path, tmp_path: Path, run: Path, monkeypatch) -> None:
    monkeypatch.setattr(Run, "picture", lambda self, name, figure: None)
    kind = KINDS[run.parent.name.rstrip("0123456789")]
    with monkeypatch.context() as patch:
        interrupt_at(22, signal.SIGTERM, patch)
        run_decoder(trained, f"save_dir_root={tmp_path}", *SHORT, *kind, code=128 + signal.SIGTERM)
    run_decoder(trained, f"save_dir_root={tmp_path}", *SHORT, *kind)
    same_run(run, tmp_path / "beauty")
    ours, theirs = (load_memory(folder, ITEMS).state_dict() for folder in (run, tmp_path / "beauty"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_lost_its_memory_is_refused_in_a_sentence(run: Path, tmp_path: Path, capsys) -> None:
    lost = shutil.copytree(run, tmp_path / "lost", ignore=shutil.ignore_patterns("checkpoint-*"))
    (lost / MEMORY).unlink()
    assert recommend.main([str(lost), "--history", "No. 3"]) == 2
    assert "is searched with a memory" in capsys.readouterr().err
    with pytest.raises(UserError, match="is of 120 items, the run of 121"):
        load_memory(run, ITEMS + 1)


@pytest.mark.parametrize("weight", ["-0.1", "1.5"])
def test_a_weight_outside_its_range_is_refused(weight: str, trained: Path, tmp_path: Path, capsys) -> None:
    run_decoder(trained, f"memory_weight={weight}", f"save_dir_root={tmp_path}", code=2)
    assert "memory_weight" in capsys.readouterr().err
