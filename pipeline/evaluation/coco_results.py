"""COCO's result format for captions: a JSON list of ``{"image_id", "caption"}`` (https://cocodataset.org/#format-results).

``evaluate`` writes this format, so that other tools can score the captions, and reads it from any source.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.score_file import ENDING, check_place
from shards.errors import InputError
from shards.json_files import read_json, write_json

RESULTS_ENDING = ".results.json"
FORM = 'A result file is a list of {"image_id": 42, "caption": "a dog on a sofa"}, one entry for each image.'


def results_path(scores: Path) -> Path:
    """Default place of the captions that a score file is about: next to it.

    >>> results_path(Path("runs/first/val.scores.json")).as_posix(), results_path(Path("scores.json")).as_posix()
    ('runs/first/val.results.json', 'scores.results.json')
    """
    name = scores.name.removesuffix(ENDING) if scores.name.endswith(ENDING) else scores.name.removesuffix(".json")
    return scores.with_name(f"{name}{RESULTS_ENDING}")


def check_results_place(path: Path) -> None:
    """Refuse to overwrite anything but a result file (a JSON list), before any work starts.

    Raises:
        InputError: ``path`` is a folder or another kind of file.
    """
    check_place(path, "results", lambda content: isinstance(content, list))


def write_results(path: Path, captions: Iterable[tuple[int, str]]) -> None:
    """Commit captions, given as (image id, caption).

    Raises:
        ResourceError: Disk full, not allowed.
    """
    write_json(path, [{"image_id": image_id, "caption": caption} for image_id, caption in captions])


def read_results(path: Path, known: Sequence[int]) -> dict[int, str]:
    """Read captions by image id, in the file's order.

    Args:
        path: An untrusted file.
        known: The ids of the images that have references.

    Raises:
        InputError: There is no such file, or it is not a result file for these images. The message names the first invalid entry.
    """
    content = read_json(path, what="result file", repair=FORM)
    if not isinstance(content, list):
        raise InputError(f"{path}: not a result file: the top level is a {type(content).__name__}, not a list. {FORM}")
    if not content:
        raise InputError(f"{path}: the list is empty: there are no captions to score. {FORM}")
    images = frozenset(known)
    found: dict[int, str] = {}
    for place, entry in enumerate(content):
        image_id, caption = _entry(f"{path}: entry {place}", entry)
        if image_id in found:
            raise InputError(f"{path}: entry {place}: image {image_id} has a caption already. Keep one entry for each image.")
        if image_id not in images:
            raise InputError(
                f"{path}: entry {place}: image {image_id} is not among the references' images. "
                "Give the `references` that these captions were made for, or remove the entry."
            )
        found[image_id] = caption
    return found


def _entry(where: str, entry: Any) -> tuple[int, str]:
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {_shown(entry)}, not an object. {FORM}")
    for name in ("image_id", "caption"):
        if name not in entry:
            raise InputError(f'{where} has no "{name}". {FORM}')
    image_id, caption = entry["image_id"], entry["caption"]
    if type(image_id) is not int:  # not isinstance(): True is an int
        raise InputError(f"{where}: image_id is {_shown(image_id)}, not an integer. Write it without quotes or a decimal point.")
    if not isinstance(caption, str):
        raise InputError(f"{where}: the caption of image {image_id} is {_shown(caption)}, not a string. {FORM}")
    return image_id, caption.encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
