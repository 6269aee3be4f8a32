"""The RQ-VAE's multilayer perceptron; its mirror is the decoder (TIGER, section 4.2: 768-512-256-128-32, ReLU)."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them and none after the last.

    Args:
        dims: widths from input to output, at least two.
        dropout: probability, after every ReLU.
    """

    def __init__(self, dims: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(dims):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers[:-2])

    def forward(self, x: Tensor) -> Tensor:
        """[B, dims[0]] -> [B, dims[-1]]."""
        return self.layers(x)
