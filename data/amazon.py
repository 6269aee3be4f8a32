"""Amazon 2014 as P5 packed it, where users look for it; it is read by ``data.sources.p5``."""

from data.sources.p5 import AmazonReviews

__all__ = ["AmazonReviews"]
