"""Attention, the encoder stack and the decoder stack: pre-norm, ReLU feed-forward, biases instead of absolute positions inside attention.

Vaswani et al. (2017), arXiv 1706.03762; pre-norm as Xiong et al. (2020), arXiv 2002.04745. Dropout acts on the embeddings and on what each
sublayer adds to the stream, not on attention weights or inside the feed-forward: its random numbers are a large part of a CPU step.
Shape letters: B batch, Q queries, S keys, D model width, A attention width = H heads x head width, P targets, W beams, t codes written.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn


class KeysValues(NamedTuple):
    keys: Tensor  # [B, H, S, A/H]
    values: Tensor  # [B, H, S, A/H]


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, fused: bool) -> Tensor:
    """softmax(q k^T + bias) v.

    Args:
        queries: [B, H, Q, width], already divided by sqrt(width).
        keys: [B, H, S, width].
        values: [B, H, S, width].
        bias: added to the scores, broadcastable to [B, H, Q, S]; -inf bars a key.
        fused: torch's kernel (the faster one on CUDA) or two batched products with a softmax between them (the faster one on a CPU for
            sequences this short, above all backward).

    Returns:
        [B, H, Q, width].
    """
    if fused:
        mask = None if bias is None else bias.to(queries.dtype)
        return nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=1.0)
    scores = queries @ keys.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return torch.softmax(scores, dim=-1) @ values


class Attention(nn.Module):
    """Multi-head attention of width ``attn_dim``, which need not equal the model's."""

    def __init__(self, dim: int, attn_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_queries = nn.Linear(dim, attn_dim, bias=False)
        self.to_keys_values = nn.Linear(dim, 2 * attn_dim, bias=False)
        self.to_output = nn.Linear(attn_dim, dim, bias=False)

    def queries(self, x: Tensor) -> Tensor:
        """[B, Q, D] -> [B, H, Q, A/H], divided by the root of their width; it is the weights, being fewer, that are divided."""
        scale = (self.to_queries.out_features // self.num_heads) ** -0.5
        return rearrange(nn.functional.linear(x, self.to_queries.weight * scale), "b q (h w) -> b h q w", h=self.num_heads)

    def keys_values(self, x: Tensor) -> KeysValues:
        """[B, S, D] -> keys and values [B, H, S, A/H]."""
        return KeysValues(*rearrange(self.to_keys_values(x), "b s (two h w) -> two b h s w", two=2, h=self.num_heads))

    def over_codes(self, x: Tensor, codes: list[Tensor]) -> Tensor:
        """Each of many rows attends to its own few codes: as ``forward`` with one query a row, but by sums of products, since thousands
        of matrix products of four rows take several times as long.

        Args:
            x: [R, D].
            codes: t tensors [R, 2A], the keys and values of each code side by side, as ``to_keys_values`` gives them.

        Returns:
            [R, D].
        """
        queries = rearrange(self.queries(x.unsqueeze(1)), "r h 1 w -> r h w")
        halves = [rearrange(code, "r (two h w) -> two r h w", two=2, h=self.num_heads) for code in codes]
        scores = torch.stack([(queries * keys).sum(-1) for keys, _ in halves])
        weights = torch.softmax(scores, dim=0).to(queries.dtype).unsqueeze(-1)
        mixed = weights[0] * halves[0][1]
        for code, (_, values) in enumerate(halves[1:], start=1):
            mixed = torch.addcmul(mixed, weights[code], values)
        return self.to_output(rearrange(mixed, "r h w -> r (h w)"))

    def forward(self, x: Tensor, keys_values: KeysValues, bias: Tensor | None) -> Tensor:
        """[B, Q, D] attends to ``keys_values`` -> [B, Q, D]."""
        mixed = attend(self.queries(x), keys_values.keys, keys_values.values, bias, fused=x.is_cuda)
        return self.to_output(rearrange(mixed, "b h q w -> b q (h w)"))


class FeedForward(nn.Module):
    """Linear, ReLU, linear: [..., D] -> [..., D]."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden_dim)
        self.contract = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # In place a search takes .87 of its time; a training step takes 1.04, as autograd copies what is changed behind a view.
        return self.contract(nn.functional.relu(self.expand(x), inplace=not torch.is_grad_enabled()))


class EncoderLayer(nn.Module):
    def __init__(self, dim: int, attn_dim: int, num_heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, attn_dim, num_heads)
        self.ff_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ff_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, S, D], bias broadcastable to [B, H, S, S] -> [B, S, D]."""
        y = self.attention_norm(x)
        x = x + self.dropout(self.attention(y, self.attention.keys_values(y), bias))
        return x + self.dropout(self.feed_forward(self.ff_norm(x)))


class Encoder(nn.Module):
    """A stack of encoder layers and a closing norm."""

    def __init__(self, num_layers: int, dim: int, attn_dim: int, num_heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(EncoderLayer(dim, attn_dim, num_heads, ff_dim, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, S, D], bias broadcastable to [B, H, S, S] -> [B, S, D]."""
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, bias)
        return self.norm(x)


class DecoderLayer(nn.Module):
    def __init__(self, dim: int, attn_dim: int, num_heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, attn_dim, num_heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention = Attention(dim, attn_dim, num_heads)
        self.ff_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ff_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: KeysValues, self_bias: Tensor, cross_bias: Tensor) -> Tensor:
        """All codes of all targets at once (teacher forcing).

        Args:
            x: [B, P, C, D]; a target's codes see each other causally, and no other target's.
            memory: keys and values of the encoded history.
            self_bias: [C, C], -inf above the diagonal.
            cross_bias: broadcastable to [B, H, P x C, S].
        """
        batch, targets = x.shape[:2]
        y = rearrange(self.self_norm(x), "b p c d -> (b p) c d")
        mixed = self.self_attention(y, self.self_attention.keys_values(y), self_bias)
        x = rearrange(x + self.dropout(rearrange(mixed, "(b p) c d -> b p c d", b=batch)), "b p c d -> b (p c) d")
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), memory, cross_bias))
        x = x + self.dropout(self.feed_forward(self.ff_norm(x)))
        return rearrange(x, "b (p c) d -> b p c d", p=targets)

    def step(self, x: Tensor, memory: KeysValues, past: list[Tensor], cross_bias: Tensor) -> tuple[Tensor, Tensor]:
        """One code of every beam.

        Args:
            x: [B, W, D], the newest code of each beam; beams are a query axis of the cross-attention.
            memory: keys and values of the encoded history, computed once, shared by all beams.
            past: keys and values [B x W, 2A] of each code written before.
            cross_bias: broadcastable to [B, H, W, S].

        Returns:
            [B, W, D], and the keys and values [B x W, 2A] of the newest code.
        """
        batch = x.shape[0]
        y = rearrange(self.self_norm(x), "b w d -> (b w) d")
        newest = self.self_attention.to_keys_values(y)
        x = x + rearrange(self.self_attention.over_codes(y, [*past, newest]), "(b w) d -> b w d", b=batch)
        x = x + self.cross_attention(self.cross_norm(x), memory, cross_bias)
        return x + self.feed_forward(self.ff_norm(x)), newest


class Decoder(nn.Module):
    """A stack of decoder layers and a closing norm."""

    def __init__(self, num_layers: int, dim: int, attn_dim: int, num_heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(DecoderLayer(dim, attn_dim, num_heads, ff_dim, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    def stack(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def memory(self, encoded: Tensor) -> list[KeysValues]:
        """Cross-attention keys and values of the encoded history [B, S, D], one pair a layer."""
        return [layer.cross_attention.keys_values(encoded) for layer in self.stack()]

    def forward(self, x: Tensor, memory: list[KeysValues], self_bias: Tensor, cross_bias: Tensor) -> Tensor:
        """[B, P, C, D] -> [B, P, C, D]; see DecoderLayer.forward."""
        x = self.dropout(x)
        for layer, keys_values in zip(self.stack(), memory):
            x = layer(x, keys_values, self_bias, cross_bias)
        return self.norm(x)

    def step(self, x: Tensor, memory: list[KeysValues], past: list[list[Tensor]], cross_bias: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """[B, W, D] and each layer's past -> [B, W, D] and the grown pasts; see DecoderLayer.step."""
        grown = []
        for layer, keys_values, codes in zip(self.stack(), memory, past):
            x, newest = layer.step(x, keys_values, codes, cross_bias)
            grown.append([*codes, newest])
        return self.norm(x), grown
