"""Columns of numbers that are not trusted, whole where every value is."""

from typing import TYPE_CHECKING

from data.io.tables import Table
from data.schemas import UserError

if TYPE_CHECKING:
    import polars as pl

MOMENTS = ("time", "timestamp")
"""Columns in which dates are as good as numbers."""


def parse_numbers(table: Table, name: str, whole: bool = False) -> "pl.Series":
    """Returns a column as whole numbers where every value is one, else as fractions.

    Args:
        table: has the column as text, as numbers or, where it is a time, as dates.
        name: the column.
        whole: refuse fractions.

    Raises:
        UserError: a value that is missing, no number, NaN, infinite or out of range, or a column of another kind.
    """
    import polars as pl

    column = table.frame[name]
    kind = column.dtype
    if kind in (pl.Date, pl.Datetime) and name in MOMENTS:
        column = column.cast(pl.Datetime("us"), strict=False).dt.epoch("us") / 1_000_000
    elif kind in (pl.String, pl.Categorical, pl.Enum):
        column = column.cast(pl.String).str.strip_chars()
    elif kind == pl.Decimal:
        column = column.cast(pl.Float64)
    elif not kind.is_numeric():
        raise UserError(f"{table.path}: {name} holds {kind}; expected numbers{' or dates' if name in MOMENTS else ''}; mend the file")
    if kind in (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32) and column.null_count() == 0:
        return column.cast(pl.Int64)
    number = f"{'whole ' if whole else ''}number"
    exact = column.cast(pl.Int64, strict=False) if not column.dtype.is_float() else None
    if exact is not None and (exact.null_count() == 0 or kind.is_integer()):
        table.with_frame(pl.DataFrame({"bad": exact.is_null()})).refuse_first(
            pl.col("bad"), f"has a {name} that is no {number}; mend the line"
        )
        return exact
    numbers = column.cast(pl.Float64, strict=False)
    bad = (~numbers.is_finite()).fill_null(True)
    if whole:
        bad |= (numbers != numbers.round()) | (numbers.abs() >= 2.0**63)
    checked = table.with_frame(pl.DataFrame({"bad": bad, "blurred": numbers.abs() > 2.0**53}))
    checked.refuse_first(pl.col("bad"), f"has a {name} that is no {number}; mend the line")
    if exact is not None:  # text: some of it whole, some not
        blurred = f"has a {name} beyond 2^53, which a column with fractions cannot hold exactly; write whole numbers or smaller units"
        checked.refuse_first(pl.col("blurred"), blurred)
    return numbers.cast(pl.Int64) if whole else numbers
