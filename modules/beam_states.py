"""The decoder code after code: what a beam search asks for the states of its beams, with the keys and values of the codes written before.

Shape letters: B batch, W beams, D width, C codes of an ID, A attention width, H heads, S = encoder tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from modules.embedding import SemanticIdEmbedding
from modules.transformer import Decoder, KeysValues


class BeamStates:
    """Decoder states of beams that grow by a code a step.

    Args:
        decoder: the stack.
        embedding: of the codes written.
        levels: [C, D] or [B, 1, C, D], added to the input of each level.
        memory: keys and values of the encoded histories, [B, H, S, A/H] a layer.
        cross_bias: [B, H, 1, S].
        cast: brings the decoder's input into the dtype of its computation.
    """

    def __init__(
        self,
        decoder: Decoder,
        embedding: SemanticIdEmbedding,
        levels: Tensor,
        memory: list[KeysValues],
        cross_bias: Tensor,
        cast: Callable[[Tensor], Tensor],
    ) -> None:
        self.decoder, self.embedding, self.levels, self.cross_bias, self.cast = decoder, embedding, levels, cross_bias, cast
        self.memory = [KeysValues(*(half.contiguous() for half in layer)) for layer in memory]  # or each step would copy them
        self.past: list[list[Tensor]] = [[] for _ in memory]

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        """States [B, W, D] of the beams that are asked about; see modules.beam_search.Beams for the arguments."""
        x = self.levels[..., level, :].expand(self.memory[0].keys.shape[0], 1, -1)
        if codes is not None and parents is not None:
            x = x + self.embedding.level(codes, level - 1)
            rows = _rows(parents, self.past[0][0].shape[0])
            self.past = [[code.index_select(0, rows) for code in layer] for layer in self.past]
        x, self.past = self.decoder.step(self.cast(x), self.memory, self.past, self.cross_bias)
        return x


def _rows(parents: Tensor, num_rows: int) -> Tensor:
    """Where each of the beams that continue ``parents`` [B, W'] finds its past among ``num_rows`` = B x W rows -> [B x W']."""
    batch = parents.shape[0]
    return (torch.arange(batch, device=parents.device).unsqueeze(1) * (num_rows // batch) + parents).flatten()
