"""Shared runs: what goes out, what comes back, and that nothing else does; the hub is a fake, the runs are the scripts' own."""

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

import recommend
import train_decoder
import train_rqvae
from data.schemas import PAD, SeqBatch, UserError
from modules.quantize import QuantizeForwardMode
from modules.rqvae import RqVaeConfig
from modules.runtime.config.main import run_script
from modules.runtime.runs.hub import (
    check_repo_name,
    find_snapshot,
    from_pretrained,
    push,
    save_pretrained,
)
from modules.runtime.runs.model_card import read_settings, without_local_paths
from modules.runtime.runs.searcher import Searcher
from modules.runtime.runs.stage1_run import TrainedTokenizer, described_tokenizer, load_tokenizer, restored
from modules.runtime.runs.stage2_run import Retriever, load_retriever
from tests.synthetic import write_embeddings, write_p5

SHARED = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.safetensors", "config.gin", "metrics.json", "environment.json"}
ITEMS = 60


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each stage, as the scripts write them: ``rqvae/beauty`` and ``decoder/beauty``."""
    folder = tmp_path_factory.mktemp("runs")
    write_p5(folder, 60, ITEMS)
    write_embeddings(folder / "items.npy", ITEMS)
    shape = ["vae_input_dim=32", "vae_embed_dim=8", "vae_hidden_dims=[16]", "vae_codebook_size=8", "vae_codebook_mode=ROTATION_TRICK"]
    common = [f"dataset_folder={folder}", "iterations=20", "device=cpu", "batch_size=32"]
    stage = [*common, *shape, f"item_embeddings={folder}/items.npy", f"save_dir_root={folder}/rqvae", "autoencoder_steps=10"]
    assert run_script(train_rqvae.train, "", ["configs/rqvae_amazon.gin", *stage, "eval_every=10"]) == 0
    shape = ["decoder_embed_dim=16", "attn_embed_dim=16", "attn_heads=2", "attn_layers=1", "decoder_ff_dim=16", "num_user_bins=4"]
    stage = [*common, *shape, f"pretrained_rqvae_path={folder}/rqvae", f"save_dir_root={folder}/decoder", "beam_size=12", "eval_users=20"]
    assert run_script(train_decoder.train, "", ["configs/decoder_amazon.gin", *stage, "full_eval_every=20"]) == 0
    return folder


@pytest.fixture
def on_hub(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """A hub with one repository of each stage; returns what was asked of it."""
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if not name.startswith("me/"):
            raise ConnectionError("Repository Not Found\nand a page of advice")
        return str(save_pretrained(runs / name.removeprefix("me/") / "beauty", tmp_path / "cache" / name))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


class FakeApi:
    """Stands in for HfApi; keeps what it was given, the files by name."""

    calls: list[tuple[str, dict[str, object]]]
    files: dict[str, str]

    def create_repo(self, repo_id: str, **options: object) -> str:
        self.calls.append((repo_id, options))
        return f"https://hub.invalid/{repo_id}"

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.files.update({path.name: path.read_bytes().decode(errors="replace") for path in folder_path.iterdir()})


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    monkeypatch.setattr(FakeApi, "calls", [], raising=False)
    monkeypatch.setattr(FakeApi, "files", {}, raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub, "login", lambda *_, **__: pytest.fail("login would ask"))
    return FakeApi


def search(retriever: Retriever) -> list[torch.Tensor]:
    histories = torch.tensor([[3, 5, 7], [9, 2, PAD]])
    batch = SeqBatch(torch.tensor([0, 1]), histories, torch.full((2, 1), PAD), histories)
    return list(Searcher(retriever).search(batch, True, 12))


def test_a_shared_rqvae_gives_the_same_semantic_ids(runs: Path, tmp_path: Path) -> None:
    run = runs / "rqvae" / "beauty"
    before = load_tokenizer(run)
    after = from_pretrained(str(save_pretrained(run, tmp_path / "out")))
    assert isinstance(after, TrainedTokenizer)
    assert after.model.config == before.model.config
    assert after.model.config.mode is QuantizeForwardMode.ROTATION_TRICK
    assert torch.equal(after.tokenizer.sem_ids, before.tokenizer.sem_ids)
    vectors = torch.from_numpy(write_embeddings(tmp_path / "items.npy", ITEMS)).float()
    codes = after.model.get_semantic_ids(vectors)
    assert torch.equal(codes, after.tokenizer.sem_ids[:, :-1])
    assert not after.model.training


def test_a_shared_decoder_finds_the_same_items(runs: Path, tmp_path: Path) -> None:
    run = runs / "decoder" / "beauty"
    after = from_pretrained(str(save_pretrained(run, tmp_path / "out")))
    assert isinstance(after, Retriever)
    assert after.titles == load_retriever(run).titles
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(search(after), search(load_retriever(run)), strict=True))


@pytest.mark.parametrize(("stage", "more"), [("rqvae", {"vectors.safetensors"}), ("decoder", {"titles.json", "search.json"})])
def test_exactly_what_another_person_needs_is_copied(stage: str, more: set[str], runs: Path, tmp_path: Path) -> None:
    folder = save_pretrained(runs / stage / "beauty", tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == SHARED | more | {"README.md"}


@pytest.mark.parametrize("stage", ["rqvae", "decoder"])
def test_no_path_of_this_machine_is_shared(stage: str, runs: Path, tmp_path: Path) -> None:
    run = runs / stage / "beauty"
    assert str(runs) in (run / "config.gin").read_text()
    for path in save_pretrained(run, tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert str(runs).encode() not in content, path
        assert str(Path.home()).encode() + b"/" not in content, path
    assert json.loads((tmp_path / "out" / "environment.json").read_text())["python"]


def test_paths_are_cut_to_their_names_and_nothing_else_is() -> None:
    assert without_local_paths("train.a = '/home/me/my data/x.npy'") == "train.a = 'x.npy'"
    assert without_local_paths('"command": "/srv/train.py a.gin b=/srv/x.npy c=~/y d=C:\\\\me\\\\z.npy"') == (
        '"command": "train.py a.gin b=x.npy c=y d=z.npy"'
    )
    for kept in ("train.a = 'out/rqvae'", "see https://arxiv.org/abs/2305.05065", "231 / 243", "train.b = 1e-3", "owner/name"):
        assert without_local_paths(kept) == kept


def test_settings_are_read_back_from_the_config(runs: Path) -> None:
    settings = read_settings((runs / "rqvae" / "beauty" / "config.gin").read_text())
    assert settings["vae_codebook_mode"] == "ROTATION_TRICK"
    assert settings["vae_hidden_dims"] == [16]
    assert settings["resume"] is True
    assert settings["item_embeddings"] == f"{runs}/items.npy"


def test_the_rqvae_card_tells_the_data_the_codebooks_and_how_to_load(runs: Path, tmp_path: Path) -> None:
    run = runs / "rqvae" / "beauty"
    card = ModelCard.load(save_pretrained(run, tmp_path / "out", "me/ids") / "README.md")
    metrics = json.loads((run / "metrics.json").read_text())
    for level, (usage, perplexity) in enumerate(zip(metrics["usage"], metrics["perplexity"])):
        assert f"| {level} | {usage:.1%} | {perplexity:.1f} |" in card.text
    assert f"| collision rate | {metrics['collision_rate']:.4f} |" in card.text
    for wanted in ("AMAZON, beauty", f"| items | {ITEMS} |", "8 + 8 + 8", "items.npy", 'from_pretrained("me/ids")', "MIT", "own terms"):
        assert wanted in card.text
    assert card.data.to_dict()["tags"] == ["tiger", "semantic-ids", "recommendation", "rq-vae"]
    assert (card.data.library_name, card.data.license) == ("tiger", "other")


def test_the_decoder_card_holds_every_row_of_both_parts(runs: Path, tmp_path: Path) -> None:
    run = runs / "decoder" / "beauty"
    text = (save_pretrained(run, tmp_path / "out", "me/model") / "README.md").read_text()
    metrics, environment = (json.loads((run / name).read_text()) for name in ("metrics.json", "environment.json"))
    for part in ("validation", "test"):
        block = text.partition(f"### {part}\n")[2].partition("\n##")[0]
        for name, row in metrics[part].items():
            line = next(line for line in block.splitlines() if line.startswith(f"| {name} |"))
            assert all(f" {value:.4f} " in line for value in row["metrics"].values())
        low = metrics[part]["TIGER"]["intervals"]["recall@10"]["low"]
        assert f"TIGER recall@10 [{low:.4f}, " in block
    assert {"most popular", "last item -> next (Markov)", "Markov with texts", "item-kNN", "memory"} <= metrics["test"].keys()
    for wanted in ("| users | 60 |", "items.npy", str(environment["commit"]), "python recommend.py me/model --history"):
        assert wanted in text


def test_an_unfinished_run_is_not_shared(runs: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "run"
    shutil.copytree(runs / "rqvae" / "beauty", unfinished)
    (unfinished / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"no finished run \(metrics.json missing\)"):
        save_pretrained(unfinished, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_copied_onto_itself(runs: Path) -> None:
    run = runs / "rqvae" / "beauty"
    before = (run / "config.gin").read_text()
    with pytest.raises(UserError, match="the run itself"):
        save_pretrained(run, run)
    assert (run / "config.gin").read_text() == before


def test_push_uploads_the_snapshot_and_says_where(runs: Path, api: type[FakeApi]) -> None:
    assert push(runs / "decoder" / "beauty", "me/model", private=True) == "https://hub.invalid/me/model"
    assert api.calls == [("me/model", {"private": True, "exist_ok": True})]
    assert set(api.files) == SHARED | {"titles.json", "search.json", "README.md"}
    assert "python recommend.py me/model" in api.files["README.md"]


def test_without_a_token_push_says_how_to_get_one_and_where_the_run_is(
    runs: Path, api: type[FakeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=rf"hf auth login.*HF_TOKEN.*safe in {runs}/rqvae/beauty"):
        push(runs / "rqvae" / "beauty", "me/ids")
    assert api.calls == []


def test_a_refusing_hub_is_told_in_one_line_with_the_runs_place(runs: Path, api: type[FakeApi], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FakeApi, repo_id: str, **options: object) -> str:
        raise ConnectionError("403 Forbidden\nrequest id 7")

    monkeypatch.setattr(api, "create_repo", refuse)
    with pytest.raises(UserError) as caught:
        push(runs / "rqvae" / "beauty", "me/ids")
    assert "403 Forbidden" in str(caught.value)
    assert "safe in" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [None, "", "model", "a/b/c", "/model", "me/", "me/mo del", "me/mo--del", "./model", "me/.."])
def test_a_name_the_hub_would_refuse_is_refused_before_a_training(name: str | None) -> None:
    problem = check_repo_name(name)
    assert problem is not None
    assert "owner/name" in problem


@pytest.mark.parametrize("name", ["me/model", "my-account/tiger_beauty-2.1"])
def test_a_name_the_hub_takes_passes(name: str) -> None:
    assert check_repo_name(name) is None


def test_a_run_is_found_by_its_directory_or_its_parents_split(runs: Path, on_hub: list) -> None:
    run = runs / "rqvae" / "beauty"
    assert find_snapshot(str(run), "beauty") == run
    assert find_snapshot(str(runs / "rqvae"), "beauty") == run
    assert on_hub == []


def test_a_hub_name_downloads_the_files_of_a_run_and_no_others(runs: Path, on_hub: list) -> None:
    found = from_pretrained("me/rqvae")
    assert isinstance(found, TrainedTokenizer)
    assert torch.equal(found.tokenizer.sem_ids, load_tokenizer(runs / "rqvae" / "beauty").tokenizer.sem_ids)
    ((name, patterns),) = on_hub
    assert name == "me/rqvae"
    memory = {"memory.safetensors", "memory.json"}
    assert set(patterns) == SHARED | memory | {"titles.json", "items.json", "search.json", "vectors.safetensors"}


def test_a_local_path_wins_over_a_hub_name(runs: Path, on_hub: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_pretrained(runs / "rqvae" / "beauty", Path("me/rqvae"))
    assert find_snapshot("me/rqvae", "beauty") == Path("me/rqvae")
    os.makedirs("me/empty")
    with pytest.raises(UserError, match=r"no run of train_rqvae\.py in me/empty or me/empty/beauty: train it first"):
        find_snapshot("me/empty", "beauty", "rqvae")
    assert on_hub == []


def test_an_unknown_name_gets_one_sentence_with_the_ways_out(on_hub: list) -> None:
    with pytest.raises(UserError) as caught:
        find_snapshot("nobody/nothing", "beauty")
    text = str(caught.value)
    assert "\n" not in text
    for wanted in ("nobody/nothing", "Repository Not Found", "hf auth login", "HF_TOKEN", "run directory"):
        assert wanted in text


def test_a_path_that_cannot_be_a_hub_name_never_asks_the_hub(on_hub: list) -> None:
    with pytest.raises(UserError, match=r"no run of train_rqvae\.py in out/rqvae/nowhere or"):
        find_snapshot("out/rqvae/nowhere", "beauty", "rqvae")
    assert on_hub == []


@pytest.mark.parametrize(("stage", "other"), [("rqvae", "decoder"), ("decoder", "rqvae")])
def test_a_run_of_the_other_stage_is_refused_by_the_parameter_s_name(runs: Path, stage: str, other: str) -> None:
    with pytest.raises(UserError, match=rf"train\.pretrained_{stage}_path takes one of train_{stage}\.py"):
        find_snapshot(str(runs / other), "beauty", stage)


def test_a_repository_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match=r"no run of this project \(no tokenizer.json\)"):
        find_snapshot("me/other")


def test_recommend_takes_a_hub_name(on_hub: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert recommend.main(["me/decoder", "--history", "B000000001", "--k", "3"]) == 0
    assert len(capsys.readouterr().out.partition("recommended\n")[2].strip().splitlines()) == 3


def test_stage_two_trains_on_semantic_ids_from_the_hub(runs: Path, on_hub: list, tmp_path: Path) -> None:
    shape = ["decoder_embed_dim=16", "attn_embed_dim=16", "attn_heads=2", "attn_layers=1", "decoder_ff_dim=16", "beam_size=12"]
    stage = [f"dataset_folder={runs}", "pretrained_rqvae_path=me/rqvae", f"save_dir_root={tmp_path}", "iterations=1", "do_eval=False"]
    assert run_script(train_decoder.train, "", ["configs/decoder_amazon.gin", *stage, *shape, "device=cpu"]) == 0
    assert [name for name, _ in on_hub] == ["me/rqvae"]


def test_every_field_of_a_config_survives_and_strange_ones_are_named(runs: Path) -> None:
    described = described_tokenizer(runs / "rqvae" / "beauty").fields
    config = restored(described, RqVaeConfig)
    assert config.hidden_dims == (16,)
    assert (config.mode, config.embed_dim) == (QuantizeForwardMode.ROTATION_TRICK, 8)
    with pytest.raises(UserError, match="does not know: colour, taste"):
        restored({**described, "taste": 1, "colour": 2}, RqVaeConfig)
    with pytest.raises(UserError, match=r"cannot be read.*MYSTERY"):
        restored({**described, "mode": "MYSTERY"}, RqVaeConfig)


def test_a_decoder_is_not_taken_for_an_rqvae(runs: Path) -> None:
    with pytest.raises(UserError, match=r"not a run of train_rqvae\.py"):
        load_tokenizer(runs / "decoder" / "beauty")
