"""The sequence model: a Transformer encoder reads a history, a decoder writes the next item's codes (TIGER, section 3.2).

``encoder_attention = "causal"``: the tokens of an item see the items up to their own, so one encoder pass over a user's history serves all
of its prefixes, and the decoder runs at once for all positions that a target follows. ``"bidirectional"`` is the paper's encoder: one pass
per (history, next item). Codes are scored over a level's whole codebook or over the children that exist (modules.tree_softmax); histories
are read code by code, as in the paper, or item by item (modules.item_tokens).
Shape letters: B batch, N history length, P targets a row, C codes of an ID, D width, S = encoder tokens, W beams, K codes of a level,
I items.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from data.schemas import TokenizedSeqBatch, UserError
from modules.beam_search import ChildScorer, CodebookScorer, Ranking, SearchResult, beam_search
from modules.beam_states import BeamStates
from modules.catalogue import Catalogue
from modules.code_losses import codebook_loss
from modules.decoder_config import DecoderConfig as DecoderConfig
from modules.distill import TeacherShares
from modules.embedding import USER_TOKEN, HashedUserEmbedding, ItemDistanceBias, SemanticIdEmbedding
from modules.item_softmax import item_loss
from modules.item_tokens import ItemTokens
from modules.tokenizer.trie import PrefixTrie
from modules.transformer import Decoder, Encoder, KeysValues
from modules.tree_softmax import TreeScorer, TreeSoftmax


class ModelOutput(NamedTuple):
    loss: Tensor  # scalar: cross-entropy summed over levels, averaged over targets, and the item head's
    parts: dict[str, Tensor]  # what the loss is made of, detached: "level_losses" [C] and, where there is one, "item_head", a scalar


class Encoded(NamedTuple):
    memory: list[KeysValues]  # one pair a decoder layer, [B, H, S, A/H]
    token_items: Tensor  # [1, S], the item position of each encoder token; USER_TOKEN for the user's
    token_mask: Tensor  # [B, S] bool, True at real tokens
    states: Tensor  # [B, S, D], the encoder's output


class EncoderDecoderRetrievalModel(nn.Module):
    """Loss of next-item semantic IDs, and their generation by constrained beam search.

    Args:
        config: shape and switches.
        vocab_sizes: C vocabulary sizes, the collision code's last where there is one.
        catalogue: the items, for the switches that read more of them than codes.

    Raises:
        UserError: such a switch without a catalogue.
    """

    self_bias: Tensor

    def __init__(self, config: DecoderConfig, vocab_sizes: Sequence[int], catalogue: Catalogue | None = None) -> None:
        super().__init__()
        self.config = config
        self.vocab_sizes = tuple(vocab_sizes)
        dim, num_codes = config.embed_dim, len(vocab_sizes)
        stack = (config.num_layers, dim, config.attn_dim, config.num_heads, config.ff_dim, config.dropout)
        by_code = config.history_tokens == "codes"
        self.history_embedding = SemanticIdEmbedding(vocab_sizes, dim, config.history_std) if by_code else None
        self.target_embedding = SemanticIdEmbedding(vocab_sizes, dim, config.target_init_std)
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
        self.items: ItemTokens | None = None
        self.tree: TreeSoftmax | None = None
        if config.needs_catalogue and catalogue is None:
            raise UserError("train.history_tokens = 'items' and train.code_softmax = 'children' need the catalogue of items")
        if catalogue is not None and not by_code:
            self.items = ItemTokens(
                catalogue, vocab_sizes, dim, config.history_std, config.learned_items, config.item_dropout, config.text_projection
            )
        if catalogue is not None and config.code_softmax == "children":
            self.tree = TreeSoftmax(catalogue, dim, config.node_init_std, config.node_embeddings, config.node_dropout, config.tie_nodes)

    # -- encoder ------------------------------------------------------------------------------------------------------------------------

    def _tokens(self, batch: TokenizedSeqBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Encoder input [B, S, D], item position of each token [1, S], mask of real tokens [B, S]."""
        length = batch.sem_ids.shape[1]
        if self.history_embedding is not None:
            x = self.history_embedding(batch.sem_ids)
        else:
            assert self.items is not None
            x = self.items(_given(batch.item_ids), batch.sem_ids).unsqueeze(2)
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
        return Encoded(self.decoder.memory(encoded), items, mask, encoded)

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

    def item_states(self, encoded: Encoded, batch: TokenizedSeqBatch, last: Tensor | None = None) -> Tensor:
        """[B, P, D]: the encoder's states behind the items ``last`` [B or 1, P], or before each target, where an item is one token."""
        index = (self._last_items(batch) if last is None else last) + encoded.states.shape[1] - batch.mask.shape[1]
        return encoded.states.gather(1, index.unsqueeze(-1).expand(encoded.states.shape[0], -1, encoded.states.shape[2]))

    # -- training -----------------------------------------------------------------------------------------------------------------------

    def _last_items(self, batch: TokenizedSeqBatch) -> Tensor:
        """[B or 1, P]: position of the last item before each target."""
        length, targets = batch.mask.shape[1], batch.target_mask.shape[1]
        if self.config.encoder_attention == "causal" and targets > 1:
            return torch.arange(length - targets, length, device=batch.mask.device).unsqueeze(0)
        return batch.mask.sum(1, keepdim=True) - 1

    def _decode(self, encoded: Encoded, batch: TokenizedSeqBatch) -> Tensor:
        """Teacher forcing: the decoder's states [B, P, C, D], given the history and the target's codes of the levels above."""
        num_codes = len(self.vocab_sizes)
        previous = self.target_embedding(batch.target_sem_ids[..., : num_codes - 1])
        x = torch.cat([torch.zeros_like(previous[..., :1, :]) if num_codes > 1 else self._blank(batch), previous], dim=2)
        last = self._last_items(batch)
        x = self._in_compute_dtype(x + self._level_inputs(encoded, batch, last))
        cross_bias = self._cross_bias(encoded, last).repeat_interleave(num_codes, dim=2)
        return self.decoder(x, encoded.memory, self._in_compute_dtype(self.self_bias), cross_bias)

    def _level_inputs(self, encoded: Encoded, batch: TokenizedSeqBatch, last: Tensor) -> Tensor:
        """Added to the decoder's input of each level: [C, D], or [B, P, C, D] where it reads the states behind the items ``last``."""
        if not self.config.decoder_reads_state:
            return self.level_embedding
        return self.level_embedding + self.item_states(encoded, batch, last).unsqueeze(2)

    def target_logits(self, batch: TokenizedSeqBatch) -> list[Tensor]:
        """For each level the logits [B, P, K] of its codebook, given the history and the target's codes of the levels above."""
        x = self._decode(self.encode(batch), batch)
        return [head(x[..., level, :]) for level, head in enumerate(self.heads)]

    def _blank(self, batch: TokenizedSeqBatch) -> Tensor:
        return self.level_embedding.new_zeros(*batch.target_mask.shape, 1, self.config.embed_dim)

    def forward(self, batch: TokenizedSeqBatch, label_smoothing: float = 0.0) -> ModelOutput:
        """Cross-entropy of the target codes, summed over the C levels and averaged over the targets that are there; and the item head's.

        Args:
            batch: P targets, one after each of the last P positions (causal encoder), or P = 1, after each row's last item.
            label_smoothing: share of the target's probability spread over the level's vocabulary, or over the children that exist.
        """
        encoded = self.encode(batch)
        x = self._decode(encoded, batch)
        table = self._item_table()
        states = self.item_states(encoded, batch) if self.config.item_head else None
        if self.tree is None:
            levels = [(head(x[..., level, :]), batch.target_sem_ids[..., level]) for level, head in enumerate(self.heads)]
            losses = [codebook_loss(logits, codes, batch.target_mask, label_smoothing) for logits, codes in levels]
        else:
            shares = None
            if self.config.distill and states is not None and table is not None:
                shares = TeacherShares(states, table, self.tree.catalogue.trie, self.config.distill)
            losses = self.tree.losses(x, self.heads, _given(batch.targets), table, label_smoothing, shares)
        level_losses = torch.stack(losses)
        loss, parts = level_losses.sum(), {"level_losses": level_losses.detach()}
        if states is not None and self.items is not None:
            whole = table if self._reads_all_items else None
            num_items, samples = self.items.catalogue.num_items, self.config.sampled_items
            item_head = item_loss(states, _given(batch.targets), whole, self.items.vectors, num_items, samples)
            loss, parts["item_head"] = loss + self.config.item_head_weight * item_head, item_head.detach()
        return ModelOutput(loss, parts)

    def _item_table(self) -> Tensor | None:
        """[I, D], where a step reads the vectors of all items."""
        if self.items is None:
            return None
        full_head = self.config.item_head and self._reads_all_items
        return self.items.table() if full_head or self.config.tie_nodes or self.config.distill else None

    @property
    def _reads_all_items(self) -> bool:
        """Whether the item head's loss has every item in its denominator."""
        return self.items is not None and self.items.catalogue.num_items <= self.config.full_softmax_items

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
        ranking: Ranking | None = None,
        among: Tensor | None = None,
        encoded: Encoded | None = None,
    ) -> SearchResult:
        """The ``beam_size`` most probable existing items after each history, by constrained beam search; see there for the arguments.

        Args:
            batch: histories; its targets are not read.
            trie: the catalogue; where codes are scored over the children that exist, it must be the model's own.
            seen: [B, ...] item ids that must not come back, PAD-filled.
            encoded: what ``encode`` gave for the batch, where it is at hand.
        """
        encoded = self.encode(batch) if encoded is None else encoded
        last = batch.mask.sum(1, keepdim=True) - 1
        cross_bias, levels = self._cross_bias(encoded, last), self._level_inputs(encoded, batch, last)
        states = BeamStates(self.decoder, self.target_embedding, levels, encoded.memory, cross_bias, self._in_compute_dtype)
        scorer: ChildScorer
        if self.tree is None:
            depth = trie.depth if tuple_depth is None else tuple_depth
            scorer = CodebookScorer(lambda level, parents, codes: self.heads[level](states(level, parents, codes)), depth)
        else:
            self.tree.check(trie)
            table = self.items.table() if self.items is not None and self.config.tie_nodes else None
            scorer = TreeScorer(states, self.tree, self.heads, self.tree.node_vectors(table))
        return beam_search(scorer, trie, batch.user_ids.shape[0], beam_size, seen, tuple_depth, temperature, generator, ranking, among)


def _given(items: Tensor | None) -> Tensor:
    """The batch's items, which batches made by hand may lack.

    Raises:
        ValueError: the batch has codes alone.
    """
    if items is None:
        raise ValueError("train.history_tokens = 'items' and train.code_softmax = 'children' need batches with item ids")
    return items
