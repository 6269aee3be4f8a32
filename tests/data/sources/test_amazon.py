import ast
import gzip
import json
import logging
import stat
import zipfile

import pytest
import torch

import data.io.files
import data.sources.p5
from data.io.zip_archive import extract_members
from data.processed import DataConfig, RecDataset, load_corpus
from data.schemas import UserError
from data.sources.p5 import AmazonReviews, read_p5
from tests.examples import Example
from tests.synthetic import to_lists, write_p5

SEQUENCES = "1 1 2 3 4 5\n2 2 6 1 3 4\n"
MAPS = {"id2item": {str(i): f"B{i}" for i in range(1, 7)}, "id2user": {"1": "ann", "2": "bob"}}
ENTRIES = [
    {"asin": "B1", "title": "Soap &amp; Co", "brand": "Elm", "categories": [["Beauty", "Bath"], ["Gifts"]], "price": 3.5},
    {"asin": "B2", "title": "Oil"},
    {"asin": "B3", "brand": "Unknown", "categories": [[]]},
    {"asin": "B4", "title": "", "brand": "Fir", "price": None},
    {"asin": "elsewhere", "title": "not in the catalogue", "related": {"also_bought": ["B1", "it's"]}},
]


def write_split(folder, sequences=SEQUENCES, maps=MAPS, meta=None):
    raw = folder / "raw" / "beauty"
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "sequential_data.txt").write_bytes(sequences if isinstance(sequences, bytes) else sequences.encode())
    (raw / "datamaps.json").write_bytes(maps if isinstance(maps, bytes) else json.dumps(maps).encode())
    lines = meta if meta is not None else [repr(entry) for entry in ENTRIES]
    data = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    (raw / "meta.json.gz").write_bytes(gzip.compress(data + b"\n" if lines else b""))
    return raw


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(data.sources.p5, "P5_URL", "http://127.0.0.1:9/P5_data.zip")


def test_a_split_is_read_with_ids_texts_and_titles(tmp_path):
    corpus, notes = read_p5(write_split(tmp_path))
    assert corpus.item_keys == ["B1", "B2", "B3", "B4", "B5", "B6"]
    assert corpus.user_keys == ["ann", "bob"]
    assert to_lists(corpus.histories) == [[0, 1, 2, 3, 4], [1, 5, 0, 2, 3]]
    assert corpus.texts[0] == "Title: Soap & Co; Brand: Elm; Categories: Beauty, Bath; Price: 3.5"
    assert corpus.texts[1:] == ["Title: Oil", "Title: B3", "Brand: Fir", "Title: B5", "Title: B6"]
    assert corpus.titles == ["Soap & Co", "Oil", "B3", "B4", "B5", "B6"]
    assert corpus.categories == ["Beauty > Bath", "", "", "", "", ""]
    assert "4 of 6 items have no title" in notes[0]
    assert "3 of 6 items have no text at all" in notes[1]


def test_windows_line_ends_read_like_unix_ones(tmp_path):
    unix = read_p5(write_split(tmp_path / "a"))
    windows = read_p5(write_split(tmp_path / "b", SEQUENCES.replace("\n", "\r\n"), meta=[f"{entry}\r" for entry in ENTRIES]))
    assert to_lists(unix.corpus.histories) == to_lists(windows.corpus.histories)
    assert unix.corpus.texts == windows.corpus.texts


@pytest.mark.parametrize(
    ("sequences", "sentence"),
    [
        ("", "sequential_data.txt is empty"),
        ("1 1 2\n\n2 3 4\n", "sequential_data.txt:2 is empty"),
        ("1 1 2\n2 3 x4\n", "sequential_data.txt:2 has 'x4' where an id"),
        ("1,1,2\n", "sequential_data.txt:1 has '1,1,2' where an id"),
        (b"1 1 2\n2 \xff\xfe\n", r"sequential_data.txt:2 has '\\xff\\xfe' where an id"),
        ("1 1 2\n2 -3\n", "sequential_data.txt:2 has '-3' where an id"),
        ("1 1 2\n2 3 7\n", r"sequential_data.txt:2 has item 7; the items of datamaps.json are 1..6"),
        ("1 0 2\n", "sequential_data.txt:1 has item 0"),
        ("1 1 2\n3 1 2\n", "sequential_data.txt:2 has user 3"),
        ("1 1 2\n1 3 4\n", "sequential_data.txt:2 has user 1, who already stands on line 1"),
        ("1 1 2\n2\n", "sequential_data.txt:2 names a user but no item"),
        ("1 1 " + "9" * 30 + "\n", "sequential_data.txt:1 has '9999"),
    ],
)
def test_a_bad_history_line_is_named(tmp_path, sequences, sentence):
    with pytest.raises(UserError, match=sentence):
        read_p5(write_split(tmp_path, sequences))


@pytest.mark.parametrize(
    ("maps", "sentence"),
    [
        (b"", "datamaps.json:1 is not JSON"),
        (b'{"id2item": {\n "1" 2}}', "datamaps.json:2 is not JSON"),
        (b'{"id2item": "\xff"}', "datamaps.json is not JSON in UTF-8"),
        (b"[" * 100_000, "datamaps.json"),
        ([1], "has no map id2item"),
        ({"id2item": MAPS["id2item"]}, "has no map id2user"),
        ({**MAPS, "id2item": {"1": "B1", "3": "B3"}}, "no id 2; expected ids 1..2"),
        ({**MAPS, "id2item": {"1": "B1", "2": "B1"}}, "id2item has an id twice"),
        ({**MAPS, "id2item": {"one": "B1"}}, "id2item maps 'one'"),
        ({**MAPS, "id2item": {"1": ["B1"]}}, "id2item maps '1'"),
    ],
)
def test_bad_maps_are_refused(tmp_path, maps, sentence):
    with pytest.raises(UserError, match=sentence):
        read_p5(write_split(tmp_path, maps=maps))


@pytest.mark.parametrize(
    ("meta", "sentence"),
    [
        ([], "meta.json.gz holds no line"),
        (["{'asin': 'B1'}", "[1, 2]"], "meta.json.gz:2 is not a dict with an asin"),
        (["{'asin': 'B1'}", "{'title': 'x'}"], "meta.json.gz:2 is not a dict with an asin"),
        (["{'asin': 'B1', 'title': "], "meta.json.gz:1 is not a literal"),
        (["{'asin': 'other', 'title': "], "meta.json.gz:1 is not a literal"),
        (["{'asin': 'B1', 'price': nan}"], "meta.json.gz:1 is not a literal"),
        (["{'asin': 'B1'}", ""], "meta.json.gz:2 is not a literal"),
        ([b"{'asin': 'B1', 'title': '\xff'}"], "meta.json.gz:1 is not UTF-8"),
        (["(" * 5_000], "meta.json.gz:1 is not a literal"),
    ],
)
def test_bad_metadata_is_named_by_line(tmp_path, meta, sentence):
    with pytest.raises(UserError, match=sentence):
        read_p5(write_split(tmp_path, meta=meta))


@pytest.mark.parametrize("asin", ["B1", "other"])
def test_code_in_metadata_is_refused_and_never_run(tmp_path, asin):
    mark = tmp_path / "ran"
    line = f"{{'asin': '{asin}', 'title': __import__('pathlib').Path({str(mark)!r}).touch()}}"
    with pytest.raises(UserError, match=r"meta.json.gz:2 is not a literal"):
        read_p5(write_split(tmp_path, meta=["{'asin': 'B2'}", line]))
    assert not mark.exists()


def test_items_outside_the_catalogue_are_passed_over_unparsed(tmp_path, monkeypatch):
    parsed = []
    literal_eval = ast.literal_eval
    monkeypatch.setattr(ast, "literal_eval", lambda text: parsed.append(text) or literal_eval(text))
    read_p5(write_split(tmp_path))
    assert len(parsed) == 4


@pytest.mark.parametrize("keep", [0, 5, 40])
def test_a_truncated_gzip_is_refused(tmp_path, keep):
    raw = write_split(tmp_path)
    whole = (raw / "meta.json.gz").read_bytes()
    (raw / "meta.json.gz").write_bytes(whole[:keep])
    with pytest.raises(UserError, match=r"meta.json.gz (is not a complete gzip file|is empty)"):
        AmazonReviews(str(tmp_path), "beauty")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != raw]


def load(folder, force=False):
    return load_corpus(DataConfig(RecDataset.AMAZON, str(folder), "beauty", force))


def count_builds(monkeypatch):
    builds = []
    read = data.sources.p5.read_p5
    monkeypatch.setattr(data.sources.p5, "read_p5", lambda folder: builds.append(folder) or read(folder))
    return builds


def test_a_second_load_comes_from_the_cache_and_says_the_same(tmp_path, monkeypatch, caplog):
    write_split(tmp_path)
    builds = count_builds(monkeypatch)
    with caplog.at_level(logging.INFO, logger="tiger.data"):
        first, second = load(tmp_path), load(tmp_path)
    assert len(builds) == 1
    assert first[:4] == second[:4]
    assert to_lists(first.histories) == to_lists(second.histories)
    assert caplog.text.count("have no title") == 2
    load(tmp_path, force=True)
    assert len(builds) == 2


def test_changed_raw_files_are_never_read_from_a_stale_cache(tmp_path):
    write_split(tmp_path)
    load(tmp_path)
    write_split(tmp_path, SEQUENCES.replace("1 3 4", "1 4 3"))
    assert to_lists(load(tmp_path).histories)[1] == [1, 5, 0, 3, 2]


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_corrupt_cache_is_built_again(tmp_path, monkeypatch, damage):
    write_split(tmp_path)
    good = load(tmp_path)
    (cache,) = (tmp_path / "processed").iterdir()
    if damage is None:  # loads, but its arrays do not fit together
        torch.save({**torch.load(cache, weights_only=True), "item_ids": torch.tensor([99])}, cache)
    else:
        cache.write_bytes(damage)
    builds = count_builds(monkeypatch)
    assert to_lists(load(tmp_path).histories) == to_lists(good.histories)
    assert len(builds) == 1
    load(tmp_path)
    assert len(builds) == 1


def test_nothing_in_the_processed_folder_is_unpickled(tmp_path):
    write_split(tmp_path)
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(mark), "w"))

    load(tmp_path)
    (cache,) = (tmp_path / "processed").iterdir()
    for path in (cache, cache.with_name("pre_transform.pt"), cache.with_name("pre_filter.pt")):
        torch.save(Evil(), path)
    load(tmp_path)
    assert not mark.exists()


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    write_split(tmp_path)

    def stop(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data.io.files.os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path)
    assert list((tmp_path / "processed").iterdir()) == []
    assert len(load(tmp_path).item_keys) == 6


def test_missing_files_without_a_network_are_told_with_the_ways_to_supply_them(tmp_path):
    raw = write_split(tmp_path)
    (raw / "meta.json.gz").unlink()
    with pytest.raises(
        UserError, match=r"P5_data.zip is missing from .*raw.*copy meta.json.gz of .*beauty, or put .*P5_data.zip"
    ) as caught:
        load(tmp_path)
    assert "sequential_data.txt" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["beauty"]


def zip_of(folder, archive, extra=()):
    write_p5(folder, num_users=5, num_items=20)
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((folder / "raw" / "beauty").iterdir()):
            file.write(path, f"data/beauty/{path.name}")
        file.writestr("data/toys/review_splits.pkl", b"not wanted")
        for info, content in extra:
            file.writestr(info, content)
    return archive


def serve(monkeypatch, archive):
    monkeypatch.setattr(data.sources.p5, "P5_URL", archive.as_uri())


def test_missing_files_are_taken_from_the_downloaded_archive_and_nothing_else_is(tmp_path, monkeypatch):
    archive = zip_of(tmp_path / "source", tmp_path / "p5.zip")
    serve(monkeypatch, archive)
    corpus = load(tmp_path / "ds")
    assert (len(corpus.item_keys), len(corpus.user_keys)) == (20, 5)
    found = sorted(path.relative_to(tmp_path / "ds/raw").as_posix() for path in (tmp_path / "ds/raw").rglob("*") if path.is_file())
    assert found == ["P5_data.zip", "beauty/datamaps.json", "beauty/meta.json.gz", "beauty/sequential_data.txt"]


def test_present_raw_files_are_kept_when_others_are_downloaded(tmp_path, monkeypatch):
    serve(monkeypatch, zip_of(tmp_path / "source", tmp_path / "p5.zip"))
    raw = write_p5(tmp_path / "ds", num_users=5, num_items=20) and tmp_path / "ds/raw/beauty"
    (raw / "meta.json.gz").unlink()
    (raw / "sequential_data.txt").write_text("1 3 2 1\n")
    assert to_lists(load(tmp_path / "ds").histories) == [[2, 1, 0]]


def link():
    info = zipfile.ZipInfo("data/beauty/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "member", ["../evil.txt", "data/../../evil.txt", "/etc/evil.txt", "C:/evil.txt", "..\\evil.txt", "data\\..\\..\\evil", link()]
)
def test_an_archive_with_a_member_that_climbs_out_is_refused_whole(tmp_path, monkeypatch, member):
    serve(monkeypatch, zip_of(tmp_path / "source", tmp_path / "p5.zip", [(member, b"x")]))
    with pytest.raises(UserError, match="is refused: its member"):
        load(tmp_path / "ds")
    assert [path.name for path in (tmp_path / "ds").rglob("*") if path.is_file()] == ["P5_data.zip"]
    assert not list(tmp_path.rglob("evil*"))


def test_an_answer_that_is_no_archive_is_told_and_not_kept(tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("<html>quota exceeded</html>")
    serve(monkeypatch, page)
    with pytest.raises(UserError, match="no zip archive"):
        load(tmp_path / "ds")
    assert not [path for path in (tmp_path / "ds").rglob("*") if path.is_file()]


def test_an_archive_with_one_damaged_member_gives_none(tmp_path):
    archive = zip_of(tmp_path / "source", tmp_path / "p5.zip")
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("data/beauty/sequential_data.txt")  # the last of the three
    middle = info.header_offset + 60 + len(info.filename)
    archive.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    wanted = [tmp_path / "beauty" / name for name in ("datamaps.json", "meta.json.gz", "sequential_data.txt")]
    with pytest.raises(UserError, match=r"p5.zip cannot be extracted"):
        extract_members(archive, wanted, "P5")
    assert not list((tmp_path / "beauty").rglob("*"))


def test_a_map_that_names_a_number_twice_is_refused(tmp_path):
    maps = '{"id2item": {"1": "B1", "1": "B2"}, "id2user": {"1": "ann"}}'
    raw = write_split(tmp_path)
    (raw / "datamaps.json").write_text(maps)
    with pytest.raises(UserError, match="has no map id2item"):
        load(tmp_path)


def test_a_damaged_archive_and_one_without_the_split_are_told(tmp_path):
    archive = tmp_path / "ds/raw/P5_data.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"PK but not a zip")
    with pytest.raises(UserError, match=r"cannot be extracted .* delete it"):
        load(tmp_path / "ds")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data/toys/datamaps.json", b"{}")
    with pytest.raises(UserError, match=r"has no member beauty/sequential_data.txt"):
        load(tmp_path / "ds")


@pytest.mark.parametrize("split", ["Beauty", "electronics", "../beauty"])
def test_an_unknown_split_is_answered_with_the_known_ones(tmp_path, split):
    for loader in (lambda: load_corpus(DataConfig(RecDataset.AMAZON, str(tmp_path), split)), lambda: AmazonReviews(str(tmp_path), split)):
        with pytest.raises(UserError, match="beauty, sports or toys"):
            loader()


def test_an_unknown_source_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"%data.processed.RecDataset.AMAZON, %data.processed.RecDataset.CUSTOM"):
        load_corpus(DataConfig("AMAZON", str(tmp_path), "beauty"))


EXAMPLES = [Example(RecDataset.AMAZON, "beauty", lambda folder, split, users, items: write_p5(folder, users, items, split=split))]
