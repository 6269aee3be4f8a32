"""The model mixed with other distributions over items inside the search: score(item) = log(w q(item) + ... + (1 - w - ...) p(item)).

p is the model's probability over the whole catalogue, never renormalised after items are barred. Each q is a distribution over the items
that are left: given item by item, or as some candidates with masses of their own and a background mass for every other. A node is ranked by
log(w Q + ... + (1 - w - ...) p), Q being q's mass below it. That bounds the scores of all items below, so a search as wide as the catalogue
ranks them as the formula does. Where a leaf holds several items they share its probability equally.
Shape letters: B batch, Q candidates, S barred items, I items.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from data.schemas import PAD, UserError
from modules.tokenizer.trie import PrefixTrie


class Masses(NamedTuple):
    """A distribution over the items that are left to each user."""

    items: Tensor  # [B, Q] int64, distinct and not barred; PAD where there are fewer
    masses: Tensor  # [B, Q], theirs; not read at PAD
    background: Tensor  # [B], that of every other item that is left


def softmax_masses(items: Tensor, scores: Tensor, background: Tensor, left: Tensor) -> Masses:
    """Softmax over all items that are left, of which only the candidates have a score of their own.

    Args:
        items: [B, Q], PAD-filled.
        scores: [B, Q].
        background: [B], the score of every other item.
        left: [B], how many items are left, candidates included.
    """
    real = items != PAD
    scores = scores.double().masked_fill(~real, -torch.inf)
    others = (left - real.sum(1)).clamp_min(0).double()
    total = torch.logaddexp(scores.logsumexp(1), background.double() + others.log())
    total = total.masked_fill(left == 0, torch.inf)  # where nothing is left, nothing has mass
    return Masses(items, (scores - total.unsqueeze(1)).exp(), (background.double() - total).exp())


class NodeMasses(Protocol):
    """How much of a distribution over the items that are left lies below nodes of a trie."""

    def __call__(self, depth: int, nodes: Tensor) -> Tensor:
        """Nodes [B, ...] at ``depth`` 1..C + 1 -> [B, ...] fp64."""


class CandidateMasses:
    """A distribution with a mass for some candidates and one for every other item; a NodeMasses.

    Args:
        trie: the searched one.
        masses: q.
        seen: [B, S] item ids that the search bars, PAD-filled; None bars none.
        among: [I] bool, the items that may be found; None: all.
    """

    def __init__(self, trie: PrefixTrie, masses: Masses, seen: Tensor | None = None, among: Tensor | None = None) -> None:
        self.trie = trie
        self.background = masses.background.double()
        position = torch.where(masses.items == PAD, trie.num_items, trie.item_position[masses.items.clamp_min(0)].long())
        self.position, order = position.sort(dim=1)
        # What a candidate has beyond the background, so that the background may be counted for all.
        beyond = (masses.masses.double() - self.background.unsqueeze(1)).masked_fill(masses.items == PAD, 0).gather(1, order)
        self.sums = torch.nn.functional.pad(beyond.cumsum(1), (1, 0))
        self.allowed = None if among is None else trie.allowed_before(among)
        self.barred: Tensor | None = None
        if seen is not None:
            self.barred = trie.positions(seen if among is None else torch.where(among[seen.clamp_min(0)], seen, PAD))

    def __call__(self, depth: int, nodes: Tensor) -> Tensor:
        """See NodeMasses."""
        shape = nodes.shape
        start, end = (edge.flatten(1).contiguous() for edge in self.trie.item_range(depth, nodes))
        left = end - start if self.allowed is None else self.allowed[end] - self.allowed[start]
        if self.barred is not None:
            left = left - (torch.searchsorted(self.barred, end) - torch.searchsorted(self.barred, start))
        first, last = torch.searchsorted(self.position, start), torch.searchsorted(self.position, end)
        candidates = self.sums.gather(1, last) - self.sums.gather(1, first)
        return (candidates + self.background.unsqueeze(1) * left).clamp_min(0).reshape(shape)


class ItemMasses:
    """A distribution given item by item, which costs time and memory for all of them; a NodeMasses.

    Args:
        trie: the searched one.
        probs: [B, I], 0 for what is barred.
    """

    def __init__(self, trie: PrefixTrie, probs: Tensor) -> None:
        self.trie = trie
        # fp64: a node's mass is the difference of two sums, and may be a millionth of them.
        self.before = torch.nn.functional.pad(probs.index_select(1, trie.items.long()).cumsum(1, dtype=torch.float64), (1, 0))

    def __call__(self, depth: int, nodes: Tensor) -> Tensor:
        """See NodeMasses."""
        start, end = (edge.flatten(1) for edge in self.trie.item_range(depth, nodes))
        return (self.before.gather(1, end) - self.before.gather(1, start)).clamp_min(0).reshape(nodes.shape)


class Mixture:
    """Ranks the nodes of a search by the mixture; a modules.beam_search.Ranking.

    Args:
        shares: the other distributions, each with its weight; the model has what is left to 1.

    Raises:
        UserError: weights below 0, or a sum above 1.
    """

    def __init__(self, shares: Sequence[tuple[float, NodeMasses]]) -> None:
        self.shares, self.own = shares, check_weights([weight for weight, _ in shares])

    def __call__(self, depth: int, nodes: Tensor, log_probs: Tensor) -> Tensor:
        """Keys [B, ...] fp32 of nodes [B, ...] by the model's log p of each."""
        ours = log_probs.double() + (math.log(self.own) if self.own > 0 else -math.inf)
        theirs = torch.zeros_like(ours)
        for weight, masses in self.shares:
            theirs = theirs + weight * masses(depth, nodes)
        # A mass below fp64's rounding keeps its node in the search, behind all others.
        floor = torch.finfo(torch.float64).tiny if any(weight > 0 for weight, _ in self.shares) else 0.0
        return torch.logaddexp(ours, theirs.clamp_min(floor).log()).float()


def check_weights(weights: Sequence[float]) -> float:
    """What the weights of the other distributions leave to the model.

    Raises:
        UserError: one below 0, or a sum above 1.
    """
    own = 1.0 - sum(weights)
    if min(weights, default=0.0) < 0 or own < -1e-9:
        raise UserError(f"the shares of a mixture are {list(weights)}; they must be at least 0, and together at most 1")
    return max(own, 0.0)


class Shares(NamedTuple):
    """Of a score: the model's beam search, a softmax over all items, and the memory. They sum to 1."""

    search: float
    items: float
    memory: float

    def describe(self) -> str:
        """Such as ``search .5 + memory .5``."""
        parts = [(name, share) for name, share in self._asdict().items() if share]
        return " + ".join(name if share == 1 else f"{name} {share:.3g}".replace(" 0.", " .") for name, share in parts)


def parse_shares(text: str) -> Shares:
    """Reads ``search,items,memory``.

    Raises:
        UserError: not three shares that sum to 1.
    """
    try:
        shares = Shares(*map(float, text.split(",")))
        check_weights(shares)
    except (ValueError, TypeError, UserError):
        shares = Shares(-1, -1, -1)
    if abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"the mixture {text!r} is not three shares that sum to 1; write search,items,memory, such as '0.5,0,0.5'")
    return shares
