"""``python -m evaluate.reproduce`` end to end on planted data, and what it makes of given answers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.schemas import UserError
from evaluate.comparison import compare_rows
from evaluate.reproduce import answers_of, main
from evaluate.reproduction import Answers, against_published, published_rows, summary
from evaluate.results_page import result_page, results_section
from modules.runtime.config.main import ROOT
from modules.runtime.runs.chain import split_overrides
from modules.runtime.runs.ranks_file import read_row
from modules.runtime.runs.run import config_of_other_stage
from tests.runs import DECODER, RQVAE, SASREC, write_data
from tests.test_evaluate_compare import USERS, line, write_run

SHORT = {
    "stage1": [*RQVAE, "iterations=90", "save_model_every=30"],
    "stage2": [*DECODER, "iterations=40", "full_eval_every=20", "partial_eval_every=20", "save_model_every=10", "eval_users=50"],
}


def arguments(folder: Path, *more: str) -> list[str]:
    data = [f"dataset_folder={folder}", f"item_embeddings={folder}/items.npy", f"--out={folder}/out", "--seeds=2"]
    shared = ("device=", "amp=")
    given = [f"{stage}.{word}" for stage, words in SHORT.items() for word in words if not word.startswith(shared)]
    return ["configs/decoder_amazon.gin", *data, *given, "device=cpu", "amp=False", *more]


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "evaluate.reproduce", *arguments(folder, *more)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=1200)
    assert process.returncode == code, err
    return out, err


@pytest.mark.slow
def test_two_seeds_of_both_stages_end_in_a_page_after_an_interruption_and_the_test_part_is_counted(tmp_path: Path) -> None:
    write_data(tmp_path)
    out = tmp_path / "out"
    process = start(tmp_path)
    first = out / "decoder_amazon" / "seed_0" / "beauty"
    while not list(first.glob("checkpoint-*[0-9]")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = ended(process, 128 + signal.SIGTERM)
    assert "the same command goes on" in told
    assert not (first / "metrics.json").exists()
    stage1 = out / "rqvae_amazon" / "seed_1" / "beauty" / "metrics.json"
    before = stage1.stat().st_mtime_ns

    said, _ = ended(start(tmp_path))
    assert "decoder_amazon, seed 0: goes on" in said
    assert "rqvae_amazon, seed 1: was finished" in said
    assert "resumed  from step" in (out / "decoder_amazon" / "seed_0" / "log.txt").read_text()
    assert stage1.stat().st_mtime_ns == before
    path = out / "decoder_amazon-beauty.json"
    result = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() in said
    assert list(result["parts"]) == ["validation"]
    assert result["test_readings"] == {"decoder_amazon, seed 0": 0, "decoder_amazon, seed 1": 0}
    assert "The test part was not read." in said
    check_figures(result, out, "validation", "barred", "TIGER")
    assert next(iter(result["parts"]["validation"]["barred"]["baselines"])) == "most popular"
    runs = {(run["config"], run["seed"]): run for run in result["runs"]}
    assert list(runs) == [(name, seed) for name in ("rqvae_amazon", "decoder_amazon") for seed in (0, 1)]
    assert runs["decoder_amazon", 0]["starts"] == 2
    assert all(run["cpu_seconds"] > 0 and run["precision"] == "fp32" and run["processor"] and run["torch"] for run in runs.values())
    seeds = [json.loads((out / "decoder_amazon" / f"seed_{seed}" / "beauty" / "metrics.json").read_text()) for seed in (0, 1)]
    assert seeds[0]["validation"]["TIGER"] != seeds[1]["validation"]["TIGER"]
    configs = [(out / name / "seed_1" / "beauty" / "config.gin").read_text() for name in ("rqvae_amazon", "decoder_amazon")]
    assert all("train.seed = 1\n" in config for config in configs)
    assert "train.iterations = 90\n" in configs[0]
    assert "train.iterations = 40\n" in configs[1]

    for _ in range(2):
        said, _ = ended(start(tmp_path, "--read-test"))
        result = json.loads(path.read_text())
        assert result["test_readings"] == {"decoder_amazon, seed 0": 1, "decoder_amazon, seed 1": 1}
    assert said.count("was finished") == 4
    assert "2 runs read the test part, 2 times in all." in said
    check_figures(result, out, "test", "barred", "TIGER")
    check_figures(result, out, "test", "not barred", "TIGER, history not barred")
    check_figures(result, out, "validation", "barred", "TIGER")
    trained = (out / "decoder_amazon" / "seed_0" / "log.txt").read_text()
    assert trained.count("step     40  validation") == 1  # reading the test part trained nothing
    assert str(tmp_path) not in path.read_text()


def check_figures(result: dict, out: Path, part: str, scale: str, row: str) -> None:
    """Each figure is the mean of the seeds' own reports."""
    found = result["parts"][part][scale]
    written = [json.loads((out / "decoder_amazon" / f"seed_{seed}" / "beauty" / "metrics.json").read_text()) for seed in (0, 1)]
    assert found["users"] == 400
    figures = found["models"]["decoder_amazon"]
    assert list(figures) == [f"{kind}@{k}" for kind in ("recall", "ndcg") for k in (1, 5, 10)]
    for metric, figure in figures.items():
        seeds = [metrics[part][row]["metrics"][metric] for metrics in written]
        assert figure["seeds"] == pytest.approx(seeds)
        assert figure["mean"] == pytest.approx(sum(seeds) / 2)
        assert figure["deviation"] == pytest.approx(abs(seeds[0] - seeds[1]) / 2**0.5)
        assert figure["low"] <= figure["mean"] <= figure["high"]
    for name, figures in found["baselines"].items():
        own = written[0][part][name]["metrics"]
        assert {metric: figure["mean"] for metric, figure in figures.items()} == pytest.approx({metric: own[metric] for metric in figures})


@pytest.mark.slow
def test_sasrec_is_reproduced_without_a_stage_one(tmp_path: Path) -> None:
    write_data(tmp_path)
    given = [f"stage2.{word}" for word in SASREC if not word.startswith(("device=", "amp="))]
    command = [sys.executable, "-m", "evaluate.reproduce", "configs/sasrec_amazon.gin", "--seeds=1", "device=cpu", "amp=False", *given]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}
    mixed = ["stage2.mixtures=['0,0.5,0.5']", f"dataset_folder={tmp_path}"]
    done = subprocess.run([*command, *mixed], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "reproduce" / "sasrec_amazon-beauty.json").read_text())
    assert result["configs"] == {"sasrec_amazon": {"stage2": "configs/sasrec_amazon.gin", "stage1": None}}
    assert [run["config"] for run in result["runs"]] == ["sasrec_amazon"]
    written = json.loads((tmp_path / "out" / "reproduce" / "sasrec_amazon" / "seed_0" / "beauty" / "metrics.json").read_text())
    models = result["parts"]["validation"]["barred"]["models"]
    assert len(models) == 2
    for name, figures in models.items():
        row = written["validation"][name.replace("sasrec_amazon", "SASRec")]
        assert figures["ndcg@10"]["mean"] == pytest.approx(row["metrics"]["ndcg@10"])


@pytest.mark.slow
def test_a_run_that_fails_ends_the_command_with_its_error(tmp_path: Path) -> None:
    write_data(tmp_path)
    _, told = ended(start(tmp_path, "stage1.vae_input_dim=31", "--jobs", "2"), 2)
    assert told.startswith("error: rqvae_amazon, seed ")
    assert "did not end well: train.vae_input_dim is 31 but the item embeddings are 32 wide" in told
    assert told.count("\n") == 1


REFUSED = {
    "configs/decoder_amazon_best.gin": "has no config of stage 1 beside it (rqvae_amazon_best.gin); give one: --stage1",
    "configs/decoder_quick.gin iterations=3": "both stages have iterations; write stage1.iterations=3 or stage2.iterations=3",
    "configs/decoder_quick.gin seed=3": "seed is set by this command: --seeds says how many",
    "configs/decoder_quick.gin stage2.do_eval=True": "stage2.do_eval is set by this command: --read-test reads the test part",
    "configs/decoder_quick.gin learning_rat=3": "there is no option 'learning_rat'; did you mean 'learning_rate'?",
    "configs/decoder_quick.gin stage1.beam_size=3": "there is no option 'stage1.beam_size'",
    "configs/decoder_quick.gin stage2.beam_size=0": "beam_size",
    "configs/decoder_quick.gin x": "cannot read 'x'",
    "configs/decoder_quick.gin --seeds 0": "--seeds and --jobs are 1 or more: got 0 and 1",
    "configs/decoder_quick.gin ./configs/decoder_quick.gin": "two configs have the same file name",
    "configs/decoder_quick.gin --stage1 configs/rqvae_amazon.gin": "and its stage 1, configs/rqvae_amazon.gin, about AMAZON beauty",
    "configs/nothing.gin": "there is no config file 'configs/nothing.gin'",
    "": "give a config of stage 2",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: words.replace("configs/decoder_", "") or "nothing")
def test_mistakes_are_told_in_a_sentence_before_anything_runs(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main([*words.split(), f"--out={tmp_path}/out"]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert REFUSED[words] in error
    assert not (tmp_path / "out").exists()


def test_overrides_go_to_the_stage_that_has_them_and_to_both_where_they_say_which_data() -> None:
    found = split_overrides(["dataset_split=toys", "beam_size=20", "train.text_model=x", "stage1.iterations=5", "vae_codebook_size=64"])
    assert found["stage1"] == ["dataset_split=toys", "text_model=x", "iterations=5", "vae_codebook_size=64"]
    assert found["stage2"] == ["dataset_split=toys", "beam_size=20"]


@pytest.mark.parametrize(("given", "other"), [("decoder_quick", "rqvae_quick"), ("rqvae_amazon", "decoder_amazon")])
def test_the_config_of_the_other_stage_is_the_one_of_its_name(given: str, other: str, tmp_path: Path, monkeypatch) -> None:
    assert config_of_other_stage(Path(f"configs/{given}.gin")) == Path(f"configs/{other}.gin")
    monkeypatch.chdir(tmp_path)
    assert config_of_other_stage(Path(f"configs/{given}.gin")) == Path(f"configs/{other}.gin")
    assert config_of_other_stage(tmp_path / f"{given}.gin") is None
    assert config_of_other_stage(Path("configs/ablations/tokenizer_fsq.gin")) is None
    assert config_of_other_stage(Path()) is None


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    """Two seeds of a model that finds half of the targets or all of them, one of a weaker model, and a baseline."""
    half, whole, none = [1, None] * (USERS // 2), [1] * USERS, [None] * USERS
    strong = [write_run(tmp_path / f"strong{seed}", {"TIGER": ranks}) for seed, ranks in enumerate((half, whole))]
    weak = write_run(tmp_path / "weak", {"TIGER": half, "memory": none, "twin": half})
    models = {"strong": [read_row(run, "validation") for run in strong], "weak": [read_row(weak, "validation")]}
    return Answers(models, {name: read_row(weak, "validation", name) for name in ("memory", "twin")})


def test_the_figures_are_means_over_seeds_with_deviation_and_interval(answers: Answers) -> None:
    found = summary(answers, ["recall@10", "ndcg@1"])
    figure = found["models"]["strong"]["recall@10"]
    assert (figure["mean"], figure["seeds"]) == (0.75, [0.5, 1.0])
    assert figure["deviation"] == pytest.approx(0.5**0.5 / 2)
    assert 0.6 < figure["low"] < 0.75 < figure["high"] < 0.9
    assert set(found["models"]["weak"]["recall@10"]) == {"mean", "low", "high"}
    assert found["baselines"]["memory"]["ndcg@1"]["mean"] == 0.0


def test_the_verdict_says_what_is_above_what_by_the_paired_interval(answers: Answers) -> None:
    words = [entry["words"] for entry in summary(answers, ["recall@10"])["verdict"]]
    starts = [text.partition(":")[0] for text in words if "recall@10" in text]
    assert starts == [
        "strong is above weak by recall@10",
        "strong is above memory by recall@10",
        "strong is above twin by recall@10",
        "weak is above memory by recall@10",
        "weak is not told apart from twin by recall@10",
    ]
    found = line(compare_rows(answers.models["strong"], answers.models["weak"]), "recall@10")
    (entry,) = [entry for entry in summary(answers, [])["verdict"] if (entry["other"], entry["metric"]) == ("weak", "recall@10")]
    assert (entry["difference"], entry["low"], entry["high"]) == (found["difference"], found["low"], found["high"])


def test_mixtures_are_read_of_every_seed_and_baselines_once(tmp_path: Path) -> None:
    rows = {"TIGER": [1] * USERS, "TIGER: memory 0.5": [2] * USERS, "memory": [3] * USERS}
    folders = {name: [write_run(tmp_path / f"{name}{seed}", rows) for seed in (0, 1)] for name in ("a", "b")}
    (scale,) = (found := answers_of(folders, "validation"))
    assert scale == "barred"
    assert {name: [row.run for row in runs] for name, runs in found["barred"].models.items()} == {
        "a": folders["a"], "a: memory 0.5": folders["a"], "b": folders["b"], "b: memory 0.5": folders["b"],
    }  # fmt: skip
    assert {name: row.run for name, row in found["barred"].baselines.items()} == {"memory": folders["a"][0]}


def test_rows_of_two_scales_are_refused(answers: Answers, tmp_path: Path) -> None:
    free = read_row(write_run(tmp_path / "free", {"TIGER": [1] * USERS}, barred=False), "validation")
    with pytest.raises(UserError, match="two scales"):
        summary(answers._replace(baselines={"free": free}), ["recall@10"])


def made_up(answers: Answers, **more: object) -> dict:
    """A result as the command writes it."""
    run = {"config": "strong", "seed": 0, "wall_seconds": 1234.5, "cpu_seconds": 99.0, "starts": 1, "precision": None, "processor": "A CPU",
           "torch": "2.13", "commit": "0123456789"}  # fmt: skip
    result = {
        "configs": {"strong": {}, "weak": {}}, "dataset": "AMAZON", "split": "beauty", "seeds": [0, 1, 2], "commit": "0123456789",
        "uncommitted_changes": False, "date": "2026-01-02T03:04:05+0000", "published": published_rows("AMAZON", "beauty", 22_363, 12_101),
        "parts": {"validation": {"barred": summary(answers, ["recall@10"])}}, "test_readings": {"strong, seed 0": 0}, "runs": [run],
    }  # fmt: skip
    return result | more


def test_the_page_has_published_rows_apart_by_protocol_and_says_that_they_are_of_the_test_part(answers: Answers) -> None:
    page = result_page(made_up(answers))
    assert page.startswith("# strong, weak on AMAZON beauty\n\nCommit 0123456, 2026-01-02; 3 seeds.")
    assert "| strong | .7500 ± .3536 [" in page
    assert "* weak is not told apart from twin by recall@10: .0000 [.0000, .0000]" in page
    tables = page.split("Published by others on **test**, ")[1:]
    assert [table.partition(";")[0] for table in tables] == [
        "items of the history barred",
        "items of the history not barred",
        "protocol not stated",
    ]
    assert "BSARec" in tables[0]
    assert "RPG" in tables[1]
    assert "The test part was not read." in page
    assert "| strong, seed 0 | 1,234 | 99 | 1 | - | A CPU | 2.13 | 0123456 |" in page
    assert "fewer than three seeds" not in page
    assert "fewer than three seeds" in result_page(made_up(answers, seeds=[0]))
    assert "2 runs read the test part, 3 times in all." in result_page(made_up(answers, test_readings={"a": 1, "b": 2, "c": 0}))


def test_published_figures_stand_beside_the_interval_of_the_same_protocol_only() -> None:
    figures = {"ours": {metric: {"mean": 0.06, "low": 0.05, "high": 0.07} for metric in ("recall@10", "ndcg@10")}}
    rows = [
        {"model": "A", "protocol": "barred", "metrics": {"recall@10": 0.04, "ndcg@10": 0.08}, "source": "a paper"},
        {"model": "B", "protocol": "not barred", "metrics": {"recall@10": 0.04, "ndcg@10": 0.04}, "source": "b"},
        {"model": "C", "protocol": "not stated", "metrics": {"recall@10": 0.04, "ndcg@10": 0.04}, "source": "c"},
        {"model": "D", "protocol": "barred", "metrics": {"recall@10": 0.055, "recall@5": 0.01}, "source": "d"},
    ]
    assert [entry["words"] for entry in against_published(figures, rows, "barred")] == [
        "ours by recall@10: .0600 [.0500, .0700] is above .0400, published for A (a paper)",
        "ours by ndcg@10: .0600 [.0500, .0700] is below .0800, published for A (a paper)",
        "ours by recall@10: .0600 [.0500, .0700] holds .0550, published for D (d)",
    ]
    assert {entry["other"] for entry in against_published(figures, rows, "not barred")} == {"B"}


def test_every_published_row_has_a_protocol_and_a_source() -> None:
    rows = [row for own in json.loads((ROOT / "evaluate" / "published.json").read_text()) for row in own["rows"]]
    assert {row["protocol"] for row in rows} == {"barred", "not barred", "not stated"}
    assert all(row["source"] and 0 < row["metrics"]["ndcg@10"] < row["metrics"]["recall@10"] < 0.2 for row in rows)
    assert published_rows("AMAZON_2023", "beauty", 22_363, 12_101) == published_rows("AMAZON", "beauty", 400, 120) == []


def test_the_results_page_has_every_json_of_its_folder(answers: Answers, tmp_path: Path) -> None:
    assert results_section(tmp_path / "nothing").startswith("None yet: `python -m evaluate.reproduce CONFIG`")
    (tmp_path / "b.json").write_text(json.dumps(made_up(answers)))
    (tmp_path / "a.json").write_text(json.dumps(made_up(answers, split="toys")))
    text = results_section(tmp_path)
    assert [title for title in text.splitlines() if title.startswith("### ")] == [
        "### strong, weak on AMAZON toys",
        "### strong, weak on AMAZON beauty",
    ]
