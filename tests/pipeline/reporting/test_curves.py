import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image

from pipeline.reporting.curves import POINTS, draw_curves, read_curves, short_names
from shards.errors import DamageError, InputError
from tests.conftest import TINY_MODEL, Small
from tests.pipeline.short_runs import train_on_cpu


def training_line(step: int, **values: float) -> dict[str, Any]:
    line = {
        "step": step,
        "epoch": 0,
        "epochs": step / 100,
        "loss": 3.0,
        "mean_loss": 5 / step,
        "lr": 0.001,
        "captions_per_second": 400.0,
        "data_wait": 0.01,
    }
    return {**line, **values}


def run_with(folder: Path, lines: list[dict[str, Any]], tail: bytes = b"") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + tail)
    return folder


def test_a_plot_compares_runs_and_a_line_summarizes_each(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    train_on_cpu(out=tmp_path / "other", features=small.features, settings={**TINY_MODEL, "epochs": 1, "lr": 0.01})
    result = run_cli("curves", small.run, tmp_path / "other", "--out", tmp_path / "curves.png")
    assert result.exit_code == 0, result.output
    logged = [json.loads(line) for line in (small.run / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in logged if "val_cider" in line), key=lambda line: line["val_cider"])
    assert f"run: step 24, loss {logged[-2]['mean_loss']:.4f}" in result.output
    assert "other: step 12, loss " in result.output
    assert f"highest val CIDEr {best['val_cider']:.3f} after step {best['step']}" in result.output
    assert result.output.splitlines()[-1].startswith("Next: ")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1200, 800)
        blue, orange = (0, 114, 178), (213, 94, 0)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    assert {blue, orange} <= colours


def test_long_runs_are_averaged_and_runs_without_scores_are_plotted(tmp_path: Path) -> None:
    run = run_with(tmp_path / "long", [training_line(step) for step in range(1, 20 * POINTS)])
    (curves,) = draw_curves([run], tmp_path / "curves.svg")
    assert curves.validation == ()
    assert curves.best("val_loss", min) is None
    assert 10_000 < (tmp_path / "curves.svg").stat().st_size < 300_000  # some hundred points, not 8,000


def test_an_incomplete_last_line_is_ignored_and_a_damaged_line_is_named(tmp_path: Path) -> None:
    whole = run_with(tmp_path / "cut", [training_line(10), training_line(20)], tail=b'{"step": 30, "ep')
    assert [line["step"] for line in read_curves(whole, "cut").training] == [10, 20]
    for name, bad in (("text", b"nonsense\n"), ("list", b"[1]\n"), ("nan", json.dumps(training_line(5, lr=float("nan"))).encode() + b"\n")):
        damaged = run_with(tmp_path / name, [training_line(10)], tail=bad)
        with pytest.raises(DamageError, match=r"metrics\.jsonl: line 2 is damaged"):
            read_curves(damaged, name)


def test_a_folder_that_is_no_run_or_has_no_log_is_refused(tmp_path: Path, small: Small) -> None:
    with pytest.raises(InputError, match="not a run"):
        draw_curves([tmp_path], tmp_path / "curves.png")
    with pytest.raises(InputError, match=r"nothing is logged yet.*--resume"):
        draw_curves([run_with(tmp_path / "new", [])], tmp_path / "curves.png")
    with pytest.raises(InputError, match=r"curves\.gif"):
        draw_curves([small.run], tmp_path / "curves.gif")
    assert not list(tmp_path.glob("*curves*"))


def test_runs_of_the_same_name_are_distinguished() -> None:
    assert short_names([Path("a/run"), Path("b/run"), Path("c/best")]) == ["a/run", "b/run", "best"]
    assert short_names([Path("a/run"), Path("a/run")]) == ["a/run", "a/run"]
