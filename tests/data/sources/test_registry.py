"""What every source owes to the rest of the project, for each member of ``RecDataset``.

A new source takes six files: ``data/sources/NAME.py``, a member in ``data/sources/registry.py``, a pair of configs, a row in the table
of docs/data.md, and ``tests/data/sources/test_NAME.py``, which ends in ``EXAMPLES``. Nothing else names a source.
"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.processed import DataConfig, RecDataset, SeqData, load_corpus
from data.schemas import UserError
from data.sources.registry import chosen_filters, data_mistakes, find_source, time_mistakes
from modules.runtime.config.main import resolve
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.options.rqvae import RqVaeOptions
from tests.examples import Example, examples

ROOT = Path(__file__).parents[3]
NAMES = [dataset.name for dataset in RecDataset]
IDS = [f"{example.dataset.name} {example.split}" for example in examples()]
each_example = pytest.mark.parametrize("example", examples(), ids=IDS)


def config_of(example: Example, folder: Path, **kept: object) -> DataConfig:
    return DataConfig(example.dataset, str(folder), example.split, **kept)


def lengths_of(corpus) -> torch.Tensor:
    return corpus.histories.offsets.diff()


@pytest.mark.parametrize("name", NAMES)
def test_a_source_is_one_file_that_ends_in_its_declaration(name):
    *_, last = ast.parse((ROOT / "data" / "sources" / f"{name.lower()}.py").read_text()).body
    assert ast.unparse(last).startswith("SOURCE = Source(")


def test_declarations_are_read_without_a_table_library():
    heavy = ("polars", "torch_geometric", "sentence_transformers", "pandas", "scipy")
    code = (
        "import sys; from data.sources.registry import RecDataset, find_source\n"
        f"print([*map(find_source, RecDataset)] and [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_no_other_file_has_to_know_a_source(name):
    """Enum members appear in their own file, the registry, configs and tests; the default of ``train.dataset`` is the one exception."""
    member = re.compile(rf"RecDataset\.{name}\b(?!_)")
    files = [path for room in ("data", "modules", "evaluate", "init", "distributions") for path in (ROOT / room).rglob("*.py")]
    files += ROOT.glob("*.py")
    knowing = [path for path in files if path.parent != ROOT / "data" / "sources" and member.search(path.read_text())]
    assert [path.name for path in knowing if name != "AMAZON"] == []
    assert all(path.read_text().count(f"RecDataset.{name}") <= 1 for path in knowing)


@pytest.mark.parametrize("name", NAMES)
def test_a_source_has_a_pair_of_configs_a_row_in_the_table_of_data_and_an_example(name):
    for kind, stage in ((RqVaeOptions, "rqvae"), (DecoderOptions, "decoder")):
        named = [path for path in (ROOT / "configs").glob(f"{stage}*.gin") if resolve(kind, [str(path)]).dataset.name == name]
        assert named, stage
    table = (ROOT / "docs" / "data.md").read_text().splitlines()
    rows = [line for line in table if line.startswith("|") and f"| `{name}`" in line]
    assert rows
    assert name in {example.dataset.name for example in examples()}


@pytest.mark.parametrize("name", NAMES)
def test_a_split_is_one_of_the_source_s(name):
    source = find_source(RecDataset[name])
    mistakes = list(data_mistakes(DataConfig(RecDataset[name], "x", "no such")))
    assert len(mistakes) == (1 if source.splits else 0)
    assert all(mistake.startswith(f"train.dataset_split is 'no such'; train.dataset {name} has ") for mistake in mistakes)
    assert all(split in mistake for mistake in mistakes for split in source.splits)
    assert [list(data_mistakes(DataConfig(RecDataset[name], "x", split))) for split in source.splits] == [[]] * len(source.splits)


def test_a_near_split_is_suggested_by_whoever_can():
    (sentence,) = data_mistakes(DataConfig(RecDataset.AMAZON, "x", "beuty"), lambda name, known: f"; {name} is not among {list(known)}")
    assert sentence.endswith("has beauty, sports or toys; beuty is not among ['beauty', 'sports', 'toys']")


def test_what_p5_s_files_lack_is_told_with_the_source_that_has_it():
    config = DataConfig(RecDataset.AMAZON, "x", "beauty", min_rating=3.0, cold_items=True, columns=("user=u",))
    assert list(data_mistakes(config)) == [
        "train.min_rating needs raw interactions, and train.dataset AMAZON is P5's finished 5-core; leave it out or take AMAZON_2014",
        "train.cold_items needs raw interactions, and train.dataset AMAZON is P5's finished 5-core; leave it out or take AMAZON_2014",
        "train.columns names the columns of your own files and train.dataset is AMAZON; leave it out or set CUSTOM",
    ]
    assert list(time_mistakes(config)) == [
        "train.split_by = 'time' needs times and train.dataset AMAZON, P5's files, has none; take AMAZON_2014 or 'leave_one_out'"
    ]


def test_the_source_that_has_all_interactions_exists_and_takes_filters():
    for dataset in RecDataset:
        prepared = find_source(dataset).prepared
        assert prepared is None or find_source(RecDataset[prepared.raw]).prepared is None


@each_example
def test_the_corpus_has_what_the_source_declares(example, tmp_path):
    example.write(tmp_path, example.split, 60, 40)
    source, config = find_source(example.dataset), config_of(example, tmp_path)
    corpus = load_corpus(config)
    assert SeqData(corpus.histories, len(corpus.item_keys)).num_train_targets > 0
    assert all(map(len, (corpus.item_keys, corpus.user_keys)))
    assert len(corpus.item_keys) == len(corpus.titles) == len(corpus.texts) == len(corpus.categories)
    assert (corpus.times is not None) == source.has_times == (not list(time_mistakes(config)))
    if corpus.times is not None:
        owner = torch.arange(len(lengths_of(corpus))).repeat_interleave(lengths_of(corpus))
        assert bool(((corpus.times.diff() >= 0) | (owner.diff() > 0)).all())


@each_example
def test_items_without_interactions_stay_where_the_source_declares_it(example, tmp_path):
    example.write(tmp_path, example.split, 3, 600)  # three users meet few of 600 items
    corpus = load_corpus(config_of(example, tmp_path))
    cold = len(corpus.item_keys) - len(corpus.histories.item_ids.unique())
    assert (cold > 0) == find_source(example.dataset).keeps_cold


@each_example
def test_a_config_s_filters_win_over_the_source_s_or_are_refused(example, tmp_path):
    example.write(tmp_path, example.split, 60, 40)
    source, config = find_source(example.dataset), config_of(example, tmp_path, max_history=3)
    assert chosen_filters(config_of(example, tmp_path)).max_history == source.max_history
    if source.prepared:
        with pytest.raises(UserError, match="needs raw interactions"):
            load_corpus(config)
    else:
        assert int(lengths_of(load_corpus(config)).max()) == 3


@each_example
def test_a_second_load_gives_the_same_corpus(example, tmp_path):
    example.write(tmp_path, example.split, 60, 40)
    first, second = (load_corpus(config_of(example, tmp_path)) for _ in range(2))
    anew = load_corpus(config_of(example, tmp_path, force_process=True))
    for other in (second, anew):
        assert first[:5] == other[:5]
        assert all(torch.equal(mine, its) for mine, its in zip(first.histories, other.histories))
        assert first.times is None or torch.equal(first.times, other.times)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut in the middle": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "other bytes": lambda path: path.write_bytes(bytes(range(256))),
    "a directory": directory,
}


@pytest.mark.parametrize("damage", DAMAGES)
@each_example
def test_a_damaged_raw_file_is_a_sentence_or_still_a_corpus(example, damage, tmp_path):
    example.write(tmp_path / "good", example.split, 40, 20)
    files = [path.relative_to(tmp_path / "good") for path in sorted(tmp_path.glob("good/raw/**/*")) if path.is_file()]
    assert files or example.dataset is RecDataset.SYNTHETIC
    for number, name in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", folder)
        DAMAGES[damage](folder / name)
        try:
            corpus = load_corpus(config_of(example, folder))
        except UserError:
            assert not list(folder.glob("processed/*"))
        else:
            assert damage == "cut in the middle"
            assert len(corpus.item_keys)
