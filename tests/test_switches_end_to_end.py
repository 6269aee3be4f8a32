"""The model's switches through the script: what is logged, resumed, loaded, restricted and exported."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train_decoder
from data.schemas import PAD, SeqBatch
from modules.decoder_config import DecoderConfig
from modules.runtime.export import export_search
from modules.runtime.retriever import Retriever, Shortlist, load_retriever
from modules.runtime.run import Run
from tests.runs import interrupt_at, lines, run_decoder
from tests.test_resume import same_run

SHORT = ["iterations=40", "full_eval_every=20", "partial_eval_every=10", "save_model_every=15", "log_every=5"]
SWITCHES = {
    "children": {"code_softmax": "children"},
    "best": {
        "history_tokens": "items",
        "code_softmax": "children",
        "node_embeddings": True,
        "node_dropout": 0.2,
        "item_dropout": 0.2,
        "item_head": True,
    },
    "tied": {"history_tokens": "items", "code_softmax": "children", "tie_nodes": True, "item_head": True, "distill": 0.3},
}


def with_switches(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The script builds its model with these switches."""
    shape = train_decoder.shape

    def switched(settings) -> DecoderConfig:
        return replace(shape(settings), **SWITCHES[name])

    monkeypatch.setattr(train_decoder, "shape", switched)
    monkeypatch.setattr(Run, "picture", lambda self, name, figure: None)


def some_histories() -> SeqBatch:
    history = torch.full((3, 20), PAD)
    history[0, :4], history[1, :1], history[2] = torch.tensor([3, 50, 7, 21]), 5, torch.arange(20)
    return SeqBatch(torch.tensor([0, 17, PAD]), history, history[:, :1], None)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switched_run_resumes_loads_restricts_and_exports(name: str, trained: Path, tmp_path: Path, monkeypatch) -> None:
    with_switches(monkeypatch, name)
    run_decoder(trained, f"save_dir_root={tmp_path}/whole", *SHORT)
    with monkeypatch.context() as patch:
        interrupt_at(22, signal.SIGTERM, patch)
        run_decoder(trained, f"save_dir_root={tmp_path}/broken", *SHORT, code=128 + signal.SIGTERM)
    run_decoder(trained, f"save_dir_root={tmp_path}/broken", *SHORT)
    run = tmp_path / "whole" / "beauty"
    same_run(run, tmp_path / "broken" / "beauty")

    logged = [line for line in lines(run) if "loss" in line]
    for line in logged:
        assert ("item_head" in line) == bool(SWITCHES[name].get("item_head"))
        assert line["loss"] == pytest.approx(sum(line["level_losses"]) + line.get("item_head", 0), rel=1e-4)
    assert logged[-1]["loss"] < logged[0]["loss"]

    retriever, batch = load_retriever(run), some_histories()
    seen = batch.item_ids
    found = retriever.search(batch, 20, seen)
    assert all(not set(own) & set(history) - {PAD} for own, history in zip(found.item_ids.tolist(), seen.tolist()))

    everything = retriever.search(batch, 120, None)
    scores = [dict(zip(*row)) for row in zip(everything.item_ids.tolist(), everything.log_probs.tolist())]
    torch.testing.assert_close(everything.log_probs.exp().sum(1), torch.ones(3), rtol=0, atol=1e-4)
    few = torch.arange(30, 60)
    among = Shortlist(retriever, few).search(batch, 40, seen)
    for row, items in enumerate(among.item_ids.tolist()):
        own = [item for item in items if item != PAD]
        assert set(own) == set(few.tolist()) - set(seen[row].tolist())
        assert among.log_probs[row, : len(own)].tolist() == pytest.approx([scores[row][item] for item in own], abs=1e-4)

    program = export_search(Retriever(*retriever), 3, 20).module()
    items, log_probs = program(batch.item_ids, batch.user_ids)
    assert torch.equal(items, found.item_ids)
    torch.testing.assert_close(log_probs, found.log_probs)


def test_weights_to_start_from_bring_their_vectors(trained: Path, tmp_path: Path, monkeypatch) -> None:
    with_switches(monkeypatch, "best")
    run_decoder(trained, f"save_dir_root={tmp_path}/first", *SHORT)
    first = tmp_path / "first" / "beauty"
    tiny = ["iterations=1", "full_eval_every=1", "partial_eval_every=1", "learning_rate=1e-12", "log_every=1", "warmup_steps=0"]
    run_decoder(trained, f"save_dir_root={tmp_path}/second", f"pretrained_decoder_path={first}", *tiny)
    ours, theirs = (load_retriever(folder).model.state_dict() for folder in (first, tmp_path / "second" / "beauty"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)
