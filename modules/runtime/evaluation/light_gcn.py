"""LightGCN as a trained baseline: vectors of users and items, averaged over the graph of who has what; the order of a history is not used.

He et al. (2020), arXiv 2002.02126, on torch_geometric's ``LightGCN``. It scores the users it was trained with, by their training items.
Shape letters: B batch, T training interactions, U users, I items, D width.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.schemas import PAD, SeqBatch, UserError
from evaluate.scorers import ScoreRanker
from modules.runtime.evaluation.baselines import Untrained
from modules.runtime.evaluation.evaluator import Evaluator
from modules.runtime.training.device import memory_advice


@dataclass(frozen=True)
class LightGCNConfig:
    """Shape and recipe."""

    dim: int = 64
    num_layers: int = 3
    learning_rate: float = 1e-3
    regularization: float = 1e-4  # of the squared vectors of a batch, before they are averaged over the graph
    batch_size: int = 4096  # interactions a step
    epochs: int = 200
    watch_every: int = 10  # epochs between two validations
    patience: int = 3  # validations without a gain before the end

    def __post_init__(self) -> None:
        if min(self.dim, self.num_layers, self.batch_size, self.epochs, self.watch_every, self.patience) < 1:
            raise UserError("LightGCN's width, layers, batch size, epochs, watch_every and patience must all be at least 1")


class LightGCNScores(nn.Module):
    """What remains of the graph after training; a scorer for ``evaluate.scorers.ScoreRanker``.

    Args:
        user_vectors: [U, D].
        item_vectors: [I, D].
    """

    user_vectors: Tensor
    item_vectors: Tensor

    def __init__(self, user_vectors: Tensor, item_vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("user_vectors", user_vectors)
        self.register_buffer("item_vectors", item_vectors)

    def scores(self, batch: SeqBatch) -> Tensor:
        """[B, I] float32 by ``batch.user_ids``; 0 for a user without training items or with the id PAD."""
        users = self.user_vectors[batch.user_ids.clamp_min(0)]
        return users.masked_fill((batch.user_ids == PAD).unsqueeze(1), 0.0) @ self.item_vectors.T


def light_gcn_ranker(untrained: Untrained, evaluator: Evaluator, epochs: int, say: Callable[[str], None] = print) -> ScoreRanker:
    """LightGCN trained on the part that the other baselines count, its best epoch chosen on the validation of the run.

    Every process of the run must call it: they train alike and validate together.

    Args:
        untrained: has the training part and the order of ties.
        evaluator: of the run; its protocol has the seed and the users of the validations.
        epochs: at most so many.
        say: prints a line for each validation.

    Raises:
        UserError: the memory is exhausted.
    """
    order, protocol = untrained.order, evaluator.protocol

    def watch(epoch: int, found: LightGCNScores) -> float:
        ranker = ScoreRanker(found, order, "LightGCN")
        figure = evaluator.evaluate(ranker, "validation", protocol.filter_history, sample=True).metrics["ndcg@10"]
        say(f"LightGCN epoch {epoch:4d}  validation ndcg@10 {figure:.4f}")
        return figure

    config = LightGCNConfig(epochs=epochs)
    with memory_advice("train.light_gcn_epochs to 0, which leaves LightGCN out"):
        best = train_light_gcn(untrained.item_ids, untrained.offsets, len(order), watch, config, protocol.seed)
    return ScoreRanker(best, order, "LightGCN")


def train_light_gcn(
    item_ids: Tensor,
    offsets: Tensor,
    num_items: int,
    watch: Callable[[int, LightGCNScores], float],
    config: LightGCNConfig | None = None,
    seed: int = 0,
) -> LightGCNScores:
    """Trains on pairs of a user's item and a random one (BPR), and keeps the best by ``watch``.

    Args:
        item_ids: [T] int64, the users' training histories one after the other; their device is that of the training.
        offsets: [U + 1] int64, where each starts.
        num_items: I.
        watch: gets the epoch and the scores, and gives a figure on the validation part, higher = better.
        config: shape and recipe.
        seed: of the initial vectors, the order of interactions and the random items.

    Raises:
        UserError: there are no training interactions.
    """
    from torch_geometric.nn import LightGCN

    config, device = config or LightGCNConfig(), item_ids.device
    if len(item_ids) == 0:
        raise UserError("LightGCN has no training interactions; histories need at least three items")
    num_users = len(offsets) - 1
    users = torch.arange(num_users, device=device).repeat_interleave(offsets.diff())
    graph = normalized_graph(users, item_ids + num_users, num_users + num_items)
    generator = torch.Generator().manual_seed(seed)
    model = LightGCN(num_users + num_items, config.dim, config.num_layers, normalize=False)
    nn.init.normal_(model.embedding.weight, std=0.1, generator=generator)
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)

    def scores() -> LightGCNScores:
        with torch.no_grad():
            return LightGCNScores(*(part.clone() for part in model.get_embedding(graph).split([num_users, num_items])))

    best, best_figure, waited = scores(), -float("inf"), 0
    for epoch in range(1, config.epochs + 1):
        shuffled = torch.randperm(len(item_ids), generator=generator).to(device)
        for chosen in shuffled.split(config.batch_size):
            user, wanted = users[chosen], item_ids[chosen] + num_users
            random = torch.randint(num_items, (len(chosen),), generator=generator).to(device) + num_users
            ranks = model(graph, torch.stack([torch.cat([user, user]), torch.cat([wanted, random])]))
            nodes = torch.cat([user, wanted, random])
            loss = model.recommendation_loss(*ranks.chunk(2), node_id=nodes, lambda_reg=config.regularization)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if epoch % config.watch_every == 0 or epoch == config.epochs:
            found = scores()
            figure = watch(epoch, found)
            if figure > best_figure:
                best, best_figure, waited = found, figure, 0
            else:
                waited += 1
                if waited == config.patience:
                    break
    return best


def normalized_graph(users: Tensor, items: Tensor, num_nodes: int) -> Tensor:
    """The symmetric adjacency 1 / sqrt(degree x degree) as a sparse matrix; an interaction that occurs twice is one edge.

    Args:
        users: [T] nodes.
        items: [T] nodes.
        num_nodes: of the square matrix.
    """
    edges = torch.stack([users, items]).unique(dim=1)
    edges = torch.cat([edges, edges.flip(0)], dim=1)
    degree = torch.bincount(edges[0], minlength=num_nodes).float()
    weights = (degree[edges[0]] * degree[edges[1]]).rsqrt()
    with torch.sparse.check_sparse_tensor_invariants(True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_coo_tensor(edges, weights, (num_nodes, num_nodes)).coalesce().to_sparse_csr()
