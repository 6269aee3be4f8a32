"""MovieLens 32M, where users look for it; it is read by ``data.sources.ml_32m``."""

from data.sources.ml_32m import load_ml32m, read_ml32m

__all__ = ["load_ml32m", "read_ml32m"]
