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
            scores = (flat @ table.index_select(0, trie.items.long()).to(flat.dtype).T).float()
            self.mass = (scores - scores.amax(1, keepdim=True)).exp_()  # [R, I], in the trie's order of items

    def of_children(self, depth: int, node: Tensor) -> Tensor:
        """Nodes [R] at ``depth`` -> the teacher's share of each child [R, M] fp32, 0 where there is none; they sum to 1."""
        trie, mass = self.trie, self.mass
        if depth == 0:  # every row has all nodes of depth 1
            offsets = torch.nn.functional.pad(trie.item_range(1, torch.arange(trie.num_nodes(1), device=node.device))[1], (1, 0))
            below = torch.segment_reduce(mass, "sum", offsets=offsets.expand(len(mass), -1).contiguous(), axis=1, unsafe=True)
            return below / below.sum(1, keepdim=True)
        first, number = trie.children_of(depth, node)
        slots = torch.arange(trie.widest[depth], device=node.device)
        exists = slots < number.unsqueeze(1)
        begin, stop = (edge.unsqueeze(1) for edge in trie.item_range(depth, node))
        places = begin + torch.arange(trie.most_items[depth], device=node.device)
        own = mass.gather(1, places.clamp_max(trie.num_items - 1)).masked_fill(places >= stop, 0)
        # fp64: a child's mass is the difference of two sums, and may be a millionth of them.
        before = torch.nn.functional.pad(own.cumsum(1, dtype=torch.float64), (1, 0))
        start, end = trie.item_range(depth + 1, torch.where(exists, first.unsqueeze(1) + slots, first.unsqueeze(1)))
        below = (before.gather(1, end - begin) - before.gather(1, start - begin)).masked_fill(~exists, 0)
        return (below / below.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)).float()
