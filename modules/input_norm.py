"""How item embeddings are normalised before they become codes: by statistics of the whole catalogue, saved with what was fitted on them.

Sentence embeddings share a large common mean; a first codebook that sees it spends itself on it, and everything becomes one ID.
Shape letters: B batch, I items, E input width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from data.schemas import UserError

INPUT_NORMS = ("center_unit", "standardize", "none")
"""Subtract the mean, then unit rows; every dimension to mean 0 and deviation 1; nothing."""


class InputNormalizer(nn.Module):
    """The first part of every tokenizer of item embeddings [.., E].

    Args:
        input_dim: E.
        input_norm: one of INPUT_NORMS.
        n_cat_feats: features at the end that are categorical, in [0, 1], and stay as they are.

    Attributes:
        mean: [E], subtracted; 0 for categorical features.
        scale: [E], divided by; 1 for categorical features.
        num_dense: features that are not categorical.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, input_dim: int, input_norm: str, n_cat_feats: int = 0) -> None:
        super().__init__()
        self.input_norm = input_norm
        self.n_cat_feats = n_cat_feats
        self.num_dense = input_dim - n_cat_feats
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(input_dim))

    @torch.no_grad()
    def fit(self, items: Tensor, chunk_size: int = 16384) -> None:
        """Takes the mean (and for ``standardize`` the standard deviation) of the dense features of ``items`` [I, E].

        Raises:
            UserError: a categorical feature outside [0, 1].
        """
        dense, tail = self._parts(items)
        inside = (tail >= 0) & (tail <= 1)
        if not bool(inside.all()):
            raise UserError(
                f"the last {tail.shape[1]} features are categorical by train.vae_n_cat_feats and must lie in [0, 1]: "
                f"got {tail[~inside][0].item():g}; encode them as 0 and 1 or lower train.vae_n_cat_feats"
            )
        if self.input_norm == "none":
            return
        # A chunk at a time, in double precision over the chunks: the catalogue may be float16 and larger than the memory.
        mean = sum(chunk.float().sum(0).cpu().double() for chunk in dense.split(chunk_size)) / len(items)
        self.mean[: self.num_dense] = mean
        if self.input_norm == "standardize":
            near = mean.float().to(items.device)
            squares = sum((chunk.float() - near).square().sum(0).cpu().double() for chunk in dense.split(chunk_size))
            self.scale[: self.num_dense] = (squares / len(items)).sqrt().clamp_min(1e-6)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The dense and the categorical features of [B, E]."""
        return x[:, : self.num_dense], x[:, self.num_dense :]

    def forward(self, x: Tensor) -> Tensor:
        """[B, E] as given -> [B, E] as the tokenizer reads it; categorical features stay as they are."""
        x = x - self.mean
        if self.input_norm == "standardize":
            return x / self.scale
        if self.input_norm == "none":
            return x
        dense, tail = self._parts(x)
        if tail.shape[-1] == 0:
            return normalize(x, dim=-1)
        return torch.cat([normalize(dense, dim=-1), tail], dim=-1)
