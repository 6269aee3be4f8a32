"""Constrained generation: ours against T5 with a Python trie, with a transition mask and with a comparison against all items.

    python -m benchmarks.generation [--decoder out/decoder/ablations/4_layers/beauty]    # about 5 minutes on 2 cores
                                                                                         # writes benchmarks/results/generation.json

All models have 4 + 4 layers, width 128, 6 heads of 64 and feed-forward 1024. The peers' weights are random; their work does not depend on
them. Ours does a little: of beams that end in one item each the model is not asked for the collision code, and training leads the search to
where items are dense. --decoder takes a trained run's weights; random ones flatter us. Histories are Beauty's test histories of one length
a batch, at most 20 items; figures are milliseconds a user.
"""

import resource
from pathlib import Path

import torch

from benchmarks.beauty import PAPER_SHAPE, set_up
from benchmarks.peers import PrefixComparison, PythonTrie, T5Peer, TransitionMask, processors
from benchmarks.products import recorded, replay
from benchmarks.timing import compare, save
from data.processed import SeqData
from evaluate.console import table
from modules.model import EncoderDecoderRetrievalModel
from modules.runtime.training.checkpoint import WEIGHTS, load_weights

USERS = 64


def main() -> None:
    setup = set_up(
        __doc__,
        ("--rounds", {"type": int, "default": 5}),
        ("--batches", {"type": int, "default": 3}),
        ("--decoder", {"type": Path, "help": "run of this shape on these IDs, whose weights to search with"}),
    )
    tokenizer, device = setup.tokenizer, setup.placement.device
    data = SeqData(setup.histories, tokenizer.num_items, PAPER_SHAPE.max_seq_len, causal=True).to(device)
    batches = list(data.eval_batches("test", USERS))
    wanted = torch.linspace(0.25, 0.95, setup.options.batches)  # quantiles of the history length
    batches = [batches[int(quantile * (len(batches) - 1))] for quantile in wanted]
    users = sum(len(batch.user_ids) for batch in batches)
    model = EncoderDecoderRetrievalModel(PAPER_SHAPE, tokenizer.vocab_sizes)
    if setup.options.decoder is not None:
        load_weights(model, setup.options.decoder / WEIGHTS)
    model.to(device).eval()
    peer = T5Peer(PAPER_SHAPE, tokenizer.vocab_sizes, device)
    peer.model.eval()
    tokenized = [tokenizer(batch) for batch in batches]
    tokens = [peer.tokens(batch) for batch in tokenized]
    trie, mask = PythonTrie(tokenizer.sem_ids, peer.starts), TransitionMask(tokenizer.trie, peer.starts)
    comparison = PrefixComparison(tokenizer.sem_ids, peer.starts, tokenizer.vocab_sizes)

    def ours(beams: int, barred: bool = False):
        def run() -> None:
            for batch, codes in zip(batches, tokenized):
                with setup.placement.autocast():
                    model.generate_next_sem_id(codes, tokenizer.trie, beams, batch.seen if barred else None, tokenizer.num_levels)

        return run

    def t5(**constraint: object):
        def run() -> None:
            for inputs in tokens:
                with setup.placement.autocast():
                    peer.generate(inputs, 10, **constraint)

        return run

    jobs = {
        "T5 + Python trie, beam 10": t5(prefix_allowed_tokens_fn=trie),
        "T5 + transition mask, beam 10": t5(logits_processor=processors(mask)),
        "T5 + comparison with all items, beam 10": t5(logits_processor=processors(comparison)),
        "ours, beam 10": ours(10),
        "ours, beam 10, history barred": ours(10, barred=True),
        "ours, beam 50": ours(50),
        "products of ours, beam 10": replay(recorded(ours(10)), device),
        "products of ours, beam 50": replay(recorded(ours(50)), device),
    }
    seconds = compare(jobs, setup.options.rounds, device)
    weights = "random" if setup.options.decoder is None else "trained"
    result: dict[str, object] = {"precision": setup.placement.why, "users": users, "items": tokenizer.num_items, "weights": weights}
    result["clocks"] = {}
    for clock, of_jobs in seconds.items():
        per_user = {name: 1e3 * value / users for name, value in of_jobs.items()}
        result["clocks"][clock] = {"milliseconds_a_user": per_user}
        rows = [[clock, "ms a user", "ours, beam 10, is"]]
        rows += [[name, f"{value:.2f}", f"{value / per_user['ours, beam 10']:.1f}x faster"] for name, value in per_user.items()]
        print("\n" + table(rows), flush=True)
    result["resident_gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nsaved    {save('generation', result)}")


if __name__ == "__main__":
    main()
