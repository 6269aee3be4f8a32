import datetime as dt
import shlex

import numpy as np
import polars as pl
import pytest

import data.sources.custom
from data.custom import _split_of, main
from data.filters import Filters
from data.processed import DataConfig, RecDataset, load_corpus, load_items
from data.schemas import UserError
from data.sources.custom import load_custom
from tests.examples import Example
from tests.synthetic import to_lists, write_atomic, write_embeddings, write_tables

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\nbo\t30\t5\t20\nann\t10\t3\t7\nbo\t10\t1\t10\nbo\t30\t5\t20\n"
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tcountry_code:token\n"
    '10\tToy "Story\t1995\tAnimation Comedy\tus\n20\t\t\t\t\n30\tunknown\tunknown\tunknown\t\n40\tM (1931)\t1931\tCrime\tde\n'
)


def write(folder, inter=INTER, item=ITEM, name="tiny"):
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for kind, content in (("inter", inter), ("item", item)):
        (raw / f"{name}.{kind}").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_atomic_files_become_a_corpus(tmp_path):
    corpus, notes = load_custom(write(tmp_path), "tiny")
    assert corpus.item_keys == ["10", "20", "30", "40"]
    assert corpus.user_keys == ["bo", "ann"]
    assert to_lists(corpus.histories) == [[0, 2], [0]]
    assert corpus.titles == ['Toy "Story (1995)', "20", "unknown", "M (1931)"]
    assert corpus.texts == [
        'Title: Toy "Story; Year: 1995; Genres: Animation, Comedy; Country code: us',
        "Title: 20",
        "Title: unknown; Year: unknown; Genres: unknown",
        "Title: M (1931); Year: 1931; Genres: Crime; Country code: de",
    ]
    assert corpus.categories == ["Animation, Comedy", "", "unknown", "Crime"]
    assert any("1 rows repeat" in note for note in notes)
    assert any("1 of 4 items have no title" in note for note in notes)


def test_windows_line_ends_and_a_byte_order_mark_read_the_same(tmp_path):
    plain = load_custom(write(tmp_path / "a"), "tiny").corpus
    other = load_custom(write(tmp_path / "b", "\ufeff" + INTER.replace("\n", "\r\n"), ITEM.replace("\n", "\r\n")), "tiny").corpus
    assert plain[:4] == other[:4]
    assert to_lists(plain.histories) == to_lists(other.histories)


def test_the_title_may_stand_in_any_column_and_leads_the_text(tmp_path):
    item = "item_id:token\tprice:float\tproduct_name:token_seq\n10\t2.5\tSoap\n30\tnan\tOil\n"
    corpus = load_custom(write(tmp_path, item=item), "tiny").corpus
    assert corpus.titles == ["Soap", "Oil"]
    assert corpus.texts == ["Product name: Soap; Price: 2.5", "Product name: Oil"]


def test_the_planted_order_is_read_back(tmp_path):
    truth = write_atomic(tmp_path, num_users=30, num_items=40)
    corpus = load_corpus(DataConfig(RecDataset.CUSTOM, str(tmp_path), "tiny"))
    rows = {key: row for row, key in enumerate(corpus.user_keys)}
    histories = to_lists(corpus.histories)
    assert [histories[rows[f"u{user + 1}"]] for user in range(30)] == truth.histories


@pytest.mark.parametrize(
    ("inter", "item", "sentence"),
    [
        (
            INTER.replace("user_id", "uid"),
            ITEM,
            r"tiny.inter:1 has no column for the user \(such as user, user_id\), only uid, item_id, rating, timestamp",
        ),
        (
            INTER.replace("timestamp", "when"),
            ITEM,
            r"tiny.inter:1 has no column for the timestamp, though when may be one.*set train.columns = \[\"timestamp=when\"\]",
        ),
        (INTER, ITEM.replace("item_id", "key"), "tiny.item:1 has no column for the item"),
        (INTER, ITEM.replace("class", "movie_title"), "tiny.item:1 has the column 'movie_title' twice"),
        (INTER + "ann\t10\n", ITEM, "tiny.inter:6 does not have 4 tab-separated fields"),
        (INTER.replace("ann\t10", "\nann\t10"), ITEM, "tiny.inter:3 does not have 4 tab-separated fields"),
        (INTER + "ann\t99\t1\t1\n", ITEM, "tiny.inter:6 has an item that tiny.item lacks"),
        (INTER + "ann\t10\t1\tsoon\n", ITEM, "tiny.inter:6 has a timestamp that is no number"),
        (INTER + "ann\t10\t1\tnan\n", ITEM, "tiny.inter:6 has a timestamp that is no number"),
        (INTER + "\t10\t1\t1\n", ITEM, "tiny.inter:6 has an empty user"),
        (INTER.encode() + b"\xff\t10\t1\t1\n", ITEM, "tiny.inter:6 is not UTF-8"),
        (INTER, ITEM + "10\tagain\t\t\t\n", "tiny.item:6 repeats an item"),
        (INTER, ITEM + "\tnone\t\t\t\n", "tiny.item:6 has an empty item"),
        (INTER.splitlines()[0] + "\n", ITEM, "tiny.inter has a header and no rows"),
        ("", ITEM, "tiny.inter is empty"),
        (INTER, "", "tiny.item is empty"),
    ],
)
def test_a_bad_line_is_named(tmp_path, inter, item, sentence):
    with pytest.raises(UserError, match=sentence):
        load_custom(write(tmp_path, inter, item), "tiny")
    assert not (tmp_path / "processed").exists()


def test_times_may_have_fractions(tmp_path):
    corpus = load_custom(write(tmp_path, INTER.replace("\t20\n", "\t9.5\n")), "tiny").corpus
    assert to_lists(corpus.histories) == [[2, 0], [0]]


def test_missing_files_are_told_with_the_way_to_get_them(tmp_path):
    (tmp_path / "shop.inter").write_text("")
    with pytest.raises(
        UserError, match=r"no interactions.csv and items.csv, .*raw \(there lies shop.inter\).*dataset_split = 'shop'.*put them"
    ):
        load_custom(tmp_path, "mine")
    with pytest.raises(UserError, match=r"python -m data.quick"):
        load_custom(tmp_path, "ml-100k")
    with pytest.raises(UserError, match=r"dataset_split is '../x'"):
        load_custom(tmp_path, "../x")


def test_the_cache_is_used_until_a_file_changes(tmp_path, monkeypatch):
    builds = []
    read = data.sources.custom.read_custom
    monkeypatch.setattr(data.sources.custom, "read_custom", lambda *paths: builds.append(1) or read(*paths))
    write(tmp_path)
    load_custom(tmp_path, "tiny")
    load_custom(tmp_path, "tiny")
    assert len(builds) == 1
    write(tmp_path, item=ITEM.replace("Toy", "Boy"))
    assert load_custom(tmp_path, "tiny").corpus.titles[0] == 'Boy "Story (1995)'
    assert len(builds) == 2


ROWS = [("bo", 30, 20, 5.0), ("ann", 10, 7, 3.0), ("bo", 10, 10, 1.0)]
THINGS = [(10, "Soap, mild", "Elm"), (20, None, None), (30, "Oil", None)]


def write_kind(folder, kind, rows=ROWS, things=THINGS, names=("user", "item", "timestamp", "rating"), labels=("item", "title", "brand")):
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "interactions": pl.DataFrame(rows, schema=list(names), orient="row"),
        "items": pl.DataFrame(things, schema=list(labels), orient="row"),
    }
    for stem, table in tables.items():
        path = folder / f"{stem}.{kind}"
        if kind == "parquet":
            table.write_parquet(path)
        elif kind == "jsonl":
            table.write_ndjson(path)
        else:
            table.write_csv(path, separator="\t" if kind == "tsv" else ",", quote_style="never" if kind == "tsv" else "necessary")
    return folder


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_corpus(tmp_path, kind):
    corpus, notes = load_custom(write_kind(tmp_path, kind), "any")
    assert corpus.item_keys == ["10", "20", "30"]
    assert corpus.titles == ["Soap, mild", "20", "Oil"]
    assert corpus.texts == ["Title: Soap, mild; Brand: Elm", "Title: 20", "Title: Oil"]
    assert corpus.user_keys == ["bo", "ann"]
    assert to_lists(corpus.histories) == [[0, 2], [0]]
    assert len(notes) == 2


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_columns_go_by_other_names_where_they_are_named(tmp_path, kind):
    folder = write_kind(tmp_path, kind, names=("uid", "sku", "when", "stars"), labels=("sku", "label", "brand"))
    columns = ("user=uid", "item=sku", "timestamp=when", "rating=stars", "title=label", "text=brand")
    corpus = load_custom(folder, "any", Filters(min_rating=2.0), columns).corpus
    assert to_lists(corpus.histories) == [[2], [0]]
    assert corpus.texts[0] == "Label: Soap, mild; Brand: Elm"
    with pytest.raises(UserError, match="no column for the item"):
        load_custom(folder, "any")


def test_lists_and_moments_of_parquet_are_understood(tmp_path):
    moments = [dt.datetime(2020, 1, day, tzinfo=dt.UTC) for day in (3, 1, 2)]
    rows = [(user, item, moment, rating) for (user, item, _, rating), moment in zip(ROWS, moments)]
    folder = write_kind(tmp_path, "parquet", rows, [(10, "Soap", ["a", "b"]), (30, "Oil", None)], labels=("item", "title", "tags"))
    corpus = load_custom(folder, "any").corpus
    assert corpus.texts == ["Title: Soap; Tags: a, b", "Title: Oil"]
    assert corpus.times.tolist() == [moments[2].timestamp(), moments[0].timestamp(), moments[1].timestamp()]


def test_values_that_change_their_type_in_jsonl_are_read_as_text(tmp_path):
    (tmp_path / "interactions.jsonl").write_text('{"user": 1, "item": "a", "timestamp": 5}\n{"user": "x", "item": "a", "timestamp": "6"}\n')
    (tmp_path / "items.jsonl").write_text('{"item": "a", "title": "A", "price": 3}\n{"item": "b", "title": "B", "price": "free"}\n')
    corpus = load_custom(tmp_path, "any").corpus
    assert corpus.user_keys == ["1", "x"]
    assert corpus.texts == ["Title: A; Price: 3", "Title: B; Price: free"]


def test_ids_alone_are_enough_with_embeddings_and_refused_without(tmp_path):
    folder = write_kind(tmp_path, "csv", things=[(10,), (30,)], labels=("item",))
    config = DataConfig(RecDataset.CUSTOM, str(folder), "any")
    corpus = load_corpus(config)
    np.save(tmp_path / "v.npy", np.eye(2, dtype=np.float32))
    assert load_items(config, corpus, str(tmp_path / "v.npy"), "no model").embeddings.shape == (2, 2)
    with pytest.raises(UserError, match=r"nothing is known of the items .* but their ids"):
        load_items(config, corpus, None, "no model")


def test_all_that_is_wrong_is_told_together(tmp_path):
    folder = write_kind(tmp_path, "csv", rows=[*ROWS, ("", 10, 1, 1.0), ("bo", 99, 1, 1.0)], things=[*THINGS, (10, "Again", None)])
    with pytest.raises(UserError) as caught:
        load_custom(folder, "any")
    places = [str(sentence).split("/")[-1].split(" ")[0] for sentence in caught.value.args]
    assert places == ["items.csv:5", "interactions.csv:5", "interactions.csv:6"]


def test_the_checker_says_what_it_understood(tmp_path, capsys):
    write_atomic(tmp_path, "mine", 30, 40)
    write_embeddings(tmp_path / "v.npy", 40)
    assert main([str(tmp_path), "--embeddings", str(tmp_path / "v.npy")]) == 0
    printed = capsys.readouterr().out
    for words in ("30 users, 40 items", "lengths", "1998-07-", "cold items", "32 wide", "Title: Story No. 1", "dataset_split=mine"):
        assert words in printed
    (tmp_path / "raw" / "mine.inter").write_text("user_id\titem_id\ttimestamp\nann\t99\tsoon\n")
    assert main([str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "mine.inter:2 has an item that mine.item lacks" in printed.err
    assert "mine.inter:2 has a timestamp that is no number" in printed.err


def test_one_user_with_one_item_is_understood_and_told(tmp_path, capsys):
    write_kind(tmp_path, "csv", rows=ROWS[:1])
    assert main([str(tmp_path)]) == 0
    assert "nothing to train on" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no directory" in capsys.readouterr().err


def test_a_fault_in_many_lines_names_the_first_few_and_counts_them(tmp_path):
    rows = "".join(f"u\t{999 if line > 5 else 10}\t{line}\t3.0\n" for line in range(2, 20))
    with pytest.raises(UserError, match=r"tiny\.inter:6 has an item .* \(also 7, 8, 9, 10, 11, \.\.\.; 14 in all\)$"):
        load_custom(write(tmp_path, INTER.splitlines(keepends=True)[0] + rows), "tiny")


def test_the_category_may_be_a_column_of_any_name(tmp_path):
    item = "item_id:token\tname:token\tshelf:token\n10\tSoap\tBath\n30\tOil\t\n"
    corpus = load_custom(write(tmp_path, item=item), "tiny", columns=["category=shelf"]).corpus
    assert corpus.categories == ["Bath", ""]
    with pytest.raises(UserError, match="names shop; the items have only"):
        load_custom(tmp_path, "tiny", columns=["category=shop"])


def test_a_column_s_name_cannot_bring_control_characters_into_the_texts(tmp_path):
    item = "item_id:token\tna\x1bme:token\tti\ufefftle:token\n10\tSoap\tOil\n30\tOil\t\n"
    assert load_custom(write(tmp_path, item=item), "tiny").corpus.texts == ["Na me: Soap; Ti tle: Oil", "Na me: Oil"]


TIMES = [dt.time(1), dt.time(2), dt.time(3)]
ODD = {
    "a list as time": ({"timestamp": [[5], [6], [7]]}, "timestamp holds List"),
    "a time of day": ({"timestamp": TIMES}, "timestamp holds Time"),
    "a duration": ({"timestamp": [dt.timedelta(1)] * 3}, "timestamp holds Duration"),
    "truth as time": ({"timestamp": [True, False, True]}, "timestamp holds Boolean"),
    "a list as rating": ({"rating": [[5.0], [4.0], [3.0]]}, "rating holds List"),
    "a moment as rating": ({"rating": [dt.datetime(2011, 1, 1)] * 3}, "rating holds Datetime"),
    "bytes as ids": ({"user": [b"a", b"b", b"a"]}, "user holds Binary; expected ids as text or whole numbers"),
    "fractions as ids": ({"user": [1.0, 2.0, float("nan")]}, "user holds Float64; expected ids"),
    "a time beyond 63 bits": ({"timestamp": [1, 2, 2**64 - 1]}, "row 3 has a timestamp that is no number"),
    "a blank id": ({"user": ["a", " ", "b"]}, "row 2 has an empty user"),
    "a line break in an id": ({"user": ["a", "b", "c\nd"]}, "row 3 has a user with a line break"),
}


@pytest.mark.parametrize("name", ODD)
def test_columns_of_odd_kinds_are_refused_in_a_sentence(tmp_path, name):
    changes, sentence = ODD[name]
    columns = {"user": ["a", "b", "a"], "item": ["x", "y", "y"], "timestamp": [1, 2, 3], "rating": [3.0, 4.0, 5.0]} | changes
    pl.DataFrame(columns).write_parquet(tmp_path / "interactions.parquet")
    (tmp_path / "items.csv").write_text("item,title\nx,Soap\ny,Oil\n")
    with pytest.raises(UserError, match=sentence):
        load_custom(tmp_path, "tiny")


def test_decimals_keep_their_fractions_and_categories_are_text(tmp_path):
    rating = pl.Series([4.4, 4.5, 4.9]).cast(pl.Decimal(6, 2))
    moment = pl.Series([1.5, 1.7, 2.0]).cast(pl.Decimal(6, 2))
    user = pl.Series(["a", "a", "a"]).cast(pl.Categorical)
    frame = pl.DataFrame({"user": user, "item": ["x", "y", "z"], "timestamp": moment, "rating": rating})
    frame.write_parquet(tmp_path / "interactions.parquet")
    (tmp_path / "items.csv").write_text("item,title\nx,Soap\ny,Oil\nz,Wax\n")
    corpus = load_custom(tmp_path, "tiny", Filters(min_rating=4.5)).corpus
    assert to_lists(corpus.histories) == [[1, 2]]
    assert corpus.times.tolist() == [1.7, 2.0]


def test_large_whole_times_beside_a_fraction_are_refused_not_rounded(tmp_path):
    inter = "user\titem\ttimestamp\na\t10\t1600000000000000001\na\t30\t1600000000000000002\nb\t10\t1.5\n"
    with pytest.raises(UserError, match=r"inter:2 has a timestamp beyond 2\^53, which a column with fractions cannot hold"):
        load_custom(write(tmp_path, inter), "tiny")


def test_a_column_may_take_the_role_of_another_that_bears_its_name(tmp_path):
    (tmp_path / "items.csv").write_text("sku,item,title\nx,1,Soap\ny,2,Oil\n")
    (tmp_path / "interactions.csv").write_text("user,sku,timestamp\na,x,1\na,y,2\n")
    assert load_custom(tmp_path, "tiny", columns=["item=sku"]).corpus.item_keys == ["x", "y"]


def test_a_stray_quote_does_not_swallow_lines(tmp_path):
    (tmp_path / "items.csv").write_text("item,title\nx,Soap\n")
    (tmp_path / "interactions.csv").write_text('user,item,timestamp\na,x,1\n"u,x,2\nb,x,3\nc",x,4\n')
    with pytest.raises(UserError, match=r"interactions.csv:\d has a user with a line break or another control character in it; look for a"):
        load_custom(tmp_path, "tiny")


def test_the_column_called_title_is_the_title_and_genres_of_two_words_stay_whole(tmp_path):
    (tmp_path / "items.csv").write_text(
        "item,brand_name,title,genre\nx,Elm,Soap,Science Fiction\ny,Fir,Oil,Film Noir|Science Fiction\nnan,,,\n"
    )
    (tmp_path / "interactions.csv").write_text("user,item,timestamp\na,x,1\na,y,2\n")
    corpus = load_custom(tmp_path, "tiny").corpus
    assert corpus.titles == ["Soap", "Oil", "nan"]
    assert corpus.categories == ["Science Fiction", "Film Noir, Science Fiction", ""]
    assert corpus.texts[2] == "Title: nan"


def test_the_next_command_repeats_what_was_given_and_can_be_run(tmp_path, capsys):
    folder = tmp_path / "my data"
    folder.mkdir()
    (folder / "mine.items.csv").write_text("sku,title\nx,Soap\ny,Oil\n")
    (folder / "mine.interactions.csv").write_text("user,sku,timestamp\na,y,1\na,y,2\n")
    assert main([str(folder), "--columns", "item=sku", "--k-core", "1"]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[2:] == [
        "train_rqvae.py",
        "configs/rqvae_custom.gin",
        f"dataset_folder={folder}",
        "dataset_split=mine",
        'columns=["item=sku"]',
        "k_core=1",
    ]


def test_all_columns_that_are_missing_are_told_at_once(tmp_path):
    (tmp_path / "items.csv").write_text("sku,label\nx,Soap\n")
    (tmp_path / "interactions.csv").write_text("uid,sku,when\na,x,1\n")
    with pytest.raises(UserError) as caught:
        load_custom(tmp_path, "tiny")
    items, rows = caught.value.args
    assert "items.csv:1 has no column for the item (such as item, item_id), only sku, label; " in items
    assert items.endswith('train.columns = ["item=NAME"] (by number where there is no header)')
    assert (
        "interactions.csv:1 has no column for the user (such as user, user_id) and none for the item (such as item, item_id) and none"
        in rows
    )
    assert rows.endswith('train.columns = ["user=NAME", "item=NAME", "timestamp=when"] (by number where there is no header)')


@pytest.mark.parametrize("values", [("2020-01-01", "2020-01-02"), ("1600000000", "1600000001"), ("1600000000000", "1600000001000")])
def test_a_column_that_could_be_the_times_is_not_passed_over(tmp_path, values):
    (tmp_path / "items.csv").write_text("item,title\nx,Soap\n")
    (tmp_path / "interactions.csv").write_text(f"user,item,seen\na,x,{values[0]}\na,x,{values[1]}\n")
    with pytest.raises(UserError, match=r"no column for the timestamp, though seen may be one, .*\[\"timestamp=seen\"\]"):
        load_custom(tmp_path, "tiny")
    assert len(load_custom(tmp_path, "tiny", columns=["timestamp=seen"]).corpus.times) == 2


def test_the_checker_takes_what_the_scripts_take(tmp_path, capsys):
    (tmp_path / "items.csv").write_text("sku,title\nx,Soap\ny,Oil\n", encoding="utf-16")
    (tmp_path / "interactions.csv").write_text("uid,sku,stars\na,y,1\na,x,5\na,y,5\nb,z,5\n")
    given = [
        'columns=["user=uid", "item=sku", "rating=stars"]',
        "min_rating=2",
        "unlisted_items=drop",
        "max_history=9",
        'dataset_split="mine"',
    ]
    assert main([str(tmp_path), *given]) == 0
    printed = capsys.readouterr().out
    assert "1 users, 2 items, 2 interactions" in printed
    assert "time          none; the order of the file" in printed
    assert shlex.split(printed.splitlines()[-1])[4:] == [
        f"dataset_folder={tmp_path}",
        "dataset_split=mine",
        'columns=["user=uid", "item=sku", "rating=stars"]',
        "min_rating=2",
        "max_history=9",
        "unlisted_items=drop",
    ]
    for wrong, sentence in (
        ("vae_input_dim=3", "'vae_input_dim=3' is nothing that is checked here; expected name=value with one of dataset_folder"),
        ("k_core=many", "k_core is 'many'; expected a number from 0 up"),
        ("cold_items=3", "cold_items is '3'; expected True or False"),
        ("unlisted_items=lose", "unlisted_items is 'lose'; expected refuse, drop or keep"),
        ("encoding=hex", "encoding is 'hex'; expected one that Python knows"),
    ):
        assert main([str(tmp_path), wrong]) == 2
        assert sentence in capsys.readouterr().err


def test_the_checker_says_what_cannot_be_held_out_or_hit(tmp_path, capsys):
    (tmp_path / "items.csv").write_text("item,title\nx,Soap\ny,Oil\nz,Wax\n")
    (tmp_path / "interactions.csv").write_text("user,item,timestamp\na,x,1600000000000\na,y,1600000001000\nb,x,1600000002000\n")
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "note          no user has three items, so none can be held out for validation and test" in printed
    assert "timestamp counts milliseconds and was read so" in printed
    assert "time          2020-09-13 to 2020-09-13" in printed
    (tmp_path / "interactions.csv").write_text("user,item,timestamp\n" + "".join(f"a,{key},{step}\n" for step, key in enumerate("xyzxz")))
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "note          warning: 1 of 1 held-out items are in the user's own history and cannot be hit" in printed
    assert "time          0 to 4, which are no dates" in printed


@pytest.mark.parametrize(("name", "split"), [("shop.txt", "shop"), ("shop.train.inter", "shop"), ("shop.interactions.csv.gz", "shop")])
def test_the_checker_finds_the_files_name(tmp_path, name, split):
    (tmp_path / name).touch()
    assert _split_of(tmp_path) == split


EXAMPLES = [Example(RecDataset.CUSTOM, "mine", write_tables), Example(RecDataset.CUSTOM, "ml-100k", write_atomic)]
