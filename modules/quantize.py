"""One codebook: distances, the nearest code, the sample of the Gumbel-softmax, where it starts, and what it keeps against collapse.

Three switches change what a codebook is: cosine in place of squared distance; SimVQ (Zhu et al. 2024, arXiv 2411.02038), a frozen codebook
behind one learned linear map, so that every code moves whenever one is used; codewords of length 1 (Yu et al. 2021, arXiv 2110.04627).
Two more change how it learns, between the steps of the optimizer (modules/codebook_updates.py): moving averages in place of a
gradient, and new values for codes that no item uses. One changes how a training batch is assigned (modules/sinkhorn.py).
Shape letters: B batch, N items, D width, K codebook size.
"""

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from data.schemas import UserError
from distributions.gumbel import gumbel_softmax_sample
from init.kmeans import ALONE, Shard, kmeans
from modules.sinkhorn import balanced_codes


class QuantizeForwardMode(Enum):
    """How the gradient of the reconstruction crosses the quantizer."""

    GUMBEL_SOFTMAX = 1
    STE = 2
    ROTATION_TRICK = 3


DISTANCES = ("l2", "cosine")
"""What nearest means: by squared distance, or by the angle alone."""


class QuantizeOutput(NamedTuple):
    codes: Tensor  # [B] int64
    codeword: Tensor  # [B, D], codewords()[codes], with gradient to what makes them
    relaxed: Tensor | None  # [B, D], the Gumbel-softmax mixture of codewords; None in the other modes


class Seen(NamedTuple):
    """What a codebook quantized in a training step, for the codebook_updates after it."""

    residuals: Tensor  # [B, D]
    codes: Tensor  # [B] int64
    errors: Tensor  # [B], squared distance to the nearest codeword; with cosine 2 - 2 cos


class Quantize(nn.Module):
    """A codebook of K codewords of width D.

    ``codebook`` is what is stored, ``codewords()`` what is used. ``initialised`` is part of the state: a loaded codebook is never
    overwritten by a later k-means.

    Args:
        codebook_size: K.
        embed_dim: D.
        distance: one of DISTANCES.
        sim_vq: the codebook is frozen and a codeword is W c. W starts as the identity and learns; c is Gaussian of variance 1 / D, as the
            authors draw it, or what k-means found.
        unit_codewords: a codeword is divided by its length.
        revived: count the items of each code, so that codes without any can be revived.
        averaged: the codewords are moving averages and have no gradient.
        balance: epsilon of Sinkhorn's algorithm where it assigns training batches; None takes nearest codes.

    Attributes:
        uses: [K], only if ``revived``: items that took each code since the codebook_updates last looked.
        average_counts, average_sums: [K] and [K, D], only if ``averaged``: items a batch of each code, and the sum of their residuals.
        seen: training batches since the last step of the optimizer, if the codebook_updates needs them.
        shard: this process among those that share each batch.
    """

    initialised: Tensor
    uses: Tensor
    average_counts: Tensor
    average_sums: Tensor

    def __init__(
        self,
        codebook_size: int,
        embed_dim: int,
        distance: str = "l2",
        sim_vq: bool = False,
        unit_codewords: bool = False,
        revived: bool = False,
        averaged: bool = False,
        balance: float | None = None,
    ) -> None:
        super().__init__()
        self.distance = distance
        self.unit_codewords = unit_codewords
        self.revived, self.averaged, self.balance = revived, averaged, balance
        start = torch.empty(codebook_size, embed_dim)
        start = start.normal_(std=embed_dim**-0.5) if sim_vq else start.uniform_(-1 / embed_dim, 1 / embed_dim)
        # Without a gradient an optimizer leaves it alone, weight decay included.
        self.codebook = nn.Parameter(start, requires_grad=not (sim_vq or averaged))
        self.projection = nn.Parameter(torch.eye(embed_dim)) if sim_vq else None
        self.register_buffer("initialised", torch.tensor(False))
        if revived:
            self.register_buffer("uses", torch.zeros(codebook_size))
        if averaged:
            self.register_buffer("average_counts", torch.ones(codebook_size))
            self.register_buffer("average_sums", start.clone())
        self.seen: list[Seen] = []
        self.shard = ALONE
        self.register_load_state_dict_pre_hook(_fit_remedies)

    @property
    def codebook_size(self) -> int:
        return len(self.codebook)

    def codewords(self) -> Tensor:
        """The codewords [K, D] as distances, reconstruction and a saved tokenizer have them: after SimVQ's map and the normalisation."""
        codewords = self.codebook if self.projection is None else self.codebook @ self.projection.T
        return normalize(codewords, dim=1) if self.unit_codewords else codewords

    @torch.no_grad()
    def kmeans_init(self, residuals: Tensor, seed: int, shard: Shard = ALONE, balanced: bool = False) -> Tensor:
        """Sets the codewords to the k-means centroids of ``residuals`` [N, D] and returns the nearest codes [N].

        Where lengths do not decide (cosine distance, codewords of length 1) the directions are clustered; a codeword is the mean of its
        residuals either way, which is where the codebook loss wants it. ``shard`` and ``balanced``: see kmeans.

        Raises:
            UserError: fewer residuals than codes.
        """
        if len(residuals) < self.codebook_size:
            raise UserError(
                f"k-means needs at least codebook_size items: got {len(residuals)} items for {self.codebook_size} codes; "
                "lower train.vae_codebook_size or set train.use_kmeans_init = False"
            )
        spherical = self.distance == "cosine" or self.unit_codewords
        result = kmeans(residuals.float(), self.codebook_size, seed=seed, spherical=spherical, shard=shard, balanced=balanced)
        self._start_at(result.centroids)
        return self.nearest(residuals) if balanced else result.codes

    @torch.no_grad()
    def sample_init(self, residuals: Tensor, seed: int, shard: Shard = ALONE) -> Tensor:
        """Sets the codewords to rows of ``residuals`` [N, D] drawn without replacement, to all of them and more where N < K, and returns
        the nearest codes [N]."""
        generator = torch.Generator(residuals.device).manual_seed(seed)
        order = torch.randperm(len(residuals), generator=generator, device=residuals.device)
        drawn = order[torch.arange(self.codebook_size, device=order.device) % len(order)]
        self._start_at(shard.of_first(residuals[drawn].float()))
        return self.nearest(residuals)

    def _start_at(self, codewords: Tensor) -> None:
        everywhere = torch.ones(self.codebook_size, dtype=torch.bool, device=codewords.device)
        if self.projection is not None:
            self.projection.copy_(torch.eye(len(self.projection)))
        self.put(everywhere, codewords)
        self.initialised.fill_(True)

    @torch.no_grad()
    def put(self, chosen: Tensor, codewords: Tensor) -> None:
        """Sets the ``chosen`` [K] bool among the codewords to rows of ``codewords`` [K, D]; with SimVQ to what its map takes there."""
        if self.projection is not None:
            codewords = torch.linalg.solve_ex(self.projection, codewords.T).result.T
        self.codebook.copy_(torch.where(chosen.unsqueeze(1), codewords, self.codebook))
        if self.averaged:
            self.average_counts.masked_fill_(chosen, 1)
            self.average_sums.copy_(torch.where(chosen.unsqueeze(1), codewords, self.average_sums))

    def _compared(self, vectors: Tensor) -> Tensor:
        """[.., D] as distances see them: with cosine their directions, whose squared distance is 2 - 2 cos."""
        return normalize(vectors, dim=-1, eps=1e-6) if self.distance == "cosine" else vectors

    def _distances(self, compared: Tensor, codewords: Tensor) -> Tensor:
        """Distances [B, K] less the row's own squared norm, which changes neither the nearest code nor a softmax."""
        targets = self._compared(codewords)
        return torch.addmm(targets.square().sum(1), compared, targets.T, alpha=-2)

    def distances(self, residual: Tensor) -> Tensor:
        """Squared distances [.., K] of residuals [.., D] to the codewords; with cosine 2 - 2 cos."""
        compared = self._compared(residual.reshape(-1, residual.shape[-1]))
        distances = self._distances(compared, self.codewords()) + compared.square().sum(1, keepdim=True)
        return distances.clamp_min(0).reshape(*residual.shape[:-1], self.codebook_size)

    def nearest(self, residual: Tensor) -> Tensor:
        """Index [B] of the codeword nearest to each residual [B, D]; with cosine the residual's length does not matter."""
        return self.distances(residual).min(1).indices

    def forward(self, residual: Tensor, temperature: float | None = None, generator: torch.Generator | None = None) -> QuantizeOutput:
        """Quantizes ``residual`` [B, D]; in training mode as the remedies have it.

        Args:
            residual: what the levels above left over.
            temperature: None takes the nearest code. A number samples: codes with probability softmax(-d / (s t)), relaxed at temperature t
                (Jang et al., equation 2). d is the squared distance (with cosine that of the directions, 2 - 2 cos), and s the batch's mean
                distance to the nearest codeword, held constant, so that t means the same at every level, scale and kind of distance.
        """
        codewords = self.codewords()
        compared = self._compared(residual)
        distances = self._distances(compared, codewords)
        nearest = distances.min(1)
        errors = nearest.values.detach() + compared.detach().square().sum(1)
        codes, relaxed = nearest.indices, None
        if temperature is not None:
            weights = gumbel_softmax_sample(-distances / (errors.mean().clamp_min(1e-8) * temperature), temperature, generator)
            codes, relaxed = weights.max(1).indices, weights @ codewords
        elif self.training and self.balance is not None:
            codes = balanced_codes(self.distances(residual.detach())[None], self.balance, self.shard)[0]
        if self.training and (self.revived or self.averaged):
            self.seen.append(Seen(residual.detach(), codes, errors.clamp_min(0)))
        return QuantizeOutput(codes, codewords[codes], relaxed)


def _fit_remedies(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Lets weights that were saved with other remedies load: state that they lack starts anew, state that is not wanted is left out."""
    assert isinstance(module, Quantize)
    codebook = state.get(f"{prefix}codebook")
    if codebook is None:
        return
    wanted = module.state_dict()
    anew = {"uses": torch.zeros(len(codebook)), "average_counts": torch.ones(len(codebook)), "average_sums": codebook}
    for name, value in anew.items():
        if name not in wanted:
            state.pop(prefix + name, None)
        elif prefix + name not in state:
            state[prefix + name] = value
