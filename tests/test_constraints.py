"""constraints.txt pins what the project asks for, by versions that every machine can install."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from modules.runtime.config.main import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PYPROJECT["dependency-groups"]


def lines(name: str) -> list[str]:
    """A file's lines without comments."""
    stripped = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in stripped if line]


PINS = dict(re.fullmatch(r"([^=<>]+)==([^=<>]+)", line).groups() for line in lines("constraints.txt"))
ASKED = [*lines("requirements.txt"), *(line for group in ("dev", "tracking") for line in GROUPS[group] if isinstance(line, str))]


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_for_is_pinned_to_a_version_that_serves(asked: str) -> None:
    requirement = Requirement(asked)
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_pins_name_public_versions_once() -> None:
    assert len(PINS) == len(lines("constraints.txt"))
    assert [name for name in PINS if name != canonicalize_name(name)] == []
    assert [f"{name}=={version}" for name, version in PINS.items() if Version(version).local is not None] == []
