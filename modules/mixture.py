"""The model mixed with another distribution over items inside the search: score(item) = log(w q(item) + (1 - w) p(item)).

p is the model's probability over the whole catalogue, never renormalised after items are barred. q is a distribution over the items that
are left: some candidates with masses of their own, and a background mass for every other. A node is ranked by log(w Q + (1 - w) p), Q being
q's mass below it. That bounds the scores of all items below, so a search as wide as the catalogue ranks them as the formula does. Where a
leaf holds several items they share its probability equally.
Shape letters: B batch, Q candidates, S barred items, I items.
"""

import math
from typing import NamedTuple

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


class Mixture:
    """Ranks the nodes of a search by the mixture; a modules.beam_search.Ranking.

    Args:
        trie: the searched one.
        weight: w, the other distribution's share, in [0, 1].
        masses: q.
        seen: [B, S] item ids that the search bars, PAD-filled; None bars none.
        among: [I] bool, the items that may be found; None: all.

    Raises:
        UserError: a weight outside [0, 1].
    """

    def __init__(self, trie: PrefixTrie, weight: float, masses: Masses, seen: Tensor | None = None, among: Tensor | None = None) -> None:
        if not 0 <= weight <= 1:
            raise UserError(f"train.memory_weight is {weight}; it must lie in [0, 1]")
        self.trie, self.weight = trie, weight
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

    def mass(self, depth: int, nodes: Tensor) -> Tensor:
        """q's mass below the nodes [B, ...] at ``depth`` 1..C + 1, fp64."""
        shape = nodes.shape
        start, end = (edge.flatten(1).contiguous() for edge in self.trie.item_range(depth, nodes))
        left = end - start if self.allowed is None else self.allowed[end] - self.allowed[start]
        if self.barred is not None:
            left = left - (torch.searchsorted(self.barred, end) - torch.searchsorted(self.barred, start))
        first, last = torch.searchsorted(self.position, start), torch.searchsorted(self.position, end)
        candidates = self.sums.gather(1, last) - self.sums.gather(1, first)
        return (candidates + self.background.unsqueeze(1) * left).clamp_min(0).reshape(shape)

    def __call__(self, depth: int, nodes: Tensor, log_probs: Tensor) -> Tensor:
        """Keys [B, ...] fp32 of nodes [B, ...] by the model's log p of each."""
        ours = log_probs.double() + (math.log(1 - self.weight) if self.weight < 1 else -math.inf)
        # A mass below fp64's rounding keeps its node in the search, behind all others.
        mass = self.mass(depth, nodes).clamp_min(torch.finfo(torch.float64).tiny)
        theirs = mass.log() + (math.log(self.weight) if self.weight > 0 else -math.inf)
        return torch.logaddexp(ours, theirs).float()
