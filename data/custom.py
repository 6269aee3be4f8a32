"""Checks a folder of your own data and says what was understood of it; it is read by ``data.sources.custom``.

python -m data.custom FOLDER ['columns=["user=uid", "item=sku"]' k_core=5 ...]
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from data.corpus import Corpus
from data.filters import Filters
from data.io.text import field_text
from data.item_embeddings import load_embeddings
from data.schemas import UserError
from data.shell import command
from data.sources.custom import Reading, find_files, load_custom, read_custom
from data.sources.custom_columns import parse_columns
from data.sources.custom_files import KINDS, PARTS
from data.sources.registry import known_encoding
from data.splits import leave_one_out, met_before, part_mistakes
from data.statistics import statistics
from data.times import show_moment

__all__ = ["Check", "describe_folder", "load_custom", "main", "read_custom"]

SHARES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
"""Quantiles of the histories' lengths that are shown."""


@dataclass(frozen=True)
class Check:
    """What the scripts are told of a dataset, by the names that they have for it."""

    dataset_folder: Path
    dataset_split: str | None = None
    columns: tuple[str, ...] = ()
    min_rating: float = 0.0
    k_core: int = 0
    max_history: int = 0
    cold_items: bool = True
    unlisted_items: str = "refuse"
    encoding: str = "utf-8"
    item_embeddings: Path | None = None


def describe_folder(check: Check) -> str:
    """Returns what was understood of a folder, as lines for people.

    Raises:
        UserError: everything that is wrong with its files, by line, or with the embeddings.
    """
    split = check.dataset_split or _split_of(check.dataset_folder)
    files = find_files(check.dataset_folder, split)
    filters = Filters(check.min_rating, check.k_core, check.max_history, check.cold_items)
    reading = Reading(parse_columns(check.columns), check.unlisted_items, check.encoding)  # type: ignore[arg-type]  # main has checked it
    corpus, notes = read_custom(files, filters, reading)
    numbers, lengths = statistics(corpus), corpus.histories.offsets.diff().numpy()
    quantiles = ", ".join(f"{share:.0%} {value:g}" for share, value in zip(SHARES, np.quantile(lengths, SHARES)))
    cold = len(corpus.item_keys) - len(corpus.histories.item_ids.unique())
    lines = [
        f"interactions  {', '.join(str(path) for path in (files.interactions, *files.more))}",
        f"items         {files.items or 'no file'}",
        f"counts        {numbers.describe()}",
        f"lengths       {quantiles}",
        f"time          {time_range(corpus)}",
        f"cold items    {cold:,} without an interaction",
        f"first item    {field_text(corpus.item_keys[0])}: {corpus.texts[0]:.160}",
        *(f"note          {note}" for note in notes),
    ]
    width = []
    if check.item_embeddings is not None:
        vectors = load_embeddings(check.item_embeddings, len(corpus.item_keys)).shape[1]
        lines.append(f"embeddings    {check.item_embeddings}, {vectors} wide")
        width = [f"item_embeddings={check.item_embeddings}", f"vae_input_dim={vectors}"]
    held_out = leave_one_out(corpus.histories)
    lines += [f"note          {mistake}" for mistake in part_mistakes(held_out)]
    lines += [f"note          {line}" for part in ("validation", "test") if (line := met_before(held_out, part).describe())]
    given = [f"dataset_folder={check.dataset_folder}", f"dataset_split={split}", *_given(check)]
    return "\n".join([*lines, f"next          {command('train_rqvae.py', 'configs/rqvae_custom.gin', *given, *width)}"])


def _given(check: Check) -> list[str]:
    """What was said beside folder and split, for the scripts."""
    plain, given = Check(check.dataset_folder), []
    for name in (field.name for field in fields(check) if field.name not in ("dataset_split", "item_embeddings")):
        value = getattr(check, name)
        if value != getattr(plain, name):
            shown = json.dumps(list(value)) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else value
            given.append(f"{name}={shown}")
    return given


def time_range(corpus: Corpus) -> str:
    """Returns from when to when the interactions are."""
    if corpus.times is None:
        return "none; the order of the file"
    first, last = float(corpus.times.min()), float(corpus.times.max())
    return f"{show_moment(first)} to {show_moment(last)}{'' if last >= 10**8 else ', which are no dates'}"


def _split_of(folder: Path) -> str:
    """The files' name where they have one, else the folder's."""
    found = [path.name for place in (folder / "raw", folder) if place.is_dir() for path in place.iterdir()]
    others = "|".join(["interactions", "items", *(name for names in PARTS for name in names)])
    named = rf"(.+?)(?:\.(?:train|valid|test))?\.(?:inter|interactions\.[\w.]+)|(?!(?:{others})\.)([^.]+)\.txt(?:\.gz)?"
    names = sorted(match[1] or match[2] for name in found if (match := re.fullmatch(named, name)))
    return names[0] if names else re.sub(r"[^\w.-]+", "_", folder.resolve().name)


def parse_settings(check: Check, settings: Sequence[str]) -> Check:
    """Returns a check with "name=value" as the scripts take them.

    Raises:
        UserError: a name that says nothing about data, or a value of another kind.
    """
    known = {field.name: field for field in fields(Check)}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.removeprefix("train.")
        if name not in known or not equals:
            raise UserError(f"{setting!r} is nothing that is checked here; expected name=value with one of {', '.join(known)}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = text
        if name in ("dataset_folder", "item_embeddings"):
            value = Path(str(value)).expanduser()
        elif name == "columns":
            value = tuple(map(str, value)) if isinstance(value, (list, tuple)) else (str(value),)
        elif name in ("dataset_split", "unlisted_items", "encoding"):
            value = str(value)
        elif not isinstance(value, (int, float)) or value < 0 or (name == "cold_items") != isinstance(value, bool):
            expected = "True or False" if name == "cold_items" else "a number from 0 up"
            raise UserError(f"{name} is {text!r}; expected {expected}")
        check = replace(check, **{name: value})
    if check.unlisted_items not in ("refuse", "drop", "keep"):
        raise UserError(f"unlisted_items is {check.unlisted_items!r}; expected refuse, drop or keep")
    if not known_encoding(check.encoding):
        raise UserError(f"encoding is {check.encoding!r}; expected one that Python knows, such as utf-8, cp1252, gbk or shift_jis")
    return check


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after the sentences that say what is wrong."""
    description = "Checks a folder of your own data and prints what was understood of it."
    parser = argparse.ArgumentParser(prog="python -m data.custom", description=description)
    kinds = ", ".join(KINDS)
    parser.add_argument("folder", type=Path, help=f"holds interactions and items as {kinds} or RecBole's atomic files, itself or in raw/")
    names = ", ".join(field.name for field in fields(Check)[1:])
    parser.add_argument("settings", nargs="*", metavar="name=value", help=f"as the scripts take them: {names}")
    parser.add_argument("--split", help="the files' name (default: the name of the .inter file, else the folder's)")
    roles = "user=uid item=sku timestamp=when rating=stars title=label text=brand text=color"
    told = f"columns that are called otherwise: {roles}; by number where there is no header: user=1 item=2"
    parser.add_argument("--columns", nargs="+", default=[], metavar="ROLE=NAME", help=told)
    parser.add_argument("--embeddings", type=Path, help="a .npy file for train.item_embeddings, checked against the items")
    parser.add_argument("--min-rating", type=float, default=0.0, help="interactions rated lower are dropped")
    parser.add_argument("--k-core", type=int, default=0, help="users and items with fewer interactions are dropped")
    given = parser.parse_intermixed_args(arguments)
    check = Check(given.folder, given.split, tuple(given.columns), given.min_rating, given.k_core, item_embeddings=given.embeddings)
    try:
        check = parse_settings(check, given.settings)
        if not check.dataset_folder.is_dir():
            raise UserError(f"{check.dataset_folder} is no directory; expected one with interactions and items")
        print(describe_folder(check))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
