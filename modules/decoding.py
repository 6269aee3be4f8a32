"""Constrained beam search over a prefix trie: deterministic, on the device, and only codes that lead to an existing item can be written.

Every beam carries its trie node; a step scores the children of all beams and keeps the best. On a GPU and in an exported graph no value
steers Python, so there is no synchronisation with the host and a search of given shapes is one static graph.
A semantic code's score is its log-probability under the model's softmax over the *whole* codebook of the level, not renormalised over the
children that exist, so that a history under which none of them is likely scores low; renormalised, ndcg@10 on Beauty falls by .0004. The
collision code says nothing of the item: it is scored among the children that exist, and an only child, as nearly all are, is certain. On a
CPU the search ends early there: the model is asked about the beams with several children alone.
Shape letters: B batch, W beams, K codes of a level, M most children of a node, S items of a history, C codes of an ID.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from data.schemas import PAD
from distributions.gumbel import gumbel_noise
from modules.tokenizer.trie import PrefixTrie


class StepFunction(Protocol):
    """The model as the search sees it."""

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        """Logits [B, W, K] of level ``level``'s codes for the beams that are asked about: all, or some of them at the last level.

        Args:
            level: 0..C-1, in order; the last may be left out.
            parents: [B, W] int64, which beam of the previous step each beam continues; None at level 0, where W = 1.
            codes: [B, W] int64, the code each beam wrote last; None at level 0.
        """


class SearchResult(NamedTuple):
    item_ids: Tensor  # [B, W] int64, best first (in a sampled search: in the draw's order), distinct; PAD where fewer items are left
    log_probs: Tensor  # [B, W] fp32, the ID's score: its log-probability, see above; -inf where item_ids is PAD
    sem_ids: Tensor  # [B, W, C] int64; PAD where item_ids is PAD
    tuples: Tensor  # [B, W'] int64: trie nodes at depth ``tuple_depth``, best first, as the search kept them there; PAD beyond


def constrained_beam_search(
    step: StepFunction,
    trie: PrefixTrie,
    batch_size: int,
    beam_size: int,
    seen: Tensor | None = None,
    tuple_depth: int | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> SearchResult:
    """Writes semantic IDs code after code, keeping the ``beam_size`` best prefixes of existing items.

    Always returns min(beam_size, items left) distinct existing items a row: a prefix is kept only if an item below it is left.

    Args:
        step: gives the logits of the next code of every beam.
        trie: the catalogue; its device is the search's.
        batch_size: B.
        beam_size: W, at least the largest number of items wanted.
        seen: [B, S] item ids to bar, PAD-filled; a node is barred when every item below it is.
        tuple_depth: semantic codes of an ID, C if None: ``tuples`` are taken there, and codes below it are scored among the children that
            exist.
        temperature: 0 keeps the best. Above 0, each step draws its beams without replacement with probabilities proportional to
            exp(score / temperature) (Gumbel top-k; Kool et al. 2019, arXiv 1903.06059, section 2.3); the order is then the draw's.
        generator: for the draw.
    """
    device = trie.items.device
    node = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
    score = torch.zeros(batch_size, 1, dtype=torch.float32, device=device)
    written = torch.empty(batch_size, 1, 0, dtype=torch.int64, device=device)
    barred = None if seen is None else trie.exhausted(seen)
    tuple_depth = trie.depth if tuple_depth is None else tuple_depth
    parents: Tensor | None = None
    codes: Tensor | None = None
    tuples = node
    # Depths 0..C-1 write a code; depth C opens the leaves into their items, which costs nothing where each holds one.
    for depth in range(trie.depth + 1):
        first, count = trie.children_of(depth, node)
        slots = torch.arange(trie.widest[depth], device=device)
        children = first.unsqueeze(-1) + slots
        exists = slots < count.unsqueeze(-1)
        children = torch.where(exists, children, 0)
        candidates = score.unsqueeze(-1)
        if depth < trie.depth:
            child_codes = trie.code(depth + 1, children)
            if depth < tuple_depth or parents is None or codes is None:
                log_probs = torch.log_softmax(step(depth, parents, codes).float(), dim=-1).gather(-1, child_codes)
            elif depth + 1 == trie.depth and _may_wait(device):
                exists_alive = exists & (score > -torch.inf).unsqueeze(-1)
                log_probs = _where_several(step, depth, parents, codes, child_codes, exists_alive)
            else:
                log_probs = _among_children(step(depth, parents, codes), child_codes, exists)
            candidates = candidates + log_probs
        candidates = candidates.masked_fill(~exists, -torch.inf)
        if barred is not None:
            candidates = candidates.masked_fill(_barred_children(trie, depth, node, first, barred[depth], len(slots)), -torch.inf)
        candidates = candidates.flatten(1)
        key = candidates
        if temperature > 0 and depth < trie.depth:
            key = candidates / temperature + gumbel_noise(candidates, generator)
        if depth < trie.depth:
            chosen = key.topk(min(beam_size, candidates.shape[1]), dim=1).indices
        else:
            # The beams stand in order, and the items of a leaf, which share its score, in the trie's: only what is barred moves back.
            chosen = (candidates == -torch.inf).to(torch.uint8).argsort(dim=1, stable=True)[:, :beam_size]
        score = candidates.gather(1, chosen)
        parents = chosen // len(slots)
        node = children.flatten(1).gather(1, chosen)
        if depth < trie.depth:
            codes = child_codes.flatten(1).gather(1, chosen)
            written = torch.cat([written.gather(1, parents.unsqueeze(-1).expand(-1, -1, depth)), codes.unsqueeze(-1)], dim=-1)
        else:
            written = written.gather(1, parents.unsqueeze(-1).expand(-1, -1, depth))
        if depth + 1 == tuple_depth:
            tuples = node.masked_fill(score == -torch.inf, PAD)
    left = score > -torch.inf
    item_ids = torch.where(left, trie.items[node].long(), PAD)
    return SearchResult(item_ids, score, written.masked_fill(~left.unsqueeze(-1), PAD), tuples)


def _among_children(logits: Tensor, child_codes: Tensor, exists: Tensor) -> Tensor:
    """Logits [B, W, K] as log-probabilities [B, W, M] of the codes of the children that exist; 0 where there is none."""
    log_probs = torch.log_softmax(logits.float().gather(-1, child_codes).masked_fill(~exists, -torch.inf), dim=-1)
    return torch.where(exists, log_probs, 0.0)


def _where_several(step: StepFunction, depth: int, parents: Tensor, codes: Tensor, child_codes: Tensor, exists: Tensor) -> Tensor:
    """What ``_among_children`` gives, but a row asks the model about no more beams than the row with the most such beams has."""
    several = exists.sum(-1) > 1
    most = int(several.sum(1).max())
    log_probs = torch.zeros(exists.shape, device=exists.device)
    if most == 0:
        return log_probs
    asked = several.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    logits = step(depth, parents.gather(1, asked), codes.gather(1, asked))
    rows = asked.unsqueeze(-1).expand(-1, -1, exists.shape[-1])
    return log_probs.scatter(1, rows, _among_children(logits, child_codes.gather(1, rows), exists.gather(1, rows)))


def _may_wait(device: torch.device) -> bool:
    """Whether a value may steer Python: where it costs no waiting for a GPU and no graph is being recorded."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def _barred_children(trie: PrefixTrie, depth: int, node: Tensor, first: Tensor, exhausted: Tensor, width: int) -> Tensor:
    """[B, W, width] bool: which children of ``node`` [B, W] are among the ``exhausted`` [B, S] nodes of the next depth."""
    real = exhausted != PAD
    child = exhausted.clamp_min(0)
    parent = trie.parent(depth + 1, child)
    slot = (child - trie.children_of(depth, parent).first).unsqueeze(1).expand(-1, node.shape[1], -1)
    is_child = (node.unsqueeze(-1) == parent.unsqueeze(1)) & real.unsqueeze(1)
    hits = torch.zeros(*node.shape, width, dtype=torch.int32, device=node.device)
    return hits.scatter_add_(-1, slot, is_child.int()) > 0
