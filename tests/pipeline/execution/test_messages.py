"""--quiet and --log-json with every kind of command."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import cli
from pipeline.execution import progress
from pipeline.execution.messages import configure_messages
from tests import ROOT
from tests.conftest import Small

Run = Callable[..., Result]


def told(*args: object) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code, standard output, and the JSON lines of standard error."""
    result = CliRunner().invoke(cli, ["--log-json", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, [json.loads(line) for line in result.stderr.splitlines()]


def test_quiet_omits_progress_and_the_next_step_and_nothing_else(small: Small, run_cli: Run, tmp_path: Path) -> None:
    command = ["vocab", "--shards", small.shards, "--min-count", 1, "--out", tmp_path / "v.json"]
    loud, quiet = run_cli(*command), run_cli("--quiet", *command)
    assert loud.output.splitlines()[:-1] == quiet.output.splitlines()
    assert loud.output.splitlines()[-1].startswith("Next: ")
    photograph = small.source / "images/scene_000000.jpg"
    assert run_cli("--quiet", "caption", "--run", small.run, photograph).stderr == ""


def test_quiet_shows_no_progress_however_long_it_takes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    try:
        for quiet in (False, True):
            configure_messages(quiet=quiet, as_json=False)
            with progress.Progress("Counting", total=2, unit="things") as counting:
                counting.advance(1)
            assert bool(capsys.readouterr().err) is not quiet
    finally:
        configure_messages(quiet=False, as_json=False)


def test_log_json_prints_everything_as_json_and_keeps_standard_output(small: Small, run_cli: Run, tmp_path: Path) -> None:
    command = ["shard", "--images", small.source / "images", "--captions", small.source / "captions_val.json", "--size", 64, "--workers", 1]
    plain = run_cli(*command, "--out", tmp_path / "a")
    before = time.time()
    code, output, lines = told(*command, "--out", tmp_path / "b")
    assert code == 0
    assert output == "".join(f"{line}\n" for line in plain.stdout.replace("/a", "/b").splitlines()[:-1])
    assert [line["kind"] for line in lines] == ["progress", "result", "note", "next"]
    shown, result, no_val, following = lines
    assert no_val["text"].startswith("There is no split val")
    assert {name: shown[name] for name in ("title", "done", "total", "unit", "note")} == {
        "title": "Sharding train",
        "done": 4,
        "total": 4,
        "unit": "images",
        "note": shown["note"],
    }
    assert result["text"] == output.rstrip("\n")
    assert following["text"].startswith("python cli.py vocab")
    assert all(before - 1 < line["time"] < time.time() + 1 for line in lines)


def test_errors_and_wrong_usage_are_json_lines_with_their_exit_code(tmp_path: Path) -> None:
    code, output, lines = told("stats", tmp_path)
    assert (code, output, [(line["kind"], line["exit_code"]) for line in lines]) == (1, "", [("error", 1)])
    assert lines[0]["text"].startswith(f"{tmp_path}: not a shard dataset")
    for wrong in (["train"], ["nonsense"], ["train", "--nonsense"]):
        code, _, lines = told(*wrong)
        assert (code, [(line["kind"], line["exit_code"]) for line in lines]) == (2, [("error", 2)])
    (tmp_path / "c.toml").write_text("[nonsense]")
    code, _, lines = told("--config", tmp_path / "c.toml", "stats", tmp_path)
    assert (code, lines[0]["kind"]) == (2, "error")


def test_captions_are_results_and_problems_with_images_are_notes(small: Small, tmp_path: Path) -> None:
    (tmp_path / "none.jpg").write_text("no image")
    code, output, lines = told("caption", "--run", small.run, small.source / "images/scene_000000.jpg", tmp_path / "none.jpg")
    assert code == 1
    assert len(output.splitlines()) == 1
    assert [line["kind"] for line in lines] == ["note", "error"]


def test_quiet_and_log_json_go_together(small: Small) -> None:
    result = CliRunner().invoke(cli, ["--quiet", "--log-json", "stats", str(small.shards)])
    assert {json.loads(line)["kind"] for line in result.stderr.splitlines()} == {"result"}


def test_message_settings_last_for_one_run(small: Small, run_cli: Run) -> None:
    told("stats", small.features)
    assert run_cli("stats", small.features).stdout.splitlines()[-1].startswith("Next: ")


def test_ctrl_c_is_a_note_and_exit_code_130(tmp_path: Path) -> None:
    command = [sys.executable, "cli.py", "--log-json", "synth", str(tmp_path / "s"), "--images", "100000", "--workers", "1"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob("s/images/*.jpg")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [json.loads(line)["kind"] for line in errors.splitlines()] == ["note"]
