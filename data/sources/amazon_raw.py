"""Amazon's raw files, any category: reviews of 2014 and of 2023 with their metadata.

    2014   <folder>/raw/reviews_<Category>_5.json.gz   one JSON object a line: reviewerID, asin, unixReviewTime, overall
           or  ratings_<Category>.csv                  user,item,rating,timestamp without a header (2023: <Category>.csv with one)
           <folder>/raw/meta_<Category>.json.gz        one Python literal a line, parsed and never run
    2023   <folder>/raw/<Category>.jsonl.gz            user_id, parent_asin, timestamp in milliseconds, rating
           <folder>/raw/meta_<Category>.jsonl.gz       parent_asin, title, store, categories, price

All of them may lie there without their .gz; the csv of 2023 also with one.
The ``_5`` files are 5-cores already; everything else wants ``train.k_core = 5``. Ties in time keep the order of the file. Items stand in
the order of their ids, which says nothing about time. Without a metadata file an item's id is all that is known of it.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.corpus import LoadedCorpus
from data.corpus_cache import cached_corpus, corpus_path
from data.filters import Filters, codes_of, drop_cold, finish, keep_interactions
from data.io.content import read_content, read_head
from data.io.csv_file import read_csv
from data.io.download import fetch
from data.io.files import raw_fingerprint
from data.io.json_lines import read_json_lines
from data.io.numbers import parse_numbers
from data.io.sniff import sniff
from data.io.tables import bad_ids, check_header, refuse
from data.item_text import TEMPLATE_VERSION
from data.schemas import UserError
from data.sources.amazon_metadata import Entry, describe, read_json, read_literals

if TYPE_CHECKING:
    import polars as pl

PARSER_VERSION = 3
"""Raise it when the same raw files would give another corpus."""


class Edition(NamedTuple):
    """How one edition calls things."""

    reviews: tuple[str, ...]  # file names, of which the first that is there is read
    metadata: tuple[str, ...]  # likewise
    urls: tuple[str, str]  # where the first of the reviews and the metadata are published
    columns: tuple[str, str, str, str]  # user, item, time and rating in the reviews
    ticks: int  # of a second


SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
MCAULEY = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
EDITIONS = {
    2014: Edition(
        ("reviews_{}_5.json.gz", "reviews_{}_5.json", "reviews_{}.json.gz", "reviews_{}.json", "ratings_{}.csv"),
        ("meta_{}.json.gz", "meta_{}.json"),
        (SNAP, SNAP),
        ("reviewerID", "asin", "unixReviewTime", "overall"),
        1,
    ),
    2023: Edition(
        ("{}.jsonl.gz", "{}.jsonl", "{}.csv.gz", "{}.csv"),
        ("meta_{}.jsonl.gz", "meta_{}.jsonl"),
        (f"{MCAULEY}/review_categories", f"{MCAULEY}/meta_categories"),
        ("user_id", "parent_asin", "timestamp", "rating"),
        1000,
    ),
}


def load_amazon_raw(folder: Path, year: int, category: str, filters: Filters, force_process: bool = False) -> LoadedCorpus:
    """Returns the corpus of a category, from the cache when its files have been read with these filters before.

    Args:
        folder: the dataset folder; what is missing in its raw/ is downloaded.
        year: the edition, 2014 or 2023.
        category: as the files are named: ``Beauty``, ``Sports_and_Outdoors``, ``All_Beauty``.
        filters: what is kept.
        force_process: read them again.

    Raises:
        UserError: files that are missing and cannot be downloaded, or that are not what they should be, with the line.
    """
    if not re.fullmatch(r"\w[\w&,-]*", category):
        raise UserError(f"train.dataset_split is {category!r}; expected a category as Amazon's files are named, such as Beauty")
    reviews, metadata = find_raw_files(folder / "raw", year, category)
    present = [path for path in (reviews, metadata) if path.exists()]
    path = corpus_path(folder, f"amazon{year}_{category}", TEMPLATE_VERSION, PARSER_VERSION, filters, raw_fingerprint(present))
    return cached_corpus(path, lambda: read_amazon_raw(reviews, metadata, year, filters), force=force_process)


def find_raw_files(raw: Path, year: int, category: str) -> tuple[Path, Path]:
    """Returns reviews and metadata of a category, both downloaded where the reviews are missing; the metadata may be missing then."""
    edition = EDITIONS[year]
    names, described = ([name.format(category) for name in kind] for kind in (edition.reviews, edition.metadata))
    there, metadata = (next((raw / name for name in kind if (raw / name).exists()), None) for kind in (names, described))
    metadata = metadata or raw / described[0]
    begun = metadata.with_name(f"{metadata.name}.part").exists()
    if there and not begun:
        return there, metadata
    reviews = there or raw / names[0]
    ways = f"connect once, or put {' or '.join(names)} and {metadata.name} into {raw} (the category is spelled as Amazon spells it)"
    for url, path in zip(edition.urls[::-1], (metadata, reviews)):  # once the reviews are there, nothing looks for the metadata any more
        if not path.exists():
            fetch(f"{url}/{path.name}", path, ways)
    return reviews, metadata


def read_amazon_raw(reviews: Path, metadata: Path, year: int, filters: Filters) -> LoadedCorpus:
    """Reads a category into a corpus: the items that the filters leave; with ``cold_items`` all of the metadata besides."""
    import polars as pl

    read_metadata = read_literals if year == 2014 else read_json
    table = _read_reviews(reviews, EDITIONS[year], filters.min_rating > 0)
    entries: Iterable[Entry] = list(read_metadata(metadata, None)) if filters.cold_items and metadata.exists() else []
    keys = pl.concat([table["item"], pl.Series("item", [entry.key for entry in entries], dtype=pl.String)]).unique().sort()
    kept = keep_interactions(str(reviews), table.with_columns(item=codes_of(table["item"], keys)), filters)
    del table
    names = keys.to_list()
    if not filters.cold_items:
        rows, kept = drop_cold(kept, len(names))
        names = [names[row] for row in rows.tolist()]
        entries = read_metadata(metadata, set(names)) if metadata.exists() else []
    notes = [] if metadata.exists() else [f"{metadata} is missing: only the ids of the items are known"]
    catalogue, repeated = describe(metadata, names, entries)
    return finish(str(metadata), catalogue, kept, [*notes, *repeated])


def _read_reviews(path: Path, edition: Edition, rated: bool) -> "pl.DataFrame":
    """Returns user, item, time and, where asked for, rating, in the order of the file."""
    import polars as pl

    roles = ("user", "item", "time", *(["rating"] if rated else []))
    types = dict(zip(roles, (pl.String, pl.String, pl.Int64, pl.Float64)))
    called = dict(zip(edition.columns, types.values()))
    if path.suffix == ".csv" and edition.ticks == 1:
        expected = "Amazon's user,item,rating,timestamp without a header"
        table = read_csv(path, ("user", "item", "rating", "time"), expected, types, header=False)
    elif ".csv" in path.suffixes:
        expected = "Amazon's user_id,parent_asin,rating,timestamp"
        content = read_content(path, expected)
        layout = sniff(read_head(path, content), ",", quoted=True)
        check_header(path, layout.names, tuple(called), expected)
        table = read_csv(path, (), expected, called, layout=layout, content=content)
        refuse(sentence for name in called for sentence in table.first(pl.col(name).is_null(), f"has no {name}; mend the line"))
    else:
        table = read_json_lines(path, called, "Amazon's reviews, one JSON object a line")
    table = table.with_frame(table.frame.rename(dict(zip(edition.columns, roles)), strict=False))
    refuse([*bad_ids(table, "user"), *bad_ids(table, "item")])
    if rated:
        parse_numbers(table, "rating")
    if edition.ticks == 1:
        return table.frame
    return table.frame.with_columns(pl.col("time") / edition.ticks)
