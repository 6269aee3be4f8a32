"""Is a beam of 50 wide enough? Recall of the search against scoring every item exhaustively, on 500 validation users.

    python -m benchmarks.beams out/decoder/amazon_mpnet/beauty     # about 10 minutes on 2 cores; writes benchmarks/results/beams.json

An exhaustive search is the same search with as many beams as there are items: nothing is cut away.
"""

import argparse
from pathlib import Path

from benchmarks.timing import save, table
from data.processed import DataConfig, RecDataset, SeqData, load_corpus
from evaluate.metrics import tie_order
from modules.runtime.device import place
from modules.runtime.judge import Judge, Protocol
from modules.runtime.retriever import load_retriever

BEAMS = (10, 20, 50, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--dataset-folder", default="dataset/amazon")
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    placement = place(options.device, True, "bf16")
    retriever = load_retriever(options.run, placement.device)
    corpus = load_corpus(DataConfig(RecDataset.AMAZON, options.dataset_folder, "beauty"))
    data = SeqData(corpus.histories, len(corpus.item_keys), retriever.model.config.max_seq_len).to(placement.device)
    order = tie_order(data.popularity.cpu(), corpus.item_keys, 0).to(placement.device)
    protocol = Protocol(0, True, (1, 5, 10), 16, options.users, seed=1)
    rows, result = [["beams", "recall@10", "ndcg@10"]], {}
    for beams in (*BEAMS, len(corpus.item_keys)):
        batch = 1 if beams > 1000 else protocol.batch_size  # thousands of beams a user fill the memory
        judge = Judge(retriever, data, order, protocol._replace(beam_size=beams, batch_size=batch), placement)
        metrics = judge.model("validation", filter_history=True, sample=True, progress=True).metrics
        result[str(beams)] = {name: metrics[name] for name in ("recall@10", "ndcg@10")}
        rows.append([f"{beams:,}", f"{metrics['recall@10']:.4f}", f"{metrics['ndcg@10']:.4f}"])
    print("\n" + table(rows))
    print(f"saved    {save('beams', {'precision': placement.why, 'users': options.users, 'run': options.run.name, 'beams': result})}")


if __name__ == "__main__":
    main()
