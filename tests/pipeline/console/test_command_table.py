"""The table of commands, and what looking one up imports."""

import subprocess
import sys

import pytest

from cli import cli
from pipeline.console.command_table import COMMANDS
from tests import ROOT

HEAVY = {"torch", "numpy", "h5py", "PIL", "nltk", "fsspec", "aiohttp", "matplotlib"}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_an_entry_is_the_command_of_its_name_in_the_module_of_its_name(name: str) -> None:
    command = COMMANDS[name]
    assert command.name == name
    assert f"pipeline.console.commands.{name.replace('-', '_')}" in sys.modules
    assert cli.commands[name] is command


@pytest.mark.parametrize("arguments", [["train", "--help"], ["synth", "--help"], ["train", "--nonsense"], ["nonsense"]])
def test_only_the_module_of_the_command_is_imported_and_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys\nfrom cli import cli\ntry: cli({arguments})\nexcept SystemExit: pass\n"
        "loaded = [name.rpartition('.')[2] for name in sys.modules if name.startswith('pipeline.console.commands.')]\n"
        f"print(loaded + sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str([name for name in arguments[:1] if name in COMMANDS])
