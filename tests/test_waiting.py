"""A training step of stage 1 never makes the host wait for the device: it reads no value and no size that the device has yet to compute."""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_rqvae
from modules.quantize import QuantizeForwardMode
from modules.rqvae import RqVae, RqVaeConfig
from modules.runtime.config.declaration import filled
from modules.runtime.options.rqvae import RqVaeOptions
from modules.runtime.runs.run import Run
from modules.runtime.training.device import Placement, on_device
from modules.runtime.training.item_batches import index_batches
from modules.runtime.training.processes import Ranks
from modules.runtime.training.trainer import Plan, Trainer

WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim"}
WAITS |= {"unique_consecutive", "unique_dim_consecutive", "bincount", "histc"}
"""Operators whose result, or its size, a GPU must hand to the host."""


class Waiting(TorchDispatchMode):
    """Notes every operator that would wait; an index by truth values is a ``nonzero``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = tree_leaves(args[1]) if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
        if name in WAITS or any(index.dtype in (torch.bool, torch.uint8) for index in indices if isinstance(index, torch.Tensor)):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


SWITCHES = [{"mode": mode} for mode in QuantizeForwardMode]
SWITCHES += [{"distance": "cosine"}, {"sim_vq": True}, {"codebook_normalize": True}, {"n_cat_feats": 2}, {"input_norm": "standardize"}]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "-".join(str(value) for value in switches.values()))
@pytest.mark.parametrize("temperature", [None, 0.5], ids=["autoencoder", "quantizer"])
def test_a_step_waits_for_nothing(switches: dict, temperature: float | None, tmp_path: Path) -> None:
    items = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    model = RqVae(RqVaeConfig(**{"input_dim": 8, "embed_dim": 4, "hidden_dims": (8,), "codebook_size": 8, "num_levels": 2, **switches}))
    model.normalizer.fit(items)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    plan = filled(Plan, RqVaeOptions(iterations=1000, batch_size=16, max_grad_norm=1.0), factor=lambda step: 1.0)
    placement = Placement(torch.device("cpu"), None, "")
    run = Run(str(tmp_path), "run", {"resume": True, "run_name": None})
    trainer = Trainer(run, model, train_rqvae.Objective(model), optimizer, plan, placement, Ranks(), {})
    rows = index_batches(len(items), 16, 0, items.device)

    def share(micro: int, step: int = 0):
        return trainer.objective(on_device(items.index_select(0, rows(step)), placement.device), temperature)

    trainer.update(0, share)  # the optimizer makes its state
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with Waiting() as waiting:
        trainer.update(1, lambda micro: share(micro, 1))
        trainer.update(2, lambda micro: share(micro, 2))
    assert waiting.found == []
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: float(x[0]),
        lambda x: x.masked_select(x > 0),
    ],
)
def test_what_waits_is_seen(wait) -> None:
    with Waiting() as waiting:
        wait(torch.ones(3))
    assert waiting.found
