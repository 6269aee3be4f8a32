"""What codebooks do between the steps of the optimizer: follow their moving averages, and revive the codes that no item uses.

Shape letters: B batch over all processes, D width, K codebook size.
"""

import torch
from torch import Tensor

from init.kmeans import ALONE, Shard
from modules.quantize import Quantize

SMOOTHING = 1e-5
"""Added to the counts, so that a code that lost its items stays finite (Laplace; as in the reference code of VQ-VAE)."""

LAST = 0.9
"""No code is revived after this share of the steps: what is in use at the end is in use because items chose it."""


class CodebookUpdates:
    """Call ``begin`` before every step; the rest follows each step of ``optimizer``. Without a remedy it does nothing.

    Revival as in SoundStream (Zeghidour et al. 2021, arXiv 2107.03312, section III-C: unused codewords are replaced by inputs of the batch)
    and Williams et al. (2020), "Hierarchical Quantized Autoencoders", arXiv 2002.08111; here inputs with a large error are preferred.

    Args:
        levels: the codebooks that are kept.
        optimizer: of their model's parameters; its first moment of a revived codeword starts anew, its second at the others' mean.
        first: first step with the quantizer.
        iterations: steps in all.
        batch_size: items a batch over all processes.
        seed: fixes which inputs revive a code.
        shard: this process among those that share each batch; all end with the same codebooks.
        dead_code_steps: a code that no item used for so many steps is revived; 0: none is.
        ema_decay: of the moving averages that codewords follow; 0: they learn by gradient.
    """

    def __init__(
        self,
        levels: list[Quantize],
        optimizer: torch.optim.Optimizer,
        first: int,
        iterations: int,
        batch_size: int,
        seed: int = 0,
        shard: Shard = ALONE,
        dead_code_steps: int = 0,
        ema_decay: float = 0.0,
    ) -> None:
        self.levels, self.optimizer, self.dead_code_steps, self.ema_decay = levels, optimizer, dead_code_steps, ema_decay
        self.first, self.iterations, self.batch_size, self.seed, self.shard = first, iterations, batch_size, seed, shard
        self.step = 0
        for level in self.levels:
            level.shard = shard
        if dead_code_steps or ema_decay:
            optimizer.register_step_post_hook(lambda *_: self._after())

    def begin(self, step: int) -> None:
        """Step number ``step`` comes next."""
        self.step = step
        for level in self.levels:
            level.seen.clear()

    @torch.no_grad()
    def _after(self) -> None:
        if not self.levels[0].seen:  # the quantizer was left out
            return
        statistics = [_statistics(level) for level in self.levels]
        sizes = [len(level.codebook) for level in self.levels]
        totals = self.shard.total(torch.cat(statistics)).split(sizes)  # one message for all levels
        for level, total in zip(self.levels, totals):
            if level.averaged:
                average(level, total[:, 0], total[:, 1:], self.ema_decay)
            if level.revived:
                level.uses += total[:, 0]
        # One step into the next period: a look at the codes when a period ends sees what the items chose, not what was just put there.
        period, since = self.dead_code_steps, self.step - self.first
        if period and since > 0 and since % period == 0:
            if self.step < LAST * self.iterations:
                for number, level in enumerate(self.levels):
                    self._revive(level, number)
            for level in self.levels:
                level.uses.zero_()

    def _revive(self, level: Quantize, number: int) -> None:
        residuals = torch.cat([self.shard.whole(batch.residuals, self.batch_size) for batch in level.seen])
        errors = torch.cat([self.shard.whole(batch.errors, self.batch_size) for batch in level.seen])
        generator = torch.Generator(residuals.device).manual_seed(self.seed * 1_000_003 + self.step * len(self.levels) + number)
        drawn = draw(errors, level.codebook_size, generator)
        revived = level.uses == 0
        # The dead codes take the draws in turn.
        turn = (revived.cumsum(0) - 1).clamp_min(0)
        level.put(revived, self.shard.of_first(residuals[drawn[turn % len(drawn)]]))
        state = self.optimizer.state.get(level.codebook, {})
        if "exp_avg" in state:
            rows, live = revived.unsqueeze(1), (~revived).unsqueeze(1)
            state["exp_avg"].masked_fill_(rows, 0)
            # Zero here would have the first updates overshoot: Adam corrects for a young average by the age of the whole codebook.
            mean = (state["exp_avg_sq"] * live).sum(0) / live.sum().clamp_min(1)
            state["exp_avg_sq"].copy_(torch.where(rows, mean, state["exp_avg_sq"]))


def draw(errors: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """At most ``number`` different indices into ``errors`` [B], each next one drawn with probability proportional to its error.

    By Gumbel keys, the largest first; k-means++ seeds by the same distances, and for the same reason it is not simply the largest ones:
    these are outliers, often of one kind.
    """
    uniform = torch.rand(errors.shape, generator=generator, device=errors.device).clamp_(1e-7, 1 - 1e-7)
    return (errors.log() - (-uniform.log()).log()).topk(min(number, len(errors))).indices


def average(level: Quantize, counts: Tensor, sums: Tensor, decay: float) -> None:
    """Moves a codebook to the moving averages of what its codes were given: van den Oord et al. (2017), arXiv 1711.00937, appendix A.1.

    Args:
        level: one made with ``averaged``.
        counts: [K], items of a step that took each code.
        sums: [K, D], of their residuals.
        decay: of the averages.
    """
    level.average_counts.lerp_(counts, 1 - decay)
    level.average_sums.lerp_(sums, 1 - decay)
    total = level.average_counts.sum()
    smoothed = (level.average_counts + SMOOTHING) / (total + len(counts) * SMOOTHING) * total
    level.codebook.copy_(level.average_sums / smoothed.unsqueeze(1))


def _statistics(level: Quantize) -> Tensor:
    """Of a step: [K, 1 + D] items of each code and the sum of their residuals; [K, 1] where no averages are taken."""
    codes = torch.cat([batch.codes for batch in level.seen])
    residuals = torch.cat([batch.residuals for batch in level.seen])
    added = torch.cat([torch.ones_like(residuals[:, :1]), residuals], 1) if level.averaged else torch.ones_like(residuals[:, :1])
    return added.new_zeros(level.codebook_size, added.shape[1]).index_add_(0, codes, added)
