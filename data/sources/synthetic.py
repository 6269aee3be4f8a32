"""A generated catalogue with titles, a planted order and a known ceiling. No files, no network, the same for the same seed.

Items form clusters of ten; within a cluster each has a fixed successor. A user mostly walks from an item to its successor, now
and then to another item of the cluster, seldom elsewhere. So the last item says much about the next and popularity says
nothing. Item numbers are a random permutation and say nothing either.
"""

import logging
from typing import NamedTuple

import numpy as np

from data.corpus import Catalogue, LoadedCorpus
from data.filters import Filters, assemble
from data.item_text import item_text
from data.sources.registry import DataConfig, Source

log = logging.getLogger("tiger.data")

CLUSTER = 10
FOLLOWS, STAYS = 0.8, 0.95
"""How often a user goes on to the successor, and how often to some item of the cluster, the successor among them."""

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
            if draw < FOLLOWS and following in left:
                history.append(following)
            else:
                history.append(int(rng.choice(near if draw < STAYS and len(near) else left)))
        histories.append(history)
    return Planted(cluster, successor, histories)


def titles_of(truth: Planted) -> list[str]:
    """Returns a title for each item, which tells its cluster."""
    return [f"{KINDS[int(number) % len(KINDS)]} No. {item + 1}" for item, number in enumerate(truth.cluster)]


def ceiling(truth: Planted) -> float:
    """Returns the expected recall@1 on test of whoever knows how the histories were drawn: no model can be expected to do better.

    The best guess is the successor of the last item, or, where the user has met that, any item of the cluster that is left.
    """
    sizes, num_items = np.bincount(truth.cluster), len(truth.cluster)
    chances = []
    for *history, _ in truth.histories:
        left = num_items - len(history)
        number = truth.cluster[history[-1]]
        near = sizes[number] - sum(truth.cluster[item] == number for item in history)
        if truth.successor[history[-1]] not in history:
            chances.append(FOLLOWS + (STAYS - FOLLOWS) / near + (1 - STAYS) / left)
        else:
            chances.append(STAYS / near + (1 - STAYS) / left if near else 1 / left)
    return float(np.mean(chances))


def load_synthetic(filters: Filters, num_users: int = 2000, num_items: int = 400, seed: int = 0) -> LoadedCorpus:
    """Returns the planted data as a corpus, with its ceiling as a note; times are days of 2011 to 2014, ratings 3 to 5."""
    import polars as pl

    truth = planted(num_users, num_items, seed)
    brands = [BRANDS[int(number) % len(BRANDS)] for number in truth.cluster]
    shelves = [f"Shelf {shelf}" for shelf in truth.cluster]
    fields = zip(titles_of(truth), brands, shelves)
    texts = [item_text([("Title", title), ("Brand", brand), ("Categories", shelf)]) for title, brand, shelf in fields]
    lengths = [len(history) for history in truth.histories]
    items = np.concatenate(truth.histories)
    starts = np.random.default_rng([seed, 4]).integers(0, 1000, num_users)
    days = np.repeat(starts, lengths) + np.concatenate([np.arange(length) for length in lengths])
    users = np.repeat([f"u{user + 1}" for user in range(num_users)], lengths)
    table = pl.DataFrame({"user": users, "item": items, "time": 1_300_000_000 + 86_400 * days, "rating": 3.0 + items % 3})
    catalogue = Catalogue([f"i{item + 1}" for item in range(num_items)], titles_of(truth), texts, shelves)
    loaded = assemble("synthetic", "synthetic", catalogue, table, filters)
    notes = [f"synthetic: knowing how it was drawn gives recall@1 {ceiling(truth):.4f} on test", *loaded.notes]
    for note in notes:
        log.info(note)
    return loaded._replace(notes=notes)


def load(config: DataConfig, filters: Filters) -> LoadedCorpus:
    """Returns the data of the default size, whatever the split is called."""
    return load_synthetic(filters)


SOURCE = Source(load)
