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
from modules.runtime.runs.stage1_run import TrainedTokenizer, load_tokenizer, read_config
from modules.runtime.runs.stage2_run import Retriever, load_retriever
from modules.runtime.runs.text_vectors import VECTORS
from modules.runtime.training.checkpoint import WEIGHTS

BINARY = (WEIGHTS, "tokenizer.safetensors", VECTORS, MEMORY)
TEXTS = ("config.json", "tokenizer.json", "titles.json", "search.json", MEMORY_CONFIG, "config.gin", "metrics.json", "environment.json")
OPTIONAL = ("titles.json", "search.json", VECTORS, MEMORY, MEMORY_CONFIG)
"""Written by one stage only, the memory where the search reads it. Stage 2's users.json, the ids of people, is not shared."""


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
    missing = [name for name in (*BINARY, *TEXTS) if name not in OPTIONAL and not (run / name).exists()]
    if missing:
        raise UserError(f"{run} is no finished run ({', '.join(missing)} missing); let its training end, then share it")
    if folder.resolve() == run.resolve():
        raise UserError(f"{folder} is the run itself; give another folder to copy it to")
    folder.mkdir(parents=True, exist_ok=True)
    for name in BINARY:
        if (run / name).exists():
            shutil.copyfile(run / name, folder / name)
    for name in TEXTS:
        if (run / name).exists():
            text = (run / name).read_text()
            write_whole(folder / name, without_local_paths(text) if name in ("config.gin", "environment.json") else text)
    write_whole(folder / "README.md", model_card(run, repo))
    return folder


def from_pretrained(name: str, device: torch.device | str = "cpu") -> TrainedTokenizer | Retriever:
    """A trained run, ready to use: of stage 1 the RQ-VAE and its semantic IDs, of stage 2 the retriever.

    Args:
        name: a run directory, a folder of ``save_pretrained``, or a hub name ``owner/name``.
        device: where the weights go.

    Raises:
        UserError: nothing of that name, or something else than a run.
    """
    folder = find_snapshot(name)
    return load_tokenizer(folder, device) if "decoder" not in read_config(folder) else load_retriever(folder, device)


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
    folder = next((candidate for candidate in candidates if (candidate / "tokenizer.json").exists()), None)
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
    if not (folder / "tokenizer.json").exists():
        raise UserError(
            f"{name} on the hub is no run of this project (no tokenizer.json); give the name of one that is, or a run directory"
        )
    if stage is not None and ("decoder" in read_config(folder)) != (stage == "decoder"):
        raise UserError(f"{folder} is a run of the other script; train.pretrained_{stage}_path takes one of train_{stage}.py")
    return folder


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
        return Path(snapshot_download(name, allow_patterns=[*BINARY, *TEXTS]))
    except Exception as error:  # unknown, private, offline: the client raises errors of several libraries
        raise UserError(
            f"{name} is no directory here and cannot be had from the hub ({_first_line(error)}); correct the name, "
            "log in with `hf auth login` or HF_TOKEN if it is private, or give a run directory on this machine"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
