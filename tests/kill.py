"""Kills a script with SIGKILL at many moments and starts it again: ``python -m tests.kill rqvae|decoder TRIALS FOLDER``.

Each trial starts in an empty folder, so that download, encoding, caches, k-means, checkpoints and evaluation all lie ahead of it. It is
killed right before one of its operations on files (a write, a rename, a removal), or at a random time, which may come after its end. The
first two operations are placed: the first of all, with nothing written, and the first after a checkpoint got its name; the others are drawn
among all that an unbroken run makes. The second start must end well, with the metrics of the unbroken run. Prints one JSON line a trial.
This process imports everything once and never computes; the runs are forks of it.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

import data.item_embeddings
import data.sources.p5
import modules.runtime.runs.run
import train_decoder
import train_rqvae
from modules.runtime.config.main import run_script
from tests.synthetic import write_p5

USERS, ITEMS, WIDTH = 60, 48, 16
RQVAE = [
    "iterations=24", "autoencoder_steps=8", "batch_size=16", f"vae_input_dim={WIDTH}", "vae_embed_dim=4", "vae_hidden_dims=[8]",
    "vae_codebook_size=4", "eval_every=5", "save_model_every=4", "log_every=2",
]  # fmt: skip
DECODER = [
    "iterations=16", "batch_size=32", "decoder_embed_dim=16", "attn_embed_dim=16", "attn_heads=2", "attn_layers=1", "decoder_ff_dim=16",
    "num_user_bins=4", "beam_size=20", "full_eval_every=6", "partial_eval_every=4", "log_every=2", "save_model_every=3", "eval_users=20",
]  # fmt: skip
WRITES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


class Encoder:
    """Stands in for a sentence encoder: vectors from the texts' bytes, after a while."""

    def encode(self, texts: list[str], **options: object) -> np.ndarray:
        time.sleep(0.05)
        return np.stack([np.random.default_rng(list(text.encode())).normal(size=WIDTH) for text in texts]).astype(np.float32)


def start(stage: str, folder: Path, rqvae: Path) -> int:
    """One start of a script; in a child process."""
    given = [f"dataset_folder={folder}/data", f"save_dir_root={folder}/run", "device=cpu", "amp=False"]
    given += RQVAE if stage == "rqvae" else [*DECODER, f"pretrained_rqvae_path={rqvae}"]
    train = {"rqvae": train_rqvae.train, "decoder": train_decoder.train}[stage]
    with open(os.devnull, "w") as nothing:
        sys.stdout = nothing
        with open(folder / "stderr.txt", "w") as sys.stderr:
            return run_script(train, "", [f"configs/{stage}_amazon.gin", *given])


class Ended(NamedTuple):
    """A start, once it is over."""

    code: int  # -9: killed
    seconds: float
    events: int = 0  # operations on files, of a start that was not killed
    checkpoint: int = 0  # number of the operation that gave the first checkpoint its name


def fork(stage: str, folder: Path, rqvae: Path, at_event: int | None = None, after: float | None = None) -> Ended:
    """Runs a start in a fork, which is killed right before an operation on files or after some seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    events = folder / "events"
    events.unlink(missing_ok=True)  # a start before this one may have ended well and left its own
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        count, checkpoint = 0, 0

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count, checkpoint
            if event not in WRITES or str(folder) not in str(arguments[0]) or str(arguments[0]).endswith("stderr.txt"):
                return
            if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            count += 1
            if count == at_event:
                os.kill(os.getpid(), signal.SIGKILL)
            if event == "os.rename" and not checkpoint and re.search(r"checkpoint-\d+$", str(arguments[1])):
                checkpoint = count

        sys.addaudithook(watch)
        code = 1
        try:
            code = start(stage, folder, rqvae)
            os.write(os.open(events, os.O_CREAT | os.O_WRONLY), f"{count} {checkpoint}".encode())
        finally:
            os._exit(code)
    timer = threading.Timer(after, os.kill, (child, signal.SIGKILL)) if after is not None else None
    if timer:
        timer.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if timer:
        timer.cancel()
    return Ended(code, time.perf_counter() - began, *(map(int, events.read_text().split()) if events.exists() else ()))


def figures(folder: Path) -> dict[str, object]:
    """A finished run's metrics, without what depends on the clock."""
    metrics = json.loads((folder / "run" / "beauty" / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if "seconds" not in name}


def begun(folder: Path) -> str:
    """How far a killed run got, by what it left."""
    run, data = folder / "run" / "beauty", folder / "data"
    signs = {
        "best weights": run / "model.safetensors",
        "checkpoint": next(run.glob("checkpoint-????????"), run / "none"),
        "embeddings": next(data.glob("processed/embeddings_*"), data / "none"),
        "corpus": next(data.glob("processed/amazon_*"), data / "none"),
        "raw files": data / "raw" / "beauty" / "meta.json.gz",
        "archive": data / "raw" / "P5_data.zip",
        "run directory": run / "config.gin",
    }
    return next((name for name, path in signs.items() if path.exists()), "nothing")


def main() -> None:
    stage, trials, root = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    write_p5(root / "source", USERS, ITEMS)
    archive = root / "P5.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (root / "source" / "raw" / "beauty").iterdir():
            file.write(path, f"data/beauty/{path.name}")
    data.sources.p5.P5_URL = archive.as_uri()
    data.item_embeddings._load_encoder = lambda *arguments: Encoder()
    # Drawing takes as long as such a run; the files are written all the same.
    train_rqvae.codebook_plot = train_rqvae.loss_plot = train_decoder.loss_plot = train_decoder.recall_plot = lambda *arguments: None
    modules.runtime.runs.run.png = lambda figure: b"a picture"
    rqvae = root / "rqvae" / "run"
    if stage == "decoder":
        assert fork("rqvae", rqvae.parent, rqvae).code == 0, (rqvae.parent / "stderr.txt").read_text()
    unbroken = fork(stage, root / "unbroken", rqvae)
    assert unbroken.code == 0, (root / "unbroken" / "stderr.txt").read_text()
    expected, rng = figures(root / "unbroken"), random.Random(0)
    placed = [1, unbroken.checkpoint + 1]
    for trial in range(trials):
        folder = root / f"trial{trial}"
        by_time = trial % 4 == 3
        if by_time:
            moment = {"after": rng.uniform(0.02, 0.7 * unbroken.seconds)}
        else:
            moment = {"at_event": placed[trial] if trial < len(placed) else rng.randint(1, unbroken.events)}
        first = fork(stage, folder, rqvae, **moment)
        left = begun(folder)
        second = fork(stage, folder, rqvae)
        same = second.code == 0 and figures(folder) == expected
        rest = [str(path.relative_to(folder)) for path in folder.rglob("*.tmp")]
        error = (folder / "stderr.txt").read_text()[-500:] if second.code else ""
        print(json.dumps({**moment, "of": unbroken.seconds if by_time else unbroken.events, "killed": first.code == -9, "had": left,
                          "second": second.code, "same": same, "left": rest, "error": error}), flush=True)  # fmt: skip
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
