"""MovieLens 1M: ``<folder>/raw/ml-1m/movies.dat`` and ``ratings.dat``, fields separated by ``::``, Latin-1 or UTF-8, no header.

    movies.dat    1::Toy Story (1995)::Animation|Children's|Comedy
    ratings.dat   user::movie::rating::unix seconds
    users.dat     is not needed: no part of the model reads age or occupation

Movies that nobody rated stay in the catalogue unless ``Filters.cold_items`` is off.
"""

from pathlib import Path

from data.corpus import Catalogue, LoadedCorpus
from data.corpus_cache import cached_corpus, corpus_path
from data.filters import Filters, assemble, codes_of
from data.io.files import raw_fingerprint
from data.io.numbers import parse_numbers
from data.io.tables import Table, is_utf8, read_lines
from data.item_text import TEMPLATE_VERSION
from data.sources.movielens import describe_movies, fetch_archive
from data.sources.registry import DataConfig, Source

PARSER_VERSION = 3
"""Raise it when the same raw files would give another corpus."""

SPLIT = "ml-1m"
MOVIES, RATINGS = FILES = ("movies.dat", "ratings.dat")


def load_ml1m(folder: Path, filters: Filters, force_process: bool = False) -> LoadedCorpus:
    """Returns the corpus, from the cache when these files have been read with these filters before; downloads what is missing.

    Raises:
        UserError: files that are missing and cannot be downloaded, or that are not what they should be, with the line.
    """
    movies, ratings = fetch_archive(folder, SPLIT, FILES)
    path = corpus_path(folder, SPLIT, TEMPLATE_VERSION, PARSER_VERSION, filters, raw_fingerprint([movies, ratings]))
    return cached_corpus(path, lambda: read_ml1m(movies, ratings, filters), force=force_process)


def read_ml1m(movies: Path, ratings: Path, filters: Filters) -> LoadedCorpus:
    """Reads the two files into a corpus; items stand in the order of their file."""
    encoding = "utf-8" if movies.is_file() and is_utf8(movies) else "latin-1"  # some copies were converted
    items = read_lines(movies, "::", ("movie", "title", "genres"), "movies.dat of MovieLens 1M", encoding=encoding, header=False)
    columns = ("user", "movie", "rating", "time")
    rated = read_lines(ratings, "::", columns, "ratings.dat of MovieLens 1M", encoding="latin-1", header=False)
    return movie_corpus(items, rated, filters)


def movie_corpus(items: Table, rated: Table, filters: Filters) -> LoadedCorpus:
    """Makes a corpus of MovieLens tables.

    Args:
        items: movie, title, genres.
        rated: user, movie, rating, time.
        filters: see there.

    Raises:
        UserError: an id that is negative, repeated or not in the catalogue, a rating or a time that is no number.
    """
    import polars as pl

    movies = parse_numbers(items, "movie", whole=True)
    checked = items.with_frame(pl.DataFrame({"movie": movies}))
    checked.refuse_first(pl.col("movie") < 0, "has a negative movie id; expected ids from 0 up; mend the line")
    checked.refuse_first(~pl.col("movie").is_first_distinct(), "repeats a movie id; expected one line a movie; remove one of them")
    described = describe_movies(items.frame["title"].fill_null("").to_list(), items.frame["genres"].fill_null("").to_list())
    users, rated_movies = (parse_numbers(rated, name, whole=True) for name in ("user", "movie"))
    rows = codes_of(rated_movies, movies)
    checked = rated.with_frame(pl.DataFrame({"user": users, "item": rows}))
    checked.refuse_first(pl.col("user") < 0, "has a negative user id; expected ids from 0 up; mend the line")
    checked.refuse_first(pl.col("item").is_null(), f"has a movie that {items.path.name} lacks; add it there or remove the line")
    table = pl.DataFrame({"user": users, "item": rows, "time": parse_numbers(rated, "time"), "rating": parse_numbers(rated, "rating")})
    catalogue = Catalogue(movies.cast(pl.String).to_list(), *described)
    return assemble(str(rated.path), str(items.path), catalogue, table, filters)


def load(config: DataConfig, filters: Filters) -> LoadedCorpus:
    """Returns the corpus."""
    return load_ml1m(Path(config.folder), filters, config.force_process)


SOURCE = Source(load, splits=(SPLIT,), max_history=200, keeps_cold=True)
