"""MovieLens 32M, and every archive of its layout (ml-25m, ml-latest-small): ``<folder>/raw/<split>/movies.csv`` and ``ratings.csv``.

    movies.csv    movieId,title,genres       titles with commas are quoted
    ratings.csv   userId,movieId,rating,timestamp

Read by polars' streaming engine. Movies that nobody rated stay in the catalogue unless ``Filters.cold_items`` is off.
"""

from pathlib import Path

from data.corpus import LoadedCorpus
from data.corpus_cache import cached_corpus, corpus_path
from data.filters import Filters
from data.io.csv_file import csv_header, read_csv
from data.io.files import raw_fingerprint
from data.item_text import TEMPLATE_VERSION
from data.sources.ml_1m import movie_corpus
from data.sources.movielens import fetch_archive
from data.sources.registry import DataConfig, Source

PARSER_VERSION = 2
"""Raise it when the same raw files would give another corpus."""

MOVIES, RATINGS = FILES = ("movies.csv", "ratings.csv")


def load_ml32m(folder: Path, split: str, filters: Filters, force_process: bool = False) -> LoadedCorpus:
    """Returns the corpus, from the cache when these files have been read with these filters before; downloads what is missing.

    Raises:
        UserError: files that are missing and cannot be downloaded, or that are not what they should be, with the line.
    """
    movies, ratings = fetch_archive(folder, split, FILES)
    path = corpus_path(folder, split, TEMPLATE_VERSION, PARSER_VERSION, filters, raw_fingerprint([movies, ratings]))
    return cached_corpus(path, lambda: read_ml32m(movies, ratings, filters), force=force_process)


def read_ml32m(movies: Path, ratings: Path, filters: Filters) -> LoadedCorpus:
    """Reads the two files into a corpus; items stand in the order of their file."""
    import polars as pl

    csv_header(movies, ("movieId", "title", "genres"), "MovieLens' movies.csv")
    described = {"movieId": pl.Int32, "title": pl.String, "genres": pl.String}
    items = read_csv(movies, ("movieId",), "MovieLens' movies.csv", described)
    types = {"userId": pl.Int32, "movieId": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64}
    rated = read_csv(ratings, tuple(types), "MovieLens' ratings.csv", types)
    items = items.with_frame(items.frame.rename({"movieId": "movie"}))
    rated = rated.with_frame(rated.frame.rename({"userId": "user", "movieId": "movie", "timestamp": "time"}))
    return movie_corpus(items, rated, filters)


def load(config: DataConfig, filters: Filters) -> LoadedCorpus:
    """Returns the archive that the split names."""
    return load_ml32m(Path(config.folder), config.split, filters, config.force_process)


SOURCE = Source(load, splits=("ml-32m", "ml-25m", "ml-latest-small", "ml-latest"), max_history=200, keeps_cold=True)
