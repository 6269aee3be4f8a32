"""What every benchmark starts from: Amazon Beauty's histories and the semantic IDs of a stage-1 run."""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch

from data.corpus import Histories
from data.processed import DataConfig, RecDataset, load_corpus
from modules.model import DecoderConfig
from modules.runtime.training.device import Placement, place
from modules.tokenizer.semids import SemanticIdTokenizer

PAPER_SHAPE = DecoderConfig(embed_dim=128, attn_dim=384, num_heads=6, num_layers=4, ff_dim=1024)
"""4 + 4 layers, about 5 M parameters."""


class Setup(NamedTuple):
    options: argparse.Namespace
    histories: Histories
    tokenizer: SemanticIdTokenizer
    placement: Placement


def set_up(manual: str, *arguments: tuple[str, dict[str, object]]) -> Setup:
    """Parses the command line and loads data and IDs onto the device."""
    parser = argparse.ArgumentParser(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-folder", default="dataset/amazon", help="with raw/beauty in it")
    parser.add_argument("--rqvae", type=Path, default=Path("out/rqvae/amazon_mpnet/beauty"), help="stage-1 run directory")
    parser.add_argument("--device", default="auto")
    for name, settings in arguments:
        parser.add_argument(name, **settings)
    options = parser.parse_args()
    placement = place(options.device, True, "bf16")
    corpus = load_corpus(DataConfig(RecDataset.AMAZON, options.dataset_folder, "beauty"))
    tokenizer = SemanticIdTokenizer.load(options.rqvae).to(placement.device)
    tokenizer.check_items(corpus.item_keys)
    torch.manual_seed(0)
    print(f"device   {placement.why}", flush=True)
    return Setup(options, corpus.histories, tokenizer, placement)
