"""Is one decoder better than another? Runs on the same validation users, and the interval of their difference, user by user.

    python -m benchmarks.compare out/decoder/a/beauty out/decoder/b/beauty     # about 2.5 minutes a run of Beauty on 2 cores

The first run is what the others are compared with. Each is searched as its config says; the runs must have split the same data in the same
way. The interval is a paired bootstrap over users: it speaks for these checkpoints, not for other seeds. The test part is not read.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.timing import save, table
from data.schemas import UserError
from evaluate.evaluation import Evaluation, paired_gain
from modules.runtime.evaluation.evaluator import Evaluator

METRICS = ("recall@10", "ndcg@10")


def evaluated(run: Path, users: int | None, device: str) -> tuple[str, Evaluation]:
    """The split's hash and the validation figures of a finished run; the seed that draws users is the same for all runs."""
    evaluator = Evaluator.for_run(run, device, users)
    evaluator.protocol = evaluator.protocol._replace(cutoffs=(5, 10))
    return evaluator.split, evaluator.model("validation", evaluator.protocol.filter_history, sample=True, progress=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--users", type=int, help="only so many, drawn by a seed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--save", metavar="NAME", help="writes benchmarks/results/NAME.json")
    options = parser.parse_args(arguments)
    try:
        found = [evaluated(run, options.users, options.device) for run in options.runs]
        if len({split for split, _ in found}) > 1:
            raise UserError("the runs have split different data, or the same data differently; compare runs on one split")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    first = found[0][1]
    rows, result = [["run", *METRICS, *(f"{metric}, difference to the first" for metric in METRICS)]], {}
    for number, (run, (_, evaluation)) in enumerate(zip(options.runs, found)):
        gains = [paired_gain(evaluation, first, metric) for metric in METRICS]
        shown = [f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" if number else "" for gain in gains]
        rows.append([str(run), *(f"{evaluation.metrics[metric]:.4f}" for metric in METRICS), *shown])
        result[str(run)] = {"metrics": evaluation.metrics, "difference": dict(zip(METRICS, map(list, gains)))}
    print(f"\nvalidation, {first.users:,} users, 95 % intervals\n" + table(rows))
    if options.save:
        print(f"saved    {save(options.save, {'users': first.users, 'split': found[0][0], 'runs': result})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
