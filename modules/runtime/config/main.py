"""The scripts' front door: gin file + command line -> the checked options of ``train``; mistakes as sentences, never a traceback.

``gin`` reads, ``aliases`` knows what other TIGER code calls things, ``declaration`` checks; what they find comes in one message before
anything runs.
"""

import logging
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from data.io.files import UNWRITABLE
from data.schemas import UserError
from modules.runtime.config.aliases import NONE_IS, translate
from modules.runtime.config.declaration import OptionMistakes, Options, declared_options, hints_of, mentioned
from modules.runtime.config.gin import ROOT, Binding, Reading
from modules.runtime.config.grammar import Name
from modules.runtime.config.help import help_text
from modules.runtime.config.suggest import did_you_mean
from modules.runtime.config.types import ENUMS, allowed, gin_value, takes_text
from modules.runtime.training.processes import OtherProcessFailed
from modules.runtime.training.signals import Interrupted, raise_on_sigterm

__all__ = ["ROOT", "config_text", "resolve", "run_script"]

Kind = TypeVar("Kind", bound=Options)

FLAGS = ("--help", "-h", "--print-config")
EXAMPLE = "configs/rqvae_quick.gin"
LOG = logging.getLogger("tiger")


def run_script(train: Callable[[Kind], None], manual: str, argv: Sequence[str] | None = None) -> int:
    """Parses ``SCRIPT CONFIG [name=value ...]``, runs ``train`` and returns 0, 2 for a mistake, or 128 + a signal's number.

    Args:
        train: the script's entry; takes the script's options, whose class its type hint names.
        manual: the script's docstring, shown by --help.
        argv: arguments without the program's name; those of the process if None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    kind: type[Kind] = typing.get_type_hints(train)["options"]
    _show_notes()
    raise_on_sigterm()
    try:
        if not arguments or "--help" in arguments or "-h" in arguments:
            _show(help_text(kind, manual))
            return 0 if arguments else 2
        options = resolve(kind, [argument for argument in arguments if argument != "--print-config"])
        if "--print-config" in arguments:
            _show(config_text(options.settings()))
            return 0
        train(options)
        return 0
    except UserError as error:
        if not isinstance(error, OtherProcessFailed):
            who = f" (process {rank})" if (rank := os.environ.get("RANK", "0")) != "0" else ""
            print(f"error{who}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        interrupted = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        print(f"\n{interrupted.message}", file=sys.stderr)
        return 128 + interrupted.number
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(f"error: cannot write {error.filename or 'a file'} ({error.strerror}); the same command goes on when it can", file=sys.stderr)
        return 2


def _show(text: str) -> None:
    """Prints a long text; a reader that has seen enough of it, such as ``head``, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more when it ends


def _show_notes() -> None:
    """Lets what the data loaders noticed (repaired rows, missing titles) reach the console; other libraries' loggers stay as they are."""
    if not LOG.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("note     %(message)s"))
        LOG.addHandler(handler)
    LOG.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)  # the first of several processes tells


def resolve(kind: type[Kind], arguments: Sequence[str]) -> Kind:
    """A script's options, from their defaults, the config file and the overrides. Old names are noted in the log.

    Args:
        kind: the script's options.
        arguments: the config file, then name=value.

    Raises:
        UserError: every mistake that was found, in one message.
    """
    declared, hints = declared_options(kind), hints_of(kind)
    constants = {f"{module}.{enum.__name__}.{name}": member for enum, module in ENUMS.items() for name, member in enum.__members__.items()}
    reading = Reading(declared, constants)
    _read_arguments(reading, arguments)
    heads = declared["attn_heads"].default if "attn_heads" in declared else 1
    translated = translate(reading.bindings(), declared, typing.cast(int, heads))
    mistakes, given, where, unknown = [*reading.mistakes, *translated.mistakes], {}, {}, set()
    for binding in _in_force(translated.bindings, mistakes):
        where[binding.name] = binding.where
        if isinstance(binding.value, Name):
            unknown.add(binding.name)
            name, hint = binding.value, hints[binding.name]
            mistakes.append(f"{binding.where}train.{binding.name} is {name.text}, {name.problem}; it must be {allowed(hint)}{name.near}")
        else:
            given[binding.name] = _value(binding, hints[binding.name])
    if arguments:
        given |= _run_directory(arguments[0], translated.bindings)
    try:
        options = kind(**given)
    except OptionMistakes as error:
        mistakes += [f"{where.get(name, '')}train.{name} {fault}" for name, fault in error.faults.items()]
        mistakes += [sentence for sentence in error.rules if not mentioned(sentence) & unknown]
    if mistakes:
        raise UserError(*sorted(dict.fromkeys(mistakes), key=_place))
    for note in translated.notes:
        LOG.info(note)
    return options


def _run_directory(config: str, bindings: Sequence[Binding]) -> dict[str, object]:
    """A run directory's own config.gin means that directory, wherever it was moved to and from wherever it is called."""
    folder = Path(config).parent
    given = {binding.name for binding in bindings if not binding.file}
    if Path(config).name != "config.gin" or not (folder / "environment.json").exists() or given & {"save_dir_root", "run_name"}:
        return {}
    folder = folder.resolve()
    return {"save_dir_root": str(folder.parent), "run_name": folder.name}


def _place(mistake: str) -> tuple[bool, str, int]:
    """Sorts mistakes by file and line, those without a line last."""
    place = re.match(r"(.*?), line (\d+): ", mistake)
    return (False, place[1], int(place[2])) if place else (True, "", 0)


def _read_arguments(reading: Reading, arguments: Sequence[str]) -> None:
    """Reads the config file and the overrides of a command line."""
    config, *rest = arguments if arguments and not _is_override(arguments[0]) else ("", *arguments)
    if config:
        reading.read_file(config)
    else:
        reading.mistakes.append(f"no config file given: write SCRIPT CONFIG [name=value ...], for example {EXAMPLE}")
    flag = ""
    for argument in rest:
        name, equals, value = (part.strip() for part in argument.partition("="))
        if argument.startswith("-"):
            bare = name.lstrip("-").replace("-", "_")
            known = bare in reading.parameters
            meant = f"; parameters are written {bare}={value or 'VALUE'}" if known else did_you_mean(name, FLAGS)
            reading.mistakes.append(f"there is no flag {name}{meant or '; there are --help and --print-config'}")
            flag = bare if known and not equals else ""
            continue
        if equals and name:
            reading.read_override(name, value)
        elif argument.endswith(".gin"):
            reading.mistakes.append(f"a run takes one config file, and {argument!r} is a second; include one in the other")
        elif not flag:  # the value of a parameter that was written as a flag has been answered with it
            reading.mistakes.append(f"cannot read {argument!r} on the command line: write overrides as name=value, lists without spaces")
        flag = ""


def _is_override(argument: str) -> bool:
    return argument.startswith("-") or re.match(r"[\w.]+=", argument) is not None


def _in_force(bindings: Sequence[Binding], mistakes: list[str]) -> list[Binding]:
    """The last binding of each parameter; two that differ within one file are a mistake (on a command line the last counts)."""
    last: dict[str, Binding] = {}
    for binding in bindings:
        before = last.get(binding.name)
        if before and before.file == binding.file != "" and before.value != binding.value:
            mistakes.append(f"{binding.where}train.{binding.name} has another value on line {before.line}; keep one of them")
        last[binding.name] = binding
    return list(last.values())


def _value(binding: Binding, hint: object) -> object:
    """The binding's value as the option's type reads it."""
    if binding.value is None and binding.name in NONE_IS:
        return NONE_IS[binding.name]
    return binding.typed if binding.typed and takes_text(hint) else binding.value


def config_text(resolved: Mapping[str, object]) -> str:
    """Resolved options as a gin file that gives the same run."""
    imports = "".join(f"import {module}\n" for module in sorted(ENUMS.values()))
    return imports + "\n" + "\n".join(f"train.{name} = {gin_value(value)}" for name, value in sorted(resolved.items())) + "\n"
