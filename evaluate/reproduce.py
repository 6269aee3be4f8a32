"""Proof as a command: trains configs with several seeds, and says what they reach beside the baselines and what others published.

    python -m evaluate.reproduce configs/decoder_quick.gin                             # three seeds of both stages
    python -m evaluate.reproduce configs/decoder_amazon_best.gin --stage1 configs/rqvae_amazon.gin --seeds 5 --jobs 2
    python -m evaluate.reproduce configs/decoder_amazon.gin configs/decoder_amazon_best.gin --stage1 configs/rqvae_amazon.gin
    python -m evaluate.reproduce configs/decoder_quick.gin stage1.iterations=500 stage2.iterations=400

Each seed runs stage 1 and then stage 2, each as a process of its own. Stage 1's config is the one beside that has the name (rqvae_NAME.gin
for decoder_NAME.gin) or --stage1; a config of SASRec has none. An override, name=value, holds for the stage that has the option, and for
both where it says which data or where to run; stage1. or stage2. before it names one stage.

The same command again goes on: finished runs are not run again, interrupted ones go on. All validation users are evaluated; the test part
is read with --read-test alone, once a run, also when the runs were trained before without it, and each reading is counted.

Written to --out beside the runs: a JSON and a Markdown page with, for every cut-off, the mean over seeds and its deviation, the bootstrap
interval over users, the baselines, published rows by their protocol, a verdict by paired intervals, and what each run cost. Copied to
benchmarks/quality, the JSON stands in docs/results.md after `make readme`.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data.io.files import write_whole
from data.schemas import UserError
from evaluate.reproduction import Answers, against_published, published_rows, summary
from evaluate.results_page import result_page
from modules.runtime.runs.chain import Chain, chain_of, jobs_of, split_overrides
from modules.runtime.runs.model_card import without_local_paths
from modules.runtime.runs.ranks_file import read_row, report_of
from modules.runtime.runs.run import METRICS, environment, test_readings
from modules.runtime.runs.series import Job, precision_of, run_all, spent_on
from modules.runtime.training.signals import Interrupted, raise_on_sigterm


def answers_of(folders: dict[str, list[Path]], part: str) -> dict[str, Answers]:
    """What the runs answered, by scale: "barred" and "not barred".

    A config's model and its mixtures (train.mixtures) are read of every seed, the baselines of the first run of all.
    """
    scales: dict[str, Answers] = {}
    first = next(iter(folders))
    for config, runs in folders.items():
        rows, _ = report_of(runs[0], part)
        model = next(iter(rows))
        for name, row in rows.items():
            answers = scales.setdefault("barred" if row["filter_history"] else "not barred", Answers({}, {}))
            if name in (model, f"{model}, history barred", f"{model}, history not barred"):
                answers.models[config] = [read_row(folder, part, name) for folder in runs]
            elif name.startswith(f"{model}: "):
                answers.models[config + name.removeprefix(model)] = [read_row(folder, part, name) for folder in runs]
            elif config == first:
                answers.baselines[name] = read_row(runs[0], part, name)
    return scales


def result_of(
    chains: Sequence[Chain], jobs: Sequence[Sequence[Job]], seeds: int, overrides: dict[str, list[str]], read_test: bool
) -> dict[str, object]:
    """The JSON of finished runs."""
    folders = {chain.name: [job.folder for job in jobs[1] if job.root.parent.name == chain.name] for chain in chains}
    data = json.loads((jobs[1][0].folder / METRICS).read_text())["data"]
    options = chains[0].options
    cutoffs = sorted(set.intersection(*(set(chain.options.top_k_eval_list) for chain in chains)))
    names = [f"{kind}@{k}" for kind in ("recall", "ndcg") for k in cutoffs]
    parts = {
        part: {scale: summary(answers, names) for scale, answers in answers_of(folders, part).items()}
        for part in (["validation", "test"] if read_test else ["validation"])
    }
    published = published_rows(options.dataset.name, options.dataset_split, data["users"], data["items"])
    for scale, found in parts.get("test", {}).items():
        found["published_verdict"] = against_published(found["models"], published, scale)
    machine = environment()
    return {
        "configs": {
            chain.name: {"stage2": without_local_paths(chain.stage2), "stage1": chain.stage1 and without_local_paths(chain.stage1)}
            for chain in chains
        },
        "overrides": {stage: [without_local_paths(word) for word in words] for stage, words in overrides.items()},
        "dataset": options.dataset.name,
        "split": options.dataset_split,
        "data": data,
        "seeds": list(range(seeds)),
        "parts": parts,
        "published": published,
        "test_readings": {job.name: len(test_readings(job.folder)) for job in jobs[1]},
        "runs": [run_record(job) for stage in jobs for job in stage],
        "commit": machine["commit"],
        "uncommitted_changes": machine["uncommitted_changes"],
        "processor": machine["processor"],
        "torch": machine["torch"],
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def run_record(job: Job) -> dict[str, object]:
    """Where a run was made, and what it cost."""
    made = json.loads((job.folder / "environment.json").read_text())
    name, _, seed = job.name.rpartition(", seed ")
    return {
        "config": name,
        "seed": int(seed),
        "precision": precision_of(job),
        **{key: made.get(key) for key in ("processor", "gpu", "threads", "processes", "torch", "commit", "uncommitted_changes", "started")},
        **spent_on(job.root)._asdict(),
    }


def reproduce(given: argparse.Namespace) -> Path:
    """Runs what is missing, writes the JSON and the page, and returns the JSON's path.

    Raises:
        UserError: mistakes in what was given, or a run that did not end well.
    """
    configs = [word for word in given.words if word.endswith(".gin") and "=" not in word]
    overrides = split_overrides([word for word in given.words if word not in configs])
    if not configs:
        raise UserError("give a config of stage 2, such as configs/decoder_quick.gin")
    if given.seeds < 1 or given.jobs < 1:
        raise UserError(f"--seeds and --jobs are 1 or more: got {given.seeds} and {given.jobs}")
    chains = [chain_of(config, given.stage1, overrides) for config in configs]
    if len({chain.name for chain in chains}) < len(chains):
        raise UserError("two configs have the same file name, and so the same directory of runs; rename one")
    jobs = jobs_of(chains, given.seeds, given.out, overrides, given.read_test)
    for stage in jobs:
        run_all(stage, given.jobs, lambda text: print(text, flush=True))
    result = result_of(chains, jobs, given.seeds, overrides, given.read_test)
    path = given.out / f"{'+'.join(chain.name for chain in chains)}-{chains[0].options.dataset_split}.json"
    page = result_page(result)
    write_whole(path, json.dumps(result, indent=1) + "\n")
    write_whole(path.with_suffix(".md"), page)
    print(f"\n{page}\nsaved    {path} and {path.with_suffix('.md').name}")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="CONFIG | name=value", help="configs of stage 2, and overrides")
    parser.add_argument("--stage1", metavar="CONFIG", help="the config of stage 1 of all of them")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (3)")
    parser.add_argument("--out", type=Path, default=Path("out/reproduce"), metavar="FOLDER", help="of the runs and the results")
    parser.add_argument("--read-test", action="store_true", help="read the test part too")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (1)")
    raise_on_sigterm()
    try:
        reproduce(parser.parse_intermixed_args(arguments))
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        print("\nstopped; the runs have saved what they had, and the same command goes on", file=sys.stderr)
        return 128 + number


if __name__ == "__main__":
    sys.exit(main())
