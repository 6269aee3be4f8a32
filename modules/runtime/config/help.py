"""What a script's options mean: its --help and the tables of parameters, both from their declarations."""

from dataclasses import Field

from modules.runtime.config.declaration import Options, declared_options, hints_of
from modules.runtime.config.types import allowed, gin_value


def parameter_table(kind: type[Options]) -> str:
    """A Markdown table of name, default and meaning."""
    rows = [f"| `{name}` | `{gin_value(o.default)}` | {meaning(o)} |" for name, o in declared_options(kind).items()]
    return "\n".join(["| `train.` | default | meaning |", "|---|---|---|", *rows])


def help_text(kind: type[Options], manual: str) -> str:
    """The script's manual, then each option with its default, what it takes, and what it means."""
    hints = hints_of(kind)
    lines = [
        f"  {name} = {gin_value(declared.default)}\n      {meaning(declared)}\n      Takes {allowed(hints[name])}."
        for name, declared in declared_options(kind).items()
    ]
    heading = "Parameters (train.NAME = VALUE in a gin file, NAME=VALUE on the command line) and their defaults:"
    return "\n".join([manual.strip(), "", heading, "", *lines])


def meaning(declared: Field[object]) -> str:
    """What an option does, and with which model where not with all."""
    only = declared.metadata["only"]
    return declared.metadata["meaning"] + (f' Only with model = "{only}".' if only else "")
