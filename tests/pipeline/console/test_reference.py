"""docs/commands.md is generated from the commands."""

import os

import click
import pytest

from cli import cli
from pipeline.console.reference import PAGES, reference, shown_default
from tests import ROOT


def test_the_reference_in_the_documentation_is_up_to_date() -> None:
    assert (ROOT / "docs/commands.md").read_text() == reference(cli), "docs/commands.md is out of date. Update it with: make reference"


def test_the_reference_does_not_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 63)
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("CAPSTREAM_SYNTH_IMAGES", "7")
    assert reference(cli) == (ROOT / "docs/commands.md").read_text()


def test_pages_are_those_of_commands() -> None:
    assert PAGES.keys() <= set(cli.commands)


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        (click.Option(["--a"], required=True), "required"),
        (click.Option(["--a"], default=0.5), "`0.5`"),
        (click.Option(["--a"], default=0), "`0`"),
        (click.Option(["--a"], default=0, show_default="off"), "off"),
        (click.Option(["--a"]), ""),
        (click.Option(["--a"], multiple=True), ""),
        (click.Option(["--a"], is_flag=True), "off"),
        (click.Option(["--a"], help="Said in the help. [default: 3]"), "`3`"),
    ],
)
def test_defaults_are_shown(option: click.Option, shown: str) -> None:
    assert shown_default(option) == shown


def test_a_computed_default_must_be_described() -> None:
    with pytest.raises(ValueError, match="--a: a default that is computed"):
        shown_default(click.Option(["--a"], default=os.cpu_count))
