"""Amazon's raw reviews of 2023, any category: layout and download in ``data.sources.amazon_raw``."""

from pathlib import Path

from data.corpus import LoadedCorpus
from data.filters import Filters
from data.sources.amazon_raw import load_amazon_raw
from data.sources.registry import DataConfig, Source


def load(config: DataConfig, filters: Filters) -> LoadedCorpus:
    """Returns the category that the split names."""
    return load_amazon_raw(Path(config.folder), 2023, config.split, filters, config.force_process)


SOURCE = Source(load)
