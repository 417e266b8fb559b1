"""Standard streams that cannot be written: a full disk, a closed pipe, a closed stream."""

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.console.errors import reported
from tests import ROOT
from tests.conftest import Small
from tests.processes import run_python

TO = "import os, sys; os.dup2(os.open(sys.argv[1], os.O_WRONLY), 1); from cli import cli; cli(sys.argv[2:])"
COMMANDS = (
    ["--help"],
    ["train", "--help"],
    ["--version"],
    ["stats", "{sh}", "--json"],
    ["stats", "{f}"],
    ["verify", "{sh}", "--workers", "1"],
    ["vocab", "--shards", "{sh}", "--out", "{d}/v.json"],
    ["backbones"],
    ["doctor", "--json"],
    ["caption", "--run", "{r}", "{s}/images/scene_000000.jpg", "--device", "cpu"],
    ["synth", "{d}/s", "--images", "10", "--workers", "1"],
)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_standard_output_on_a_full_disk_is_one_line_and_exit_code_1(small: Small, tmp_path: Path, arguments: list[str]) -> None:
    places = {"d": tmp_path, "s": small.source, "sh": small.shards, "f": small.features, "r": small.run}
    done = run_python(TO, "/dev/full", *(argument.format(**places) for argument in arguments))
    assert (done.returncode, done.stderr) == (
        1,
        f"Error: Standard output cannot be written ({os.strerror(errno.ENOSPC)}). Write it to another place.\n",
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_standard_output_on_a_full_disk_is_a_json_line_for_programs(small: Small) -> None:
    done = run_python(TO, "/dev/full", "--log-json", "stats", small.shards)
    assert done.returncode == 1
    last = [json.loads(line) for line in done.stderr.splitlines()][-1]
    assert (last["kind"], last["exit_code"]) == ("error", 1)
    assert last["text"].startswith("Standard output cannot be written")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    ("redirect", "options", "code"),
    [("/dev/full", [], 0), pytest.param("&-", ["--log-json"], 0, marks=pytest.mark.full), ("/dev/full", ["--language"], 2)],
)
def test_messages_that_standard_error_cannot_take_are_lost_and_change_nothing_else(
    small: Small, tmp_path: Path, redirect: str, options: list[str], code: int
) -> None:
    arguments = [*options, "train", "--features", str(small.features), "--out", str(tmp_path / "r"), "--epochs", "1", "--device", "cpu"]
    line = f"{shlex.join([sys.executable, 'cli.py', *arguments])} 2>{redirect}"
    done = subprocess.run(line, shell=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    assert [line for line in done.stdout.splitlines() if "trained to step" not in line and not line.startswith("Next:")] == []
    assert (tmp_path / "r/latest.json").exists() == (code == 0)


def test_a_closed_pipe_is_silent(small: Small) -> None:
    command = [sys.executable, "cli.py", "stats", str(small.shards)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (["--batch-size", "--workers"], "Try a smaller --batch-size or fewer --workers."),
        (["--workers"], "Try fewer --workers."),
        ([], "Close other programs, or use a machine with more memory."),
    ],
)
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")])
def test_memory_advice_names_only_options_of_the_command(options: list[str], advice: str, error: Exception) -> None:
    @reported
    def hungry(**_: object) -> None:
        raise error

    command = click.Command("hungry", callback=hungry, params=[click.Option([option]) for option in options])
    result = CliRunner().invoke(command, [])
    assert (result.exit_code, result.output) == (1, f"Error: Out of memory. {advice}\n")


def test_an_unexpected_error_is_a_json_line_for_programs() -> None:
    code = (
        "import click; from cli import cli\n"
        "@click.command('broken')\ndef broken(): raise KeyError('unexpected')\n"
        "cli.commands = {'broken': broken}\ncli(['--log-json', 'broken'])"
    )
    done = run_python(code)
    assert done.returncode == 1
    [line] = [json.loads(line) for line in done.stderr.splitlines()]
    assert "KeyError: 'unexpected'" in line["text"]
