"""A config of stage 2 with its stage 1: the overrides of each, and the runs of both with several seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.schemas import UserError
from modules.runtime.config.declaration import declared_options
from modules.runtime.config.main import resolve
from modules.runtime.config.suggest import did_you_mean
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.options.groups import DataOptions, RunOptions
from modules.runtime.options.rqvae import RqVaeOptions
from modules.runtime.runs.run import config_of_other_stage
from modules.runtime.runs.series import Job

STAGES = {"stage1": RqVaeOptions, "stage2": DecoderOptions}
BOTH = (declared_options(DataOptions) | declared_options(RunOptions)).keys()
"""Options that say which data, and where and how to run: an override of them holds for both stages."""
OURS = {
    "seed": "--seeds says how many",
    "save_dir_root": "--out says where",
    "run_name": "--out says where",
    "resume": "runs go on by themselves",
    "pretrained_rqvae_path": "stage 2 reads the stage 1 of its seed",
    "stage2.do_eval": "--read-test reads the test part",
}
"""Options that the command sets, and what to use instead."""


class Chain(NamedTuple):
    """A config of stage 2, and what it is trained after."""

    name: str
    stage2: str
    stage1: str | None  # None: it needs no semantic IDs
    options: DecoderOptions

    def job(self, stage: str, seed: int, out: Path, overrides: Sequence[str], read_test: bool) -> Job:
        """The run of a stage with a seed."""
        split = self.options.dataset_split
        given = [*overrides, f"seed={seed}"]
        if stage == "stage1":
            assert self.stage1 is not None
            name = Path(self.stage1).stem
            return Job(f"{name}, seed {seed}", "train_rqvae.py", self.stage1, tuple(given), out / name / f"seed_{seed}", split, ("data",))
        if self.stage1 is not None:
            given.append(f"pretrained_rqvae_path={out / Path(self.stage1).stem / f'seed_{seed}'}")
        figures = ("validation", "test") if read_test else ("validation",)
        given.append(f"do_eval={read_test}")
        root = out / self.name / f"seed_{seed}"
        return Job(f"{self.name}, seed {seed}", "train_decoder.py", self.stage2, tuple(given), root, split, figures)


def chain_of(config: str, stage1: str | None, overrides: dict[str, list[str]]) -> Chain:
    """The config of stage 2 with its stage 1, both checked.

    Raises:
        UserError: mistakes in either, or no config of stage 1.
    """
    options = resolve(DecoderOptions, [config, *overrides["stage2"]])
    if stage1 is None and options.model != "sasrec":
        pair = config_of_other_stage(Path(config))
        if pair is None:
            looked = Path(config).name.replace("decoder", "rqvae", 1)
            raise UserError(f"{config} has no config of stage 1 beside it ({looked}); give one: --stage1 configs/rqvae_NAME.gin")
        stage1 = str(pair)
    if stage1 is not None:
        first = resolve(RqVaeOptions, [stage1, *overrides["stage1"]])
        if (first.dataset, first.dataset_split) != (options.dataset, options.dataset_split):
            ours, theirs = (f"{found.dataset.name} {found.dataset_split}" for found in (options, first))
            raise UserError(f"{config} is about {ours} and its stage 1, {stage1}, about {theirs}; give --stage1 a config of the same data")
    return Chain(Path(config).stem, config, stage1, options)


def split_overrides(words: Sequence[str]) -> dict[str, list[str]]:
    """The overrides of each stage.

    Raises:
        UserError: a word that is none, an option that this command sets, one that is unknown, or one that could mean either stage.
    """
    stages = {stage: declared_options(kind) for stage, kind in STAGES.items()}
    found: dict[str, list[str]] = {stage: [] for stage in STAGES}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"cannot read {word!r}: give configs of stage 2 (NAME.gin), then overrides as name=value")
        prefix, _, bare = name.rpartition(".")
        prefix = "" if prefix == "train" else prefix
        holders = [stage for stage, declared in stages.items() if bare in declared]
        if prefix not in ("", *STAGES) or not holders or (prefix and prefix not in holders):
            known = stages.get(prefix, stages["stage1"] | stages["stage2"])
            raise UserError(f"there is no option {name!r}{did_you_mean(bare, known)}")
        if instead := OURS.get(bare, OURS.get(name)):
            raise UserError(f"{name} is set by this command: {instead}")
        if prefix:
            holders = [prefix]
        elif bare.startswith("vae_"):  # stage 2 would only compare them
            holders = ["stage1"]
        elif len(holders) == 2 and bare not in BOTH:
            raise UserError(f"both stages have {bare}; write stage1.{word} or stage2.{word}")
        for stage in holders:
            found[stage].append(f"{bare}={value}")
    return found


def jobs_of(chains: Sequence[Chain], seeds: int, out: Path, overrides: dict[str, list[str]], read_test: bool) -> list[list[Job]]:
    """All runs of stage 1, each once, and all of stage 2."""
    first = [chain.job("stage1", seed, out, overrides["stage1"], read_test) for seed in range(seeds) for chain in chains if chain.stage1]
    second = [chain.job("stage2", seed, out, overrides["stage2"], read_test) for seed in range(seeds) for chain in chains]
    return [list(dict.fromkeys(first)), second]
