"""COCO's result format for captions: a JSON list of ``{"image_id", "caption"}`` (https://cocodataset.org/#format-results).

``evaluate`` writes this format, so that other tools can score the captions, and reads it from any source.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.captions.records import MAX_CAPTION_CHARACTERS
from pipeline.evaluation.score_file import ENDING, check_place
from shards.errors import InputError
from shards.json_files import read_json, write_json

RESULTS_ENDING = ".results.json"
EXAMPLES = 3
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
        InputError: There is no such file, or it is not a result file for these images. As in COCO's evaluation, one wrong id refuses the file;
            the message has the number of ids that are not integers, repeated or unknown, and the first entries of each kind.
    """
    content = read_json(path, what="result file", repair=FORM)
    if not isinstance(content, list):
        raise InputError(f"{path}: not a result file: the top level is a {type(content).__name__}, not a list. {FORM}")
    if not content:
        raise InputError(f"{path}: the list is empty: there are no captions to score. {FORM}")
    images = frozenset(known)
    found: dict[int, str] = {}
    no_integers, repeated, unknown = [], [], []
    for place, entry in enumerate(content):
        image_id, caption = _entry(f"{path}: entry {place}", entry)
        if type(image_id) is not int:  # not isinstance(): True is an int
            no_integers.append(f"entry {place}: {_shown(image_id)}")
            continue
        if image_id in found:
            repeated.append(f"entry {place}: {_shown(image_id)}")
        elif image_id not in images:
            unknown.append(f"entry {place}: {_shown(image_id)}")
        found.setdefault(image_id, caption)
    problems = (
        (no_integers, "with an image_id that is not an integer", "Write it without quotes or a decimal point."),
        (repeated, "of an image that an earlier entry has", "Keep one entry for each image."),
        (unknown, "of an image that is not among the references' images", "Give the `references` that these captions were made for, or remove them."),
    )
    said = [f"{_entries(places)} {problem} ({'; '.join(places[:EXAMPLES])}). {advice}" for places, problem, advice in problems if places]
    if said:
        raise InputError(f"{path}: has {' Also '.join(said)}")
    return found


def _entries(places: Sequence[str]) -> str:
    return "1 entry" if len(places) == 1 else f"{len(places):,} entries"


def _entry(where: str, entry: Any) -> tuple[Any, str]:
    """The image's id, of any type, and the caption of an entry."""
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {_shown(entry)}, not an object. {FORM}")
    for name in ("image_id", "caption"):
        if name not in entry:
            raise InputError(f'{where} has no "{name}". {FORM}')
    image_id, caption = entry["image_id"], entry["caption"]
    if not isinstance(caption, str):
        raise InputError(f"{where}: the caption of image {_shown(image_id)} is {_shown(caption)}, not a string. {FORM}")
    if len(caption) > MAX_CAPTION_CHARACTERS:
        raise InputError(
            f"{where}: the caption of image {_shown(image_id)} has {len(caption)} characters; the limit is {MAX_CAPTION_CHARACTERS}. Shorten it."
        )
    return image_id, caption.encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
