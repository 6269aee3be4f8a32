"""data.json: which data a run was begun on, so that it neither goes on with others nor says that it is finished with them.

Everything is named by hashes; nothing of the data itself is kept.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from data.corpus import Corpus
from data.io.files import digest, write_whole
from data.schemas import UserError
from modules.runtime.runs.run import Run

RECORD = "data.json"

WORDS = {"histories": "the histories", "items": "the items", "texts": "the items' texts", "vectors": "the items' vectors"}


class DataRecord(NamedTuple):
    """Hashes; None where a stage does not read such a thing, or cannot say without encoding texts."""

    histories: str  # of the interactions and their split
    items: str  # of the external ids
    texts: str  # of titles and texts
    vectors: str | None = None


def data_record(corpus: Corpus, split: str, vectors: str | None = None) -> DataRecord:
    """The record of a corpus whose histories and split have the hash ``split``, and whose item vectors have the hash ``vectors``."""
    return DataRecord(split, digest(corpus.item_keys), digest(corpus.titles, corpus.texts), vectors)


def hash_of(vectors: Tensor | None) -> str | None:
    """Of item vectors [I, E]."""
    return None if vectors is None else digest(list(vectors.shape), vectors.double().sum(1).tolist())


def check_data(run: Run, found: DataRecord) -> None:
    """Compares the data with those that the run was begun on; at its first start it writes down which these are.

    To be called by the first process alone.

    Raises:
        UserError: they are others.
    """
    path = run.folder / RECORD
    recorded = json.loads(path.read_text()) if path.exists() else {}
    now = {name: value for name, value in found._asdict().items() if value is not None}
    if changed := [WORDS[name] for name, value in now.items() if recorded.get(name, value) != value]:
        state = "was trained" if run.metrics is not None else "is being trained"
        others = "others" if len(changed) > 1 else "other ones"
        listed = " and ".join([", ".join(changed[:-1]), changed[-1]] if len(changed) > 1 else changed)
        raise UserError(
            f"the run in {run.folder} {state} on other data: {listed} are {others} now; "
            "set train.resume = False to train on them in a directory beside it, or put the data back as they were"
        )
    if now.keys() - recorded.keys():
        write_whole(path, json.dumps(recorded | now, indent=1))


def check_finished(run: Run, find: Callable[[], DataRecord]) -> None:
    """``check_data`` of a finished run, which may outlive its data: where these cannot be read a line says so.

    Raises:
        UserError: the data are others now.
    """
    with run.ranks.main_first():
        if not run.ranks.main:
            return
        try:
            found = find()
        except UserError as error:
            run.say(f"data     not compared with those of the run: {error}")
            return
        check_data(run, found)
