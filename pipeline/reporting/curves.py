"""Plot the training curves of runs, to compare them."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.images.figures import COLOURS, check_figure_name, save_figure
from pipeline.runs.run import METRICS_FILE, is_run
from shards.errors import DamageError, InputError
from shards.found_instead import instead_of_run
from shards.paths import shell_quoted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BYTES = 1 << 30
# Points per line; more are averaged.
POINTS = 400

Line = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RunCurves:
    """The content of a run's log.

    Attributes:
        name: The run's name in the plot.
        folder: The run.
        training: A line every few steps: step, epochs, mean_loss, lr, captions_per_second, data_wait; reward in self-critical training.
        validation: A line after each epoch: step, epochs, val_loss, val_cider.
    """

    name: str
    folder: Path
    training: tuple[Line, ...]
    validation: tuple[Line, ...]

    def best(self, score: str, better: Callable[..., Line]) -> Line | None:
        """The validation line with the best score (``better`` is ``min`` or ``max``), or None."""
        return better((line for line in self.validation if score in line), key=lambda line: line[score], default=None)


def draw_curves(runs: Sequence[Path], out: Path, *, report: Callable[[str], None] = lambda _: None) -> tuple[RunCurves, ...]:
    """Plot loss, CIDEr of generated captions, learning rate and speed, with a colour per run.

    Args:
        runs: Run directories, at least one.
        out: A .png, .jpg, .pdf or .svg file.
        report: Takes a line if a run's name has characters that no font has.

    Raises:
        InputError: ``out`` has another file name extension, a folder is not a run, or its log is empty.
        DamageError: A line of a log is damaged.
    """
    check_figure_name(out)
    curves = tuple(read_curves(run, name) for run, name in zip(runs, short_names(runs), strict=True))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for run, colour in zip(curves, [COLOURS[n % len(COLOURS)] for n in range(len(curves))], strict=True):
        _draw_run(axes.flat, run, colour)
    scored = any("val_cider" in line for run in curves for line in run.validation)
    titles = (
        "Loss in nats per token (line: training, dots: validation)",
        "CIDEr on the val split (dotted: reward of sampled captions)",
        "Learning rate",
        "Captions per second",
    )
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set_title(title, fontsize=11, loc="left")
        axis.grid(visible=True, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if not scored:
        axes.flat[1].text(0.5, 0.5, "no run has scores on a val split", ha="center", va="center", color="gray", transform=axes.flat[1].transAxes)
    for axis in axes[1]:
        axis.set_xlabel("Epochs")
        axis.set_ylim(bottom=0)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(curves)), frameon=False)
    if problem := save_figure(figure, out):
        report(problem)
    return curves


def _draw_run(axes: "Sequence[Axes]", run: RunCurves, colour: str) -> None:
    loss, cider, rate, speed = axes
    shown = thinned(run.training)
    x = [line["epochs"] for line in shown]
    rewarded = "reward" in shown[0]  # self-critical training: its loss is not a cross entropy
    loss.plot(*([], []) if rewarded else (x, [line["mean_loss"] for line in shown]), color=colour, linewidth=1.2, label=run.name)
    dots: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 5}
    loss.plot([line["epochs"] for line in run.validation], [line["val_loss"] for line in run.validation], linestyle="none", **dots)
    scored = [line for line in run.validation if "val_cider" in line]
    cider.plot([line["epochs"] for line in scored], [line["val_cider"] for line in scored], linewidth=1.2, **dots)
    if rewarded:
        cider.plot(x, [line["reward"] for line in shown], color=colour, linewidth=1.2, linestyle=":")
    rate.plot(x, [line["lr"] for line in shown], color=colour, linewidth=1.2)
    speed.plot(x, [line["captions_per_second"] for line in shown], color=colour, linewidth=1.2)


def thinned(lines: Sequence[Line]) -> list[Line]:
    """At most ``POINTS`` lines, each the mean of consecutive ones."""
    size = max(1, -(-len(lines) // POINTS))
    groups = [lines[start : start + size] for start in range(0, len(lines), size)]
    return [{name: math.fsum(line[name] for line in group) / len(group) for name in group[0]} for group in groups]


def short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that distinguish them.

    >>> short_names([Path("runs/a"), Path("runs/b"), Path("old/b")])
    ['a', 'runs/b', 'old/b']
    """
    parts = [folder.resolve().parts if folder.name in ("", "..") else folder.parts for folder in folders]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return names


def read_curves(folder: Path, name: str) -> RunCurves:
    """Read a run's log. An incomplete last line, left by a killed process, is ignored.

    Raises:
        InputError: Not a run, or nothing is logged yet.
        DamageError: A line is not a JSON object of finite numbers, or lacks a field; names file and line.
    """
    if not is_run(folder):
        raise InputError(f"{folder}: {instead_of_run(folder)}")
    path = folder / METRICS_FILE
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes, more than the limit for a log ({MAX_BYTES}).")
    raw = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    complete = [line for line in raw if line.endswith(b"\n")]
    training: list[Line] = []
    validation: list[Line] = []
    for number, text in enumerate(complete, 1):
        line = _parse_line(path, number, text)
        (validation if "val_loss" in line else training).append(line)
    if not training:
        raise InputError(f"{path}: nothing is logged yet. Continue with: python cli.py train --out {shell_quoted(folder)} --resume")
    return RunCurves(name=name, folder=folder, training=tuple(training), validation=tuple(validation))


def _parse_line(path: Path, number: int, text: bytes) -> Line:
    try:
        content = json.loads(text)
        line = {str(name): float(value) for name, value in content.items() if not isinstance(value, str)}
        required = ("step", "epochs") if "val_loss" in line else ("step", "epochs", "mean_loss", "lr", "captions_per_second")
        missing = [name for name in required if name not in line]
        if missing or not all(map(math.isfinite, line.values())) or line["step"] < 1:
            raise ValueError(f"no {missing[0]}" if missing else "a number is not finite or a step below 1")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"{path}: line {number} is damaged ({error}). Remove the line, or restore the original file.") from None
    return line
