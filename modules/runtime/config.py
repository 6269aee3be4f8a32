"""The scripts' front door: gin file + command line -> checked arguments of ``train``; mistakes as sentences, never a traceback.

gin reads the file (https://github.com/google/gin-config); names, types and spelling are checked here against the signature of the script's
``train``, all of them before anything runs, and reported together.
"""

import ast
import difflib
import inspect
import logging
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path

import gin

from data.processed import RecDataset
from data.schemas import UserError
from modules.quantize import QuantizeForwardMode

ROOT = Path(__file__).resolve().parents[2]
ENUMS: dict[type[Enum], str] = {RecDataset: "data.processed", QuantizeForwardMode: "modules.quantize"}

ABSENT = {
    "wandb_logging": "experiment trackers are not built in yet; every figure is in the run directory's log.jsonl",
    "vae_codebook_normalize": "a setting of train_rqvae.py; stage 2 takes the codes as that run left them",
    "vae_sim_vq": "a setting of train_rqvae.py; stage 2 takes the codes as that run left them",
    "vae_n_cat_feats": "a setting of train_rqvae.py; stage 2 does not read the items' features",
    "split_batches": "a run is one process for now, so there is nothing to split",
    "gradient_accumulate_every": "gradient accumulation is not built in yet; raise train.batch_size instead",
    "push_vae_to_hf": "sharing through the hub is not built in yet; copy the run directory",
    "vae_hf_model_name": "sharing through the hub is not built in yet; copy the run directory and set train.pretrained_rqvae_path",
    "train_data_subsample": "every (history, next item) pair is trained on once an epoch",
    "model_jagged_mode": "batches are grouped by length, so there is hardly any padding to leave out",
}
"""Names that users of other TIGER code know, and what is true of them here."""

HARMLESS = {"gradient_accumulate_every": (1,), "split_batches": (True,), "model_jagged_mode": (True,)}
"""Their values that ask for nothing that is missing, beside False, 0 and None."""


@gin.configurable("train")
def _bound(**arguments: object) -> dict[str, object]:
    """Receives whatever the config binds to ``train``; the names are checked afterwards, against the script's own signature."""
    return arguments


for _enum, _module in ENUMS.items():
    gin.constants_from_enum(_enum, module=_module)
gin.add_config_file_search_path(str(ROOT))


def run_script(train: Callable[..., None], manual: str, argv: Sequence[str] | None = None) -> int:
    """Parses ``SCRIPT CONFIG [name=value ...]``, runs ``train`` and returns the exit code: 0, 2 for a user's mistake, 130 when interrupted.

    Args:
        train: the script's entry; its signature is the config's vocabulary, its docstring the parameters' meaning.
        manual: the script's docstring, shown by --help.
        argv: arguments without the program's name; those of the process if None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _show_notes()
    try:
        if not arguments or "--help" in arguments or "-h" in arguments:
            print(f"{manual.strip()}\n\nParameters (train.NAME in a gin file, NAME=VALUE on the command line):\n\n{_parameter_text(train)}")
            return 0 if arguments else 2
        print_only = "--print-config" in arguments
        resolved = resolve(train, [argument for argument in arguments if argument != "--print-config"])
        if print_only:
            print(config_text(resolved))
            return 0
        train(**resolved)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _show_notes() -> None:
    """Lets what the data loaders noticed (repaired rows, missing titles) reach the console; other libraries' loggers stay as they are."""
    logger = logging.getLogger("tiger")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("note     %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def resolve(train: Callable[..., None], arguments: Sequence[str]) -> dict[str, object]:
    """All parameters of ``train``, from its defaults, the config file and the overrides, checked.

    Raises:
        UserError: every mistake that was found, in one message.
    """
    if not arguments:
        raise UserError("no config file given: write SCRIPT CONFIG [name=value ...], for example configs/rqvae_quick.gin")
    config, *overrides = arguments
    path = Path(config)
    if not path.is_file():
        raise UserError(f"no config file {config!r}{_suggestion(config, [str(p) for p in Path(path.parent).glob('*.gin')])}")
    lines = []
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"cannot read {override!r} on the command line: write overrides as name=value, for example seed=1")
        lines.append(f"train.{name.strip().removeprefix('train.')} = {_gin_literal(value.strip())}")
    gin.clear_config()
    try:
        gin.parse_config_files_and_bindings([config], lines)
        bound = _bound()
    except UserError:
        raise
    except Exception as error:  # whatever gin raises is about the text it was given
        raise UserError(f"{config}: {_gin_message(error)}") from error
    signature = inspect.signature(train)
    hints = typing.get_type_hints(train)
    resolved = {name: parameter.default for name, parameter in signature.parameters.items()}
    mistakes = []
    for name, value in bound.items():
        if name in ABSENT and name not in resolved:
            if value not in (False, None, *HARMLESS.get(name, ())):
                mistakes.append(f"train.{name}: {ABSENT[name]}; remove the line")
        elif name not in resolved:
            mistakes.append(f"there is no parameter train.{name}{_suggestion(name, list(resolved))}; --help lists them all")
        else:
            try:
                resolved[name] = coerce(value, hints[name])
            except TypeError as error:
                mistakes.append(f"train.{name} {error}")
    if mistakes:
        raise UserError("; ".join(mistakes) if len(mistakes) == 1 else "several mistakes:" + "".join(f"\n  - {line}" for line in mistakes))
    return resolved


def coerce(value: object, hint: object) -> object:
    """``value`` as the type ``hint`` asks for: 1e4 becomes an int, a list a tuple, a member's name an Enum.

    Raises:
        TypeError: it cannot; the message continues a sentence that begins with the parameter's name.
    """
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return None if value is None else coerce(value, options[0])
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"must be a list, for example [512, 256]: got {value!r}")
        return tuple(coerce(element, typing.get_args(hint)[0]) for element in value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        if isinstance(value, str) and value.rpartition(".")[2] in hint.__members__:
            return hint[value.rpartition(".")[2]]
        if not isinstance(value, hint):
            members = ", ".join(f"%{ENUMS[hint]}.{hint.__name__}.{member}" for member in hint.__members__)
            raise TypeError(f"is {value!r}; it can be one of {members}")
        return value
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(hint, type) or not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise TypeError(f"must be {getattr(hint, '__name__', hint)}: got {value!r}")
    return value


def config_text(resolved: dict[str, object]) -> str:
    """The resolved parameters as a gin file that gives the same run."""
    imports = "".join(f"import {module}\n" for module in sorted(ENUMS.values()))
    return imports + "\n" + "\n".join(f"train.{name} = {_gin_value(value)}" for name, value in sorted(resolved.items())) + "\n"


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
    rows = [f"| `{name}` | `{_gin_value(parameter.default)}` | {docs[name]} |" for name, parameter in parameters.items()]
    return "\n".join(["| `train.` | default | meaning |", "|---|---|---|", *rows])


def _parameter_text(train: Callable[..., None]) -> str:
    docs, parameters = parameter_docs(train), inspect.signature(train).parameters
    return "\n".join(f"  {name} = {_gin_value(parameter.default)}\n      {docs[name]}" for name, parameter in parameters.items())


def _gin_value(value: object) -> str:
    if isinstance(value, Enum):
        return f"%{ENUMS[type(value)]}.{type(value).__name__}.{value.name}"
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _gin_literal(text: str) -> str:
    """A command line's value as gin reads it: literals and %constants as they are, the rest as strings: paths need no quotes."""
    if text.startswith("%"):
        return text
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return repr(text)
    return text


def _gin_message(error: Exception) -> str:
    """gin's complaint on one line, with the members listed where a constant was not found."""
    message = " ".join(str(error).split())
    for enum, module in ENUMS.items():
        if enum.__name__ in message:
            members = ", ".join(f"%{module}.{enum.__name__}.{member}" for member in enum.__members__)
            return f"{message.split(' In file')[0]} Here it can be one of {members}"
    if isinstance(error, SyntaxError):
        what = str(error.msg).splitlines()[0].partition(":")[0]
        return f"line {error.lineno} cannot be read ({what}): values are Python literals, so text and paths stand in quotes"
    return message


def _suggestion(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {near[0]!r}?" if near else ""
