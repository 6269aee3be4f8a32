import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.corpus import MAX_TITLE, Catalogue
from data.filters import Filters, assemble, k_core, most_recent
from data.schemas import UserError
from tests.synthetic import to_histories, to_lists

SMALL = st.integers(0, 3)
KEYS = [str(item) for item in range(10)]
CATALOGUE = Catalogue(KEYS, [f"title {key}" for key in KEYS], [f"text {key}" for key in KEYS], [""] * 10)


def table(rows, names=("user", "item", "time", "rating")):
    columns = list(zip(*rows)) or [[]] * len(names)
    return pl.DataFrame({name: list(column) for name, column in zip(names, columns)})


def test_interactions_are_ordered_by_time_with_ties_in_source_order_and_duplicates_dropped():
    rows = [(1, 9, 50), (0, 3, 20), (0, 5, 10), (1, 8, 50), (0, 4, 20), (0, 3, 20), (0, 3, 30), (1, 9, 50), (3, 1, 0)]
    corpus, notes = assemble("here", "there", CATALOGUE, table(rows), Filters())
    assert corpus.user_keys == ["1", "0", "3"]
    assert to_lists(corpus.histories) == [[9, 8], [5, 3, 4, 3], [1]]
    assert corpus.times.tolist() == [50, 50, 10, 20, 20, 30, 0]
    assert any("here: 2 rows repeat" in note for note in notes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30),
    st.integers(0, 3),
    st.integers(0, 4),
)
def test_assembling_agrees_with_plain_lists(rows, core, longest):
    distinct = list(dict.fromkeys(rows))
    left = distinct
    while True:
        users, items = ([row[column] for row in left] for column in (0, 1))
        fewer = [row for row in left if users.count(row[0]) >= core and items.count(row[1]) >= core]
        if fewer == left:
            break
        left = fewer
    expected = {}
    for user, item, _ in sorted(left, key=lambda row: row[2]):
        expected.setdefault(str(user), []).append(item)
    cut = {user: items[-longest:] if longest else items for user, items in expected.items()}
    filters = Filters(k_core=core, max_history=longest)
    if not left:
        with pytest.raises(UserError, match="no interaction"):
            assemble("here", "there", CATALOGUE, table(rows), filters)
        return
    corpus, _ = assemble("here", "there", CATALOGUE, table(rows), filters)
    assert dict(zip(corpus.user_keys, to_lists(corpus.histories))) == cut
    assert corpus.user_keys == [user for user in dict.fromkeys(str(row[0]) for row in rows) if user in cut]


def test_the_core_is_a_fixed_point():
    # Dropping user 2 leaves item 9 with one row, which leaves user 1 with one, and so on: one pass is not enough.
    rows = [(0, 1), (0, 2), (3, 1), (3, 2), (1, 1), (1, 9), (2, 9)]
    left = k_core(table(rows, ("user", "item")), 2)
    assert left.rows() == [(0, 1), (0, 2), (3, 1), (3, 2)]
    assert k_core(table(rows, ("user", "item")), 0).height == len(rows)


def test_the_minimum_rating_comes_before_the_core():
    rows = [(0, 1, 1, 5), (0, 2, 2, 5), (1, 1, 1, 5), (1, 2, 2, 1)]
    corpus, notes = assemble("here", "there", CATALOGUE, table(rows), Filters(min_rating=3))
    assert to_lists(corpus.histories) == [[1, 2], [1]]
    assert "1 of 4 interactions are rated below 3" in notes[0]
    with pytest.raises(UserError, match=r"no interaction that train.min_rating = 3 and train.k_core = 2 leave"):
        assemble("here", "there", CATALOGUE, table(rows), Filters(min_rating=3, k_core=2))
    with pytest.raises(UserError, match=r"no ratings; set train.min_rating = 0"):
        assemble("here", "there", CATALOGUE, table([(0, 1, 1)]), Filters(min_rating=3))


def test_cold_items_stay_or_go():
    rows = [(0, 7, 1), (0, 2, 2)]
    warm = assemble("here", "there", CATALOGUE, table(rows), Filters(cold_items=False)).corpus
    assert (warm.item_keys, warm.titles, to_lists(warm.histories)) == (["2", "7"], ["title 2", "title 7"], [[1, 0]])
    assert assemble("here", "there", CATALOGUE, table(rows), Filters()).corpus.item_keys == KEYS


def test_the_most_recent_interactions_stay():
    histories, times = most_recent(to_histories([[1, 2, 3], [], [4]]), torch.tensor([10, 20, 30, 40]), 2)
    assert to_lists(histories) == [[2, 3], [], [4]]
    assert times.tolist() == [20, 30, 40]


def test_what_is_missing_or_too_long_is_mended_and_counted():
    catalogue = Catalogue(["a", "b", "c"], ["", "x" * 100_000, "fine"], ["", "", "text"], ["", "kind", ""])
    corpus, notes = assemble("here", "there", catalogue, table([(0, 0, 1)]), Filters())
    assert corpus.titles == ["a", "x" * MAX_TITLE, "fine"]
    assert corpus.texts == ["Title: a", "Title: b", "text"]
    assert [note.split(": ")[1].split(" ")[0] for note in notes] == ["1", "2", "1"]
