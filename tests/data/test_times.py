"""Times in every unit and spelling, and what they do not order."""

import datetime as dt
from pathlib import Path

import polars as pl
import pytest
import torch

from data.io.tables import Table
from data.schemas import UserError
from data.sources.custom import load_custom
from data.times import UNITS, holds_dates, read_times, show_moment, tie_note
from tests.synthetic import to_lists

SECONDS = [1_600_894_425, 1_600_976_854, 1_601_058_511, 946_684_800]
ISO = ["2020-09-23 20:53:45", "2020-09-24T19:47:34Z", "2020-09-25T20:28:31+02:00", "2000-01-01"]


def table(values, dtype=None) -> Table:
    return Table(Path("here"), pl.DataFrame({"timestamp": pl.Series(values, dtype=dtype)}), lambda row: f"here:{row + 2}")


def seconds(values, dtype=None) -> list:
    return read_times(table(values, dtype), "timestamp").seconds.to_list()


@pytest.mark.parametrize("as_text", [False, True], ids=["numbers", "text"])
@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_becomes_seconds_and_is_told(unit, as_text):
    ticks = [second * UNITS[unit] for second in SECONDS]
    times = read_times(table([str(tick) for tick in ticks] if as_text else ticks), "timestamp")
    assert times.seconds.to_list() == SECONDS
    assert times.seconds.dtype == pl.Int64
    assert times.notes == ([] if unit == "seconds" else [f"here: timestamp counts {unit} and was read so"])


def test_fractions_of_a_second_stay():
    assert seconds([1_600_894_425_250, 1_600_894_425_000]) == [1_600_894_425.25, 1_600_894_425.0]
    assert seconds([1_600_894_425.25, 1.0]) == [1_600_894_425.25, 1.0]


@pytest.mark.parametrize("numbers", [[0, 1, 2], [5_000, 10**6, 3], [-1, 7, 2**36], [0.5, 0.25, 1.0], [20_200_923, 20_200_924, 20_200_925]])
def test_numbers_that_are_no_dates_stay_as_they_are(numbers):
    times = read_times(table(numbers), "timestamp")
    assert times.seconds.to_list() == numbers
    assert times.notes == []


def test_iso_dates_are_read_as_parquet_s_are():
    moments = [dt.datetime.fromtimestamp(second, dt.UTC) for second in SECONDS]
    assert seconds(ISO) == seconds(moments) == SECONDS
    spelled = [
        "2020-09-23 20:53",
        "2020/09/23 20:53:00",
        " 2020-09-23t20:53:00.000 utc ",
        "2020-09-23T20:53:00,5",
        "2020-09-23T15:53:00-0500",
    ]
    assert seconds(spelled) == [1_600_894_380.0 + extra for extra in (0, 0, 0, 0.5, 0)]


@pytest.mark.parametrize("small", list(UNITS)[:-1])
@pytest.mark.parametrize("as_text", [False, True], ids=["numbers", "text"])
def test_two_units_in_a_column_are_refused_with_a_line_of_each(small, as_text):
    large = list(UNITS)[list(UNITS).index(small) + 1]
    values = [SECONDS[0] * UNITS[small], SECONDS[1] * UNITS[small], SECONDS[2] * UNITS[large]]
    with pytest.raises(UserError) as caught:
        seconds([str(value) for value in values] if as_text else values)
    assert str(caught.value) == (
        f"here:2 has {values[0]} (2020-09-23 in {small}); 4 has {values[2]} (2020-09-25 in {large}): timestamp has two units; "
        "write all of them in one, as unix seconds"
    )


@pytest.mark.parametrize("odd", ["23/09/2020", "Sep 23, 2020", "yesterday", "nan", "2020-13-40", "1e400"])
def test_another_form_is_quoted_beside_the_known_ones(odd):
    for others in ([str(second) for second in SECONDS], ISO):
        with pytest.raises(UserError, match=r"here:6 has a timestamp that is no number and no date such as 2020-09-23 20:53:45 \('"):
            seconds([*others, odd])


def test_numbers_and_dates_in_one_column_are_refused_with_a_line_of_each():
    with pytest.raises(UserError) as caught:
        seconds([ISO[0], ISO[1], str(SECONDS[2]), ISO[3]])
    assert str(caught.value).startswith(
        f"here:2 has the timestamp '2020-09-23 20:53:45' and 4 has '{SECONDS[2]}': numbers and dates stand in"
    )


def test_nanoseconds_too_close_for_seconds_keep_their_order(tmp_path):
    first = 1_600_000_000_000_000_000
    rows = [("a", "y", first + 2), ("a", "x", first + 1), ("a", "z", first + 3)]
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_csv(tmp_path / "interactions.csv")
    (tmp_path / "items.csv").write_text("item,title\nx,Soap\ny,Oil\nz,Wax\n")
    assert to_lists(load_custom(tmp_path, "any").corpus.histories) == [[0, 1, 2]]


def test_seconds_that_were_float32_are_told():
    numbers = [float(torch.tensor(1_600_000_000.0 + 1000 * step)) for step in range(40)]
    for column in (table(numbers, pl.Float32), table([f"{number:.1f}" for number in numbers])):
        assert "was float32, which keeps seconds of today to the nearest 128 only" in read_times(column, "timestamp").notes[0]
    days = [1_599_955_200 + 86_400 * step for step in range(40)]  # whole days are multiples of 128 too
    assert read_times(table(days), "timestamp").notes == []


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("value", "told"), [(0, "before 1990"), (-1, "before 1990"), (2**62, "after 2099")])
def test_a_number_that_stands_for_a_missing_time_is_told_and_leaves_the_unit(value, told, unit):
    moments = [SECONDS[0] + step for step in range(19)]
    times = read_times(table([*(moment * UNITS[unit] for moment in moments), value]), "timestamp")
    assert times.seconds.to_list()[:19] == moments
    place = "oldest" if value <= 0 else "most recent"
    who = f"here: 1 of 20 interactions have a timestamp {told} (the first is 21)"
    assert times.notes[0] == f"{who} and count as the {place} of their users; remove them if that is no time"


def test_dates_far_from_the_others_are_told():
    dates = [f"2020-09-{day}" for day in range(10, 30)]
    notes = read_times(table([*dates, "1970-01-01", "9999-12-31"]), "timestamp").notes
    assert [note.split(" (")[0] for note in notes] == [
        f"here: 1 of 22 interactions have a timestamp {told}" for told in ("before 1990", "after 2099")
    ]
    assert read_times(table(["1970-01-01", "1971-01-01", *dates[:2]]), "timestamp").notes == []


@pytest.mark.parametrize("kind", [pl.Int32, pl.UInt32, pl.UInt64])
def test_whole_numbers_of_every_width_are_times(kind):
    assert seconds(SECONDS, kind) == SECONDS
    assert holds_dates(pl.Series(SECONDS, dtype=kind))
    assert not holds_dates(pl.Series([1, 2, 3], dtype=pl.Int8))


def test_ties_are_told_where_they_are_many():
    users, times = [0] * 10 + [1] * 10, [*range(5), *range(10, 15), *[7] * 10]
    assert tie_note("here", pl.DataFrame({"user": users, "time": times})) == [
        "here: 50 % of interactions share their time with another of the same user; the file's order decides there"
    ]
    assert tie_note("here", pl.DataFrame({"user": range(20), "time": [7] * 20})) == []
    few = [*range(396), 395, 395, 395, 395]
    assert tie_note("here", pl.DataFrame({"user": [0] * 400, "time": few})) == []


def test_moments_are_shown_as_dates_and_other_numbers_as_they_are():
    assert [show_moment(second) for second in (1_600_894_425, 5, 16_000.5)] == ["2020-09-23", "5", "16,000.5"]


def test_columns_that_could_be_times_are_found():
    assert holds_dates(pl.Series(ISO))
    assert holds_dates(pl.Series([second * 1000 for second in SECONDS]))
    assert not any(holds_dates(pl.Series(values)) for values in ([1, 2], ["a", "b"], ["2020-01-01", "x"], [], [1_600_000_000, 3]))
