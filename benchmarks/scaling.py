"""Growth: time and memory of a search against items, history length, beams and model width, one at a time.

    python -m benchmarks.scaling                  # about 6 minutes on 2 cores; writes benchmarks/results/scaling.json and scaling.png

Catalogues are random: three codes of 256, uniform, and a collision code. The base point is 12,101 items, histories of 7 items, beam 10 and
the paper's shape (4 + 4 layers, width 128). An exponent is the slope of log time against log size, fitted over the whole range.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.beauty import PAPER_SHAPE
from benchmarks.timing import RESULTS, medians, save
from data.schemas import TokenizedSeqBatch
from evaluate.console import table
from modules.model import DecoderConfig, EncoderDecoderRetrievalModel
from modules.runtime.training.device import place
from modules.tokenizer.collisions import collision_codes
from modules.tokenizer.trie import PrefixTrie

BASE = {"items": 12_101, "history": 7, "beams": 10, "width": 128}
RANGES = {
    "items": [10_000, 12_101, 100_000, 1_000_000, 10_000_000],
    "history": [2, 5, 10, 20, 40],
    "beams": [5, 10, 20, 50, 100],
    "width": [64, 128, 256, 512],
}
USERS = 64


def catalogue(items: int, device: torch.device) -> torch.Tensor:
    """[I, 4] random semantic IDs, unique by their collision code."""
    codes = torch.randint(256, (items, 3), generator=torch.Generator().manual_seed(0)).to(device)
    return torch.cat([codes, collision_codes(codes, torch.arange(items, device=device)).unsqueeze(1)], dim=1)


def search(point: dict[str, int], trie: PrefixTrie, device: torch.device) -> Callable[[], object]:
    """A job: one batch of users at a point."""
    width = point["width"]
    config = dataclasses.replace(PAPER_SHAPE, embed_dim=width, attn_dim=3 * width, ff_dim=8 * width, max_seq_len=max(RANGES["history"]))
    model = model_of(config, trie.vocab_sizes).to(device).eval()
    shape = (USERS, point["history"])
    codes = torch.stack([torch.randint(size, shape) for size in trie.vocab_sizes], dim=-1).to(device)
    mask = torch.ones(shape, dtype=torch.bool, device=device)
    batch = TokenizedSeqBatch(torch.arange(USERS, device=device), codes, mask, codes[:, :1], mask[:, :1])
    return lambda: model.generate_next_sem_id(batch, trie, point["beams"], tuple_depth=3)


def model_of(config: DecoderConfig, vocab_sizes: tuple[int, ...]) -> EncoderDecoderRetrievalModel:
    torch.manual_seed(0)
    return EncoderDecoderRetrievalModel(config, vocab_sizes)


def exponent(sizes: list[int], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def plot(result: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Time against each size, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(result), 3.6), layout="constrained")
    for axis, (name, curve) in zip(figure.subplots(1, len(result), sharey=True), result.items()):
        axis.loglog(curve["size"], curve["milliseconds_a_user"], marker="o")
        axis.set_xlabel(name)
        shown = [size for size in curve["size"] if name != "items" or size != BASE["items"]]
        axis.set_xticks(shown, labels=[f"{size:.0e}".replace("e+0", "e") if size >= 10_000 else str(size) for size in shown])
        axis.minorticks_off()
        axis.set_yticks([2, 5, 10, 20, 50, 100], labels=["2", "5", "10", "20", "50", "100"])
        axis.set_title(f"exponent {curve['exponent']:.2f}")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("CPU ms a user" if curve["clock"] == "cpu" else "ms a user")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    placement = place(options.device, True, "bf16")
    device = placement.device
    on_cpu = device.type == "cpu"
    print(f"device   {placement.why}", flush=True)

    def wall() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    tries, build = {}, {}
    for items in RANGES["items"]:
        sem_ids = catalogue(items, device)
        start = time.perf_counter()
        tries[items] = PrefixTrie(sem_ids, (256, 256, 256, int(sem_ids[:, -1].max()) + 1))
        seconds = time.perf_counter() - start
        held = sum(buffer.nbytes for buffer in tries[items].buffers())
        build[items] = {"seconds": seconds, "seconds_a_million": 1e6 * seconds / items, "bytes_an_item": held / items}
    print("\n" + table([["trie, items", "seconds", "s a million", "bytes an item"],
                        *([f"{items:,}", *(f"{value:.2f}" for value in row.values())] for items, row in build.items())]))  # fmt: skip

    result: dict[str, dict] = {}
    for name, sizes in RANGES.items():
        points = [BASE | {name: size} for size in sizes]
        jobs = {str(point[name]): search(point, tries[point["items"]], device) for point in points}
        with placement.autocast():
            seconds = medians(jobs, options.rounds, 1 if on_cpu else torch.get_num_threads(), time.process_time if on_cpu else wall)
        per_user = [1e3 * value / USERS for value in seconds.values()]
        result[name] = {
            "size": sizes,
            "milliseconds_a_user": per_user,
            "exponent": exponent(sizes, per_user),
            "clock": "cpu" if on_cpu else "wall",
        }
        base = per_user[sizes.index(BASE[name])] if BASE[name] in sizes else per_user[0]
        rows = [[name, "ms a user", "against the base" if BASE[name] in sizes else "against the first"]]
        rows += [[f"{size:,}", f"{value:.2f}", f"{value / base:.2f}x"] for size, value in zip(sizes, per_user)]
        print("\n" + table(rows) + f"\nexponent {result[name]['exponent']:.2f}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    plot(result, RESULTS / "scaling.png")
    print(f"\nsaved    {save('scaling', {'precision': placement.why, 'base': BASE, 'trie': build, 'search': result})}")


if __name__ == "__main__":
    main()
