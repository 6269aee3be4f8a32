"""Files of one's own that both scripts read, and what stage 2 says of their histories before it trains."""

import json
from pathlib import Path

import numpy as np
import pytest

import train_decoder
import train_rqvae
from modules.runtime.config.main import run_script
from tests.runs import DECODER, RQVAE

ITEMS = 24
HEADER = ("user", "item", "timestamp")


def write_shop(folder: Path, histories: list[list[int]], header: tuple[str, ...] = HEADER, items: bool = True) -> None:
    """Interactions in the order of the histories, a second apart, items and a vector for each."""
    rows = [
        (f"u{user}", f"i{item:02}", 1_600_000_000 + second) for user, history in enumerate(histories) for second, item in enumerate(history)
    ]
    lines = [",".join(map(str, row[: len(header)])) for row in rows]
    (folder / "interactions.csv").write_text("\n".join([",".join(header), *lines]) + "\n")
    if items:
        (folder / "items.csv").write_text("item,title\n" + "".join(f"i{item:02},Thing {item}\n" for item in range(ITEMS)))
    np.save(folder / "vectors.npy", np.random.default_rng(0).normal(size=(ITEMS, 32)).astype(np.float32))


def walk(user: int, length: int = 6) -> list[int]:
    return [(user + step) % ITEMS for step in range(length)]


def stage_one(folder: Path, *overrides: str) -> int:
    given = [*RQVAE, "iterations=20", "autoencoder_steps=5", "allow_collapse=True", f"save_dir_root={folder}/rqvae"]
    given += ["dataset_split=shop", f"dataset_folder={folder}", f"item_embeddings={folder}/vectors.npy", *overrides]
    return run_script(train_rqvae.train, "", ["configs/rqvae_custom.gin", *given])


def stage_two(folder: Path, *overrides: str) -> int:
    given = [*DECODER, "iterations=2", "do_eval=False", f"save_dir_root={folder}/decoder", f"pretrained_rqvae_path={folder}/rqvae"]
    return run_script(
        train_decoder.train, "", ["configs/decoder_custom.gin", *given, f"dataset_folder={folder}", "dataset_split=shop", *overrides]
    )


def test_held_out_items_that_cannot_be_hit_are_told_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = [[*walk(user)[:-1], walk(user)[0], walk(user)[1]] for user in range(10)]  # validation and test repeat the beginning
    write_shop(tmp_path, [*again, *(walk(user) for user in range(10, 40))])
    assert stage_one(tmp_path) == 0
    sentence = "warning: 10 of 40 held-out items are in the user's own history and cannot be hit while train.filter_history = True"
    for overrides, parts in ((("do_eval=False",), ["validation"]), (("do_eval=True", "run_name=tested"), ["validation", "test"])):
        capsys.readouterr()
        assert stage_two(tmp_path, *overrides) == 0
        shown = capsys.readouterr().out
        assert shown.index(sentence) < shown.index("training 2 steps")
        run = tmp_path / "decoder" / ("tested" if "test" in parts else "shop")
        assert (run / "report.txt").read_text().count(sentence) == len(parts)
        assert json.loads((run / "metrics.json").read_text())["data"]["held_out_in_history"] == dict.fromkeys(parts, 10)
    assert stage_two(tmp_path, "filter_history=False", "run_name=plain") == 0
    assert sentence not in capsys.readouterr().out


@pytest.mark.parametrize("do_eval", [True, False])
def test_histories_of_which_nothing_can_be_held_out_are_refused_before_training(tmp_path: Path, do_eval: bool, capsys) -> None:
    write_shop(tmp_path, [walk(user, 2) for user in range(30)])
    assert stage_one(tmp_path) == 0
    assert stage_two(tmp_path, f"do_eval={do_eval}") == 2
    shown = capsys.readouterr().err
    assert "no user has three items, so none can be held out for validation and test" in shown
    assert "Traceback" not in shown


def test_without_times_the_file_s_order_counts_and_a_split_by_time_is_refused(tmp_path: Path, capsys) -> None:
    write_shop(tmp_path, [walk(user) for user in range(30)], HEADER[:2])
    assert stage_one(tmp_path) == 0
    assert stage_two(tmp_path, 'split_by="time"') == 2
    assert "train.split_by = 'time' needs times and the interactions have none" in capsys.readouterr().err
    assert stage_two(tmp_path) == 0


def test_items_need_neither_file_nor_vectors_where_the_tokenizer_looks_at_nothing(tmp_path: Path, capsys) -> None:
    write_shop(tmp_path, [walk(user) for user in range(30)], items=False)
    assert stage_one(tmp_path, "item_embeddings=None") == 2
    assert "nothing is known of the items" in capsys.readouterr().err
    assert stage_one(tmp_path, "item_embeddings=None", "tokenizer=random", "run_name=drawn", "vae_codebook_size=4") == 0
    assert not (tmp_path / "rqvae" / "drawn" / "vectors.safetensors").exists()
    assert stage_two(tmp_path, f"pretrained_rqvae_path={tmp_path}/rqvae/drawn") == 0
    assert "keeps no text vectors" in capsys.readouterr().out


def test_items_need_no_file_where_vectors_are_given(tmp_path: Path) -> None:
    write_shop(tmp_path, [walk(user) for user in range(30)], items=False)
    assert stage_one(tmp_path) == 0
    assert stage_two(tmp_path) == 0
    assert len(json.loads((tmp_path / "rqvae" / "shop" / "tokenizer.json").read_text())["item_keys"]) == ITEMS
