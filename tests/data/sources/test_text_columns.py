"""Which columns of somebody's items make their texts."""

import datetime as dt

import polars as pl
import pytest

from data.schemas import UserError
from data.sources.custom import load_custom
from data.sources.text_columns import NAMELESS, left_out

KEPT = {
    "brand": ["Elm", "Fir", "Oak", ""],
    "price": [1.5, 2.0, None, 3.0],
    "year": [1995, 1996, 1997, 1998],
    "pages": [30, 10, 20, 30],
    "tags": [["a", "b"], ["c"], [], None],
    "authors": ["Ann, Bo", "-", "N/A", "null"],
    "empty": [None, None, None, None],
    "size": ["12 x 30", "1/2 inch", "2-3 weeks", "10"],
    "class": ["1", "7", "3", "3"],
    "country_count": ["A1", "B2", "C3", "D4"],
    "note": ["see http://a.example for more", "soft", "http://only", "light"],
}
LEFT = {
    "row numbers": {
        f"{NAMELESS} 1": ["4", "9", "2", "7"],
        "Unnamed: 0": [3, 1, 2, 9],
        "__index_level_0__": [3, 1, 2, 9],
        "place": [0, 1, 2, 3],
        "line": ["1", "2", "3", "4"],
        "row_id": [5, 3, 2, 1],
    },
    "addresses": {
        "image": ["https://a.example/1.jpg", "http://b", "//c.example/x", ""],
        "site": ["www.a.example", "www.b.example/x?y=1", None, "www.c"],
        "file": ["img/1.jpg", "2.PNG", "x.jpeg?size=3", "-"],
        "images": [["https://a", "https://b"], ["https://c"], [], None],
    },
    "dates": {
        "added": ["2020-01-01 00:00:00", "2020-01-02", "", "2021-01-01T10:00:00Z"],
        "released": ["01-Jan-1995", "14-Feb-1996", "01-Jan-1995", ""],
        "moment": [dt.datetime(2020, 1, 1), dt.datetime(2021, 1, 1), None, None],
        "day": [dt.date(2020, 1, 1)] * 4,
        "created_at": [1_600_000_000, 1_600_000_001, 1_500_000_000, 1_400_000_000],
        "us": ["9/23/2020", "12/1/2019", "1/2/2018", "3/4/2017"],
    },
    "true or false": {"active": [True, False, None, True], "in_stock": ["True", "False", "", "true"], "new": ["yes", "no", "Yes", "N/A"]},
    "numbers in lists": {
        "vector": [[0.1, 0.2], [0.3], None, [1.0]],
        "embedding": ["[0.1, -0.2]", "[1e-3 4.5\n 3]", "[0.3]", ""],
        "fixed": pl.Series([[0.1, 0.2]] * 4, dtype=pl.Array(pl.Float32, 2)),
    },
    "nested": {"details": [{"a": 1}] * 4, "json": ["{'a': 1}", '{"b": 2}', "{}", ""], "many": [[{"a": 1}]] * 4},
    "bytes": {"picture": [b"a", b"b", b"c", b"d"]},
    "codes": {"hash": ["0123456789abcdef0123", "fedcba98765432100000", "", None], "uuid": ["123e4567-e89b-12d3-a456-426614174000"] * 4},
    "figures of popularity": {"sales_rank": [1234.5, 3.0, 9.0, 1.0], "rating_number": [5, 3, 2, 7], "numVotes": ["10", "5", "", "7"]},
}


@pytest.mark.parametrize("name", KEPT)
def test_columns_of_words_and_plain_numbers_stay(name):
    assert left_out(pl.DataFrame({name: KEPT[name]}), [name]) == {}


@pytest.mark.parametrize(("reason", "name"), [(reason, name) for reason, columns in LEFT.items() for name in columns])
def test_columns_that_say_nothing_are_left_out_with_the_reason(reason, name):
    assert left_out(pl.DataFrame({name: LEFT[reason][name]}), [name]) == {name: reason}


ROWS = "user,item,timestamp\na,x,1\na,y,2\n"


def test_the_note_says_which_columns_make_the_text_and_which_do_not(tmp_path):
    (tmp_path / "interactions.csv").write_text(ROWS)
    items = ",item,image_name,title,url,brand\n0,x,a.jpg,Mug &amp; <b>saucer</b>,http://a,-\n1,y,b.jpg,Oil,http://b,Elm\n2,z,c.jpg,Wax,http://c,\n"
    (tmp_path / "items.csv").write_text(items)
    corpus, notes = load_custom(tmp_path, "any")
    assert corpus.titles == ["Mug & saucer", "Oil", "Wax"]
    assert corpus.texts == ["Title: Mug & saucer", "Title: Oil; Brand: Elm", "Title: Wax"]
    assert notes == [
        f"{tmp_path}/items.csv: the text of an item is made of title, brand; "
        "left out: nameless column 1 (row numbers), image_name (addresses), url (addresses)"
    ]
    corpus, notes = load_custom(tmp_path, "any", columns=["text=url"])  # whoever names a column means it
    assert corpus.texts[0] == "Title: Mug & saucer; Url: http://a"
    assert notes == []


def test_a_column_of_vectors_in_parquet_is_no_text(tmp_path):
    (tmp_path / "interactions.csv").write_text(ROWS)
    frame = pl.DataFrame({"item": ["x", "y"], "title": ["Soap", "Oil"], "embedding": [[0.1, 0.2], [0.3, 0.4]]})
    frame.write_parquet(tmp_path / "items.parquet")
    corpus, notes = load_custom(tmp_path, "any")
    assert corpus.texts == ["Title: Soap", "Title: Oil"]
    assert "left out: embedding (numbers in lists)" in notes[0]


def test_rows_that_differ_in_their_number_alone_are_still_repeats_of_an_item(tmp_path):
    (tmp_path / "interactions.csv").write_text(ROWS)
    (tmp_path / "items.csv").write_text("item,title\nx,Soap\ny,Oil\nx,Soap\n")
    corpus, notes = load_custom(tmp_path, "any")
    assert corpus.item_keys == ["x", "y"]
    assert notes[0].endswith("items.csv: 1 rows repeat an earlier one in full and were dropped")
    (tmp_path / "items.csv").write_text(",item,title\n0,x,Soap\n1,y,Oil\n2,x,Soap\n")
    assert load_custom(tmp_path, "any").corpus.item_keys == ["x", "y"]
    (tmp_path / "items.csv").write_text("item,title\nx,Soap\ny,Oil\nx,Soup\n")
    with pytest.raises(UserError, match=r"items.csv:4 repeats an item"):
        load_custom(tmp_path, "any")
