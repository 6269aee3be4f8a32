"""The peers of stage 1: an RQ-VAE as it is written straight from the paper, and one around vector-quantize-pytorch's ResidualVQ.

Both have the encoder and decoder of ours (768-512-256-128-32 and its mirror, ReLU), three codebooks of 256 and width 32, and train in fp32.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from modules.rqvae import RqVaeConfig


def mlp(dims: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(dims):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Straightforward(nn.Module):
    """Level after level: distances to all codewords, argmin, embedding look-up, two mean squared errors, straight-through; no library.

    Args:
        config: widths, levels and codebook size.
        by_difference: distances from the differences [B, K, D], squared and summed; else |r|^2 + |e|^2 - 2 r e by one product.
    """

    def __init__(self, config: RqVaeConfig, by_difference: bool) -> None:
        super().__init__()
        dims = [config.input_dim, *config.hidden_dims, config.embed_dim]
        self.encoder, self.decoder, self.by_difference = mlp(dims), mlp(dims[::-1]), by_difference
        self.codebooks = nn.ModuleList(nn.Embedding(size, config.embed_dim) for size in config.codebook_sizes)
        self.beta = config.commitment_weight

    def distances(self, residual: Tensor, codebook: Tensor) -> Tensor:
        if self.by_difference:
            return ((residual.unsqueeze(1) - codebook.unsqueeze(0)) ** 2).sum(-1)
        return (residual**2).sum(1, keepdim=True) + (codebook**2).sum(1) - 2 * residual @ codebook.T

    def forward(self, x: Tensor) -> Tensor:
        """Loss of a batch [B, E]."""
        residual, quantized, loss = self.encoder(x), 0, 0
        for codebook in self.codebooks:
            codes = self.distances(residual, codebook.weight).argmin(1)
            codeword = codebook(codes)
            loss = loss + mse_loss(codeword, residual.detach()) + self.beta * mse_loss(residual, codeword.detach())
            codeword = residual + (codeword - residual).detach()
            quantized = quantized + codeword
            residual = residual - codeword
        return loss + mse_loss(self.decoder(quantized), x)


class AroundResidualVQ(nn.Module):
    """The same MLPs around ResidualVQ with its defaults: codebooks that follow moving averages instead of a gradient."""

    def __init__(self, config: RqVaeConfig) -> None:
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ

        dims = [config.input_dim, *config.hidden_dims, config.embed_dim]
        self.encoder, self.decoder = mlp(dims), mlp(dims[::-1])
        self.quantizer = ResidualVQ(
            dim=config.embed_dim,
            codebook_size=config.codebook_sizes[0],
            num_quantizers=config.num_levels,
            commitment_weight=config.commitment_weight,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Loss of a batch [B, E]."""
        quantized, _, commitment = self.quantizer(self.encoder(x))
        return mse_loss(self.decoder(quantized), x) + commitment.sum()


class PeerTraining:
    """The usual loop around a peer: a shuffling DataLoader that collates item by item, AdamW as it comes, ``loss.item()`` for the log."""

    def __init__(self, model: nn.Module, items: Tensor, batch_size: int) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
        self.loader = DataLoader(TensorDataset(items), batch_size=batch_size, shuffle=True, drop_last=True)
        self.device, self.logged = next(model.parameters()).device, 0.0
        self.batches = iter(self.loader)

    def step(self) -> None:
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        loss = self.model(batch[0].to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.logged += loss.item()
