"""The Amazon 2014 5-core sets Beauty, Sports and Toys, as P5 published them: download, safe extraction, cache.

Raw files that are already in ``<root>/raw/<split>/`` are used as they are; nothing is downloaded then.
"""

import zipfile
from pathlib import Path

from torch_geometric.data import InMemoryDataset

from data.corpus_cache import cached_corpus, corpus_path, raw_fingerprint
from data.io.download import fetch
from data.io.zip_archive import extract_members
from data.item_embeddings import TEMPLATE_VERSION
from data.schemas import UserError
from data.sources.p5 import FILES, PARSER_VERSION, SPLITS, read_p5

P5_URL = "https://drive.usercontent.google.com/download?id=1qGxgmx7G_WB7JE4Cn_bEcZ_o_NAJLE3G&confirm=t"
"""Google Drive's answer to the question whether to download a file that it could not scan; it has no checksum to ask for."""

ARCHIVE_NAME = "P5_data.zip"


class AmazonReviews(InMemoryDataset):
    """One split as a ``Corpus``.

    Args:
        root: the dataset folder.
        split: "beauty", "sports" or "toys".
        force_process: read the raw files again even if a cache is there.

    Raises:
        UserError: an unknown split, raw files that are missing and cannot be downloaded, or files that are not P5's.
    """

    def __init__(self, root: str, split: str, force_process: bool = False) -> None:
        if split not in SPLITS:
            raise UserError(f"train.dataset_split is {split!r}; the Amazon splits are {', '.join(SPLITS)}; choose one of them")
        self.split = split
        super().__init__(root, log=False, force_reload=force_process)

    @property
    def raw_file_names(self) -> list[str]:
        return [f"{self.split}/{name}" for name in FILES]

    @property
    def processed_file_names(self) -> list[str]:
        raw = raw_fingerprint([Path(path) for path in self.raw_paths])
        return [corpus_path(Path(self.root), f"amazon_{self.split}", TEMPLATE_VERSION, PARSER_VERSION, raw).name]

    def download(self) -> None:
        missing = [Path(path) for path in self.raw_paths if not Path(path).exists()]
        archive = Path(self.raw_dir) / ARCHIVE_NAME
        if not archive.exists():
            _fetch_archive(archive, missing)
        extract_members(archive, missing, "P5")

    def process(self) -> None:
        path = Path(self.processed_paths[0])
        raw = Path(self.raw_dir) / self.split
        self.corpus, self.notes = cached_corpus(path, lambda: read_p5(raw), force=self.force_reload)

    def _process(self) -> None:
        # The base class would unpickle pre_transform.pt from the folder, whoever put it there; our cache knows when it is stale.
        self.process()


def _fetch_archive(archive: Path, missing: list[Path]) -> None:
    names = ", ".join(path.name for path in missing)
    ways = f"connect once, copy {names} of P5's data to {missing[0].parent}, or put P5's zip archive there as {archive}"
    fetch(P5_URL, archive, ways)
    if not zipfile.is_zipfile(archive):
        archive.unlink()
        raise UserError(f"{names} are missing, and Google Drive answered with something that is no zip archive; {ways}")
