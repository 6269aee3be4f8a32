"""One search: evaluation, recommend.py and a call from Python give the same lists, histories of any length barred whole."""

import json
import random
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import recommend
from data.processed import SeqData
from data.schemas import PAD
from modules.beam_search import SearchResult
from modules.runtime.runs.hub import from_pretrained, save_pretrained
from modules.runtime.runs.recommender import recent_items
from modules.runtime.runs.searcher import Searcher
from modules.runtime.runs.stage2_run import Retriever, SearchSettings, load_retriever, load_search, record_search
from modules.tokenizer.semids import SemanticIdTokenizer
from tests.runs import BF16, ITEMS, USERS, run_decoder
from tests.synthetic import to_histories

LENGTHS = [1, 2, 3, 5, 19, 20, 21, 22, 40, 64, 80, 100, 119, 150, 199, 200]


def invented() -> tuple[list[list[int]], list[int]]:
    """Histories of 1 to 200 items, of which the longer ones repeat and the longest leaves eight items, and their users, some unknown."""
    drawn = random.Random(2)
    histories = [[drawn.randrange(ITEMS) for _ in range(length)] for length in LENGTHS]
    histories[-1] = [item % (ITEMS - 8) for item in range(LENGTHS[-1])]
    return histories, [PAD if number % 5 == 1 else drawn.randrange(USERS) for number in range(len(LENGTHS))]


def evaluated_in(precision: str, run: Path, folder: Path) -> Path:
    """A copy of a run as if it had been evaluated in a precision; in which it was depends on the machine."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    settings = load_search(folder)
    assert settings is not None
    record_search(folder, settings._replace(precision=precision))
    return folder


def cut_off(answer: list[str], found: SearchResult, keys: list[str], tolerance: float) -> bool:
    """Are the answer's items those found, in an order whose scores fall but for the tolerance, and what is lacking no better than that?"""
    left = found.item_ids[0] != PAD
    score = {keys[item]: value for item, value in zip(found.item_ids[0][left].tolist(), found.log_probs[0][left].tolist())}
    worst = min(score.values())
    scores = [score.get(key, worst) for key in answer]
    missing = [value for key, value in score.items() if key not in answer]
    falling = all(later <= earlier + tolerance for earlier, later in pairwise(scores))
    return falling and all(value <= worst + tolerance for value in missing)


def listed(printed: str) -> list[str]:
    """The ids that recommend.py recommends."""
    return [line.split()[1] for line in printed.partition("recommended\n")[2].strip().splitlines()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_recommend_and_python_give_the_same_lists(precision: str, trained: Path, tmp_path: Path, capsys) -> None:
    run = evaluated_in(precision, trained / "decoder" / "beauty", tmp_path / "run")
    keys, user_keys = load_retriever(run).tokenizer.info.item_keys, json.loads((run / "users.json").read_text())
    histories, _ = invented()
    padding = [[0, 1, 2]] * (USERS - len(histories))  # two items to hold out behind each
    data = SeqData(to_histories([[*items, 0, 1] for items in histories] + padding), ITEMS)
    searcher, evaluated = Searcher(load_retriever(run)), {}
    for batch in data.eval_batches("validation", 1 if precision == "bf16" else 7, torch.arange(len(histories))):
        evaluated |= zip(batch.user_ids.tolist(), searcher.recommend(batch, 10, True).tolist())
    python = Searcher(from_pretrained(str(run)))
    for user, history in enumerate(histories):
        expected = [keys[item] for item in evaluated[user] if item != PAD]
        asked = python.ask([history], [user]).item_ids[0, :10].tolist()
        assert [keys[item] for item in asked if item != PAD] == expected
        assert recommend.main([str(run), "--history", " | ".join(keys[item] for item in history), "--user", user_keys[user]]) == 0
        assert listed(capsys.readouterr().out) == expected
        assert not {keys[item] for item in history} & set(expected)


def test_the_user_the_precision_and_the_beams_change_what_is_found(trained: Path, tmp_path: Path) -> None:
    run = trained / "decoder" / "beauty"
    plain, bf16 = (Searcher(load_retriever(evaluated_in(name, run, tmp_path / name))) for name in ("fp32", "bf16"))
    assert (plain.beam_size, plain.dtype, bf16.dtype) == (20, None, torch.bfloat16)
    history = [[3, 50, 7]]
    found = plain.ask(history, [4]).log_probs
    assert not torch.equal(found, plain.ask(history).log_probs)
    assert not torch.equal(found, bf16.ask(history, [4]).log_probs)
    torch.testing.assert_close(found, bf16.ask(history, [4]).log_probs, atol=0.2, rtol=0)
    assert plain.ask(history).item_ids.shape == (1, 20)
    assert plain.ask(history, beam_size=3).item_ids.shape == (1, 3)


def test_a_run_records_its_beams_and_order(trained: Path, trained_data: SeqData) -> None:
    settings = load_search(trained / "decoder" / "beauty")
    assert settings is not None
    assert settings.beam_size == 20
    popularity = trained_data.popularity[settings.order.argsort()]
    assert popularity.tolist() == sorted(popularity.tolist(), reverse=True)


@pytest.mark.parametrize(
    ("bf16", "override", "precision"), [("on", "amp=True", "bf16"), ("off", "amp=True", "fp32"), ("on", "amp=False", "fp32")]
)
def test_a_run_records_the_precision_that_its_machine_decided_on(
    bf16: str, override: str, precision: str, trained: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("TESTS_BF16", bf16)
    run_decoder(trained, "iterations=2", "do_eval=False", *BF16, override, f"save_dir_root={tmp_path}")
    settings = load_search(tmp_path / "beauty")
    assert settings is not None
    assert settings.precision == precision


def test_a_run_without_the_record_is_searched_in_fp32_with_fifty_beams(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "decoder" / "beauty", tmp_path / "run")
    (run / "search.json").unlink()
    searcher = Searcher(load_retriever(run))
    assert (searcher.beam_size, searcher.dtype) == (50, None)
    assert sorted(searcher.order.tolist()) == list(range(ITEMS))


def test_a_damaged_record_gets_a_sentence(trained: Path, tmp_path: Path, capsys) -> None:
    run = shutil.copytree(trained / "decoder" / "beauty", tmp_path / "run")
    for text in ("{", "[]", '{"precision": "int3", "beam_size": 5, "order": null}'):
        (run / "search.json").write_text(text)
        assert recommend.main([str(run), "--history", "No. 3"]) == 2
        assert "search.json cannot be read" in capsys.readouterr().err


def test_a_user_who_is_not_known_gets_a_sentence(trained: Path, tmp_path: Path, capsys) -> None:
    run = trained / "decoder" / "beauty"
    item = load_retriever(run).tokenizer.info.item_keys[3]
    assert recommend.main([str(run), "--history", item, "--user", "nobody"]) == 2
    assert "was trained on no user 'nobody'; give an id such as 'A000000000001'" in capsys.readouterr().err
    shared = save_pretrained(run, tmp_path / "shared")
    assert recommend.main([str(shared), "--history", item, "--user", "A000000000001"]) == 2
    assert "knows no users" in capsys.readouterr().err
    assert recommend.main([str(shared), "--history", item]) == 0


def test_a_shared_run_is_searched_as_the_run_was(trained: Path, tmp_path: Path) -> None:
    run = evaluated_in("bf16", trained / "decoder" / "beauty", tmp_path / "run")
    shared = from_pretrained(str(save_pretrained(run, tmp_path / "shared")))
    assert isinstance(shared, Retriever)
    assert (shared.settings.precision, shared.settings.beam_size) == ("bf16", 20)
    assert torch.equal(shared.settings.order, load_retriever(run).settings.order)


def test_a_shortlist_holds_item_0_in_padded_rows_and_bars_what_is_seen(trained_retriever: Retriever) -> None:
    found = Searcher(trained_retriever).among(torch.tensor([0, 5, 9])).ask([[5], [4, 3, 2], [0, 9, 9]])
    assert [sorted(item for item in row if item != PAD) for row in found.item_ids.tolist()] == [[0, 9], [0, 5, 9], [5]]
    kept = Searcher(trained_retriever, torch.tensor([0, 5, 9])).ask([[5], [4, 3]], filter_history=False)
    assert [sorted(row[:3]) for row in kept.item_ids.tolist()] == [[0, 5, 9]] * 2


def test_items_of_equal_score_come_in_the_run_s_order_also_where_the_beam_cuts_them(trained_retriever: Retriever) -> None:
    one_id = torch.zeros(ITEMS, 3, dtype=torch.int64)
    order = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(0))
    info = trained_retriever.tokenizer.info
    tokenizer = SemanticIdTokenizer(one_id, [], info).ordered_by(order)
    model = type(trained_retriever.model)(trained_retriever.model.config, tokenizer.vocab_sizes).eval()
    searcher = Searcher(Retriever(model, tokenizer, [], SearchSettings(6, "fp32", order)))
    wanted = [item for item in order.argsort().tolist() if item != 3]
    assert searcher.ask([[3]]).item_ids[0].tolist() == wanted[:6]
    some = torch.arange(0, ITEMS, 2)
    assert searcher.among(some).ask([[3]]).item_ids[0].tolist() == [item for item in wanted if item % 2 == 0][:6]


def test_other_ids_of_equal_score_come_in_the_run_s_order_too(trained_retriever: Retriever) -> None:
    codes = torch.cartesian_prod(torch.arange(8), torch.arange(8), torch.arange(8))[:ITEMS]
    order = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(1))
    tokenizer = SemanticIdTokenizer(codes, [], trained_retriever.tokenizer.info)
    model = type(trained_retriever.model)(trained_retriever.model.config, tokenizer.vocab_sizes).eval()
    for head in model.heads:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    searcher = Searcher(Retriever(model, tokenizer, [], SearchSettings(ITEMS, "fp32", order)))
    found = searcher.ask([[3]])
    assert found.item_ids[0, :-1].tolist() == [item for item in order.argsort().tolist() if item != 3]
    assert torch.equal(found.sem_ids[0, :-1], codes[found.item_ids[0, :-1]])


@pytest.mark.parametrize("width", [1, 3, 5])
def test_the_last_items_of_every_row_are_read(width: int) -> None:
    rows = [[1], [2, 3], [4, 5, 6], [7, 8, 9, 10, 11]]
    history = torch.tensor([row + [PAD] * (5 - len(row)) for row in rows])
    expected = [row[-width:] + [PAD] * (width - len(row[-width:])) for row in rows]
    assert recent_items(history, width).tolist() == expected
