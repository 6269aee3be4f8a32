"""Checkpoints: a directory each, written under a temporary name and renamed, so that a killed run leaves the last good one.

Weights are safetensors, the optimizer and random states tensors that load with ``weights_only=True``, the rest JSON.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from data.schemas import UserError

KEEP = 2


class Resumed(NamedTuple):
    step: int  # updates done
    state: dict[str, object]  # what the script put there: best figure, patience, seconds trained


def save_checkpoint(run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, object]) -> Path:
    """Writes ``run/checkpoint-STEP`` and removes all but the newest two."""
    final = run / f"checkpoint-{step:08d}"
    temporary = run / f"{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_weights(model, temporary / "model.safetensors")
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    torch.save({"optimizer": optimizer.state_dict(), "random": random}, temporary / "optimizer.pt")
    (temporary / "state.json").write_text(json.dumps({"step": step, "state": dict(state)}))
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    for old in checkpoints(run)[:-KEEP]:
        shutil.rmtree(old)
    return final


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(path for path in run.glob("checkpoint-*") if path.suffix != ".tmp")


def resume_from(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Resumed | None:
    """Restores weights, optimizer and random state from the newest checkpoint; None where there is none.

    Raises:
        UserError: a checkpoint that does not fit the model.
    """
    found = checkpoints(run)
    if not found:
        return None
    newest = found[-1]
    load_weights(model, newest / "model.safetensors")
    try:
        saved = torch.load(newest / "optimizer.pt", map_location="cpu", weights_only=True)
        described = json.loads((newest / "state.json").read_text())
        optimizer.load_state_dict(saved["optimizer"])
    except Exception as error:
        raise UserError(
            f"the checkpoint {newest} is damaged ({str(error).splitlines()[0]}); remove it to go on from the one before"
        ) from error
    torch.set_rng_state(saved["random"]["cpu"])
    if "cuda" in saved["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["random"]["cuda"])
    return Resumed(described["step"], described["state"])


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a model's state to ``path`` (safetensors) in one rename."""
    temporary = path.with_suffix(".tmp")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)
    os.replace(temporary, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Reads what ``save_weights`` wrote.

    Raises:
        UserError: no such file, a damaged one, or weights of another shape.
    """
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise UserError(f"no weights at {path}: train that stage first") from error
    except Exception as error:
        raise UserError(f"the weights at {path} do not fit this model ({str(error).splitlines()[0]}); was the config changed?") from error
