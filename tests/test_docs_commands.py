"""Every command that the documentation shows is run, as it stands there, by a reader who has what the document presupposes."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import cli
from tests.documents import DOCUMENTS, ROOT, Block, blocks, prepare, prepare_weights, reader_has

SHELL = re.compile(r"[|><*?;&$`]|^(?!python )")
ALL = [(document, block) for document in DOCUMENTS for block in blocks(document)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("documents")
    prepare(base)
    prepare_weights(base / "torch")
    return base


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_a_document_runs_in_its_order(document: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [block for block in blocks(document) if block.is_commands and block.not_run is None]
    if not commands:
        pytest.skip("shows no command, or none that is run")
    for name in reader_has(document):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (world / name).is_dir() else shutil.copyfile
        copy(world / name, tmp_path / name)
    (tmp_path / "cli.py").symlink_to(ROOT / "cli.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(world / "torch"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin")
    for block in blocks(document):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
        elif block.is_commands and block.not_run is None:
            for command in block.commands:
                run_command(block, command)


def run_command(block: Block, command: str) -> None:
    place = f"{block.document.name}:{block.line}: {command}"
    if SHELL.search(command) or not command.startswith("python cli.py"):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, f"{place}\n{done.stdout}\n{done.stderr}"
        return
    result = CliRunner().invoke(cli, shlex.split(command, comments=True)[2:])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(place) from result.exception
    assert result.exit_code == 0, f"{place}\n{result.output}"


@pytest.mark.parametrize("block", [block for _, block in ALL if block.is_commands], ids=lambda b: f"{b.document.name}:{b.line}")
def test_every_command_that_is_shown_exists_with_all_its_options(block: Block) -> None:
    for command in block.commands:
        words = command.split("cli.py ", 1)[1] if "cli.py " in command else ""
        if not words:
            continue
        name, *rest = re.split(r"\s*[|>]", words)[0].split()
        if name.startswith("-"):
            continue
        assert name in cli.commands, command
        known = {text for parameter in cli.commands[name].params if isinstance(parameter, click.Option) for text in parameter.opts}
        for word in rest:
            if word.startswith("--"):
                assert word.split("=")[0] in known | {"--help"}, f"{command}: {word}"


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_is_documented(name: str) -> None:
    shown = "\n".join(document.read_text() for document in DOCUMENTS)
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Option):
            assert re.search(rf"{re.escape(parameter.opts[-1])}\b", shown), f"{name} {parameter.opts[-1]}"
