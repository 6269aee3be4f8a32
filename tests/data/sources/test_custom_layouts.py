"""One's own files in every layout: the same shop, written in many ways, is the same corpus."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from data.corpus import Corpus
from data.custom import _split_of
from data.schemas import UserError
from data.sources.custom import load_custom
from tests.synthetic import to_lists

ROWS = [("bo", "p30", 20), ("bo", "p10", 30), ("ann", "p10", 7), ("ann", "p20", 8), ("ann", "p30", 9)]
THINGS = [("p10", 'Lamp 12" round, "Sol"', "Elm"), ("p20", "Oil | wax; mild", "Fir"), ("p30", "Soap", "Café")]
ITEMS = "item,title,brand\n" + "".join(f'{key},"{title.replace(chr(34), chr(34) * 2)}",{brand}\n' for key, title, brand in THINGS)
HISTORIES = {"bo": ["p30", "p10"], "ann": ["p10", "p20", "p30"]}


def lines(rows, separator=",", header=("user", "item", "timestamp"), quote: Callable[[str], str] = str, end="\n") -> str:
    return "".join(separator.join(quote(str(field)) for field in row) + end for row in ([header] if header else []) + list(rows))


def doubled(field: str) -> str:
    return '"' + field.replace('"', '""') + '"'


def escaped(field: str) -> str:
    return '"' + field.replace("\\", "\\\\").replace('"', '\\"') + '"'


def things(**how) -> str:
    return lines(THINGS, header=("item", "title", "brand"), **how)


def check(corpus: Corpus, timed: bool = True, texts: bool = True) -> None:
    assert corpus.item_keys == ["p10", "p20", "p30"]
    assert corpus.user_keys == ["bo", "ann"]
    assert to_lists(corpus.histories) == [[2, 0], [0, 1, 2]]
    assert (corpus.times is None) != timed
    if texts:
        assert corpus.titles == [title for _, title, _ in THINGS]
        assert corpus.texts[0] == 'Title: Lamp 12" round, "Sol"; Brand: Elm'


def write(folder: Path, **files: str | bytes) -> Path:
    """Files by name, a double underscore for each dot; items.csv beside them unless they hold items."""
    named = {name.replace("__", "."): content for name, content in files.items()}
    if not any(name.lower().startswith("items.") or name.endswith(".item") for name in named):
        named["items.csv"] = ITEMS
    for name, content in named.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


TABLES = {
    "semicolons": {"interactions__csv": lines(ROWS, ";"), "items__csv": things(separator=";", quote=doubled)},
    "semicolons behind a mark, as Excel writes them": {
        "interactions__csv": "\ufeff" + lines(ROWS, ";", end="\r\n"),
        "items__csv": "\ufeff" + things(separator=";", quote=doubled, end="\r\n"),
    },
    "bars": {"interactions__csv": lines(ROWS, "|"), "items__csv": things(separator="|", quote=doubled)},
    "tabs in a csv": {"interactions__csv": lines(ROWS, "\t"), "items__csv": things(separator="\t")},
    "commas in a tsv": {"interactions__tsv": lines(ROWS), "items__tsv": things(quote=doubled)},
    "blanks in atomic files": {
        "any__inter": lines(ROWS, " ", ("user_id:token", "item_id:token", "timestamp:float")),
        "any__item": lines(THINGS, "\t", ("item_id:token", "title:token_seq", "brand:token")),
    },
    "commas in atomic files": {"any__inter": lines(ROWS, ",", ("user_id:token", "item_id:token", "timestamp:float"))},
    "quotes of pandas in a tsv": {"interactions__tsv": lines(ROWS, "\t"), "items__tsv": things(separator="\t", quote=doubled)},
    "an index of pandas": {
        "interactions__csv": lines([(row, *fields) for row, fields in enumerate(ROWS)], header=("", "user", "item", "timestamp")),
        "items__csv": lines(((row, *map(doubled, fields)) for row, fields in enumerate(THINGS)), header=("", "item", "title", "brand")),
    },
    "quotes and row names of R": {
        "interactions__tsv": lines(((row, *fields) for row, fields in enumerate(ROWS, 1)), " ", None, escaped).replace(
            '"1" "bo" "p30"', '"user" "item" "timestamp"\n"1" "bo" "p30"', 1
        ),
        "items__tsv": '"item"\t"title"\t"brand"\n' + lines(((row, *fields) for row, fields in enumerate(THINGS, 1)), "\t", None, escaped),
    },
    "escapes of MySQL": {"interactions__csv": lines(ROWS, ";", quote=escaped), "items__csv": things(separator=";", quote=escaped)},
    "separators behind the last field": {"interactions__csv": lines(ROWS, ";", end=";\n")},
    "gzip": {"interactions__csv__gz": gzip.compress(lines(ROWS).encode()), "items__csv__gz": gzip.compress(ITEMS.encode())},
    "gzipped tabs": {"interactions__tsv__gz": gzip.compress(lines(ROWS, "\t").encode())},
    "UTF-16 of Excel": {"interactions__txt": lines(ROWS, "\t").encode("utf-16"), "items__txt": things(separator="\t").encode("utf-16")},
    "a txt with a header": {"interactions__txt": lines(ROWS, " ")},
    "old line ends": {"interactions__csv": lines(ROWS, end="\r\n"), "items__csv": things(quote=doubled, end="\r\n")},
    "other spellings of the names": {"interactions__csv": lines(ROWS, header=("User-ID", "ITEM_ID", "Timestamp"))},
    "lines of JSON": {"interactions__jsonl": "\n".join(json.dumps(dict(zip(("user", "item", "timestamp"), row))) for row in ROWS)},
    "gzipped lines of JSON": {
        "interactions__jsonl__gz": gzip.compress("\n".join(json.dumps(dict(zip(("user", "item", "time"), row))) for row in ROWS).encode())
    },
    "a list of objects": {"interactions__json": json.dumps([dict(zip(("user", "item", "timestamp"), row)) for row in ROWS])},
    "lines of JSON called json": {
        "interactions__json": "\n".join(json.dumps(dict(zip(("user", "item", "timestamp"), row))) for row in ROWS),
        "items__json": "\n".join(json.dumps(dict(zip(("item", "title", "brand"), thing))) for thing in THINGS),
    },
    "objects by item": {
        "interactions__csv": lines(ROWS),
        "items__json": json.dumps({key: {"title": title, "brand": brand} for key, title, brand in THINGS}),
    },
    "blank lines in a csv": {"interactions__csv": lines(ROWS).replace("ann,p20", "\nann,p20") + "\n\n"},
    "blank lines behind a tsv": {"interactions__tsv": lines(ROWS, "\t") + "\n\r\n"},
    "capital names": {"Interactions__CSV": lines(ROWS), "Items__Csv": ITEMS},
    "fractions with commas": {"interactions__csv": lines(((*row, "4,5") for row in ROWS), ";", ("user", "item", "timestamp", "rating"))},
    "items with times by user": {
        "interactions__json": json.dumps({"bo": [["p30", 20], ["p10", 30]], "ann": [["p10", 7], ["p20", 8], ["p30", 9]]})
    },
    "lists in a table": {
        "interactions__jsonl": '{"user": "bo", "items": ["p30", "p10"], "timestamps": [20, 30]}\n'
        '{"user": "ann", "items": ["p10", "p20", "p30"], "timestamps": [7, 8, 9]}\n'
    },
    "lists as text": {
        "interactions__csv": "user,items,times\nbo,\"['p30', 'p10']\",\"[20, 30]\"\nann,\"['p10', 'p20', 'p30']\",\"[7, 8, 9]\"\n"
    },
    "parts": {
        "train__csv": lines([ROWS[0], ROWS[2]]),
        "valid__csv": lines([ROWS[3]]),
        "test__csv": lines([ROWS[1], ROWS[4]]),
    },
    "parts of RecBole": {
        "any__train__inter": lines([ROWS[0], ROWS[2]], "\t", ("user_id:token", "item_id:token", "timestamp:float")),
        "any__test__inter": lines([ROWS[1], *ROWS[3:]], "\t", ("user_id:token", "item_id:token", "timestamp:float")),
    },
}
UNTIMED = {
    "no times": {"interactions__csv": lines([row[:2] for row in ROWS], header=("user", "item"))},
    "a line a user": {"any__txt": "bo p30 p10\nann p10 p20 p30\n"},
    "a line a user, by tabs": {"interactions__txt": "bo\tp30\tp10\r\n\r\nann\tp10\tp20\tp30"},
    "a line a user, by commas": {"any__txt": "bo p30,p10\nann p10,p20,p30\n"},
    "a line an interaction": {"any__txt": "bo p30\nann p10\nann p20\nbo p10\nann p30\n"},
    "gzipped lines": {"any__txt__gz": gzip.compress(b"bo p30 p10\nann p10 p20 p30\n")},
    "items by user": {"interactions__json": json.dumps(HISTORIES)},
    "lists in lines of JSON": {
        "interactions__jsonl": "\n".join(json.dumps({"user": user, "item": items}) for user, items in HISTORIES.items())
    },
    "lists as text with blanks": {"interactions__csv": "user,item_id_list\nbo,p30 p10\nann,p10 p20 p30\n"},
    "parts without times": {"train__txt": "bo p30\nann p10\n", "valid__txt": "ann p20\n", "test__txt": "bo p10\nann p30\n"},
}


@pytest.mark.parametrize("name", [*TABLES, *UNTIMED])
def test_every_layout_is_the_same_shop(tmp_path, name):
    corpus, notes = load_custom(write(tmp_path, **(TABLES | UNTIMED)[name]), "any")
    check(corpus, timed=name in TABLES)
    assert any("no column holds times; the order of the file is taken" in note for note in notes) == (name in UNTIMED)
    assert any("were read as one" in note for note in notes) == name.startswith("parts")


def test_lists_of_parquet_become_rows(tmp_path):
    write(tmp_path)
    frame = pl.DataFrame({"user": [*HISTORIES, "nobody"], "item": [*HISTORIES.values(), []], "timestamp": [[20, 30], [7, 8, 9], []]})
    frame.write_parquet(tmp_path / "interactions.parquet")
    check(load_custom(tmp_path, "any").corpus)
    frame.with_columns(timestamp=pl.Series([[20], [7, 8, 9], []])).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(UserError, match=r"interactions.parquet, row 1 has lists of different lengths"):
        load_custom(tmp_path, "any")


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "shift_jis"])
def test_another_encoding_is_named_by_the_user(tmp_path, encoding):
    text = ITEMS if encoding != "shift_jis" else ITEMS.replace("Café", "陶器")
    write(tmp_path, interactions__csv=lines(ROWS), items__csv=text.encode(encoding))
    with pytest.raises(UserError, match=r"items.csv:4 is not UTF-8; .*set train.encoding"):
        load_custom(tmp_path, "any")
    corpus = load_custom(tmp_path, "any", encoding=encoding).corpus
    check(corpus)
    assert corpus.texts[2] == f"Title: Soap; Brand: {'陶器' if encoding == 'shift_jis' else 'Café'}"
    with pytest.raises(UserError, match=r"items.csv:\d is not ascii; .*set train.encoding"):
        load_custom(tmp_path, "any", encoding="ascii")


def test_columns_go_by_number_where_there_is_no_header(tmp_path):
    write(tmp_path, interactions__csv=lines(ROWS, header=None))
    with pytest.raises(
        UserError, match=r"interactions.csv:1 has no header: the first line is bo, p30, 20; .*\[\"user=1\", \"item=2\", \"timesta"
    ):
        load_custom(tmp_path, "any")
    check(load_custom(tmp_path, "any", columns=["user=1", "item=2", "timestamp=3"]).corpus)


def test_a_line_of_another_length_in_a_headerless_file_is_named(tmp_path):
    write(tmp_path, interactions__csv=lines(ROWS, header=None) + "bo,p10\n")
    with pytest.raises(UserError, match=r"interactions.csv:6 has no 3"):
        load_custom(tmp_path, "any", columns=["user=1", "item=2", "timestamp=3"])


def test_both_files_may_have_no_header(tmp_path):
    write(
        tmp_path,
        interactions__txt=lines(ROWS, "\t", header=None),
        items__tsv=lines(((brand, key, title) for key, title, brand in THINGS), "\t", None),
    )
    corpus = load_custom(tmp_path, "any", columns=["user=1", "item=2", "timestamp=3", "title=3", "text=1"]).corpus
    check(corpus, texts=False)
    assert corpus.titles[2] == "Soap"


def test_the_item_may_have_a_number_in_each_file_without_a_header(tmp_path):
    listed = lines(THINGS, header=None, quote=doubled)
    write(tmp_path, interactions__csv=lines(ROWS, header=None), items__csv=listed)
    columns = ["user=1", "item=2", "timestamp=3", "item=1", "title=2"]
    corpus = load_custom(tmp_path, "any", columns=columns).corpus
    check(corpus, texts=False)
    assert corpus.titles[2] == "Soap"


def test_the_items_column_may_be_called_id(tmp_path):
    write(tmp_path, interactions__csv=lines(ROWS), items__csv=lines(THINGS, header=("ID", "title", "brand"), quote=doubled))
    check(load_custom(tmp_path, "any").corpus)


@pytest.mark.parametrize("name", ["any", "test"])
def test_parts_as_txt_are_parts_whatever_the_folder_is_called(tmp_path, name):
    write(tmp_path, train__txt="bo p30 p10\nann p10\n", valid__txt="bo p20\n", test__txt="ann p20\n")
    assert _split_of(tmp_path) not in ("train", "valid", "test")
    loaded = load_custom(tmp_path, name)
    assert "train.txt, valid.txt, test.txt were read as one; train.split_by splits them anew" in loaded.notes
    assert len(loaded.corpus.histories.item_ids) == 5


def test_json_of_columns_is_not_taken_for_users(tmp_path):
    write(tmp_path, interactions__json=json.dumps({"user": ["bo", "ann"], "item": ["p10", "p20"], "timestamp": [1, 2]}))
    with pytest.raises(UserError, match=r"interactions.json is JSON of columns \(user, item, timestamp\); .*list of objects"):
        load_custom(tmp_path, "any")


def test_a_stray_quote_is_named_by_its_line(tmp_path):
    write(tmp_path, interactions__csv=lines(ROWS), items__csv='item,title\np10,Soap\np20,TV 42" wide\np30,Oil\n')
    with pytest.raises(UserError, match=r"items.csv:3 has a quote within a field that stands in none"):
        load_custom(tmp_path, "any")


def test_a_table_in_a_txt_without_a_header_is_no_sequence(tmp_path):
    write(tmp_path, any__txt=lines(ROWS, " ", header=None))
    with pytest.raises(UserError, match=r"any.txt is a table of 3 columns without a header \(its first line is bo, p30, 20\); .*user=1"):
        load_custom(tmp_path, "any")
    check(load_custom(tmp_path, "any", columns=["user=1", "item=2", "timestamp=3"]).corpus)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("bo p30 p10\nann\n", r"any.txt:2 names a user but no item"),
        ("bo p30 p10\nann p10\nbo p20\n", r"any.txt:3 has a user who already stands"),
        ("bo p30 p10\nann p99\n", r"any.txt:2 has an item that items.csv lacks"),
        ("\n\n", "any.txt is empty"),
    ],
)
def test_a_bad_line_of_sequences_is_named(tmp_path, content, sentence):
    with pytest.raises(UserError, match=sentence):
        load_custom(write(tmp_path, any__txt=content), "any")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"bo": "p30"}', "interactions.json is JSON of another shape"),
        ("[1, 2]", "interactions.json is JSON of another shape"),
        ('{"bo": [{"x": 1}]}', "interactions.json, user 'bo' has something else than items"),
        ('{"bo": []}', "something else than items"),
        ("{", "interactions.json:1 is not JSON"),
        ('{"bo": ["p99"]}', "interactions.json, user bo has an item that items.csv lacks"),
    ],
)
def test_json_of_another_shape_is_refused(tmp_path, content, sentence):
    with pytest.raises(UserError, match=sentence):
        load_custom(write(tmp_path, interactions__json=content), "any")


def test_parts_must_have_the_same_columns(tmp_path):
    write(tmp_path, train__csv=lines(ROWS[:3]), test__csv=lines((row[:2] for row in ROWS[3:]), header=("user", "item")))
    with pytest.raises(UserError, match=r"are read as one set and only one of them has a timestamp"):
        load_custom(tmp_path, "any")
    write(tmp_path, test__csv=lines([*ROWS[3:], ("bo", "p99", 1)]))
    with pytest.raises(UserError, match=r"test.csv:4 has an item that items.csv lacks"):
        load_custom(tmp_path, "any")


def test_a_broken_gzip_is_told(tmp_path):
    write(tmp_path, interactions__csv__gz=gzip.compress(lines(ROWS).encode())[:-9])
    with pytest.raises(UserError, match=r"interactions.csv.gz is not a complete gzip file"):
        load_custom(tmp_path, "any")


def test_lines_in_a_gzip_are_named(tmp_path):
    write(tmp_path, interactions__csv__gz=gzip.compress(lines([*ROWS, ("bo", "p10", "soon")]).encode()))
    with pytest.raises(UserError, match=r"interactions.csv.gz:7 has a timestamp that is no number"):
        load_custom(tmp_path, "any")


def test_quotes_in_a_tsv_that_are_letters_stay(tmp_path):
    write(tmp_path, interactions__tsv=lines(ROWS, "\t"), items__tsv='item\ttitle\np10\t"Oh" she said\np20\t5" screw\np30\tSoap\n')
    assert load_custom(tmp_path, "any").corpus.titles == ['"Oh" she said', '5" screw', "Soap"]


@pytest.mark.parametrize(("separator", "quote"), [(";", escaped), ("\t", doubled), (",", escaped)])
def test_quotes_far_behind_the_beginning_are_told_too(tmp_path, separator, quote):
    many = [(f"q{number}", "Plain", "Elm") for number in range(5000)]
    name = "items.tsv" if separator == "\t" else "items.csv"
    plain, quoted = (
        lines(rows, separator, header, how) for rows, header, how in ((many, ("item", "title", "brand"), str), (THINGS, None, quote))
    )
    write(tmp_path, interactions__csv=lines(ROWS), **{name: plain + quoted})
    corpus = load_custom(tmp_path, "any").corpus
    assert corpus.titles[5000:] == [title for _, title, _ in THINGS]
