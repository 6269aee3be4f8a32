"""Bad input for every loader, and the sentence that each gets; what can be mended is mended and counted.

``python -m tests.data.test_data_mistakes`` prints both as tables.
"""

import contextlib
import errno
import gzip
import io
import logging
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest

import train_rqvae
from data.processed import DataConfig, RecDataset, load_corpus
from modules.runtime.config.main import run_script
from tests.synthetic import write_amazon_raw, write_atomic, write_embeddings, write_movielens, write_p5, write_tables

USERS, ITEMS = 25, 20
Change = Callable[[Path], None]


class Source(NamedTuple):
    """A good folder of a source."""

    dataset: RecDataset
    split: str
    write: Callable[[Path], object]


SOURCES = {
    "ML_1M": Source(RecDataset.ML_1M, "ml-1m", lambda folder: write_movielens(folder, "ml-1m", USERS, ITEMS)),
    "ML_32M": Source(RecDataset.ML_32M, "ml-latest-small", lambda folder: write_movielens(folder, "ml-latest-small", USERS, ITEMS)),
    "AMAZON": Source(RecDataset.AMAZON, "beauty", lambda folder: write_p5(folder, USERS, ITEMS)),
    "AMAZON_2014": Source(RecDataset.AMAZON_2014, "Beauty", lambda folder: write_amazon_raw(folder, 2014, "Beauty", USERS, ITEMS)),
    "AMAZON_2023": Source(RecDataset.AMAZON_2023, "All_Beauty", lambda folder: write_amazon_raw(folder, 2023, "All_Beauty", USERS, ITEMS)),
    "CUSTOM csv": Source(RecDataset.CUSTOM, "mine", lambda folder: write_tables(folder, "mine", USERS, ITEMS)),
    "CUSTOM atomic": Source(RecDataset.CUSTOM, "mine", lambda folder: write_atomic(folder, "mine", USERS, ITEMS)),
}


class Mistake(NamedTuple):
    """What is wrong with which source, and the words that its answer must hold."""

    source: str
    what: str
    change: Change
    words: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    disk: int | None = None  # what the system says when a file is put on it


def edit(name: str, how: Callable[[bytes], bytes]) -> Change:
    """Changes the content of a raw file, within its gzip if it is one."""

    def change(folder: Path) -> None:
        path = folder / "raw" / name
        content = path.read_bytes()
        path.write_bytes(gzip.compress(how(gzip.decompress(content))) if name.endswith(".gz") else how(content))

    return change


def add(name: str, line: bytes | str) -> Change:
    return edit(name, lambda content: content + (line.encode() if isinstance(line, str) else line) + b"\n")


def swap(name: str, old: str, new: str, count: int = -1) -> Change:
    return edit(name, lambda content: content.replace(old.encode(), new.encode(), count))


def put(name: str, content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / "raw" / name).write_bytes(content)

    return change


def replaced(name: str, other: str, content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / "raw" / name).unlink()
        (folder / "raw" / other).write_bytes(content)

    return change


def cut(name: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / "raw" / name
        path.write_bytes(path.read_bytes()[:-20])

    return change


def directory(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "raw" / name).unlink()
        (folder / "raw" / name).mkdir()

    return change


def archive(split: str, *members: str | zipfile.ZipInfo) -> Change:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / "raw" / split)
        with zipfile.ZipFile(folder / "raw" / f"{split}.zip", "w") as file:
            for member in members:
                file.writestr(member, "x")

    return change


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("ml-1m/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def vectors(array: np.ndarray) -> Change:
    return lambda folder: np.save(folder / "items.npy", array, allow_pickle=True)


def blocked(folder: Path) -> None:
    (folder / "processed").write_text("a file where the folder should be")


def nothing(folder: Path) -> None:
    pass


def broken(value: float) -> np.ndarray:
    array = np.ones((ITEMS, 32), dtype=np.float32)
    array[3, 1] = value
    return array


def times(content: bytes, how: Callable[[int], object]) -> bytes:
    """Interactions with other times; ``how`` is given the number of the row."""
    first, *rows = content.decode().splitlines()
    changed = [f"{row.rpartition(',')[0]},{how(number)}" for number, row in enumerate(rows)]
    return "\n".join([first, *changed, ""]).encode()


def two_units(content: bytes) -> bytes:
    return times(content, lambda row: (1_600_000_000 + row) * (1000 if row % 2 else 1))


def slashes(content: bytes) -> bytes:
    return times(content, lambda row: "1/2/2020")


def milliseconds(content: bytes) -> bytes:
    return times(content, lambda row: (1_600_000_000 + row) * 1000)


def one_moment(content: bytes) -> bytes:
    return times(content, lambda row: 1_600_000_000)


def iso(content: bytes) -> bytes:
    return times(content, lambda row: f"2020-09-23 20:{row // 60 % 60:02}:{row % 60:02}")


def headless(content: bytes) -> bytes:
    return content.partition(b"\n")[2]


def untimed(content: bytes) -> bytes:
    return b"".join(row.rpartition(b",")[0] + b"\n" for row in content.splitlines())


def fractions(content: bytes) -> bytes:
    first, *rows = content.decode().splitlines()
    return "\n".join([first, *(row.rpartition(",")[0] + ".0,1" for row in rows), ""]).encode()


EVIL = "__import__('os').system('touch ran')"
RATINGS, MOVIES = "ml-1m/ratings.dat", "ml-1m/movies.dat"
RATINGS_CSV, MOVIES_CSV = "ml-latest-small/ratings.csv", "ml-latest-small/movies.csv"
SEQUENCES, MAPS, P5_META = "beauty/sequential_data.txt", "beauty/datamaps.json", "beauty/meta.json.gz"
REVIEWS, META = "reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"
REVIEWS_2023, META_2023 = "All_Beauty.jsonl.gz", "meta_All_Beauty.jsonl.gz"
ROWS, THINGS = "mine.interactions.csv", "mine.items.csv"
INTER, ITEM = "mine.inter", "mine.item"
RATED = ("min_rating=1",)
GOOD_REVIEW = '{"reviewerID": "ann", "asin": "B000000001", "overall": 4.0, "unixReviewTime": 1365984000}'

MISTAKES = [
    Mistake("ML_1M", "empty file", put(RATINGS, b""), ("ratings.dat is empty",)),
    Mistake("ML_1M", "directory instead of a file", directory(MOVIES), ("movies.dat is a directory",)),
    Mistake("ML_1M", "wrong delimiter", swap(RATINGS, "::", ","), ("ratings.dat:1 does not have 4 '::'-separated fields",)),
    Mistake("ML_1M", "missing column", add(RATINGS, "1::1::5"), ("ratings.dat:", "does not have 4")),
    Mistake("ML_1M", "extra column", add(MOVIES, "99::Film::Drama::x"), ("movies.dat:21 does not have 3",)),
    Mistake("ML_1M", "non-numeric time", add(RATINGS, "1::1::5::soon"), ("ratings.dat:", "a time that is no number")),
    Mistake("ML_1M", "NaN rating", add(RATINGS, "1::1::nan::5"), ("ratings.dat:", "a rating that is no number")),
    Mistake("ML_1M", "negative id", add(RATINGS, "-1::1::5::5"), ("ratings.dat:", "negative user id")),
    Mistake("ML_1M", "duplicate id in the catalogue", add(MOVIES, "1::Again::Drama"), ("movies.dat:21 repeats a movie id",)),
    Mistake("ML_1M", "item that the catalogue lacks", add(RATINGS, "1::99::5::5"), ("ratings.dat:", "a movie that movies.dat lacks")),
    Mistake("ML_1M", "zip that climbs out", archive("ml-1m", "../../evil.txt"), ("is refused: its member '../../evil.txt'",)),
    Mistake("ML_1M", "zip with a link", archive("ml-1m", link()), ("is refused", "symbolic link")),
    Mistake("ML_1M", "zip of something else", archive("ml-1m", "a/b.txt"), ("has no member ml-1m/movies.dat",)),
    Mistake("ML_1M", "full disk", nothing, ("cannot write", "processed/ml-1m", "No space left", "free space"), disk=errno.ENOSPC),
    Mistake("ML_1M", "read-only folder", nothing, ("cannot write", "processed/ml-1m", "Permission denied"), disk=errno.EACCES),
    Mistake("ML_1M", "file where a folder should be", blocked, ("cannot write", "processed")),
    Mistake("ML_1M", "minimum rating above all", nothing, ("no interaction that train.min_rating = 9",), ("min_rating=9",)),
    Mistake("ML_32M", "empty file", put(RATINGS_CSV, b""), ("ratings.csv is empty",)),
    Mistake("ML_32M", "header alone", put(RATINGS_CSV, b"userId,movieId,rating,timestamp\n"), ("a header and no rows",)),
    Mistake("ML_32M", "directory instead of a file", directory(RATINGS_CSV), ("ratings.csv is a directory",)),
    Mistake("ML_32M", "wrong delimiter", swap(RATINGS_CSV, ",", ";"), ("ratings.csv:1 lacks the column userId", "no separator")),
    Mistake("ML_32M", "missing column", swap(RATINGS_CSV, "rating", "stars", 1), ("ratings.csv:1 lacks the column rating",)),
    Mistake("ML_32M", "column named twice", swap(RATINGS_CSV, "timestamp", "userId", 1), ("ratings.csv:1 has the column 'userId' twice",)),
    Mistake("ML_32M", "too many fields", add(RATINGS_CSV, "1,1,5,5,5"), ("ratings.csv:", "has 5 fields, not 4")),
    Mistake("ML_32M", "too few fields", add(RATINGS_CSV, "1,1,5"), ("ratings.csv:", "has no timestamp")),
    Mistake("ML_32M", "non-numeric time", add(RATINGS_CSV, "1,1,5,soon"), ("ratings.csv:", "'soon' for timestamp", "a whole number")),
    Mistake("ML_32M", "NaN rating", add(RATINGS_CSV, "1,1,nan,5"), ("ratings.csv:", "rating that is no number")),
    Mistake("ML_32M", "negative id", add(MOVIES_CSV, "-4,Film,Drama"), ("movies.csv:22 has a negative movie id",)),
    Mistake("ML_32M", "duplicate id in the catalogue", add(MOVIES_CSV, "1,Again,Drama"), ("movies.csv:22 repeats a movie id",)),
    Mistake("ML_32M", "item that the catalogue lacks", add(RATINGS_CSV, "1,99,5,5"), ("ratings.csv:", "a movie that movies.csv lacks")),
    Mistake("ML_32M", "Latin-1", add(MOVIES_CSV, b"99,Caf\xe9,Drama"), ("movies.csv:22 is not UTF-8",)),
    Mistake("ML_32M", "unclosed quote", add(MOVIES_CSV, '99,"Film,Drama'), ("movies.csv",)),
    Mistake("AMAZON", "empty file", put(SEQUENCES, b""), ("sequential_data.txt is empty",)),
    Mistake("AMAZON", "directory instead of a file", directory(SEQUENCES), ("sequential_data.txt is a directory",)),
    Mistake("AMAZON", "truncated gzip", cut(P5_META), ("meta.json.gz is not a complete gzip file",)),
    Mistake("AMAZON", "wrong delimiter", swap(SEQUENCES, " ", ","), ("sequential_data.txt:1 has",)),
    Mistake("AMAZON", "negative id", add(SEQUENCES, "1 -3"), ("sequential_data.txt:26 has '-3'",)),
    Mistake("AMAZON", "user twice", add(SEQUENCES, "1 3 4"), ("sequential_data.txt:26 has user 1", "line 1")),
    Mistake("AMAZON", "item that the catalogue lacks", swap(SEQUENCES, "1 ", "1 99 ", 1), ("sequential_data.txt:1 has item 99",)),
    Mistake("AMAZON", "item id twice", swap(MAPS, "B000000002", "B000000001"), ("datamaps.json: id2item has an id twice",)),
    Mistake("AMAZON", "damaged JSON", edit(MAPS, lambda content: content[:-9]), ("datamaps.json:1 is not JSON",)),
    Mistake("AMAZON", "code in the metadata", add(P5_META, f"{{'asin': 'B000000001', 'title': {EVIL}}}"), ("meta.json.gz:21", "never run")),
    Mistake("AMAZON", "Latin-1", add(P5_META, b"{'asin': 'B000000001', 'title': 'Caf\xe9'}"), ("meta.json.gz:21 is not UTF-8",)),
    Mistake("AMAZON", "full disk", nothing, ("cannot write", "processed/amazon_beauty", "No space left"), disk=errno.ENOSPC),
    Mistake("AMAZON_2014", "empty file", put(REVIEWS, b""), ("reviews_Beauty_5.json.gz is empty",)),
    Mistake("AMAZON_2014", "directory instead of a file", directory(REVIEWS), ("reviews_Beauty_5.json.gz is a directory",)),
    Mistake("AMAZON_2014", "truncated gzip", cut(REVIEWS), ("reviews_Beauty_5.json.gz is not a complete gzip file",)),
    Mistake("AMAZON_2014", "no gzip", put(REVIEWS, b"user,item"), ("reviews_Beauty_5.json.gz is not a complete gzip file",)),
    Mistake("AMAZON_2014", "wrong delimiter", add(REVIEWS, "ann,B000000001,4.0,5"), (REVIEWS, "is not JSON")),
    Mistake("AMAZON_2014", "missing key", add(REVIEWS, GOOD_REVIEW.replace("asin", "sku")), (REVIEWS, "lacks the key asin")),
    Mistake("AMAZON_2014", "non-numeric time", add(REVIEWS, GOOD_REVIEW.replace("1365984000", '"soon"')), ("'soon' for unixReviewTime",)),
    Mistake("AMAZON_2014", "NaN rating", add(REVIEWS, GOOD_REVIEW.replace("4.0", "NaN")), (REVIEWS, "is not JSON"), RATED),
    Mistake("AMAZON_2014", "missing rating", add(REVIEWS, GOOD_REVIEW.replace("4.0", "null")), (REVIEWS, "None for overall"), RATED),
    Mistake("AMAZON_2014", "Latin-1", add(REVIEWS, GOOD_REVIEW.encode().replace(b"ann", b"Ren\xe9")), (REVIEWS, "is not UTF-8")),
    Mistake("AMAZON_2014", "code in the metadata", add(META, f"{{'asin': 'B000000001', 'title': {EVIL}}}"), (f"{META}:21", "never run")),
    Mistake("AMAZON_2014", "metadata is a directory", directory(META), (f"{META} is a directory",)),
    Mistake("AMAZON_2014", "one user with one item", put(REVIEWS, gzip.compress(GOOD_REVIEW.encode())), ("shape [1, width]",)),
    Mistake("AMAZON_2014", "core that nobody is in", nothing, ("no interaction that", "train.k_core = 999"), ("k_core=999",)),
    Mistake("AMAZON_2023", "empty file", put(REVIEWS_2023, b""), ("All_Beauty.jsonl.gz is empty",)),
    Mistake("AMAZON_2023", "truncated gzip", cut(META_2023), ("meta_All_Beauty.jsonl.gz is not a complete gzip file",)),
    Mistake("AMAZON_2023", "no object", add(REVIEWS_2023, "[1, 2]"), ("All_Beauty.jsonl.gz:", "is not a JSON object")),
    Mistake("AMAZON_2023", "missing key", swap(REVIEWS_2023, "user_id", "user"), ("All_Beauty.jsonl.gz:1 lacks the key user_id",)),
    Mistake("AMAZON_2023", "non-numeric time", swap(REVIEWS_2023, "136", '"x"', 1), ("All_Beauty.jsonl.gz:1 is not JSON",)),
    Mistake("AMAZON_2023", "code in the metadata", add(META_2023, f'{{"parent_asin": {EVIL}}}'), (f"{META_2023}:21 is not JSON",)),
    Mistake("CUSTOM csv", "empty file", put(ROWS, b""), ("mine.interactions.csv is empty",)),
    Mistake("CUSTOM csv", "directory instead of a file", directory(ROWS), ("mine.interactions.csv is a directory",)),
    Mistake("CUSTOM csv", "no delimiter", swap(ROWS, ",", "&"), ("mine.interactions.csv:1 has no column for the user",)),
    Mistake("CUSTOM csv", "missing column", swap(ROWS, "timestamp", "when", 1), ("no column for the timestamp", "timestamp=when")),
    Mistake("CUSTOM csv", "named column that is not there", nothing, ("has no column named uid",), ('columns=["user=uid"]',)),
    Mistake("CUSTOM csv", "unknown role", nothing, ("'person=uid'", "role=name"), ('columns=["person=uid"]',)),
    Mistake("CUSTOM csv", "no header", edit(ROWS, headless), ("mine.interactions.csv:1 has no header", "u1, i", '"user=1", "item=2"')),
    Mistake("CUSTOM csv", "seconds and milliseconds", edit(ROWS, two_units), ("in milliseconds", "in seconds", "timestamp has two units")),
    Mistake("CUSTOM csv", "dates of another form", edit(ROWS, slashes), ("'1/2/2020'", "no date such as 2020-09-23 20:53:45")),
    Mistake(
        "CUSTOM csv", "ids with a fraction", edit(ROWS, fractions), (ROWS, ".0', where mine.items.csv has ids like 'i1'; they differ in a")
    ),
    Mistake("CUSTOM csv", "unknown encoding", nothing, ("train.encoding is 'utf-9'",), ("encoding=utf-9",)),
    Mistake(
        "CUSTOM csv", "sequences with a user twice", replaced(ROWS, "mine.txt", b"u1 i1 i2\nu1 i3 i4 i5\n"), ("mine.txt:2 has a user who",)
    ),
    Mistake("CUSTOM csv", "JSON of another shape", replaced(ROWS, "interactions.json", b'{"u1": "i1"}'), ("is JSON of another shape",)),
    Mistake("CUSTOM csv", "truncated gzip", replaced(ROWS, f"{ROWS}.gz", gzip.compress(b"user,item")[:-4]), ("not a complete gzip file",)),
    Mistake("CUSTOM csv", "too many fields", add(ROWS, "u1,i1,5,5"), ("mine.interactions.csv:", "has 4 fields, not 3")),
    Mistake("CUSTOM csv", "non-numeric time", add(ROWS, "u1,i1,soon"), ("mine.interactions.csv:", "a timestamp that is no number")),
    Mistake("CUSTOM csv", "infinite time", add(ROWS, "u1,i1,inf"), ("mine.interactions.csv:", "a timestamp that is no number")),
    Mistake("CUSTOM csv", "empty id", add(ROWS, " ,i1,5"), ("mine.interactions.csv:", "has an empty user")),
    Mistake("CUSTOM csv", "duplicate id in the catalogue", add(THINGS, "i1,Again,1"), ("mine.items.csv:22 repeats an item",)),
    Mistake(
        "CUSTOM csv",
        "item that the catalogue lacks",
        add(ROWS, "u1,i99,5"),
        (ROWS, "an item that mine.items.csv lacks"),
    ),
    Mistake("CUSTOM csv", "Latin-1", add(THINGS, b"i99,Caf\xe9,1"), ("mine.items.csv:22 is not UTF-8",)),
    Mistake("CUSTOM csv", "two files of a kind", put("interactions.csv", b"user,item,timestamp\n"), ("both there",)),
    Mistake("CUSTOM csv", "damaged parquet", replaced(THINGS, "mine.items.parquet", b"PAR1"), ("mine.items.parquet is not a parquet",)),
    Mistake("CUSTOM csv", "damaged jsonl", replaced(THINGS, "items.jsonl", b'{"item": "i1"}\n{"item'), ("items.jsonl:2 is not JSON",)),
    Mistake(
        "CUSTOM csv", "missing file", lambda folder: (folder / "raw" / ROWS).unlink(), ("no interactions.csv", THINGS, "put them there")
    ),
    Mistake("CUSTOM atomic", "no delimiter", swap(INTER, "\t", "&"), ("mine.inter:1 has no column for the user",)),
    Mistake("CUSTOM atomic", "missing field", add(INTER, "u1\t1\t4"), ("mine.inter:", "does not have 4 tab-separated fields")),
    Mistake("CUSTOM atomic", "NaN rating", add(INTER, "u1\t1\tnan\t5"), ("mine.inter:", "a rating that is no number")),
    Mistake("CUSTOM atomic", "Latin-1", add(ITEM, b"99\tCaf\xe9\t1999\tDrama"), ("mine.item:22 is not UTF-8",)),
    Mistake("CUSTOM atomic", "empty item file", put(ITEM, b""), ("mine.item is empty",)),
    Mistake("CUSTOM csv", "wrong number of embeddings", vectors(np.ones((7, 32), np.float32)), ("items.npy has shape [7, 32]",)),
    Mistake("CUSTOM csv", "embeddings of integers", vectors(np.ones((ITEMS, 32), np.int64)), ("items.npy holds int64",)),
    Mistake("CUSTOM csv", "embeddings with NaN", vectors(broken(np.nan)), ("NaN or infinite values", "row 3")),
    Mistake("CUSTOM csv", "embeddings with infinity", vectors(broken(np.inf)), ("NaN or infinite values", "row 3")),
    Mistake("CUSTOM csv", "pickled embeddings", vectors(np.array([{}] * ITEMS)), ("cannot be read as a plain array",)),
    Mistake("CUSTOM csv", "embeddings of another width", vectors(np.ones((ITEMS, 16), np.float32)), ("train.vae_input_dim = 16",)),
]


def refuse_below(folder: Path, number: int) -> Callable[[Path, Path], None]:
    """``os.replace`` on a disk that has no room for what lies in ``folder``."""
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if folder in Path(target).parents:
            raise OSError(number, os.strerror(number))
        replace(source, target)

    return refuse


def answer(mistake: Mistake, folder: Path) -> tuple[int, str]:
    """The exit code of stage 1 and what stands on stderr."""
    source, shown = SOURCES[mistake.source], io.StringIO()
    source.write(folder)
    write_embeddings(folder / "items.npy", ITEMS)
    mistake.change(folder)
    given = [f"dataset={source.dataset.name}", f"dataset_split={source.split}", f"dataset_folder={folder}", f"save_dir_root={folder}/out"]
    given += [f"item_embeddings={folder}/items.npy", "vae_input_dim=32", "iterations=2", "autoencoder_steps=1", "device=cpu", "amp=False"]
    disk: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if mistake.disk:
        disk = mock.patch("data.io.files.os.replace", refuse_below(folder / "processed", mistake.disk))
    with contextlib.redirect_stderr(shown), disk:
        code = run_script(train_rqvae.train, "", ["configs/rqvae_synthetic.gin", *given, *mistake.arguments])
    return code, "\n".join(line for line in shown.getvalue().splitlines() if line.startswith(("error:", "  - ")))


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{mistake.source}: {mistake.what}" for mistake in MISTAKES])
def test_bad_input_is_one_sentence_and_exit_code_2_and_leaves_nothing(mistake: Mistake, tmp_path: Path) -> None:
    code, shown = answer(mistake, tmp_path)
    assert [word for word in mistake.words if word not in shown] == [], shown
    assert code == 2
    assert shown.count("\n") == 0, "one mistake, one line"
    assert "Traceback" not in shown
    left = [path.name for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".part") or path.name in ("evil.txt", "ran")]
    assert left == []
    if "embeddings" not in mistake.what and mistake.what != "one user with one item":
        assert not (tmp_path / "processed").is_dir() or list((tmp_path / "processed").iterdir()) == []


def gzipped(path: Path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def addressed(content: bytes) -> bytes:
    first, *rows = content.splitlines()
    return b"\n".join([first + b",url", *(row + b",http://a.example/1.jpg" for row in rows), b""])


def split_in_parts(folder: Path) -> None:
    first, *rows = (folder / "raw" / ROWS).read_text().splitlines()
    (folder / "raw" / ROWS).unlink()
    for name, part in (("train", rows[:-9]), ("test", rows[-9:])):
        (folder / "raw" / f"{name}.csv").write_text("\n".join([first, *part, ""]))


class Mended(NamedTuple):
    """What is repaired or let be, and the words of the note; none where nothing needs to be said."""

    source: str
    what: str
    change: Change
    words: tuple[str, ...] = ()


MENDED = [
    Mended("ML_1M", "duplicate rows", edit(RATINGS, lambda content: content + content), ("rows repeat user, item and time",)),
    Mended("ML_1M", "empty title", add(MOVIES, "99::::Drama"), ("movies.dat: 1 of 21 items have no title",)),
    Mended("ML_1M", "100 kB title", add(MOVIES, f"99::{'x' * 100_000}::Drama"), ("1 texts longer than 1,000 characters",)),
    Mended("ML_1M", "control characters in a title", add(MOVIES, "99::A\x1b[2J\x00B::Drama")),
    Mended("ML_1M", "Latin-1", add(MOVIES, b"99::Caf\xe9::Drama")),
    Mended("ML_1M", "CRLF", edit(RATINGS, lambda content: content.replace(b"\n", b"\r\n"))),
    Mended("ML_1M", "item without interactions", add(MOVIES, "99::Unseen (1999)::Drama")),
    Mended("ML_32M", "duplicate rows", add(RATINGS_CSV, "7,1,5,5\n7,1,5,5"), ("1 rows repeat",)),
    Mended("ML_32M", "extra column", edit(RATINGS_CSV, lambda content: b"\n".join(row + b",x" for row in content.splitlines()) + b"\n")),
    Mended("ML_32M", "byte order mark and CRLF", edit(MOVIES_CSV, lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))),
    Mended("ML_32M", "empty title", add(MOVIES_CSV, "99,,Drama"), ("1 of 21 items have no title",)),
    Mended("AMAZON", "CRLF", edit(SEQUENCES, lambda content: content.replace(b"\n", b"\r\n"))),
    Mended("AMAZON", "missing titles", swap(P5_META, "'title'", "'name'"), ("20 of 20 items have no title",)),
    Mended("AMAZON_2014", "duplicate rows", edit(REVIEWS, lambda content: content + content), ("rows repeat",)),
    Mended("AMAZON_2014", "item without metadata", add(REVIEWS, GOOD_REVIEW.replace("B000000001", "B9")), ("have no text at all",)),
    Mended("AMAZON_2014", "no metadata", lambda folder: (folder / "raw" / META).unlink(), ("is missing: only the ids",)),
    Mended("AMAZON_2023", "extra keys", swap(REVIEWS_2023, '{"rating"', '{"votes": [1], "rating"')),
    Mended("CUSTOM csv", "no times", edit(ROWS, untimed), ("no column holds times; the order of the file",)),
    Mended("CUSTOM csv", "times in milliseconds", edit(ROWS, milliseconds), ("timestamp counts milliseconds and was read so",)),
    Mended("CUSTOM csv", "ISO times", edit(ROWS, iso)),
    Mended(
        "CUSTOM csv", "one time for all", edit(ROWS, one_moment), ("100 % of interactions share their time with another of the same user",)
    ),
    Mended("CUSTOM csv", "semicolons", swap(ROWS, ",", ";")),
    Mended("CUSTOM csv", "gzip", lambda folder: gzipped(folder / "raw" / ROWS)),
    Mended("CUSTOM csv", "no file of items", lambda folder: (folder / "raw" / THINGS).unlink(), ("there is no file of items",)),
    Mended(
        "CUSTOM csv", "item row twice", edit(THINGS, lambda content: content + content.splitlines()[1]), ("1 rows repeat an earlier one",)
    ),
    Mended("CUSTOM csv", "column of addresses", edit(THINGS, addressed), ("made of title, shelf; left out: url (addresses)",)),
    Mended("CUSTOM csv", "tags and a placeholder in a title", add(THINGS, "i99,<b>A</b> &amp; B,N/A")),
    Mended("CUSTOM csv", "parts", split_in_parts, ("train.csv, test.csv were read as one",)),
    Mended("CUSTOM csv", "duplicate rows", add(ROWS, "u7,i1,5\nu7,i1,5"), ("1 rows repeat",)),
    Mended("CUSTOM csv", "empty title", add(THINGS, "i99,,"), ("1 of 21 items have no title", "1 of 21 items have no text")),
    Mended("CUSTOM csv", "control characters in a title", add(THINGS, "i99,A\x1b[2JB,1")),
    Mended("CUSTOM atomic", "commas", swap(INTER, "\t", ",")),
    Mended("CUSTOM atomic", "CRLF", edit(INTER, lambda content: content.replace(b"\n", b"\r\n"))),
]


def notes_of(mended: Mended, folder: Path) -> str:
    source = SOURCES[mended.source]
    source.write(folder)
    mended.change(folder)
    lines: list[str] = []
    handler, log = logging.Handler(), logging.getLogger("tiger.data")
    handler.emit = lambda record: lines.append(record.getMessage())
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        corpus = load_corpus(DataConfig(source.dataset, str(folder), source.split))
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    assert not any(ord(letter) < 32 for text in (*corpus.titles, *corpus.texts) for letter in text)
    return "; ".join(lines)


@pytest.mark.parametrize("mended", MENDED, ids=[f"{mended.source}: {mended.what}" for mended in MENDED])
def test_what_can_be_mended_is_counted_and_goes_on(mended: Mended, tmp_path: Path) -> None:
    notes = notes_of(mended, tmp_path)
    assert [word for word in mended.words if word not in notes] == [], notes
    assert mended.words or not notes


def table() -> str:
    """Bad input -> sentence, as Markdown."""
    rows = ["| source | bad input | answer |", "|---|---|---|"]
    for mistake in MISTAKES:
        with tempfile.TemporaryDirectory() as folder:
            shown = answer(mistake, Path(folder))[1].removeprefix("error: ").replace(f"{folder}/", "").replace("|", "\\|")
            rows.append(f"| {mistake.source} | {mistake.what} | {shown} |")
    rows += ["", "| source | mended | note |", "|---|---|---|"]
    for mended in MENDED:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(f"| {mended.source} | {mended.what} | {notes_of(mended, Path(folder)).replace(f'{folder}/', '') or '-'} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
