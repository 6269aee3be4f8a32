"""Constrained beam search over a prefix trie: deterministic, on the device, and only codes that lead to an existing item can be written.

Every beam carries its trie node; a step asks a scorer for the log-probabilities of the children of all beams and keeps the best. On a GPU
and in an exported graph no value steers Python, so there is no synchronisation with the host and a search of given shapes is one static
graph. Where a scorer normalises over the children that exist, an only child is certain: on a CPU the search ends early there, and the last
step asks about the beams with several children alone. The model's log-probability stays apart from the key that ranks beams, which a
mixture with another distribution over items may supply (modules.mixture).
Shape letters: B batch, W beams, K codes of a level, M most children of a node, S items of a history, C codes of an ID.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from data.schemas import PAD
from distributions.gumbel import gumbel_noise
from modules.tokenizer.trie import PrefixTrie


class Beams(NamedTuple):
    """Beams that a scorer is asked about: all of a step, or some of them at the last."""

    depth: int  # codes written so far
    nodes: Tensor  # [B, W] int64, trie nodes at that depth
    parents: Tensor | None  # [B, W] int64, which beam of the previous step each continues; None at depth 0, where W = 1
    codes: Tensor | None  # [B, W] int64, the code each wrote last; None at depth 0


class Offspring(NamedTuple):
    """Children of beams, as nodes of the next depth; below a leaf, positions in the trie's ``items``."""

    nodes: Tensor  # [B, W, M] int64
    exists: Tensor  # [B, W, M] bool
    codes: Tensor | None  # [B, W, M] int64; None below a leaf


class ChildScorer(Protocol):
    """The model as the search sees it."""

    def among_children(self, depth: int) -> bool:
        """Do the probabilities of a node's children at this depth sum to 1?"""

    def __call__(self, beams: Beams, children: Offspring) -> Tensor:
        """Log-probabilities [B, W, M] fp32 of the children given their prefix; any finite value or -inf where there is none."""


class StepFunction(Protocol):
    """A model that scores whole codebooks."""

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        """Logits [B, W, K] of level ``level``'s codes for the beams that are asked about; see Beams for the arguments."""


class Ranking(Protocol):
    """Another order of the beams than by the model's probability."""

    def __call__(self, depth: int, nodes: Tensor, log_probs: Tensor) -> Tensor:
        """Keys [...] of the nodes [...] at ``depth`` 1..C + 1 (at C + 1: positions in ``items``), by the model's log p of each."""


class SearchResult(NamedTuple):
    item_ids: Tensor  # [B, W] int64, best first (in a sampled search: in the draw's order), distinct; PAD where fewer items are left
    log_probs: Tensor  # [B, W] fp32, the ID's log-probability under the model; -inf where item_ids is PAD
    sem_ids: Tensor  # [B, W, C] int64; PAD where item_ids is PAD
    tuples: Tensor  # [B, W'] int64: trie nodes at depth ``tuple_depth``, best first, as the search kept them there; PAD beyond
    keys: Tensor  # [B, W] fp32, what the items are ranked by: log_probs, or the ranking's


class CodebookScorer:
    """Softmax over the *whole* codebook of a level, not renormalised over the children that exist.

    So a history under which none of them is likely scores low; renormalised, ndcg@10 on Beauty falls by .0004. A collision code says
    nothing of the item: codes from ``tuple_depth`` on are scored among the children that exist.

    Args:
        step: gives the logits of the next code of every beam.
        tuple_depth: semantic codes of an ID.
    """

    def __init__(self, step: StepFunction, tuple_depth: int) -> None:
        self.step, self.tuple_depth = step, tuple_depth

    def among_children(self, depth: int) -> bool:
        return 0 < self.tuple_depth <= depth

    def __call__(self, beams: Beams, children: Offspring) -> Tensor:
        assert children.codes is not None
        logits = self.step(beams.depth, beams.parents, beams.codes)
        if beams.parents is None or not self.among_children(beams.depth):
            return torch.log_softmax(logits.float(), dim=-1).gather(-1, children.codes)
        existing = logits.float().gather(-1, children.codes).masked_fill(~children.exists, -torch.inf)
        return torch.log_softmax(existing, dim=-1)


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
    """``beam_search`` with a model that scores codebooks."""
    depth = trie.depth if tuple_depth is None else tuple_depth
    return beam_search(CodebookScorer(step, depth), trie, batch_size, beam_size, seen, tuple_depth, temperature, generator)


def beam_search(
    scorer: ChildScorer,
    trie: PrefixTrie,
    batch_size: int,
    beam_size: int,
    seen: Tensor | None = None,
    tuple_depth: int | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    ranking: Ranking | None = None,
    among: Tensor | None = None,
) -> SearchResult:
    """Writes semantic IDs code after code, keeping the ``beam_size`` best prefixes of existing items.

    Always returns min(beam_size, items left) distinct existing items a row: a prefix is kept only if an item below it is left.

    Args:
        scorer: gives the log-probabilities of the children of every beam.
        trie: the catalogue; its device is the search's.
        batch_size: B.
        beam_size: W, at least the largest number of items wanted.
        seen: [B, S] item ids to bar, PAD-filled; a node is barred when every item below it is.
        tuple_depth: semantic codes of an ID, C if None: ``tuples`` are taken there.
        temperature: 0 keeps the best. Above 0, each step draws its beams without replacement with probabilities proportional to
            exp(key / temperature) (Gumbel top-k; Kool et al. 2019, arXiv 1903.06059, section 2.3); the order is then the draw's.
        generator: for the draw.
        ranking: beams are kept by its keys instead of by their log-probability. The items of a leaf then share its probability equally
            and are sorted by their own keys; without it they follow each other in the trie's order, each with the leaf's log-probability.
        among: [I] bool, the items that may be found; None: all. Probabilities stay those over the whole catalogue.
    """
    device = trie.items.device
    score = torch.zeros(batch_size, 1, dtype=torch.float32, device=device)
    alive = torch.ones(batch_size, 1, dtype=torch.bool, device=device)
    beams = Beams(0, torch.zeros(batch_size, 1, dtype=torch.int64, device=device), None, None)
    written = torch.empty(batch_size, 1, 0, dtype=torch.int64, device=device)
    barred = None if seen is None else trie.exhausted(seen, among)
    allowed = None if among is None else trie.allowed_before(among)
    tuple_depth = trie.depth if tuple_depth is None else tuple_depth
    tuples = beams.nodes
    # Depths 0..C-1 write a code; depth C opens the leaves into their items, which costs nothing where each holds one.
    for depth in range(trie.depth + 1):
        first, count = trie.children_of(depth, beams.nodes)
        slots = torch.arange(trie.widest[depth], device=device)
        exists = slots < count.unsqueeze(-1)
        nodes = torch.where(exists, first.unsqueeze(-1) + slots, 0)
        leaf = depth == trie.depth
        children = Offspring(nodes, exists, None if leaf else trie.code(depth + 1, nodes))
        candidates = score.unsqueeze(-1)
        if not leaf:
            several_only = depth + 1 == trie.depth and depth > 0 and scorer.among_children(depth) and may_wait(device)
            candidates = candidates + (_where_several(scorer, beams, children, alive) if several_only else scorer(beams, children))
        elif ranking is not None:
            candidates = candidates - count.log().unsqueeze(-1)
        possible = exists & alive.unsqueeze(-1)
        if barred is not None:
            possible = possible & ~_barred_children(trie, depth, beams.nodes, first, barred[depth], len(slots))
        if allowed is not None:
            start, end = trie.item_range(depth + 1, nodes)
            possible = possible & (allowed[end] > allowed[start])
        # A copy of the shape of ``exists``, as ``candidates`` has one slot a beam where leaves open.
        candidates = candidates.where(possible, -torch.inf)
        keys = candidates if ranking is None else ranking(depth + 1, nodes, candidates).where(possible, -torch.inf)
        candidates, keys = candidates.flatten(1), keys.flatten(1)
        if leaf and ranking is None:
            # The beams stand in order, and the items of a leaf, which share its score, in the trie's: only what is barred moves back.
            chosen = (keys == -torch.inf).to(torch.uint8).argsort(dim=1, stable=True)[:, :beam_size]
        else:
            noisy = keys / temperature + gumbel_noise(keys, generator) if temperature > 0 and not leaf else keys
            chosen = noisy.topk(min(beam_size, keys.shape[1]), dim=1).indices
        score, key = candidates.gather(1, chosen), keys.gather(1, chosen)
        alive = key > -torch.inf
        parents = chosen // len(slots)
        written = written.gather(1, parents.unsqueeze(-1).expand(-1, -1, depth))
        codes = beams.codes
        if children.codes is not None:
            codes = children.codes.flatten(1).gather(1, chosen)
            written = torch.cat([written, codes.unsqueeze(-1)], dim=-1)
        beams = Beams(depth + 1, nodes.flatten(1).gather(1, chosen), parents, codes)
        if depth + 1 == tuple_depth:
            tuples = beams.nodes.masked_fill(~alive, PAD)
    item_ids = torch.where(alive, trie.items[beams.nodes].long(), PAD)
    return SearchResult(item_ids, score, written.masked_fill(~alive.unsqueeze(-1), PAD), tuples, key)


def _where_several(scorer: ChildScorer, beams: Beams, children: Offspring, alive: Tensor) -> Tensor:
    """What the scorer gives, but a row asks about no more beams than the row with the most beams of several children has."""
    several = (children.exists & alive.unsqueeze(-1)).sum(-1) > 1
    most = int(several.sum(1).max())
    log_probs = torch.zeros(children.exists.shape, device=alive.device)
    if most == 0 or beams.parents is None or beams.codes is None or children.codes is None:
        return log_probs
    asked = several.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    rows = asked.unsqueeze(-1).expand(-1, -1, children.exists.shape[-1])
    some = Beams(beams.depth, *(field.gather(1, asked) for field in (beams.nodes, beams.parents, beams.codes)))
    found = scorer(some, Offspring(*(field.gather(1, rows) for field in (children.nodes, children.exists, children.codes))))
    return log_probs.scatter(1, rows, found)


def may_wait(device: torch.device) -> bool:
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
