"""One encoder token an item: the sum of its codes' embeddings, a learned vector of its own and, if wished, a projection of its text.

A quarter of the tokens that its codes one by one would be. The learned vector is dropped whole with a probability, so that the rest alone
carries items that training never saw; these have no learned vector.
Shape letters: I items, C codes of an ID, D width, E text-embedding width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data.schemas import PAD, UserError
from modules.catalogue import Catalogue
from modules.embedding import SemanticIdEmbedding
from modules.keyed_vectors import KeyedVectors


class ItemTokens(nn.Module):
    """Vectors of items and, normalised, the encoder's tokens.

    Args:
        catalogue: the items.
        vocab_sizes: C sizes.
        dim: D.
        std: of the initial embeddings, of codes and items.
        learned: whether items have vectors of their own.
        dropout: probability that an item's own vector is left out in training.
        text: whether the catalogue's text vectors are projected into the sum.

    Raises:
        UserError: a text projection without text vectors.
    """

    def __init__(
        self, catalogue: Catalogue, vocab_sizes: Sequence[int], dim: int, std: float, learned: bool, dropout: float, text: bool
    ) -> None:
        super().__init__()
        self.catalogue, self.dropout = catalogue, dropout
        self.codes = SemanticIdEmbedding(vocab_sizes, dim, std)
        keys = catalogue.trained.nonzero()
        self.own = KeyedVectors(self._number, catalogue.num_items, keys, dim, std) if learned else None
        if text and catalogue.texts is None:
            raise UserError(
                "train.text_projection needs the items' text vectors and stage 1's run has none; train stage 1 again, or set it to False"
            )
        self.text = nn.Linear(catalogue.texts.shape[1], dim) if text and catalogue.texts is not None else None
        self.norm = nn.LayerNorm(dim)

    def _number(self, keys: Tensor) -> Tensor:
        """An item's key is its row: items that are added come behind those that were there."""
        return keys[:, 0].where(keys[:, 0] < self.catalogue.num_items, PAD)

    def vectors(self, items: Tensor, sem_ids: Tensor | None = None) -> Tensor:
        """Items [...], and their codes [..., C] where they are at hand -> [..., D]."""
        x = self.codes(self.catalogue.sem_ids[items] if sem_ids is None else sem_ids).sum(-2)
        if self.own is not None:
            own = self.own(items)
            if self.training and self.dropout > 0:
                own = own * (torch.rand(items.shape, device=items.device) >= self.dropout).unsqueeze(-1)
            x = x + own
        if self.text is not None and self.catalogue.texts is not None:
            x = x + self.text(self.catalogue.texts[items].to(x.dtype))
        return x

    def table(self) -> Tensor:
        """The vectors of all items [I, D]."""
        return self.vectors(torch.arange(self.catalogue.num_items, device=self.catalogue.sem_ids.device), self.catalogue.sem_ids)

    def forward(self, items: Tensor, sem_ids: Tensor) -> Tensor:
        """Histories [B, N], PAD-filled, and their codes [B, N, C] -> tokens [B, N, D]."""
        return self.norm(self.vectors(items.clamp_min(0), sem_ids))
