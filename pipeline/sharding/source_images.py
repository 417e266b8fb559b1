"""The images that shards are made from: files below a folder, or below a URL, from which several are fetched at a time."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from pipeline.execution.prefetch import map_ahead
from pipeline.images.decode import MAX_FILE_BYTES, ImageError, read_image_file
from shards.errors import DamageError, InputError
from shards.fetch import MissingFileError, ServerRefusedError, download_bytes, file_size, file_system
from shards.paths import Location, is_url

# Images are small: most of the time is spent waiting for answers
FETCHED_AT_ONCE = 8
R = TypeVar("R")


class SourceImageHasher:
    """The size of each source image of a shard, None for one that cannot be read, and a SHA-256 over all of them.

    It is the SHA-256 over the SHA-256 of each file in order, with zeros for a file that cannot be read.
    """

    def __init__(self) -> None:
        self.sizes: list[int | None] = []
        self._hash = hashlib.sha256()

    def add(self, data: bytes | ImageError) -> None:
        """Add the bytes of the next image."""
        self.sizes.append(len(data) if isinstance(data, bytes) else None)
        self._hash.update(hashlib.sha256(data).digest() if isinstance(data, bytes) else bytes(32))

    def hexdigest(self) -> str:
        """The SHA-256 over all images so far (hex)."""
        return self._hash.hexdigest()


def check_source_images(images: Location) -> None:
    """Refuse a place that cannot hold images.

    Raises:
        InputError: No such folder, not a URL that can be read, or a package is missing.
    """
    if is_url(images):
        parts = urlsplit(str(images))
        if parts.query or parts.fragment:
            raise InputError(f"`images` {images}: must be the URL of a folder, without ? and #, because file names are appended to it.")
        file_system(str(images), "Check `images`.")
    elif not Path(images).is_dir():
        raise InputError(f"{images}: no such folder. `images` must be the folder that holds the images.")


def read_source_images(images: Location, names: Sequence[str]) -> Generator[bytes | ImageError, None, None]:
    """The bytes of each image in order, or the error that says why it cannot be read.

    Args:
        images: A folder, or the URL of one.
        names: Paths relative to it.

    Raises:
        ResourceError: A server cannot be reached after several attempts.
    """
    return _each(images, names, _read_url, _read_file)


def source_image_sizes(images: Location, names: Sequence[str]) -> list[int | None]:
    """The size of each image in bytes, without reading it; None if there is no such image.

    Raises:
        ResourceError: As :func:`read_source_images`.
    """
    return list(_each(images, names, _size_at_url, _file_size))


def _each(images: Location, names: Sequence[str], remote: Callable[[str], R], local: Callable[[Path], R]) -> Generator[R, None, None]:
    if is_url(images):
        return map_ahead(remote, (_url(str(images), name) for name in names), threads=FETCHED_AT_ONCE)
    return (local(Path(images) / name) for name in names)


def _url(images: str, name: str) -> str:
    """The URL of an image. On the web the name is percent-encoded, in S3 it is not. Lone surrogates, which no URL can hold, become "?"."""
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
