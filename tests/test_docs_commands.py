"""Every command, program and file that the documentation shows is run or read, in a folder with the files that the reader has by then."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import cli
from tests import ROOT
from tests.documents import DOCUMENTS, Block, blocks, prepare, prepare_weights, reader_has

SHELL = re.compile(r"[|><*?;&$`]")
ALL = [block for document in DOCUMENTS for block in blocks(document)]
FILES = [ROOT / "cli.py", ROOT / "Makefile", *(path for name in ("pipeline", "model", "shards") for path in (ROOT / name).rglob("*.py"))]
# Their commands take long: make test checks that they exist with all their options, make test-full runs them.
LONG = (
    "caching.md",
    "coco.md",
    "decoding.md",
    "flickr8k.md",
    "importing.md",
    "metrics.md",
    "readers.md",
    "recipes.md",
    "settings.md",
    "training.md",
    "tutorial.md",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("documents")
    prepare(base)
    prepare_weights(base / "torch")
    return base


@pytest.mark.parametrize("document", [pytest.param(path, marks=[pytest.mark.full] if path.name in LONG else [], id=path.name) for path in DOCUMENTS])
def test_the_commands_of_a_document_run_in_order(document: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [block for block in blocks(document) if block.not_run is None]
    if not any(block.is_commands or block.language == "python" for block in shown):
        pytest.skip("shows no commands")
    for name in reader_has(document):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (world / name).is_dir() else shutil.copyfile
        copy(world / name, tmp_path / name)
    (tmp_path / "cli.py").symlink_to(ROOT / "cli.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(world / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin")
    for block in shown:
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
        elif block.is_commands:
            for command in block.commands:
                run_command(block, command)
        elif block.language == "python":
            in_a_shell(block, f"python - <<'END'\n{block.text}\nEND")


def run_command(block: Block, command: str) -> None:
    if SHELL.search(command) or not command.startswith("python cli.py"):
        in_a_shell(block, command)
        return
    result = CliRunner().invoke(cli, shlex.split(command, comments=True)[2:])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{block}: {command}") from result.exception
    assert result.exit_code == 0, f"{block}: {command}\n{result.output}"


def in_a_shell(block: Block, command: str) -> None:
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{block}: {command}\n{done.stdout}\n{done.stderr}"


def test_long_documents_exist() -> None:
    assert set(LONG) <= {document.name for document in DOCUMENTS}


@pytest.mark.parametrize("block", [b for b in ALL if b.is_commands or b.language == "bash"], ids=str)
def test_every_shown_command_and_option_exists(block: Block) -> None:
    for command in block.commands:
        words = shlex.split(command.partition("cli.py ")[2].split(" | ")[0].split(" > ")[0], comments=True)
        name = next((word for word in words if word in cli.commands), None)
        if name is None:
            assert "cli.py" not in command or not words, command
            continue
        known = {text for parameter in [*cli.params, *cli.commands[name].params] for text in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}, command


@pytest.mark.parametrize("block", [b for b in ALL if b.language in {"json", "toml", "bash"}], ids=str)
def test_shown_files_can_be_parsed(block: Block) -> None:
    if block.language == "toml":
        assert tomllib.loads(block.text)
    elif block.language == "bash":
        subprocess.run(["bash", "-n", "-c", block.text], check=True)
    else:
        try:
            json.loads(block.text)
        except ValueError:
            assert all(json.loads(line) for line in block.text.splitlines())


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_is_documented(name: str) -> None:
    shown = "\n".join(document.read_text() for document in DOCUMENTS)
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Option):
            assert re.search(rf"{re.escape(parameter.opts[-1])}\b", shown), f"{name} {parameter.opts[-1]}"


def test_messages_quoted_in_troubleshooting_exist() -> None:
    quoted = re.findall(r'"([^"]+)"', "".join(re.findall(r"^\*\*(.*?)\*\*", (ROOT / "docs/troubleshooting.md").read_text(), flags=re.MULTILINE)))
    assert len(quoted) > 10
    said = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in FILES))  # strings that continue in the next line
    for message in quoted:
        for part in message.split("..."):
            settings = re.sub(r"--([a-z-]+)", lambda option: f"`{option[1].replace('-', '_')}`", part)  # as below the command line
            assert part.strip() in said or settings.strip() in said, message
