"""What the sequence model reads: embeddings of codes by level, of hashed users, and the attention bias that knows item distance.

TIGER section 3.2 (codes and user tokens); Shaw et al. (2018), arXiv 1803.02155, and Raffel et al. (2020) for biases by relative position.
Shape letters: B batch, N history length, C codes of an ID, D width, H heads, Q queries, S keys.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from data.schemas import PAD

USER_TOKEN = -1
"""Item position of the token that names the user: before every item, visible from all."""


class SemanticIdEmbedding(nn.Module):
    """One table for the codes of all levels; a code of one level never shares its vector with another level's.

    Args:
        vocab_sizes: C sizes, the collision code's last where there is one.
        dim: D.
        std: of the initial values.
    """

    offsets: Tensor

    def __init__(self, vocab_sizes: Sequence[int], dim: int, std: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(vocab_sizes), dim)
        nn.init.normal_(self.table.weight, std=std)
        self.register_buffer("offsets", torch.tensor([0, *accumulate(vocab_sizes)][:-1]), persistent=False)

    def forward(self, sem_ids: Tensor) -> Tensor:
        """[..., t] codes of the first t <= C levels -> [..., t, D]."""
        return self.table(sem_ids + self.offsets[: sem_ids.shape[-1]])

    def level(self, codes: Tensor, level: int) -> Tensor:
        """[...] codes of one level -> [..., D]."""
        return self.table(codes + self.offsets[level])


class HashedUserEmbedding(nn.Module):
    """A user's row number hashed into a fixed number of buckets (TIGER: 2000), the same in every process."""

    def __init__(self, num_buckets: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_buckets, dim)
        nn.init.normal_(self.table.weight, std=1.0)

    def bucket(self, user_ids: Tensor) -> Tensor:
        """Knuth's multiplicative hash: neighbouring row numbers fall into unrelated buckets."""
        return ((user_ids * 2654435761) % 4294967296 * self.table.num_embeddings) // 4294967296

    def forward(self, user_ids: Tensor) -> Tensor:
        """[B] -> [B, D]; a user whom the model does not know, PAD, is the mean of all buckets."""
        known = (user_ids != PAD).unsqueeze(-1)
        return torch.where(known, self.table(self.bucket(user_ids)), self.table.weight.mean(0))


class ItemDistanceBias(nn.Module):
    """A learned attention bias per head and signed distance in items, with a bucket of its own for the user token.

    Args:
        num_heads: H.
        max_distance: distances beyond it, either way, share a bucket.
    """

    def __init__(self, num_heads: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.bias = nn.Parameter(torch.zeros(num_heads, 2 * max_distance + 2))

    def forward(self, query_items: Tensor, key_items: Tensor) -> Tensor:
        """Item positions [B, Q] and [B, S] (B may be 1) -> bias [B, H, Q, S]."""
        distance = query_items.unsqueeze(-1) - key_items.unsqueeze(-2)
        bucket = distance.clamp(-self.max_distance, self.max_distance) + self.max_distance
        bucket = torch.where((key_items == USER_TOKEN).unsqueeze(-2), self.bias.shape[1] - 1, bucket)
        return self.bias[:, bucket].transpose(0, 1)
