import pytest

import data.custom
from data.custom import load_custom
from data.processed import DataConfig, RecDataset, load_corpus
from data.schemas import UserError
from tests.synthetic import to_lists, write_atomic

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
            INTER.replace("\t", ","),
            ITEM,
            r"tiny.inter:1 has no column for the user \(such as user, user_id\), only user_id:token,item_id:token",
        ),
        (
            INTER.replace("timestamp", "when"),
            ITEM,
            r"tiny.inter:1 has no column for the timestamp .*set train.columns = \[\"timestamp=NAME\"\]",
        ),
        (INTER, ITEM.replace("item_id", "id"), "tiny.item:1 has no column for the item"),
        (INTER, ITEM.replace("class", "movie_title"), "tiny.item:1 names a column twice"),
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
    with pytest.raises(UserError, match=r"mine.inter and mine.item not found in .*raw.*put them there"):
        load_custom(tmp_path, "mine")
    with pytest.raises(UserError, match=r"python -m data.quick"):
        load_custom(tmp_path, "ml-100k")
    with pytest.raises(UserError, match=r"dataset_split is '../x'"):
        load_custom(tmp_path, "../x")


def test_the_cache_is_used_until_a_file_changes(tmp_path, monkeypatch):
    builds = []
    read = data.custom.read_custom
    monkeypatch.setattr(data.custom, "read_custom", lambda *paths: builds.append(1) or read(*paths))
    write(tmp_path)
    load_custom(tmp_path, "tiny")
    load_custom(tmp_path, "tiny")
    assert len(builds) == 1
    write(tmp_path, item=ITEM.replace("Toy", "Boy"))
    assert load_custom(tmp_path, "tiny").corpus.titles[0] == 'Boy "Story (1995)'
    assert len(builds) == 2
