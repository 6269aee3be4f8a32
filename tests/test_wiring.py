"""What a setting names is what it reaches: the scripts' wiring, each promise by what a run then does or keeps."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import data.batches
import train_decoder
import train_rqvae
from data.corpus import Histories
from data.item_embeddings import load_embeddings
from data.processed import DataConfig, RecDataset, SeqData, load_corpus
from data.schemas import UserError
from data.splits import Split, leave_one_out
from modules.input_norm import InputNormalizer
from modules.rqvae import RqVae
from modules.runtime.training.item_batches import split_rows
from modules.runtime.training.trainer import Trainer
from modules.tokenizer.direct import DirectTokenizer
from tests.runs import ITEMS, lines, run_decoder, run_rqvae
from tests.synthetic import to_histories


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


# -- which figures, which weights -------------------------------------------------------------------------------------------------------


def test_the_row_not_barred_is_not_barred(trained: Path) -> None:
    rows = metrics_of(trained / "decoder" / "beauty")["test"]
    assert {name for name, row in rows.items() if not row["filter_history"]} == {"TIGER, history not barred"}
    assert rows["TIGER, history not barred"]["metrics"] != rows["TIGER"]["metrics"]


def test_a_run_that_does_not_bar_has_a_row_that_is(trained: Path, tmp_path: Path) -> None:
    run_decoder(trained, "filter_history=False", "iterations=100", f"save_dir_root={tmp_path}")
    rows, barred = metrics_of(tmp_path / "beauty")["test"], "TIGER, history barred"
    assert {name for name, row in rows.items() if row["filter_history"]} == {barred}
    assert rows[barred]["metrics"] != rows["TIGER"]["metrics"]


def test_the_weights_of_the_best_validation_are_kept_and_reported_not_the_last(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that explodes late ruins the last validation; the run ends with the weights from before."""
    plain = train_decoder.learning_rate_factor
    monkeypatch.setattr(train_decoder, "learning_rate_factor", lambda *given: 300.0 if given[1] > 200 else plain(*given))
    run_decoder(trained, f"save_dir_root={tmp_path}")
    found = {line["step"]: line["validation"]["ndcg@10"] for line in lines(tmp_path / "beauty") if "validation" in line}
    assert found[300] < found[200] / 2
    figures = metrics_of(tmp_path / "beauty")["validation"]["TIGER"]["metrics"]
    assert figures["ndcg@10"] == pytest.approx(max(found.values()), abs=1e-12)


def test_a_collapsed_look_does_not_win_by_a_lower_loss(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def warnings(*_: object, **__: object) -> list[str]:
        seen.append(None)
        return [] if len(seen) <= 2 else ["level 0: it is said to have collapsed"]

    monkeypatch.setattr(train_rqvae, "collapse_warnings", warnings)
    run_rqvae(trained, f"save_dir_root={tmp_path}", "allow_collapse=True")
    looks = {line["step"]: line["quantized_reconstruction"] for line in lines(tmp_path / "beauty") if "quantized_reconstruction" in line}
    healthy = [looks[step] for step in sorted(looks)[:2]]
    assert min(looks.values()) < min(healthy)
    assert metrics_of(tmp_path / "beauty")["reconstruction_loss"] == pytest.approx(min(healthy), rel=1e-5)


# -- what reaches the optimizer -----------------------------------------------------------------------------------------------------------


class Stop(UserError):
    """Ends a run where a test has seen enough."""


@pytest.fixture
def optimizers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.nn.Module, torch.optim.Optimizer]]:
    """The model and optimizer that a script hands to its trainer; the run ends there."""
    found = []

    def caught(self, run, model, objective, optimizer, *rest, **more) -> None:
        found.append((model, optimizer))
        raise Stop("seen")

    monkeypatch.setattr(Trainer, "__init__", caught)
    return found


def test_the_rqvae_s_weight_decay_reaches_all_its_weights(trained: Path, tmp_path: Path, optimizers) -> None:
    run_rqvae(trained, "weight_decay=0.123", f"save_dir_root={tmp_path}", code=2)
    ((model, optimizer),) = optimizers
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.123}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_the_decoder_s_weight_decay_reaches_the_matrices_of_linear_layers_alone(trained: Path, tmp_path: Path, optimizers) -> None:
    run_decoder(trained, "weight_decay=0.123", f"save_dir_root={tmp_path}", code=2)
    ((model, optimizer),) = optimizers
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear)}
    assert len(decay) == len(list(model.parameters()))
    assert all(decay[id(parameter)] == (0.123 if id(parameter) in linear else 0.0) for parameter in model.parameters())


# -- what is trained on -------------------------------------------------------------------------------------------------------------------


def test_accumulated_batches_of_histories_are_all_different_ones(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, original = [], SeqData.train_batch

    def watched(self, step, *given):
        numbers.append(step)
        return original(self, step, *given)

    monkeypatch.setattr(SeqData, "train_batch", watched)
    run_decoder(trained, "gradient_accumulate_every=2", "iterations=3", "do_eval=False", f"save_dir_root={tmp_path}")
    assert numbers == [0, 1, 2, 3, 4, 5]


def test_accumulated_batches_of_items_are_all_different_ones(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, original = [], train_rqvae.index_batches

    def watched(*given):
        rows = original(*given)
        return lambda number: numbers.append(number) or rows(number)

    monkeypatch.setattr(train_rqvae, "index_batches", watched)
    short = ["gradient_accumulate_every=2", "iterations=3", "autoencoder_steps=1", "allow_collapse=True"]
    run_rqvae(trained, *short, f"save_dir_root={tmp_path}")
    assert numbers == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("items", [1, 19, 120, 1000])
def test_held_out_rows_are_a_seeded_twentieth_that_is_not_trained_on(items: int) -> None:
    training, held_out = split_rows(items, True, 4)
    assert len(held_out) == max(1, items // 20)
    assert sorted([*training.tolist(), *held_out.tolist()]) == list(range(items))
    assert torch.equal(held_out, split_rows(items, True, 4).held_out)
    if items > 100:
        assert not torch.equal(held_out, split_rows(items, True, 5).held_out)
    assert split_rows(items, False, 4) == (None, None)


@pytest.mark.parametrize("tokenizer", ["rqvae", "rqkmeans"])
def test_held_out_items_are_seen_by_no_step_of_the_training(
    tokenizer: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, used = load_embeddings(trained / "items.npy", ITEMS), set()
    row_of = {tuple(vector): row for row, vector in enumerate(vectors.tolist())}
    assert len(row_of) == ITEMS

    def watch(kind: type, name: str) -> None:
        original = getattr(kind, name)

        def watched(self, items, *given, **named):
            used.update(row_of[tuple(vector)] for vector in items.float().tolist())
            return original(self, items, *given, **named)

        monkeypatch.setattr(kind, name, watched)

    for name in ("autoencoding_loss", "forward", "start_codebooks"):
        watch(RqVae, name)
    watch(InputNormalizer, "fit")
    watch(DirectTokenizer, "fit")
    run_rqvae(trained, "do_eval=True", f"tokenizer={tokenizer}", "iterations=90", f"save_dir_root={tmp_path}")
    training, _ = split_rows(ITEMS, True, 0)
    assert used == set(training.tolist())


def test_the_affinity_of_semantic_ids_is_counted_on_the_training_part(trained: Path) -> None:
    histories = load_corpus(DataConfig(RecDataset.AMAZON, str(trained), "beauty")).histories
    item_ids, offsets = leave_one_out(histories).train
    users = [item_ids[begin:end].tolist() for begin, end in pairwise(offsets.tolist())]
    adjacent = sum(first != second for items in users for first, second in pairwise(items))
    assert metrics_of(trained / "rqvae" / "beauty")["affinity"]["pairs"] == adjacent


@pytest.mark.parametrize("leak", ["validation", "test"])
def test_a_split_that_leaks_is_noticed_whoever_made_it(leak: str, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = to_histories([[0, 1, 2, 3, 4], [4, 3, 2, 1]])

    def leaking(whole: Histories) -> Split:
        split = leave_one_out(whole)
        if leak == "validation":
            return split._replace(train=to_histories([[0, 1, 2, 3], [4, 3, 2]]))
        return split._replace(train=whole)

    assert len(SeqData(histories, 5).split.train.item_ids) == 5
    monkeypatch.setattr(data.batches, "leave_one_out", leaking)
    with pytest.raises(AssertionError, match="leak check"):
        SeqData(histories, 5)


def test_batches_of_all_lengths_come_in_an_order_of_the_epoch_s_own(trained_data: SeqData) -> None:
    epochs = [trained_data.train_plan(8, seed=0, epoch=epoch).widths.tolist() for epoch in range(3)]
    assert len(set(epochs[0])) > 3
    for epoch, widths in enumerate(epochs):
        assert sorted(widths) == sorted(epochs[0])
        assert widths != sorted(widths)
        assert widths != epochs[epoch - 1]
