"""The commands that are printed work as they are pasted, inside and outside the virtual environment."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data.shell import command
from modules.runtime.config.main import ROOT
from modules.runtime.runs.run import Run
from tests.runs import write_data
from tests.test_processes import SHORT, places


def test_python_is_named_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = tmp_path / "a b" / "bin"
    scripts.mkdir(parents=True)
    for name in ("python", "python3"):
        (scripts / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(scripts / "python3"))
    monkeypatch.setenv("PATH", str(scripts))
    assert command("x.py", "it's", Path("out/a")) == """python x.py 'it'"'"'s' out/a"""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("x.py") == f"'{scripts}/python3' x.py"
    monkeypatch.chdir(tmp_path)
    assert command("x.py") == "'a b/bin/python3' x.py"


@pytest.mark.parametrize(
    ("config", "pair"),
    [
        ("configs/rqvae_quick.gin", "configs/decoder_quick.gin"),
        ("configs/rqvae_amazon_mpnet.gin", "configs/decoder_amazon_mpnet.gin"),
        ("configs/ablations/rqvae_2_levels.gin", "CONFIG"),
        ("out/rqvae/quick/ml-100k/config.gin", "CONFIG"),
    ],
)
def test_stage_one_names_the_config_beside_its_own_and_the_data_given_with_it(config: str, pair: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_rqvae.py", config, "dataset_split=toys", "seed=3", "--min_rating=4", "item_embeddings=a.npy"])
    monkeypatch.chdir(ROOT)
    with Run(str(tmp_path), "toys", {"resume": True}) as run:
        words = shlex.split(run.stage_two_command())[1:]
    assert words == ["train_decoder.py", pair, "dataset_split=toys", "--min_rating=4", f"pretrained_rqvae_path={tmp_path}/toys"]


def paste(line: str, *more: str) -> str:
    """Runs a line in a shell that knows nothing of the environment of this test, in the project's directory; gives its output."""
    unaware = os.environ | {"PATH": "/usr/bin:/bin"}
    pasted = f"{line} {shlex.join(more)}"
    done = subprocess.run(["bash", "-c", pasted], cwd=ROOT, env=unaware, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def next_line(output: str) -> str:
    return re.findall(r"^next +(.*)$", output, re.MULTILINE)[-1]


def test_each_script_s_next_line_runs_as_it_is_pasted(tmp_path: Path) -> None:
    data = tmp_path / "the data"
    write_data(data)
    first = [sys.executable, "train_rqvae.py", "configs/rqvae_amazon.gin", *places("rqvae", data, data / "rqvae"), *SHORT["rqvae"]]
    second = next_line(paste(shlex.join(first)))
    assert "configs/decoder_amazon.gin" in second
    third = next_line(paste(second, f"save_dir_root={tmp_path}/decoder", *SHORT["decoder"], "iterations=4"))
    assert "recommend.py" in third
    assert "  1 " in paste(third)


def test_the_readme_enters_the_environment_before_it_uses_it() -> None:
    text = (ROOT / "README.md").read_text()
    demo = text.index("<!-- /demo -->")
    enter, ask = text.index("    source .venv/bin/activate\n", demo), text.index("    python recommend.py", demo)
    assert demo < enter < ask
