"""The scripts' front door: gin file + command line -> checked arguments of ``train``; mistakes as sentences, never a traceback.

``ginfile`` reads, ``names`` knows what other TIGER code calls things, ``values`` checks against the hints of the script's ``train``; what
they find, and what the script's own ``check`` finds, comes in one message before anything runs.
"""

import inspect
import logging
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from data.io.files import UNWRITABLE
from data.schemas import UserError
from modules.runtime.ginfile import ROOT, Binding, Reading
from modules.runtime.gintext import Name
from modules.runtime.manual import help_text
from modules.runtime.names import NONE_IS, translate
from modules.runtime.ranks import OtherProcessFailed
from modules.runtime.signals import Interrupted, raise_on_sigterm
from modules.runtime.spelling import did_you_mean
from modules.runtime.values import ENUMS, allowed, coerce, gin_value, takes_text

__all__ = ["ROOT", "check_settings", "config_text", "resolve", "run_script"]

Train = Callable[..., None]
Check = Callable[[Mapping[str, object]], Iterable[str]]
"""Given all parameters, yields a sentence for every rule between them that does not hold."""

FLAGS = ("--help", "-h", "--print-config")
EXAMPLE = "configs/rqvae_quick.gin"
LOG = logging.getLogger("tiger")


def run_script(train: Train, manual: str, argv: Sequence[str] | None = None, check: Check | None = None) -> int:
    """Parses ``SCRIPT CONFIG [name=value ...]``, runs ``train`` and returns 0, 2 for a mistake, or 128 + a signal's number.

    Args:
        train: the script's entry; its signature is the config's vocabulary, its docstring the parameters' meaning.
        manual: the script's docstring, shown by --help.
        argv: arguments without the program's name; those of the process if None.
        check: the script's rules between parameters.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _show_notes()
    raise_on_sigterm()
    try:
        if not arguments or "--help" in arguments or "-h" in arguments:
            _show(help_text(train, manual))
            return 0 if arguments else 2
        resolved = resolve(train, [argument for argument in arguments if argument != "--print-config"], check)
        if "--print-config" in arguments:
            _show(config_text(resolved))
            return 0
        train(**resolved)
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


def resolve(train: Train, arguments: Sequence[str], check: Check | None = None) -> dict[str, object]:
    """All parameters of ``train``, from its defaults, the config file and the overrides, checked. Old names are noted in the log.

    Raises:
        UserError: every mistake that was found, in one message.
    """
    resolved = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    constants = {f"{module}.{enum.__name__}.{name}": member for enum, module in ENUMS.items() for name, member in enum.__members__.items()}
    reading = Reading(resolved, constants)
    _read_arguments(reading, arguments)
    translated = translate(reading.bindings(), resolved, typing.cast(int, resolved.get("attn_heads", 1)))
    mistakes, faulty = [*reading.mistakes, *translated.mistakes], set()
    hints = typing.get_type_hints(train, include_extras=True)
    for binding in _in_force(translated.bindings, mistakes):
        try:
            resolved[binding.name] = _value(binding, hints[binding.name])
        except ValueError as error:
            faulty.add(binding.name)
            mistakes.append(f"{binding.where}train.{binding.name} {error}")
    if arguments:
        _stay_in_the_run(arguments[0], translated.bindings, resolved)
    # A rule that names a parameter whose own value is wrong would speak of its default.
    rules = check(resolved) if check else ()
    mistakes += [sentence for sentence in rules if faulty.isdisjoint(re.findall(r"train\.(\w+)", sentence))]
    if mistakes:
        raise UserError(*sorted(dict.fromkeys(mistakes), key=_place))
    for note in translated.notes:
        LOG.info(note)
    return resolved


def _stay_in_the_run(config: str, bindings: Sequence[Binding], resolved: dict[str, object]) -> None:
    """A run directory's own config.gin means that directory, wherever it was moved to and from wherever it is called."""
    folder = Path(config).parent
    given = {binding.name for binding in bindings if not binding.file}
    if Path(config).name == "config.gin" and (folder / "environment.json").exists() and not given & {"save_dir_root", "run_name"}:
        folder = folder.resolve()
        resolved |= {"save_dir_root": str(folder.parent), "run_name": folder.name}


def _place(mistake: str) -> tuple[bool, str, int]:
    """Sorts mistakes by file and line, those without a line last."""
    place = re.match(r"(.*?), line (\d+): ", mistake)
    return (False, place[1], int(place[2])) if place else (True, "", 0)


def check_settings(train: Train, settings: Mapping[str, object], check: Check) -> None:
    """Refuses arguments of ``train`` that a config could not have given: for callers from Python.

    Raises:
        UserError: all mistakes.
    """
    mistakes = []
    for name, hint in typing.get_type_hints(train, include_extras=True).items():
        try:
            if name in settings:
                coerce(settings[name], hint)
        except ValueError as error:
            mistakes.append(f"train.{name} {error}")
    mistakes = mistakes or list(check(settings))
    if mistakes:
        raise UserError(*mistakes)


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
    """The binding's value as the parameter takes it; raises ValueError with the rest of a sentence."""
    if isinstance(binding.value, Name):
        unknown = binding.value
        raise ValueError(f"is {unknown.text}, {unknown.problem}; it must be {allowed(hint)}{unknown.near}")
    if binding.value is None and binding.name in NONE_IS:
        return NONE_IS[binding.name]
    return coerce(binding.typed if binding.typed and takes_text(hint) else binding.value, hint)


def config_text(resolved: Mapping[str, object]) -> str:
    """The resolved parameters as a gin file that gives the same run."""
    imports = "".join(f"import {module}\n" for module in sorted(ENUMS.values()))
    return imports + "\n" + "\n".join(f"train.{name} = {gin_value(value)}" for name, value in sorted(resolved.items())) + "\n"
