import json
import re

import pytest

from pipeline.execution import progress as progress_module
from pipeline.execution.messages import MessageSettings
from pipeline.execution.progress import Progress


def test_a_log_gets_a_line_every_few_seconds_and_each_count_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.0)
    with Progress("Captioning", total=1500, unit="images") as progress:
        progress.advance(1000, note="2 failed")
        progress.advance(500, note="3 failed")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[0] for line in lines] == ["Captioning: 1,000 of 1,500 images", "Captioning: 1,500 of 1,500 images"]
    assert [line.rpartition(", ")[2] for line in lines] == ["2 failed", "3 failed"]


@pytest.mark.parametrize("as_json", [False, True])
def test_without_a_total_the_line_has_neither_total_nor_remaining_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(MessageSettings, "as_json", as_json)
    with Progress("Downloading", total=None, unit="MB") as progress:
        progress.advance(500, note="a.zip")
    line = capsys.readouterr().err
    if as_json:
        told = json.loads(line)
        assert (told["done"], told["total"], told["seconds_left"]) == (500, None, None)
        line = told["text"]
    assert re.fullmatch(r"Downloading: 500 MB, [\d,.]+ MB/s, a\.zip\n?", line)


def test_short_or_quiet_tasks_show_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Captioning", total=2, unit="images") as progress:
        progress.advance(2)
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.0)
    with Progress("Captioning", total=2, unit="images", quiet=True) as progress:
        progress.advance(2)
    assert capsys.readouterr().err == ""
