"""Small runs of both scripts on planted data: what the end-to-end tests share.

They run in fp32 wherever they run, so that no comparison of digits depends on what the CPU has; ``BF16`` undoes that.
"""

import json
import os
from pathlib import Path

import pytest

import train_decoder
import train_rqvae
from modules.runtime.config.main import run_script
from modules.runtime.training import trainer
from tests.synthetic import write_embeddings, write_p5

ITEMS, USERS = 120, 400
RQVAE = [
    "iterations=250",
    "autoencoder_steps=80",
    "batch_size=64",
    "vae_input_dim=32",
    "vae_embed_dim=8",
    "vae_hidden_dims=[32]",
    "vae_codebook_size=8",
    "vae_n_layers=3",
    "eval_every=50",
    "save_model_every=60",
    "device=cpu",
    "amp=False",
]
DECODER = [
    "iterations=300",
    "batch_size=128",
    "learning_rate=3e-3",
    "warmup_steps=20",
    "decoder_embed_dim=32",
    "attn_embed_dim=32",
    "attn_heads=2",
    "attn_layers=1",
    "decoder_ff_dim=64",
    "num_user_bins=16",
    "beam_size=20",
    "full_eval_every=100",
    "partial_eval_every=50",
    "log_every=1",
    "save_model_every=70",
    "eval_users=None",
    "device=cpu",
    "amp=False",
]
SASREC = [
    "mixtures=[]",
    "iterations=100",
    "batch_size=128",
    "learning_rate=3e-3",
    "warmup_steps=20",
    "decoder_embed_dim=32",
    "decoder_ff_dim=64",
    "dropout_p=0.1",
    "full_eval_every=50",
    "partial_eval_every=25",
    "log_every=1",
    "save_model_every=70",
    "device=cpu",
    "amp=False",
]
BF16 = ["amp=True", "mixed_precision_type=bf16"]
"""Overrides for a run in bf16, together with TESTS_BF16=on in the environment, which makes every CPU count as one that has it."""


def run_rqvae(folder: Path, *overrides: str, code: int = 0) -> None:
    given = [f"dataset_folder={folder}", f"item_embeddings={folder}/items.npy", f"save_dir_root={folder}/rqvae", *RQVAE, *overrides]
    assert run_script(train_rqvae.train, "", ["configs/rqvae_amazon.gin", *given]) == code


def run_decoder(folder: Path, *overrides: str, code: int = 0) -> None:
    given = [f"dataset_folder={folder}", f"pretrained_rqvae_path={folder}/rqvae", f"save_dir_root={folder}/decoder", *DECODER, *overrides]
    assert run_script(train_decoder.train, "", ["configs/decoder_amazon.gin", *given]) == code


def run_sasrec(folder: Path, *overrides: str, code: int = 0) -> None:
    given = [f"dataset_folder={folder}", f"pretrained_rqvae_path={folder}/rqvae", f"save_dir_root={folder}/sasrec", *SASREC, *overrides]
    assert run_script(train_decoder.train, "", ["configs/sasrec_amazon.gin", *given]) == code


RUN = {"rqvae": run_rqvae, "decoder": run_decoder}


def interrupt_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends this process a signal in the middle of an update."""
    seed_step = trainer.seed_step

    def seed_and_signal(seed: int, current: int, rank: int) -> None:
        seed_step(seed, current, rank)
        if current == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(trainer, "seed_step", seed_and_signal)


def write_data(folder: Path) -> None:
    """The planted data, and the embeddings of its items."""
    write_p5(folder, USERS, ITEMS)
    write_embeddings(folder / "items.npy", ITEMS)


def lines(run: Path) -> list[dict]:
    """The run's log without what depends on the clock."""
    read = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read]


def losses(run: Path) -> dict[int, float]:
    """Training loss by step."""
    return {line["step"]: line["loss"] for line in lines(run) if "loss" in line}
