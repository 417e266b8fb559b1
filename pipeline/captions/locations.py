"""The captions that a user names: files, folders, patterns and URLs -> one location per file, and the split that a table's name tells."""

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from pipeline.captions.table_files import TABLE_SUFFIXES
from shards.errors import InputError, ResourceError, first_line
from shards.fetch import TransientError, file_system, file_system_errors, with_retries
from shards.layout import SPLIT_NAME
from shards.paths import Location, is_url

# What Hugging Face's libraries take for the name of a split in a file name
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
NUMBERED = re.compile(r"(.+)-\d{5,}-of-\d{5,}")
CONVERTED = "refs/convert/parquet"


def expanded(locations: Iterable[Location]) -> list[Location]:
    """Every file that is named: the files of a pattern and the tables of a folder sorted by name, everything else as it is.

    A folder without Parquet or Arrow files stays a folder.

    Raises:
        InputError: A pattern that matches nothing, or a URL without tables.
        ResourceError: A server cannot be reached.
    """
    found: list[Location] = []
    for location in locations:
        found += _at_url(str(location)) if is_url(location) else _on_disk(Path(location))
    return list(dict.fromkeys(found))


def _on_disk(path: Path) -> list[Location]:
    if path.is_dir():
        return list(_one_table(path, sorted(each for each in path.rglob("*") if _is_table(each.relative_to(path).as_posix())))) or [path]
    if glob.has_magic(str(path)) and not path.exists():
        matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            raise InputError(f"{path}: no file matches this pattern. Quote it, so that the shell passes it on.")
        return list(matches)
    return [path]


def _at_url(url: str) -> list[Location]:
    if url.endswith(TABLE_SUFFIXES) and not glob.has_magic(url):
        return [url]
    protocol = url.partition("://")[0]
    if protocol in ("http", "https"):
        raise InputError(f"{url}: at a web address, captions must be one .parquet or .arrow file.")
    system = file_system(url)

    def attempt() -> list[str]:
        with file_system_errors(url, "Check `captions`."):
            return [str(name) for name in (system.glob(url) if glob.has_magic(url) else system.find(url))]

    try:
        names = with_retries(attempt, url, action="listed", retry_advice="")
    except TransientError as problem:
        raise ResourceError(f"{url}: cannot be listed ({first_line(problem)}).") from None
    root = url.partition("://")[2].partition("*")[0]
    tables = sorted(name for name in names if _is_table(name[len(root) :] if name.startswith(root) else name))
    if not tables:
        hint = f" Most datasets on the Hub have been converted: try {url.rstrip('/')}@{CONVERTED}" if protocol == "hf" and "@" not in url else ""
        raise InputError(f"{url}: has no .parquet or .arrow file.{hint}")
    return [f"{protocol}://{name}" for name in map(str, _one_table(url, tables))]


def _is_table(name: str) -> bool:
    """Whether a file is part of a table. Hidden files, and what ``datasets`` keeps of its computations, are not."""
    parts = PurePosixPath(name).parts
    return name.endswith(TABLE_SUFFIXES) and not any(part.startswith((".", "cache-")) for part in parts)


def _one_table(place: Location, files: Sequence[Location]) -> Sequence[Location]:
    """The files, unless their folders are those of several tables.

    Raises:
        InputError: They are; names the folders.
    """
    folders = {_table_folder(PurePosixPath(str(file)).parent) for file in files}
    if len(folders) > 1:
        shown = ", ".join(sorted(map(str, folders)))[:500]
        raise InputError(f"{place}: has tables in several folders, which may be several datasets. Give one of them as `captions`: {shown}.")
    return files


def _table_folder(folder: PurePosixPath) -> PurePosixPath:
    return folder.parent if folder.name.lower() in SPLIT_WORDS else folder


def split_of_table(location: Location) -> str | None:
    """The split that a table's file name, or else its folder's name, tells.

    >>> split_of_table("data/train-00000-of-00009.parquet"), split_of_table("default/validation/0000.parquet"), split_of_table("photos.parquet")
    ('train', 'val', None)
    """
    path = PurePosixPath(str(location).replace("\\", "/"))
    numbered = NUMBERED.fullmatch(path.stem)
    name = numbered[1] if numbered else path.stem
    words = {SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS}
    if len(words) == 1:
        return words.pop()
    if not words and numbered and name != "data" and SPLIT_NAME.fullmatch(name):
        return name
    return SPLIT_WORDS.get(path.parent.name.lower()) if not words else None
