"""gin's grammar, with recovery: a text becomes statements, and one that cannot be read costs that statement only.

The grammar is gin's own parser (https://github.com/google/gin-config), which by itself stops at the first mistake.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from gin import config_parser


class Name(NamedTuple):
    """A ``%macro``, ``%constant`` or ``@reference`` as a file spells it; in a Binding one that means nothing here."""

    text: str
    problem: str = ""  # continues "is TEXT, ..."
    near: str = ""  # a suggestion that ends the sentence


class _Names(config_parser.ParserDelegate):
    """Keeps names for later: a macro may be defined behind its use."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Name:
        return Name(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name: str) -> Name:
        return Name(f"%{macro_name}")


Statement: TypeAlias = config_parser.BindingStatement | config_parser.ImportStatement | config_parser.IncludeStatement


class Unreadable(NamedTuple):
    """A line that is no statement."""

    line: int
    text: str
    remedy: str


def statements(text: str) -> tuple[list[tuple[int, Statement]], list[Unreadable]]:
    """Every statement of a gin text with the line it begins on, and what cannot be read."""
    try:
        return _parse(text), []
    except Exception:  # whatever the tokenizer and the parser raise; read again in pieces to find all of it
        found: list[tuple[int, Statement]] = []
        unreadable = []
        for first, piece in _pieces(text):
            try:
                found += [(first + line - 1, statement) for line, statement in _parse(piece)]
            except Exception as error:
                offset = min((getattr(error, "lineno", None) or 1) - 1, piece.count("\n"))
                line = piece.split("\n")[offset].strip()
                unreadable.append(Unreadable(first + offset, line, _remedy(line)))
        return found, unreadable


def _parse(text: str) -> list[tuple[int, Statement]]:
    """The statements of a text with the line each begins on; raises whatever gin's parser and Python's tokenizer raise."""
    statements = config_parser.ConfigParser(text, _Names())
    return [(found.location.line_num, found) for found in statements if not isinstance(found, config_parser.BlockDeclaration)]


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Cuts a text before every line that can begin a statement; lines of a ``train:`` block become ``train.name = value``."""
    first, piece, heading = 1, [""], ""
    for number, line in enumerate(text.split("\n"), 1):
        block = re.fullmatch(r"([\w./]+):\s*(#.*)?", line)
        if line.strip() and not line[0].isspace() and not line.startswith("#"):
            heading = ""
        if block or re.match(r"[A-Za-z_%@]|[^\s#].*=", line) or (heading and re.match(r"\s+\w+\s*=", line)):
            yield first, "\n".join(piece)
            first, piece = number, ["" if block else heading + line.strip()]
        else:
            piece.append(line)
        heading = f"{block[1]}." if block else heading
    yield first, "\n".join(piece)


def _remedy(line: str) -> str:
    """What to write in place of a line that gin cannot read."""
    name, equals, value = (part.strip() for part in line.partition("="))
    value = re.sub(r"\s#.*", "", value).strip()
    right = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(value.casefold())
    if line.startswith("include"):
        return 'write include "configs/FILE.gin", the path in quotes'
    if not equals:
        return "write train.NAME = VALUE"
    if not re.fullmatch(r"[A-Za-z_][\w./]*", name):
        return f"{name!r} is no name of a parameter; write train.NAME = VALUE"
    if not value:
        return f"the value is missing; write {name} = VALUE"
    if right:
        return f"write {name} = {right}"
    if value.count('"') % 2 or value.count("'") % 2:
        return "a quote is opened and not closed"
    if any(value.count(opening) != value.count(closing) for opening, closing in ("[]", "()", "{}")):
        return "a bracket is opened and not closed"
    if re.fullmatch(r"[^\"'\[\](){}]*[A-Za-z~/][^\"'\[\](){}]*", value):
        return f'text and paths stand in quotes: {name} = "{value}"'
    return "a value is a number, a text in quotes, True, False, None, a list of these, or a %name; nothing is calculated"
