"""What users can add without changing the package: one function per kind of thing that has a registry."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pipeline.console.command_table import COMMANDS

TOY_COMMAND = """
import click
from pipeline.console.command import command
from pipeline.console.options import workers_option
from pipeline.execution.messages import next_step, say
from shards.errors import InputError

@command("toy", "python cli.py toy 3")
@click.argument("number", type=int)
@click.option("--most", type=int, default=5, help="Highest number.")
@workers_option
def toy(number: int, most: int, workers: int) -> None:
    '''Double a number.'''
    if number > most:
        raise InputError(f"NUMBER {number}: must be at most `most` {most}.")
    say(f"{2 * number} with {workers} workers")
    next_step("python cli.py doctor")
"""


def test_a_toy_command_is_added_through_the_registry(run_cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_command.py").write_text(TOY_COMMAND)
    (tmp_path / "settings.toml").write_text("[toy]\nworkers = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    COMMANDS.register("toy", "toy_command:toy")
    try:
        listing, helped = run_cli("--help"), run_cli("toy", "--help")
        good, bad = run_cli("--config", tmp_path / "settings.toml", "toy", 3), run_cli("toy", 6)
    finally:
        COMMANDS.unregister("toy")
    assert "Double a number." in listing.output.splitlines()[-1]
    assert "python cli.py toy 3" in helped.output
    assert good.output.splitlines() == ["6 with 3 workers", "Next: python cli.py doctor"]
    assert (bad.exit_code, bad.output) == (1, "Error: NUMBER 6: must be at most --most 5.\n")
    assert run_cli("toy", 3).exit_code == 2
