"""Is a beam of 50 wide enough? Recall of the search against scoring every item exhaustively, on 500 validation users.

    python -m benchmarks.beams out/decoder/amazon_mpnet/beauty     # about 10 minutes on 2 cores; writes benchmarks/results/beams.json

An exhaustive search is the same search with as many beams as there are items: nothing is cut away.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.timing import save
from data.schemas import UserError
from evaluate.console import table
from modules.runtime.evaluation.evaluator import Evaluator
from modules.runtime.runs.searcher import Searcher

BEAMS = (10, 20, 50, 100)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--dataset-folder", help="where its data lie now, if elsewhere than when it was trained")
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--save", metavar="NAME", default="beams", help="writes benchmarks/results/NAME.json")
    options = parser.parse_args(arguments)
    try:
        evaluator = Evaluator.for_run(options.run, options.device, options.users, seed=1, dataset_folder=options.dataset_folder)
        searcher = evaluator.ranker
        if not isinstance(searcher, Searcher):
            raise UserError(f"{options.run} is a run of {searcher.name}, which has no beams; give one of TIGER")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows, result = [["beams", "recall@10", "ndcg@10"]], {}
    for beams in (*BEAMS, evaluator.data.num_items):
        batch = 1 if beams > 1000 else 16  # thousands of beams a user fill the memory
        evaluator.protocol = evaluator.protocol._replace(batch_size=batch)
        searcher.beam_size = beams
        metrics = evaluator.model("validation", filter_history=True, sample=True, progress=True).metrics
        result[str(beams)] = {name: metrics[name] for name in ("recall@10", "ndcg@10")}
        rows.append([f"{beams:,}", f"{metrics['recall@10']:.4f}", f"{metrics['ndcg@10']:.4f}"])
    print("\n" + table(rows))
    precision = searcher.retriever.settings.precision
    print(f"saved    {save(options.save, {'precision': precision, 'users': options.users, 'run': options.run.name, 'beams': result})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
