"""Both scripts and recommend.py, end to end, on small data with a planted order."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import recommend
import train_decoder
import train_rqvae
from data.processed import load_corpus
from modules.rqvae import RqVae, RqVaeConfig
from modules.runtime.config.main import ROOT, resolve, run_script
from modules.runtime.options.rqvae import RqVaeOptions
from modules.runtime.runs.stage1_run import load_tokenizer
from modules.runtime.runs.stage2_models import load_recommender
from modules.runtime.runs.stage2_run import load_retriever
from tests.runs import ITEMS, USERS, lines, run_decoder, run_rqvae
from tests.synthetic import write_embeddings, write_p5


def test_the_rqvae_run_holds_everything_stage_two_and_a_reader_need(trained: Path) -> None:
    run = trained / "rqvae" / "beauty"
    names = {"config.gin", "config.json", "environment.json", "log.jsonl", "metrics.json", "model.safetensors"}
    assert names | {"tokenizer.json", "tokenizer.safetensors"} <= {path.name for path in run.iterdir()}
    metrics = json.loads((run / "metrics.json").read_text())
    assert min(metrics["usage"]) > 0.7
    ids = load_file(run / "tokenizer.safetensors")["sem_ids"]
    given = torch.from_numpy(np.load(trained / "items.npy")).float()
    torch.testing.assert_close(load_file(run / "vectors.safetensors")["vectors"].float(), given, rtol=1e-3, atol=1e-3)
    assert ids.shape == (ITEMS, 4)
    assert len(ids.unique(dim=0)) == ITEMS


def test_the_semantic_ids_are_judged_at_the_end_and_the_doctor_speaks(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_rqvae(trained, "do_eval=True", "iterations=90", f"save_dir_root={tmp_path}")
    assert "\ndoctor   " in capsys.readouterr().out
    metrics = json.loads((tmp_path / "beauty" / "metrics.json").read_text())
    assert metrics["neighbours"]["by_vector"] >= metrics["neighbours"]["by_prefix"] > 2 * metrics["neighbours"]["chance"]
    assert metrics["neighbours"]["queries"] == ITEMS
    assert metrics["affinity"]["pairs"] > 0
    assert metrics["data"]["items"] == ITEMS
    assert "split" in metrics["data"]
    assert [depth["nmi"] > depth["nmi_chance"] for depth in metrics["agreement"]] == [True] * 3
    assert len(metrics["branching"]) == len(metrics["residual_norms"]) - 1 == 3
    # A mean over all items, of the loss in one pass and of the rows it is compared on in another.
    assert metrics["reconstruction"]["squared_l2"] == pytest.approx(metrics["reconstruction_loss"], rel=1e-4)
    assert metrics["held_out_reconstruction"]["squared_l2"] == pytest.approx(metrics["held_out_reconstruction_loss"], rel=1e-4)


def test_the_trained_model_beats_popularity_and_finds_the_planted_successors(trained: Path) -> None:
    metrics = json.loads((trained / "decoder" / "beauty" / "metrics.json").read_text())
    tiger, popular = (metrics["test"][name]["metrics"]["recall@10"] for name in ("TIGER", "most popular"))
    assert tiger > 3 * popular
    assert tiger > 0.5
    figures = metrics["test"]["TIGER"]["metrics"]
    assert figures["code_gap@10"] == pytest.approx(figures["code_recall@10"] - figures["recall@10"])


def test_the_report_shows_baselines_intervals_and_titles(trained: Path) -> None:
    text = (trained / "decoder" / "beauty" / "report.txt").read_text()
    for wanted in ("TIGER", "most popular", "Markov", "item-kNN", "memory", "validation", "test", "95 %", "held out", "No. "):
        assert wanted in text


def test_where_stage_one_kept_no_vectors_the_memory_is_one_without_texts_and_that_is_said(trained: Path, tmp_path: Path, capsys) -> None:
    run_decoder(trained, "iterations=2", "do_eval=False", f"save_dir_root={tmp_path}/with")
    assert "without texts" not in capsys.readouterr().out
    shutil.copytree(trained / "rqvae" / "beauty", tmp_path / "rqvae", ignore=shutil.ignore_patterns("vectors.safetensors"))
    run_decoder(trained, "iterations=2", "do_eval=False", f"pretrained_rqvae_path={tmp_path}/rqvae", f"save_dir_root={tmp_path}/without")
    assert capsys.readouterr().out.count("keeps no text vectors") == 1
    known, unknown = (json.loads((tmp_path / name / "beauty" / "metrics.json").read_text())["validation"] for name in ("with", "without"))
    counted = ["most popular", "last item -> next (Markov)", "item-kNN"]
    assert list(known) == ["TIGER", *counted[:2], "Markov with texts", counted[2], "memory"]
    assert list(unknown) == ["TIGER", *counted, "memory without texts"]
    assert all(known[name] == unknown[name] for name in counted)
    assert known["memory"] != unknown["memory without texts"]


def test_the_test_items_stay_unread_without_do_eval(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[str] = []
    original = train_decoder.SeqData.eval_batches

    def watched(self, part, *arguments):
        parts.append(part)
        return original(self, part, *arguments)

    monkeypatch.setattr(train_decoder.SeqData, "eval_batches", watched)
    run_decoder(trained, "iterations=2", f"save_dir_root={trained}/unread", "do_eval=False", "full_eval_every=1")
    assert set(parts) == {"validation"}
    assert "test" not in json.loads((trained / "unread" / "beauty" / "metrics.json").read_text())


def test_selection_keeps_the_best_validation_checkpoint(trained: Path) -> None:
    run = trained / "decoder" / "beauty"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    best = max(line["validation"]["ndcg@10"] for line in lines if "validation" in line)
    final = json.loads((run / "metrics.json").read_text())["validation"]["TIGER"]["metrics"]["ndcg@10"]
    assert final == pytest.approx(best, abs=1e-12)


def test_a_finished_run_says_so_and_keeps_its_weights(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = trained / "decoder" / "beauty" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    run_decoder(trained)
    assert "finished" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == before


def test_another_config_in_the_same_directory_is_refused_by_name(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_decoder(trained, "learning_rate=1e-4", code=2)
    assert "learning_rate was 0.003 and is now 0.0001" in capsys.readouterr().err


def test_the_same_checkpoint_gives_the_same_digits(trained: Path, tmp_path: Path) -> None:
    run_decoder(trained, f"save_dir_root={tmp_path}")
    first, second = (json.loads((folder / "beauty" / "metrics.json").read_text()) for folder in (trained / "decoder", tmp_path))
    first.pop("training_seconds"), second.pop("training_seconds")
    assert first == second


def test_the_stages_chain_when_only_the_split_is_changed_on_both(trained: Path) -> None:
    write_p5(trained, 60, ITEMS, seed=1, split="toys")
    run_rqvae(trained, "dataset_split=toys", "iterations=90")
    run_decoder(trained, "dataset_split=toys", "iterations=2", "do_eval=False")
    assert (trained / "decoder" / "toys" / "report.txt").exists()


def test_a_tokenizer_of_other_items_is_refused_in_words(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_p5(tmp_path, USERS, ITEMS + 10)
    run_decoder(tmp_path, f"pretrained_rqvae_path={trained}/rqvae", code=2)
    assert "made for other items" in capsys.readouterr().err


def test_a_run_does_not_go_on_over_other_semantic_ids(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_rqvae(trained, "seed=5", f"save_dir_root={tmp_path}/rqvae")
    run_decoder(trained, "iterations=2", f"save_dir_root={tmp_path}/decoder", f"pretrained_rqvae_path={tmp_path}/rqvae")
    (tmp_path / "decoder" / "beauty" / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "rqvae")
    run_rqvae(trained, "seed=6", f"save_dir_root={tmp_path}/rqvae")
    capsys.readouterr()
    run_decoder(trained, "iterations=2", f"save_dir_root={tmp_path}/decoder", f"pretrained_rqvae_path={tmp_path}/rqvae", code=2)
    assert "other semantic IDs" in capsys.readouterr().err


def test_looking_at_a_finished_run_leaves_its_record_as_it_is(trained: Path) -> None:
    files = [trained / stage / "beauty" / name for stage in ("rqvae", "decoder") for name in ("environment.json", "config.gin")]
    before = [(path.read_text(), path.stat().st_mtime_ns) for path in files]
    run_rqvae(trained)
    run_decoder(trained)
    assert [(path.read_text(), path.stat().st_mtime_ns) for path in files] == before


def test_a_run_starts_on_a_machine_without_git(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run_decoder(trained, "iterations=2", "do_eval=False", f"save_dir_root={tmp_path}")
    assert json.loads((tmp_path / "beauty" / "environment.json").read_text())["commit"] is None


@pytest.mark.parametrize("override", ["autoencoder_steps=250", "autoencoder_steps=-1"])
def test_a_warm_up_that_leaves_no_step_for_the_quantizer_is_refused(
    trained: Path, tmp_path: Path, override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_rqvae(trained, override, f"save_dir_root={tmp_path}", code=2)
    assert "train.autoencoder_steps" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["max_grad_norm=-1.0", "weight_decay=-1.0", "label_smoothing=2.0", "eval_users=0"])
def test_a_decoder_setting_out_of_range_gets_a_sentence(
    trained: Path, tmp_path: Path, override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_decoder(trained, override, f"save_dir_root={tmp_path}", code=2)
    assert override.split("=")[0] in capsys.readouterr().err


def test_vae_lines_that_contradict_the_tokenizer_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_decoder(trained, "vae_n_layers=4", f"save_dir_root={trained}/contradiction", code=2)
    assert "train.vae_n_layers is 4 but the tokenizer" in capsys.readouterr().err


def test_embeddings_of_another_width_are_refused_with_the_line_to_write(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_rqvae(trained, "vae_input_dim=768", f"save_dir_root={tmp_path}", code=2)
    assert "set train.vae_input_dim = 32" in capsys.readouterr().err


def test_collaborative_vectors_count_as_input_and_belong_to_the_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, appended = f"save_dir_root={tmp_path}", ["collaborative_weight=0.5", "collaborative_dim=8"]
    run_rqvae(trained, root, *appended, code=2)
    assert "of which train.collaborative_dim = 8; set train.vae_input_dim = 40" in capsys.readouterr().err
    run_rqvae(trained, root, *appended, "vae_input_dim=40", "vae_n_cat_feats=2", code=2)
    assert "train.collaborative_weight appends features" in capsys.readouterr().err
    run_rqvae(trained, root, *appended, "vae_input_dim=40")
    described = json.loads((tmp_path / "beauty" / "config.json").read_text())
    tokenizer = json.loads((tmp_path / "beauty" / "tokenizer.json").read_text())
    plain = json.loads((trained / "rqvae" / "beauty" / "config.json").read_text())
    assert described["tokenizer"]["input_dim"] == 40
    assert described["embeddings_hash"] == tokenizer["embeddings_hash"] != plain["embeddings_hash"]


def test_the_quantizers_switches_are_trained_with_and_written_down(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    switches = ["vae_distance=cosine", "vae_sim_vq=True", "vae_codebook_normalize=True", "vae_n_cat_feats=2"]
    switches += ["iterations=60", "autoencoder_steps=20"]
    run_rqvae(trained, *switches, f"save_dir_root={tmp_path}/refused", code=2)
    assert "the last 2 features are categorical by train.vae_n_cat_feats" in capsys.readouterr().err
    items = np.load(trained / "items.npy")
    items[:, -2:] = items[:, -2:] > items[:, -2:].mean()
    np.save(tmp_path / "items.npy", items)
    run_rqvae(trained, *switches, f"item_embeddings={tmp_path}/items.npy", f"save_dir_root={tmp_path}")
    written = json.loads((tmp_path / "beauty" / "config.json").read_text())["tokenizer"]
    assert (written["distance"], written["sim_vq"], written["codebook_normalize"], written["n_cat_feats"]) == ("cosine", True, True, 2)
    first = load_file(tmp_path / "beauty" / "tokenizer.safetensors")["codebook_0"]
    torch.testing.assert_close(first.norm(dim=1), torch.ones(8))


def test_a_collapsed_ending_is_an_error_unless_allowed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collapsed = [
        "vae_codebook_size=100",
        "vae_n_layers=1",
        "iterations=2",
        "autoencoder_steps=0",
        "use_kmeans_init=False",
        "learning_rate=1e-6",
    ]
    run_rqvae(trained, *collapsed, f"save_dir_root={tmp_path}/no", code=2)
    assert "allow_collapse" in capsys.readouterr().err
    run_rqvae(trained, *collapsed, f"save_dir_root={tmp_path}/yes", "allow_collapse=True")


def test_recommend_takes_ids_and_titles_and_gives_titled_items(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained / "decoder" / "beauty"
    retriever = load_retriever(run)
    key, title = retriever.tokenizer.info.item_keys[3], retriever.titles[5]
    assert recommend.main([str(run), "--history", f"{key} | {title}", "--k", "7"]) == 0
    shown = capsys.readouterr().out.partition("recommended\n")[2].strip().splitlines()
    assert len(shown) == 7
    assert not any(retriever.tokenizer.info.item_keys[item] in line for line in shown for item in (3, 5))
    assert all("No. " in line and "log p" in line for line in shown)


def test_recommend_finds_among_the_listed_items_only(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained / "decoder" / "beauty"
    retriever = load_retriever(run)
    keys = retriever.tokenizer.info.item_keys
    (tmp_path / "new.txt").write_text(f"{keys[5]}\n\n{retriever.titles[7]}\n{keys[3]}\n")
    given = [str(run), "--history", keys[3], "--among"]
    assert recommend.main([*given, str(tmp_path / "new.txt")]) == 0
    shown = capsys.readouterr().out.partition("recommended\n")[2].strip().splitlines()
    assert {line.split()[1] for line in shown} == {keys[5], keys[7]}
    (tmp_path / "new.txt").write_text("")
    for path, words in ((tmp_path / "new.txt", "is empty"), (tmp_path / "none.txt", "cannot be read")):
        assert recommend.main([*given, str(path)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("history", "words"),
    [("no such thing", "no item has"), (" | ", "history is empty"), ("No. 1", "items match")],
    ids=["unknown", "empty", "many"],
)
def test_recommend_answers_mistakes_in_one_sentence(trained: Path, history: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert recommend.main([str(trained / "decoder" / "beauty"), "--history", history]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_recommend_refuses_a_directory_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recommend.main([str(tmp_path), "--history", "x"]) == 2
    assert "not a run of train_decoder.py" in capsys.readouterr().err


def test_a_title_with_a_bar_in_it_is_one_item(trained: Path) -> None:
    recommender = load_recommender(trained / "decoder" / "beauty")
    keys = recommender.item_keys
    recommender.titles = ["Shampoo | for men", *recommender.titles[1:]]
    for text, items in (
        ("Shampoo | for men", [0]),
        (f"{keys[3]} | shampoo | FOR men | {keys[5]}", [3, 0, 5]),
        (f"{keys[3]}|{keys[5]}", [3, 5]),
        (f" | {keys[3]} | ", [3]),
    ):
        assert recommend.find_history(text, recommender) == items


def test_an_answer_without_items_says_why(trained: Path, capsys) -> None:
    run = trained / "decoder" / "beauty"
    keys = load_recommender(run).item_keys
    assert recommend.main([str(run), "--history", " | ".join(keys)]) == 0
    assert "nothing: every item that may be recommended is in the history; --keep-history lets it come back" in capsys.readouterr().out


@pytest.mark.parametrize(("stage", "flag", "name"), [("rqvae", "push_vae_to_hf", "vae_hf_model_name"),
                                                   ("decoder", "push_decoder_to_hf", "decoder_hf_model_name")])  # fmt: skip
def test_a_finished_run_is_pushed_where_asked_and_a_name_that_cannot_be_is_refused_before_training(
    stage: str, flag: str, name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, run = {"rqvae": (train_rqvae, run_rqvae), "decoder": (train_decoder, run_decoder)}[stage]
    pushed: list[tuple[Path, str]] = []
    monkeypatch.setattr(script, "push", lambda *given: pushed.append(given) or "https://hub/me/tiger")
    run(trained, f"{flag}=True", f"{name}=nobody", f"save_dir_root={tmp_path}", code=2)
    assert not list(tmp_path.iterdir())
    assert "owner/name" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "a-token")
    run(trained, f"{flag}=True", f"{name}=me/tiger")
    assert pushed == [(trained / stage / "beauty", "me/tiger")]
    assert "https://hub/me/tiger" in capsys.readouterr().out


def test_the_pictures_of_a_run_are_there(trained: Path) -> None:
    for stage, names in (
        ("rqvae", {"codes.png", "latents.png", "prefixes.png", "training.png"}),
        ("decoder", {"recall_validation.png", "recall_test.png", "training.png"}),
    ):
        assert {path.name for path in (trained / stage / "beauty").glob("*.png")} == names


@pytest.mark.parametrize("script", ["train_rqvae.py", "train_decoder.py"])
def test_a_misspelled_parameter_gets_a_sentence_and_exit_code_two_from_the_shell(script: str) -> None:
    config = f"configs/{script.removeprefix('train_').removesuffix('.py')}_amazon.gin"
    done = subprocess.run([sys.executable, script, config, "itterations=5"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'iterations'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("tokenizer", "policy"),
    [("rqkmeans", "extra_code"), ("opq", "reassign"), ("lsh", "none"), ("random", "extra_code"), ("rqvae", "reassign"), ("rqvae", "none")],
)
def test_stage_two_trains_on_the_ids_of_every_tokenizer(trained: Path, tmp_path: Path, tokenizer: str, policy: str) -> None:
    run_rqvae(trained, f"tokenizer={tokenizer}", f"collision_policy={policy}", "iterations=100", f"save_dir_root={tmp_path}/rqvae")
    made = load_tokenizer(tmp_path / "rqvae" / "beauty")
    assert made.tokenizer.sem_ids.shape[1] == (4 if policy == "extra_code" else 3)
    assert made.model.codebook_sizes == (8, 8, 8)
    ids = [f"pretrained_rqvae_path={tmp_path}/rqvae", f"save_dir_root={tmp_path}/decoder"]
    run_decoder(trained, *ids, "iterations=100")
    metrics = json.loads((tmp_path / "decoder" / "beauty" / "metrics.json").read_text())
    figures = metrics["validation"]["TIGER"]["metrics"]
    assert figures["recall@10"] > 0
    if policy == "reassign":  # an ID is an item: code-level matching claims nothing more
        assert figures["code_recall@10"] == figures["recall@10"]


def test_stage_two_refuses_what_a_tokenizer_without_a_network_does_not_have(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_rqvae(trained, "tokenizer=rqkmeans", f"save_dir_root={tmp_path}")
    run_decoder(trained, f"pretrained_rqvae_path={tmp_path}", "vae_hidden_dims=[32]", "vae_codebook_size=9", code=2)
    said = capsys.readouterr().err
    assert "train.vae_hidden_dims is [32] but the tokenizer" in said
    assert "'rqkmeans', which has none; remove the line" in said
    assert "train.vae_codebook_size is 9 but the tokenizer" in said


def test_a_tokenizer_without_a_network_starts_no_rqvae(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_rqvae(trained, "tokenizer=rqkmeans", f"save_dir_root={tmp_path}/direct")
    run_rqvae(trained, f"pretrained_rqvae_path={tmp_path}/direct", f"save_dir_root={tmp_path}/rqvae", code=2)
    assert "is 'rqkmeans', not 'rqvae' to start from" in capsys.readouterr().err


def test_the_weights_of_the_best_look_are_kept_not_the_last(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate that explodes late ruins the last looks; the run ends with the weights from before."""
    plain = train_rqvae.learning_rate_factor
    monkeypatch.setattr(train_rqvae, "learning_rate_factor", lambda *given: 300.0 if given[1] > 200 else plain(*given))
    run_rqvae(trained, f"save_dir_root={tmp_path}", "allow_collapse=True")
    looks = {line["step"]: line["quantized_reconstruction"] for line in lines(tmp_path / "beauty") if "quantized_reconstruction" in line}
    assert set(looks) == {80, 100, 150, 200, 250}
    best = min(looks, key=lambda step: looks[step])
    assert best < 250
    metrics = json.loads((tmp_path / "beauty" / "metrics.json").read_text())
    assert metrics["reconstruction_loss"] == pytest.approx(looks[best], rel=1e-5)


def test_a_split_by_time_refuses_ids_that_have_seen_its_future(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rqvae, data = tmp_path / "rqvae", tmp_path / "data"
    made = ["configs/rqvae_synthetic.gin", f"dataset_folder={data}", f"save_dir_root={rqvae}", "iterations=2", "autoencoder_steps=1"]
    width = resolve(RqVaeOptions, made[:1]).vae_input_dim
    write_embeddings(tmp_path / "items.npy", len(load_corpus(resolve(RqVaeOptions, made[:2]).data).item_keys), width=width)
    more = ["collaborative_weight=0.5", "collaborative_dim=8", f"vae_input_dim={width + 8}", "allow_collapse=True", "device=cpu"]
    assert run_script(train_rqvae.train, "", [*made, f"item_embeddings={tmp_path}/items.npy", *more]) == 0
    second = [
        "configs/decoder_synthetic.gin",
        f"dataset_folder={data}",
        f"pretrained_rqvae_path={rqvae}",
        f"save_dir_root={tmp_path}/decoder",
    ]
    assert run_script(train_decoder.train, "", [*second, "split_by=time", "iterations=2", "device=cpu"]) == 2
    assert "has collaborative vectors from histories split by leave-one-out" in capsys.readouterr().err


def test_one_number_for_all_levels_and_the_same_as_a_list_are_the_same(trained: Path, tmp_path: Path) -> None:
    run_rqvae(trained, "vae_codebook_size=[8, 8, 8]", f"save_dir_root={tmp_path}/rqvae")
    ids = [f"pretrained_rqvae_path={tmp_path}/rqvae", "iterations=1", "do_eval=False"]
    run_decoder(trained, *ids, "vae_codebook_size=8", f"save_dir_root={tmp_path}/one")
    run_decoder(trained, *ids, "vae_codebook_size=[8, 8, 8]", f"save_dir_root={tmp_path}/list")
    run_decoder(trained, *ids, "vae_codebook_size=[8, 8, 4]", f"save_dir_root={tmp_path}/other", code=2)


def test_codes_spread_over_colliding_items_are_the_same_in_any_number_of_processes() -> None:
    torch.manual_seed(0)
    config = RqVaeConfig(input_dim=6, embed_dim=2, hidden_dims=(8,), codebook_size=4, num_levels=2, sinkhorn="last_level")
    model, items = RqVae(config).eval(), torch.randn(40, 6)
    model.normalizer.fit(items)
    model.kmeans_init(items, seed=0)
    whole = model.get_semantic_ids(items)
    for index in range(2):
        ranks = SimpleNamespace(index=index, count=2, gather=None)
        codes, own = train_rqvae.shared_codes(model, items, ranks)  # type: ignore[arg-type]
        assert torch.equal(codes, whole)
        assert torch.equal(own, whole[index::2])
