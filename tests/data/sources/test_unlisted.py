"""Items of the interactions that the file of items lacks, ids that are spelled in two ways, and no file of items at all."""

import numpy as np
import pytest

from data.processed import DataConfig, RecDataset, data_mistakes, load_corpus, load_items
from data.schemas import UserError
from data.sources.custom import load_custom
from tests.synthetic import to_lists

ROWS = "user,item,timestamp\nann,p2,1\nann,p9,2\nann,p1,3\nbo,p8,4\nbo,p2,5\nbo,p9,6\n"
ITEMS = "item,title\np1,Soap\np2,Oil\np3,Wax\n"


def write(folder, rows=ROWS, items=ITEMS):
    (folder / "interactions.csv").write_text(rows)
    if items is not None:
        (folder / "items.csv").write_text(items)
    return folder


def test_unlisted_items_are_refused_with_an_id_of_each_file(tmp_path):
    expected = (
        r"interactions.csv:3 has an item that items.csv lacks \('p9', where items.csv has ids like 'p1'\); add it there, remove the line, "
        r'or set train.unlisted_items = "drop" or "keep" \(also 5, 7; 3 in all\)$'
    )
    with pytest.raises(UserError, match=expected):
        load_custom(write(tmp_path), "any")


def test_unlisted_items_are_dropped_and_counted(tmp_path):
    corpus, notes = load_custom(write(tmp_path), "any", unlisted="drop")
    assert corpus.item_keys == ["p1", "p2", "p3"]
    assert to_lists(corpus.histories) == [[1, 0], [1]]
    assert corpus.times.tolist() == [1, 3, 5]
    assert notes[0].endswith("interactions.csv: 3 of 6 interactions are with 2 items that items.csv lacks and were dropped")


def test_unlisted_items_are_kept_behind_the_others_and_counted(tmp_path):
    corpus, notes = load_custom(write(tmp_path), "any", unlisted="keep")
    assert corpus.item_keys == ["p1", "p2", "p3", "p8", "p9"]
    assert corpus.texts == ["Title: Soap", "Title: Oil", "Title: Wax", "Title: p8", "Title: p9"]
    assert to_lists(corpus.histories) == [[1, 4, 0], [3, 1, 4]]
    assert "3 of 6 interactions are with 2 items that items.csv lacks; these follow the others" in notes[0]
    assert load_custom(write(tmp_path), "any", unlisted="drop").corpus.item_keys == ["p1", "p2", "p3"], "another cache"


def test_the_option_reaches_the_files_and_is_for_one_s_own_alone(tmp_path):
    config = DataConfig(RecDataset.CUSTOM, str(write(tmp_path)), "any", unlisted_items="keep")
    assert len(load_corpus(config).item_keys) == 5
    assert list(data_mistakes(DataConfig(RecDataset.ML_1M, "x", "ml-1m", unlisted_items="drop"))) == [
        "train.unlisted_items is for your own files and train.dataset is ML_1M; leave it out or set CUSTOM"
    ]
    assert list(data_mistakes(DataConfig(RecDataset.CUSTOM, "x", "any", encoding="utf-9"))) == [
        "train.encoding is 'utf-9'; expected one that Python knows, such as utf-8, cp1252, gbk or shift_jis"
    ]


SPELLINGS = {
    "a fraction of .0": (["12.0", "7.0"], ["12", "7", "9"]),
    "blanks around them": (["a ", "b "], ["a", "b", "c"]),
    "capital letters": (["A1", "B2"], ["a1", "b2", "c3"]),
    "zeros in front": (["12", "7"], ["0012", "0007", "0009"]),
    "what stands before the last number": (["item_12", "item_7"], ["12", "7", "9"]),
    "what stands before the last colon, slash or underscore": (["ns:xa", "ns:xb"], ["xa", "xb", "xc"]),
}


@pytest.mark.parametrize("unlisted", ["refuse", "drop", "keep"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("difference", SPELLINGS)
def test_ids_that_match_nowhere_are_quoted_with_what_they_differ_in(tmp_path, difference, turned, unlisted):
    strange, known = SPELLINGS[difference][::-1] if turned else SPELLINGS[difference]
    rows = "user,item,timestamp\n" + "".join(f"u,{key},{number}\n" for number, key in enumerate(strange[:2]))
    write(tmp_path, rows, "item,title\n" + "".join(f"{key},Thing\n" for key in known))
    sentence = f"interactions.csv:2 has an item that items.csv lacks ({strange[0]!r}, where items.csv has ids like {known[0]!r}"
    with pytest.raises(UserError) as caught:
        load_custom(tmp_path, "any", unlisted=unlisted)
    assert sentence in str(caught.value)
    assert f"; they differ in {difference}); write the ids alike" in str(caught.value)


def test_without_a_file_the_items_are_those_of_the_interactions_in_the_order_of_their_ids(tmp_path):
    corpus, notes = load_custom(write(tmp_path, items=None), "any")
    assert corpus.item_keys == ["p1", "p2", "p8", "p9"]
    assert to_lists(corpus.histories) == [[1, 3, 0], [2, 1, 3]]
    assert "there is no file of items; they are those of the interactions, in the order of their ids" in notes[0]
    write(tmp_path, ROWS.replace(",p", ",").replace("9", "10"), items=None)
    assert load_custom(tmp_path, "any").corpus.item_keys == ["1", "2", "8", "10"], "by number where all are numbers"


def test_without_a_file_vectors_are_enough_and_nothing_is_refused(tmp_path):
    config = DataConfig(RecDataset.CUSTOM, str(write(tmp_path, items=None)), "any")
    np.save(tmp_path / "v.npy", np.eye(4, dtype=np.float32))
    assert load_items(config, load_corpus(config), str(tmp_path / "v.npy"), "no model").embeddings.shape == (4, 4)
    with pytest.raises(UserError, match="nothing is known of the items"):
        load_items(config, load_corpus(config), None, "no model")


def test_the_item_may_be_called_otherwise_in_either_file(tmp_path):
    write(tmp_path, ROWS.replace("item", "artistID").replace("p8", "p1").replace("p9", "p3"), ITEMS.replace("item", "id"))
    for columns in (["item=artistID", "item=id"], ["item=id", "item=artistID"]):
        assert load_custom(tmp_path, "any", columns=columns).corpus.item_keys == ["p1", "p2", "p3"]
    write(tmp_path, ROWS.replace("item", "artistID").replace("p8", "p1").replace("p9", "p3"), ITEMS.replace("item", "code"))
    with pytest.raises(UserError, match=r"items.csv:1 has no column named artistID, only code, title"):
        load_custom(tmp_path, "any", columns=["item=artistID"])
    write(tmp_path)
    with pytest.raises(UserError, match=r"interactions.csv and .*items.csv have no column named sku; mend train.columns"):
        load_custom(tmp_path, "any", columns=["item=sku"], unlisted="drop")
    with pytest.raises(UserError, match=r"names item 3 times"):
        load_custom(tmp_path, "any", columns=["item=a", "item=b", "item=c"])
