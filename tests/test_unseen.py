"""A split by time, end to end, and the slice of users whose test item training never saw."""

import json
from pathlib import Path

import pytest

import train_decoder
import train_rqvae
from modules.runtime.config.main import run_script
from tests.runs import DECODER, RQVAE
from tests.synthetic import write_embeddings, write_tables
from tests.test_ranks_file import check_every_figure

ITEMS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted tables, behind which every third user meets the last ten items, which nobody met before."""
    folder = tmp_path_factory.mktemp("late")
    write_tables(folder, "late", 150, ITEMS)
    path = folder / "raw" / "late.interactions.csv"
    header, *rows = path.read_text().splitlines()
    kept = [row for row in rows if int(row.split(",")[1][1:]) <= ITEMS - 10]
    late = [f"u{user},i{ITEMS - user % 10},{50_000 + user}" for user in range(3, 150, 3)]
    path.write_text("\n".join([header, *kept, *late]) + "\n")
    write_embeddings(folder / "items.npy", ITEMS)
    return folder


def run(folder: Path, *overrides: str, code: int = 0) -> None:
    given = ["dataset_split=late", f"dataset_folder={folder}"]
    if not (folder / "rqvae").exists():
        vectors = [f"item_embeddings={folder}/items.npy", f"save_dir_root={folder}/rqvae"]
        assert run_script(train_rqvae.train, "", ["configs/rqvae_custom.gin", *given, *vectors, *RQVAE]) == 0
    roots = [f"pretrained_rqvae_path={folder}/rqvae", f"save_dir_root={folder}/decoder"]
    short = ["iterations=20", "full_eval_every=20", "partial_eval_every=20", "warmup_steps=2"]
    assert run_script(train_decoder.train, "", ["configs/decoder_custom.gin", *given, *roots, *DECODER, *short, *overrides]) == code


def test_a_split_by_time_trains_and_reports_the_items_that_training_never_saw(folder, capsys):
    run(folder, "split_by=time", "split_quantiles=[0.8, 0.94]")
    printed = capsys.readouterr().out
    assert "moments  train before" in printed
    assert "users whose item training never saw, full ranking" in printed
    metrics = json.loads((folder / "decoder" / "late" / "metrics.json").read_text())
    rows = metrics["test, unseen items"]
    counted = ["most popular", "last item -> next (Markov)", "Markov with texts", "item-kNN", "memory"]
    assert list(rows) == ["TIGER", "TIGER among such items only", "TIGER, history not barred", *counted]
    assert rows["TIGER among such items only"]["metrics"]["recall@10"] == 1.0  # ten such items, ten places
    assert rows["most popular"]["metrics"]["recall@10"] == 0.0
    assert 0 < rows["TIGER"]["users"] < metrics["test"]["TIGER"]["users"]
    assert metrics["data"]["unseen_test_share"] == rows["TIGER"]["users"] / metrics["test"]["TIGER"]["users"]
    assert len(metrics["data"]["split"]) == 12
    assert check_every_figure(folder / "decoder" / "late") == 6 + 7 + 8
