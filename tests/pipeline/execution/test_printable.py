r"""What is printed is escaped, and nothing is printed elsewhere."""

import ast
import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.execution import messages
from pipeline.execution.printable import printable, printable_json
from pipeline.execution.progress import Progress
from tests import ROOT

ORDINARY = "사진 사진 é é ß Ω Привет 日本語 👍🏽 👩‍👩‍👧 \u05e9\u05dc\u05d5\u05dd\u0645 \\ 'quoted' a\u00a0b"


def test_ordinary_text_in_any_script_is_unchanged() -> None:
    assert printable(ORDINARY) == ORDINARY
    assert json.loads(printable_json([ORDINARY])) == [ORDINARY]
    assert ORDINARY.replace("\\", "\\\\") in printable_json([ORDINARY])


@pytest.mark.parametrize("code", [*range(32), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xD800, 0xDCFF])
def test_characters_that_act_on_a_terminal_are_escaped_and_json_keeps_their_value(code: int) -> None:
    escaped = printable(f"a{chr(code)}b")
    assert escaped.isascii()
    assert all(unicodedata.category(character) != "Cc" for character in escaped)
    assert json.loads(printable_json(chr(code))) == chr(code)
    assert printable_json(chr(code)).isascii()


def test_a_json_document_keeps_its_own_line_ends_and_no_others() -> None:
    assert printable_json({"a\nb": ["\x9b"]}, indent=1) == '{\n "a\\nb": [\n  "\\u009b"\n ]\n}'


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", '"사진"'), ("latin-1", '"\\uc0ac\\uc9c4"')])
def test_json_is_valid_in_the_encoding_of_the_output(encoding: str, shown: str) -> None:
    code = "from pipeline.execution.messages import print_json; print_json('사진')"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONIOENCODING": encoding}, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode(encoding).strip() == shown


def test_the_bar_of_a_terminal_escapes_its_title_and_note_and_takes_them_for_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("Sharding [red]\x1b]0;t\x07", total=2, unit="images") as progress:
        progress.advance(1, note="[bold]\u202egpj")
        assert progress._bar is not None
        console = Console(width=200)
        with console.capture() as capture:
            console.print(progress._bar.get_renderable())
    assert "Sharding [red]\\x1b]0;t\\x07" in capture.get()
    assert "[bold]\\u202egpj" in capture.get()


def _prints(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"print", "click.echo", "click.secho", "warnings.warn"} or called.endswith(("stderr.write", "stdout.write")):
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {called}"


def test_nothing_is_printed_elsewhere() -> None:
    sources = [ROOT / "cli.py", *(path for folder in ("pipeline", "model", "shards") for path in (ROOT / folder).rglob("*.py"))]
    found = [each for path in sources for each in _prints(path) if path != Path(messages.__file__)]
    assert found == []
