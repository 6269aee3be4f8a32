import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import data.item_embeddings
from data.item_embeddings import embed_texts, load_embeddings
from data.item_text import item_text
from data.processed import DataConfig, RecDataset, load_corpus, load_items
from data.schemas import UserError
from tests.synthetic import write_embeddings, write_p5

VALUES = st.one_of(
    st.none(), st.just(""), st.just(float("nan")), st.just("nan"), st.just("NaN "), st.just([None, "", float("nan")]), st.just("ok")
)


def test_the_template_keeps_order_and_leaves_out_what_is_absent():
    fields = [("Title", " Soap\n bar "), ("Brand", None), ("Categories", ["Beauty", "", "Bath"]), ("Price", 3.5)]
    assert item_text(fields) == "Title: Soap bar; Categories: Beauty, Bath; Price: 3.5"
    assert item_text([("Title", None)]) == ""


@given(st.lists(st.tuples(st.sampled_from(["Title", "Brand", "Price"]), VALUES)))
def test_the_template_never_says_nan_or_none(fields):
    text = item_text(fields).lower()
    assert "nan" not in text
    assert "none" not in text
    assert text.count("ok") == sum(value == "ok" for _, value in fields)


class FakeEncoder:
    """Stands in for SentenceTransformer: vectors from the lengths of texts."""

    loaded = 0

    def __init__(self, model, **options):
        assert options["trust_remote_code"] is False
        if "absent" in model:
            raise OSError(f"cannot find {model}\nsecond line")
        type(self).loaded += 1

    def encode(self, texts, **options):
        return np.array([[len(text), 1] for text in texts], dtype=np.float16)


@pytest.fixture
def encoder(monkeypatch):
    FakeEncoder.loaded = 0
    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=FakeEncoder))
    monkeypatch.setattr(data.item_embeddings, "_hub_answers", lambda: False)
    return FakeEncoder


def test_texts_are_encoded_once(tmp_path, encoder):
    first = embed_texts(["a", "bb"], "org/model", tmp_path)
    assert first.dtype == torch.float32
    assert first.tolist() == [[1, 1], [2, 1]]
    assert torch.equal(embed_texts(["a", "bb"], "org/model", tmp_path), first)
    assert encoder.loaded == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_a_cache_hit_imports_no_encoder(tmp_path, encoder, monkeypatch):
    embed_texts(["a"], "org/model", tmp_path)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # importing it would raise
    assert embed_texts(["a"], "org/model", tmp_path).shape == (1, 2)


def test_another_text_model_template_or_weights_file_is_another_cache(tmp_path, encoder, monkeypatch):
    local = tmp_path / "model"
    local.mkdir()
    (local / "model.safetensors").write_bytes(b"one")
    cache = tmp_path / "cache"
    embed_texts(["a"], "org/model", cache)
    embed_texts(["b"], "org/model", cache)
    embed_texts(["a"], "org/other", cache)
    embed_texts(["a"], str(local), cache)
    (local / "model.safetensors").write_bytes(b"two")
    embed_texts(["a"], str(local), cache)
    monkeypatch.setattr(data.item_embeddings, "TEMPLATE_VERSION", 99)
    embed_texts(["a"], "org/model", cache)
    assert encoder.loaded == 6
    assert len(list(cache.iterdir())) == 6


@pytest.mark.parametrize("damage", [b"", b"junk" * 100])
def test_a_corrupt_embedding_cache_is_encoded_again(tmp_path, encoder, damage):
    good = embed_texts(["a", "bb"], "org/model", tmp_path)
    (cache,) = tmp_path.iterdir()
    cache.write_bytes(damage)
    assert torch.equal(embed_texts(["a", "bb"], "org/model", tmp_path), good)
    assert encoder.loaded == 2


def test_an_interrupted_encoding_leaves_no_cache(tmp_path, encoder, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.io.files.os.fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        embed_texts(["a"], "org/model", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_interrupted_encoding_goes_on_with_the_parts_it_kept(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(data.item_embeddings, "AT_ONCE", 2)
    texts, asked = ["a", "bbbb", "cc", "ddddd", "eee"], []
    encode = encoder.encode

    def third_time_interrupted(self, some, **options):
        asked.append(some)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return encode(self, some, **options)

    monkeypatch.setattr(encoder, "encode", third_time_interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_texts(texts, "org/model", tmp_path)
    assert embed_texts(texts, "org/model", tmp_path).tolist() == [[len(text), 1] for text in texts]
    assert asked == [["ddddd", "bbbb"], ["eee", "cc"], ["a"], ["a"]]  # the longest first
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("model", ["org/absent", "./absent", "some/folder/absent", "/nowhere/absent"])
def test_a_missing_encoder_is_told_with_the_ways_out(tmp_path, encoder, model):
    with pytest.raises(UserError, match=r"absent.*connect once.*train.text_model.*train.item_embeddings") as caught:
        embed_texts(["a"], model, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_embeddings_are_read_as_float32(tmp_path, dtype):
    np.save(tmp_path / "e.npy", np.asfortranarray(np.arange(6).reshape(3, 2).astype(dtype)))
    embeddings = load_embeddings(tmp_path / "e.npy", 3)
    assert embeddings.dtype == torch.float32
    assert embeddings.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_large_embeddings_stay_in_their_file_with_the_same_values_and_the_same_check(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=(5, 2)).astype(dtype)
    np.save(tmp_path / "e.npy", values)
    mapped = load_embeddings(tmp_path / "e.npy", 5, read_up_to=39)
    assert mapped.dtype == torch.from_numpy(values).dtype
    assert torch.equal(mapped.float(), load_embeddings(tmp_path / "e.npy", 5, read_up_to=40))
    other = np.lib.format.open_memmap(tmp_path / "e.npy", mode="r+")
    other[1, 1] = 9
    other.flush()
    assert mapped[1, 1] == 9  # it was not read
    mapped[0, 0] = 7  # what a caller does to it stays with the caller
    assert np.load(tmp_path / "e.npy")[0, 0] == values[0, 0]
    other[2, 0] = np.nan
    other.flush()
    with pytest.raises(UserError, match=r"NaN or infinite values \(1 rows, the first is row 2\)"):
        load_embeddings(tmp_path / "e.npy", 5, read_up_to=0)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((3, 2), np.int64), "holds int64; expected .*float16"),
        (np.zeros((2, 2), np.float32), r"has shape \[2, 2\]; expected .*\[3, width\]"),
        (np.zeros(3, np.float32), r"has shape \[3\]"),
        (np.zeros((3, 0), np.float32), r"has shape \[3, 0\]"),
        (np.array([[0], [np.nan], [np.inf]], np.float32), r"NaN or infinite values \(2 rows, the first is row 1\)"),
        (np.array([[0], [0], [1e300]]), r"NaN or infinite values \(1 rows, the first is row 2\)"),
        (np.array([{}, {}, {}]), "cannot be read as a plain array"),
    ],
)
def test_unfit_embeddings_are_refused_with_what_was_found(tmp_path, array, sentence):
    np.save(tmp_path / "e.npy", array)
    with pytest.raises(UserError, match=sentence):
        load_embeddings(tmp_path / "e.npy", 3)


def test_files_that_are_no_arrays_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_embeddings(tmp_path / "none.npy", 3)
    np.savez(tmp_path / "e.npz", np.zeros((3, 2)))
    with pytest.raises(UserError, match="archive of arrays"):
        load_embeddings(tmp_path / "e.npz", 3)
    np.save(tmp_path / "cut.npy", np.zeros((3, 2)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    for name, content in (("empty", b""), ("text", b"1 2 3"), ("cut", None)):
        if content is not None:
            (tmp_path / f"{name}.npy").write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.npy cannot be read as a plain array"):
            load_embeddings(tmp_path / f"{name}.npy", 3)
    with pytest.raises(UserError, match="cannot be read"):
        load_embeddings(tmp_path, 3)


def test_items_come_with_embeddings_from_a_file_or_an_encoder(tmp_path, encoder):
    truth = write_p5(tmp_path, num_users=20, num_items=40)
    vectors = write_embeddings(tmp_path / "e.npy", num_items=40)
    config = DataConfig(RecDataset.AMAZON, str(tmp_path), "beauty")
    corpus = load_corpus(config)
    items = load_items(config, corpus, str(tmp_path / "e.npy"), "org/absent")
    assert torch.equal(items.embeddings, torch.from_numpy(vectors.astype(np.float32)))
    assert items.keys == corpus.item_keys
    assert len(items.embeddings_hash) == 16
    encoded = load_items(config, corpus, None, "org/model")
    assert encoded.embeddings.shape == (40, 2)
    assert encoded.embeddings_hash != items.embeddings_hash
    near = items.embeddings @ items.embeddings.T
    alike = torch.from_numpy(truth.cluster[:, None] == truth.cluster)
    assert near[alike].mean() > near[~alike].mean() + 0.3


def test_importing_the_data_room_loads_no_heavy_library():
    heavy = ("polars", "torch_geometric", "sentence_transformers", "pandas")
    code = f"import sys, data.processed; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
