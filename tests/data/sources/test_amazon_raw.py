import gzip
import json

import pytest

import data.io.json_lines
import data.sources.amazon_raw
from data.filters import Filters
from data.processed import DataConfig, RecDataset, load_corpus
from data.schemas import UserError
from data.sources.amazon_raw import load_amazon_raw
from data.sources.p5 import read_p5
from tests.examples import Example
from tests.synthetic import to_lists, write_amazon_raw, write_p5

REVIEWS = [
    {"reviewerID": "ann", "asin": "B3", "reviewerName": "A.", "helpful": [0, 1], "overall": 5.0, "unixReviewTime": 1365984000},
    {"reviewerID": "bob", "asin": "B1", "overall": 2.0, "unixReviewTime": 1365984000},
    {"reviewerID": "ann", "asin": "B1", "overall": 4.0, "unixReviewTime": 1365984000},
    {"reviewerID": "ann", "asin": "B2", "overall": 4.0, "unixReviewTime": 1265984000},
]
META = [
    {"asin": "B1", "title": "Soap &amp; Co", "brand": "Elm", "categories": [["Beauty", "Bath"], ["Gifts"]], "price": 3.5},
    {"asin": "B3", "categories": [["All Beauty"]], "salesRank": {"Beauty": 7}},
    {"asin": "B9", "title": "Nobody's", "related": {"also_bought": ["B1"]}},
]
REVIEWS_2023 = [
    {"rating": 5.0, "title": "Nice", "asin": "V1", "parent_asin": "P1", "user_id": "ann", "timestamp": 1588687728923, "images": []},
    {"rating": 1.0, "title": "No", "asin": "V2", "parent_asin": "P1", "user_id": "bob", "timestamp": 1588687728000, "images": []},
    {"rating": 4.0, "title": "", "asin": "P2", "parent_asin": "P2", "user_id": "ann", "timestamp": 1588687728922, "images": []},
]
META_2023 = [
    {"main_category": "All Beauty", "title": "Cream", "price": 9.99, "store": "Elm", "categories": ["Beauty", "Face"], "parent_asin": "P1"},
    {"title": "Oil", "price": None, "store": None, "categories": [], "parent_asin": "P2", "details": {"Brand": "Fir"}},
]


def lines(entries, write=json.dumps):
    return gzip.compress("".join(f"{entry if isinstance(entry, str) else write(entry)}\n" for entry in entries).encode())


def write_2014(folder, reviews=REVIEWS, meta=META, name="reviews_Beauty_5.json.gz"):
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    (raw / name).write_bytes(reviews if isinstance(reviews, bytes) else lines(reviews))
    (raw / "meta_Beauty.json.gz").write_bytes(meta if isinstance(meta, bytes) else lines(meta, repr))
    return folder


def write_2023(folder, reviews=REVIEWS_2023, meta=META_2023):
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "All_Beauty.jsonl.gz").write_bytes(reviews if isinstance(reviews, bytes) else lines(reviews))
    (raw / "meta_All_Beauty.jsonl.gz").write_bytes(meta if isinstance(meta, bytes) else lines(meta))
    return folder


def load(folder, year=2014, **kept):
    return load_amazon_raw(folder, year, "Beauty" if year == 2014 else "All_Beauty", Filters(**{"cold_items": False, **kept}))


def test_reviews_of_2014_become_a_corpus(tmp_path):
    corpus, notes = load(write_2014(tmp_path))
    assert corpus.item_keys == ["B1", "B2", "B3"]
    assert corpus.titles == ["Soap & Co", "B2", "B3"]
    assert corpus.texts == ["Title: Soap & Co; Brand: Elm; Categories: Beauty, Bath; Price: 3.5", "Title: B2", "Categories: All Beauty"]
    assert corpus.categories == ["Beauty > Bath", "", "All Beauty"]
    assert corpus.user_keys == ["ann", "bob"]
    assert to_lists(corpus.histories) == [[1, 2, 0], [0]]  # ann's B3 and B1 share a time: the file's order
    assert corpus.times.tolist() == [1265984000, 1365984000, 1365984000, 1365984000]
    assert [note.split(": ")[1] for note in notes] == [
        "2 of 3 items have no title and are called by their id",
        "1 of 3 items have no text at all; their id is their text",
    ]


def test_ratings_without_a_header_read_like_the_reviews(tmp_path):
    rows = "".join(f"{row['reviewerID']},{row['asin']},{row['overall']},{row['unixReviewTime']}\n" for row in REVIEWS)
    ratings = load(write_2014(tmp_path / "a", rows.encode(), name="ratings_Beauty.csv")).corpus
    reviews = load(write_2014(tmp_path / "b")).corpus
    assert ratings[:4] == reviews[:4]
    assert to_lists(ratings.histories) == to_lists(reviews.histories)


def test_reviews_of_2023_become_a_corpus(tmp_path):
    corpus, notes = load(write_2023(tmp_path), 2023)
    assert corpus.item_keys == ["P1", "P2"]
    assert corpus.texts == ["Title: Cream; Brand: Elm; Categories: Beauty, Face; Price: 9.99", "Title: Oil"]
    assert corpus.categories == ["Beauty > Face", ""]
    assert to_lists(corpus.histories) == [[1, 0], [0]]
    assert corpus.times.tolist() == [1588687728.922, 1588687728.923, 1588687728.0]
    assert notes == []


def unpacked(folder):
    for path in (folder / "raw").glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    return folder


@pytest.mark.parametrize("year", [2014, 2023])
def test_files_may_lie_there_unpacked(tmp_path, year):
    write = write_2014 if year == 2014 else write_2023
    packed, plain = load(write(tmp_path / "a"), year).corpus, load(unpacked(write(tmp_path / "b")), year).corpus
    assert packed[:5] == plain[:5]
    assert to_lists(packed.histories) == to_lists(plain.histories)
    (path,) = (tmp_path / "b" / "raw").glob("meta_*")
    path.write_text("")
    with pytest.raises(UserError, match=r"meta_\w+\.jsonl? is empty; expected a file with"):
        load(tmp_path / "b", year)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_official_csv_of_2023_reads_like_the_reviews(tmp_path, zipped):
    reviews = load(write_2023(tmp_path), 2023, min_rating=2).corpus
    raw = tmp_path / "raw"
    (raw / "All_Beauty.jsonl.gz").unlink()
    rows = ["user_id,parent_asin,rating,timestamp,history"]
    rows += [f"{row['user_id']},{row['parent_asin']},{row['rating']},{row['timestamp']},P8 P9" for row in REVIEWS_2023]
    content = ("\n".join(rows) + "\n").encode()
    name = "All_Beauty.csv.gz" if zipped else "All_Beauty.csv"
    (raw / name).write_bytes(gzip.compress(content) if zipped else content)
    corpus = load(tmp_path, 2023, min_rating=2).corpus
    assert corpus[:5] == reviews[:5]
    assert to_lists(corpus.histories) == to_lists(reviews.histories)
    assert corpus.times.tolist() == reviews.times.tolist()
    for change, sentence in (
        (content.replace(b"parent_asin", b"asin", 1), r"All_Beauty.csv(.gz)?:1 lacks the column parent_asin"),
        (content + b"ann,,5.0,1588687728000,\n", r"All_Beauty.csv(.gz)?:5 has no parent_asin; mend the line"),
        (content + b"ann,P1,5.0,soon,\n", r"All_Beauty.csv(.gz)?:5 has 'soon' for timestamp; expected a whole number"),
    ):
        (raw / name).write_bytes(gzip.compress(change) if zipped else change)
        with pytest.raises(UserError, match=sentence):
            load(tmp_path, 2023, min_rating=2)


@pytest.mark.parametrize("year", [2014, 2023])
def test_items_that_stand_twice_in_the_metadata_are_counted(tmp_path, year):
    if year == 2014:
        write_2014(tmp_path, meta=[*META, META[0] | {"title": "Soap again"}, META[2], META[0] | {"title": "Soap at last"}])
    else:
        write_2023(tmp_path, meta=[META_2023[0] | {"title": "Old"}, META_2023[0], META_2023[0] | {"title": "Soap at last"}, META_2023[1]])
    corpus, notes = load(tmp_path, year)
    assert corpus.titles[0] == "Soap at last"
    told = [note for note in notes if "stand there more than once" in note]
    assert len(told) == 1
    assert told[0].endswith(f": 1 of {len(corpus.item_keys)} items stand there more than once; the last entry of each counts")


@pytest.mark.parametrize("year", [2014, 2023])
def test_cold_items_come_from_the_metadata(tmp_path, year):
    folder = write_2014(tmp_path) if year == 2014 else write_2023(tmp_path, REVIEWS_2023[:2])
    corpus = load(folder, year, cold_items=True).corpus
    assert corpus.item_keys == (["B1", "B2", "B3", "B9"] if year == 2014 else ["P1", "P2"])
    assert corpus.titles[-1] == ("Nobody's" if year == 2014 else "Oil")


def test_the_minimum_rating_and_the_core_shape_the_catalogue(tmp_path):
    folder = write_2014(tmp_path)
    assert load(folder, min_rating=4.5).corpus.item_keys == ["B3"]
    assert load(folder, min_rating=3).corpus.item_keys == ["B1", "B2", "B3"]
    with pytest.raises(UserError, match=r"no interaction that .* leave"):
        load(folder, k_core=2)


def test_the_raw_files_give_what_p5_s_files_give(tmp_path):
    truth = write_amazon_raw(tmp_path, 2014, "Beauty", 400, 60)
    write_p5(tmp_path, 400, 60)
    raw = load_corpus(DataConfig(RecDataset.AMAZON_2014, str(tmp_path), "Beauty", k_core=5))
    packed = read_p5(tmp_path / "raw" / "beauty").corpus
    by_user = dict(zip(raw.user_keys, to_lists(raw.histories)))
    assert [[raw.item_keys[item] for item in by_user[user]] for user in packed.user_keys] == [
        [packed.item_keys[item] for item in history] for history in truth.histories
    ]
    assert raw.titles == packed.titles


def test_metadata_that_is_missing_is_told_and_leaves_the_ids(tmp_path):
    folder = write_2014(tmp_path)
    (folder / "raw" / "meta_Beauty.json.gz").unlink()
    corpus, notes = load(folder)
    assert corpus.texts == ["Title: B1", "Title: B2", "Title: B3"]
    assert "meta_Beauty.json.gz is missing: only the ids" in notes[0]


def test_long_files_are_read_a_stretch_at_a_time(tmp_path, monkeypatch):
    whole = load(write_2014(tmp_path / "a")).corpus
    monkeypatch.setattr(data.io.json_lines, "STRETCH", 200)
    assert load(write_2014(tmp_path / "b")).corpus[:4] == whole[:4]
    bad = [*REVIEWS, "{"]
    with pytest.raises(UserError, match=r"reviews_Beauty_5.json.gz:5 is not JSON"):
        load(write_2014(tmp_path / "c", bad))
    with pytest.raises(UserError, match=r"reviews_Beauty_5.json.gz:1 is longer than"):
        load(write_2014(tmp_path / "d", [REVIEWS[0] | {"reviewText": "x" * 500}]))


@pytest.mark.parametrize(
    ("reviews", "sentence"),
    [
        ([*REVIEWS, "[1]"], "reviews_Beauty_5.json.gz:5 is not a JSON object"),
        ([*REVIEWS, {"asin": "B1", "unixReviewTime": 1}], "reviews_Beauty_5.json.gz:5 lacks the key reviewerID"),
        ([*REVIEWS, REVIEWS[0] | {"unixReviewTime": "soon"}], "reviews_Beauty_5.json.gz:5 has 'soon' for unixReviewTime"),
        ([*REVIEWS, REVIEWS[0] | {"asin": None}], "reviews_Beauty_5.json.gz:5 has None for asin; expected text"),
        ([*REVIEWS, json.dumps(REVIEWS[0]).replace("5.0", "NaN")], "reviews_Beauty_5.json.gz"),
        (lines(REVIEWS)[:-12], "reviews_Beauty_5.json.gz is not a complete gzip file"),
        (b"not gzip", "reviews_Beauty_5.json.gz is not a complete gzip file"),
        (b"", "reviews_Beauty_5.json.gz is empty"),
        (lines([]), "reviews_Beauty_5.json.gz has no rows"),
    ],
)
def test_bad_reviews_are_named_by_line(tmp_path, reviews, sentence):
    with pytest.raises(UserError, match=sentence):
        load(write_2014(tmp_path, reviews), min_rating=1)
    assert not (tmp_path / "processed").exists()


@pytest.mark.parametrize(
    ("meta", "sentence"),
    [
        ([*META_2023, "{'parent_asin': 'P3'}"], "meta_All_Beauty.jsonl.gz:3 is not JSON"),
        ([*META_2023, {"title": "x"}], "meta_All_Beauty.jsonl.gz:3 is not an object with a parent_asin"),
        (lines(META_2023)[:-9], "meta_All_Beauty.jsonl.gz is not a complete gzip file"),
    ],
)
def test_bad_metadata_of_2023_is_named_by_line(tmp_path, meta, sentence):
    with pytest.raises(UserError, match=sentence):
        load(write_2023(tmp_path, meta=meta), 2023)


def test_missing_reviews_are_told_with_the_ways_to_supply_them(tmp_path, monkeypatch):
    monkeypatch.setitem(
        data.sources.amazon_raw.EDITIONS, 2014, data.sources.amazon_raw.EDITIONS[2014]._replace(urls=("http://127.0.0.1:9",) * 2)
    )
    with pytest.raises(UserError, match=r"put reviews_Beauty_5.json.gz or .*ratings_Beauty.csv and meta_Beauty.json.gz into"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"'../x'; expected a category"):
        load_amazon_raw(tmp_path, 2014, "../x", Filters())


def test_entities_are_undone_before_control_characters_are_taken_out(tmp_path):
    entry = {"asin": "B1", "title": "A&#10;B &#x202e;evil", "brand": "&nbsp;", "categories": [["Beauty&#10;Bath", "a &amp; b"]]}
    corpus, _ = load(write_2014(tmp_path, meta=[entry]))
    assert corpus.titles[0] == "A B evil"
    assert corpus.categories[0] == "Beauty Bath > a & b"
    assert corpus.texts[0] == "Title: A B evil; Categories: Beauty Bath, a & b"


def test_tags_and_placeholders_are_no_texts(tmp_path):
    entry = {
        "parent_asin": "P1",
        "title": '<span id="x">Comb</span> no 1',
        "store": "-",
        "categories": ["Beauty", "N/A"],
        "price": "\u2014",
    }
    corpus, _ = load(write_2023(tmp_path, meta=[entry]), 2023)
    assert corpus.titles[0] == "Comb no 1"
    assert corpus.texts[0] == "Title: Comb no 1; Categories: Beauty"


def test_blank_ids_are_refused(tmp_path):
    for key in ("reviewerID", "asin"):
        with pytest.raises(UserError, match=r"reviews_Beauty_5.json.gz.* has an empty (user|item)"):
            load(write_2014(tmp_path / key, [*REVIEWS, REVIEWS[0] | {key: " "}]))
    with pytest.raises(UserError, match=r"meta_Beauty.json.gz:1 is not a dict with an asin"):
        load(write_2014(tmp_path / "meta", meta=[{"asin": ""}]), cold_items=True)


def test_metadata_whose_download_broke_are_fetched_by_the_next_call(tmp_path, monkeypatch):
    source, calls = write_2014(tmp_path / "source") / "raw", []

    def fetch(url, path, ways):
        calls.append(path.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.startswith("meta") and len(calls) == 1:
            path.with_name(f"{path.name}.part").write_bytes(b"half")
            raise UserError("broke off")
        path.write_bytes((source / path.name).read_bytes())

    monkeypatch.setattr(data.sources.amazon_raw, "fetch", fetch)
    with pytest.raises(UserError, match="broke off"):
        load(tmp_path)
    assert load(tmp_path).corpus.titles[0] == "Soap & Co"
    (tmp_path / "raw" / "meta_Beauty.json.gz").unlink()
    (tmp_path / "raw" / "meta_Beauty.json.gz.part").write_bytes(b"half")
    assert load(tmp_path).corpus.titles[0] == "Soap & Co"
    assert calls == ["meta_Beauty.json.gz", "meta_Beauty.json.gz", "reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"]


EXAMPLES = [
    Example(RecDataset.AMAZON_2014, "Beauty", lambda folder, split, *size: write_amazon_raw(folder, 2014, split, *size), users=900),
    Example(RecDataset.AMAZON_2023, "All_Beauty", lambda folder, split, *size: write_amazon_raw(folder, 2023, split, *size), users=900),
]
