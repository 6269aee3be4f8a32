"""What a script's parameters mean: its --help and the README's tables, both from the signature and the docstring of ``train``."""

import inspect
import re
import typing
from collections.abc import Callable

from modules.runtime.config.types import allowed, gin_value


def parameter_docs(train: Callable[..., None]) -> dict[str, str]:
    """Meaning of every parameter of ``train``, from the Args section of its docstring.

    Raises:
        ValueError: a parameter without a line there.
    """
    section = inspect.cleandoc(train.__doc__ or "").partition("Args:")[2]
    docs = {name: " ".join(text.split()) for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)}
    missing = [name for name in inspect.signature(train).parameters if name not in docs]
    if missing:
        raise ValueError(f"undocumented parameters: {missing}")
    return docs


def parameter_table(train: Callable[..., None]) -> str:
    """A Markdown table of name, default and meaning: what the README shows."""
    docs, parameters = parameter_docs(train), inspect.signature(train).parameters
    rows = [f"| `{name}` | `{gin_value(parameter.default)}` | {docs[name]} |" for name, parameter in parameters.items()]
    return "\n".join(["| `train.` | default | meaning |", "|---|---|---|", *rows])


def help_text(train: Callable[..., None], manual: str) -> str:
    """The script's manual, then each parameter with its default, what it takes, and what it means."""
    docs, parameters = parameter_docs(train), inspect.signature(train).parameters
    hints = typing.get_type_hints(train, include_extras=True)
    lines = [
        f"  {name} = {gin_value(parameter.default)}\n      {docs[name]}\n      Takes {allowed(hints[name])}."
        for name, parameter in parameters.items()
    ]
    heading = "Parameters (train.NAME = VALUE in a gin file, NAME=VALUE on the command line) and their defaults:"
    return "\n".join([manual.strip(), "", heading, "", *lines])
