"""Small data sets with a planted order, in the layouts the loaders read. No network, same bytes for the same seed.

Items form clusters of ten; within a cluster each has a fixed successor. A user mostly walks from an item to its successor, now
and then to another item of the cluster, seldom elsewhere. So the last item says much about the next and popularity says
nothing. Item numbers are a random permutation and say nothing either.
"""

import gzip
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.interactions import Histories

CLUSTER = 10
BRANDS = ("Alder", "Birch", "Cedar", "Damson", "Elm", "Fir", "Gorse", "Hazel")
KINDS = ("Soap", "Lotion", "Powder", "Cream", "Oil", "Balm", "Mask", "Serum", "Scrub", "Tonic", "Mist", "Wax")


class Planted(NamedTuple):
    """What was planted."""

    cluster: np.ndarray  # [I]
    successor: np.ndarray  # [I]
    histories: list[list[int]]  # items 0..I-1, oldest first, none twice for a user


def planted(num_users: int = 200, num_items: int = 120, seed: int = 0) -> Planted:
    """Draws histories of five to sixteen items."""
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(num_items)
    cluster, successor = np.empty(num_items, int), np.empty(num_items, int)
    for number, first in enumerate(range(0, num_items, CLUSTER)):
        members = order[first : first + CLUSTER]
        cluster[members], successor[members] = number, np.roll(members, -1)
    histories = []
    for _ in range(num_users):
        history = [int(rng.integers(num_items))]
        length = min(int(rng.integers(5, 17)), num_items)
        while len(history) < length:
            left = np.setdiff1d(np.arange(num_items), history)
            near = left[cluster[left] == cluster[history[-1]]]
            draw, following = rng.random(), int(successor[history[-1]])
            if draw < 0.8 and following in left:
                history.append(following)
            else:
                history.append(int(rng.choice(near if draw < 0.95 and len(near) else left)))
        histories.append(history)
    return Planted(cluster, successor, histories)


def write_p5(folder: Path, num_users: int = 200, num_items: int = 120, seed: int = 0, split: str = "beauty") -> Planted:
    """Writes ``<folder>/raw/<split>/`` in P5's layout."""
    truth = planted(num_users, num_items, seed)
    raw = Path(folder) / "raw" / split
    raw.mkdir(parents=True, exist_ok=True)
    asins = [f"B{item + 1:09d}" for item in range(num_items)]
    users = [f"A{user + 1:012d}" for user in range(num_users)]
    lines = [
        " ".join(str(number) for number in [user + 1] + [item + 1 for item in history]) for user, history in enumerate(truth.histories)
    ]
    (raw / "sequential_data.txt").write_text("\n".join(lines) + "\n")
    maps = {}
    for name, keys in (("user", users), ("item", asins)):
        maps[f"{name}2id"] = {key: str(number) for number, key in enumerate(keys, start=1)}
        maps[f"id2{name}"] = {str(number): key for number, key in enumerate(keys, start=1)}
    (raw / "datamaps.json").write_text(json.dumps(maps))
    with gzip.open(raw / "meta.json.gz", "wt", encoding="utf-8") as file:
        for item, asin in enumerate(asins):
            number = int(truth.cluster[item])
            entry = {
                "asin": asin,
                "title": f"{KINDS[number % len(KINDS)]} No. {item + 1}",
                "brand": BRANDS[number % len(BRANDS)],
                "categories": [["Beauty", f"Shelf {number}", KINDS[number % len(KINDS)]]],
            }
            file.write(f"{entry}\n")
    return truth


def write_atomic(folder: Path, name: str = "tiny", num_users: int = 200, num_items: int = 120, seed: int = 0) -> Planted:
    """Writes ``<folder>/raw/<name>.inter`` and ``.item``, the interactions in the order of time over all users."""
    truth = planted(num_users, num_items, seed)
    raw = Path(folder) / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 2])
    rows = []
    for user, history in enumerate(truth.histories):
        times = 900_000_000 + np.sort(rng.choice(10_000_000, len(history), replace=False))
        rows += [(int(time), f"u{user + 1}\t{item + 1}\t4\t{time}") for time, item in zip(times, history)]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (raw / f"{name}.inter").write_text(header + "\n".join(row for _, row in sorted(rows)) + "\n")
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for item in range(num_items):
        number = int(truth.cluster[item])
        kinds = f"{KINDS[number % len(KINDS)]} {BRANDS[number % len(BRANDS)]}"
        items.append(f"{item + 1}\tStory No. {item + 1}\t{1980 + number}\t{kinds}")
    (raw / f"{name}.item").write_text("\n".join(items) + "\n")
    return truth


def write_embeddings(path: Path, num_items: int = 120, seed: int = 0, width: int = 32) -> np.ndarray:
    """Writes [I, width] float16 vectors, close within a cluster of the same seed, and returns them."""
    truth = planted(0, num_items, seed)
    rng = np.random.default_rng([seed, 3])
    centres = rng.normal(size=(int(truth.cluster.max()) + 1, width))
    vectors = centres[truth.cluster] + 0.4 * rng.normal(size=(num_items, width)) + 0.5
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    np.save(path, vectors)
    return vectors


def to_histories(users: list[list[int]]) -> Histories:
    """Packs lists of items into flat arrays."""
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in users])])
    return Histories(torch.tensor(list(itertools.chain(*users)), dtype=torch.int64), torch.tensor(offsets, dtype=torch.int64))


def to_lists(histories: Histories) -> list[list[int]]:
    """Unpacks what ``to_histories`` packs."""
    return [histories.item_ids[a:b].tolist() for a, b in itertools.pairwise(histories.offsets.tolist())]
