"""Pictures of semantic IDs: where the first codes lie among the items, and the items under one first code as a tree of titles.

Drawn as evaluate/plots.py says. Shape letters: I items, C codes of an ID, D width of a vector.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evaluate.codebook import prefix_nodes
from evaluate.console import shorten
from evaluate.plots import COLOURS, MARKERS, panels
from evaluate.prefixes import branch
from evaluate.semantics import sample_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "#BBBBBB"
POINTS = 20_000
"""Items on a map at most; more make no better picture."""


def latent_map(vectors: Tensor, first_codes: Tensor, titles: Sequence[str] | None = None) -> "Figure":
    """Items in the plane of their two main directions (PCA); the most frequent first codes coloured, all others grey.

    Args:
        vectors: [I, D] what the first level quantized.
        first_codes: [I] int64.
        titles: I of them; then the legend shows, for each coloured code, that of the item nearest to the middle of its items.
    """
    plane, shares = _main_directions(vectors)
    counts = torch.bincount(first_codes)
    frequent = [code for code in counts.argsort(descending=True, stable=True)[: len(COLOURS)].tolist() if counts[code] > 0]
    figure, (axis,) = panels(1, width=8.0, height=7.0)
    drawn = sample_rows(len(vectors), POINTS, seed=0)
    codes, points = first_codes[drawn], plane[drawn]
    rest = ~torch.isin(codes, torch.tensor(frequent))
    if rest.any():
        x, y = points[rest].T.tolist()
        axis.scatter(x, y, s=3, color=GREY, alpha=0.5, linewidths=0, label=f"the other {int((counts > 0).sum()) - len(frequent)} codes")
    for number, code in enumerate(frequent):
        x, y = points[codes == code].T.tolist()
        label = f"code {code}: {int(counts[code]):,} items"
        if titles is not None:
            label += f", as {shorten(titles[_central(vectors, first_codes, code)], 60)}"
        marker = MARKERS[number]
        axis.scatter(x, y, s=14, color=COLOURS[number], marker=marker, alpha=0.8, linewidths=1 if marker == "x" else 0, label=label)
    axis.set_title(f"{len(vectors):,} items by first code; the {len(frequent)} most frequent are coloured")
    axis.set(xlabel=f"first direction, {shares[0]:.0%} of the variance", ylabel=f"second direction, {shares[1]:.0%} of the variance")
    for text in figure.legend(loc="outside lower center", markerscale=2, fontsize=8).get_texts():
        text.set_parse_math(False)  # a title may hold dollar signs
    return figure


def _main_directions(vectors: Tensor) -> tuple[Tensor, list[float]]:
    """Coordinates [I, 2] in the two directions of greatest variance and the share of the variance of each; zeros where D is 1."""
    centred = (vectors - vectors.mean(dim=0)).double()
    values, directions = torch.linalg.eigh(centred.T @ centred)
    values, directions = values.flip(0)[:2].clamp_min(0), directions.flip(1)[:, :2]
    # The sign of a direction is free: its largest part is made positive, so that the same items give the same picture.
    directions = directions * directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
    shares = (values / centred.square().sum().clamp_min(1e-12)).tolist()
    plane = centred @ directions
    if len(shares) < 2:
        return torch.cat([plane, torch.zeros_like(plane)], dim=1), [*shares, 0.0]
    return plane, shares


def _central(vectors: Tensor, first_codes: Tensor, code: int) -> int:
    """The item nearest to the mean of those with a first code."""
    items = (first_codes == code).nonzero()[:, 0]
    own = vectors[items]
    return int(items[(own - own.mean(dim=0)).norm(dim=1).argmin()])


def prefix_tree(sem_ids: Tensor, titles: Sequence[str], first_code: int | None = None) -> "Figure":
    """The items under one first code as a tree: a dot for each prefix with its last code, the titles at the leaves.

    Second codes that several items share have a colour of their own.

    Args:
        sem_ids: [I, C] int64; without the collision code it is a picture of the codes alone.
        titles: I of them.
        first_code: see ``prefixes.branch``.
    """
    shown = branch(sem_ids, first_code)
    nodes, rows = prefix_nodes(shown.sem_ids), torch.arange(len(shown.items)).double()
    depths = nodes.shape[1]
    second = nodes[:, min(1, depths - 1)]
    shared = (torch.bincount(second) > 1).nonzero()[:, 0].tolist()
    colours = {node: COLOURS[number % len(COLOURS)] for number, node in enumerate(shared)}
    figure, (axis,) = panels(1, width=1.6 * depths + 5.0, height=0.9 + 0.27 * len(rows))
    parent = torch.full_like(rows, float(rows.mean()))
    for depth in range(depths):
        node, level = nodes[:, depth], shown.sem_ids[:, depth]
        height = torch.zeros(int(node.max()) + 1, dtype=torch.float64).index_add_(0, node, rows) / torch.bincount(node)
        at = height[node]
        for row in (node.diff(prepend=node.new_tensor([-1])) != 0).nonzero()[:, 0].tolist():
            colour = colours.get(int(second[row]), "#777777") if depth else "#000000"
            if depth:
                axis.plot([depth - 1, depth - 0.5, depth], [float(parent[row]), float(at[row]), float(at[row])], color=colour, zorder=1)
            axis.scatter([depth], [float(at[row])], s=330, color="white", edgecolors=colour, linewidths=1.5, zorder=2)
            axis.text(depth, float(at[row]), str(int(level[row])), ha="center", va="center", fontsize=8, zorder=3)
        parent = at
    for row, item in enumerate(shown.items.tolist()):
        colour = colours.get(int(second[row]), "#777777")
        axis.plot([depths - 1, depths - 0.6], [float(parent[row]), row], color=colour, linestyle=":", zorder=1)
        axis.text(depths - 0.55, row, shorten(titles[item], 70), va="center", fontsize=8, parse_math=False)
    more = f", {len(rows)} of them shown" if shown.total > len(rows) else ""
    axis.set_title(f"The {shown.total:,} items whose semantic ID begins with {shown.first_code}{more}")
    axis.set(xlim=(-0.3, depths + 2.5), ylim=(len(rows) - 0.3, -0.7), xticks=range(depths), yticks=[])
    axis.set_xticklabels([f"level {depth}" for depth in range(depths)])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    return figure
