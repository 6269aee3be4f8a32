"""Every tokenizer on Amazon Beauty: health of the codes, what they mean, seconds; and what a decoder makes of them.

    python -m benchmarks.tokenizers --item-embeddings MPNET.npy --set iterations=1500    # about 20 minutes; results/tokenizers.json and .md
    python -m benchmarks.tokenizers --item-embeddings MPNET.npy --decoders 2    # as shipped, and decoders on four of them: 6 hours

Each tokenizer is a file in configs/, run by train_rqvae.py as a user would; runs that are finished are not trained again. Decoders are
judged on validation users, history barred; the test part is not read.
"""

import argparse
import json
import statistics
from pathlib import Path

import train_decoder
import train_rqvae
from benchmarks.timing import RESULTS, save
from evaluate.console import markdown
from modules.runtime.config.main import run_script

TOKENIZERS = {
    "RQ-VAE": "configs/rqvae_amazon.gin",
    "RQ-VAE, no revival": "configs/ablations/rqvae_no_revival.gin",
    "RQ-VAE, moving averages": "configs/ablations/rqvae_ema.gin",
    "RQ-VAE, Sinkhorn": "configs/ablations/rqvae_sinkhorn.gin",
    "RQ-VAE, SimVQ": "configs/ablations/rqvae_sim_vq.gin",
    "RQ-VAE, rotation trick": "configs/ablations/rqvae_rotation_trick.gin",
    "RQ-VAE, collaborative": "configs/ablations/rqvae_collaborative.gin",
    "FSQ": "configs/ablations/tokenizer_fsq.gin",
    "RQ-k-means": "configs/ablations/tokenizer_rqkmeans.gin",
    "RQ-k-means, balanced": "configs/ablations/tokenizer_rqkmeans_balanced.gin",
    "RQ-k-means, 64 components": "configs/ablations/tokenizer_rqkmeans_pca.gin",
    "PQ": "configs/ablations/tokenizer_pq.gin",
    "OPQ, 96 components": "configs/ablations/tokenizer_opq.gin",
    "LSH": "configs/ablations/tokenizer_lsh.gin",
    "random": "configs/ablations/tokenizer_random.gin",
}
DECODED = ("RQ-VAE", "RQ-k-means", "LSH", "random")
COLUMNS = (
    "tokenizer",
    "perplexity",
    "least usage",
    "collisions",
    "largest group",
    "cosine kept",
    "of held-out items",
    "neighbours kept, by vector",
    "by prefix",
    "department by first code",
    "codes shared in histories",
    "seconds",
)


def tokenize(name: str, root: Path, options: argparse.Namespace) -> Path:
    """The run directory of a tokenizer, trained unless it is there."""
    folder = root / name.lower().replace(",", "").replace(" ", "_")
    given = [f"item_embeddings={options.item_embeddings}", f"dataset_folder={options.dataset_folder}", f"save_dir_root={folder}"]
    if run_script(train_rqvae.train, "", [TOKENIZERS[name], *given, "allow_collapse=True", *options.set]):
        raise SystemExit(f"{name} did not end well; see above")
    return folder / "beauty"


def row(name: str, metrics: dict) -> list[str]:
    """A tokenizer's line in the table."""
    unseen = metrics["held_out_reconstruction"]
    kept, rebuilt, affinity = metrics["neighbours"], metrics["reconstruction"], metrics["affinity"]
    by_vector = kept["by_vector"]
    return [
        name,
        " / ".join(f"{value:.0f}" for value in metrics["perplexity"]),
        f"{min(metrics['usage']):.0%}",
        f"{metrics['collision_rate']:.1%}",
        str(metrics["largest_group"]),
        "-" if rebuilt is None else f"{rebuilt['cosine']:.3f}",
        "-" if unseen is None else f"{unseen['cosine']:.3f}",
        "-" if by_vector is None else f"{by_vector:.1%}",
        f"{kept['by_prefix']:.1%}",
        f"{metrics['agreement'][0]['purity']:.1%}",
        f"{affinity['adjacent']:.3f}",
        f"{metrics['seconds']:.0f}",
    ]


def decode(name: str, rqvae: Path, root: Path, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Validation figures, all users, of the shipped decoder config on a tokenizer's IDs."""
    folder = root / "decoder" / f"{rqvae.parent.name}_{seed}"
    given = [f"pretrained_rqvae_path={rqvae}", f"dataset_folder={options.dataset_folder}", f"save_dir_root={folder}", f"seed={seed}"]
    if run_script(train_decoder.train, "", ["configs/decoder_amazon_mpnet.gin", *given, "do_eval=False", "full_eval_every=7500"]):
        raise SystemExit(f"the decoder on {name} did not end well; see above")
    return json.loads((folder / "beauty" / "metrics.json").read_text())["validation"]["TIGER"]["metrics"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--item-embeddings", required=True, help=".npy file of Beauty's item embeddings, 768 wide")
    parser.add_argument("--dataset-folder", default="dataset/amazon")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/tokenizers"))
    parser.add_argument("--only", nargs="+", choices=TOKENIZERS, default=list(TOKENIZERS), metavar="NAME")
    parser.add_argument("--decoders", type=int, default=0, metavar="SEEDS", help=f"decoder runs on each of {', '.join(DECODED)}")
    parser.add_argument("--set", nargs="*", default=[], metavar="name=value", help="for train_rqvae.py, such as iterations=1000")
    options = parser.parse_args()
    runs = {name: tokenize(name, options.out, options) for name in options.only}
    metrics = {name: json.loads((run / "metrics.json").read_text()) for name, run in runs.items()}
    text = markdown([list(COLUMNS), *(row(name, found) for name, found in metrics.items())])
    result: dict[str, object] = {"set": options.set, "tokenizers": metrics}
    if options.decoders:
        found = {
            name: [decode(name, runs[name], options.out, seed, options) for seed in range(options.decoders)]
            for name in DECODED
            if name in runs
        }
        result["decoders"] = found
        rows = [["tokenizer", "recall@10, each seed", "ndcg@10, each seed", "mean recall@10", "mean ndcg@10"]]
        for name, of_seeds in found.items():
            columns = [[figures[cutoff] for figures in of_seeds] for cutoff in ("recall@10", "ndcg@10")]
            each = [", ".join(f"{value:.4f}" for value in column) for column in columns]
            rows.append([name, *each, *(f"{statistics.mean(column):.4f}" for column in columns)])
        text += "\n" + markdown(rows)
    print("\n" + text)
    path = save("tokenizers", result)
    (RESULTS / "tokenizers.md").write_text(text)
    print(f"saved    {path} and {RESULTS / 'tokenizers.md'}")


if __name__ == "__main__":
    main()
