"""Which files of a folder are a dataset of one's own."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.schemas import UserError

TEXTS = ("csv", "tsv", "txt", "jsonl", "json")
KINDS = ("csv", "tsv", "txt", "jsonl", "json", "parquet")
"""What the files can be; those of text also gzipped, as ``.csv.gz``."""

PARTS = (("train",), ("valid", "validation", "val", "dev"), ("test",))
"""What files are called that somebody split before us, in the order of time."""


class Files(NamedTuple):
    """The files of a dataset."""

    interactions: Path
    items: Path | None  # None: nothing is known of the items but their ids
    more: tuple[Path, ...] = ()  # further interactions, which follow

    @property
    def paths(self) -> list[Path]:
        return [self.interactions, *self.more, *([self.items] if self.items else [])]


def kind_of(path: Path) -> str:
    """The ending that tells how a file is read, without .gz."""
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]


def endings(kinds: tuple[str, ...] = KINDS) -> list[str]:
    """Every ending of a file that can be read."""
    return [ending for kind in kinds for ending in (kind, *([f"{kind}.gz"] if kind in TEXTS else []))]


def find_files(folder: Path, split: str) -> Files:
    """Returns the files of a dataset.

    Args:
        folder: holds them, itself or in raw/.
        split: their name where they have one.

    Raises:
        UserError: there are no interactions, or two files of a kind.
    """
    places = (folder / "raw", folder)
    stems = [f"{split}.interactions", "interactions"]
    whole = [f"{split}.inter", *(f"{stem}.{ending}" for stem in stems for ending in endings())]
    if split.lower() not in {name for names in PARTS for name in names}:  # test.txt is a part, whatever the folder is called
        whole += [f"{split}.{ending}" for ending in endings(("txt", "json"))]
    interactions = _only(places, whole, "interactions")
    items = _only(places, [f"{split}.item", *(f"{stem}.{ending}" for stem in (f"{split}.items", "items") for ending in endings())], "items")
    more: tuple[Path, ...] = ()
    if interactions is None:
        parts = [part for names in PARTS if (part := _only(places, list(_part_names(split, names)), f"{names[0]} part"))]
        interactions, more = (parts[0], tuple(parts[1:])) if parts else (None, ())
    if interactions is None:
        raise _missing(folder, split, items)
    return Files(interactions, items, more)


def _part_names(split: str, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        yield f"{split}.{name}.inter"
        for ending in endings():
            yield f"{name}.{ending}"
            yield f"{split}.{name}.{ending}"


def _only(places: tuple[Path, ...], names: list[str], what: str) -> Path | None:
    wanted = {name.lower() for name in names}
    there = [path for place in places if place.is_dir() for path in sorted(place.iterdir()) if path.name.lower() in wanted]
    if len(there) > 1:
        raise UserError(f"{there[0]} and {there[1]} are both there; which one holds the {what} cannot be told; remove one")
    return there[0] if there else None


def _missing(folder: Path, split: str, items: Path | None) -> UserError:
    lists = [path.name for place in (folder / "raw", folder) if place.is_dir() for path in sorted(place.iterdir()) if path.is_file()]
    there = ", ".join(lists[:12]) + (", .." if len(lists) > 12 else "") if lists else "nothing"
    wanted = "interactions.csv" if items is not None else "interactions.csv and items.csv"
    hint = "run `python -m data.quick` to fetch MovieLens-100K and the sentence encoder" if split == "ml-100k" else "put them there"
    stem = next((name.split(".")[0] for name in lists if name.endswith((".inter", ".txt")) or ".interactions." in name), None)
    if stem is not None and stem != split:
        hint = f"set train.dataset_split = {stem!r} to read {stem}'s, or {hint}"
    return UserError(
        f"{folder} has no {wanted}, nor has {folder / 'raw'} (there lies {there}); expected them as {', '.join(KINDS)} "
        f"(the texts also as .gz), or as {split}.inter and {split}.item of RecBole; {hint}"
    )
