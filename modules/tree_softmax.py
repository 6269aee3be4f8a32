"""A softmax over the children that exist: the semantic IDs as the tree of a hierarchical softmax over items.

Morin & Bengio (2005). Below a prefix whose decoder state is x, the child v with code c has the score head(x)[c] + x . e_v, where e_v is a
learned vector of the node; its probability is the softmax of that over its siblings. Products of such probabilities sum to 1 over the
leaves. A node without a training item below it has no vector. Training leaves vectors out with a probability, so that the codes' part of
the scores of nodes with and without one can be compared.
Shape letters: R rows (targets or beams), M most children of a node, K codes of a level, D width, C codes of an ID, I items.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from data.schemas import PAD
from modules import beam_search
from modules.catalogue import Catalogue
from modules.code_losses import children_loss
from modules.distill import TeacherShares
from modules.keyed_vectors import KeyedVectors
from modules.tokenizer.trie import PrefixTrie

TOGETHER = 8
"""Rows of one parent in a matrix product."""

SLICE = 1 << 24
"""Numbers that are gathered at a time where shapes must not depend on data: 64 MiB in fp32."""

EXPORTED_SLOTS = 8
"""Children of each row that an exported program gathers at a time: it is made for any number of rows."""


class NodeVectors(NamedTuple):
    """The vectors of the nodes of one depth, as one step or one search uses them."""

    vectors: Tensor  # [n, D]
    row: Tensor  # [nodes] int64: each node's row of ``vectors``


class TreeSoftmax(nn.Module):
    """Scores of children, with a vector for every trie node if wished.

    Args:
        catalogue: its trie is the tree.
        dim: D.
        std: of the initial node vectors.
        node_embeddings: whether nodes have vectors of their own.
        dropout: probability that a node's own vector is left out in training, drawn once a step for each node.
        tie: add to each node's vector the mean of the vectors of the items below it.
    """

    def __init__(self, catalogue: Catalogue, dim: int, std: float, node_embeddings: bool, dropout: float, tie: bool) -> None:
        super().__init__()
        self.catalogue, self.dropout, self.tie = catalogue, dropout, tie
        self.own: nn.ModuleList | None = None
        if node_embeddings:
            trie, known = catalogue.trie, catalogue.sem_ids[catalogue.trained]
            self.own = nn.ModuleList(
                KeyedVectors(trie.find, trie.num_nodes(depth), known[:, :depth].unique(dim=0), dim, std)
                for depth in range(1, trie.depth + 1)
            )

    def node_vectors(self, items: Tensor | None) -> list[NodeVectors] | None:
        """The vectors of all nodes at depths 1..C, None where there are none.

        Args:
            items: [I, D], the items' vectors; needed where nodes are tied to them.
        """
        if self.own is None and not self.tie:
            return None
        trie, found = self.catalogue.trie, []
        if self.tie:
            assert items is not None
            path = trie.path(torch.arange(self.catalogue.num_items, device=items.device))
        for depth in range(1, trie.depth + 1):
            own = None if self.own is None else self.own[depth - 1]
            vectors: Tensor | None = None
            row: Tensor | None = None
            if isinstance(own, KeyedVectors):
                vectors, row = own.vectors, own.row
                if self.training and self.dropout > 0:
                    vectors = vectors * (torch.rand(len(vectors), 1, device=vectors.device) >= self.dropout)
            if self.tie and items is not None:
                count = trie.num_nodes(depth)
                start, end = trie.item_range(depth, torch.arange(count, device=items.device))
                total = items.new_zeros(count, items.shape[1]).index_add(0, path[:, depth - 1], items)
                means = total / (end - start).unsqueeze(1)
                vectors = means if vectors is None or row is None else nn.functional.embedding(row, vectors, padding_idx=0) + means
                row = torch.arange(count, device=items.device)
            if vectors is not None and row is not None:
                found.append(NodeVectors(vectors, row))
        return found

    def logits(self, x: Tensor, head: nn.Module, depth: int, node: Tensor, vectors: list[NodeVectors] | None) -> Tensor:
        """Scores of the children of the nodes.

        Args:
            x: [R, D], decoder states.
            head: the level's scores of codes, [R, D] -> [R, K].
            depth: 0..C-1, that of the nodes.
            node: [R] int64.
            vectors: what ``node_vectors`` gave.

        Returns:
            [R, M] fp32, M = the most children of a node at this depth; -inf behind the last child.
        """
        trie = self.catalogue.trie
        table = None if vectors is None else vectors[depth]
        codes = head(x)
        if depth == 0:  # every row has all nodes of depth 1
            children = torch.arange(trie.num_nodes(1), device=x.device)
            scores = codes.index_select(1, trie.code(1, children)).float()
            return scores if table is None else scores + (x @ table.vectors[table.row].to(x.dtype).T).float()
        first, number = trie.children_of(depth, node)
        slots = torch.arange(trie.widest[depth], device=x.device)
        exists = slots < number.unsqueeze(1)
        children = torch.where(exists, first.unsqueeze(1) + slots, 0)
        scores = codes.gather(1, trie.code(depth + 1, children)).float()
        if table is not None:
            ragged = beam_search.may_wait(x.device)
            scores = scores + (_ragged_products(x, table, first, number, len(slots)) if ragged else _products(x, table, children))
        return scores.masked_fill(~exists, -torch.inf)

    def losses(
        self,
        x: Tensor,
        heads: Iterable[nn.Module],
        targets: Tensor,
        items: Tensor | None,
        label_smoothing: float = 0.0,
        teacher: TeacherShares | None = None,
    ) -> list[Tensor]:
        """Cross-entropy of each level's right child, averaged over real targets.

        Args:
            x: [B, P, C, D], decoder states.
            heads: C scores of codes.
            targets: [B, P] items, PAD where there is none.
            items: see ``node_vectors``.
            label_smoothing: see ``children_loss``.
            teacher: a distribution over the children to learn from as well.

        Returns:
            C scalars.
        """
        trie = self.catalogue.trie
        real = (targets != PAD).flatten()
        path = trie.path(targets.flatten().clamp_min(0))
        node, vectors, losses = torch.zeros_like(path[:, 0]), self.node_vectors(items), []
        for level, head in enumerate(heads):
            logits = self.logits(x[..., level, :].flatten(0, 1), head, level, node, vectors)
            slot = path[:, level] - trie.children_of(level, node).first
            shares, trust = (None, 0.0) if teacher is None else (teacher.of_children(level, node), teacher.trust)
            loss = children_loss(logits, slot, label_smoothing, shares, trust)
            losses.append(loss.masked_fill(~real, 0).sum() / real.sum().clamp_min(1))
            node = path[:, level]
        return losses

    def check(self, trie: PrefixTrie) -> None:
        """Refuses to search another tree than the one whose nodes have the vectors.

        Raises:
            ValueError: its nodes are others.
        """
        own = self.catalogue.trie
        if trie is not own and (trie.num_items, trie.widest) != (own.num_items, own.widest):
            raise ValueError(
                "a model with train.code_softmax = 'children' searches its own catalogue's trie; bar the items left out instead"
            )


class StatesFunction(Protocol):
    """The decoder as a search sees it."""

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        """Decoder states [B, W, D] of the beams that are asked about; see modules.beam_search.Beams for the arguments."""


class TreeScorer:
    """The softmax over existing children as the search asks for it; a modules.beam_search.ChildScorer.

    Args:
        states: the decoder.
        tree: scores children.
        heads: C scores of codes.
        vectors: what ``tree.node_vectors`` gave.
    """

    def __init__(self, states: StatesFunction, tree: TreeSoftmax, heads: nn.ModuleList, vectors: list[NodeVectors] | None) -> None:
        self.states, self.tree, self.heads, self.vectors = states, tree, heads, vectors

    def among_children(self, depth: int) -> bool:
        return True

    def __call__(self, beams: beam_search.Beams, children: beam_search.Offspring) -> Tensor:
        x = self.states(beams.depth, beams.parents, beams.codes)
        logits = self.tree.logits(x.flatten(0, 1), self.heads[beams.depth], beams.depth, beams.nodes.flatten(), self.vectors)
        return torch.log_softmax(logits, dim=-1).reshape(children.nodes.shape)


def _ragged_products(x: Tensor, table: NodeVectors, first: Tensor, number: Tensor, width: int) -> Tensor:
    """x . e of all children, [R, width]; whatever behind the last child, and 0 for an only child, which is certain at any score.

    Rows of one parent share its children: they are multiplied with them together, ``TOGETHER`` rows at a time. Parents are taken by number
    of children, rounded up to a power of two, so that less than half of what is gathered is no child.
    """
    asked = (number > 1).nonzero().flatten()
    firsts, order = first[asked].sort(stable=True)
    asked = asked[order]
    place = torch.arange(len(asked), device=x.device)
    place = place - torch.searchsorted(firsts, firsts)  # among the rows of the same parent
    begins = place % TOGETHER == 0
    rows = torch.full((int(begins.sum()), TOGETHER), len(x), device=x.device)  # R: no row
    rows[begins.cumsum(0) - 1, place % TOGETHER] = asked
    group_first, group_number = firsts[begins], number[asked][begins]
    groups, children = [], []
    for power in range(1, (width - 1).bit_length() + 1):
        slots = torch.arange(min(1 << power, width), device=x.device)
        group = ((group_number > 1 << (power - 1)) & (group_number <= 1 << power)).nonzero().flatten()
        if len(group):
            groups.append(group)
            children.append(torch.where(slots < group_number[group, None], group_first[group, None] + slots, 0))
    if not groups:
        return torch.zeros(len(x), width, device=x.device)
    rows = rows[torch.cat(groups)]
    # One gather each, as every gradient of one is as large as what it gathers from.
    flat = torch.cat([block.flatten() for block in children])
    vectors = nn.functional.embedding(table.row[flat], table.vectors).to(x.dtype)
    states = nn.functional.embedding(rows, torch.cat([x, x.new_zeros(1, x.shape[1])])).split([len(group) for group in groups])
    found = []
    for block, own, some in zip(children, vectors.split([block.numel() for block in children]), states):
        products = torch.bmm(some, own.reshape(*block.shape, -1).transpose(1, 2)).float().flatten(0, 1)
        found.append(nn.functional.pad(products, (0, width - products.shape[1])))
    return torch.zeros(len(x) + 1, width, device=x.device).index_copy(0, rows.flatten(), torch.cat(found))[:-1]


def _products(x: Tensor, table: NodeVectors, children: Tensor) -> Tensor:
    """x . e of the children [R, M], a slice of slots at a time: shapes depend on no value."""
    width = EXPORTED_SLOTS if torch.compiler.is_compiling() else max(1, SLICE // max(1, x.numel()))
    vectors = table.vectors.to(x.dtype)
    parts = [(vectors[table.row[part]] @ x.unsqueeze(-1)).squeeze(-1) for part in children.split(width, dim=1)]
    return torch.cat(parts, dim=1).float()
