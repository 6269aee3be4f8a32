"""SASRec with cross-entropy over the catalogue: a causal transformer over item ids whose last state is compared with every item's vector.

Kang and McAuley (2018), arXiv 1808.09781, section III, with the loss of Klenitskiy and Vasilev (2023), arXiv 2309.07602: the softmax over
all items instead of one sampled negative. It needs no semantic IDs and is the trained baseline of this project.
Shape letters: B batch, N history length, P targets per row, I items, D width, H heads, E text-embedding width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from data.schemas import PAD, SeqBatch, UserError
from modules.item_softmax import FULL_UP_TO, SAMPLES, item_loss
from modules.transformer import Attention, attend


@dataclass(frozen=True)
class SASRecConfig:
    """Shape and loss; together with the number of items and the width of their texts all that is needed to rebuild it."""

    dim: int = 128
    num_layers: int = 2
    num_heads: int = 2
    ff_dim: int = 512
    dropout: float = 0.5
    max_seq_len: int = 50
    text: bool = False
    """Adds a projection of the item's text embedding to its learned vector."""
    full_softmax_items: int = FULL_UP_TO
    """Catalogues above this size are trained with ``sampled_items`` instead of all items."""
    sampled_items: int = SAMPLES
    """Items a step compares the targets with where the softmax is sampled."""

    def __post_init__(self) -> None:
        problems = []
        if min(self.dim, self.num_layers, self.num_heads, self.ff_dim, self.max_seq_len, self.sampled_items) < 1:
            problems.append("SASRec's widths, heads, layers, train.max_seq_len and train.sampled_items must all be at least 1")
        elif self.dim % self.num_heads:
            problems.append(
                f"train.decoder_embed_dim = {self.dim} cannot be split over train.attn_heads = {self.num_heads}: take a multiple"
            )
        if not 0 <= self.dropout < 1:
            problems.append(f"train.dropout_p is {self.dropout}; it must lie in [0, 1)")
        if problems:
            raise UserError(*problems)


class SASRecOutput(NamedTuple):
    loss: Tensor  # scalar: cross-entropy averaged over the targets that are there
    parts: dict[str, Tensor]  # what the loss is made of: here nothing but itself


class PostNormLayer(nn.Module):
    """Attention, then a GELU feed-forward; each is added to the stream, which is normalised after it. Dropout acts on attention weights,
    inside the feed-forward and on what is added."""

    def __init__(self, dim: int, num_heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, dim, num_heads)
        self.attention_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, ff_dim)
        self.contract = nn.Linear(ff_dim, dim)
        self.ff_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, N, D], bias [N, N] with -inf at what may not be seen -> [B, N, D]."""
        queries, (keys, values) = self.attention.queries(x), self.attention.keys_values(x)
        if self.training and self.dropout.p > 0:
            weights = torch.softmax(queries @ keys.transpose(-1, -2) + bias.to(queries.dtype), dim=-1)
            mixed = self.dropout(weights).to(values.dtype) @ values
        else:
            mixed = attend(queries, keys, values, bias, fused=x.is_cuda)
        x = self.attention_norm(x + self.dropout(self.attention.to_output(rearrange(mixed, "b h n w -> b n (h w)"))))
        hidden = self.dropout(nn.functional.gelu(self.expand(x)))
        return self.ff_norm(x + self.dropout(self.contract(hidden)))


class SASRec(nn.Module):
    """Cross-entropy of the next item after every position, and the scores of all items after a history.

    Args:
        config: shape and loss.
        num_items: I.
        text_vectors: [I, E] text embeddings, centred and of length 1 as ``modules.nearest.directions`` makes them; needed with
            ``config.text`` and kept outside the saved weights.

    Raises:
        ValueError: text vectors are missing, or not one an item.
    """

    causal_bias: Tensor
    text_vectors: Tensor

    def __init__(self, config: SASRecConfig, num_items: int, text_vectors: Tensor | None = None) -> None:
        super().__init__()
        if config.text and (text_vectors is None or len(text_vectors) != num_items):
            got = "none" if text_vectors is None else f"{len(text_vectors)}"
            raise ValueError(f"SASRec with texts needs a text vector for each of {num_items} items: got {got}")
        self.config, self.num_items = config, num_items
        self.item_embedding = nn.Embedding(num_items, config.dim)
        self.position_embedding = nn.Embedding(config.max_seq_len, config.dim)
        for embedding in (self.item_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)
        self.text_projection: nn.Module | None = None
        if config.text and text_vectors is not None:
            width = text_vectors.shape[1]
            self.text_projection = nn.Sequential(nn.Linear(width, 2 * config.dim), nn.GELU(), nn.Linear(2 * config.dim, config.dim))
            self.register_buffer("text_vectors", text_vectors, persistent=False)
        self.input_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        shape = (config.dim, config.num_heads, config.ff_dim, config.dropout)
        self.layers = nn.ModuleList(PostNormLayer(*shape) for _ in range(config.num_layers))
        barred = torch.full((config.max_seq_len, config.max_seq_len), -torch.inf).triu(1)
        self.register_buffer("causal_bias", barred, persistent=False)

    @property
    def sampled(self) -> bool:
        """Whether a training step compares its targets with a sample of the catalogue."""
        return self.num_items > self.config.full_softmax_items

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """The vectors that histories are read as and states are compared with: of ``item_ids`` [...] -> [..., D], or of all -> [I, D]."""
        vectors = self.item_embedding.weight if item_ids is None else self.item_embedding(item_ids)
        if self.text_projection is None:
            return vectors
        texts = self.text_vectors if item_ids is None else self.text_vectors[item_ids]
        return vectors + self.text_projection(texts.to(self.item_embedding.weight.dtype))

    def states(self, item_ids: Tensor, table: Tensor | None = None) -> Tensor:
        """The state after every position; it depends on that position and those before it.

        Args:
            item_ids: [B, N], PAD on the right, N at most ``max_seq_len``.
            table: [I, D] from ``item_vectors``, where the caller has it.

        Returns:
            [B, N, D]; without meaning where ``item_ids`` is PAD.

        Raises:
            ValueError: rows longer than ``max_seq_len``.
        """
        length = item_ids.shape[1]
        if length > self.config.max_seq_len:
            raise ValueError(f"SASRec reads {self.config.max_seq_len} items at most: got rows of {length}; cut their beginning")
        real = item_ids.clamp_min(0)
        x = nn.functional.embedding(real, table) if table is not None else self.item_vectors(real)
        x = x.masked_fill((item_ids == PAD).unsqueeze(-1), 0.0) + self.position_embedding.weight[:length]
        x = self.dropout(self.input_norm(x))
        bias = self.causal_bias[:length, :length]
        for layer in self.layers:
            x = layer(x, bias)
        return x

    def forward(self, batch: SeqBatch, label_smoothing: float = 0.0) -> SASRecOutput:
        """Cross-entropy of a batch's targets, softmax over all items or, above ``full_softmax_items``, over a sample of them.

        Args:
            batch: P targets, one after each of the last P positions; or P = 1, after each row's last item.
            label_smoothing: share of the target's probability that is spread over all items.
        """
        table = None if self.sampled else self.item_vectors()
        states = self.states(batch.item_ids, table)
        width = batch.targets.shape[1]
        states = _last_states(states, batch.item_ids).unsqueeze(1) if width == 1 else states[:, -width:]
        samples = self.config.sampled_items
        return SASRecOutput(item_loss(states, batch.targets, table, self.item_vectors, self.num_items, samples, label_smoothing), {})

    def scores(self, batch: SeqBatch) -> Tensor:
        """Every item's score after each history; targets are not read.

        The product with the items runs in fp32 also under autocast, since scores in bf16 tie.

        Args:
            batch: histories of at most ``max_seq_len`` items, PAD on the right.

        Returns:
            [B, I] float32, higher = better.
        """
        table = self.item_vectors()
        last = _last_states(self.states(batch.item_ids, table), batch.item_ids)
        with torch.autocast(last.device.type, enabled=False):
            return last.float() @ table.float().T


def _last_states(states: Tensor, item_ids: Tensor) -> Tensor:
    """States [B, N, D] at each row's last item -> [B, D]; at the first position for an empty row."""
    last = ((item_ids != PAD).sum(1) - 1).clamp_min(0)
    return states[torch.arange(len(states), device=states.device), last]
