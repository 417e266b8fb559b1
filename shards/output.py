"""Where a command's files go: a folder, or a location in S3, to which each finished file is uploaded from a temporary folder.

An object in S3 is complete or absent, and is replaced atomically, so it needs no temporary name. Each object has a mark (user metadata)
that tells what it holds, so a later run knows without downloading it. S3 has no locks.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from shards.atomic import committed, disk_errors
from shards.errors import CapstreamError, SettingsError
from shards.fetch import MissingFileError, download, file_system, file_system_errors, split_url, with_retries
from shards.paths import Location, is_url

T = TypeVar("T")
R = TypeVar("R")
PARALLEL_REQUESTS = 8
MARK = "capstream"
MAX_BYTES = 5 << 40  # the largest object in S3
RETRY_ADVICE = "Run the same command again: what was written is kept."
ADVICE = "Give a folder, or a location in S3 like s3://bucket/path."


@dataclass(frozen=True, kw_only=True)
class Output:
    """A folder of finished files.

    Attributes:
        folder: Where they are made, under their final names.
        url: Where they are uploaded to, or None if they stay in ``folder``.
    """

    folder: Path
    url: str | None = None

    def location(self, name: str) -> Location:
        """The final location of a file: its path, or its URL."""
        return self.folder / name if self.url is None else f"{self.url}/{name}"

    def subfolder(self, name: str) -> "Output":
        """The folder ``name`` in this one."""
        return Output(folder=self.folder / name, url=None if self.url is None else f"{self.url}/{name}")

    def names(self) -> list[str]:
        """The names of all files and folders in it, sorted.

        Raises:
            ResourceError: It cannot be listed.
        """
        if self.url is None:
            with disk_errors(self.folder):
                return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        url = self.url

        def attempt() -> list[str]:
            with file_system_errors(url, ADVICE):
                system = file_system(url)
                system.invalidate_cache()
                try:
                    found = system.ls(url, detail=False)
                except FileNotFoundError:
                    return []
                return sorted(name for path in found if (name := path.rstrip("/").rpartition("/")[2]) and path.rstrip("/") != url.partition("://")[2])

        return with_retries(attempt, url, action="looked up", retry_advice=RETRY_ADVICE)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """``function(item)`` for each item, in order: lazily for a folder, several at a time for a URL, where each is a round trip."""
        if self.url is None:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            yield from pool.map(function, items)

    def fetch(self, names: Iterable[str]) -> None:
        """Download files into ``folder``, except those that do not exist. Does nothing without a URL.

        Raises:
            ResourceError: The connection broke in every attempt, access denied, disk full.
        """
        if self.url is not None:
            for _ in self.map(self._fetch_file, names):
                pass

    def _fetch_file(self, name: str) -> None:
        with contextlib.suppress(MissingFileError), committed(self.folder / name) as temporary:
            download(f"{self.url}/{name}", temporary, max_bytes=MAX_BYTES)

    def upload(self, name: str, mark: str = "") -> None:
        """Upload a finished file. A large file is sent in parts and appears with the last one. Does nothing without a URL.

        Raises:
            ResourceError: The connection broke in every attempt, access denied.
        """
        if self.url is None:
            return
        url, path = f"{self.url}/{name}", self.folder / name

        def attempt() -> None:
            with file_system_errors(url, ADVICE):
                file_system(url).put_file(str(path), url, Metadata={MARK: mark})

        with_retries(attempt, url, action="written", retry_advice=RETRY_ADVICE)

    def stat(self, name: str) -> tuple[int, str] | None:
        """Size in bytes and mark of a file at a URL, without downloading it; None if it does not exist.

        Raises:
            ResourceError: The connection broke in every attempt, access denied.
        """
        url = f"{self.url}/{name}"

        def attempt() -> tuple[int, str] | None:
            with file_system_errors(url, ADVICE):
                system = file_system(url)
                try:
                    bucket, key, _ = system.split_path(url)
                    found = system.call_s3("head_object", Bucket=bucket, Key=key)
                except FileNotFoundError:
                    return None
                return int(found["ContentLength"]), str(found["Metadata"].get(MARK, ""))

        return with_retries(attempt, url, action="looked up", retry_advice=RETRY_ADVICE)

    def remove(self, name: str) -> None:
        """Remove a file from the folder and from the URL, if it exists.

        Raises:
            ResourceError: Access denied, the connection broke in every attempt.
        """
        with disk_errors(self.folder):
            (self.folder / name).unlink(missing_ok=True)
        if self.url is None:
            return
        url = f"{self.url}/{name}"

        def attempt() -> None:
            with file_system_errors(url, ADVICE), contextlib.suppress(FileNotFoundError):
                file_system(url).rm_file(url)

        with_retries(attempt, url, action="removed", retry_advice=RETRY_ADVICE)


def check_output(location: Location) -> Location:
    """Return ``location`` if it can be written to; a URL without its trailing slash.

    Raises:
        InputError: A URL that cannot be written to.
    """
    if not is_url(location):
        return Path(location)
    url = str(location).rstrip("/")
    parts = split_url(url, ADVICE)
    if parts.scheme != "s3":
        raise SettingsError(f"`out` {location}: {parts.scheme}:// cannot be written to. {ADVICE}")
    if parts.query or parts.fragment:
        raise SettingsError(f"`out` {location}: contains ? or #, which have a special meaning in a URL. {ADVICE}")
    file_system(url, ADVICE)
    return url


@contextlib.contextmanager
def open_output(location: Location) -> Iterator[Output]:
    """Open a location for output. For S3, errors name the URL and not the temporary folder.

    Raises:
        InputError: As :func:`check_output`.
    """
    checked = check_output(location)
    if isinstance(checked, Path):
        yield Output(folder=checked)
        return
    with tempfile.TemporaryDirectory(prefix="capstream-") as folder:
        try:
            yield Output(folder=Path(folder), url=checked)
        except CapstreamError as error:
            raise type(error)(str(error).replace(folder, checked)) from None
