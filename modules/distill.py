"""The item head as a teacher of the tree: its distribution over items, summed below trie nodes, is one over every node's children.

Hinton et al. (2015), arXiv 1503.02531, level by level. The teacher's scores get no gradient from it.
Shape letters: R rows (targets), M most children of a node, D width, I items.
"""

import torch
from torch import Tensor

from modules.tokenizer.trie import PrefixTrie


class TeacherShares:
    """What the item head would have the tree say.

    Args:
        states: [..., D], R of the encoder's states behind the last item.
        table: [I, D], the items' vectors.
        trie: the tree.
        trust: share of the tree's target that is the teacher's, in [0, 1).
    """

    def __init__(self, states: Tensor, table: Tensor, trie: PrefixTrie, trust: float) -> None:
        self.trie, self.trust = trie, trust
        with torch.no_grad():
            flat = states.flatten(0, -2)
            in_order = table.index_select(0, trie.items.long())
            mass = (flat @ in_order.to(flat.dtype).T).float().softmax(-1)
            # fp64: a node's mass is the difference of two sums, and may be a millionth of them.
            self.below = torch.nn.functional.pad(mass.cumsum(1, dtype=torch.float64), (1, 0))  # [R, I + 1]

    def of_children(self, depth: int, node: Tensor) -> Tensor:
        """Nodes [R] at ``depth`` -> the teacher's share of each child [R, M] fp32, 0 where there is none; they sum to 1."""
        trie = self.trie
        first, number = trie.children_of(depth, node)
        slots = torch.arange(trie.widest[depth], device=node.device)
        exists = slots < number.unsqueeze(1)
        start, end = trie.item_range(depth + 1, torch.where(exists, first.unsqueeze(1) + slots, 0))
        mass = (self.below.gather(1, end) - self.below.gather(1, start)).masked_fill(~exists, 0)
        return (mass / mass.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)).float()
