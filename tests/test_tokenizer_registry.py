"""The list of tokenizers: what it says of each is what each does; runs of earlier versions are read."""

import ast
import inspect
import json
import typing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.schemas import UserError
from modules.runtime.config.declaration import hints_of
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.options.rqvae import RqVaeOptions
from modules.runtime.runs.stage1_run import described_tokenizer, load_tokenizer, refuse_contradictions, restored
from modules.runtime.training.checkpoint import WEIGHTS, save_weights
from modules.tokenizer.autoencoder import Autoencoder
from modules.tokenizer.base import ItemTokenizer
from modules.tokenizer.direct import DirectTokenizer
from modules.tokenizer.registry import KINDS, TokenizerName, kind_of, make_config, make_tokenizer, option_of, settings_read
from modules.tokenizer.semids import SemanticIdTokenizer
from tests.test_rqvae import catalogue

ROOT = Path(__file__).parents[1]
OLD_RUNS = Path(__file__).parent / "old_runs"
DEFAULTS = RqVaeOptions().settings()
SMALL = {"vae_input_dim": 32, "vae_hidden_dims": (16,), "vae_codebook_size": 8, "vae_embed_dim": 4}


def settings_of(name: str, **changes: object) -> dict[str, object]:
    return DEFAULTS | SMALL | {"tokenizer": name} | changes


def fitted(name: str, items: torch.Tensor, **changes: object) -> ItemTokenizer:
    torch.manual_seed(0)
    made = make_tokenizer(name, make_config(settings_of(name, **changes))).eval()
    if isinstance(made, Autoencoder):
        made.normalizer.fit(items)
        made.start_codebooks(items, 0)
    else:
        assert isinstance(made, DirectTokenizer)
        made.fit(items, 0)
    return made


def test_the_option_takes_exactly_the_kinds_of_the_list() -> None:
    assert hints_of(RqVaeOptions)["tokenizer"] is TokenizerName
    assert list(typing.get_args(TokenizerName)) == list(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_every_option_that_a_kind_reads_is_one_of_the_script(name: str) -> None:
    assert KINDS[name].options <= DEFAULTS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_a_config_has_the_values_of_its_options(name: str) -> None:
    changed = {"vae_n_layers": 4, "vae_input_norm": "standardize", "kmeans_balanced": True, "pca_dim": 12, "vae_sinkhorn": "training"}
    config = make_config(settings_of(name, **changed))
    assert asdict(config) == {field: settings_of(name, **changed)[option_of(field)] for field in asdict(config)}


def test_the_settings_of_a_kind_leave_out_the_options_of_the_others() -> None:
    lsh, rqvae = settings_read(settings_of("lsh")), settings_read(settings_of("rqvae"))
    assert {"pca_dim", "vae_codebook_size", "collision_policy", "seed"} <= lsh.keys()
    assert not lsh.keys() & {"learning_rate", "vae_embed_dim", "use_kmeans_init", "kmeans_balanced"}
    assert {"learning_rate", "vae_embed_dim", "use_kmeans_init", "kmeans_balanced"} <= rqvae.keys()
    assert DEFAULTS.keys() - rqvae.keys() == {"pca_dim"}


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="'kmeans'; it can be one of 'rqvae'"):
        kind_of("kmeans")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_does_what_the_base_class_promises(name: str) -> None:
    items = catalogue(200)
    made = fitted(name, items)
    codes = made.get_semantic_ids(items)
    assert codes.shape == (200, 3)
    assert codes.dtype == torch.int64
    assert ((codes >= 0) & (codes < torch.tensor(made.codebook_sizes))).all()
    latents, books = made.latents(items), made.codebooks()
    assert [len(book) for book in books] in ([], list(made.codebook_sizes))
    assert all(book.shape[1] == latents.shape[1] for book in books)
    rebuilt = made.decode(codes)
    assert rebuilt is None or rebuilt.shape == made.normalize(items).shape
    for level, size in enumerate(made.codebook_sizes):
        assert made.level_distances(items, codes, level).shape == (200, size)
    alone = torch.cat([made.get_semantic_ids(items[:70]), made.get_semantic_ids(items[70:])])
    assert torch.equal(alone, codes) or made.codes_depend_on_others


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_run_gives_back_the_tokenizer_and_its_codes(name: str, tmp_path: Path) -> None:
    items = catalogue(200)
    made = fitted(name, items)
    write_run(tmp_path, made, {"tokenizer": {"kind": name, **jsonable(made)}}, items)
    found = load_tokenizer(tmp_path)
    assert type(found.model) is type(made)
    assert found.model.config == made.config
    assert torch.equal(found.model.get_semantic_ids(items), made.get_semantic_ids(items))


@pytest.mark.parametrize("name", ["rqvae", "rqkmeans", "opq", "lsh"])
def test_a_run_of_an_earlier_version_is_read(name: str) -> None:
    """These runs were written by commit 7edbd99: config.json had a section for the RQ-VAE and one for all others, with one config."""
    folder = OLD_RUNS / name
    assert "input_mean" in load_file(folder / WEIGHTS)
    items = torch.from_numpy(np.load(OLD_RUNS / "items.npy"))
    found = load_tokenizer(folder)
    assert described_tokenizer(folder).kind == name
    assert type(found.model) is KINDS[name].tokenizer
    assert torch.equal(found.model.get_semantic_ids(items), found.tokenizer.sem_ids[:, :2])
    given = {"vae_codebook_size": 4, "vae_input_dim": 6, "vae_n_layers": 2}
    refuse_contradictions(folder, DecoderOptions(**given))
    with pytest.raises(UserError, match=r"train\.vae_n_layers is 3 but .* was trained with 2"):
        refuse_contradictions(folder, DecoderOptions(**given | {"vae_n_layers": 3}))


def test_what_an_early_run_does_not_say_has_its_default(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"rqvae": {"mode": "STE", "num_levels": 2}}))
    kind, found = described_tokenizer(tmp_path)
    config = kind_of(kind).config
    assert restored(found, config) == config(num_levels=2)


def test_the_kind_of_a_run_that_this_version_does_not_know_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"tokenizer": {"kind": "vq-next"}}))
    with pytest.raises(UserError, match="'vq-next'"):
        described_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"decoder": {}}))
    with pytest.raises(UserError, match=r"not a run of train_rqvae\.py"):
        described_tokenizer(tmp_path)


def test_only_the_list_and_the_kinds_own_files_name_a_kind() -> None:
    """A new kind needs its file, its entry in the list, and words about it: nobody else asks which class a tokenizer is."""
    own = {inspect.getfile(cls) for kind in KINDS.values() for cls in (kind.config, kind.tokenizer)}
    classes = {cls.__name__ for kind in KINDS.values() for cls in (kind.config, kind.tokenizer)}
    for path in [*ROOT.glob("*.py"), *(path for room in ("modules", "evaluate", "data") for path in (ROOT / room).rglob("*.py"))]:
        if str(path) in own or path.name == "registry.py":
            continue
        named = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not named & classes, path


def jsonable(made: ItemTokenizer) -> dict[str, object]:
    values = asdict(made.config)
    return json.loads(json.dumps(values | ({"mode": values["mode"].name} if "mode" in values else {})))


def write_run(folder: Path, made: ItemTokenizer, section: dict[str, object], items: torch.Tensor) -> None:
    (folder / "config.json").write_text(json.dumps({**section, "embeddings_hash": "hash", "collaborative_weight": 0.0}))
    save_weights(made, folder / WEIGHTS)
    SemanticIdTokenizer.from_coder(made, items, [f"item {row}" for row in range(len(items))], "hash").save(folder)
