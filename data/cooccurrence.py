"""The collaborative signal: vectors of items that tell who is found beside whom in the training histories.

Counts of pairs within a window, their positive pointwise mutual information, and its truncated singular value decomposition: Levy and
Goldberg (2014), "Neural Word Embedding as Implicit Matrix Factorization". Validation and test items are never looked at.
Shape letters: I items, E text-embedding width.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from data.corpus import Histories
from data.item_embeddings import ROWS_AT_ONCE, ItemData
from data.schemas import UserError
from data.splits import check_no_leak, leave_one_out, split_hash

if TYPE_CHECKING:
    from scipy.sparse import csr_array

VERSION = 1
"""Raise it when the same histories would give other vectors."""

WINDOW = 5
"""Items of a history that lie at most this far apart count as a pair."""

NOISE = 1e-6
"""Share of the longest vector below which a vector is rounding error and becomes zero."""


def append_collaborative(items: ItemData, histories: Histories, weight: float, dim: int) -> ItemData:
    """The catalogue with collaborative vectors behind its embeddings.

    The embeddings are centred and brought to length 1, the vectors behind them to length ``weight``: at 1 both say as much. The hash
    becomes one of the text embeddings, the training histories and the settings.

    Args:
        items: with [I, E] embeddings.
        histories: all interactions; they are split, and checked for leaks, here.
        weight: above 0.
        dim: width of the collaborative vectors.

    Returns:
        Embeddings [I, E + dim], float32 and in memory.
    """
    split = leave_one_out(histories)
    check_no_leak(split, histories)
    count, width = items.embeddings.shape
    embeddings = torch.empty(count, width + dim)
    mean = sum(rows.float().sum(0).double() for rows in items.embeddings.split(ROWS_AT_ONCE)) / count
    for own, rows in zip(embeddings.split(ROWS_AT_ONCE), items.embeddings.split(ROWS_AT_ONCE)):
        own[:, :width] = normalize(rows.float() - mean.float(), dim=1)
    embeddings[:, width:] = weight * cooccurrence_vectors(split.train, count, dim)
    said = f"{items.embeddings_hash};{split_hash(split.train)};{weight!r};{dim};{WINDOW};{VERSION}"
    return items._replace(embeddings=embeddings, embeddings_hash=hashlib.sha256(said.encode()).hexdigest()[:16])


def cooccurrence_vectors(train: Histories, num_items: int, dim: int, window: int = WINDOW) -> Tensor:
    """The left singular vectors of the items' positive pointwise mutual information, times the square roots of the singular values.

    Their products approximate it where its leading eigenvalues are positive (on Beauty the first 64 are); of a negative one they have the
    size, not the sign, so that items that are only ever each other's neighbours get unlike vectors. Levy & Goldberg 2014, section 5.

    Args:
        train: the training part of the histories.
        num_items: I.
        dim: width.
        window: see WINDOW.

    Returns:
        [I, dim] float32 of length 1, columns by falling singular value, the entry of each column that is largest in size positive;
        zero where an item has no partner in the training part. The same machine gives the same digits.

    Raises:
        UserError: ``dim`` is not below the number of items, or no two items ever stand in one window.
    """
    from scipy.sparse.linalg import svds

    if dim >= num_items:
        raise UserError(f"train.collaborative_dim is {dim} for {num_items} items; it must be below their number: lower it")
    information = positive_information(train, num_items, window)
    if information.nnz == 0:
        raise UserError("train.collaborative_weight is set, but no two items are neighbours in the training histories; set it to 0")
    start = np.random.default_rng(0).normal(size=num_items)
    left, values, _ = svds(information, k=dim, v0=start)
    order = np.argsort(-values, kind="stable")
    vectors = left[:, order] * np.sqrt(values[order])
    vectors *= np.where(vectors[np.abs(vectors).argmax(0), np.arange(dim)] < 0, -1, 1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.where(lengths > NOISE * lengths.max(), vectors / np.maximum(lengths, np.finfo(float).tiny), 0)
    return torch.from_numpy(vectors.astype(np.float32))


def positive_information(train: Histories, num_items: int, window: int = WINDOW) -> "csr_array":
    """max(0, log(n_ij n / (n_i n_j))) as a symmetric sparse matrix [I, I], with n_ij the number of pairs of i and j."""
    from scipy.sparse import coo_array

    item_ids, owner = train.item_ids.numpy(), torch.arange(len(train.offsets) - 1).repeat_interleave(train.offsets.diff()).numpy()
    first, second = [], []
    for distance in range(1, window + 1):
        together = (owner[:-distance] == owner[distance:]) & (item_ids[:-distance] != item_ids[distance:])
        first.append(item_ids[:-distance][together])
        second.append(item_ids[distance:][together])
    rows, columns = np.concatenate([*first, *second]), np.concatenate([*second, *first])
    counts = coo_array((np.ones(len(rows)), (rows, columns)), shape=(num_items, num_items)).tocsr()
    totals = counts.sum(axis=1)
    pairs = counts.tocoo()
    information = np.log(pairs.data * totals.sum() / (totals[pairs.row] * totals[pairs.col]))
    kept = information > 0
    return coo_array((information[kept], (pairs.row[kept], pairs.col[kept])), shape=pairs.shape).tocsr()
