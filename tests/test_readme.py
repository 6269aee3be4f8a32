"""README, CONTRIBUTING and the pages of docs/: links, files and commands that are there, and the tables of options.

docs/parameters.md holds the tables of the scripts' options, docs/results.md what benchmarks/quality holds; ``make readme`` rewrites them.
"""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from evaluate.results_page import results_section
from modules.runtime.config.help import parameter_table
from modules.runtime.config.main import ROOT, resolve
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.options.rqvae import RqVaeOptions

README, PARAMETERS, RESULTS = ROOT / "README.md", ROOT / "docs" / "parameters.md", ROOT / "docs" / "results.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md", *DOCS]
OPTIONS = {"train_rqvae": RqVaeOptions, "train_decoder": DecoderOptions}
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def links(page: Path) -> list[tuple[str, str]]:
    """The relative links of a page: file and heading, either of which may be empty."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [(file, heading) for file, _, heading in (link.partition("#") for link in found if "://" not in link)]


def headings(page: Path) -> set[str]:
    """The headings of a page as GitHub names them in links."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(start: str) -> list[str]:
    """The commands of all pages but the changelog, which names old ones, that begin with ``start``, each once, without comments."""
    pages = [page for page in PAGES if page.name != "CHANGELOG.md"]
    found = [re.findall(rf"^ {{4}}({start} .*)$|`({start} [^`]*)`", page.read_text(), re.MULTILINE) for page in pages]
    return sorted({shlex.join(shlex.split(line or inline, comments=True)) for page in found for line, inline in page})


@pytest.mark.parametrize("name", OPTIONS)
def test_the_parameter_table_is_current(name: str) -> None:
    found = section(name).search(PARAMETERS.read_text())
    assert found is not None
    assert found.group(0) == f"<!-- {name} -->\n{parameter_table(OPTIONS[name])}\n<!-- /{name} -->"


def test_the_results_page_shows_what_benchmarks_quality_holds() -> None:
    found = section("reproduced").search(RESULTS.read_text())
    assert found is not None
    assert found.group(0) == f"<!-- reproduced -->\n{results_section(ROOT / 'benchmarks' / 'quality')}\n<!-- /reproduced -->"


def test_every_page_is_in_the_readme_s_table_of_pages_and_leads_back() -> None:
    assert len(DOCS) >= 10
    table = [line for line in README.read_text().splitlines() if line.startswith("| [")]
    assert [page.name for page in DOCS if not any(f"(docs/{page.name})" in line for line in table)] == []
    assert [page.name for page in DOCS if ("../README.md", "") not in links(page)] == []


@each_page
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    for file, heading in links(page):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not heading or heading in headings(target), f"{file}#{heading}"


def test_every_file_of_the_readme_s_tree_exists() -> None:
    tree = re.search(r"^## Files\n+```\n(.*?)```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert tree is not None
    names = [name for line in tree.group(1).splitlines() for name in re.split(r" {2,}", line)[0].split()]
    assert len(names) > 15
    assert [name for name in names if not (ROOT / name).exists()] == []
    rooms = {path.relative_to(ROOT).as_posix() for path in (ROOT / "modules" / "runtime").iterdir() if any(path.glob("*.py"))}
    assert rooms <= set(names)


@pytest.mark.parametrize("line", [line for name in OPTIONS for line in commands(rf"python {name}\.py")])
def test_every_command_that_trains_names_a_config_and_options_that_exist(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "as after a login")
    monkeypatch.chdir(ROOT)
    _, script, config, *overrides = shlex.split(line)
    if config != "--help" and not config.startswith("RUN/"):
        resolve(OPTIONS[script.removesuffix(".py")], [config, *(word for word in overrides if word != "--print-config")])


@pytest.mark.parametrize("line", commands("python -m"))
def test_every_command_names_a_module_that_exists(line: str) -> None:
    assert importlib.util.find_spec(line.split()[2]) is not None


def rewrite(page: Path, sections: dict[str, str]) -> None:
    text = page.read_text()
    for name, own in sections.items():
        text = section(name).sub(lambda found, own=own: f"{found.group(1)}{own}\n{found.group(2)}", text)
    page.write_text(text)


if __name__ == "__main__":
    rewrite(PARAMETERS, {name: parameter_table(kind) for name, kind in OPTIONS.items()})
    rewrite(RESULTS, {"reproduced": results_section(ROOT / "benchmarks" / "quality")})
