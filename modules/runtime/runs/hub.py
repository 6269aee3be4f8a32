"""Sharing finished runs of either stage: a folder with what another person needs, to the Hugging Face Hub and back.

Nothing is unpickled (weights and tables are safetensors, the rest is text), and nothing asks for a password: a token comes from
`hf auth login` or HF_TOKEN, or there is none. A path on this machine always wins over a name on the hub.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Literal

import torch

from data.io.files import write_whole
from data.schemas import UserError
from modules.runtime.runs.hub_names import check_push, check_repo_name
from modules.runtime.runs.memory_files import MEMORY, MEMORY_CONFIG
from modules.runtime.runs.model_card import model_card, without_local_paths
from modules.runtime.runs.sasrec_run import SASRecRun, load_sasrec
from modules.runtime.runs.stage1_run import TrainedTokenizer, load_tokenizer, read_config
from modules.runtime.runs.stage2_run import ITEMS, SEARCH, Retriever, load_retriever
from modules.runtime.runs.text_vectors import VECTORS
from modules.runtime.training.checkpoint import WEIGHTS

NEEDED = (WEIGHTS, "config.json", "config.gin", "metrics.json", "environment.json")
"""Of every finished run."""

TOKENIZER = ("tokenizer.json", "tokenizer.safetensors")
"""The items of a run that has semantic IDs; one of SASRec has items.json instead."""

SHARED = (*NEEDED, *TOKENIZER, ITEMS, "titles.json", SEARCH, VECTORS, MEMORY, MEMORY_CONFIG)
"""All that any run may have for others. Stage 2's users.json, the ids of people, is not among it."""


def save_pretrained(run: Path, folder: Path, repo: str | None = None) -> Path:
    """Copies of a finished run what another person needs, without paths of this machine, and writes the model card README.md.

    Args:
        run: a run directory of either stage.
        folder: made if absent; not the run itself.
        repo: the hub name that the card's commands show; None: a placeholder.

    Returns:
        The folder.

    Raises:
        UserError: the run is not finished, or the folder is the run.
    """
    needed = [*NEEDED, *([ITEMS] if "sasrec" in read_config(run) else TOKENIZER)]
    missing = [name for name in needed if not (run / name).exists()]
    if missing:
        raise UserError(f"{run} is no finished run ({', '.join(missing)} missing); let its training end, then share it")
    if folder.resolve() == run.resolve():
        raise UserError(f"{folder} is the run itself; give another folder to copy it to")
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        if name in ("config.gin", "environment.json"):
            write_whole(folder / name, without_local_paths((run / name).read_text()))
        elif (run / name).exists():
            shutil.copyfile(run / name, folder / name)
    write_whole(folder / "README.md", model_card(run, repo))
    return folder


def from_pretrained(name: str, device: torch.device | str = "cpu") -> TrainedTokenizer | Retriever | SASRecRun:
    """A trained run, ready to use: of stage 1 the RQ-VAE and its semantic IDs, of stage 2 what ``Searcher`` or ``SASRecSearcher`` asks.

    Args:
        name: a run directory, a folder of ``save_pretrained``, or a hub name ``owner/name``.
        device: where the weights go.

    Raises:
        UserError: nothing of that name, or something else than a run.
    """
    folder = find_snapshot(name)
    described = read_config(folder)
    if "sasrec" in described:
        return load_sasrec(folder, device)
    return load_retriever(folder, device) if "decoder" in described else load_tokenizer(folder, device)


def find_snapshot(name: str, split: str | None = None, stage: Literal["rqvae", "decoder"] | None = None) -> Path:
    """The directory of a trained run: ``name`` itself, its subdirectory named after the split, or what the hub has under that name.

    Args:
        name: a run directory, its parent, a folder of ``save_pretrained``, or a hub name ``owner/name``.
        split: name of the subdirectory; None: only ``name`` itself.
        stage: whose run it must be; None: either's.

    Raises:
        UserError: nothing there, nothing to be had from the hub, or a run of the other stage.
    """
    candidates = [Path(name), *([] if split is None else [Path(name) / split])]
    folder = next((candidate for candidate in candidates if _is_run(candidate)), None)
    if folder is None and (Path(name).exists() or check_repo_name(name) is not None):
        looked = " or ".join(map(str, candidates))
        if stage is None:
            raise UserError(
                f"{looked} is not a run of train_decoder.py or train_rqvae.py; give the directory printed as 'run', or a hub name"
            )
        raise UserError(
            f"no run of train_{stage}.py in {looked}: train it first for this dataset and split, or point "
            f"train.pretrained_{stage}_path at its run directory or at a hub name such as 'owner/name'"
        )
    folder = folder or _download(name)
    if not _is_run(folder):
        raise UserError(
            f"{name} on the hub is no run of this project (no tokenizer.json); give the name of one that is, or a run directory"
        )
    if stage is not None and bool(read_config(folder).keys() & {"decoder", "sasrec"}) != (stage == "decoder"):
        raise UserError(f"{folder} is a run of the other script; train.pretrained_{stage}_path takes one of train_{stage}.py")
    return folder


def _is_run(folder: Path) -> bool:
    """Has it the catalogue of a run?"""
    return any((folder / name).exists() for name in ("tokenizer.json", ITEMS))


def push(run: Path, repo: str, private: bool = False) -> str:
    """Uploads a finished run with its model card; returns the address of the repository, which is made if absent.

    Raises:
        UserError: an unfinished run, a name that cannot be, no token, or a hub that refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    safe = f"the run itself is safe in {run}"
    problem = check_push(repo)
    if problem:
        raise UserError(f"{problem}; {safe}")
    with tempfile.TemporaryDirectory() as folder:
        snapshot = save_pretrained(run, Path(folder), repo)
        api = HfApi()
        try:
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=snapshot, commit_message=f"Upload {run.name}")
        except Exception as error:  # refused, unreachable, quota: the client raises errors of several libraries
            raise UserError(
                f"the hub did not take {repo} ({_first_line(error)}); check the name, the token and the network; {safe}"
            ) from error
    return str(address)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(SHARED)))
    except Exception as error:  # unknown, private, offline: the client raises errors of several libraries
        raise UserError(
            f"{name} is no directory here and cannot be had from the hub ({_first_line(error)}); correct the name, "
            "log in with `hf auth login` or HF_TOKEN if it is private, or give a run directory on this machine"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
