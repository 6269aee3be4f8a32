"""One thread for every test, and the devices that are there."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A case with bytes goes by its argument's name, as a gzip stream carries the time: two workers would collect other names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session", params=DEVICES)
def device(request) -> torch.device:
    """Each device present, in turn."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with planted data and a finished run of each script."""
    from tests.runs import run_decoder, run_rqvae, write_data

    folder = tmp_path_factory.mktemp("trained")
    write_data(folder)
    run_rqvae(folder)
    run_decoder(folder)
    return folder


@pytest.fixture
def trained_retriever(trained: Path):
    """The finished decoder run, as it is asked for items."""
    from modules.runtime.retriever import load_retriever

    return load_retriever(trained / "decoder" / "beauty")


@pytest.fixture
def trained_data(trained: Path):
    """The data of that run, cut as it was."""
    from data.processed import DataConfig, RecDataset, SeqData, load_corpus

    corpus = load_corpus(DataConfig(RecDataset.AMAZON, str(trained), "beauty"))
    return SeqData(corpus.histories, len(corpus.item_keys))
