"""The histories of stage 2 as its settings split them: for training, for evaluation afterwards, and to tell two data apart.

Shape letters: I items.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from data.corpus import Corpus
from data.processed import SeqData
from data.splits import TimeSplit, split_hash, time_bounds
from data.statistics import CorpusStatistics, statistics
from evaluate.metrics import tie_order
from modules.runtime.options.decoder import DecoderOptions


class Sequences(NamedTuple):
    data: SeqData  # on the device
    order: Tensor  # [I] rank of every item in the order that breaks ties, on the device
    moments: TimeSplit | None  # None: leave-one-out
    described: CorpusStatistics
    split: str  # names these histories and their split


def split_sequences(corpus: Corpus, options: DecoderOptions, device: torch.device) -> Sequences:
    """Splits a corpus and cuts it for the model.

    Args:
        corpus: every interaction.
        options: how it is split, how long a row is, and whether its positions all have targets.
        device: where batches come out.

    Raises:
        UserError: a part of the split would be empty.
    """
    moments = None
    if options.split_by == "time":
        first, second = options.split_quantiles
        assert corpus.times is not None  # the config's check refuses sources without times
        moments = time_bounds(corpus.times, (first, second))
    data = SeqData(corpus.histories, len(corpus.item_keys), options.max_seq_len, options.encoder_attention == "causal", moments)
    described, split = statistics(corpus, data.split), split_hash(corpus.histories, moments)
    data = data.to(device)
    order = tie_order(data.popularity.cpu(), corpus.item_keys, options.seed).to(device)
    return Sequences(data, order, moments, described, split)
