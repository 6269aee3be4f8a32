"""The histories of stage 2 as its settings split them: for training, for evaluation afterwards, and to tell two data apart.

Shape letters: I items.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from data.corpus import Corpus
from data.processed import SeqData
from data.schemas import UserError
from data.splits import TimeSplit, part_mistakes, split_hash, time_bounds
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
        UserError: a part of the split would be empty, or it needs times that there are not.
    """
    moments = None
    if options.split_by == "time":
        first, second = options.split_quantiles
        if corpus.times is None:  # files of one's own may have none; the config's check refuses sources without
            raise UserError(
                "train.split_by = 'time' needs times and the interactions have none; "
                "name their column in train.columns or set it to 'leave_one_out'"
            )
        moments = time_bounds(corpus.times, (first, second))
    data = SeqData(corpus.histories, len(corpus.item_keys), options.max_seq_len, options.encoder_attention == "causal", moments)
    if mistakes := list(part_mistakes(data.split, moments is not None)):
        raise UserError(*mistakes)
    described, split = statistics(corpus, data.split), split_hash(corpus.histories, moments)
    data = data.to(device)
    order = tie_order(data.popularity.cpu(), corpus.item_keys, options.seed).to(device)
    return Sequences(data, order, moments, described, split)
