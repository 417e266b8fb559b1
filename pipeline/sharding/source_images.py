"""The photographs that shards are made from: files below a folder, or below a URL, where several are fetched at a time."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from pipeline.execution.prefetch import map_ahead
from pipeline.images.decode import MAX_FILE_BYTES, ImageError, read_image_file
from shards.errors import DamageError, InputError
from shards.fetch import MissingFileError, ServerRefusedError, download_bytes, file_size, file_system
from shards.paths import Location, is_url

# SourceImages are small: waiting for answers is what takes time.
FETCHED_AT_ONCE = 8
R = TypeVar("R")


def check_originals(images: Location) -> None:
    """Refuse a place that can hold no photographs.

    Raises:
        InputError: No such folder, no URL, or a package is missing.
    """
    if is_url(images):
        place = urlsplit(str(images))
        if place.query or place.fragment:
            raise InputError(f"--images {images}: file names are put behind this URL, which must be that of a folder: without ? and #.")
        file_system(str(images), "Check --images.")
    elif not Path(images).is_dir():
        raise InputError(f"{images}: no such folder (--images should name the folder that holds the photographs).")


def read_originals(images: Location, names: Sequence[str]) -> Generator[bytes | ImageError, None, None]:
    """The bytes of each photograph, or why there are none, in order.

    Args:
        images: A folder, or the URL of one.
        names: Paths below it.

    Raises:
        ResourceError: A server cannot be reached, however often it is tried.
    """
    return _each(images, names, _read_url, _read_file)


def original_sizes(images: Location, names: Sequence[str]) -> list[int | None]:
    """The size of each photograph in bytes, without reading it; None where there is none.

    Raises:
        ResourceError: As :func:`read_originals`.
    """
    return list(_each(images, names, _size_at_url, _file_size))


def _each(images: Location, names: Sequence[str], remote: Callable[[str], R], local: Callable[[Path], R]) -> Generator[R, None, None]:
    if is_url(images):
        return map_ahead(remote, (_url(str(images), name) for name in names), threads=FETCHED_AT_ONCE)
    return (local(Path(images) / name) for name in names)


def _url(images: str, name: str) -> str:
    """A photograph's URL: S3 takes names as they are, the web does not. Lone surrogates, which no URL holds, name nothing."""
    name = name.encode("utf-8", "replace").decode()
    return f"{images.rstrip('/')}/{quote(name) if images.startswith('http') else name}"


def _read_url(url: str) -> bytes | ImageError:
    try:
        return download_bytes(url, max_bytes=MAX_FILE_BYTES)
    except MissingFileError:
        return ImageError("missing_file", f"{url}: no such file")
    except DamageError:
        return ImageError("too_large", f"{url}: more than the limit of {MAX_FILE_BYTES} bytes")
    except ServerRefusedError as error:
        return ImageError("unreadable_file", str(error))


def _size_at_url(url: str) -> int | None:
    try:
        return file_size(url)
    except ServerRefusedError:
        return None


def _read_file(path: Path) -> bytes | ImageError:
    try:
        return read_image_file(path)
    except ImageError as error:
        return error


def _file_size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None
