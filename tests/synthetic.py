"""The planted data of ``data.sources.synthetic`` in the layouts that the loaders read, and lists as histories and back."""

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import torch

from data.corpus import Histories
from data.sources.synthetic import BRANDS, KINDS, Planted, planted, titles_of


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


def write_movielens(folder: Path, split: str = "ml-1m", num_users: int = 200, num_items: int = 120, seed: int = 0) -> Planted:
    """Writes ``<folder>/raw/<split>/``: .dat files for ml-1m, else .csv; movie 1 is the first item."""
    truth = planted(num_users, num_items, seed)
    raw = Path(folder) / "raw" / split
    raw.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 2])
    rows = []
    for user, history in enumerate(truth.histories):
        times = 978_300_000 + np.sort(rng.choice(10_000_000, len(history), replace=False))
        rows += [(user + 1, item + 1, 3 + item % 3, int(time)) for time, item in zip(times, history)]
    titles = [f"{title}, The ({1930 + int(number) % 70})" for title, number in zip(titles_of(truth), truth.cluster)]
    genres = [f"Drama|{KINDS[int(number) % len(KINDS)]}" for number in truth.cluster]
    if split == "ml-1m":
        movies = "".join(f"{item + 1}::{title}::{kinds}\n" for item, (title, kinds) in enumerate(zip(titles, genres)))
        (raw / "movies.dat").write_text(movies, encoding="latin-1")
        (raw / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in rows))
    else:
        movies = "".join(f'{item + 1},"{title}",{kinds}\n' for item, (title, kinds) in enumerate(zip(titles, genres)))
        (raw / "movies.csv").write_text("movieId,title,genres\n" + movies)
        (raw / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return truth


def write_amazon_raw(folder: Path, year: int, category: str, num_users: int = 400, num_items: int = 120, seed: int = 0) -> Planted:
    """Writes ``<folder>/raw/`` reviews and metadata as Amazon's edition of 2014 or 2023 has them, reviews item after item."""
    truth = planted(num_users, num_items, seed)
    raw = Path(folder) / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    rows = sorted((item, user, day) for user, history in enumerate(truth.histories) for day, item in enumerate(history))
    reviews, entries = [], []
    for item, user, day in rows:
        asin, person, time = f"B{item + 1:09d}", f"A{user + 1:012d}", 1_365_984_000 + 86_400 * day
        row = {"reviewerID": person, "asin": asin, "helpful": [0, 0], "overall": 4.0, "unixReviewTime": time}
        if year == 2023:
            row = {"rating": 4.0, "images": [], "asin": asin, "parent_asin": asin, "user_id": person, "timestamp": 1000 * time}
        reviews.append(json.dumps(row))
    for item, (title, number) in enumerate(zip(titles_of(truth), truth.cluster)):
        asin, brand, shelves = f"B{item + 1:09d}", BRANDS[int(number) % len(BRANDS)], ["Beauty", f"Shelf {number}"]
        entry = {"asin": asin, "title": title, "price": 3.5, "brand": brand, "categories": [shelves]}
        later = {"title": title, "price": None, "store": brand, "categories": shelves, "parent_asin": asin}
        entries.append(repr(entry) if year == 2014 else json.dumps(later))
    names = (f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz")
    if year == 2023:
        names = (f"{category}.jsonl.gz", f"meta_{category}.jsonl.gz")
    for name, lines in zip(names, (reviews, entries)):
        (raw / name).write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return truth


def write_tables(folder: Path, name: str, num_users: int = 200, num_items: int = 120, seed: int = 0) -> Planted:
    """Writes ``<folder>/raw/<name>.interactions.csv`` and ``<name>.items.csv``."""
    truth = planted(num_users, num_items, seed)
    raw = Path(folder) / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    rows = [f"u{user + 1},i{item + 1},{1000 * day}" for user, history in enumerate(truth.histories) for day, item in enumerate(history)]
    (raw / f"{name}.interactions.csv").write_text("user,item,timestamp\n" + "\n".join(rows) + "\n")
    items = [f'i{item + 1},"{title}",{number}' for item, (title, number) in enumerate(zip(titles_of(truth), truth.cluster))]
    (raw / f"{name}.items.csv").write_text("item,title,shelf\n" + "\n".join(items) + "\n")
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
