"""Mutated files at every parser: a corpus comes out, or a sentence; nothing else, and no code in them runs."""

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.corpus import LoadedCorpus
from data.filters import Filters
from data.io.zip_archive import extract_members
from data.item_embeddings import load_embeddings
from data.schemas import UserError
from data.sources.amazon_raw import read_amazon_raw
from data.sources.custom import Files, Reading, load_custom, read_custom
from data.sources.ml_1m import read_ml1m
from data.sources.ml_32m import read_ml32m
from data.sources.p5 import read_p5

PLAIN = Filters()
RATED = Filters(min_rating=1.0, k_core=2, max_history=3, cold_items=False)
MOVIES = 'movieId,title,genres\n1,"A, B (1999)",Drama|War\n2,C,Comedy\n'
PARSERS: dict[str, tuple[dict[str, str], Callable[[Path, Filters], LoadedCorpus]]] = {
    "ml-1m": (
        {"movies.dat": "1::A (1999)::Drama|War\n2::B::Comedy\n", "ratings.dat": "1::1::5::10\n1::2::3::11\n2::1::4::9\n2::2::4::9\n"},
        lambda folder, filters: read_ml1m(folder / "movies.dat", folder / "ratings.dat", filters),
    ),
    "ml-32m": (
        {"movies.csv": MOVIES, "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.5,10\n1,2,3.0,11\n2,1,0.5,9\n2,2,5.0,9\n"},
        lambda folder, filters: read_ml32m(folder / "movies.csv", folder / "ratings.csv", filters),
    ),
    "p5": (
        {
            "sequential_data.txt": "1 1 2 1\n2 2 1\n",
            "datamaps.json": '{"id2item": {"1": "B1", "2": "B2"}, "id2user": {"1": "ann", "2": "bob"}}',
            "meta.json.gz": "{'asin': 'B1', 'title': 'Soap', 'categories': [['Bath']]}\n{'asin': 'B2', 'brand': \"Elm's\", 'price': 3.5}\n",
        },
        lambda folder, filters: read_p5(folder),
    ),
    "amazon 2014": (
        {
            "reviews.json.gz": '{"reviewerID": "ann", "asin": "B1", "overall": 5.0, "unixReviewTime": 10}\n'
            '{"reviewerID": "ann", "asin": "B2", "overall": 5.0, "unixReviewTime": 11}\n',
            "meta.json.gz": "{'asin': 'B1', 'title': 'Soap'}\n",
        },
        lambda folder, filters: read_amazon_raw(folder / "reviews.json.gz", folder / "meta.json.gz", 2014, filters),
    ),
    "amazon 2014 ratings": (
        {"ratings.csv": "ann,B1,5.0,10\nann,B2,4.0,11\nbob,B1,3.0,12\nbob,B2,3.0,12\n", "meta.json.gz": "{'asin': 'B1'}\n"},
        lambda folder, filters: read_amazon_raw(folder / "ratings.csv", folder / "meta.json.gz", 2014, filters),
    ),
    "amazon 2023": (
        {
            "all.jsonl.gz": '{"user_id": "ann", "parent_asin": "P1", "rating": 5.0, "timestamp": 1588687728923}\n'
            '{"user_id": "bob", "parent_asin": "P1", "rating": 1.0, "timestamp": 1588687728000}\n',
            "meta.jsonl.gz": '{"parent_asin": "P1", "title": "Cream", "store": "Elm", "categories": ["Face"], "price": "9.99"}\n',
        },
        lambda folder, filters: read_amazon_raw(folder / "all.jsonl.gz", folder / "meta.jsonl.gz", 2023, filters),
    ),
}
for ending, separator in (("csv", ","), ("tsv", "\t"), ("inter", "\t")):
    rows = ["user,item,timestamp,rating", "ann,1,10,5", "ann,2,11,4", "bob,2,9,3", "bob,1,9,2"]
    things = ["item,title,year", "1,Soap,1999", "2,Oil,"]
    other = "item" if ending == "inter" else ending
    PARSERS[f"custom {ending}"] = (
        {f"a.{ending}": "\n".join(rows).replace(",", separator) + "\n", f"b.{other}": "\n".join(things).replace(",", separator) + "\n"},
        lambda folder, filters, names=(f"a.{ending}", f"b.{other}"): read_custom(Files(*(folder / name for name in names)), filters),
    )
PARSERS["custom jsonl"] = (
    {
        "a.jsonl": '{"user": "ann", "item": 1, "timestamp": 10, "rating": 4}\n{"user": "ann", "item": 2, "timestamp": 11.5, "rating": 4}\n',
        "b.jsonl": '{"item": 1, "title": "Soap", "tags": ["a", "b"]}\n{"item": 2, "title": null}\n',
    },
    lambda folder, filters: read_custom(Files(folder / "a.jsonl", folder / "b.jsonl"), filters),
)

THINGS = "item,title,url\n1,Soap &amp; Co,http://a\n2,<b>Oil</b>,http://b\n"
OTHERS = {
    "semicolons": ("csv", '"user";"item";"timestamp"\n"ann";"1";"2020-01-01"\n"bo \\"x\\"";"2";"2020-01-02 10:00:00"\n'),
    "row names": ("tsv", "user\titem\ttimestamp\n1\tann\t1\t1600000000\n2\tbob\t2\t1600000001\n"),
    "sequences": ("txt", "ann 1 2\nbob 2 1 2\n"),
    "pairs": ("txt", "ann 1\nbob 2\nann 2\n"),
    "map": ("json", '{"ann": [1, 2], "bob": [2, 1, 2]}'),
    "objects": ("json", '[{"user": "ann", "item": 1, "timestamp": 5}, {"user": "bob", "item": "2", "timestamp": 1.5}]'),
    "lists": ("jsonl", '{"user": "ann", "items": ["1", "2"], "timestamps": [5, 6]}\n{"user": "bob", "items": ["2"], "timestamps": [7]}\n'),
    "gzip": ("csv.gz", "user,item\nann,1\nann,2\nbob,2\n"),
    "wide": ("csv", "\ufeffuser\titem\ttimestamp\nann\t1\t1600000000000\nbob\t2\t1600000000001\n"),
}
for name, (ending, rows_of) in OTHERS.items():
    PARSERS[f"custom {name}"] = (
        {f"a.{ending}": rows_of, "b.csv": THINGS},
        lambda folder, filters, first=f"a.{ending}": read_custom(Files(folder / first, folder / "b.csv"), filters, Reading({}, "keep")),
    )

PIECES = [
    b"", b"\n", b"\r\n", b",", b"::", b"\t", b" ", b'"', b"'", b"\\", b"\x00", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\x1b[2J", b"nan",
    b"inf", b"-1", b"1e400", b"99999999999999999999", b"0x1", b"1_0", b"{", b"[", b"}", b"null", b"{}", b"[[[[", b"\\ud800", b"x" * 3000,
    b"__import__('os').system('touch ran')", b"1", b"2", "é\u2028".encode(),
]  # fmt: skip


def mutated(content: bytes, changes: list[tuple[str, float, float, bytes]]) -> bytes:
    """Cuts, puts in, doubles and moves stretches."""
    for how, first, second, piece in changes:
        start, end = sorted((int(first * len(content)), int(second * len(content))))
        if how == "cut":
            content = content[:start]
        elif how == "put":
            content = content[:start] + piece + content[start:]
        elif how == "replace":
            content = content[:start] + piece + content[min(end, start + 4) :]
        elif how == "remove":
            content = content[:start] + content[end:]
        else:
            content = content[:end] + content[start:]
    return content


HOW = st.sampled_from(["cut", "put", "put", "replace", "replace", "remove", "double"])
CHANGES = st.lists(st.tuples(HOW, st.floats(0, 1), st.floats(0, 1), st.sampled_from(PIECES)), min_size=1, max_size=4)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def check_sentences(error: UserError, place: str) -> None:
    """One line each, which names the file."""
    assert error.args
    for sentence in error.args:
        assert sentence.isprintable()
        assert place in sentence


@pytest.mark.parametrize("name", PARSERS)
def test_a_whole_file_becomes_a_corpus(name: str, tmp_path: Path) -> None:
    files, parse = PARSERS[name]
    write(tmp_path, files)
    assert len(parse(tmp_path, PLAIN).corpus.histories.item_ids) >= 2


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(which=st.integers(0, 2), changes=CHANGES, inside=st.booleans(), filters=st.sampled_from([PLAIN, RATED]))
def test_a_mutated_file_becomes_a_corpus_or_a_sentence(name: str, which: int, changes: list, inside: bool, filters: Filters) -> None:
    files, parse = PARSERS[name]
    with TemporaryDirectory() as made:
        folder = Path(made)
        write(folder, files)
        path = folder / list(files)[which % len(files)]
        content = path.read_bytes()
        zipped = path.suffix == ".gz" and inside
        changed = mutated(gzip.decompress(content) if zipped else content, changes)
        path.write_bytes(gzip.compress(changed) if zipped else changed)
        try:
            corpus = parse(folder, filters).corpus
        except UserError as error:
            check_sentences(error, made)
            return
        finally:
            assert not (folder / "ran").exists()
            assert not Path("ran").exists()
        item_ids, offsets = corpus.histories
        assert len(corpus.item_keys) == len(corpus.titles) == len(corpus.texts) == len(set(corpus.item_keys))
        assert int(offsets[-1]) == len(item_ids)
        assert len(item_ids) == 0 or 0 <= int(item_ids.min()) <= int(item_ids.max()) < len(corpus.item_keys)
        assert all(text.isprintable() and text for text in (*corpus.titles, *corpus.texts))
        for text in (*corpus.item_keys, *corpus.user_keys):
            text.encode()


@settings(max_examples=60, deadline=None)
@given(changes=CHANGES)
def test_a_mutated_array_is_read_or_refused(changes: list) -> None:
    whole = io.BytesIO()
    np.save(whole, np.ones((4, 8), np.float16))
    with TemporaryDirectory() as made:
        path = Path(made) / "items.npy"
        path.write_bytes(mutated(whole.getvalue(), changes))
        try:
            assert load_embeddings(path, 4).shape[0] == 4
        except UserError as error:
            check_sentences(error, made)


@settings(max_examples=60, deadline=None)
@given(changes=CHANGES)
def test_a_mutated_parquet_file_is_read_or_refused(changes: list) -> None:
    frame, whole = pl.DataFrame({"user": ["a", "a", "b"], "item": ["x", "y", "x"], "timestamp": [1, 2, 3]}), io.BytesIO()
    frame.write_parquet(whole)
    with TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "interactions.parquet").write_bytes(mutated(whole.getvalue(), changes))
        (folder / "items.csv").write_text("item,title\nx,Soap\ny,Oil\n")
        try:
            assert len(load_custom(folder, "mine").corpus.item_keys) == 2
        except UserError as error:
            check_sentences(error, made)


@settings(max_examples=60, deadline=None)
@given(changes=CHANGES)
def test_a_mutated_archive_gives_its_members_or_is_refused(changes: list) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ml-1m/movies.dat", "1::Ox (1995)::Drama\n" * 20)
        file.writestr("ml-1m/ratings.dat", "1::1::5::978300760\n" * 20)
    with TemporaryDirectory() as made:
        archive = Path(made) / "ml-1m.zip"
        archive.write_bytes(mutated(whole.getvalue(), changes))
        wanted = [Path(made) / "ml-1m" / name for name in ("movies.dat", "ratings.dat")]
        try:
            extract_members(archive, wanted, "GroupLens")
            assert all(path.exists() for path in wanted)
        except UserError as error:
            check_sentences(error, made)
        found = {path.name for path in Path(made).rglob("*") if path.is_file()}
        assert found <= {"ml-1m.zip", "movies.dat", "ratings.dat"}
