"""The content of the page as JSON, without its thumbnails. The scripts in ``page/`` read it."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.captions.languages import TAG
from pipeline.evaluation.metrics import METRICS, display_order
from pipeline.reporting.curves import RunCurves, thinned
from pipeline.reporting.differences import Difference, score_differences
from pipeline.reporting.html_page import THUMBNAILS_PER_BLOCK
from pipeline.reporting.reported_runs import ImageRow, ReportedRun, first_image

MAX_DEPTH = 3


def page_content(runs: Sequence[ReportedRun], rows: Sequence[ImageRow], notes: Sequence[str], *, with_thumbnails: bool) -> dict[str, Any]:
    """Everything that the page shows except thumbnails."""
    names = display_order(name for run in runs for name in run.scores.scores)
    per_image = display_order(name for run in runs for image in run.scores.images for name in image.scores)
    return {
        "language": next(filter(None, map(_language, runs)), ""),
        "split": next((run.scores.split for run in runs if run.scores.split), ""),
        "thumbnailsPerBlock": THUMBNAILS_PER_BLOCK if with_thumbnails else 0,
        "notes": list(notes),
        "scores": [_score_content(name) for name in names],
        "perImage": [{"name": name, "label": label(name)} for name in per_image],
        "runs": [_run_content(run, names) for run in runs],
        "differences": [[_difference_content(found) for found in score_differences(rows, column)] for column in range(1, len(runs))],
        "settings": _settings_tables(runs),
        "images": [_image_content(row, per_image) for row in rows],
    }


def label(name: str) -> str:
    """A score's name as people read it.

    >>> label("bleu_4"), label("clip_score")
    ('BLEU-4', 'clip score')
    """
    return METRICS[name].label if name in METRICS else name.replace("_", " ")


def _score_content(name: str) -> dict[str, Any]:
    metric = METRICS.get(name)
    return {
        "name": name,
        "label": label(name),
        "share": metric is not None and metric.share,
        "descriptive": metric is not None and metric.descriptive,
    }


def _run_content(run: ReportedRun, names: Sequence[str]) -> dict[str, Any]:
    scores = [run.scores.scores.get(name) for name in names]
    return {
        "name": run.name,
        "language": _language(run),
        "images": len(run.scores.images),
        "notes": list(run.scores.notes),
        "scores": [None if score is None else [score.value, score.low, score.high] for score in scores],
        "curves": None if run.curves is None else _curves_content(run.curves),
        "curvesNote": run.curves_note,
    }


def _language(run: ReportedRun) -> str:
    """The language of a run's captions, a BCP 47 tag; empty if its score file does not say."""
    tag = run.scores.made_by.get("language")
    return tag if isinstance(tag, str) and TAG.fullmatch(tag) else ""


def _curves_content(curves: RunCurves) -> dict[str, Any]:
    training = ("epochs", "mean_loss", "lr", "captions_per_second")
    validation = ("step", "epochs", "val_loss", "val_cider")
    return {
        "training": {name: [_rounded(_training_value(line, name)) for line in thinned(curves.training)] for name in training},
        "validation": {name: [_rounded(line.get(name)) for line in curves.validation] for name in validation},
    }


def _training_value(line: dict[str, float], name: str) -> float | None:
    return None if name == "mean_loss" and "reward" in line else line[name]  # the loss of self-critical training is not a cross entropy


def _difference_content(found: Difference) -> dict[str, Any]:
    change = found.change
    return {
        "name": found.name,
        "label": label(found.name),
        "change": [change.value, change.low, change.high],
        "images": found.images,
        "higher": found.higher,
        "lower": found.lower,
        "equal": found.equal,
    }


def _image_content(row: ImageRow, names: Sequence[str]) -> list[Any]:
    """[id, file name, references, for each run [caption, scores, alternatives] or null]. Lists, because keys would be half of the page's size."""
    first = first_image(row)
    results = [
        None
        if image is None
        else [image.caption, [_rounded(image.scores.get(name)) for name in names], [[one.caption, _rounded(one.score)] for one in image.alternatives]]
        for image in row
    ]
    return [first.image_id, first.file_name, list(first.references), results]


def _rounded(value: float | None) -> float | None:
    """Rounded to six significant digits: more than the page shows, and a third of the size."""
    return None if value is None else float(f"{value:.6g}")


def _settings_tables(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """The settings of evaluation and training as tables: a row per setting, a cell per run, null where a run does not have it."""
    tables = []
    for title, sources in (("Evaluation", [run.scores.made_by for run in runs]), ("Training", [run.config for run in runs])):
        flat = [dict(flattened(source)) if source is not None else {} for source in sources]
        keys = dict.fromkeys(key for one in flat for key in one)
        missing = [run.name for run, source in zip(runs, sources, strict=True) if not source]
        tables.append({"title": title, "rows": [[key, [one.get(key) for one in flat]] for key in keys], "missing": missing})
    return tables


def flattened(content: dict[str, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, str]]:
    """Nested settings as pairs of dotted name and text.

    >>> list(flattened({"command": "evaluate", "decoding": {"beam": 5, "sizes": [1, 2]}}))
    [('command', 'evaluate'), ('decoding.beam', '5'), ('decoding.sizes', '[1, 2]')]
    """
    for key, value in content.items():
        if isinstance(value, dict) and value and depth < MAX_DEPTH:
            yield from flattened(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
