"""A MovieLens of any size: seconds and peak memory from csv to cached histories, and of loading the cache.

    python -m benchmarks.data                     # 32 million ratings, 200,948 users, 87,585 movies; writes benchmarks/results/data.json
    python -m benchmarks.data --rows 1000000      # a smaller one

The file is generated in MovieLens' layout: users one after the other, popular movies more often, half-star ratings, times in
sessions. Parsing and loading run in processes of their own, whose peak of resident memory is what the system counted.
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.timing import save
from data.processed import DataConfig, RecDataset, load_corpus
from data.statistics import statistics
from evaluate.console import table

ROWS, USERS, MOVIES = 32_000_204, 200_948, 87_585
CHUNK = 4_000_000
MAX_HISTORY = 0  # all of it, the heaviest choice


def generate(folder: Path, rows: int) -> None:
    """Writes ``<folder>/raw/ml-32m/``: as many ratings, and users and movies in the proportion of MovieLens 32M."""
    rng = np.random.default_rng(0)
    users, movies = max(1, USERS * rows // ROWS), max(10, MOVIES * rows // ROWS)
    raw = folder / "raw" / "ml-32m"
    raw.mkdir(parents=True, exist_ok=True)
    ids = np.sort(rng.choice(4 * movies, movies, replace=False)) + 1
    titles = [f'"Film, The No. {number} ({1930 + number % 95})"' for number in range(movies)]
    lines = "".join(f"{key},{title},Drama|Comedy\n" for key, title in zip(ids, titles))
    (raw / "movies.csv").write_text("movieId,title,genres\n" + lines)
    lengths = 20 + rng.multinomial(max(0, rows - 20 * users), rng.dirichlet(np.full(users, 0.5)))
    owner = np.repeat(np.arange(1, users + 1, dtype=np.int32), lengths)
    with (raw / "ratings.csv").open("wb") as file:
        for start in range(0, len(owner), CHUNK):
            part = owner[start : start + CHUNK]
            popular = (movies * rng.random(len(part)) ** 3).astype(np.int64)
            chunk = {
                "userId": part,
                "movieId": ids[popular],
                "rating": rng.integers(1, 11, len(part)) / 2,
                "timestamp": 800_000_000 + part.astype(np.int64) * 3_000 + rng.integers(0, 50_000, len(part)),
            }
            pl.DataFrame(chunk).write_csv(file, include_header=start == 0)


def load(folder: Path) -> None:
    """What a process of its own does: loads the corpus and prints seconds, peak memory and counts as JSON."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    start = time.perf_counter()
    corpus = load_corpus(DataConfig(RecDataset.ML_32M, str(folder), "ml-32m", max_history=MAX_HISTORY))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bytes_ = peak if sys.platform == "darwin" else peak * 1024
    counts = statistics(corpus)
    print(json.dumps({"seconds": seconds, "peak_bytes": bytes_, "interactions": counts.interactions, "users": counts.users}))


def measured(folder: Path) -> dict[str, float]:
    """Runs ``load`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data", "--load", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="ratings (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to generate them and keep them (default: a temporary directory)")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        load(given.load)
        return
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        start = time.perf_counter()
        generate(folder, given.rows)
        print(f"generated {given.rows:,} ratings in {time.perf_counter() - start:.0f} s", flush=True)
        for cache in (folder / "processed").glob("*"):
            cache.unlink()
        result = {"parse": measured(folder), "load": measured(folder)}
        sizes = {path.name: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    rows = [["", "seconds", "peak memory", "interactions", "users"]]
    for name, figures in result.items():
        peak = f"{figures['peak_bytes'] / 2**30:.2f} GiB"
        rows.append([name, f"{figures['seconds']:.2f}", peak, f"{figures['interactions']:,}", f"{figures['users']:,}"])
    print(table(rows))
    if given.rows == ROWS:
        print(save("data", {"rows": given.rows, "files": sizes, **result}))


if __name__ == "__main__":
    main()
