"""The model card of a shared run: what it is, on which data, how good beside the baselines, how it was made, how to load it."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from modules.runtime.runs.stage2_run import ITEMS

PAPER = "[TIGER](https://arxiv.org/abs/2305.05065)"
LICENCE = (
    "The code is under the MIT licence. The weights were trained on the dataset named above, and the files hold its items' ids "
    "and, in stage 2, their titles: its own terms hold for them (MovieLens: research use, no redistribution without permission)."
)
ABSOLUTE = r"(?:~?/|[A-Za-z]:[\\/])"
"""How an absolute path begins, here or on Windows."""


class Kind(NamedTuple):
    """What is said of all runs of a kind."""

    title: str
    what: str
    tags: list[str]
    searcher: str = ""  # stage 2: the module in modules.runtime.runs and the class that ask it
    keys: str = ""  # stage 2: where the loaded run has the external ids


KINDS = {
    "tokenizer": Kind(
        "TIGER semantic IDs",
        f"The RQ-VAE (stage 1) of {PAPER} with the semantic IDs of all items.",
        ["tiger", "semantic-ids", "recommendation", "rq-vae"],
    ),
    "decoder": Kind(
        "TIGER generative retrieval",
        f"The sequence model (stage 2) of {PAPER}: a history of semantic IDs in, the next item's out.",
        ["tiger", "semantic-ids", "recommendation", "generative-retrieval", "sequential-recommendation"],
        "searcher import Searcher",
        "tokenizer.info.item_keys",
    ),
    "sasrec": Kind(
        "SASRec",
        "[SASRec](https://arxiv.org/abs/1808.09781) with cross-entropy over all items: a history of items in, the score of every item out.",
        ["sasrec", "recommendation", "sequential-recommendation"],
        "sasrec_searcher import SASRecSearcher",
        "item_keys",
    ),
}
"""By what the run's config.json describes."""


def model_card(run: Path, repo: str | None) -> str:
    """README.md of a finished run of either stage, front matter included; it names no path of the machine that trained it.

    Args:
        run: the run directory.
        repo: the hub name under which it will be found; None: a placeholder.
    """
    from huggingface_hub import ModelCard, ModelCardData

    name = repo or "OWNER/NAME"
    settings = read_settings((run / "config.gin").read_text())
    metrics, described = _json(run / "metrics.json"), _json(run / "config.json")
    named = next((name for name in ("decoder", "sasrec") if name in described), "tokenizer")
    kind, texts = KINDS[named], embeddings_of(settings) if named == "tokenizer" else _embeddings_of_stage_one(settings)
    data = [("dataset", f"{settings.get('dataset')}, {settings.get('dataset_split')}")]
    if named == "sasrec":
        data.append(("items", f"{len(json.loads((run / ITEMS).read_text())):,}"))
        texts = texts if settings.get("text_projection") else ""
    else:
        tokenizer = _json(run / "tokenizer.json")
        data.append(("items", f"{len(_list(tokenizer.get('item_keys'))):,}"))
        data.append(("codebooks", " + ".join(map(str, _list(tokenizer.get("codebook_sizes"))))))
    if texts:
        data.append(("item embeddings", texts))
    if named == "tokenizer":
        figures, load = _codebook(metrics), _loading_stage_one(name)
    else:
        users = next((row["users"] for _, rows in _parts(metrics) for row in rows.values() if "users" in row), None)
        data += [] if users is None else [("users", f"{users:,}")]
        barred = "barred" if settings.get("filter_history") else "not barred"
        data.append(("protocol", f"leave-one-out by time, full ranking, items of the history {barred}, selected on validation ndcg@10"))
        figures, load = _ranking(metrics), _loading_stage_two(name, kind)
    front = ModelCardData(library_name="tiger", license="other", license_name="code-mit-data-own-terms", tags=kind.tags)
    sections = [
        f"# {kind.title}: {settings.get('dataset')} {settings.get('dataset_split')}",
        kind.what,
        "## Data\n\n" + _table(("", ""), data),
        "## Figures\n\n" + figures,
        "## Loading\n\n" + load,
        "## Made with\n\n" + _made_with(_json(run / "environment.json")),
        "## Licence\n\n" + LICENCE,
    ]
    return str(ModelCard(f"---\n{front.to_yaml()}\n---\n\n" + without_local_paths("\n\n".join(sections)) + "\n"))


def read_settings(config: str) -> dict[str, object]:
    """The values of a run's config.gin; an Enum by its member's name."""
    values: dict[str, object] = {}
    for name, text in re.findall(r"^train\.(\w+) = (.*)$", config, re.MULTILINE):
        values[name] = text.rpartition(".")[2] if text.startswith("%") else ast.literal_eval(text)
    return values


def embeddings_of(settings: Mapping[str, object]) -> str:
    """Where stage 1 took its item embeddings from: the text model, or the name of the file; empty where the settings do not say."""
    return str(settings.get("item_embeddings") or settings.get("text_model") or "")


def without_local_paths(text: str) -> str:
    """The text with every absolute path cut to its last part: a user name or a server's layout is nobody's business."""

    def last_part(found: re.Match[str]) -> str:
        return re.split(r"[\\/]+", found.group().rstrip("\\/"))[-1]

    text = re.sub(rf"(?<='){ABSOLUTE}[^']+(?=')", last_part, text)  # quoted in config.gin, spaces included
    return re.sub(rf"(?<![^\s\"'=|`]){ABSOLUTE}[^\s\"'|`]+", last_part, text)


def _embeddings_of_stage_one(settings: Mapping[str, object]) -> str:
    """The same for a run of stage 2, where its stage 1 still lies on this machine."""
    path = Path(str(settings.get("pretrained_rqvae_path")))
    for folder in (path, path / str(settings.get("dataset_split"))):
        if (folder / "config.gin").exists():
            return embeddings_of(read_settings((folder / "config.gin").read_text()))
    return ""


def _codebook(metrics: Mapping[str, object]) -> str:
    """Stage 1: the health of the codes of all items."""
    usage, perplexity = _list(metrics.get("usage")), _list(metrics.get("perplexity"))
    levels = [(str(level), f"{used:.1%}", f"{even:.1f}") for level, (used, even) in enumerate(zip(usage, perplexity))]
    rest = [
        (name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
        for name in ("collision_rate", "largest_group", "reconstruction_loss", "held_out_reconstruction_loss")
        if (value := metrics.get(name)) is not None
    ]
    return _table(("level", "codes in use", "perplexity"), levels) + "\n\n" + _table(("all items", ""), rest)


def _ranking(metrics: Mapping[str, object]) -> str:
    """Stage 2: the model and the baselines, a table a part."""
    blocks = []
    for part, rows in _parts(metrics):
        columns = list(dict.fromkeys(name for row in rows.values() for name in row["metrics"]))
        lines = [(name, *(_figure(row["metrics"].get(column)) for column in columns)) for name, row in rows.items()]
        blocks.append(f"### {part}\n\n" + _table((part, *columns), lines))
        spans = [
            f"{name} {metric} [{span['low']:.4f}, {span['high']:.4f}]"
            for name, row in list(rows.items())[:1]
            for metric, span in row.get("intervals", {}).items()
        ]
        if spans:
            blocks.append(f"95 % intervals over users, for this checkpoint: {'; '.join(spans)}.")
    return "\n\n".join([*blocks, "Validation and test figures are not comparable with each other."])


def _parts(metrics: Mapping[str, object]) -> list[tuple[str, dict[str, dict]]]:
    """The parts that were evaluated, each with its rows by name."""
    return [(part, rows) for part in ("validation", "test") if isinstance(rows := metrics.get(part), dict)]


def _loading_stage_one(name: str) -> str:
    return (
        "From a checkout of the code:\n\n```python\nfrom modules.runtime.runs.hub import from_pretrained\n\n"
        f'coder, tokenizer = from_pretrained("{name}")\ntokenizer.sem_ids  # [items, codes], row i = tokenizer.info.item_keys[i]\n'
        "coder.get_semantic_ids(embeddings)  # codes of other items, without collision code\n```\n\n"
        f"Stage 2 on these IDs: `python train_decoder.py CONFIG pretrained_rqvae_path={name}`"
    )


def _loading_stage_two(name: str, kind: Kind) -> str:
    return (
        f'From a checkout of the code:\n\n```\npython recommend.py {name} --history "first item | second item"\n```\n\n'
        f"```python\nfrom modules.runtime.runs.hub import from_pretrained\nfrom modules.runtime.runs.{kind.searcher}\n\n"
        f'run = from_pretrained("{name}")\n'
        f"{kind.searcher.split()[-1]}(run).ask([[3, 5]]).item_ids  # best first; rows of run.{kind.keys}, as the histories are\n```"
    )


def _made_with(environment: Mapping[str, object]) -> str:
    changed = " with uncommitted changes" if environment.get("uncommitted_changes") else ""
    where = environment.get("gpu") or environment.get("processor") or environment.get("platform")
    rows = [
        ("command", f"`python {environment.get('command')}`"),
        ("commit", f"{environment.get('commit') or 'unknown'}{changed}"),
        ("on", f"{where}, torch {environment.get('torch')}, Python {environment.get('python')}"),
    ]
    return _table(("", ""), rows) + "\n\nconfig.gin holds every parameter."


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def _list(value: object) -> list:
    return value if isinstance(value, list) else []
