"""Documentation keeps up with the code."""

import doctest
import importlib
from pathlib import Path

import click
import pytest

from cli import cli

ROOT = Path(__file__).parent.parent
MODULES = sorted(p.relative_to(ROOT) for folder in ("model", "pipeline", "shards") for p in (ROOT / folder).glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_is_in_the_readme_and_has_help_an_example_and_described_options(name: str) -> None:
    command = cli.commands[name]
    assert f"`{name}`" in (ROOT / "README.md").read_text()
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


def test_commands_are_listed_in_the_order_data_flows() -> None:
    data = ["synth", "shard", "verify", "vocab", "backbones", "cache-features", "import-features"]
    assert list(cli.commands) == [*data, "train", "curves", "caption", "evaluate", "report", "demo"]
