"""The score file: what ``evaluate`` writes, and what ``report`` and anybody's script read. docs/formats.md has the fields."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.decoding import ScoredCaption
from shards.errors import DamageError, InputError
from shards.json_files import read_json, read_versioned_json, write_json

FORMAT_VERSION = 1
ENDING = ".scores.json"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure over a split, and the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ScoredImage:
    """An image, its caption, the captions that people wrote, and the scores of this image alone.

    Attributes:
        file_name: As the annotations name it: a stranger's word, never a path to be opened as it is. Empty where it is unknown.
        scores: By the names of the whole split's.
        alternatives: All that decoding found, the best first, the caption itself included; none where only that is known.
    """

    image_id: int
    file_name: str
    caption: str
    references: tuple[str, ...]
    scores: dict[str, float]
    alternatives: tuple[ScoredCaption, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScoreFile:
    """Everything about one evaluation.

    Attributes:
        split: Its name; empty where a result file was scored.
        made_by: How it came about: command, run, checkpoint, decoding, data, digests, tokenizer, versions; for reading, not for use.
        scores: ``bleu_1`` ... ``bleu_4``, ``rouge_l``, ``cider``, and where Java is there ``meteor`` and ``spice``; then what says
            nothing of right or wrong: ``distinct``, ``novel``, ``mean_length``, ``bad_endings``.
        notes: What could not be measured, and why; a line each.
    """

    split: str
    made_by: dict[str, Any]
    scores: dict[str, Interval]
    images: tuple[ScoredImage, ...]
    notes: tuple[str, ...] = field(default=())


def scores_path(run: Path, split: str) -> Path:
    """Where ``evaluate`` puts a run's scores: ``RUN/SPLIT.scores.json``."""
    return run / f"{split}{ENDING}"


def check_scores_place(path: Path) -> None:
    """Refuse to write scores over anything but scores, before the work that finds them.

    Raises:
        InputError: A folder, or a file of something else, is there.
    """
    check_place(path, "--out", lambda content: isinstance(content, dict) and content.keys() >= {"made_by", "scores", "images"})


def check_place(path: Path, option: str, replaceable: Callable[[Any], bool]) -> None:
    """Refuse a file's place, which ``option`` chooses, unless it is free or holds JSON that may be lost.

    Raises:
        InputError: A folder, or a file of something else, is there.
    """
    if path.is_dir():
        raise InputError(f"{option} {path}: is a folder. Give the file's own name, as {path / 'NAME.json'}.")
    if path.exists():
        try:
            content = read_json(path, what="JSON file")
        except InputError:
            content = None
        if not replaceable(content):
            raise InputError(f"{option} {path}: holds something else, which would be lost. Choose another name.")


def write_scores(path: Path, scores: ScoreFile) -> None:
    """Commit a score file.

    Raises:
        ResourceError: Disk full, not allowed.
    """
    write_json(path, {"format_version": FORMAT_VERSION, **asdict(scores)})


def read_scores(path: Path) -> ScoreFile:
    """Read a score file.

    Raises:
        InputError: There is none.
        DamageError: It is damaged, or of another version.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such score file. Make it with: python cli.py evaluate --run RUN --features DIR --out {path}")
    content = read_versioned_json(path, what="score file", format_version=FORMAT_VERSION)
    try:
        return ScoreFile(
            split=_text(content["split"]),
            made_by=dict(content["made_by"]),
            scores={_text(name): Interval(**_numbers(entry)) for name, entry in content["scores"].items()},
            images=tuple(_image(entry) for entry in _list(content["images"])),
            notes=tuple(map(_text, _list(content["notes"]))),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamageError(f"{path}: not a score file ({error!r}). Make it again with: python cli.py evaluate") from None


def _image(entry: dict[str, Any]) -> ScoredImage:
    return ScoredImage(
        image_id=int(entry["image_id"]),
        file_name=_text(entry["file_name"]),
        caption=_text(entry["caption"]),
        references=tuple(map(_text, _list(entry["references"]))),
        scores=_numbers(entry["scores"]),
        alternatives=tuple(ScoredCaption(caption=_text(one["caption"]), score=float(one["score"])) for one in _list(entry["alternatives"])),
    )


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _numbers(entries: dict[str, Any]) -> dict[str, float]:
    return {_text(name): float(value) for name, value in entries.items()}
