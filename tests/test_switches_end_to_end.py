"""The model's switches through the script: what is logged, resumed, loaded, restricted and exported."""

import signal
from pathlib import Path

import pytest
import torch

from data.schemas import PAD
from modules.runtime.runs.export import export_search
from modules.runtime.runs.run import Run
from modules.runtime.runs.searcher import Searcher
from modules.runtime.runs.stage2_run import load_retriever
from tests.runs import interrupt_at, lines, run_decoder, run_rqvae
from tests.test_resume import same_run

SHORT = ["iterations=40", "full_eval_every=20", "partial_eval_every=10", "save_model_every=15", "log_every=5"]
BEST = ["history_tokens=items", "code_softmax=children", "node_embeddings=True", "node_dropout=0.2", "item_dropout=0.2", "item_head=True"]
SWITCHES = {
    "children": ["code_softmax=children"],
    "best": BEST,
    "tied": ["history_tokens=items", "code_softmax=children", "tie_nodes=True", "item_head=True", "distill=0.3", "text_projection=True"],
}
HISTORIES = [[3, 50, 7, 21], [5], list(range(20))]
USERS = [0, 17, PAD]


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switched_run_resumes_loads_restricts_and_exports(name: str, trained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Run, "picture", lambda self, name, figure: None)
    short = [*SHORT, *SWITCHES[name]]
    run_decoder(trained, f"save_dir_root={tmp_path}/whole", *short)
    with monkeypatch.context() as patch:
        interrupt_at(22, signal.SIGTERM, patch)
        run_decoder(trained, f"save_dir_root={tmp_path}/broken", *short, code=128 + signal.SIGTERM)
    run_decoder(trained, f"save_dir_root={tmp_path}/broken", *short)
    run = tmp_path / "whole" / "beauty"
    same_run(run, tmp_path / "broken" / "beauty")

    logged = [line for line in lines(run) if "loss" in line]
    for line in logged:
        assert ("item_head" in line) == ("item_head=True" in short)
        assert line["loss"] == pytest.approx(sum(line["level_losses"]) + line.get("item_head", 0), rel=1e-4)
    assert logged[-1]["loss"] < logged[0]["loss"]

    searcher = Searcher(load_retriever(run))
    found = searcher.ask(HISTORIES, USERS)
    assert all(not set(own) & set(history) for own, history in zip(found.item_ids.tolist(), HISTORIES))

    everything = searcher.ask(HISTORIES, USERS, filter_history=False, beam_size=120)
    scores = [dict(zip(*row)) for row in zip(everything.item_ids.tolist(), everything.log_probs.tolist())]
    torch.testing.assert_close(everything.log_probs.exp().sum(1), torch.ones(3), rtol=0, atol=1e-4)
    few = torch.arange(30, 60)
    among = searcher.among(few).ask(HISTORIES, USERS, beam_size=40)
    for row, items in enumerate(among.item_ids.tolist()):
        own = [item for item in items if item != PAD]
        assert set(own) == set(few.tolist()) - set(HISTORIES[row])
        assert among.log_probs[row, : len(own)].tolist() == pytest.approx([scores[row][item] for item in own], abs=1e-4)

    program = export_search(searcher.retriever).module()
    history = torch.tensor([[*items, *[PAD] * (20 - len(items))] for items in HISTORIES])
    items, log_probs = program(history, torch.tensor(USERS))
    assert torch.equal(items, found.item_ids)
    torch.testing.assert_close(log_probs, found.log_probs)


def test_weights_to_start_from_bring_their_vectors(trained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Run, "picture", lambda self, name, figure: None)
    run_decoder(trained, f"save_dir_root={tmp_path}/first", *SHORT, *BEST)
    first = tmp_path / "first" / "beauty"
    tiny = ["iterations=1", "full_eval_every=1", "partial_eval_every=1", "learning_rate=1e-12", "log_every=1", "warmup_steps=0"]
    run_decoder(trained, f"save_dir_root={tmp_path}/second", f"pretrained_decoder_path={first}", *BEST, *tiny)
    ours, theirs = (load_retriever(folder).model.state_dict() for folder in (first, tmp_path / "second" / "beauty"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)


def test_weights_that_know_the_items_by_other_ids_are_refused_in_a_sentence(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Run, "picture", lambda self, name, figure: None)
    run_rqvae(trained, f"save_dir_root={tmp_path}/other", "tokenizer=random", "seed=5")
    given = [f"pretrained_rqvae_path={tmp_path}/other", f"pretrained_decoder_path={trained}/decoder", f"save_dir_root={tmp_path}"]
    run_decoder(trained, *given, "run_name=new", code=2)
    assert "was trained on other semantic IDs, by which its weights know the items; give another one" in capsys.readouterr().err
