"""Times of interactions that are not trusted: numbers of any unit, dates and ISO texts become unix seconds; and what they do not order."""

import datetime
from typing import TYPE_CHECKING, NamedTuple

from data.io.numbers import parse_numbers
from data.io.tables import Table
from data.schemas import UserError

if TYPE_CHECKING:
    import polars as pl

UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
"""Ticks of a second."""

ERA = (631_152_000, 4_102_444_800)
"""1990 to 2100 in seconds: a number within, in one of the units, is a date. The ranges of the units do not meet."""

ISO = (
    r"(?i)^(\d{4}[-/]\d{2}[-/]\d{2})"  # the date
    r"(?:[T ](\d{2}:\d{2})(:\d{2}(?:[.,]\d{1,9})?)?\s*(?:Z|UTC|GMT|([+-]\d{2}(?::?\d{2})?))?)?$"  # hour and minute, seconds, offset
)

SINGLE = 2**24
"""The whole number from which on float32 has gaps; at today's unix seconds they are 128 wide."""

MOSTLY = 0.9
"""Numbers are dates if so many of those from 1990 in seconds on are dates in some unit; the others may stand for a missing time."""

NOTABLE_SHARE, NOTABLE_COUNT = 0.05, 10
"""Ties are told from this share, and this number, of interactions on."""


class Times(NamedTuple):
    """One column of times."""

    seconds: "pl.Series"  # int64 where all are whole, else float64
    ticks: "pl.Series | None"  # as they were written, where seconds as float64 merge some; else None
    notes: list[str]


def read_times(table: Table, name: str) -> Times:
    """Returns a column as unix seconds; numbers that are no dates in any unit, such as the number of a step, stay as they are.

    Args:
        table: has the column as numbers, dates, or text that holds numbers or ISO dates. Dates without an offset are UTC.
        name: the column.

    Raises:
        UserError: a value that is none of these, or dates in two units.
    """
    import polars as pl

    numbers = _iso_seconds(table, name)
    if numbers is None:
        numbers = parse_numbers(table, name)
    unit = _unit(table, name, numbers)
    notes = _blur_note(table, name, numbers)
    if unit is not None:
        notes += _far_note(table, name, numbers / UNITS[unit])
    if unit in (None, "seconds"):
        return Times(numbers, None, notes)
    ticks = UNITS[str(unit)]
    whole = not numbers.dtype.is_float() and bool((numbers % ticks == 0).all())
    seconds = numbers // ticks if whole else numbers.cast(pl.Float64) / ticks
    merged = not whole and seconds.n_unique() < numbers.n_unique()
    return Times(seconds, numbers if merged else None, [*notes, f"{table.path}: {name} counts {unit} and was read so"])


def _blur_note(table: Table, name: str, numbers: "pl.Series") -> list[str]:
    """A note where seconds went through float32, told by the column's type or, in text, by the steps between its numbers."""
    import polars as pl

    steps = not table.frame[name].dtype.is_float() and numbers.n_unique() >= 20 and bool(numbers.is_between(2**30, 2**31).all())
    stepped = steps and bool((numbers % 128 == 0).all()) and not bool((numbers % 3600 == 0).all())  # whole hours are no sign of it
    if stepped or (table.frame[name].dtype == pl.Float32 and bool((numbers.abs() > SINGLE).any())):
        return [f"{table.path}: {name} was float32, which keeps seconds of today to the nearest 128 only; write whole numbers or float64"]
    return []


def _far_note(table: Table, name: str, seconds: "pl.Series") -> list[str]:
    """Notes on times outside 1990 to 2100 in a column that mostly holds dates within, such as 0 or the year 9999 for a missing one."""
    first, last = ERA
    notes = []
    for far, when, place in ((seconds < first, "before 1990", "oldest"), (seconds >= last, "after 2099", "most recent")):
        if 0 < (count := int(far.sum())) < len(seconds) / 2:
            where = table.place(int(far.arg_max() or 0)).removeprefix(f"{table.path}:")
            who = f"{count:,} of {len(seconds):,} interactions have a {name} {when} (the first is {where})"
            notes.append(f"{table.path}: {who} and count as the {place} of their users; remove them if that is no time")
    return notes


def _iso_seconds(table: Table, name: str) -> "pl.Series | None":
    """The column as seconds if it is text that holds dates rather than numbers; raises for text that is neither."""
    import polars as pl

    column = table.frame[name]
    if column.dtype not in (pl.String, pl.Categorical, pl.Enum):
        return None
    texts = column.cast(pl.String).str.strip_chars()
    if texts.cast(pl.Int64, strict=False).null_count() == 0:
        return None
    is_number = texts.cast(pl.Float64, strict=False).is_finite().fill_null(False)
    if is_number.all():
        return None
    moments = _iso_moments(texts)
    is_moment = moments.is_not_null()
    kinds = [is_number, is_moment]
    if is_number.any() and is_moment.any() and (is_number | is_moment).all():
        first, second = sorted(int(kind.arg_max() or 0) for kind in kinds)
        where = table.place(second).removeprefix(f"{table.path}:")
        what = f"{table.place(first)} has the {name} {texts[first]!r} and {where} has {texts[second]!r}"
        raise UserError(f"{what}: numbers and dates stand in one column; write all of them in one form")
    bad = ~max(kinds, key=lambda kind: int(kind.sum()))
    if bad.any():
        value = texts.filter(bad)[0]
        form = "no number and no date such as 2020-09-23 20:53:45"
        shown = "" if value is None else f" ({value!r:.60})"
        rest = "; write all of them as unix seconds or as such dates"
        table.with_frame(pl.DataFrame({"bad": bad})).refuse_first(pl.col("bad"), f"has a {name} that is {form}{shown}{rest}")
    return moments.dt.epoch("us") / 1_000_000


def _iso_moments(texts: "pl.Series") -> "pl.Series":
    """ISO 8601 in its usual spellings as UTC; null where a text is none."""
    import polars as pl

    parts = texts.str.extract_groups(ISO).struct.rename_fields(["date", "minute", "second", "offset"])
    whole = pl.concat_str(
        pl.col("date").str.replace_all("/", "-"),
        pl.lit("T"),
        pl.col("minute").fill_null("00:00"),
        pl.col("second").fill_null(":00").str.replace(",", "."),
        pl.col("offset").fill_null("+00:00"),
    )
    spelled = parts.to_frame("parts").unnest("parts").select(whole.alias("time"))["time"]
    return spelled.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", time_zone="UTC", strict=False)


def _unit(table: Table, name: str, numbers: "pl.Series") -> str | None:
    """The unit in which the numbers are dates; None: they are no dates. Raises where some are dates in one unit and some in another."""
    first, last = ERA
    found = {}
    dates = 0
    for unit, ticks in UNITS.items():
        within = numbers.is_between(first * ticks, last * ticks, closed="left")
        if within.any():
            found[unit] = within
            dates += int(within.sum())
    if dates < MOSTLY * int((numbers >= first).sum()):  # many are too large for one unit and too small for the next
        return None
    if len(found) > 1:
        shown = []
        for unit, within in found.items():
            row = int(within.arg_max() or 0)
            shown.append(f"{table.place(row)} has {numbers[row]} ({show_moment(numbers[row] / UNITS[unit])} in {unit})")
        where = [text.removeprefix(f"{table.path}:") for text in shown[1:]]
        raise UserError(f"{'; '.join([shown[0], *where])}: {name} has two units; write all of them in one, as unix seconds")
    return next(iter(found), None)


def show_moment(seconds: float) -> str:
    """A moment as a date; a number that is none as it is."""
    try:
        if seconds >= 10**8:
            return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d}"
    except (ValueError, OverflowError, OSError):
        pass
    return f"{seconds:,.10g}"


def tie_note(where: str, ordered: "pl.DataFrame") -> list[str]:
    """A note where many interactions share their time with another of the same user.

    Args:
        where: the source's file.
        ordered: user, time, sorted by both, no interaction twice.
    """
    import polars as pl

    tied = ((pl.col("user") == pl.col("user").shift()) & (pl.col("time") == pl.col("time").shift())).fill_null(False)
    count = int(ordered.select((tied | tied.shift(-1).fill_null(False)).sum()).item())
    if count < max(NOTABLE_COUNT, NOTABLE_SHARE * len(ordered)):
        return []
    share = 100 * count / len(ordered)
    return [f"{where}: {share:.0f} % of interactions share their time with another of the same user; the file's order decides there"]


def holds_dates(column: "pl.Series") -> bool:
    """Could a column be times: dates, texts that are such, or numbers that are such in one unit?"""
    import polars as pl

    if column.dtype in (pl.Date, pl.Datetime):
        return True
    if column.dtype == pl.String:
        texts = column.drop_nulls().str.strip_chars()
        texts = texts.filter(texts != "")
        if len(texts) and _iso_moments(texts).is_not_null().all():
            return True
        column = texts.cast(pl.Float64, strict=False)
    if not column.dtype.is_numeric() or not len(column) or column.null_count():
        return False
    first, last = ERA
    column = column.cast(pl.Float64)  # the bounds of nanoseconds do not fit small whole numbers
    return any(bool(column.is_between(first * ticks, last * ticks).all()) for ticks in UNITS.values())
