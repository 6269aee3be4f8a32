"""Amazon 2014, the 5-cores Beauty, Sports and Toys, as P5 packed them: files and download in ``data.sources.p5``."""

from data.corpus import LoadedCorpus
from data.filters import Filters
from data.sources.registry import DataConfig, Prepared, Source


def load(config: DataConfig, filters: Filters) -> LoadedCorpus:
    """Returns a split, from the cache when its files have been read before; there is nothing to filter."""
    from data.sources.p5 import AmazonReviews

    reviews = AmazonReviews(config.folder, config.split, config.force_process)
    return LoadedCorpus(reviews.corpus, reviews.notes)


SOURCE = Source(
    load,
    splits=("beauty", "sports", "toys"),
    keeps_cold=True,
    has_times=False,
    prepared=Prepared("P5", "5-core", "AMAZON_2014"),
)
