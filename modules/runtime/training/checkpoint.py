"""Checkpoints: a directory each, written under a temporary name and renamed, so that a killed run leaves the last good one.

    checkpoint-00001000/
      model.safetensors       weights
      best.safetensors        weights of the best validation so far, where there was one
      optimizer.pt            optimizer and loss scaler: tensors that load with weights_only=True
      state.json              step, and the script's own figures: best, patience, seconds, losses not logged yet
      checksums.json          sha256 of the files above

Random numbers are not in there: every step seeds its own (see ``device.seed_step``).
"""

import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import safetensors.torch
import torch
from torch import nn

from data.io.files import write_whole
from data.schemas import UserError

WEIGHTS = "model.safetensors"
BEST, OPTIMIZER, STATE, CHECKSUMS = "best.safetensors", "optimizer.pt", "state.json", "checksums.json"

log = logging.getLogger("tiger.checkpoint")


Figure: TypeAlias = float | list[float]
"""One number, or one for each level."""


class Resumed(NamedTuple):
    folder: Path
    step: int  # updates done
    state: dict[str, dict[str, Figure]]  # the trainer's figures, the script's, and the losses not logged yet


def save_checkpoint(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    state: Mapping[str, Mapping[str, Figure]],
    keep: int,
) -> Path:
    """Writes ``run/checkpoint-STEP``, the run's best weights so far among it, and removes all but the newest ``keep``."""
    final = run / f"checkpoint-{step:08d}"
    temporary = run / f"{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    packed = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}, packed)
    files = {
        WEIGHTS: weights_bytes(model),
        OPTIMIZER: packed.getvalue(),
        STATE: json.dumps({"step": step, "state": state}).encode(),
    }
    if (run / WEIGHTS).exists():
        files[BEST] = (run / WEIGHTS).read_bytes()
    files[CHECKSUMS] = json.dumps({name: hashlib.sha256(content).hexdigest() for name, content in files.items()}).encode()
    try:
        for name, content in files.items():
            write_whole(temporary / name, content)
        if final.exists():
            shutil.rmtree(final)  # the one before it stands in until the next line is done
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(path for path in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{8,}", path.name))


def set_damaged_aside(run: Path) -> None:
    """Renames checkpoints that are not what was written, and says so, so that they neither count nor push out good ones."""
    damaged = {folder: damage for folder in checkpoints(run) if (damage := _damage(folder)) is not None}
    for folder in damaged:
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    left = checkpoints(run)
    for folder, damage in damaged.items():
        log.warning("%s is damaged (%s); %s", folder, damage, f"going on from {left[-1].name}" if left else "none is left: starting anew")


def resume_from(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Resumed | None:
    """Restores the newest checkpoint; None where there is none.

    Raises:
        UserError: a checkpoint that is whole but does not fit the model.
    """
    found = checkpoints(run)
    if not found:
        return None
    folder = found[-1]
    load_weights(model, folder / WEIGHTS)
    saved = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    described = json.loads((folder / STATE).read_text())
    try:
        optimizer.load_state_dict(saved["optimizer"])
    except ValueError as error:
        raise UserError(f"the checkpoint {folder} does not fit this model ({error}); was the code changed?") from error
    if saved["scaler"]:
        scaler.load_state_dict(saved["scaler"])
    return Resumed(folder, described["step"], described["state"])


def restore_best(run: Path, checkpoint: Path) -> None:
    """Gives the run the best weights that it had at a checkpoint, or none if it had none."""
    if (checkpoint / BEST).exists():
        write_whole(run / WEIGHTS, (checkpoint / BEST).read_bytes())
    else:
        (run / WEIGHTS).unlink(missing_ok=True)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, None if nothing is."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
        if not {WEIGHTS, OPTIMIZER, STATE} <= sums.keys():
            return f"{CHECKSUMS} is incomplete"
        for name, expected in sums.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return str(error).splitlines()[0]
    return None


def weights_bytes(model: nn.Module) -> bytes:
    """A model's state as safetensors."""
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a model's state to ``path`` (safetensors), whole or not at all."""
    write_whole(path, weights_bytes(model))


def load_weights(model: nn.Module, path: Path) -> None:
    """Reads what ``save_weights`` wrote.

    Raises:
        UserError: no such file, a damaged one, or weights of another shape.
    """
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except FileNotFoundError as error:
        raise UserError(f"no weights at {path}: train that stage first") from error
    except Exception as error:
        raise UserError(f"the weights at {path} do not fit this model ({str(error).splitlines()[0]}); was the config changed?") from error
