"""Learned vectors of items or trie nodes that keep their meaning when the numbering changes, as it does when items are added.

Every vector is saved with a key, such as the code prefix of its node. Entries without a key of their own have no vector: they read as zero
and no gradient reaches them.
Shape letters: n keys, k width of a key, D width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class KeyedVectors(nn.Module):
    """A table of vectors [n, D] read by the current number of an entry.

    Args:
        find: keys [n, k] -> the current number of the entry that each names, PAD where there is none.
        size: entries in the current numbering.
        keys: [n, k] int64, the entries that have a vector.
        dim: D.
        std: of the initial values.

    Weights that are loaded bring their own keys: entries that they name take the loaded vector, and those that only this table names keep
    theirs.
    """

    keys: Tensor
    row: Tensor

    def __init__(self, find: Callable[[Tensor], Tensor], size: int, keys: Tensor, dim: int, std: float) -> None:
        super().__init__()
        self.find, self.size = find, size
        self.vectors = nn.Parameter(torch.zeros(len(keys) + 1, dim, device=keys.device))
        nn.init.normal_(self.vectors.data[1:], std=std)  # row 0 is the zero vector of all entries without one
        self.register_buffer("keys", keys.clone())
        self.register_buffer("row", self._rows(keys), persistent=False)

    def _rows(self, keys: Tensor) -> Tensor:
        """[size] int64: where each entry's vector lies, 0 where it has none."""
        number = self.find(keys)
        row = torch.zeros(self.size + 1, dtype=torch.int64, device=keys.device)
        # What is no longer an entry writes behind the last one.
        row[torch.where(number < 0, self.size, number)] = torch.arange(1, len(keys) + 1, device=keys.device)
        return row[: self.size]

    def forward(self, entries: Tensor) -> Tensor:
        """Numbers [...] -> vectors [..., D]."""
        return nn.functional.embedding(self.row[entries], self.vectors, padding_idx=0)

    def table(self) -> Tensor:
        """The vectors of all entries [size, D]."""
        return nn.functional.embedding(self.row, self.vectors, padding_idx=0)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        nothing = torch.empty(0, 0)
        keys, vectors = (state_dict.get(f"{prefix}{name}", nothing) for name in ("keys", "vectors"))
        fits = keys.shape[1:] == self.keys.shape[1:] and vectors.shape[1:] == self.vectors.shape[1:] and len(vectors) == len(keys) + 1
        if fits and not torch.equal(keys.to(self.keys.device), self.keys):
            self._adopt(keys.to(self.keys.device), vectors.to(self.vectors))
            state_dict = {**state_dict, f"{prefix}keys": self.keys, f"{prefix}vectors": self.vectors.data}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _adopt(self, keys: Tensor, vectors: Tensor) -> None:
        """Takes over loaded ``keys`` [n', k] and ``vectors`` [n' + 1, D] and keeps what only this table has behind them."""
        _, group = torch.cat([keys, self.keys]).unique(dim=0, return_inverse=True)
        loaded, own = group[: len(keys)], group[len(keys) :]
        only_own = ~torch.isin(own, loaded)
        self.vectors = nn.Parameter(torch.cat([vectors, self.vectors.data[1:][only_own]]))
        self.keys = torch.cat([keys, self.keys[only_own]])
        self.row = self._rows(self.keys)
