"""PrefixTrie: all semantic IDs as a tree in flat sorted arrays, so that a search step costs the same at any number of items.

Nodes of a depth are numbered in the order of their code tuples, so the children of a node are neighbours: one offset a node finds them
(CSR). The last offset leads from a leaf to its items: one with a collision code, possibly several without.
Shape letters: I items, C codes of an ID, B batch, W beams, S items of a history.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.schemas import PAD, UserError


class Children(NamedTuple):
    first: Tensor  # int64, the first child's node number at the next depth
    number: Tensor  # int64, how many children follow from there


class PrefixTrie(nn.Module):
    """The catalogue's semantic IDs as a tree on the device; depth 0 is the root, depth C a whole ID.

    Args:
        sem_ids: [I, C] int64, row i is item i's ID.
        vocab_sizes: C sizes; codes of level l lie in 0..vocab_sizes[l]-1.
        item_order: [I] rank by which items that share a leaf are listed; their row order if None.

    Raises:
        UserError: codes outside their vocabulary, or no items.
    """

    items: Tensor
    item_position: Tensor

    def __init__(self, sem_ids: Tensor, vocab_sizes: Sequence[int], item_order: Tensor | None = None) -> None:
        super().__init__()
        if sem_ids.dim() != 2 or sem_ids.shape[1] != len(vocab_sizes) or len(sem_ids) == 0:
            raise UserError(f"semantic IDs must be a table of items x {len(vocab_sizes)} codes: got shape {tuple(sem_ids.shape)}")
        limits = torch.tensor(list(vocab_sizes), device=sem_ids.device)
        if bool(((sem_ids < 0) | (sem_ids >= limits)).any()):
            raise UserError(f"semantic IDs hold codes outside their vocabularies of {list(vocab_sizes)} codes")
        self.vocab_sizes = tuple(vocab_sizes)
        self.num_items, self.depth = sem_ids.shape
        widest = []
        node_of_item = torch.zeros(self.num_items, dtype=torch.int64, device=sem_ids.device)
        num_nodes = 1
        for level, size in enumerate(self.vocab_sizes):
            nodes, node_of_item = torch.unique(node_of_item * size + sem_ids[:, level], return_inverse=True)
            offsets = _offsets(nodes // size, num_nodes)
            codes = (nodes % size).to(torch.int16 if size <= torch.iinfo(torch.int16).max else torch.int32)
            self.register_buffer(f"codes_{level}", codes, persistent=False)
            self.register_buffer(f"offsets_{level}", offsets, persistent=False)
            widest.append(int(offsets.diff().max()))
            num_nodes = len(nodes)
        by_order = torch.arange(self.num_items, device=sem_ids.device) if item_order is None else item_order.argsort()
        items = by_order[node_of_item[by_order].argsort(stable=True)]
        self.one_item_a_leaf = num_nodes == self.num_items
        """As with a collision code: a leaf's number is then its item's position, and no offsets are kept for it."""
        offsets = _offsets(node_of_item[items], num_nodes)
        widest.append(int(offsets.diff().max()))
        if not self.one_item_a_leaf:
            self.register_buffer(f"offsets_{self.depth}", offsets, persistent=False)
        position = torch.empty_like(items)
        position[items] = torch.arange(self.num_items, device=items.device)
        self.register_buffer("items", items.int(), persistent=False)
        self.register_buffer("item_position", position.int(), persistent=False)
        self.widest = tuple(widest)
        """Largest number of children of a node at each depth 0..C-1, then the largest number of items in a leaf."""
        counts = (self.item_range(depth, torch.arange(self.num_nodes(depth), device=items.device)) for depth in range(1, self.depth + 1))
        self.most_items = (self.num_items, *(int((end - start).max()) for start, end in counts))
        """Largest number of items below a node at each depth 0..C."""

    def _offsets(self, depth: int) -> Tensor:
        return self.get_buffer(f"offsets_{depth}")

    def num_nodes(self, depth: int) -> int:
        """Distinct code tuples of length ``depth``."""
        return self.num_items if self._is_open(depth) else len(self._offsets(depth)) - 1

    def _is_open(self, depth: int) -> bool:
        """Are the nodes of this depth leaves that hold one item each?"""
        return depth == self.depth and self.one_item_a_leaf

    def children_of(self, depth: int, node: Tensor) -> Children:
        """Children at ``depth + 1`` of the nodes at ``depth``; at depth C: positions in ``items``."""
        if self._is_open(depth):
            return Children(node, torch.ones_like(node))
        offsets = self._offsets(depth)
        first = offsets[node].long()
        return Children(first, offsets[node + 1].long() - first)

    def code(self, depth: int, node: Tensor) -> Tensor:
        """Last code of the nodes at ``depth`` >= 1."""
        return self.get_buffer(f"codes_{depth - 1}")[node].long()

    def parent(self, depth: int, node: Tensor) -> Tensor:
        """Nodes at ``depth - 1`` above the nodes at ``depth`` >= 1; at depth C + 1 a node is a position in ``items``."""
        if self._is_open(depth - 1):
            return node
        return torch.searchsorted(self._offsets(depth - 1), node.int(), right=True) - 1

    def item_range(self, depth: int, node: Tensor) -> tuple[Tensor, Tensor]:
        """First position in ``items`` below each node at ``depth``, and the position after the last."""
        start, end = node, node + 1
        for below in range(depth, self.depth + 1):
            if not self._is_open(below):
                offsets = self._offsets(below)
                start, end = offsets[start].long(), offsets[end].long()
        return start, end

    def find(self, prefix: Tensor) -> Tensor:
        """Nodes [...] at depth t of the code tuples ``prefix`` [..., t], t <= C; PAD where no item's ID begins so."""
        node = torch.zeros(prefix.shape[:-1], dtype=torch.int64, device=prefix.device)
        for depth in range(prefix.shape[-1]):
            codes, wanted = self.get_buffer(f"codes_{depth}"), prefix[..., depth]
            low, count = self.children_of(depth, node.clamp_min(0))
            high = low + count
            for _ in range(self.widest[depth].bit_length()):  # binary search among the children, which are sorted by code
                middle = (low + high) // 2
                smaller = (codes[middle.clamp_max(len(codes) - 1)] < wanted) & (low < high)
                low, high = torch.where(smaller, middle + 1, low), torch.where(smaller, high, middle)
            first, count = self.children_of(depth, node.clamp_min(0))
            exists = (node != PAD) & (low < first + count) & (codes[low.clamp_max(len(codes) - 1)] == wanted)
            node = torch.where(exists, low, PAD)
        return node

    def exists_prefix(self, prefix: Tensor) -> Tensor:
        """[...] bool: does some item's semantic ID begin with ``prefix`` [..., t]?"""
        return self.find(prefix) != PAD

    def path(self, items: Tensor) -> Tensor:
        """Nodes [..., C] at depths 1..C above each item [...]: its leaf comes last."""
        node = self.item_position[items].long()
        nodes = []
        for depth in range(self.depth, 0, -1):
            node = self.parent(depth + 1, node)
            nodes.append(node)
        return torch.stack(nodes[::-1], dim=-1)

    def positions(self, items: Tensor) -> Tensor:
        """Sorted positions in ``self.items`` of each row's distinct items [B, S], PAD-filled; I behind the last -> [B, S]."""
        beyond = self.num_items  # sorts after every position
        position = torch.where(items == PAD, beyond, self.item_position[items.clamp_min(0)].long()).sort(dim=1).values
        repeated = torch.zeros_like(position, dtype=torch.bool)
        repeated[:, 1:] = position[:, 1:] == position[:, :-1]
        return position.masked_fill(repeated, beyond).sort(dim=1).values

    def allowed_before(self, among: Tensor) -> Tensor:
        """[I + 1] int64: how many of the items ``among`` [I] bool stand before each position of ``items``."""
        return nn.functional.pad(among[self.items.long()].cumsum(0), (1, 0))

    def exhausted(self, seen: Tensor, among: Tensor | None = None) -> list[Tensor]:
        """Nodes of which a history holds every item.

        Args:
            seen: [B, S] item ids, PAD where there is none; an item may occur twice.
            among: [I] bool: the other items count as if there were none; None: all items count.

        Returns:
            For each depth 1..C + 1 a tensor [B, S]: node numbers at that depth (at C + 1: positions in ``items``), PAD elsewhere.
        """
        position = self.positions(seen if among is None else torch.where(among[seen.clamp_min(0)], seen, PAD))
        before = None if among is None else self.allowed_before(among)
        real = position < self.num_items
        node = position.clamp_max(self.num_items - 1)
        result = [torch.where(real, node, PAD)]
        for depth in range(self.depth, 0, -1):
            node = self.parent(depth + 1, node)
            start, end = self.item_range(depth, node)
            held = torch.searchsorted(position, end.contiguous()) - torch.searchsorted(position, start.contiguous())
            number = end - start if before is None else before[end] - before[start]
            result.append(torch.where(real & (held == number), node, PAD))
        return result[::-1]


def _offsets(sorted_parents: Tensor, num_parents: int) -> Tensor:
    """CSR offsets [num_parents + 1] of children whose parents [n] are sorted."""
    counts = torch.bincount(sorted_parents, minlength=num_parents)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
