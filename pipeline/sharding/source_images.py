"""The images that shards are made from: files below a folder, or below a URL, from which several are fetched at a time."""

import hashlib
import unicodedata
from collections.abc import Generator, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

from pipeline.execution.prefetch import map_ahead
from pipeline.images.decode import MAX_FILE_BYTES, ImageError, read_image_file
from pipeline.sharding.folder_names import FolderNames
from shards.errors import DamageError, InputError, SettingsError
from shards.fetch import MissingFileError, ServerRefusedError, download_bytes, file_size, file_system
from shards.paths import Location, is_url

# Images are small: most of the time is spent waiting for answers
FETCHED_AT_ONCE = 8


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
            raise SettingsError(f"`images` {images}: must be the URL of a folder, without ? and #, because file names are appended to it.")
        file_system(str(images), "Check `images`.")
    elif not Path(images).is_dir():
        raise InputError(f"{images}: no such folder. `images` must be the folder that holds the images.")


def read_source_images(images: Location, names: Sequence[str]) -> Generator[bytes | ImageError, None, None]:
    """The bytes of each image in order, or the error that says why it cannot be read.

    Args:
        images: A folder, or the URL of one.
        names: Paths relative to it, as :mod:`pipeline.sharding.folder_names` finds them.

    Raises:
        ResourceError: A server cannot be reached after several attempts.
    """
    if is_url(images):
        return map_ahead(lambda name: _read_url(str(images), name), names, threads=FETCHED_AT_ONCE)
    listed = FolderNames(Path(images))
    return (_read_file(Path(images), name, listed) for name in names)


def source_image_sizes(images: Location, names: Sequence[str]) -> list[int | None]:
    """The size of each image in bytes, without reading it; None if there is no such image.

    Raises:
        ResourceError: As :func:`read_source_images`.
    """
    if is_url(images):
        return list(map_ahead(lambda name: _size_at_url(str(images), name), names, threads=FETCHED_AT_ONCE))
    listed = FolderNames(Path(images))
    return [_file_size(Path(images), name, listed) for name in names]


def _spellings(name: str) -> list[str]:
    """A name, and other ways in which a server may have it."""
    forward = name.replace("\\", "/")
    return list(dict.fromkeys((name, *(unicodedata.normalize(form, forward) for form in ("NFC", "NFD")))))


def _url(images: str, name: str) -> str:
    """The URL of an image. On the web the name is percent-encoded, in S3 it is not. Lone surrogates, which no URL can hold, become "?"."""
    name = name.encode("utf-8", "replace").decode()
    return f"{images.rstrip('/')}/{quote(name) if images.startswith('http') else name}"


def _read_url(images: str, name: str) -> bytes | ImageError:
    url = _url(images, name)
    try:
        for spelling in _spellings(name):
            try:
                return download_bytes(_url(images, spelling), max_bytes=MAX_FILE_BYTES)
            except MissingFileError:
                continue
        return ImageError("missing_file", f"{url}: no such file")
    except DamageError:
        return ImageError("too_large", f"{url}: more than the limit of {MAX_FILE_BYTES} bytes")
    except ServerRefusedError as error:
        return ImageError("unreadable_file", str(error))


def _size_at_url(images: str, name: str) -> int | None:
    try:
        return next((size for spelling in _spellings(name) if (size := file_size(_url(images, spelling))) is not None), None)
    except ServerRefusedError:
        return None


def _read_file(folder: Path, name: str, listed: FolderNames) -> bytes | ImageError:
    try:
        return read_image_file(folder / name)
    except ImageError as error:
        if error.reason != "missing_file":
            return error
        missing = error
    other = listed.find(name)
    if other is None:
        return ImageError(missing.reason, f"{missing}{listed.explanation(name)}")
    try:
        return read_image_file(other)
    except ImageError as error:
        return error


def _file_size(folder: Path, name: str, listed: FolderNames) -> int | None:
    try:
        return (folder / name).stat().st_size
    except (OSError, ValueError):
        other = listed.find(name)
    try:
        return None if other is None else other.stat().st_size
    except OSError:
        return None
