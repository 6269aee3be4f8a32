"""Training steps: ours against Hugging Face's T5 of the same size, and against the matrix products alone.

    python -m benchmarks.training                 # about 5 minutes on 2 cores; writes benchmarks/results/training.json

Contestants, all of 4 + 4 layers, width 128, 6 heads of 64, feed-forward 1024, forward, backward and fused AdamW:
    T5, padded       64 targets, every history padded to 20 items, as its users run it
    T5, our batches  64 targets, histories of one length a batch
    bidirectional    64 targets, histories of one length a batch
    causal           as many targets as its batches of whole histories hold, 64 to 256
    products         the matrix products of the causal steps alone: the floor
A pass runs several batches drawn from an epoch; figures are milliseconds a target. Tokens are codes read and codes written. MFU is the rate
of the step's products beside that of one product of 4096 x 4096 matrices in the same precision.
"""

import dataclasses
import resource
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks.beauty import PAPER_SHAPE, Setup, set_up
from benchmarks.peers import T5Peer
from benchmarks.products import flops, recorded, replay
from benchmarks.timing import compare, save
from data.processed import SeqData
from data.schemas import TokenizedSeqBatch
from evaluate.console import table
from modules.model import EncoderDecoderRetrievalModel

MAX_ITEMS = 20


class Contestant:
    """A model, its batches and one optimizer."""

    def __init__(self, module: nn.Module, batches: Sequence[object], loss: Callable[[object], torch.Tensor], targets: int) -> None:
        self.module, self.batches, self.loss, self.targets = module, batches, loss, targets
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def run(self) -> None:
        for batch in self.batches:
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(batch).backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()


def cut(setup: Setup, causal: bool, size: int, count: int) -> tuple[SeqData, list[TokenizedSeqBatch]]:
    """``count`` batches spread over a shuffled epoch."""
    data = SeqData(setup.histories, setup.tokenizer.num_items, MAX_ITEMS, causal=causal).to(setup.placement.device)
    return data, [setup.tokenizer(data.train_batch(step, size, 0)) for step in range(count)]


def num_targets(batches: Sequence[TokenizedSeqBatch]) -> int:
    return sum(int(batch.target_mask.sum()) for batch in batches)


def ours(setup: Setup, causal: bool, size: int, count: int) -> Contestant:
    config = dataclasses.replace(PAPER_SHAPE, encoder_attention="causal" if causal else "bidirectional")
    model = EncoderDecoderRetrievalModel(config, setup.tokenizer.vocab_sizes).to(setup.placement.device)
    _, batches = cut(setup, causal, size, count)

    def loss(batch: TokenizedSeqBatch) -> torch.Tensor:
        with setup.placement.autocast():
            return model(batch).loss

    return Contestant(model, batches, loss, num_targets(batches))


def t5(setup: Setup, pad_to_items: int | None, count: int) -> Contestant:
    peer = T5Peer(PAPER_SHAPE, setup.tokenizer.vocab_sizes, setup.placement.device)
    _, batches = cut(setup, False, 64, count)

    def loss(batch: object) -> torch.Tensor:
        with setup.placement.autocast():
            return peer.loss(batch)

    return Contestant(peer.model, [peer.tokens(batch, pad_to_items) for batch in batches], loss, num_targets(batches))


def main() -> None:
    setup = set_up(__doc__, ("--rounds", {"type": int, "default": 5}), ("--batches", {"type": int, "default": 8}))
    count = setup.options.batches
    contestants = {
        "T5, padded": t5(setup, MAX_ITEMS, max(2, count // 4)),
        "T5, our batches": t5(setup, None, count),
        "bidirectional, 64": ours(setup, False, 64, count),
        "causal, 64": ours(setup, True, 64, count),
        "causal, 128": ours(setup, True, 128, count),
        "causal, 256": ours(setup, True, 256, count),
    }
    best = contestants["causal, 256"]
    products = recorded(best.run)
    tokens = sum(int(batch.mask.sum() + batch.target_mask.sum()) * batch.sem_ids.shape[-1] for batch in best.batches)
    dtype = setup.placement.autocast_dtype or torch.float32
    large = Counter({((4096, 4096), (4096, 4096), dtype): 1})
    jobs = {name: contestant.run for name, contestant in contestants.items()} | {"products": replay(products, setup.placement.device)}
    targets = {name: contestant.targets for name, contestant in contestants.items()} | {"products": best.targets}
    data, _ = cut(setup, True, 256, 1)
    steps = iter(range(10**9))
    jobs["cutting, 256"] = lambda: [data.train_batch(next(steps), 256, 0) for _ in range(count)]
    targets["cutting, 256"] = best.targets

    jobs["large product"] = replay(large, setup.placement.device)
    seconds = compare(jobs, setup.options.rounds, setup.placement.device)
    result: dict[str, object] = {"precision": setup.placement.why, "targets": targets, "clocks": {}}
    for clock, of_jobs in seconds.items():
        one = of_jobs.pop("large product")
        per_target = {name: 1e3 * value / targets[name] for name, value in of_jobs.items()}
        ratios = {name: per_target["T5, padded"] / value for name, value in per_target.items()}
        result["clocks"][clock] = {"milliseconds_a_target": per_target, "times_faster_than_T5_padded": ratios}
        rate, peak = flops(products) / 1e9 / of_jobs["causal, 256"], flops(large) / 1e9 / one
        result["clocks"][clock] |= {
            "causal_256_tokens_a_second": tokens / of_jobs["causal, 256"],
            "causal_256_gflops_a_second": rate,
            "causal_256_model_flops_utilisation": rate / peak,
        }
        rows = [[clock, "ms a target", "targets/s", "against T5 padded", "against T5, our batches", "share of products"]]
        for name, value in per_target.items():
            other = per_target["T5, our batches"] / value
            rows.append(
                [
                    name,
                    f"{value:.3f}",
                    f"{1e3 / value:.0f}",
                    f"{ratios[name]:.1f}x",
                    f"{other:.1f}x",
                    f"{per_target['products'] / value:.0%}",
                ]
            )
        print("\n" + table(rows))
        speed = f"{tokens / of_jobs['causal, 256']:,.0f} tokens/s, {rate:.0f} GFLOP/s in products, MFU {rate / peak:.0%}"
        print(f"causal, 256: {speed}", flush=True)
    result["resident_gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nsaved    {save('training', result)}")


if __name__ == "__main__":
    main()
