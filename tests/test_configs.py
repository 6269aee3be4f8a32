"""Every file in configs/ runs for two steps, on small synthetic data in the layout that it names."""

from pathlib import Path

import pytest

import train_decoder
import train_rqvae
from modules.runtime.config.main import ROOT, resolve, run_script
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.options.rqvae import RqVaeOptions
from tests.examples import example_of
from tests.synthetic import write_embeddings

CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.gin"))
STAGE_ONE = [config for config in CONFIGS if Path(config).name.startswith(("rqvae", "tokenizer"))]
DECODER = [config for config in CONFIGS if Path(config).name.startswith("decoder")]
SASREC = [config for config in CONFIGS if Path(config).name.startswith("sasrec")]
STAGE_TWO = [*DECODER, *SASREC]
SHORT = ["iterations=2", "eval_users=20", "do_eval=False", "device=cpu", "batch_size=32"]
ITEMS = 600


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    options = [resolve(kind, [config]) for kind, configs in ((RqVaeOptions, STAGE_ONE), (DecoderOptions, STAGE_TWO)) for config in configs]
    for dataset, split in {(given.dataset, given.dataset_split) for given in options}:
        example = example_of(dataset, split)
        example.write(folder, split, example.users, ITEMS)
    for width in (384, 768):
        write_embeddings(folder / f"{width}.npy", ITEMS, width=width)
    write_embeddings(folder / "synthetic.npy", 400, width=384)
    return folder


def run_stage_one(config: str, data: Path, root: Path) -> None:
    settings = resolve(RqVaeOptions, [config])
    width = settings.vae_input_dim - (settings.collaborative_dim if settings.collaborative_weight else 0)
    vectors = data / ("synthetic.npy" if "synthetic" in config else f"{width}.npy")
    short = ["iterations=2", "autoencoder_steps=1", "device=cpu", "allow_collapse=True", f"item_embeddings={vectors}"]
    assert run_script(train_rqvae.train, "", [config, f"dataset_folder={data}", f"save_dir_root={root}", *short]) == 0


def test_every_config_belongs_to_a_script() -> None:
    assert len(STAGE_ONE) >= 3
    assert len(DECODER) >= 3
    assert set(STAGE_ONE) | set(STAGE_TWO) == set(CONFIGS)
    assert [config for config in STAGE_TWO if resolve(DecoderOptions, [config]).model == "sasrec"] == SASREC != []


@pytest.mark.parametrize("config", STAGE_ONE)
def test_the_stage_one_config_runs(config: str, data: Path, tmp_path: Path) -> None:
    run_stage_one(config, data, tmp_path)


@pytest.mark.parametrize("config", DECODER)
def test_the_decoder_config_runs(config: str, data: Path, tmp_path: Path) -> None:
    pair = config.replace("decoder", "rqvae")
    run_stage_one(pair if pair in STAGE_ONE else "configs/rqvae_amazon.gin", data, tmp_path / "rqvae")
    roots = [f"dataset_folder={data}", f"pretrained_rqvae_path={tmp_path}/rqvae", f"save_dir_root={tmp_path}/decoder"]
    assert run_script(train_decoder.train, "", [config, *roots, *SHORT, "beam_size=10"]) == 0


@pytest.mark.parametrize("config", SASREC)
def test_the_sasrec_config_runs_without_stage_one(config: str, data: Path, tmp_path: Path) -> None:
    roots = [f"dataset_folder={data}", f"pretrained_rqvae_path={tmp_path}/rqvae", f"save_dir_root={tmp_path}/sasrec"]
    assert run_script(train_decoder.train, "", [config, *roots, *SHORT]) == 0


@pytest.mark.parametrize("config", STAGE_TWO)
def test_the_stage_two_config_reads_what_a_stage_one_config_writes(config: str) -> None:
    written = {resolve(RqVaeOptions, [stage_one]).save_dir_root for stage_one in STAGE_ONE}
    assert resolve(DecoderOptions, [config]).pretrained_rqvae_path in written


def test_no_two_configs_share_a_run_directory() -> None:
    for kind, configs in ((RqVaeOptions, STAGE_ONE), (DecoderOptions, STAGE_TWO)):
        roots = [resolve(kind, [config]).save_dir_root for config in configs]
        assert len(set(roots)) == len(roots)
