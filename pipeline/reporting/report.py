"""Runs -> one page that shows how well they caption: scores, curves, every image with its captions, and how it was made.

The page is a single HTML file that needs no network. Its own parts lie in ``page/``. Every text in it that is not ours (captions,
file names, names of runs) travels as JSON, in which nothing can end the element that holds it, and reaches the page as text only; a
content security policy lets nothing run but our own script. Pictures lie in blocks that are taken apart when they are looked at.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.intervals import mean_bounds
from pipeline.evaluation.score_file import ENDING, Interval, ScoredImage, ScoreFile, read_scores, scores_path
from pipeline.reporting.curves import RunCurves, read_curves, short_names, thinned
from pipeline.reporting.thumbnails import RequestedImage, Thumbnails, folder_thumbnails, shard_thumbnails
from pipeline.runs.run import CONFIG_FILE, METRICS_FILE, holds_run
from shards.atomic import committed_file
from shards.errors import DamageError, InputError, MismatchError
from shards.json_files import read_json
from shards.layout import check_split_name

PAGE = Path(__file__).parent / "page"
# As many as there are colours in page.css that can be told apart.
MAX_RUNS = 8
PICTURES_PER_BLOCK = 250
LABELS = {
    "cider": "CIDEr",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "spice": "SPICE",
    "distinct": "Distinct captions",
    "novel": "Novel captions",
    "mean_length": "Mean length in words",
    "bad_endings": "Bad endings",
}
# Of these a split's score is the mean of its images', so that the difference of two runs can be resampled image by image.
MEANS = ("cider", "rouge_l", "spice")
# Of these more or fewer is neither better nor worse.
DESCRIPTIVE = ("distinct", "novel", "mean_length", "bad_endings")
SHARES = ("distinct", "novel", "bad_endings")
DEPTH = 3


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a score gains from one run to another over the images of both.

    Attributes:
        change: The mean difference, with the bounds of its 95% interval.
        higher, lower, equal: Images.
    """

    name: str
    change: Interval
    images: int
    higher: int
    lower: int
    equal: int


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """A run, or a score file alone, as the page shows it.

    Attributes:
        curves: None where nothing is logged; ``curves_note`` says why.
        config: The run's own, or None.
    """

    name: str
    scores: ScoreFile
    curves: RunCurves | None
    curves_note: str
    config: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """What was written.

    Attributes:
        pictures: Images with a picture; None where none were asked for.
        missing, damaged: Images without one.
        images_per_second: How fast thumbnails were made.
        notes: What does not fit together, a line each.
    """

    path: Path
    bytes: int
    runs: tuple[str, ...]
    images: int
    pictures: int | None
    missing: int
    damaged: int
    images_per_second: float
    notes: tuple[str, ...]


def report(
    *, runs: Sequence[Path], out: Path, split: str = "val", shards: Path | None = None, images: Path | None = None, quiet: bool = True
) -> ReportSummary:
    """Write the page of some runs, which have been evaluated on one split.

    Args:
        runs: Run folders, or score files themselves; the first is what the others are compared with.
        out: A file whose name ends in .html.
        split: Which score file of a run's folder; and which split of ``shards``.
        shards, images: Where the pictures are: a shard dataset, or the folder of the photographs. Neither: the page has none.

    Raises:
        InputError: Another ending, both places of pictures, none of the pictures there, no score file, a run twice, too many.
        MismatchError: The runs have no image in common, or are of different splits.
        DamageError: A score file, log or config is damaged.
        ResourceError: Disk full, not allowed.
    """
    if out.suffix.lower() != ".html":
        raise InputError(f"--out {out}: a report is one HTML page: give it a name that ends in .html.")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder. Give the page's own name: {out / 'report.html'}")
    if shards is not None and images is not None:
        raise InputError("Give one of --shards DIR (pictures as they are stored) and --images DIR (the photographs), not both.")
    check_split_name(split)
    reported = read_runs(runs, split)
    rows, notes = merged_images(reported)
    wanted = [RequestedImage(image_id=first.image_id, file_name=first.file_name) for first in map(_first, rows)]
    made: Thumbnails | None = None
    if shards is not None:
        made = shard_thumbnails(shards, split, wanted, quiet=quiet)
    elif images is not None:
        made = folder_thumbnails(images, wanted, quiet=quiet)
    parts = page_parts(page_content(reported, rows, notes, pictures=made is not None), made)
    size = 0
    with committed_file(out) as file:
        for part in parts:
            size += file.write(part)
    return ReportSummary(
        path=out,
        bytes=size,
        runs=tuple(run.name for run in reported),
        images=len(rows),
        pictures=None if made is None else len(rows) - made.count("missing") - made.count("damaged"),
        missing=0 if made is None else made.count("missing"),
        damaged=0 if made is None else made.count("damaged"),
        images_per_second=0.0 if made is None else made.images_per_second,
        notes=tuple(notes),
    )


def read_runs(runs: Sequence[Path], split: str) -> list[ReportedRun]:
    """Read what the page shows of each run.

    Raises:
        InputError, MismatchError, DamageError: As :func:`report`.
    """
    if not 1 <= len(runs) <= MAX_RUNS:
        raise InputError(f"{len(runs)} runs: a report shows 1 to {MAX_RUNS}.")
    places = [run.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{run}: given twice. Name each run once.")
    found = [_read_run(run, name, split) for run, name in zip(runs, _names(runs), strict=True)]
    splits = {run.scores.split: run for run in found if run.scores.split}
    if len(splits) > 1:
        there = ", ".join(f"{run.name}: {name!r}" for name, run in splits.items())
        raise MismatchError(f"These scores are of different splits ({there}), which have different images. Evaluate all runs on one split.")
    return found


def _names(runs: Sequence[Path]) -> list[str]:
    """How the page calls some runs: score files without their ending, unless another is called so."""
    names = short_names(runs)
    plain = [name.removesuffix(ENDING).removesuffix(".json") or name for name in names]
    return [name if plain.count(short) > 1 else short for name, short in zip(names, plain, strict=True)]


def _read_run(run: Path, name: str, split: str) -> ReportedRun:
    if run.is_file() or (run.suffix == ".json" and not run.is_dir()):
        return ReportedRun(name=name, scores=_checked(run), curves=None, curves_note="A score file alone: it has no training log.", config=None)
    path = scores_path(run, split)
    if not run.is_dir():
        raise InputError(f"{run}: no such run. Train one with: python cli.py train --out {run}")
    if not path.is_file():
        if not holds_run(run):
            raise InputError(f"{run}: not a run (there is no {CONFIG_FILE}), and it holds no {path.name}. Give a run that evaluate has scored.")
        raise InputError(
            f"{path}: {run} has no scores of the split {split!r}. "
            f"Make them with: python cli.py evaluate --run {run} --features DIR --split {split} --out {path}"
        )
    scores = _checked(path)
    config = read_json(run / CONFIG_FILE, what="run config", error=DamageError) if holds_run(run) else None
    if config is not None and not isinstance(config, dict):
        raise DamageError(f"{run / CONFIG_FILE}: not a run's config: a JSON object was expected. Put the original file back.")
    log = run / METRICS_FILE
    if config is None or not log.is_file() or log.stat().st_size == 0:
        return ReportedRun(name=name, scores=scores, curves=None, curves_note=f"No training log: the run has no {METRICS_FILE}.", config=config)
    return ReportedRun(name=name, scores=scores, curves=read_curves(run, name), curves_note="", config=config)


def _checked(path: Path) -> ScoreFile:
    """A score file that can be shown: numbers are finite, images are there, each once."""
    scores = read_scores(path)
    if not scores.images:
        raise InputError(f"{path}: holds no images. Evaluate a split that has some: python cli.py evaluate --out {path}")
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


ImageRow = list[ScoredImage | None]


def merged_images(runs: Sequence[ReportedRun]) -> tuple[list[ImageRow], list[str]]:
    """The images of all runs, each with what every run says of it; and what does not fit together, in words.

    Raises:
        MismatchError: Two runs have no image in common.
    """
    rows: dict[int, ImageRow] = {}
    for place, run in enumerate(runs):
        for image in run.scores.images:
            rows.setdefault(image.image_id, [None] * len(runs))[place] = image
    merged, notes = list(rows.values()), []
    for place, run in enumerate(runs[1:], 1):
        both = [(row[0], row[place]) for row in merged if row[0] is not None and row[place] is not None]
        if not both:
            raise MismatchError(f"{runs[0].name} and {run.name} have scored no image in common. Evaluate both on the same data.")
        if len(both) < len(merged):
            notes.append(f"{runs[0].name} and {run.name} have {len(both):,} of {len(merged):,} images in common; they are compared over these.")
        other = sum(a is not None and b is not None and (a.references, a.file_name) != (b.references, b.file_name) for a, b in both)
        if other:
            notes.append(
                f"{other:,} images have other references or another file name in {run.name} than in {runs[0].name}: "
                "their scores compare little. The first run's are shown."
            )
    return merged, notes


def _first(row: ImageRow) -> ScoredImage:
    return next(image for image in row if image is not None)


def paired_difference(name: str, before: NDArray[np.float64], after: NDArray[np.float64], *, seed: int = 0) -> Difference:
    """How a score changes from one run to another over the same images, with a paired bootstrap's percentile interval.

    Images are drawn with replacement, as for the scores' own intervals (:mod:`model.intervals`), a run's score of an image together with
    the other's (Koehn, "Statistical Significance Tests for Machine Translation Evaluation", 2004, without its test).

    Args:
        before, after: float64 (images,): scores of the same images, at least one.

    >>> paired_difference("cider", np.zeros(4), np.ones(4)).change
    Interval(value=1.0, low=1.0, high=1.0)
    """
    gains = after - before
    (low,), (high,) = (bound.tolist() for bound in mean_bounds(gains[:, None], seed=seed))
    higher, lower = int((gains > 1e-9).sum()), int((gains < -1e-9).sum())
    change = Interval(value=float(gains.mean()), low=low, high=high)
    return Difference(name=name, change=change, images=len(gains), higher=higher, lower=lower, equal=len(gains) - higher - lower)


def _differences(rows: Sequence[ImageRow], place: int) -> Iterator[Difference]:
    pairs = [(row[0].scores, row[place].scores) for row in rows if row[0] is not None and (row[place]) is not None]  # type: ignore[union-attr]
    for name in MEANS:
        both = [(a[name], b[name]) for a, b in pairs if name in a and name in b]
        if both:
            before, after = np.array(both, dtype=np.float64).T  # (2, images)
            yield paired_difference(name, before, after)


def page_content(runs: Sequence[ReportedRun], rows: Sequence[ImageRow], notes: Sequence[str], *, pictures: bool) -> dict[str, Any]:
    """Everything that the page shows but its pictures, as JSON holds it; read by page/page.js."""
    names = _score_names(name for run in runs for name in run.scores.scores)
    per_image = _score_names(name for run in runs for image in run.scores.images for name in image.scores)
    return {
        "split": next((run.scores.split for run in runs if run.scores.split), ""),
        "picturesPerBlock": PICTURES_PER_BLOCK if pictures else 0,
        "notes": list(notes),
        "scores": [{"name": name, "label": label(name), "share": name in SHARES, "descriptive": name in DESCRIPTIVE} for name in names],
        "perImage": [{"name": name, "label": label(name)} for name in per_image],
        "runs": [_run_content(run, names) for run in runs],
        "differences": [[_difference_content(found) for found in _differences(rows, place)] for place in range(1, len(runs))],
        "settings": _settings(runs),
        "images": [_image_content(row, per_image) for row in rows],
    }


def label(name: str) -> str:
    """A score's name for people.

    >>> label("bleu_4"), label("clip_score")
    ('BLEU-4', 'clip score')
    """
    return LABELS.get(name, name.replace("_", " "))


def _score_names(found: Iterator[str]) -> list[str]:
    there = dict.fromkeys(found)
    return [name for name in LABELS if name in there] + [name for name in there if name not in LABELS]


def _run_content(run: ReportedRun, names: Sequence[str]) -> dict[str, Any]:
    scores = [run.scores.scores.get(name) for name in names]
    return {
        "name": run.name,
        "images": len(run.scores.images),
        "notes": list(run.scores.notes),
        "scores": [None if score is None else [score.value, score.low, score.high] for score in scores],
        "curves": None if run.curves is None else _curves_content(run.curves),
        "curvesNote": run.curves_note,
    }


def _curves_content(curves: RunCurves) -> dict[str, Any]:
    training = ("epochs", "mean_loss", "lr", "captions_per_second")
    validation = ("step", "epochs", "val_loss", "val_cider")
    return {
        "training": {name: [_short(_shown(line, name)) for line in thinned(curves.training)] for name in training},
        "validation": {name: [_short(line.get(name)) for line in curves.validation] for name in validation},
    }


def _shown(line: dict[str, float], name: str) -> float | None:
    return None if name == "mean_loss" and "reward" in line else line[name]  # self-critical training's loss is no entropy


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
    """[id, file name, references, for each run [caption, scores, alternatives] or null]: rows, because keys would be half of the page's text."""
    first = _first(row)
    said = [
        None
        if image is None
        else [image.caption, [_short(image.scores.get(name)) for name in names], [[one.caption, _short(one.score)] for one in image.alternatives]]
        for image in row
    ]
    return [first.image_id, first.file_name, list(first.references), said]


def _short(value: float | None) -> float | None:
    """Six figures: more than the page shows, and a third of the digits."""
    return None if value is None else float(f"{value:.6g}")


def _settings(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """How each run was evaluated and trained, as tables: a row per setting, a cell per run, null where a run says nothing of it."""
    tables = []
    for title, sources in (("Evaluation", [run.scores.made_by for run in runs]), ("Training", [run.config for run in runs])):
        flat = [dict(flattened(source)) if source is not None else {} for source in sources]
        keys = dict.fromkeys(key for one in flat for key in one)
        missing = [run.name for run, source in zip(runs, sources, strict=True) if not source]
        tables.append({"title": title, "rows": [[key, [one.get(key) for one in flat]] for key in keys], "missing": missing})
    return tables


def flattened(content: dict[str, Any], above: str = "", depth: int = 1) -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text).

    >>> list(flattened({"command": "evaluate", "decoding": {"beam": 5, "sizes": [1, 2]}}))
    [('command', 'evaluate'), ('decoding.beam', '5'), ('decoding.sizes', '[1, 2]')]
    """
    for key, value in content.items():
        if isinstance(value, dict) and value and depth < DEPTH:
            yield from flattened(value, f"{above}{key}.", depth + 1)
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def safe_json(content: Any) -> bytes:
    r"""JSON in ASCII that no HTML parser finds a tag, a comment or a line end in.

    >>> safe_json("</script>&\u2028")
    b'"\\u003c/script\\u003e\\u0026\\u2028"'
    """
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text).encode("ascii")


def page_parts(content: dict[str, Any], thumbnails: Thumbnails | None) -> Iterator[bytes]:
    """The page, piece by piece: the template with style, data, pictures and script in their places, and a policy that names both by digest."""
    style, script = (_own(name).strip("\n") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_source_hash(style)}'; script-src '{_source_hash(script)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    filled = {"POLICY": policy, "STYLE": style, "SCRIPT": script}
    page = re.sub(r"\{\{(POLICY|STYLE|SCRIPT)\}\}", lambda found: filled[found[1]], _own("page.html"))
    before, between = page.split("{{DATA}}")
    between, after = between.split("{{PICTURES}}")
    yield before.encode()
    yield safe_json(content)
    yield between.encode()
    pictures = thumbnails.pictures if thumbnails is not None else ()
    for start in range(0, len(pictures), PICTURES_PER_BLOCK):
        block = pictures[start : start + PICTURES_PER_BLOCK]
        yield b'<script type="text/plain" id="pictures-%d">' % (start // PICTURES_PER_BLOCK)
        # A line for each: base64, or the reason in a word, which no JPEG's base64 ("/9j/...") can be
        yield b"\n".join(picture.encode() if isinstance(picture, str) else base64.b64encode(picture) for picture in block)
        yield b"</script>\n"
    yield after.encode()


def _own(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _source_hash(text: str) -> str:
    """What a content security policy calls an inline element by (W3C, Content Security Policy Level 3, hash-source)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
