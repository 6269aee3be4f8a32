"""Runs a script and sends it SIGTERM in the middle of one update: ``python -m tests.stop_at STEP rqvae|decoder CONFIG ...``."""

import os
import signal
import sys

import train_decoder
import train_rqvae
from modules.runtime.config.main import run_script
from modules.runtime.training import trainer


def main() -> int:
    step, stage, *arguments = sys.argv[1:]
    seed_step = trainer.seed_step

    def seed_and_stop(seed: int, current: int, rank: int) -> None:
        seed_step(seed, current, rank)
        if current == int(step):
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.seed_step = seed_and_stop
    return run_script({"rqvae": train_rqvae.train, "decoder": train_decoder.train}[stage], "", arguments)


if __name__ == "__main__":
    sys.exit(main())
