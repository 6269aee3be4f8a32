"""The exported search gives what the run's own evaluation gives, by external ids, and needs nothing of this project to run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.schemas import PAD
from modules.runtime.runs import export
from modules.runtime.runs.export import COMPILERS, main
from modules.runtime.runs.searcher import Searcher
from modules.runtime.runs.stage2_run import load_retriever
from tests.test_searcher import cut_off, evaluated_in, invented

SERVICE = """
import json, sys, torch
folder, how = sys.argv[1:]
path = folder + "/search.pt2"
program = torch.export.load(path).module() if how == "export" else torch._inductor.aoti_load_package(path)
ids = json.load(open(folder + "/search.ids.json"))
item_row, user_row = ({key: number for number, key in enumerate(ids[what])} for what in ("items", "users"))
answers = []
for request in json.load(open(folder + "/requests.json")):
    width = max(len(history) for _, history in request)
    history = torch.tensor([[item_row[key] for key in items] + [-1] * (width - len(items)) for _, items in request])
    user = torch.tensor([user_row.get(key, -1) for key, _ in request])
    with torch.inference_mode():
        items, log_probs = program(history, user)
    assert not log_probs.requires_grad
    answers += [[ids["items"][item] for item in row if item >= 0] for row in items.tolist()]
json.dump(answers, open(folder + "/answers.json", "w"))
assert not [name for name in sys.modules if name.partition(".")[0] in ("modules", "data")]
"""


def served(folder: Path, requests: list[list[tuple[str, list[str]]]], how: str = "export") -> list[list[str]]:
    """What a process without this project answers to batches of (user, history) by external ids, one list a row."""
    (folder / "requests.json").write_text(json.dumps(requests))
    environment = {"PATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", SERVICE, str(folder), how], cwd=folder, check=True, env=environment)
    return json.loads((folder / "answers.json").read_text())


def batches(requests: list[tuple[str, list[str]]]) -> list[list[tuple[str, list[str]]]]:
    """One request alone, then the others in batches of other sizes and widths."""
    return [requests[:1], requests[1:3], requests[3:10], requests[10:]]


@pytest.mark.parametrize(("keep", "precision"), [(False, "fp32"), (True, "fp32"), (False, "bf16")], ids=["barred", "kept", "bf16"])
def test_the_exported_search_equals_the_evaluated_one_without_our_code(trained: Path, tmp_path: Path, keep: bool, precision: str) -> None:
    run = evaluated_in(precision, trained / "decoder" / "beauty", tmp_path / "run")
    assert main([str(run), "--output", str(tmp_path / "search.pt2"), *(["--keep-history"] if keep else [])]) == 0
    retriever = load_retriever(run)
    keys, user_keys = retriever.tokenizer.info.item_keys, json.loads((run / "users.json").read_text())
    histories, users = invented()
    requests = [("nobody" if user == PAD else user_keys[user], [keys[item] for item in items]) for user, items in zip(users, histories)]
    answers = served(tmp_path, batches(requests))
    searcher = Searcher(retriever)
    assert searcher.dtype == (torch.bfloat16 if precision == "bf16" else None)
    for history, user, answer in zip(histories, users, answers, strict=True):
        found = searcher.ask([history], [user], not keep)
        expected = [keys[item] for item in found.item_ids[0].tolist() if item != PAD]
        assert keep or not {keys[item] for item in history} & set(answer)
        if precision == "fp32":
            assert answer == expected
        else:  # a batch of another size rounds otherwise: only items of nearly equal score may change places
            assert cut_off(answer, found, keys, 0.1)
    assert keep or min(map(len, answers)) < retriever.settings.beam_size == max(map(len, answers))


def test_the_compiled_program_gives_what_the_search_gives(trained: Path, tmp_path: Path) -> None:
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip(f"AOTInductor compiles C++, and none of {', '.join(COMPILERS)} is here")
    run = evaluated_in("fp32", trained / "decoder" / "beauty", tmp_path / "run")
    assert main([str(run), "--output", str(tmp_path / "search.pt2"), "--aot", "--beam-size", "12"]) == 0
    retriever = load_retriever(run)
    keys, user_keys = retriever.tokenizer.info.item_keys, json.loads((run / "users.json").read_text())
    histories, users = invented()
    requests = [("nobody" if user == PAD else user_keys[user], [keys[item] for item in items]) for user, items in zip(users, histories)]
    for history, user, answer in zip(histories, users, served(tmp_path, batches(requests), "aot"), strict=True):
        found = Searcher(retriever).ask([history], [user], beam_size=12)
        assert answer == [keys[item] for item in found.item_ids[0].tolist() if item != PAD]


def test_without_a_compiler_a_sentence_says_what_to_do(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(export, "export_search", lambda *given: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main([str(trained / "decoder" / "beauty"), "--output", str(tmp_path / "search.pt2"), "--aot"]) == 2
    assert "--aot compiles C++ and there is no g++" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "words"), [(["--beam-size", "0"], "at least 1 beam"), (["--output", "x.pt"], "ends in .pt2")])
def test_what_cannot_be_exported_gets_a_sentence(trained: Path, given: list[str], words: str, capsys) -> None:
    assert main([str(trained / "decoder" / "beauty"), *given]) == 2
    assert words in capsys.readouterr().err


def test_a_directory_that_is_no_run_gets_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no run of train_decoder.py" in capsys.readouterr().err
