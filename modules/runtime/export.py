"""A trained run as one program: history in, items out, loadable with torch alone.

    python -m modules.runtime.export RUN [--output search.pt2] [--beam-size 50] [--batch-size 1] [--keep-history]

The encoder, the trie and the whole beam search become one graph by torch.export: nothing in them depends on data. In a service:

    program = torch.export.load("search.pt2").module()
    items, log_probs = program(history, user_ids)    # [B, N] row numbers of items, oldest first, -1 behind the last; [B], -1 unknown

Shape letters: B batch, N = the model's max_seq_len, W beams.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from data.schemas import PAD, SeqBatch, UserError
from modules.runtime.hub import find_snapshot
from modules.runtime.retriever import Retriever, load_retriever


class SearchProgram(nn.Module):
    """What is exported."""

    def __init__(self, retriever: Retriever, beam_size: int, filter_history: bool) -> None:
        super().__init__()
        self.model, self.tokenizer = retriever.model.eval(), retriever.tokenizer  # as modules, whose tensors the program then holds
        self.beam_size, self.filter_history = beam_size, filter_history

    def forward(self, history: Tensor, user_ids: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N] and [B] -> item rows [B, W], best first, and their log-probabilities [B, W]."""
        batch = SeqBatch(user_ids, history, history.new_full((len(history), 1), PAD), None)
        seen = history if self.filter_history else None
        found = Retriever(self.model, self.tokenizer, []).search(batch, self.beam_size, seen)
        return found.item_ids, found.log_probs


def export_search(retriever: Retriever, batch_size: int, beam_size: int, filter_history: bool = True) -> torch.export.ExportedProgram:
    """The search as one graph of fixed shapes.

    Raises:
        UserError: sizes below 1.
    """
    if min(batch_size, beam_size) < 1:
        raise UserError(f"--batch-size is {batch_size} and --beam-size {beam_size}; both must be at least 1")
    program = SearchProgram(retriever, beam_size, filter_history)
    device = retriever.tokenizer.sem_ids.device
    history = torch.full((batch_size, retriever.model.config.max_seq_len), PAD, device=device)
    history[:, 0] = 0
    with torch.no_grad():
        return torch.export.export(program, (history, torch.full((batch_size,), PAD, device=device)))


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and writes the program; exit code 2 with one sentence for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run directory of train_decoder.py, or a hub name")
    parser.add_argument("--output", type=Path, help="default: search.pt2 in the run directory")
    parser.add_argument("--beam-size", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--keep-history", action="store_true", help="let items of the history come back")
    options = parser.parse_args(argv)
    try:
        folder = find_snapshot(options.run, stage="decoder")
        retriever = load_retriever(folder)
        program = export_search(retriever, options.batch_size, options.beam_size, not options.keep_history)
        output = options.output or folder / "search.pt2"
        torch.export.save(program, output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"saved    {output}: [{options.batch_size}, {retriever.model.config.max_seq_len}] histories -> {options.beam_size} items each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
