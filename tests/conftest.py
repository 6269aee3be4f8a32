"""What every test runs with: threads (--threads), what the CPU is taken for (--bf16), and the devices that are there."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import tests.startup.sitecustomize

# The same examples at every run, however long they take. --hypothesis-profile=default draws others.
settings.register_profile("tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

SLOW = {
    "test_configs",
    "test_kill",
    "test_old_configs",
    "test_mixture_rows",
    "test_own_data",
    "test_precision",
    "test_processes",
    "test_resume",
    "test_sasrec_run",
    "test_scripts",
    "test_shell",
}
"""Modules whose tests run whole scripts; ``-m "not slow"`` leaves these out, and every test that asks for ``trained``."""

STARTUP = Path(tests.startup.sitecustomize.__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bf16", choices=["on", "off", "probe"], default="probe", help="whether the CPU is taken for one that has bf16")
    parser.addoption("--threads", type=int, default=1, help="threads of each test and of each process that it starts")


def pytest_configure(config: pytest.Config) -> None:
    """Lays down what this process and those that the tests start read."""
    torch.set_num_threads(config.getoption("threads"))
    os.environ["OMP_NUM_THREADS"] = str(config.getoption("threads"))
    os.environ["TESTS_BF16"] = config.getoption("bf16")
    found = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(STARTUP), *(path for path in found if path not in ("", str(STARTUP)))])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW or "trained" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


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
    from modules.runtime.runs.stage2_run import load_retriever

    return load_retriever(trained / "decoder" / "beauty")


@pytest.fixture
def trained_data(trained: Path):
    """The data of that run, cut as it was."""
    from data.processed import DataConfig, RecDataset, SeqData, load_corpus

    corpus = load_corpus(DataConfig(RecDataset.AMAZON, str(trained), "beauty"))
    return SeqData(corpus.histories, len(corpus.item_keys))
