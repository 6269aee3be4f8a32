"""The README's parameter tables are those of the scripts' options; ``make readme`` rewrites them."""

import re
from pathlib import Path

import pytest

from modules.runtime.config.help import parameter_table
from modules.runtime.config.main import ROOT
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.options.rqvae import RqVaeOptions

README = ROOT / "README.md"
OPTIONS = {"train_rqvae": RqVaeOptions, "train_decoder": DecoderOptions}


def section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_parameter_table_is_current(name: str) -> None:
    found = section(name).search(README.read_text())
    assert found is not None
    assert found.group(0) == f"<!-- {name} -->\n{parameter_table(OPTIONS[name])}\n<!-- /{name} -->"


def test_every_file_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def rewrite(path: Path = README) -> None:
    text = path.read_text()
    for name, kind in OPTIONS.items():
        table = parameter_table(kind)
        text = section(name).sub(lambda found, table=table: f"{found.group(1)}{table}\n{found.group(2)}", text)
    path.write_text(text)


if __name__ == "__main__":
    rewrite()
