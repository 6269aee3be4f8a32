"""The tokenizers without a network, by their names in train.tokenizer."""

from modules.tokenizer.centroids import ProductQuantizer, ResidualKmeans
from modules.tokenizer.controls import RandomCodes, RandomHyperplanes
from modules.tokenizer.direct import DirectConfig, DirectTokenizer


def direct_tokenizer(config: DirectConfig) -> DirectTokenizer:
    """The tokenizer of a kind, not yet fitted."""
    kinds = {"rqkmeans": ResidualKmeans, "pq": ProductQuantizer, "opq": ProductQuantizer, "lsh": RandomHyperplanes, "random": RandomCodes}
    return kinds[config.kind](config)
