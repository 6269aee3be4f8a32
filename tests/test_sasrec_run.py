"""Runs of train.model = "sasrec": trained, resumed, evaluated, asked, shared and refused like those of TIGER, without stage 1."""

import json
import math
import shutil
import signal
from pathlib import Path

import huggingface_hub
import pytest
import torch

import recommend
from benchmarks import beams
from data.processed import DataConfig, RecDataset, SeqData, load_corpus
from data.schemas import PAD, UserError
from evaluate.compare import main as compare
from modules.runtime.evaluation.evaluator import Evaluator
from modules.runtime.runs import export
from modules.runtime.runs.hub import find_snapshot, from_pretrained, save_pretrained
from modules.runtime.runs.run import Run
from modules.runtime.runs.sasrec_run import SASRecRun
from modules.runtime.runs.sasrec_searcher import SASRecSearcher
from modules.runtime.runs.searcher import Searcher
from modules.runtime.runs.stage2_models import load_recommender
from modules.runtime.runs.stage2_run import load_search
from tests.runs import BF16, ITEMS, USERS, interrupt_at, lines, run_decoder, run_rqvae, run_sasrec, write_data
from tests.slow_evaluator import Case, cases
from tests.synthetic import to_histories, to_lists, write_p5
from tests.test_resume import same_run
from tests.test_searcher import evaluated_in, invented, listed

SHORT = ["iterations=40", "do_eval=False"]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "picture", lambda self, name, figure: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with planted data, a run of stage 1 with random codes, and a finished run of SASRec that did not look at it."""
    folder = tmp_path_factory.mktemp("sasrec")
    write_data(folder)
    run_rqvae(folder, "tokenizer=random")
    run_sasrec(folder, f"pretrained_rqvae_path={folder}/nowhere")
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    return data / "sasrec" / "beauty"


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


# -- trained ------------------------------------------------------------------------------------------------------------------------------


def test_it_learns_the_planted_successors_and_stands_beside_the_baselines_that_need_no_texts(run: Path) -> None:
    metrics = metrics_of(run)
    counted = ["most popular", "last item -> next (Markov)", "item-kNN", "memory without texts"]
    assert list(metrics["validation"]) == ["SASRec", *counted]
    assert list(metrics["test"]) == ["SASRec", "SASRec, history not barred", *counted]
    assert metrics["test"]["SASRec"]["metrics"]["recall@10"] > 0.7
    assert "code_recall@10" not in metrics["test"]["SASRec"]["metrics"]
    report = (run / "report.txt").read_text()
    assert all(wanted in report for wanted in ("SASRec", "item-kNN", "95 %", "held out", "No. "))


def test_its_figures_are_those_of_every_score_of_every_user_sorted(data: Path, run: Path) -> None:
    corpus = load_corpus(DataConfig(RecDataset.AMAZON, str(data), "beauty"))
    users, model = to_lists(corpus.histories), load_recommender(run).model
    order = load_search(run).order

    @torch.no_grad()
    def rank(case: Case) -> int:
        items = torch.tensor([case.history[-model.config.max_seq_len :]])
        scores = (model.states(items)[0, -1] @ model.item_embedding.weight.T).tolist()
        ranked = sorted(set(range(ITEMS)) - set(case.history), key=lambda item: (-scores[item], int(order[item])))
        return ranked.index(case.target) if case.target in ranked else ITEMS

    for part in ("validation", "test"):
        ranks, figures = [rank(case) for case in cases(users, part)], metrics_of(run)[part]["SASRec"]["metrics"]
        assert len(ranks) == USERS
        assert figures["recall@5"] == pytest.approx(sum(rank < 5 for rank in ranks) / USERS, abs=1.1 / USERS)
        assert figures["ndcg@10"] == pytest.approx(sum(1 / math.log2(rank + 2) for rank in ranks if rank < 10) / USERS, abs=1.1 / USERS)


def test_the_best_validation_is_kept(run: Path) -> None:
    best = max(line["validation"]["ndcg@10"] for line in lines(run) if "validation" in line)
    assert metrics_of(run)["validation"]["SASRec"]["metrics"]["ndcg@10"] == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("settings", [[], ["full_softmax_items=50", "sampled_items=20"]], ids=["full", "sampled"])
def test_a_run_interrupted_at_many_steps_equals_an_unbroken_one(settings: list[str], data: Path, run: Path, tmp_path: Path) -> None:
    whole = run
    if settings:
        run_sasrec(data, *settings, f"save_dir_root={tmp_path}/whole", f"pretrained_rqvae_path={data}/nowhere")
        whole = tmp_path / "whole" / "beauty"
        assert {line["step"]: line["loss"] for line in lines(whole) if "loss" in line} != {
            line["step"]: line["loss"] for line in lines(run) if "loss" in line
        }
    given = [*settings, f"save_dir_root={tmp_path}/broken", f"pretrained_rqvae_path={data}/nowhere"]
    for turn, step in enumerate((0, 49, 50, 99)):
        number = (signal.SIGINT, signal.SIGTERM)[turn % 2]
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(step, number, patch)
            run_sasrec(data, *given, code=128 + number)
    run_sasrec(data, *given)
    same_run(whole, tmp_path / "broken" / "beauty")


def test_weights_of_another_run_may_be_started_from(data: Path, run: Path, tmp_path: Path) -> None:
    given = ["iterations=1", "learning_rate=1e-9", "do_eval=False", f"save_dir_root={tmp_path}", f"pretrained_rqvae_path={data}/nowhere"]
    run_sasrec(data, *given, f"pretrained_decoder_path={run}")
    assert metrics_of(tmp_path / "beauty")["validation"] == metrics_of(run)["validation"]


def test_a_run_does_not_go_on_with_another_model_or_on_other_items(data: Path, tmp_path: Path, capsys) -> None:
    write_p5(tmp_path, 60, ITEMS)
    given = [f"dataset_folder={tmp_path}", f"save_dir_root={tmp_path}/out", f"pretrained_rqvae_path={data}/nowhere"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(60, signal.SIGINT, patch)
        run_sasrec(data, *given, code=130)
    run_decoder(data, f"save_dir_root={tmp_path}/out", f"dataset_folder={tmp_path}", code=2)
    assert "model was 'sasrec' and is now 'tiger'" in capsys.readouterr().err
    write_p5(tmp_path, 60, ITEMS + 5)
    run_sasrec(data, *given, "force_dataset_process=True", code=2)
    assert "is being trained on other data: the histories, the items and the items' texts are others now" in capsys.readouterr().err


# -- texts --------------------------------------------------------------------------------------------------------------------------------


def test_where_stage_one_kept_text_vectors_the_baselines_read_them_and_text_projection_does(data: Path, tmp_path: Path, capsys) -> None:
    run_sasrec(data, *SHORT, f"save_dir_root={tmp_path}/plain")
    run_sasrec(data, *SHORT, "text_projection=True", f"save_dir_root={tmp_path}/texts")
    assert "and their texts" in capsys.readouterr().out
    plain, texts = tmp_path / "plain" / "beauty", tmp_path / "texts" / "beauty"
    assert {"Markov with texts", "memory"} <= metrics_of(plain)["validation"].keys()
    assert not (plain / "vectors.safetensors").exists()
    assert metrics_of(plain)["validation"]["SASRec"] != metrics_of(texts)["validation"]["SASRec"]
    # What is loaded projects the same vectors.
    shared = save_pretrained(texts, tmp_path / "shared")
    for folder in (texts, shared):
        model = from_pretrained(str(folder)).model
        assert model.text_vectors.shape == (ITEMS, 32)
        found = Evaluator.for_run(texts, "cpu").model("validation", True).to_json()
        assert found == metrics_of(texts)["validation"]["SASRec"]
    shutil.copytree(data / "rqvae" / "beauty", tmp_path / "rqvae", ignore=shutil.ignore_patterns("vectors.safetensors"))
    for path, words in ((tmp_path / "rqvae", "stage 1's run has none"), (tmp_path / "none", "no run of train_rqvae.py in")):
        run_sasrec(data, "text_projection=True", f"pretrained_rqvae_path={path}", f"save_dir_root={tmp_path}/no", code=2)
        assert words in capsys.readouterr().err


def test_light_gcn_is_a_row_of_the_report_where_it_is_asked_for(data: Path, tmp_path: Path, capsys) -> None:
    run_sasrec(data, "iterations=2", "light_gcn_epochs=2", f"save_dir_root={tmp_path}")
    assert "LightGCN epoch    2  validation ndcg@10" in capsys.readouterr().out
    rows = metrics_of(tmp_path / "beauty")
    assert list(rows["validation"])[-1] == list(rows["test"])[-1] == "LightGCN"
    assert rows["validation"]["LightGCN"]["users"] == USERS


# -- asked --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_recommend_and_python_give_the_same_lists(precision: str, run: Path, tmp_path: Path, capsys) -> None:
    folder = evaluated_in(precision, run, tmp_path / "run")
    evaluated, recommender = {}, load_recommender(folder)
    keys, (histories, _) = recommender.item_keys, invented()
    padding = [[0, 1, 2]] * (USERS - len(histories))  # two items to hold out behind each
    data = SeqData(to_histories([[*items, 0, 1] for items in histories] + padding), ITEMS, recommender.max_seq_len)
    for batch in data.eval_batches("validation", 1 if precision == "bf16" else 7, torch.arange(len(histories))):
        evaluated |= zip(batch.user_ids.tolist(), recommender.recommend(batch, 10, True).tolist())
    for user, history in enumerate(histories):
        expected = [keys[item] for item in evaluated[user] if item != PAD]
        asked = recommender.ask([history], [user]).item_ids[0, :10].tolist()
        assert [keys[item] for item in asked if item != PAD] == expected
        assert recommend.main([str(folder), "--history", " | ".join(keys[item] for item in history)]) == 0
        assert listed(capsys.readouterr().out) == expected
        assert not {keys[item] for item in history} & set(expected)


def test_titles_go_in_and_titled_items_with_their_probability_come_out(run: Path, capsys) -> None:
    recommender = load_recommender(run)
    with torch.no_grad():
        batch = recommender.batch_of(torch.tensor([[3, 5]]), torch.tensor([PAD]), 2)
        log_probs = recommender.model.scores(batch)[0].log_softmax(0)
    given = [str(run), "--history", f"{recommender.item_keys[3]} | {recommender.titles[5]}", "--k", "4", "--keep-history"]
    assert recommend.main(given) == 0
    shown = capsys.readouterr().out.partition("recommended\n")[2].strip().splitlines()
    for rank, (line, item) in enumerate(zip(shown, log_probs.argsort(descending=True)[:4].tolist(), strict=True), 1):
        wanted = f"{rank} {recommender.item_keys[item]} {recommender.titles[item]} (log p {log_probs[item]:.2f})"
        assert line.split() == wanted.split()


def test_only_listed_items_are_found_among_them_in_the_order_of_all(run: Path, tmp_path: Path, capsys) -> None:
    recommender = load_recommender(run)
    keys, some = recommender.item_keys, torch.tensor([0, 5, 9, 40, 41])
    (tmp_path / "new.txt").write_text("".join(f"{keys[item]}\n" for item in some.tolist()))
    assert recommend.main([str(run), "--history", keys[5], "--among", str(tmp_path / "new.txt")]) == 0
    everything = recommender.ask([[5]], beam_size=ITEMS)
    expected = [item for item in everything.item_ids[0].tolist() if item in (0, 9, 40, 41)]
    assert listed(capsys.readouterr().out) == [keys[item] for item in expected]
    among = recommender.among(some).ask([[5], [40, 0]], beam_size=5)
    assert among.item_ids[0].tolist() == [*expected, PAD]
    assert (among.item_ids[1] != PAD).sum() == 3
    places = [everything.item_ids[0].tolist().index(item) for item in expected]
    torch.testing.assert_close(among.keys[0], torch.cat([everything.keys[0, places], torch.tensor([-torch.inf])]))


def test_what_a_large_catalogue_is_searched_in_makes_no_difference(run: Path, monkeypatch) -> None:
    recommender, (histories, _) = load_recommender(run), invented()
    whole = recommender.ask(histories)
    monkeypatch.setattr("modules.runtime.runs.sasrec_searcher.KEYS_IN_MEMORY", 3 * ITEMS)
    for ours, theirs in zip(recommender.ask(histories), whole):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_what_it_does_not_know_is_refused_in_a_sentence(data: Path, run: Path, tmp_path: Path, capsys) -> None:
    asked = [str(run), "--history", "B000000003"]
    for more, words in ((["--beam-size", "20"], "SASRec scores every item"), (["--user", "A000000000001"], "knows no users")):
        assert recommend.main([*asked, *more]) == 2
        assert words in capsys.readouterr().err
    assert export.main([str(run)]) == 2
    assert "one of SASRec, and only the beam search of TIGER is exported" in capsys.readouterr().err
    assert beams.main([str(run), "--device", "cpu"]) == 2
    assert "is a run of SASRec, which has no beams" in capsys.readouterr().err
    run_decoder(data, f"pretrained_rqvae_path={run}", f"save_dir_root={tmp_path}", code=2)
    assert "takes one of train_rqvae.py" in capsys.readouterr().err


def test_a_finished_run_is_opened_again_and_compared_with_a_baseline(data: Path, run: Path, capsys) -> None:
    evaluator = Evaluator.for_run(run, "cpu")
    assert evaluator.model("validation", True).to_json() == metrics_of(run)["validation"]["SASRec"]
    assert evaluator.model("test", False).to_json() == metrics_of(run)["test"]["SASRec, history not barred"]
    assert compare([str(run), f"{run}:most popular"]) == 0
    assert "recall@10" in capsys.readouterr().out


def test_a_run_in_bf16_is_asked_in_bf16(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TESTS_BF16", "on")
    run_sasrec(data, *SHORT, *BF16, f"save_dir_root={tmp_path}")
    assert load_recommender(tmp_path / "beauty").dtype == torch.bfloat16


# -- shared -------------------------------------------------------------------------------------------------------------------------------


def test_a_shared_run_comes_back_from_the_hub_and_answers_as_before(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    asked: list[set[str]] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append(set(allow_patterns))
        return str(save_pretrained(run, tmp_path / "cache", "me/sasrec"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = from_pretrained("me/sasrec")
    assert isinstance(found, SASRecRun)
    for ours, theirs in zip(SASRecSearcher(found).ask([[3, 5, 7]]), load_recommender(run).ask([[3, 5, 7]])):
        assert torch.equal(ours, theirs)
    shared = {path.name for path in (tmp_path / "cache").iterdir()}
    assert shared == {
        *("config.gin", "config.json", "environment.json", "items.json", "metrics.json", "model.safetensors"),
        *("README.md", "search.json", "titles.json"),
    }
    assert shared - {"README.md"} <= asked[0]
    assert not any(str(run.parents[1]).encode() in path.read_bytes() for path in (tmp_path / "cache").iterdir())
    assert recommend.main(["me/sasrec", "--history", "B000000003", "--k", "3"]) == 0
    assert len(listed(capsys.readouterr().out)) == 3
    with pytest.raises(UserError, match=r"takes one of train_rqvae\.py"):
        find_snapshot("me/sasrec", stage="rqvae")


def test_its_card_tells_what_it_is_and_how_to_ask_it(run: Path, tmp_path: Path) -> None:
    text = (save_pretrained(run, tmp_path / "out", "me/sasrec") / "README.md").read_text()
    for wanted in (
        "# SASRec",
        f"| items | {ITEMS} |",
        f"| users | {USERS} |",
        "| SASRec |",
        "python recommend.py me/sasrec",
        "SASRecSearcher",
    ):
        assert wanted in text
    for absent in ("semantic IDs", "codebooks", "TIGER"):
        assert absent not in text.partition("## Made with")[0]
    unfinished = Path(shutil.copytree(run, tmp_path / "run"))
    (unfinished / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"no finished run \(metrics\.json missing\)"):
        save_pretrained(unfinished, tmp_path / "other")


def test_both_models_are_recommenders(trained_retriever, run: Path) -> None:
    for recommender in (Searcher(trained_retriever), load_recommender(run)):
        found = recommender.ask([[3, 5]], beam_size=12)
        assert found.item_ids.shape == found.keys.shape == (1, 12)
        assert recommender.searched(recommender.settings._replace(precision="bf16")).dtype == torch.bfloat16
