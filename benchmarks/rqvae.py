"""Stage 1: training steps, k-means, codes and collision codes, in time and memory.

    python -m benchmarks.rqvae                    # about 10 minutes on 2 cores; writes benchmarks/results/rqvae.json
    python -m benchmarks.rqvae --parts steps codes      # the others keep their figures; each names the commit it ran at

Parts:
    steps   one step at batch 1024, from the items to the updated weights, of
                ours                the training loop of train_rqvae.py
                by differences      the paper straight: distances from differences [B, K, D], PeerTraining's loop
                by one product      the same with |r|^2 + |e|^2 - 2 r e
                ResidualVQ          vector-quantize-pytorch's inside the same MLP, PeerTraining's loop
                products            the matrix products of our step alone: the floor
    kmeans  Lloyd iterations with 256 centres on 12,101 x 32 and 20,000 x 32 against faiss and the product alone, and the inertia that
            is reached against scikit-learn; then 1,000,000 x 128 with 1024 centres
    codes   codes of 12,101 items, and of --items from a memory-mapped float16 file; collision codes; what memory that takes
Catalogues are seeded random vectors, 768 wide: no figure here depends on what the codes mean. Peak memory is that of a process of its own.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.products import flops, recorded, replay
from benchmarks.rqvae_peers import AroundResidualVQ, PeerTraining, Straightforward
from benchmarks.timing import RESULTS, Job, compare, medians, save
from data.item_embeddings import load_embeddings
from evaluate.console import table
from init.kmeans import kmeans
from modules.rqvae import RqVae, RqVaeConfig
from modules.runtime.config.declaration import filled
from modules.runtime.options.rqvae import RqVaeOptions
from modules.runtime.runs.run import Run, environment
from modules.runtime.training.device import Placement, on_device, place
from modules.runtime.training.item_batches import index_batches
from modules.runtime.training.processes import Ranks
from modules.runtime.training.trainer import LossShare, Plan, Trainer
from modules.tokenizer.semids import collision_codes, seeded_order
from train_rqvae import Objective

BEAUTY, BATCH, FOREVER = 12_101, 1024, 10**9
CONFIG = RqVaeConfig()


def clocked(jobs: Mapping[str, Job], options: argparse.Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """Median seconds of each job: on a CPU by the clock that busy neighbours hardly disturb, and by the other one where it is asked for."""
    if device.type == "cuda" or options.wall:
        return compare(jobs, options.rounds, device)
    return {"cpu, 1 thread": medians(jobs, options.rounds, 1, time.process_time)}


def catalogue(items: int, width: int = CONFIG.input_dim) -> Tensor:
    """[I, width] vectors around 2000 centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2000, width, generator=generator)
    return centres[torch.randint(2000, (items,), generator=generator)] + 0.7 * torch.randn(items, width, generator=generator)


def latents(items: int, width: int) -> Tensor:
    """[I, width] Gaussian vectors whose deviation falls from 1 to .1 over the width, as latents' does."""
    return torch.randn(items, width, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 0.1, width)


def our_step(items: Tensor, placement: Placement, folder: str) -> Callable[[], None]:
    """The training loop's own step."""
    torch.manual_seed(0)
    model = RqVae(CONFIG).to(placement.device)
    model.normalizer.fit(items)
    model.kmeans_init(items, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    plan = filled(Plan, RqVaeOptions(iterations=FOREVER, save_model_every=FOREVER, batch_size=BATCH), factor=lambda step: 1.0)
    run = Run(folder, "run", {"resume": False, "run_name": None})
    trainer = Trainer(run, model, Objective(model), optimizer, plan, placement, Ranks(), {})
    codebook_updates = model.codebook_updates(optimizer, 0, FOREVER, BATCH)
    rows, steps = index_batches(len(items), BATCH, 0, items.device), iter(range(FOREVER))

    def share(micro: int, step: int) -> LossShare:
        return trainer.objective(on_device(items.index_select(0, rows(step)), placement.device), 0.5)

    def update() -> None:
        step = next(steps)
        codebook_updates.begin(step)
        trainer.update(step, lambda micro: share(micro, step))

    return update


def steps(options: argparse.Namespace, placement: Placement) -> dict[str, object]:
    host = catalogue(BEAUTY)
    items = host.to(placement.device)
    with tempfile.TemporaryDirectory() as folder:
        ours = our_step(items, placement, folder)
        peers = {"by differences": Straightforward(CONFIG, True), "by one product": Straightforward(CONFIG, False)}
        if find_spec("vector_quantize_pytorch"):
            peers["ResidualVQ"] = AroundResidualVQ(CONFIG)
        else:
            print("vector-quantize-pytorch is not installed: `pip install --group bench` compares with it")
        jobs = {"ours": ours} | {name: PeerTraining(peer.to(placement.device), host, BATCH).step for name, peer in peers.items()}
        products = recorded(ours)
        jobs["products"] = replay(products, placement.device)
        seconds = clocked(jobs, options, placement.device)
    result: dict[str, object] = {"batch": BATCH, "gflop_a_step_in_products": flops(products) / 1e9, "clocks": {}}
    if "ResidualVQ" in jobs:
        result["vector-quantize-pytorch"] = version("vector-quantize-pytorch")
    for clock, of_jobs in seconds.items():
        per_second = {name: BATCH / value for name, value in of_jobs.items()}
        ratios = {name: value / of_jobs["ours"] for name, value in of_jobs.items()}
        result["clocks"][clock] = {"items_a_second": per_second, "times_the_step_of_ours": ratios}
        rows = [[f"step, {clock}", "ms", "items/s", "ours is faster by"]]
        rows += [[name, f"{1e3 * value:.1f}", f"{per_second[name]:,.0f}", f"{ratios[name]:.2f}x"] for name, value in of_jobs.items()]
        print("\n" + table(rows), flush=True)
    return result


def lloyd(points: Tensor, options: argparse.Namespace, few: int = 5, many: int = 25) -> dict[str, dict[str, float]]:
    """Seconds of one iteration, from runs of ``few`` and ``many``, and of the product alone, under each clock."""

    def ours(iterations: int) -> Callable[[], object]:
        return lambda: kmeans(points, 256, max_iterations=iterations, tolerance=-1.0)

    jobs = {"ours, few": ours(few), "ours, many": ours(many)}
    jobs["product"] = lambda: [part @ points[:256].T for part in points.split(4096)]
    if points.device.type == "cpu" and find_spec("faiss"):
        import faiss

        array = points.numpy()

        def theirs(iterations: int) -> Callable[[], object]:
            def train() -> None:
                faiss.omp_set_num_threads(torch.get_num_threads())
                faiss.Kmeans(array.shape[1], 256, niter=iterations, seed=0, max_points_per_centroid=FOREVER).train(array)

            return train

        jobs |= {"faiss, few": theirs(few), "faiss, many": theirs(many)}
    found = {}
    for clock, seconds in clocked(jobs, options, points.device).items():
        found[clock] = {"product": seconds["product"], "ours, seeding and all": seconds["ours, many"]}
        for name in ("ours", "faiss"):
            if f"{name}, few" in seconds:
                found[clock][name] = (seconds[f"{name}, many"] - seconds[f"{name}, few"]) / (many - few)
    return found


def clusters(options: argparse.Namespace, placement: Placement) -> dict[str, object]:
    result: dict[str, object] = {}
    if find_spec("faiss"):
        result["faiss-cpu"] = version("faiss-cpu")
    else:
        print("faiss is not installed: `pip install faiss-cpu` compares with it")
    for number in (BEAUTY, 20_000):
        points = latents(number, 32).to(placement.device)
        found: dict[str, object] = {"milliseconds": {}}
        for clock, seconds in lloyd(points, options).items():
            found["milliseconds"][clock] = {name: 1e3 * value for name, value in seconds.items()}
            rows = [[f"{number:,} x 32, 256 centres, {clock}", "ms"], *([name, f"{1e3 * value:.2f}"] for name, value in seconds.items())]
            print("\n" + table(rows), flush=True)
        from sklearn.cluster import KMeans  # comes with sentence-transformers

        theirs = [KMeans(256, n_init=1, random_state=seed).fit(points.cpu().numpy()).inertia_ for seed in range(3)]
        ours = [float(kmeans(points, 256, seed=seed).inertia) for seed in range(3)]
        found["inertia_by_that_of_scikit_learn"] = sum(ours) / sum(theirs)
        print(f"inertia {sum(ours) / sum(theirs):.4f} of scikit-learn's (three seeds each)", flush=True)
        result[f"{number} x 32"] = found
    result["1000000 x 128, 1024 centres"] = in_own_process(million_clusters)
    return result


class Memory:
    """Peak memory of this process while a block runs, in GiB: all resident pages, and those that are not of a mapped file."""

    def __enter__(self) -> "Memory":
        self.anonymous, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    @staticmethod
    def now(field: str) -> float:
        """A size from the kernel's account of this process; getrusage would begin with the peak of the process that started it."""
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.anonymous = max(self.anonymous, self.now("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.resident = self.now("VmHWM")


def in_own_process(task: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """A task's figures from a fresh process, printed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(task, *arguments).result()
    print("\n" + table([[task.__name__.replace("_", " "), ""], *([name, f"{value:,.3f}"] for name, value in found.items())]), flush=True)
    return found


def million_clusters() -> dict[str, float]:
    points = latents(1_000_000, 128)
    held = Memory.now("VmHWM")

    def seconds(iterations: int) -> float:
        start = time.process_time()
        kmeans(points, 1024, max_iterations=iterations, tolerance=-1.0)
        return time.process_time() - start

    torch.set_num_threads(1)
    with Memory() as memory:
        seeded, more = seconds(0), seconds(1)
    return {
        "cpu seconds an iteration, 1 thread": more - seeded,
        "cpu seconds of seeding and a first assignment": seeded,
        "GiB of points": points.nbytes / 2**30,
        "peak GiB before": held,
        "peak GiB": memory.resident,
    }


def fitted(items: Tensor) -> RqVae:
    """An untrained RQ-VAE with its codebooks in place; codes cost the same."""
    torch.manual_seed(0)
    model = RqVae(CONFIG).eval()
    model.normalizer.fit(items)
    model.kmeans_init(items, 0)
    return model


def mapped_codes(path: str, items: int, wall: bool) -> dict[str, float]:
    model = fitted(catalogue(4096))
    found = {}
    with Memory() as memory:
        embeddings = load_embeddings(path, items, read_up_to=0)
        job = {"": lambda: model.get_semantic_ids(embeddings)}
        if wall:
            found["wall seconds, 2 threads"] = medians(job, 1, 2, time.perf_counter, warm_up=0)[""]
        else:
            found["cpu seconds, 1 thread"] = medians(job, 1, 1, time.process_time, warm_up=0)[""]
        codes = model.get_semantic_ids(embeddings[:BEAUTY])
    whole = model.get_semantic_ids(torch.from_numpy(np.load(path, mmap_mode="r")[:BEAUTY].astype(np.float32)))
    assert torch.equal(codes, whole), "codes of mapped rows differ from those of the same rows in memory"
    return {**found, "peak GiB": memory.resident, "peak GiB without the file's pages": memory.anonymous}


def colliding(items: int) -> dict[str, float]:
    codes = torch.stack([torch.randint(size, (items,), generator=torch.Generator().manual_seed(0)) for size in CONFIG.codebook_sizes], 1)
    keys = [f"B{item:09d}" for item in range(items)]
    start = time.process_time()
    with Memory() as memory:
        order = seeded_order(keys, 0)
        ordering = time.process_time() - start
        seconds = medians({"": lambda: collision_codes(codes, order)}, 5 if items <= 2_000_000 else 1, 1, time.process_time)[""]
    return {"cpu seconds, 1 thread": seconds, "cpu seconds of the seeded order of the keys": ordering, "peak GiB": memory.resident}


def codes(options: argparse.Namespace, placement: Placement) -> dict[str, object]:
    items = catalogue(BEAUTY)
    model = fitted(items).to(placement.device)
    items, result = items.to(placement.device), {}
    for clock, seconds in clocked({"codes": lambda: model.get_semantic_ids(items)}, options, placement.device).items():
        result[f"{BEAUTY} items, {clock}"] = seconds["codes"]
        print(f"\ncodes of {BEAUTY:,} items: {seconds['codes']:.3f} s ({clock})", flush=True)
    block = catalogue(50_000).numpy().astype(np.float16)
    for number in options.items:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            path = Path(folder) / "items.npy"
            file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(number, CONFIG.input_dim))
            for start in range(0, number, len(block)):
                file[start : start + len(block)] = block[: number - start]
            file.flush()
            del file
            result[f"{number} items from a file"] = in_own_process(mapped_codes, str(path), number, options.wall)
    for number in options.collisions:
        result[f"collision codes of {number} items"] = in_own_process(colliding, number)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"steps": steps, "kmeans": clusters, "codes": codes}
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--wall", action="store_true", help="on an idle machine: wall time with two threads as well")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--items", type=int, default=[1_000_000], nargs="+", help="items in a memory-mapped file, 1.5 GB a million")
    parser.add_argument("--collisions", nargs="+", type=int, default=[1_000_000], help="items with collision codes")
    parser.add_argument("--scratch", help="folder for that file, removed afterwards")
    options = parser.parse_args()
    placement = place(options.device, True, "bf16")
    print(f"device   {placement.why}", flush=True)
    result = {name: parts[name](options, placement) for name in options.parts}
    commit = environment()["commit"]
    measured = {name: {"commit": commit, **part} for name, part in result.items()}
    path = RESULTS / "rqvae.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    kept = {name: {"commit": earlier["machine"]["commit"], **earlier[name]} for name in parts if name in earlier}
    print(f"\nsaved    {save('rqvae', {'precision': placement.why, **kept, **measured})}")


if __name__ == "__main__":
    sys.exit(main())
