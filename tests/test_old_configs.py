"""Config files in the style of older scripts of this family run here, under the names that they use."""

import json
import logging
import re
from pathlib import Path

import pytest

import train_decoder
import train_rqvae
from data.processed import RecDataset
from data.schemas import UserError
from modules.quantize import QuantizeForwardMode
from modules.runtime.config.main import resolve, run_script
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.options.rqvae import RqVaeOptions
from modules.runtime.runs.stage1_run import refuse_contradictions
from tests.synthetic import write_embeddings, write_p5

OLD = Path(__file__).parent / "old_configs"
GENERATIONS = [("rqvae_gumbel.gin", "decoder_jagged.gin"), ("rqvae_rotation.gin", "decoder_t5.gin")]

EXPECTED: dict[str, dict[str, object]] = {
    "rqvae_gumbel.gin": {
        "iterations": 300_000,
        "learning_rate": 0.0005,
        "vae_hidden_dims": (24, 16),
        "vae_n_layers": 2,
        "vae_codebook_mode": QuantizeForwardMode.GUMBEL_SOFTMAX,
        "dataset": RecDataset.AMAZON,
        "save_dir_root": "out/rqvae/amazon/",
    },
    "rqvae_rotation.gin": {
        "iterations": 50_000,
        "warmup_steps": 50,
        "vae_codebook_mode": QuantizeForwardMode.ROTATION_TRICK,
        "dataset": RecDataset.AMAZON,
        "dataset_folder": "dataset/amazon",
        "text_model": "sentence-transformers/sentence-t5-base",
        "pretrained_rqvae_path": None,
    },
    "decoder_jagged.gin": {
        "decoder_embed_dim": 16,
        "attn_embed_dim": 32,
        "attn_heads": 2,
        "attn_layers": 1,
        "full_eval_every": 5000,
        "vae_codebook_size": 16,
    },
    "decoder_t5.gin": {
        "decoder_embed_dim": 24,
        "attn_heads": 2,
        "attn_embed_dim": 32,
        "decoder_ff_dim": 48,
        "attn_layers": 1,
        "beam_size": 12,
        "top_k_eval_list": (5, 10),
        "num_user_bins": 0,
        "should_add_sep_token": True,
        "pretrained_decoder_path": None,
        "vae_codebook_mode": QuantizeForwardMode.ROTATION_TRICK,
    },
}


def notes_of(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> tuple[DecoderOptions, list[str]]:
    (tmp_path / "run.gin").write_text(text)
    with caplog.at_level(logging.INFO, logger="tiger"):
        resolved = resolve(DecoderOptions, [str(tmp_path / "run.gin")])
    return resolved, [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("name", EXPECTED)
def test_an_old_file_gives_the_parameters_that_its_names_mean(name: str) -> None:
    resolved = resolve(RqVaeOptions if name.startswith("rqvae") else DecoderOptions, [str(OLD / name)]).settings()
    assert {parameter: resolved[parameter] for parameter in EXPECTED[name]} == EXPECTED[name]


@pytest.mark.parametrize(("rqvae", "decoder"), GENERATIONS)
def test_the_old_files_run_end_to_end(rqvae: str, decoder: str, tmp_path: Path) -> None:
    write_p5(tmp_path, 60, 80)
    write_embeddings(tmp_path / "items.npy", 80)
    data = [f"dataset_folder={tmp_path}", "iterations=2", "device=cpu"]
    stage_one = [f"item_embeddings={tmp_path}/items.npy", f"save_dir_root={tmp_path}/rqvae", "autoencoder_steps=1", "allow_collapse=true"]
    assert run_script(train_rqvae.train, "", [str(OLD / rqvae), *data, *stage_one]) == 0
    stage_two = [f"pretrained_rqvae_path={tmp_path}/rqvae", f"save_dir_root={tmp_path}/decoder", "do_eval=false", "eval_users=20"]
    assert run_script(train_decoder.train, "", [str(OLD / decoder), *data, *stage_two]) == 0
    assert (tmp_path / "decoder" / "beauty" / "report.txt").exists()


def test_every_vae_line_that_contradicts_the_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"rqvae": {"mode": "STE", "input_norm": "none", "hidden_dims": [16], "num_levels": 2}})
    )
    given = {"vae_hidden_dims": (16,), "vae_n_layers": 3, "vae_input_norm": "standardize", "vae_codebook_mode": "ROTATION_TRICK"}
    with pytest.raises(UserError) as error:
        refuse_contradictions(tmp_path, DecoderOptions(**given))
    named = re.findall(r"train\.(vae_\w+) is", str(error.value))
    assert named == ["vae_n_layers", "vae_codebook_mode", "vae_input_norm"]
    refuse_contradictions(tmp_path, DecoderOptions(vae_codebook_mode="STE"))


def test_every_old_name_is_noted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "base.gin").write_text("train.t5_d_model = 64\n")
    resolved, notes = notes_of(f'include "{tmp_path}/base.gin"\ntrain.t5_d_model = 32\n', tmp_path, caplog)
    assert resolved.decoder_embed_dim == 32
    assert notes == ["train.t5_d_model is decoder_embed_dim here"]


def test_the_layers_of_a_file_with_old_names_are_said_to_be_each_stacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert notes_of("train.attn_layers = 8\n", tmp_path, caplog)[1] == []
    notes = notes_of("train.attn_layers = 8\ntrain.model_jagged_mode = True\n", tmp_path, caplog)[1]
    assert len(notes) == 1
    assert "train.attn_layers counts the layers of each stack" in notes[0]


def test_what_the_tokenizer_knows_has_no_effect_in_stage_two_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notes = notes_of("train.sem_id_dim = 3\ntrain.num_item_embeddings = 0\n", tmp_path, caplog)[1]
    assert notes == ["train.sem_id_dim comes from the tokenizer's run here; the line has no effect"]


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("train.t5_num_heads = 8", 512),
        ("train.t5_num_heads = 8\ntrain.t5_d_kv = 32", 256),
        ("train.t5_d_kv = 32\ntrain.t5_num_heads = 8", 256),
        ("train.t5_d_kv = 32", 192),
        ("train.t5_num_heads = 8\ntrain.attn_embed_dim = 64", 64),
        ("train.attn_heads = 8\ntrain.attn_dim = 128", 128),
    ],
)
def test_attention_is_heads_times_the_width_of_a_head(text: str, width: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert notes_of(text, tmp_path, caplog)[0].attn_embed_dim == width


def test_an_old_name_and_a_new_one_may_differ_where_one_overrides_the_other(tmp_path: Path) -> None:
    (tmp_path / "run.gin").write_text("train.t5_d_model = 64\n")
    arguments = [str(tmp_path / "run.gin"), "decoder_embed_dim=32"]
    assert resolve(DecoderOptions, arguments).decoder_embed_dim == 32
    (tmp_path / "run.gin").write_text("train.t5_d_model = 64\ntrain.decoder_embed_dim = 32\n")
    with pytest.raises(UserError, match=r"line 2: train\.decoder_embed_dim has another value on line 1"):
        resolve(DecoderOptions, arguments)


def test_a_decoder_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.gin").write_text("train.model_type = %modules.model.ModelType.DECODER\n")
    with pytest.raises(UserError, match=r"train\.model_type: the model is an encoder-decoder"):
        resolve(DecoderOptions, [str(tmp_path / "run.gin")])
