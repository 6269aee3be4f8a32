"""The peers: Hugging Face's T5 of our size, as TIGER re-implementations use it, and the ways to keep its search valid.

Tokens: 0 pads and starts the decoder, 1 ends; level l's code c is ``2 + sum of the sizes before l + c``; a history is its items' codes in
order, padded to a fixed number of items or to the longest of its batch.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, T5Config, T5ForConditionalGeneration

from data.schemas import TokenizedSeqBatch
from modules.model import DecoderConfig
from modules.tokenizer.trie import PrefixTrie

PAD_TOKEN, END_TOKEN, FIRST_CODE = 0, 1, 2


class T5Peer:
    """T5 with the width, layers, heads and feed-forward of ``config``."""

    def __init__(self, config: DecoderConfig, vocab_sizes: Sequence[int], device: torch.device) -> None:
        self.starts = [FIRST_CODE + start for start in accumulate((0, *vocab_sizes[:-1]))]
        self.vocab_sizes, self.device = tuple(vocab_sizes), device
        self.model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=FIRST_CODE + sum(vocab_sizes),
                d_model=config.embed_dim,
                d_kv=config.attn_dim // config.num_heads,
                d_ff=config.ff_dim,
                num_layers=config.num_layers,
                num_decoder_layers=config.num_layers,
                num_heads=config.num_heads,
                dropout_rate=config.dropout,
                decoder_start_token_id=PAD_TOKEN,
                pad_token_id=PAD_TOKEN,
                eos_token_id=END_TOKEN,
            )
        ).to(device)

    def tokens(self, batch: TokenizedSeqBatch, pad_to_items: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Input [B, S], mask [B, S] and labels [B, C] of a batch with one target a row."""
        starts = torch.tensor(self.starts, device=self.device)
        codes, mask = batch.sem_ids + starts, batch.mask
        if pad_to_items is not None:
            missing = pad_to_items - codes.shape[1]
            codes = torch.nn.functional.pad(codes, (0, 0, 0, missing))
            mask = torch.nn.functional.pad(mask, (0, missing))
        tokens = torch.where(mask.unsqueeze(-1), codes, PAD_TOKEN).flatten(1)
        return tokens, mask.repeat_interleave(len(self.starts), dim=1).long(), batch.target_sem_ids[:, 0] + starts

    def loss(self, tokens: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Cross-entropy of the labels."""
        inputs, mask, labels = tokens
        return self.model(input_ids=inputs, attention_mask=mask, labels=labels).loss

    @torch.no_grad()
    def generate(self, tokens: tuple[Tensor, Tensor, Tensor], beams: int, **constraint: object) -> Tensor:
        """Codes [B, beams, C] of the best beams."""
        inputs, mask, _ = tokens
        length = len(self.starts)
        found = self.model.generate(
            input_ids=inputs, attention_mask=mask, num_beams=beams, num_return_sequences=beams, max_new_tokens=length,
            min_new_tokens=length, do_sample=False, early_stopping=False, **constraint,
        )  # fmt: skip
        return found[:, 1 : 1 + length].view(len(inputs), beams, length) - torch.tensor(self.starts, device=self.device)


class PythonTrie:
    """A dictionary of dictionaries, and the callback that T5's users hand to ``prefix_allowed_tokens_fn``."""

    def __init__(self, sem_ids: Tensor, starts: Sequence[int]) -> None:
        self.root: dict[int, dict] = {}
        for codes in sem_ids.tolist():
            node = self.root
            for code, start in zip(codes, starts):
                node = node.setdefault(code + start, {})

    def __call__(self, batch_id: int, prefix: Tensor) -> list[int]:
        node = self.root
        for token in prefix.tolist()[1:]:
            node = node.get(token, {})
        return list(node) or [END_TOKEN]


class TransitionMask(LogitsProcessor):
    """The trie as a flat transition table on the device, applied to all beams at once: the idea of STATIC (Su et al. 2026).

    The states of the beams are found again from their prefixes at every step, because ``generate`` reorders beams behind our back.
    """

    def __init__(self, trie: PrefixTrie, starts: Sequence[int]) -> None:
        self.trie, self.starts = trie, starts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        depth = input_ids.shape[1] - 1
        codes = input_ids[:, 1:] - torch.tensor(self.starts[:depth], device=input_ids.device, dtype=torch.int64)
        node = self.trie.find(codes)
        first, count = self.trie.children_of(depth, node.clamp_min(0))
        slots = torch.arange(self.trie.widest[depth], device=scores.device)
        exists = (slots < count.unsqueeze(1)) & (node >= 0).unsqueeze(1)
        children = torch.where(exists, first.unsqueeze(1) + slots, 0)
        tokens = torch.where(exists, self.trie.code(depth + 1, children) + self.starts[depth], PAD_TOKEN)
        allowed = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, tokens, exists)
        return scores.masked_fill(~allowed, -torch.inf)


class PrefixComparison(LogitsProcessor):
    """What public TIGER code does: every beam's prefix with every possible next code is compared with every item."""

    def __init__(self, sem_ids: Tensor, starts: Sequence[int], vocab_sizes: Sequence[int]) -> None:
        self.sem_ids, self.starts, self.vocab_sizes = sem_ids, starts, vocab_sizes

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        depth = input_ids.shape[1] - 1
        codes = input_ids[:, 1:] - torch.tensor(self.starts[:depth], device=input_ids.device, dtype=torch.int64)
        fits = (self.sem_ids[:, :depth].unsqueeze(0) == codes.unsqueeze(1)).all(-1)  # [beams, items]
        size, start = self.vocab_sizes[depth], self.starts[depth]
        following = torch.nn.functional.one_hot(self.sem_ids[:, depth], size).to(scores.dtype)
        allowed = (fits.to(scores.dtype) @ following) > 0
        masked = torch.full_like(scores, -torch.inf)
        masked[:, start : start + size] = torch.where(allowed, scores[:, start : start + size], -torch.inf)
        return masked


def processors(processor: LogitsProcessor) -> LogitsProcessorList:
    return LogitsProcessorList([processor])
