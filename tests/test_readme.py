"""The README's parameter tables are those of the scripts' signatures; ``make readme`` rewrites them."""

import re
from pathlib import Path

import pytest

import train_decoder
import train_rqvae
from modules.runtime.config.help import parameter_table
from modules.runtime.config.main import ROOT

README = ROOT / "README.md"
TRAINS = {"train_rqvae": train_rqvae.train, "train_decoder": train_decoder.train}


def section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


@pytest.mark.parametrize("name", TRAINS)
def test_the_parameter_table_is_current(name: str) -> None:
    found = section(name).search(README.read_text())
    assert found is not None
    assert found.group(0) == f"<!-- {name} -->\n{parameter_table(TRAINS[name])}\n<!-- /{name} -->"


def test_every_file_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def rewrite(path: Path = README) -> None:
    text = path.read_text()
    for name, train in TRAINS.items():
        table = parameter_table(train)
        text = section(name).sub(lambda found, table=table: f"{found.group(1)}{table}\n{found.group(2)}", text)
    path.write_text(text)


if __name__ == "__main__":
    rewrite()
