"""Where a command's files go: a folder, or a place in S3, to which each finished file is sent whole from a scratch folder.

An object in S3 is there whole or not at all, and is replaced in one moment: it needs no temporary name. Beside each stands a mark of
our choice (user metadata): what it holds, so that a later run knows without fetching it. Locks there are none in S3.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from shards.atomic import committed, disk_errors
from shards.errors import CapstreamError, InputError
from shards.fetch import MissingError, download, file_system, foreign_errors, is_url, tried, url_parts
from shards.paths import Location

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 8
MARK = "capstream"
MAX_BYTES = 5 << 40  # the largest object that S3 keeps
AGAIN = "Run the same command again: what was written is kept."
ADVICE = "Give a folder, or a place in S3 like s3://bucket/path."


@dataclass(frozen=True, kw_only=True)
class Output:
    """A folder of finished files.

    Attributes:
        folder: Where they are made, under their final names.
        url: Where they are sent, or None where ``folder`` is their place.
    """

    folder: Path
    url: str | None = None

    def at(self, name: str) -> Location:
        """The place of a file: its path, or its URL."""
        return self.folder / name if self.url is None else f"{self.url}/{name}"

    def below(self, name: str) -> "Output":
        """The folder of this name in it."""
        return Output(folder=self.folder / name, url=None if self.url is None else f"{self.url}/{name}")

    def names(self) -> list[str]:
        """What is there, sorted, folders too.

        Raises:
            ResourceError: It cannot be listed.
        """
        if self.url is None:
            with disk_errors(self.folder):
                return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        url = self.url

        def ask() -> list[str]:
            with foreign_errors(url, ADVICE):
                system = file_system(url)
                system.invalidate_cache()
                try:
                    found = system.ls(url, detail=False)
                except FileNotFoundError:
                    return []
                return sorted(name for path in found if (name := path.rstrip("/").rpartition("/")[2]) and path.rstrip("/") != url.partition("://")[2])

        return tried(ask, url, done="looked at", again=AGAIN)

    def each(self, action: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """What ``action`` gives for each item, as it is asked for; at a URL, where each is a round trip, several at a time."""
        if self.url is None:
            yield from map(action, items)
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(action, items)

    def bring(self, names: Iterable[str]) -> None:
        """Fetch files into the folder, those that are not there at all left out. Of a local output they are there already.

        Raises:
            ResourceError: The connection breaks, not allowed, disk full.
        """
        if self.url is not None:
            for _ in self.each(self._bring, names):
                pass

    def _bring(self, name: str) -> None:
        with contextlib.suppress(MissingError), committed(self.folder / name) as temporary:
            download(f"{self.url}/{name}", temporary, at_most=MAX_BYTES)

    def send(self, name: str, mark: str = "") -> None:
        """Send a file that is finished to its place; a large one comes in pieces, and is there when the last one is.

        Raises:
            ResourceError: The connection breaks, not allowed.
        """
        if self.url is None:
            return
        url, path = f"{self.url}/{name}", self.folder / name

        def put() -> None:
            with foreign_errors(url, ADVICE):
                file_system(url).put_file(str(path), url, Metadata={MARK: mark})

        tried(put, url, done="written", again=AGAIN)

    def stat(self, name: str) -> tuple[int, str] | None:
        """Size and mark of a file at a URL, asked without fetching it; None where there is none.

        Raises:
            ResourceError: The connection breaks, not allowed.
        """
        url = f"{self.url}/{name}"

        def ask() -> tuple[int, str] | None:
            with foreign_errors(url, ADVICE):
                system = file_system(url)
                try:
                    bucket, key, _ = system.split_path(url)
                    found = system.call_s3("head_object", Bucket=bucket, Key=key)
                except FileNotFoundError:
                    return None
                return int(found["ContentLength"]), str(found["Metadata"].get(MARK, ""))

        return tried(ask, url, done="looked at", again=AGAIN)

    def remove(self, name: str) -> None:
        """Remove a file, here and there, if it is there.

        Raises:
            ResourceError: Not allowed, the connection breaks.
        """
        with disk_errors(self.folder):
            (self.folder / name).unlink(missing_ok=True)
        if self.url is None:
            return
        url = f"{self.url}/{name}"

        def discard() -> None:
            with foreign_errors(url, ADVICE), contextlib.suppress(FileNotFoundError):
                file_system(url).rm_file(url)

        tried(discard, url, done="removed", again=AGAIN)


def checked_output(place: Location) -> Location:
    """Where output is to go, if it can: a URL without a slash at its end.

    Raises:
        InputError: A URL that cannot be written to.
    """
    if not is_url(place):
        return Path(place)
    url = str(place).rstrip("/")
    parts = url_parts(url, ADVICE)
    if parts.scheme != "s3":
        raise InputError(f"--out {place}: {parts.scheme}:// cannot be written to. {ADVICE}")
    if parts.query or parts.fragment:
        raise InputError(f"--out {place}: holds a ? or #, which stand for something else in a URL. {ADVICE}")
    file_system(url, ADVICE)
    return url


@contextlib.contextmanager
def opened_output(place: Location) -> Iterator[Output]:
    """Open a place for output; of one in S3 errors name the URL, not the scratch folder.

    Raises:
        InputError: As :func:`checked_output`.
    """
    checked = checked_output(place)
    if isinstance(checked, Path):
        yield Output(folder=checked)
        return
    with tempfile.TemporaryDirectory(prefix="capstream-") as folder:
        try:
            yield Output(folder=Path(folder), url=checked)
        except CapstreamError as error:
            raise type(error)(str(error).replace(folder, checked)) from None
