"""The sequence model: a Transformer encoder reads a history as codes, a decoder writes the next item's (TIGER, section 3.2).

``encoder_attention = "causal"``: the tokens of an item see the items up to their own, so one encoder pass over a user's history serves all
of its prefixes, and the decoder runs at once for all positions that a target follows. ``"bidirectional"`` is the paper's encoder: one pass
per (history, next item).
Shape letters: B batch, N history length, P targets a row, C codes of an ID, D width, S = encoder tokens, W beams, K codes of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from data.schemas import TokenizedSeqBatch, UserError
from modules.decoding import SearchResult, constrained_beam_search
from modules.embedding import USER_TOKEN, HashedUserEmbedding, ItemDistanceBias, SemanticIdEmbedding
from modules.tokenizer.trie import PrefixTrie
from modules.transformer import Decoder, Encoder, KeysValues

ENCODER_ATTENTIONS = ("causal", "bidirectional")
POSITIONS = ("relative", "learned")


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of the encoder-decoder; with the tokenizer's vocabulary sizes all that is needed to rebuild it."""

    embed_dim: int = 128
    attn_dim: int = 384
    num_heads: int = 6
    num_layers: int = 4
    ff_dim: int = 1024
    dropout: float = 0.1
    max_seq_len: int = 20
    encoder_attention: str = "causal"
    position: str = "relative"
    separator: bool = False
    num_user_buckets: int = 2000

    def __post_init__(self) -> None:
        problems = []
        if self.encoder_attention not in ENCODER_ATTENTIONS:
            problems.append(
                f"train.encoder_attention is {self.encoder_attention!r}; it can be {' or '.join(map(repr, ENCODER_ATTENTIONS))}"
            )
        if self.position not in POSITIONS:
            problems.append(f"train.position is {self.position!r}; it can be {' or '.join(map(repr, POSITIONS))}")
        if self.position == "learned" and self.encoder_attention == "causal":
            problems.append(
                "train.position = 'learned' counts items back from the end of the history, which a causal encoder does not know; "
                "use train.position = 'relative' or train.encoder_attention = 'bidirectional'"
            )
        if min(self.embed_dim, self.attn_dim, self.num_heads, self.num_layers, self.ff_dim, self.max_seq_len) < 1:
            problems.append("the decoder's widths, heads, layers and train.max_seq_len must all be at least 1")
        elif self.attn_dim % self.num_heads:
            problems.append(
                f"train.attn_embed_dim = {self.attn_dim} cannot be split over train.attn_heads = {self.num_heads}: take a multiple"
            )
        if self.num_user_buckets < 0:
            problems.append(f"train.num_user_bins is {self.num_user_buckets}; it must be 0 (no user token) or more")
        if not 0 <= self.dropout < 1:
            problems.append(f"train.dropout_p is {self.dropout}; it must lie in [0, 1)")
        if problems:
            raise UserError(*problems)


class ModelOutput(NamedTuple):
    loss: Tensor  # scalar: cross-entropy summed over levels, averaged over targets
    level_losses: Tensor  # [C], detached


class Encoded(NamedTuple):
    memory: list[KeysValues]  # one pair a decoder layer, [B, H, S, A/H]
    token_items: Tensor  # [1, S], the item position of each encoder token; USER_TOKEN for the user's
    token_mask: Tensor  # [B, S] bool, True at real tokens


class EncoderDecoderRetrievalModel(nn.Module):
    """Loss of next-item semantic IDs, and their generation by constrained beam search.

    Args:
        config: shape.
        vocab_sizes: C vocabulary sizes, the collision code's last where there is one.
    """

    self_bias: Tensor

    def __init__(self, config: DecoderConfig, vocab_sizes: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.vocab_sizes = tuple(vocab_sizes)
        dim, num_codes = config.embed_dim, len(vocab_sizes)
        stack = (config.num_layers, dim, config.attn_dim, config.num_heads, config.ff_dim, config.dropout)
        self.history_embedding = SemanticIdEmbedding(vocab_sizes, dim)
        self.target_embedding = SemanticIdEmbedding(vocab_sizes, dim)
        self.level_embedding = nn.Parameter(torch.randn(num_codes, dim))
        self.user_embedding = HashedUserEmbedding(config.num_user_buckets, dim) if config.num_user_buckets else None
        self.separator = nn.Parameter(torch.randn(dim)) if config.separator else None
        self.recency_embedding = nn.Embedding(config.max_seq_len, dim) if config.position == "learned" else None
        self.encoder_bias = ItemDistanceBias(config.num_heads, config.max_seq_len)
        self.cross_bias = ItemDistanceBias(config.num_heads, config.max_seq_len)
        self.encoder = Encoder(*stack)
        self.decoder = Decoder(*stack)
        self.heads = nn.ModuleList(nn.Linear(dim, size) for size in vocab_sizes)
        self.register_buffer("self_bias", torch.full((num_codes, num_codes), -torch.inf).triu(1), persistent=False)

    # -- encoder ------------------------------------------------------------------------------------------------------------------------

    def _tokens(self, batch: TokenizedSeqBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Encoder input [B, S, D], item position of each token [1, S], mask of real tokens [B, S]."""
        length = batch.sem_ids.shape[1]
        x = self.history_embedding(batch.sem_ids)
        if self.recency_embedding is not None:
            from_end = batch.mask.sum(1, keepdim=True) - 1 - torch.arange(length, device=x.device)
            x = x + self.recency_embedding(from_end.clamp_min(0)).unsqueeze(2)
        if self.separator is not None:
            x = torch.cat([x, self.separator.expand(*x.shape[:2], 1, -1)], dim=2)
        tokens_per_item = x.shape[2]
        x = rearrange(x, "b n c d -> b (n c) d")
        items = torch.arange(length, device=x.device).repeat_interleave(tokens_per_item)
        mask = batch.mask.repeat_interleave(tokens_per_item, dim=1)
        if self.user_embedding is not None:
            x = torch.cat([self.user_embedding(batch.user_ids).unsqueeze(1), x], dim=1)
            items = torch.cat([items.new_full((1,), USER_TOKEN), items])
            mask = torch.cat([mask.new_ones(mask.shape[0], 1), mask], dim=1)
        return x, items.unsqueeze(0), mask

    def encode(self, batch: TokenizedSeqBatch) -> Encoded:
        """Encodes the histories and computes the decoder's cross-attention keys and values from them, once for all targets and beams."""
        x, items, mask = self._tokens(batch)
        bias = self.encoder_bias(items, items)
        if self.config.encoder_attention == "causal":
            # Padding lies after every real item, so no real token sees any of it.
            bias = bias.masked_fill(items.unsqueeze(1) > items.unsqueeze(2), -torch.inf)
        else:
            bias = bias.masked_fill(~mask[:, None, None, :], -torch.inf)
        encoded = self.encoder(self._in_compute_dtype(x), self._in_compute_dtype(bias))
        return Encoded(self.decoder.memory(encoded), items, mask)

    def _cross_bias(self, encoded: Encoded, last_items: Tensor) -> Tensor:
        """[B or 1, H, P, S]: by distance of each target's last item ``last_items`` [B or 1, P] to each token; later items are barred."""
        bias = self.cross_bias(last_items, encoded.token_items)
        later = encoded.token_items.unsqueeze(-2) > last_items.unsqueeze(-1)
        return self._in_compute_dtype(bias.masked_fill(later.unsqueeze(1), -torch.inf))

    @staticmethod
    def _in_compute_dtype(x: Tensor) -> Tensor:
        """The residual stream has autocast's dtype where autocast is on."""
        device = x.device.type
        return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x

    # -- training -----------------------------------------------------------------------------------------------------------------------

    def target_logits(self, batch: TokenizedSeqBatch) -> list[Tensor]:
        """Teacher forcing: for each level its logits [B, P, K], given the history and the target's codes of the levels above."""
        encoded = self.encode(batch)
        num_codes = len(self.vocab_sizes)
        previous = self.target_embedding(batch.target_sem_ids[..., : num_codes - 1])
        x = torch.cat([torch.zeros_like(previous[..., :1, :]) if num_codes > 1 else self._blank(batch), previous], dim=2)
        x = self._in_compute_dtype(x + self.level_embedding)
        length, targets = batch.mask.shape[1], batch.target_mask.shape[1]
        if self.config.encoder_attention == "causal" and targets > 1:
            last_items = torch.arange(length - targets, length, device=x.device).unsqueeze(0)
        else:
            last_items = batch.mask.sum(1, keepdim=True) - 1
        cross_bias = self._cross_bias(encoded, last_items).repeat_interleave(num_codes, dim=2)
        x = self.decoder(x, encoded.memory, self._in_compute_dtype(self.self_bias), cross_bias)
        return [head(x[..., level, :]) for level, head in enumerate(self.heads)]

    def _blank(self, batch: TokenizedSeqBatch) -> Tensor:
        return self.level_embedding.new_zeros(*batch.target_mask.shape, 1, self.config.embed_dim)

    def forward(self, batch: TokenizedSeqBatch, label_smoothing: float = 0.0) -> ModelOutput:
        """Cross-entropy of the target codes, summed over the C levels and averaged over the targets that are there.

        Args:
            batch: P targets, one after each of the last P positions (causal encoder), or P = 1, after each row's last item.
            label_smoothing: share of the target's probability spread over the level's vocabulary.
        """
        losses = []
        count = batch.target_mask.sum().clamp_min(1)
        for level, logits in enumerate(self.target_logits(batch)):
            codes = batch.target_sem_ids[..., level].masked_fill(~batch.target_mask, -100)
            summed = nn.functional.cross_entropy(
                logits.float().flatten(0, 1), codes.flatten(), ignore_index=-100, reduction="sum", label_smoothing=label_smoothing
            )
            losses.append(summed / count)
        level_losses = torch.stack(losses)
        return ModelOutput(level_losses.sum(), level_losses.detach())

    # -- generation ---------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate_next_sem_id(
        self,
        batch: TokenizedSeqBatch,
        trie: PrefixTrie,
        beam_size: int,
        seen: Tensor | None = None,
        tuple_depth: int | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> SearchResult:
        """The ``beam_size`` most probable existing items after each history, by constrained beam search; see there for the arguments.

        Args:
            batch: histories; its targets are not read.
            seen: [B, ...] item ids that must not come back, PAD-filled.
        """
        encoded = self.encode(batch)
        memory = [KeysValues(*(half.contiguous() for half in layer)) for layer in encoded.memory]  # or each step would copy them
        cross_bias = self._cross_bias(encoded, batch.mask.sum(1, keepdim=True) - 1)
        past: list[list[Tensor]] = [[] for _ in encoded.memory]

        def step(level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
            nonlocal past
            x = self.level_embedding[level].expand(batch.user_ids.shape[0], 1, -1)
            if codes is not None and parents is not None:
                x = x + self.target_embedding.level(codes, level - 1)
                rows = _rows(parents, past[0][0].shape[0])
                past = [[code.index_select(0, rows) for code in layer] for layer in past]
            x, past = self.decoder.step(self._in_compute_dtype(x), memory, past, cross_bias)
            return self.heads[level](x)

        return constrained_beam_search(step, trie, batch.user_ids.shape[0], beam_size, seen, tuple_depth, temperature, generator)


def _rows(parents: Tensor, num_rows: int) -> Tensor:
    """Where each of the beams that continue ``parents`` [B, W'] finds its past among ``num_rows`` = B x W rows -> [B x W']."""
    batch = parents.shape[0]
    return (torch.arange(batch, device=parents.device).unsqueeze(1) * (num_rows // batch) + parents).flatten()
