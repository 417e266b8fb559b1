"""Download a file from a URL, over HTTP or any protocol of fsspec: bounded in size, hashed on the way, retried when the connection breaks."""

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

R = TypeVar("R")
# The protocols whose packages the extra "remote" installs. fsspec supports more.
SUPPORTED_PROTOCOLS = ("http", "https", "s3")
CHUNK_BYTES = 8 << 20
# Pauses between attempts: there is one attempt more than there are pauses.
BACKOFF_SECONDS: tuple[float, ...] = (0.5, 2.0, 8.0)
CONNECT_SECONDS, SILENCE_SECONDS = 30, 60
RETRY_ADVICE = "Run the same command again: what was fetched is kept."
URL_ADVICE = "Check the URL."


class FetchCancelledError(Exception):
    """The caller that asked for the file no longer wants it."""


class MissingFileError(InputError):
    """No such file at the URL."""


class ServerRefusedError(ResourceError):
    """A server that can be reached refuses this one file."""


class TransientError(Exception):
    """A failure that may pass: the connection broke or could not be made; ``status`` is the HTTP status, if there was an answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def download(
    url: str,
    target: Path,
    *,
    max_bytes: int,
    exact: bool = False,
    stop: threading.Event | None = None,
    advice: str = URL_ADVICE,
    retry_advice: str = RETRY_ADVICE,
) -> str:
    """Download a file in chunks. Start again when the connection breaks.

    Args:
        url: The file.
        target: Overwritten. At most ``max_bytes`` bytes are written, whatever the server sends.
        max_bytes: The largest allowed size.
        exact: The file has exactly ``max_bytes`` bytes; fewer mean a broken connection.
        stop: Once set, the download is given up.
        advice: What to do about a file that is missing or too long.
        retry_advice: What to do once the network works again.

    Returns:
        The SHA-256 (hex) of its bytes.

    Raises:
        FetchCancelledError: ``stop`` was set.
        InputError: The URL is invalid, the file is missing there, or a package is missing.
        DamageError: The server sends more than ``max_bytes``.
        ResourceError: Access denied, or the connection broke in every attempt.
    """

    def attempt() -> str:
        with target.open("wb") as file:
            return _receive(url, file, max_bytes, exact=exact, stop=stop, advice=advice)

    return with_retries(attempt, url, stop=stop, retry_advice=retry_advice)


def download_bytes(url: str, *, max_bytes: int, advice: str = URL_ADVICE) -> bytes:
    """Like :func:`download`, into memory."""

    def attempt() -> bytes:
        content = io.BytesIO()
        _receive(url, content, max_bytes, exact=False, stop=None, advice=advice)
        return content.getvalue()

    return with_retries(attempt, url)


def file_size(url: str) -> int | None:
    """The size in bytes of the file at a URL; None if there is none, or the server does not tell.

    Raises:
        InputError, ResourceError: As :func:`download`.
    """

    def attempt() -> int | None:
        with file_system_errors(url, URL_ADVICE):
            try:
                size = file_system(url).info(url).get("size")
            except FileNotFoundError:
                return None
            return None if size is None else int(size)

    return with_retries(attempt, url, action="looked up")


def with_retries(
    attempt: Callable[[], R],
    url: str,
    *,
    action: str = "fetched",
    stop: threading.Event | None = None,
    retry_advice: str = RETRY_ADVICE,
    made_progress: Callable[[], bool] = lambda: False,
) -> R:
    """Call ``attempt``; after a pause, call it again as long as it raises :class:`TransientError`.

    Args:
        attempt: Does something with the URL.
        url: For messages.
        action: What the attempt does, for the message: the URL could not be "fetched", "written", ...
        stop: Once set, no other attempt is made.
        retry_advice: What to do after the last failure.
        made_progress: Whether the failed attempt got something done; the attempts before it then no longer count.

    Raises:
        FetchCancelledError: ``stop`` was set between two attempts.
        ServerRefusedError: In the last attempt a web server answered with an error of its own.
        ResourceError: The connection broke in every attempt.
    """
    failures = 0
    while True:
        try:
            return attempt()
        except TransientError as error:
            last_error = error
        failures = 1 if made_progress() else failures + 1
        if failures > len(BACKOFF_SECONDS):
            break
        if (stop or threading.Event()).wait(BACKOFF_SECONDS[failures - 1]):
            raise FetchCancelledError
    error_type = ResourceError if last_error.status is None else ServerRefusedError
    raise error_type(
        f"{url}: could not be {action} in {failures} attempts ({last_error}). Check the network and the credentials. {retry_advice}".rstrip()
    )


def split_url(url: str, advice: str = URL_ADVICE) -> SplitResult:
    """The parts of a URL.

    Raises:
        InputError: The URL is invalid: unclosed brackets, an impossible port, no host or bucket.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https"):
            _ = parts.port
    except ValueError as error:
        raise InputError(f"{url}: not a URL ({error}). {advice}") from None
    if parts.scheme in SUPPORTED_PROTOCOLS and not parts.hostname:
        raise InputError(f"{url}: this URL names no host or bucket. {advice}")
    return parts


def _receive(url: str, file: IO[bytes], max_bytes: int, *, exact: bool, stop: threading.Event | None, advice: str) -> str:
    sha256, size = hashlib.sha256(), 0
    with contextlib.closing(_chunks(url, advice)) as chunks:
        for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                listed = " that its sidecar lists" if exact else ""
                raise DamageError(f"{url}: sends more than the {max_bytes} bytes{listed}. {advice}")
            file.write(chunk)
            sha256.update(chunk)
            if stop is not None and stop.is_set():
                raise FetchCancelledError
    if exact and size < max_bytes:
        raise TransientError(f"it ended after {size} of {max_bytes} bytes")
    return sha256.hexdigest()


def _chunks(url: str, advice: str) -> Generator[bytes, None, None]:
    """The bytes of a file. Errors of the remote file system are converted here, where they cannot be mistaken for errors of the local disk."""
    system, options = _file_system_of(url, advice)
    with file_system_errors(url, advice), system.open(url, "rb", **options) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


@contextlib.contextmanager
def file_system_errors(url: str, advice: str) -> Iterator[None]:
    """Convert the errors of fsspec's file systems; those that may pass become :class:`TransientError`, for :func:`with_retries`.

    Raises:
        MissingFileError: No such file.
        ServerRefusedError: Access denied.
        TransientError: Anything else.
    """
    try:
        yield
    except CapstreamError:
        raise
    except Exception as raised:  # each file system has exceptions of its own
        error: BaseException = raised
        if isinstance(raised, FileNotFoundError) and url.startswith(("http://", "https://")):
            error = raised.__cause__ or raised  # fsspec's HTTP file system raises it for any failure to ask for a file's size
        status = getattr(error, "status", None)
        if isinstance(error, FileNotFoundError) or status in (404, 410):
            raise MissingFileError(f"{url}: no such file. {advice}") from None
        if isinstance(error, PermissionError) or status in (401, 403):
            raise ServerRefusedError(f"{url}: not allowed ({error}). Check the credentials.") from None
        raise TransientError(f"{type(error).__name__}: {error}", status if isinstance(status, int) else None) from error


def file_system(url: str, advice: str = URL_ADVICE) -> Any:
    """The fsspec file system of a URL.

    Raises:
        InputError: As :func:`split_url`; or fsspec does not know the protocol, or a package is missing.
    """
    return _file_system_of(url, advice)[0]


def _file_system_of(url: str, advice: str) -> tuple[Any, dict[str, Any]]:
    protocol = split_url(url, advice).scheme
    try:
        return _file_system(protocol, os.getpid())
    except InputError as error:
        raise InputError(f"{url}: {error}") from None


@functools.lru_cache(maxsize=8)
def _file_system(protocol: str, process: int) -> tuple[Any, dict[str, Any]]:  # noqa: ARG001 - fsspec's file systems do not survive a fork
    """The file system of a protocol, and the options with which it reads a file from start to end.

    Raises:
        InputError: fsspec does not know the protocol, or needs more than a URL for it, or its package is missing.
    """
    import fsspec
    from fsspec.config import conf

    options: dict[str, Any] = {}
    reading: dict[str, Any] = {"block_size": CHUNK_BYTES, "cache_type": "none"}
    try:
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            # aiohttp's default is five minutes for a file of any size.
            timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
            options["client_kwargs"] = {"trust_env": True, "timeout": timeout, **conf.get(protocol, {}).get("client_kwargs", {})}
            reading = {"block_size": 0, "size": 1}  # a stream; any given size saves the request that asks for it
        options["skip_instance_cache"] = True
        inspect.signature(fsspec.get_filesystem_class(protocol).__init__).bind(None, **options)
        return fsspec.filesystem(protocol, **options), reading
    except ImportError as error:
        extra = "remote" if protocol in SUPPORTED_PROTOCOLS else "hub" if protocol == "hf" else None
        remedy = f"pip install '.[{extra}]'" if extra else "pip install, and the name of that package"
        raise InputError(f"a package is missing for {protocol}:// ({error}). Install it with: {remedy}") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{protocol}:// cannot be read ({error}). Supported are {', '.join(SUPPORTED_PROTOCOLS)}.") from None
