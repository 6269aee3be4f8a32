"""The item vectors that stage 1 keeps in its run, so that stage 2 knows which texts are alike without encoding them again.

Only their directions count.
Shape letters: I items, E text-embedding width.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from data.io.files import write_whole
from data.schemas import UserError

VECTORS = "vectors.safetensors"
LARGEST = 200_000_000
"""Bytes of a table beyond which it is not kept: 130 thousand items of width 768."""

BYTES = 2
"""Of a number, in float16."""


def save_vectors(folder: Path, vectors: Tensor) -> str | None:
    """Writes text vectors [I, E] as float16, scaled as a whole where their numbers are too large or too small for it.

    Every tokenizer keeps them, the random one too: what is compared with the model does not depend on where its codes come from.

    Returns:
        Why they are not kept; None: they are.
    """
    size = BYTES * vectors.numel()
    if size > LARGEST:
        return (
            f"the text vectors are not kept: {size / 1e6:,.0f} MB are more than {LARGEST / 1e6:.0f} MB; stage 2 compares with baselines "
            "without texts"
        )
    largest = float(vectors.abs().max())
    scale = largest if largest > 1024 or 0 < largest < 1 / 1024 else 1.0
    write_whole(folder / VECTORS, save({"vectors": (vectors.float() / scale).half().cpu().contiguous()}))
    return None


def load_vectors(folder: Path, num_items: int) -> Tensor | None:
    """Reads what ``save_vectors`` wrote -> [I, E] float32; None where the run keeps none.

    Raises:
        UserError: a damaged file, or one of other items.
    """
    path = folder / VECTORS
    if not path.exists():
        return None
    try:
        vectors = load_file(path)["vectors"].float()
    except Exception as error:  # safetensors raises errors of several kinds
        raise UserError(f"{path} cannot be read ({error}); copy it again, or train stage 1 again") from error
    if vectors.dim() != 2 or len(vectors) != num_items or not bool(torch.isfinite(vectors).all()):
        raise UserError(f"{path} holds no vectors of the run's {num_items:,} items; copy it again, or train stage 1 again")
    return vectors
