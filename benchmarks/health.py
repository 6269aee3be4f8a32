"""Do the defaults of stage 1 stay healthy on other catalogues than Beauty, and with other codebooks?

    python -m benchmarks.health --item-embeddings BEAUTY.npy MOVIELENS.npy     # about 15 minutes on 2 cores; results/health.json and .md

Every run is train_rqvae.py's with its own defaults, 5 % of the items held out, and only what its row names changed. The generated ones
have one large common direction, as sentence embeddings have it uncentred.
"""

import argparse
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import train_rqvae
from benchmarks.timing import RESULTS, save
from evaluate.console import markdown
from modules.runtime.config.main import run_script

COLUMNS = (
    "catalogue",
    "items x width",
    "codes",
    "least usage",
    "perplexity",
    "collisions",
    "cosine kept",
    "of held-out items",
)


def vectors(number: int, width: int, clusters: int, spread: float = 0.4, cosine: float = 0.85, seed: int = 0) -> Tensor:
    """Unit rows [number, width] in clusters around one large common direction.

    Args:
        number: I.
        width: E; what is not common falls off along the dimensions as 1 / square root of the rank.
        clusters: item i belongs to cluster i modulo this.
        spread: of the items about their cluster's centre, in units of the centres'.
        cosine: mean cosine of two items.
        seed: of all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = 1 / torch.arange(1, width + 1) ** 0.5
    centres = torch.randn(clusters, width, generator=generator) * scales
    own = centres[torch.arange(number) % clusters] + spread * torch.randn(number, width, generator=generator) * scales
    shared = normalize(torch.randn(width, generator=generator), dim=0)
    return normalize(cosine**0.5 * shared + (1 - cosine) ** 0.5 * normalize(own, dim=1), dim=1)


class Case(NamedTuple):
    """A catalogue, and what of the defaults is changed."""

    items: Tensor
    changes: tuple[str, ...] = ()


def cases(files: list[Path]) -> dict[str, Case]:
    """The rows of the table by name."""
    plain, tiny = vectors(8000, 384, 1600), vectors(300, 384, 60)
    found = {path.stem: Case(torch.from_numpy(np.load(path).astype(np.float32))) for path in files}
    return found | {
        "mean cosine .85": Case(plain),
        "300 items": Case(tiny),
        "300 items, 64 codes": Case(tiny, ("vae_codebook_size=64",)),
        "four near-duplicates of each item": Case(vectors(8000, 384, 2000, spread=0.002)),
        "128 wide": Case(vectors(8000, 128, 1600)),
        "2048 wide": Case(vectors(8000, 2048, 1600)),
        "64 codes": Case(plain, ("vae_codebook_size=64",)),
        "2048 codes": Case(plain, ("vae_codebook_size=2048",)),
        "2 levels": Case(plain, ("vae_n_layers=2",)),
        "6 levels": Case(plain, ("vae_n_layers=6",)),
    }


def judged(name: str, case: Case, out: Path, given: list[str]) -> dict:
    """metrics.json of the case's run, trained unless it is there."""
    run = re.sub(r"[^\w.-]+", "_", name)
    folder = out / "data" / run
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{item}\n" for item in range(len(case.items)))
    (folder / "items.csv").write_text(f"item\n{rows}")
    (folder / "interactions.csv").write_text("user,item,timestamp\nu,0,1\nu,1,2\n")
    (folder / "defaults.gin").write_text("import data.processed\ntrain.dataset = %data.processed.RecDataset.CUSTOM\n")
    np.save(folder / "vectors.npy", case.items.numpy())
    data = [f"dataset_folder={folder}", f"dataset_split={run}", f"item_embeddings={folder}/vectors.npy", f"save_dir_root={out}"]
    shape = [f"vae_input_dim={case.items.shape[1]}", "do_eval=True", "allow_collapse=True"]
    if run_script(train_rqvae.train, "", [str(folder / "defaults.gin"), *data, *shape, *case.changes, *given]):
        raise SystemExit(f"{name} did not end well; see above")
    sizes = json.loads((out / run / "tokenizer.json").read_text())["codebook_sizes"]
    return {"codebook_sizes": sizes, **json.loads((out / run / "metrics.json").read_text())}


def row(name: str, case: Case, metrics: dict) -> list[str]:
    """A run's line in the table."""
    items, width = case.items.shape
    return [
        name,
        f"{items:,} x {width:,}",
        " x ".join(map(str, metrics["codebook_sizes"])),
        f"{min(metrics['usage']):.0%}",
        " / ".join(f"{value:.0f}" for value in metrics["perplexity"]),
        f"{metrics['collision_rate']:.1%}",
        f"{metrics['reconstruction']['cosine']:.3f}",
        f"{metrics['held_out_reconstruction']['cosine']:.3f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--item-embeddings", type=Path, nargs="*", default=[], help=".npy files of real catalogues, a row each")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/health"))
    parser.add_argument("--set", nargs="*", default=[], metavar="name=value", help="for train_rqvae.py, such as iterations=1000")
    options = parser.parse_args()
    catalogue = cases(options.item_embeddings)
    found = {name: judged(name, case, options.out, options.set) for name, case in catalogue.items()}
    text = markdown([list(COLUMNS), *(row(name, catalogue[name], metrics) for name, metrics in found.items())])
    print("\n" + text)
    path = save("health", {"set": options.set, "catalogues": found})
    (RESULTS / "health.md").write_text(text)
    print(f"saved    {path} and {RESULTS / 'health.md'}")


if __name__ == "__main__":
    main()
