"""Reading gin: a config file, what it includes, and the command line become bindings of ``train``; every mistake is a sentence.

gin's own parser (https://github.com/google/gin-config) says what a statement is. What statements mean is decided here, because gin itself
stops at the first mistake and lets others pass: unused macros, a parameter bound twice, a scope that nothing opens.
"""

import ast
import importlib.util
import re
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeAlias

from gin import config_parser

from modules.runtime.spelling import did_you_mean, nearest, one_of

ROOT = Path(__file__).resolve().parents[2]


class Name(NamedTuple):
    """A ``%macro``, ``%constant`` or ``@reference`` as a file spells it; in a Binding one that means nothing here."""

    text: str
    problem: str = ""  # continues "is TEXT, ..."
    near: str = ""  # a suggestion that ends the sentence


class Binding(NamedTuple):
    """A parameter and the value that a line gives it."""

    name: str
    value: object
    file: str = ""  # as the user named it; empty for the command line
    line: int = 0
    typed: str | None = None  # what stood on the command line, where it reads as a number, a list, ...

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.line}: " if self.file else ""


class _Names(config_parser.ParserDelegate):
    """Keeps names for later: a macro may be defined behind its use."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Name:
        return Name(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name: str) -> Name:
        return Name(f"%{macro_name}")


Statement: TypeAlias = config_parser.BindingStatement | config_parser.ImportStatement | config_parser.IncludeStatement


class Reading:
    """A config file and its includes, read statement by statement; one that cannot be read does not hide the others.

    Args:
        parameters: those of ``train``, for suggestions.
        constants: full name of every %constant, such as data.processed.RecDataset.AMAZON, and its value.

    ``mistakes`` holds a sentence for each, ``bindings()`` what was bound, in the order of reading.
    """

    def __init__(self, parameters: Collection[str], constants: Mapping[str, Enum]) -> None:
        self.parameters, self.constants = parameters, constants
        self.mistakes: list[str] = []
        self._bindings: list[Binding] = []
        self._macros: dict[str, Binding] = {}
        self._own_macros: set[str] = set()  # of the config itself, not of its includes
        self._used: set[str] = set()

    def read_file(self, path: str, asked_by: Path | None = None, open_files: tuple[Path, ...] = (), where: str = "") -> None:
        """Reads ``path``, looked for in the working directory, the repository and the folder of the file that asks for it."""
        folders = [Path(), ROOT, *([asked_by.parent] if asked_by else [])]
        found = next((folder / path for folder in folders if (folder / path).exists()), None)
        if found is None:
            self.mistakes.append(f"{where}there is no config file {path!r}{did_you_mean(path, _configs_near(path, folders))}")
        elif found.is_dir():
            inside = sorted(file.name for file in found.glob("*.gin"))
            self.mistakes.append(f"{where}{path!r} is a directory; give one of its config files{': ' + one_of(inside) if inside else ''}")
        elif found.resolve() in open_files:
            self.mistakes.append(f"{where}{path!r} includes itself by way of this line; take the include out of one of the files")
        else:
            try:
                text = found.read_text(encoding="utf-8-sig")
            except UnicodeDecodeError as error:
                self.mistakes.append(f"{where}{path!r} is not UTF-8 text (byte {error.start + 1}); save it as UTF-8")
            except OSError as error:
                self.mistakes.append(f"{where}{path!r} cannot be read: {error.strerror}")
            else:
                self._take(text, path, found, (*open_files, found.resolve()))

    def read_override(self, name: str, value: str) -> None:
        """Takes ``name=value`` of the command line: text needs no quotes there."""
        try:
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            parsed = Name(value) if value.startswith(("%", "@")) else value
        scoped, _, parameter = (name if "." in name or "/" in name else f"train.{name}").rpartition(".")
        scope, _, selector = scoped.rpartition("/")
        self._bind(scope, selector, Binding(parameter, parsed, typed=None if isinstance(parsed, (str, Name)) else value))

    def bindings(self) -> list[Binding]:
        """Everything bound, macros and constants replaced by their values; what means nothing here stays a Name and says why."""
        resolved = [binding._replace(value=self._resolve(binding.value)) for binding in self._bindings]
        for name, macro in self._macros.items():
            # An included file of common macros may define more than a config uses; a parameter's name is a forgotten "train." anywhere.
            if name not in self._used and (name in self._own_macros or name in self.parameters):
                meant = nearest(name, self.parameters)
                mend = f"a parameter is written train.{meant} = ..." if meant else f"use it as %{name} or remove it"
                self.mistakes.append(f"{macro.where}{name} is a macro that nothing uses; {mend}")
        return resolved

    # -- statements -----------------------------------------------------------------------------------------------------------------------

    def _take(self, text: str, shown: str, path: Path, open_files: tuple[Path, ...]) -> None:
        for line, statement in self._statements(text, shown):
            where = f"{shown}, line {line}: "
            if isinstance(statement, config_parser.IncludeStatement):
                start = len(self._bindings)
                self.read_file(statement.filename, path, open_files, where)
                self._note_lost(shown, start, where)
            elif isinstance(statement, config_parser.ImportStatement):
                self._import(statement.module, where)
            elif not statement.arg_name:
                self._define(Binding(statement.selector, statement.value, shown, line), own=len(open_files) == 1)
            else:
                self._bind(statement.scope, statement.selector, Binding(statement.arg_name, statement.value, shown, line))

    def _note_lost(self, shown: str, start: int, where: str) -> None:
        """Refuses an include (the bindings from ``start`` on) that silently takes back what the including file bound above it."""
        included = {binding.name: binding.value for binding in self._bindings[start:]}
        for binding in self._bindings[:start]:
            if binding.file == shown and included.get(binding.name, binding.value) != binding.value:
                self.mistakes.append(
                    f"{where}the included file binds train.{binding.name} again and line {binding.line} is lost; put the include first"
                )

    def _bind(self, scope: str, selector: str, binding: Binding) -> None:
        written = f"{selector}.{binding.name}"
        if scope:
            self.mistakes.append(f"{binding.where}{scope}/{written} has a scope, which nothing here opens; write {written}")
        elif selector.rpartition(".")[2] == "train":
            self._bindings.append(binding)
        elif did_you_mean(selector, ["train"]):
            self.mistakes.append(f"{binding.where}there is no {written}; did you mean 'train.{binding.name}'?")
        else:
            meant = f"write train.{binding.name} or " if binding.name in self.parameters else ""
            self.mistakes.append(f"{binding.where}{written} is not a parameter of train, and nothing else has any; {meant}remove it")

    def _define(self, macro: Binding, own: bool) -> None:
        before = self._macros.get(macro.name)
        if before and before.file == macro.file and before.value != macro.value:
            self.mistakes.append(f"{macro.where}the macro {macro.name} has another value on line {before.line}; keep one of them")
        self._macros[macro.name] = macro
        if own:
            self._own_macros.add(macro.name)

    def _import(self, module: str, where: str) -> None:
        try:
            found = importlib.util.find_spec(module) is not None
        except Exception:  # a parent package that is absent, or fails on its own import
            found = False
        if not found:
            known = {name.rsplit(".", 2)[0] for name in self.constants}
            self.mistakes.append(f"{where}there is no module {module!r} here; correct the import or remove it{did_you_mean(module, known)}")

    def _statements(self, text: str, shown: str) -> list[tuple[int, Statement]]:
        try:
            return _parse(text)
        except Exception:  # read again below, in pieces, so that one bad statement costs that statement only
            found: list[tuple[int, Statement]] = []
            for first, piece in _pieces(text):
                try:
                    found += [(first + line - 1, statement) for line, statement in _parse(piece)]
                except Exception as error:  # whatever the tokenizer and the parser raise is about this piece
                    offset = min((getattr(error, "lineno", None) or 1) - 1, piece.count("\n"))
                    line = piece.splitlines()[offset].strip()
                    self.mistakes.append(f"{shown}, line {first + offset}: cannot read {line!r}: {_remedy(line)}")
            return found

    # -- values ---------------------------------------------------------------------------------------------------------------------------

    def _resolve(self, value: object, trail: tuple[str, ...] = ()) -> object:
        if isinstance(value, Name):
            return self._look_up(value.text, trail)
        if isinstance(value, (list, tuple)):
            elements = [self._resolve(element, trail) for element in value]
            unknown = [element for element in elements if isinstance(element, Name)]
            return unknown[0] if unknown else elements
        return value

    def _look_up(self, text: str, trail: tuple[str, ...]) -> object:
        name = text[1:]
        if text.startswith("@"):
            return Name(text, "a reference to something that gin would call")
        if name in trail:
            return Name(text, "a macro that is defined by itself")
        if name in self._macros:
            self._used.add(name)
            return self._resolve(self._macros[name].value, (*trail, name))
        enum, _, member = name.rpartition(".")
        # gin finds a constant by the end of its name; the enum's own name is enough, whatever module other code keeps it in.
        wanted = f".{enum.rpartition('.')[2]}.{member}" if enum else f".{member}"
        found = [value for full, value in self.constants.items() if full.endswith(wanted)]
        if len(found) == 1:
            return found[0]
        meant = nearest(name, self._macros)
        if meant:
            self._used.add(meant)  # one slip of the pen is one mistake
        members = [full.rpartition(".")[2] for full in self.constants if full.split(".")[-2] == enum.rpartition(".")[2]]
        near = did_you_mean(member, members) if members else did_you_mean(name, [*self._macros, *self.constants])
        return Name(text, "but no macro or constant has that name", near)


def _parse(text: str) -> list[tuple[int, Statement]]:
    """The statements of a text with the line each begins on; raises whatever gin's parser and Python's tokenizer raise."""
    statements = config_parser.ConfigParser(text, _Names())
    return [(found.location.line_num, found) for found in statements if not isinstance(found, config_parser.BlockDeclaration)]


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Cuts a text before every line that can begin a statement; lines of a ``train:`` block become ``train.name = value``."""
    first, piece, heading = 1, [""], ""
    for number, line in enumerate(text.splitlines(), 1):
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


def _configs_near(path: str, folders: list[Path]) -> list[str]:
    """Config files that ``path`` may have meant, spelled as it is."""
    here = [str(Path(path).parent / file.name) for folder in folders for file in (folder / path).parent.glob("*.gin")]
    return [*here, *(file.relative_to(ROOT).as_posix() for file in (ROOT / "configs").rglob("*.gin"))]
