"""What a report shows of each run: its scores, training log and config; and the images of all runs, merged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluation.score_file import ENDING, ScoredImage, ScoreFile, read_scores, scores_path
from pipeline.reporting.curves import RunCurves, read_curves, short_names
from pipeline.runs.run import CONFIG_FILE, METRICS_FILE, is_run
from shards.errors import DamageError, InputError, MismatchError, SettingsError
from shards.found_instead import instead_of_run
from shards.json_files import read_json
from shards.paths import shell_quoted

# The number of distinguishable colours in page.css.
MAX_RUNS = 8


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """A run, or a score file without its run, as the page shows it.

    Attributes:
        name: Its name on the page.
        scores: Its score file.
        curves: Its training curves; None if there is no log, and ``curves_note`` says why.
        config: The run's config, or None.
    """

    name: str
    scores: ScoreFile
    curves: RunCurves | None
    curves_note: str
    config: dict[str, Any] | None


# An image's scores in each run; None where a run has not captioned it.
ImageRow = list[ScoredImage | None]


def read_runs(runs: Sequence[Path], split: str) -> list[ReportedRun]:
    """Read what the page shows of each run, for one split.

    Raises:
        InputError, MismatchError, DamageError: As :func:`pipeline.reporting.report.report`.
    """
    if not 1 <= len(runs) <= MAX_RUNS:
        raise SettingsError(f"{len(runs)} runs: a report shows 1 to {MAX_RUNS}.")
    resolved = [run.resolve() for run in runs]
    for run, path in zip(runs, resolved, strict=True):
        if resolved.count(path) > 1:
            raise SettingsError(f"{run}: given twice. Name each run once.")
    found = [_read_run(run, name, split) for run, name in zip(runs, _names(runs), strict=True)]
    splits = {run.scores.split: run for run in found if run.scores.split}
    if len(splits) > 1:
        listed = ", ".join(f"{run.name}: {name!r}" for name, run in splits.items())
        raise MismatchError(f"These scores are of different splits ({listed}), which have different images. Evaluate all runs on the same split.")
    return found


def _names(runs: Sequence[Path]) -> list[str]:
    """Names of the runs on the page: score files without their file name extension, unless two names would be equal."""
    names = short_names(runs)
    plain = [name.removesuffix(ENDING).removesuffix(".json") or name for name in names]
    return [name if plain.count(short) > 1 else short for name, short in zip(names, plain, strict=True)]


def _read_run(run: Path, name: str, split: str) -> ReportedRun:
    if run.is_file() or (run.suffix == ".json" and not run.is_dir()):
        return ReportedRun(name=name, scores=_read_checked(run), curves=None, curves_note="A score file alone: it has no training log.", config=None)
    path = scores_path(run, split)
    if not run.is_dir():
        raise InputError(f"{run}: {instead_of_run(run)}")
    if not path.is_file():
        if not is_run(run):
            raise InputError(f"{run}: {instead_of_run(run)}")
        others = sorted(file.name.removesuffix(ENDING) for file in run.glob(f"*{ENDING}"))
        there = f" It has those of {', '.join(others)}: choose another `split`." if others else ""
        make = f"python cli.py evaluate --run {shell_quoted(run)} --split {split}"
        raise InputError(f"{run}: has no scores of the split {split!r}.{there} Make them with: {make}")
    scores = _read_checked(path)
    config = read_json(run / CONFIG_FILE, what="run config", error=DamageError) if is_run(run) else None
    if config is not None and not isinstance(config, dict):
        raise DamageError(f"{run / CONFIG_FILE}: not a run's config: expected a JSON object. Restore the original file.")
    log = run / METRICS_FILE
    if config is None or not log.is_file() or log.stat().st_size == 0:
        return ReportedRun(name=name, scores=scores, curves=None, curves_note=f"No training log: the run has no {METRICS_FILE}.", config=config)
    return ReportedRun(name=name, scores=scores, curves=read_curves(run, name), curves_note="", config=config)


def _read_checked(path: Path) -> ScoreFile:
    """Read a score file and check that the page can show it: it has images, each once, and all numbers are finite."""
    scores = read_scores(path)
    if not scores.images:
        raise InputError(f"{path}: has no images. Evaluate a split that has some: python cli.py evaluate --out {shell_quoted(path)}")
    seen: set[int] = set()
    for image in scores.images:
        if image.image_id in seen:
            raise DamageError(f"{path}: image {image.image_id} occurs twice. Make it again with: python cli.py evaluate")
        seen.add(image.image_id)
        if not all(map(math.isfinite, (*image.scores.values(), *(one.score for one in image.alternatives)))):
            raise DamageError(f"{path}: a score of image {image.image_id} is not finite. Make it again with: python cli.py evaluate")
    for name, score in scores.scores.items():
        if not all(map(math.isfinite, (score.value, score.low, score.high))):
            raise DamageError(f"{path}: the score {name!r} is not finite. Make it again with: python cli.py evaluate")
    return scores


def merge_images(runs: Sequence[ReportedRun]) -> tuple[list[ImageRow], list[str]]:
    """The images of all runs, a row each, and a line for each inconsistency between the runs.

    Raises:
        MismatchError: Two runs have no image in common.
    """
    rows: dict[int, ImageRow] = {}
    for column, run in enumerate(runs):
        for image in run.scores.images:
            rows.setdefault(image.image_id, [None] * len(runs))[column] = image
    merged, notes = list(rows.values()), []
    for column, run in enumerate(runs[1:], 1):
        both = [(row[0], row[column]) for row in merged if row[0] is not None and row[column] is not None]
        if not both:
            raise MismatchError(f"{runs[0].name} and {run.name} have no image in common. Evaluate both on the same data.")
        if len(both) < len(merged):
            notes.append(f"{runs[0].name} and {run.name} have {len(both):,} of {len(merged):,} images in common and are compared over these.")
        other = sum(a is not None and b is not None and (a.references, a.file_name) != (b.references, b.file_name) for a, b in both)
        if other:
            notes.append(
                f"{other:,} images have other references or another file name in {run.name} than in {runs[0].name}: "
                "their scores are hardly comparable. Those of the first run are shown."
            )
    return merged, notes


def first_image(row: ImageRow) -> ScoredImage:
    """The row's entry from the first run that has captioned the image."""
    return next(image for image in row if image is not None)
