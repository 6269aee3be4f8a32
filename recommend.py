"""Ask a trained run for items.

    python recommend.py out/decoder/quick/ml-100k --history "Toy Story (1995) | Aladdin (1992)" --k 10
    python recommend.py out/decoder/amazon/beauty --history "B004756YJA | B004ZT0SSG"
    python recommend.py out/decoder/amazon/beauty --history "B004756YJA" --among new_items.txt       # only these can be recommended
    python recommend.py out/decoder/amazon/beauty --history "B004756YJA" --user A1YJEY40YUW4SE      # as the model knows this user
    python recommend.py owner/name --history "B004756YJA"                                 # a run that was shared on the hub

The history is oldest first, its items separated by " | ": external ids, titles, or parts of titles that only one item has.
Prints the k most probable items that are not in the history, with the log-probability of their semantic ID (of its collision code: among
the items that share the others) and the ID itself: the search, precision and beams of the run's own evaluation, which knew the user too.
Of a run with train.memory_weight the probability is that of the mixture with the memory. SASRec has no semantic IDs; its probability is
the item's among all.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.schemas import PAD, UserError
from modules.runtime.runs.hub import find_snapshot
from modules.runtime.runs.recommender import Recommender
from modules.runtime.runs.stage2_models import load_recommender
from modules.runtime.runs.stage2_run import user_row


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and prints the recommendations; exit code 2 with one sentence for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run directory of train_decoder.py, or a hub name owner/name")
    parser.add_argument("--history", required=True, help='items, oldest first, separated by " | "')
    parser.add_argument("--k", type=int, default=10, help="how many items (default 10)")
    parser.add_argument("--beam-size", type=int, help="beams of the search (default: those of the run's evaluation)")
    parser.add_argument("--user", metavar="ID", help="external id of a user of the training data; without it the user is unknown")
    parser.add_argument("--among", metavar="FILE", help="recommend only these items: an id or title a line, such as those that are new")
    parser.add_argument("--keep-history", action="store_true", help="let items of the history come back")
    options = parser.parse_args(argv)
    try:
        if options.k < 1:
            raise UserError(f"--k is {options.k}; ask for at least 1 item")
        if options.beam_size is not None and options.beam_size < 1:
            raise UserError(f"--beam-size is {options.beam_size}; a search needs at least 1 beam")
        folder = find_snapshot(options.run)
        recommender = load_recommender(folder)
        if options.beam_size is not None and not recommender.settings.beam_size:
            raise UserError(f"--beam-size is for a beam search, and {recommender.name} scores every item; leave it out")
        names = [name.strip() for name in options.history.split("|") if name.strip()]
        history = [find_item(name, recommender) for name in names]
        if options.among is not None:
            recommender = recommender.among(listed_items(Path(options.among), recommender))
        user = PAD if options.user is None else user_row(folder, options.user)
        print(recommend(recommender, history, options.k, user, options.beam_size, options.keep_history))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def find_item(name: str, recommender: Recommender) -> int:
    """The one item whose external id or title is ``name``, or whose title alone contains it.

    Raises:
        UserError: no such item, or several.
    """
    keys, wanted = recommender.item_keys, name.casefold()
    if name in keys:
        return keys.index(name)
    titles = [title.casefold() for title in recommender.titles]
    found = [item for item, title in enumerate(titles) if title == wanted] or [item for item, title in enumerate(titles) if wanted in title]
    if not found:
        raise UserError(
            f"no item has the id or title {name!r}; give an external id such as {keys[0]!r}, or a title such as {recommender.titles[0]!r}"
        )
    if len(found) > 1:
        several = "; ".join(f"{keys[item]} {recommender.titles[item]!r}" for item in found[:5])
        raise UserError(f"{len(found)} items match {name!r}: {several}{'; ...' if len(found) > 5 else ''}; give the id of the one you mean")
    return found[0]


def listed_items(path: Path, recommender: Recommender) -> Tensor:
    """The rows [J] of the items that a file names, an id or title a line.

    Raises:
        UserError: no such file, or a line that is no one item's.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--among {path} cannot be read ({error}); give a text file with an id or title a line") from error
    if not names:
        raise UserError(f"--among {path} is empty; write an id or title a line")
    rows = {key: row for row, key in enumerate(recommender.item_keys)}
    return torch.tensor(sorted({rows[name] if name in rows else find_item(name, recommender) for name in names}))


def recommend(
    recommender: Recommender, history: Sequence[int], k: int, user: int = PAD, beam_size: int | None = None, keep_history: bool = False
) -> str:
    """The history and the k best items after it, as text.

    Args:
        recommender: the run's.
        history: rows of items, oldest first, any number.
        k: how many items; the search has as many beams at least.
        user: row of the user, PAD where unknown.
        beam_size: beams of the search; None: those of the run's evaluation.
        keep_history: items of the history may come back.

    Raises:
        UserError: an empty history.
    """
    if not history:
        raise UserError('the history is empty; write --history "first item | second item"')
    beams = max(recommender.settings.beam_size if beam_size is None else beam_size, k)
    found = recommender.ask([history], [user], not keep_history, beams)
    keys, titles, sem_ids = recommender.item_keys, recommender.titles, recommender.sem_ids
    lines = ["history", *(f"      {keys[item]:>12}  {titles[item]}" for item in history), "recommended"]
    for rank, (item, score) in enumerate(zip(found.item_ids[0, :k].tolist(), found.keys[0].tolist()), 1):
        if item != PAD:
            codes = "" if sem_ids is None else f", ID {'-'.join(map(str, sem_ids[item].tolist()))}"
            lines.append(f"  {rank:>3} {keys[item]:>12}  {titles[item]}   (log p {score:.2f}{codes})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
