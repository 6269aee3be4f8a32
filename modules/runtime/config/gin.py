"""Reading config files: a file, what it includes, and the command line become bindings of ``train``; every mistake is a sentence.

What statements mean is decided here and not by gin's own ``parse_config``, which stops at the first mistake and lets others pass: unused
macros, a parameter bound twice, a scope that nothing opens.
"""

import ast
import importlib.util
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from gin import config_parser

from modules.runtime.config.grammar import Name, statements
from modules.runtime.config.suggest import did_you_mean, nearest, one_of

ROOT = Path(__file__).resolve().parents[3]


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
        found, unreadable = statements(text)
        for mistake in unreadable:
            self.mistakes.append(f"{shown}, line {mistake.line}: cannot read {mistake.text!r}: {mistake.remedy}")
        for line, statement in found:
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


def _configs_near(path: str, folders: list[Path]) -> list[str]:
    """Config files that ``path`` may have meant, spelled as it is."""
    here = [str(Path(path).parent / file.name) for folder in folders for file in (folder / path).parent.glob("*.gin")]
    return [*here, *(file.relative_to(ROOT).as_posix() for file in (ROOT / "configs").rglob("*.gin"))]
