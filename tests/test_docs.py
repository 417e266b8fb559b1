"""The documentation is complete, its links work, and its figures are those of the reports."""

import doctest
import importlib
import json
import re
from pathlib import Path

import click
import pytest

from cli import cli
from tests import ROOT

MODULES = sorted(p.relative_to(ROOT) for folder in ("model", "pipeline", "shards") for p in (ROOT / folder).rglob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_an_example_and_described_options(name: str) -> None:
    command = cli.commands[name]
    assert command.help
    assert command.epilog
    assert f"python cli.py {name}" in command.epilog
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_has_a_docstring_whose_examples_are_true(path: Path) -> None:
    module = importlib.import_module(".".join(path.with_suffix("").parts))
    assert module.__doc__
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("package", sorted({path.parent for path in MODULES if path.parent != Path("pipeline")}), ids=str)
def test_every_package_is_in_the_table_of_folders(package: Path) -> None:
    top = "/".join(package.parts[:2])  # a package inside a package of pipeline/ belongs to it
    assert f"| `{top if package.parts[0] == 'pipeline' else package.parts[0]}/` |" in (ROOT / "CONTRIBUTING.md").read_text()


def test_every_page_is_in_the_site_and_in_the_readme() -> None:
    site, readme = (ROOT / "mkdocs.yml").read_text(), (ROOT / "README.md").read_text()
    for page in ROOT.glob("docs/*.md"):
        assert f": {page.name}\n" in site, page
        assert f"(docs/{page.name})" in readme, page


def test_readme_quotes_the_newest_report() -> None:
    report = max((ROOT / "benchmarks/results").glob("suite-*.json"))
    text = (ROOT / "README.md").read_text()
    assert f"benchmarks/results/{report.stem}.md" in text
    for seconds in json.loads(report.read_text())["raw-cached"]["epoch_seconds"].values():
        for document in ("README.md", "docs/images/raw-cached.svg", "docs/benchmarks.md"):
            assert f"{seconds / 3600:.2f}" in (ROOT / document).read_text(), document


def test_pages_are_short() -> None:
    limits = {"README.md": 150, "docs/formats.md": None, "docs/commands.md": None, "CHANGELOG.md": None}
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        limit = limits.get(str(path.relative_to(ROOT)), 200)
        assert limit is None or len(path.read_text().splitlines()) <= limit, path


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown file: lower case, hyphens for spaces, no other punctuation."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_every_link_leads_to_an_existing_file_and_heading(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_commands_are_listed_in_the_order_data_flows() -> None:
    stages = ["download", "synth", "shard", "index", "vocab", "cache-features", "train", "caption", "evaluate", "report", "demo"]
    assert [name for name in cli.commands if name in stages] == stages


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_named_source_files_exist(path: Path) -> None:
    for name in re.findall(r"`((?:pipeline|model|shards|tests|docs|benchmarks)/[\w/.]+)`", path.read_text()):
        assert "NAME" in name or (ROOT / name).exists(), name
