"""How an option is declared: one line of a dataclass gives its type, default and meaning; the class checks values when it is made.

    @dataclass(frozen=True, kw_only=True)
    class RunOptions(Options):
        iterations: Count = option(5000, "training steps.")

A type is what ``config.types`` can check. ``Options`` converts and checks every value once, from a gin file and from Python alike.
"""

import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TypeVar

from data.schemas import UserError
from modules.runtime.config.types import coerce

T = TypeVar("T")
Config = TypeVar("Config")


def option(default: T, meaning: str, sets: str = "", path: bool = False, may_differ: bool = False, only: str = "") -> T:
    """Declares an option of a script.

    Args:
        default: its value where no config gives one.
        meaning: what it does, with its unit; shown by --help and in the tables of parameters.
        sets: the field of a config (of the model, of the data) that it fills, where that has another name; see ``filled``.
        path: two spellings may mean the same place.
        may_differ: a run may go on with another value of it.
        only: the one kind of model that reads it; empty: all do.
    """
    metadata = {"meaning": meaning, "sets": sets, "path": path, "may_differ": may_differ, "only": only}
    return field(default=default, metadata=metadata)


class OptionMistakes(UserError):
    """What is wrong with a script's options.

    Args:
        faults: for each option that cannot have its value, the rest of a sentence that begins with its name.
        rules: sentences about values that do not go together.
    """

    def __init__(self, faults: Mapping[str, str], rules: list[str]) -> None:
        super().__init__(*(f"train.{name} {fault}" for name, fault in faults.items()), *rules)
        self.faults, self.rules = dict(faults), rules


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a script.

    Raises:
        OptionMistakes: all values that are not allowed, and every rule between options that does not hold.
    """

    def __post_init__(self) -> None:
        faults, hints = {}, hints_of(type(self))
        for declared in fields(self):
            try:
                value = coerce(getattr(self, declared.name), hints[declared.name])
            except ValueError as error:
                faults[declared.name], value = str(error), declared.default
            object.__setattr__(self, declared.name, value)
        # A rule that names an option whose own value is wrong would speak of its default.
        rules = [sentence for sentence in self.rules() if not mentioned(sentence) & faults.keys()]
        if faults or rules:
            raise OptionMistakes(faults, rules)

    def rules(self) -> Iterator[str]:
        """A sentence for every rule between options that does not hold."""
        yield from ()

    def settings(self) -> dict[str, object]:
        """Every option's value by its name."""
        return {declared.name: getattr(self, declared.name) for declared in fields(self)}


def mentioned(sentence: str) -> set[str]:
    """The options that a sentence speaks of."""
    return set(re.findall(r"train\.(\w+)", sentence))


def hints_of(kind: type[Options]) -> dict[str, object]:
    """The type of every option of a class."""
    return typing.get_type_hints(kind, include_extras=True)


def declared_options(kind: type[Options]) -> dict[str, Field[object]]:
    """The declaration of every option of a class, in order."""
    return {declared.name: declared for declared in fields(kind)}


def filled(config: type[Config], options: Options, **more: object) -> Config:
    """A config (a dataclass or a NamedTuple) each of whose fields has the value of the option that fills it.

    Args:
        config: its fields have the names of options, or those that options say they set.
        options: with values.
        more: fields that no option fills.
    """
    values = {declared.metadata["sets"] or declared.name: getattr(options, declared.name) for declared in fields(options)} | more
    names = getattr(config, "_fields", None) or [declared.name for declared in fields(config)]  # type: ignore[arg-type]
    return config(**{name: values[name] for name in names})
