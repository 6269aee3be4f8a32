"""MovieLens 1M, where users look for it; it is read by ``data.sources.ml_1m``."""

from data.sources.ml_1m import load_ml1m, movie_corpus, read_ml1m

__all__ = ["load_ml1m", "movie_corpus", "read_ml1m"]
