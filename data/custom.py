"""Checks a folder of your own data and says what was understood of it; it is read by ``data.sources.custom``.

python -m data.custom FOLDER [--columns user=uid item=sku ...]
"""

import argparse
import datetime
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.filters import Filters
from data.io.text import field_text
from data.item_embeddings import load_embeddings
from data.schemas import UserError
from data.shell import command
from data.sources.custom import KINDS, find_files, load_custom, read_custom
from data.sources.custom_columns import parse_columns
from data.statistics import statistics

__all__ = ["describe_folder", "load_custom", "main", "read_custom"]

SHARES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
"""Quantiles of the histories' lengths that are shown."""


def describe_folder(folder: Path, split: str, filters: Filters, columns: Sequence[str], embeddings: Path | None) -> str:
    """Returns what was understood of a folder, as lines for people.

    Raises:
        UserError: everything that is wrong with its files, by line, or with the embeddings.
    """
    files = find_files(folder, split)
    corpus, notes = read_custom(files, filters, parse_columns(columns))
    numbers, lengths = statistics(corpus), corpus.histories.offsets.diff().numpy()
    assert corpus.times is not None
    quantiles = ", ".join(f"{share:.0%} {value:g}" for share, value in zip(SHARES, np.quantile(lengths, SHARES)))
    cold = len(corpus.item_keys) - len(corpus.histories.item_ids.unique())
    lines = [
        f"interactions  {files.interactions}",
        f"items         {files.items}",
        f"counts        {numbers.describe()}",
        f"lengths       {quantiles}",
        f"time          {time_range(float(corpus.times.min()), float(corpus.times.max()))}",
        f"cold items    {cold:,} without an interaction",
        f"first item    {field_text(corpus.item_keys[0])}: {corpus.texts[0]:.160}",
        *(f"note          {note}" for note in notes),
    ]
    if embeddings is not None:
        vectors = load_embeddings(embeddings, len(corpus.item_keys)).shape[1]
        lines.append(f"embeddings    {embeddings}, {vectors} wide")
    if numbers.train_targets == 0:
        lines.append("note          no user has four interactions, so there is nothing to train on")
    given = [f"dataset_folder={folder}", f"dataset_split={split}"]
    given += [f"columns={json.dumps(list(columns))}"] if columns else []
    given += [f"min_rating={filters.min_rating:g}"] if filters.min_rating else []
    given += [f"k_core={filters.k_core}"] if filters.k_core else []
    width = [] if embeddings is None else [f"item_embeddings={embeddings}", f"vae_input_dim={vectors}"]
    return "\n".join([*lines, f"next          {command('train_rqvae.py', 'configs/rqvae_custom.gin', *given, *width)}"])


def time_range(first: float, last: float) -> str:
    """Returns two moments in unix seconds as dates."""
    try:
        return " to ".join(f"{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y-%m-%d}" for moment in (first, last))
    except (ValueError, OverflowError, OSError):
        return f"{first:g} to {last:g}, which are no unix seconds"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after the sentences that say what is wrong."""
    description = "Checks a folder of your own data and prints what was understood of it."
    parser = argparse.ArgumentParser(prog="python -m data.custom", description=description)
    kinds = ", ".join(KINDS)
    parser.add_argument("folder", type=Path, help=f"holds interactions and items as {kinds} or RecBole's atomic files, itself or in raw/")
    parser.add_argument("--split", help="the files' name (default: the name of the .inter file, else the folder's)")
    roles = "user=uid item=sku timestamp=when rating=stars title=label text=brand text=color"
    parser.add_argument("--columns", nargs="+", default=[], metavar="ROLE=NAME", help=f"columns that are called otherwise: {roles}")
    parser.add_argument("--embeddings", type=Path, help="a .npy file for train.item_embeddings, checked against the items")
    parser.add_argument("--min-rating", type=float, default=0.0, help="interactions rated lower are dropped")
    parser.add_argument("--k-core", type=int, default=0, help="users and items with fewer interactions are dropped")
    given = parser.parse_args(arguments)
    found = [path.name for place in (given.folder / "raw", given.folder) if place.is_dir() for path in place.iterdir()]
    names = sorted(match[1] for name in found if (match := re.fullmatch(r"(.+)\.(?:inter|interactions\.\w+)", name)))
    split = given.split or (names[0] if names else re.sub(r"[^\w.-]+", "_", given.folder.resolve().name))
    try:
        if not given.folder.is_dir():
            raise UserError(f"{given.folder} is no directory; expected one with interactions and items")
        print(describe_folder(given.folder, split, Filters(given.min_rating, given.k_core), given.columns, given.embeddings))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
