"""The score file: ``evaluate`` writes it; ``report`` and users' scripts read it. docs/formats.md describes its fields."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.decoding import ScoredCaption
from shards.atomic import check_output_file
from shards.errors import DamageError, InputError
from shards.found_instead import did_you_mean
from shards.json_files import read_json, read_versioned_json, write_json
from shards.paths import shell_quoted

FORMAT_VERSION = 1
ENDING = ".scores.json"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score of a split, and the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ScoredImage:
    """An image, its caption, its references, and the scores of this image alone.

    Attributes:
        file_name: As in the annotations; empty where it is unknown. It is untrusted: never open it as a path unchecked.
        scores: By the same names as the split's scores.
        alternatives: All captions that decoding found, the best first, including ``caption``; empty where only ``caption`` is known.
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
        split: The split's name; empty where a result file was scored.
        made_by: Provenance, for people: command, run, checkpoint, decoding, data, digests, tokenizer, versions.
        scores: By the names in :data:`pipeline.evaluation.metrics.METRICS`, in that order: ``bleu_1`` to ``bleu_4``, ``rouge_l``, ``cider``;
            with Java, ``meteor`` and ``spice``; then the descriptive ones, ``distinct``, ``novel``, ``mean_length``, ``bad_endings``.
        notes: A line for each thing that could not be measured, and why.
    """

    split: str
    made_by: dict[str, Any]
    scores: dict[str, Interval]
    images: tuple[ScoredImage, ...]
    notes: tuple[str, ...] = field(default=())


def scores_path(run: Path, split: str) -> Path:
    """Default place of a run's scores: ``RUN/SPLIT.scores.json``."""
    return run / f"{split}{ENDING}"


def check_scores_place(path: Path) -> None:
    """Refuse to overwrite anything but a score file, before any work starts.

    Raises:
        InputError: ``path`` is a folder or another kind of file.
    """
    check_place(path, "out", lambda content: isinstance(content, dict) and content.keys() >= {"made_by", "scores", "images"})


def check_place(path: Path, setting: str, replaceable: Callable[[Any], bool]) -> None:
    """Refuse to write to ``path``, the value of ``setting``, unless it is free or holds JSON that is ``replaceable``.

    Raises:
        InputError: ``path`` is a folder or another kind of file.
        ResourceError: It is a device, a named pipe or a socket.
    """
    if path.is_dir():
        raise InputError(f"`{setting}` {path}: is a folder. Give a file name, such as {path / 'NAME.json'}.")
    check_output_file(path, setting)
    if path.exists():
        try:
            content = read_json(path, what="JSON file")
        except InputError:
            content = None
        if not replaceable(content):
            raise InputError(f"`{setting}` {path}: is another kind of file, which would be overwritten. Choose another name.")


def write_scores(path: Path, scores: ScoreFile) -> None:
    """Commit a score file.

    Raises:
        ResourceError: Disk full, not allowed.
    """
    write_json(path, {"format_version": FORMAT_VERSION, **asdict(scores)})


def read_scores(path: Path) -> ScoreFile:
    """Read a score file.

    Raises:
        InputError: There is no such file.
        DamageError: It is damaged.
        MismatchError: It has another format version.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such score file.{did_you_mean(path)} Make it with: python cli.py evaluate --run RUN --out {shell_quoted(path)}")
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
        raise TypeError(f"{value!r} is not a list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _numbers(entries: dict[str, Any]) -> dict[str, float]:
    return {_text(name): float(value) for name, value in entries.items()}
