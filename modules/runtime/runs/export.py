"""A trained run as one program: histories in, items out, loadable with torch alone.

    python -m modules.runtime.runs.export RUN [--output search.pt2] [--beam-size 50] [--keep-history] [--aot]

The encoder, the trie and the whole beam search become one graph by torch.export: nothing in them depends on data. It is the search of the
run's own evaluation, in its precision; it takes any number of histories of any length, and bars each whole. Scores are log-probabilities;
those of a run with train.memory_weight are of the mixture with the memory, which is in the program too. Beside it lies
search.ids.json, the external ids of the rows that it reads and gives. In a service, which needs none of this project:

    program = torch.export.load("search.pt2").module()       # with --aot: torch._inductor.aoti_load_package("search.pt2")
    ids = json.load(open("search.ids.json"))
    row = {key: number for number, key in enumerate(ids["items"])}
    history = torch.tensor([[row[key] for key in ("B004756YJA", "B004ZT0SSG")]])      # [B, S], oldest first, -1 behind the last
    user = torch.tensor([-1])                                                       # [B], rows of ids["users"], -1 unknown
    with torch.inference_mode():
        items, log_probs = program(history, user)                                   # [B, W] each, best first, -1 where nothing is left
    print([ids["items"][item] for item in items[0].tolist() if item >= 0])

With --aot the graph is compiled for this kind of machine (AOTInductor): it needs a C++ compiler and minutes now, and no compiler later.
Shape letters: B batch, S items of a history, W beams.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from data.io.files import write_whole
from data.schemas import PAD, UserError
from modules.runtime.runs.hub import find_snapshot
from modules.runtime.runs.searcher import Searcher
from modules.runtime.runs.stage1_run import read_config
from modules.runtime.runs.stage2_run import USERS, Retriever, load_retriever

COMPILERS = ("g++", "clang++", "c++")


class SearchProgram(nn.Module):
    """What is exported."""

    def __init__(self, searcher: Searcher, beam_size: int, filter_history: bool) -> None:
        super().__init__()
        self.searcher, self.beam_size, self.filter_history = searcher, beam_size, filter_history

    def forward(self, history: Tensor, user_ids: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S] and [B] -> item rows [B, W], best first, and what ranks them [B, W]: log-probabilities, or logs of the mixture."""
        # A graph is bound to what it does with a dimension of 1: two columns more, and no step ever sees one.
        history = nn.functional.pad(history, (0, 2), value=PAD)
        batch = self.searcher.batch_of(history, user_ids, self.searcher.max_seq_len)
        found = self.searcher.search(batch, self.filter_history, self.beam_size)
        return found.item_ids, found.keys


def export_search(retriever: Retriever, beam_size: int | None = None, filter_history: bool = True) -> torch.export.ExportedProgram:
    """The search as one graph, for any number of histories of any length.

    Args:
        retriever: its weights no longer ask for gradients afterwards: the program would record what only training needs.
        beam_size: W; None: as in the run's evaluation.
        filter_history: no item of the history comes back.

    Raises:
        UserError: no beam.
    """
    if beam_size is not None and beam_size < 1:
        raise UserError(f"--beam-size is {beam_size}; a search needs at least 1 beam")
    searcher = Searcher(retriever).requires_grad_(False).eval()
    program = SearchProgram(searcher, searcher.beam_size if beam_size is None else beam_size, filter_history)
    history = torch.tensor([[0, PAD], [0, PAD]], device=searcher.device)
    batch, items = torch.export.Dim("batch", min=1), torch.export.Dim("items", min=1)
    example = (history, torch.full((2,), PAD, device=searcher.device))
    with torch.no_grad():
        exported = torch.export.export(program, example, dynamic_shapes=({0: batch, 1: items}, {0: batch}), strict=False)
        # A file can hold casts, but no region of autocast.
        return exported if searcher.dtype is None else exported.run_decompositions({})


def save_search(exported: torch.export.ExportedProgram, output: Path, aot: bool) -> None:
    """Writes the program, compiled for this kind of machine if ``aot``.

    Raises:
        UserError: there is no compiler.
    """
    if not aot:
        torch.export.save(exported, output)
        return
    if not any(map(shutil.which, COMPILERS)):
        raise UserError(f"--aot compiles C++ and there is no {', '.join(COMPILERS)} here; install one, or export without --aot")
    torch._inductor.aoti_compile_and_package(exported, package_path=str(output))


def save_ids(run: Path, retriever: Retriever, output: Path) -> None:
    """Writes the external ids of items and, where the run keeps them, of users, in the order of their rows."""
    users = json.loads((run / USERS).read_text()) if (run / USERS).exists() else []
    write_whole(output, json.dumps({"items": retriever.tokenizer.info.item_keys, "users": users}))


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and writes the program; exit code 2 with one sentence for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run directory of train_decoder.py, or a hub name")
    parser.add_argument("--output", type=Path, help="default: search.pt2 in the run directory")
    parser.add_argument("--beam-size", type=int, help="default: that of the run's evaluation")
    parser.add_argument("--keep-history", action="store_true", help="let items of the history come back")
    parser.add_argument("--aot", action="store_true", help="compile the program for this kind of machine")
    options = parser.parse_args(argv)
    try:
        folder = find_snapshot(options.run, stage="decoder")
        output: Path = options.output or folder / "search.pt2"
        if output.suffix != ".pt2":
            raise UserError(f"--output is {output}; the name of a program ends in .pt2")
        if "sasrec" in read_config(folder):
            raise UserError(f"the run in {folder} is one of SASRec, and only the beam search of TIGER is exported; ask it by recommend.py")
        retriever = load_retriever(folder)
        exported = export_search(retriever, options.beam_size, not options.keep_history)
        save_search(exported, output, options.aot)
        ids = output.with_suffix(".ids.json")
        save_ids(folder, retriever, ids)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    beams = retriever.settings.beam_size if options.beam_size is None else options.beam_size
    print(f"saved    {output}: histories of any number and length -> {beams} items each, in {retriever.settings.precision}; ids in {ids}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
