"""What a parameter may be: ranges and choices as type hints of ``train``, values checked against them, and gin's spelling of them.

A hint is int, float, bool, str, an Enum, a Literal of strings, a tuple of one of these, some of them or None joined by ``|``, and Annotated
with a Range or a Pattern.
"""

import ast
import math
import re
import types
import typing
from enum import Enum
from typing import Annotated, Literal, NamedTuple

from data.processed import RecDataset
from modules.quantize import QuantizeForwardMode
from modules.runtime.config.suggest import did_you_mean, one_of

ENUMS: dict[type[Enum], str] = {RecDataset: "data.processed", QuantizeForwardMode: "modules.quantize"}
"""The enums a config can name, with the module that their ``%constants`` are known by."""


class Range(NamedTuple):
    """Numbers from ``low`` up to, not including, ``high``."""

    low: float
    high: float
    said: str  # continues "a whole number, ..."

    def holds(self, value: object) -> bool:
        return isinstance(value, (int, float)) and self.low <= value < self.high


class Pattern(NamedTuple):
    """Texts that match a regular expression as a whole."""

    regex: str
    said: str  # continues "it must be ..."

    def holds(self, value: object) -> bool:
        return isinstance(value, str) and re.fullmatch(self.regex, value, re.DOTALL) is not None


Count = Annotated[int, Range(1, math.inf, "at least 1")]
Natural = Annotated[int, Range(0, math.inf, "at least 0")]
Positive = Annotated[float, Range(math.ulp(0.0), math.inf, "above 0")]
NonNegative = Annotated[float, Range(0, math.inf, "at least 0")]
Share = Annotated[float, Range(0, 1, "at least 0 and below 1")]
UnitInterval = Annotated[float, Range(0, math.nextafter(1.0, 2.0), "from 0 to 1")]
Seed = Annotated[int, Range(0, 2**32, "from 0 to 4294967295")]
Text = Annotated[str, Pattern(r"(?!None$).*\S.*", "text that is not empty")]
FolderName = Annotated[str, Pattern(r"(?!\.\.?$)(?!None$)[^/\\\0]*[^/\\\0\s][^/\\\0]*", "the name of one directory, without slashes")]
RunPath = Annotated[
    Text, Pattern(r".*(?<!\.pt)(?<!\.pth)(?<!\.ckpt)", "the path of a run directory (checkpoint files of other code cannot be read)")
]
Device = Annotated[str, Pattern(r"auto|cpu|mps|cuda(:\d+)?", "'auto', 'cuda', 'cuda:1', 'mps' or 'cpu'")]


def coerce(value: object, hint: object) -> object:
    """``value`` as ``hint`` asks for it: 1e4 becomes an int, a list a tuple, a member's name an Enum, "None" and "" None where that may be.

    Raises:
        ValueError: it cannot; the message continues a sentence that begins with the parameter's name.
    """
    try:
        return _coerce(value, hint)
    except _NotAllowed:
        near = did_you_mean(value.rpartition(".")[2], choices(hint)) if isinstance(value, str) else ""
        raise ValueError(f"is {value!r}; it must be {allowed(hint)}{near}") from None


class _NotAllowed(Exception):
    pass


def _coerce(value: object, hint: object) -> object:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _coerce(value, arguments[0])
        if not all(rule.holds(value) for rule in arguments[1:]):
            raise _NotAllowed
        return value
    if origin in (types.UnionType, typing.Union):
        if type(None) in arguments and value in (None, "", "None", "none", "null"):
            return None
        return _first_that_fits(value, _without_none(hint))
    if origin is tuple:
        return tuple(_coerce(element, arguments[0]) for element in _as_list(value))
    if origin is Literal:
        return _accept(value, value in arguments)
    if hint is bool and isinstance(value, str):
        _accept(value, value.casefold() in ("true", "false"))
        return value.casefold() == "true"
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and issubclass(hint, Enum) and isinstance(value, str):
        member = value.rpartition(".")[2]
        _accept(value, member in hint.__members__)
        return hint[member]
    return _accept(value, isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)))


def _first_that_fits(value: object, hints: typing.Sequence[object]) -> object:
    for hint in hints:
        try:
            return _coerce(value, hint)
        except _NotAllowed:
            continue
    raise _NotAllowed


def _accept(value: object, is_allowed: bool) -> object:
    if not is_allowed:
        raise _NotAllowed
    return value


def _as_list(value: object) -> typing.Sequence[object]:
    """A list as it is, or one that a command line spelled ``512,256``."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise _NotAllowed from None
    if not isinstance(value, (list, tuple)):
        raise _NotAllowed
    return value


def allowed(hint: object) -> str:
    """What a parameter with this hint takes, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return arguments[-1].said if isinstance(arguments[-1], Pattern) else f"{allowed(arguments[0])}, {arguments[-1].said}"
    if origin in (types.UnionType, typing.Union):
        said = ", or ".join(map(allowed, _without_none(hint)))
        return f"{said}, or None" if type(None) in arguments else said
    if origin is tuple:
        return f"a list such as [512, 256], each {allowed(arguments[0])}"
    if origin is Literal:
        return one_of(map(repr, arguments))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return one_of(gin_value(member) for member in hint)
    return {int: "a whole number", float: "a number", bool: "True or False", str: "text"}[typing.cast(type, hint)]


def choices(hint: object) -> list[str]:
    """The names among which a value of this hint is chosen; empty where it is not a choice."""
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return list(hint.__members__)
    return [name for argument in typing.get_args(hint) if not isinstance(argument, (Range, Pattern)) for name in choices(argument)]


def takes_text(hint: object) -> bool:
    """May the parameter be any text? Then ``2024`` on the command line is text too."""
    if typing.get_origin(hint) in (Annotated, types.UnionType, typing.Union):
        return any(takes_text(argument) for argument in typing.get_args(hint))
    return hint is str


def gin_value(value: object) -> str:
    """A value as a gin file spells it."""
    if isinstance(value, Enum):
        return f"%{ENUMS[type(value)]}.{type(value).__name__}.{value.name}"
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _without_none(hint: object) -> list[object]:
    return [option for option in typing.get_args(hint) if option is not type(None)]
