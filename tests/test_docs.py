"""Documentation keeps up with the code."""

import doctest
import importlib
import re
from pathlib import Path

import click
import pytest

from cli import cli
from tests import ROOT

MODULES = sorted(p.relative_to(ROOT) for folder in ("model", "pipeline", "shards") for p in (ROOT / folder).rglob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_is_in_the_readme_and_has_help_an_example_and_described_options(name: str) -> None:
    command = cli.commands[name]
    assert re.search(rf"^\| `{name}\b", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert command.help
    assert command.epilog
    assert f"python cli.py {name}" in command.epilog
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_is_in_the_readmes_tree_and_its_examples_are_true(path: Path) -> None:
    assert path.name in (ROOT / "README.md").read_text()
    module = importlib.import_module(".".join(path.with_suffix("").parts))
    assert module.__doc__
    assert doctest.testmod(module).failed == 0


def anchors(path: Path) -> set[str]:
    """The headings of a Markdown file as GitHub links to them: lower case, spaces as hyphens, no other marks."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_to_a_heading_that_is_there(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_commands_are_listed_in_the_order_data_flows() -> None:
    data = ["download", "synth", "shard", "index", "verify", "stats", "vocab", "backbones", "cache-features", "import-features"]
    assert list(cli.commands) == [*data, "train", "curves", "caption", "evaluate", "report", "demo", "doctor"]
