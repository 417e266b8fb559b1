"""One file from a URL, over HTTP or any protocol of fsspec: bounded, hashed on the way, tried again where the connection breaks."""

import contextlib
import functools
import hashlib
import inspect
import io
import os
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from shards.errors import CapstreamError, DamageError, InputError, ResourceError
from shards.paths import Location

R = TypeVar("R")
# The protocols that the extra "remote" installs what is needed for; fsspec knows others.
SERVED = ("http", "https", "s3")
CHUNK_BYTES = 8 << 20
# Between the attempts at a file whose connection breaks: there is one attempt more than there are pauses.
BACKOFF_SECONDS: tuple[float, ...] = (0.5, 2.0, 8.0)
CONNECT_SECONDS, SILENCE_SECONDS = 30, 60
AGAIN = "Run the same command again: what was fetched is kept."
CHECK = "Check the URL."


class Stopped(Exception):  # noqa: N818 - not an error
    """Whoever asked for the file ahead of its use does not want it any more."""


class MissingError(InputError):
    """There is no such file."""


class RefusedError(ResourceError):
    """A server that can be reached does not give this one file."""


class BrokenError(Exception):
    """The connection broke, or could not be made; ``status`` is what a web server answered."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def is_url(place: Location) -> bool:
    """Whether ``place`` is an address that fsspec reads, and no local path.

    >>> is_url("s3://bucket/shards"), is_url("data/shards")
    (True, False)
    """
    return isinstance(place, str) and "://" in place


def download(
    url: str,
    target: Path,
    *,
    at_most: int,
    whole: bool = False,
    stop: threading.Event | None = None,
    advice: str = CHECK,
    again: str = AGAIN,
) -> str:
    """Fetch a file in chunks, from its start again where the connection breaks.

    Args:
        target: Written over. At most ``at_most`` bytes are ever written, whatever comes.
        whole: ``at_most`` is just what has to come; less is a broken connection too.
        advice: What to do about a file that is not there, or is too long.
        again: What to do once the network is there again.

    Returns:
        The SHA-256 of its bytes.

    Raises:
        Stopped: ``stop`` was set.
        InputError: No URL, not found there, or a package is missing.
        DamageError: More comes than ``at_most``.
        ResourceError: Not allowed, or the connection broke each time.
    """
    return tried(lambda: _download_once(url, target, at_most, whole, stop, advice), url, stop=stop, again=again)


def fetched_bytes(url: str, *, at_most: int, advice: str = CHECK) -> bytes:
    """Like :func:`download`, into memory."""

    def fetch() -> bytes:
        content = io.BytesIO()
        _receive(url, content, at_most, whole=False, stop=None, advice=advice)
        return content.getvalue()

    return tried(fetch, url)


def file_size(url: str) -> int | None:
    """The size in bytes of the file at a URL; None where there is none, or the server does not tell.

    Raises:
        InputError, ResourceError: As :func:`download`.
    """

    def ask() -> int | None:
        with foreign_errors(url, CHECK):
            try:
                size = file_system(url).info(url).get("size")
            except FileNotFoundError:
                return None
            return None if size is None else int(size)

    return tried(ask, url, done="looked at")


def tried(
    attempt: Callable[[], R],
    url: str,
    *,
    done: str = "fetched",
    stop: threading.Event | None = None,
    again: str = AGAIN,
    got_on: Callable[[], bool] = lambda: False,
) -> R:
    """Do something with a URL, again after a pause where the connection breaks, as :func:`foreign_errors` tells.

    Args:
        done: What the attempt does, for the message: the URL could not be fetched, written ...
        again: What to do when it has failed.
        got_on: Whether an attempt that broke brought something all the same: those before it are forgotten then.

    Raises:
        Stopped: ``stop`` was set between two attempts.
        RefusedError: The last answer was a web server's, of an error of its own.
        ResourceError: The connection broke each time.
    """
    failed = 0
    while True:
        try:
            return attempt()
        except BrokenError as error:
            broken = error
        failed = 1 if got_on() else failed + 1
        if failed > len(BACKOFF_SECONDS):
            break
        if (stop or threading.Event()).wait(BACKOFF_SECONDS[failed - 1]):
            raise Stopped
    kind = ResourceError if broken.status is None else RefusedError
    raise kind(f"{url}: could not be {done} in {failed} attempts ({broken}). Check the network and the credentials. {again}".rstrip())


def url_parts(url: str, advice: str = CHECK) -> SplitResult:
    """The parts of a URL.

    Raises:
        InputError: It is none: brackets without an end, an impossible port, no host or bucket.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https"):
            _ = parts.port
    except ValueError as error:
        raise InputError(f"{url}: not a URL ({error}). {advice}") from None
    if parts.scheme in SERVED and not parts.hostname:
        raise InputError(f"{url}: this URL names no host or bucket. {advice}")
    return parts


def _download_once(url: str, target: Path, at_most: int, whole: bool, stop: threading.Event | None, advice: str) -> str:
    with target.open("wb") as file:
        return _receive(url, file, at_most, whole=whole, stop=stop, advice=advice)


def _receive(url: str, file: IO[bytes], at_most: int, *, whole: bool, stop: threading.Event | None, advice: str) -> str:
    sha256, size = hashlib.sha256(), 0
    with contextlib.closing(_chunks(url, advice)) as chunks:
        for chunk in chunks:
            size += len(chunk)
            if size > at_most:
                listed = " that its sidecar lists" if whole else ""
                raise DamageError(f"{url}: sends more than the {at_most} bytes{listed}. {advice}")
            file.write(chunk)
            sha256.update(chunk)
            if stop is not None and stop.is_set():
                raise Stopped
    if whole and size < at_most:
        raise BrokenError(f"it ended after {size} of {at_most} bytes")
    return sha256.hexdigest()


def _chunks(url: str, advice: str) -> Generator[bytes, None, None]:
    """The bytes of a file. A foreign file system's errors become ours here, before anybody can take them for the disk's."""
    system, options = _system_of(url, advice)
    with foreign_errors(url, advice), system.open(url, "rb", **options) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


@contextlib.contextmanager
def foreign_errors(url: str, advice: str) -> Iterator[None]:
    """Turn the errors of a file system at a URL into ours; those that may pass are for :func:`tried`.

    Raises:
        MissingError: There is no such file.
        RefusedError: Not allowed.
    """
    try:
        yield
    except FileNotFoundError:
        raise MissingError(f"{url}: there is no such file. {advice}") from None
    except CapstreamError:
        raise
    except Exception as error:  # each file system has its own
        status = getattr(error, "status", None)
        if isinstance(error, PermissionError) or status in (401, 403):
            raise RefusedError(f"{url}: not allowed ({error}). Check the credentials.") from None
        raise BrokenError(f"{type(error).__name__}: {error}", status if isinstance(status, int) else None) from error


def file_system(url: str, advice: str = CHECK) -> Any:
    """The file system of fsspec that a URL belongs to.

    Raises:
        InputError: As :func:`url_parts`; or fsspec does not know it, or a package is missing.
    """
    return _system_of(url, advice)[0]


def _system_of(url: str, advice: str) -> tuple[Any, dict[str, Any]]:
    protocol = url_parts(url, advice).scheme
    try:
        return _file_system(protocol, os.getpid())
    except InputError as error:
        raise InputError(f"{url}: {error}") from None


@functools.lru_cache(maxsize=8)
def _file_system(protocol: str, process: int) -> tuple[Any, dict[str, Any]]:  # noqa: ARG001 - fsspec's file systems do not outlive a fork
    """The file system of a protocol, and the options with which it reads a file from start to end.

    Raises:
        InputError: fsspec does not know the protocol, or needs more for it than a URL, or the package for it is missing.
    """
    import fsspec
    from fsspec.config import conf

    options: dict[str, Any] = {}
    reading: dict[str, Any] = {"block_size": CHUNK_BYTES, "cache_type": "none"}
    try:
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            # By default aiohttp gives a whole file five minutes.
            timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
            options["client_kwargs"] = {"trust_env": True, "timeout": timeout, **conf.get(protocol, {}).get("client_kwargs", {})}
            reading = {"block_size": 0, "size": 1}  # a stream; with a size, whatever it is, it is not asked for first
        options["skip_instance_cache"] = True
        inspect.signature(fsspec.get_filesystem_class(protocol).__init__).bind(None, **options)
        return fsspec.filesystem(protocol, **options), reading
    except ImportError as error:
        remedy = "pip install '.[remote]'" if protocol in SERVED else "pip install, and the name of that package"
        raise InputError(f"a package is missing for {protocol}:// ({error}). Install it with: {remedy}") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{protocol}:// cannot be read ({error}). Files are read from {', '.join(SERVED)}.") from None
