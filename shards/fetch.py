"""One file from a URL: bounded, checked on the way, tried again where the connection breaks.

:func:`download` reads over any protocol of fsspec and begins anew each time, for files of moderate size; :func:`download_resumed` speaks
HTTP by the standard library and goes on where it stopped, for files that take hours.
"""

import contextlib
import functools
import hashlib
import http.client
import inspect
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from shards.atomic import read_json, write_json
from shards.errors import CapstreamError, DamageError, InputError, ResourceError

T = TypeVar("T")

# The protocols that the extra "remote" installs what is needed for; fsspec knows others.
SERVED = ("http", "https", "s3")
CHUNK_BYTES = 8 << 20
PIECE_BYTES = 1 << 20
# Between the attempts at a file whose connection breaks: there is one attempt more than there are pauses.
BACKOFF_SECONDS: tuple[float, ...] = (0.5, 2.0, 8.0)
CONNECT_SECONDS, SILENCE_SECONDS = 30, 60
AGAIN = "Run the same command again: what was fetched is kept."
CHECK = "Check the URL."


class Stopped(Exception):  # noqa: N818 - not an error
    """Whoever asked for the file ahead of its use does not want it any more."""


class _BrokenError(Exception):
    """The connection broke, or could not be made."""


class _OtherPartError(_BrokenError):
    """The server has no part of that file at this place any more, or sends another one."""


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
    return _tried(url, lambda: _download_once(url, target, at_most, whole, stop, advice), stop, again)


def _tried(url: str, once: Callable[[], T], stop: threading.Event | None, again: str, brought: Callable[[], int] = lambda: 0) -> T:
    """What ``once`` gives, tried again where the connection breaks; an attempt that ``brought`` something is not counted as one in vain.

    Raises:
        ResourceError: It broke each time.
    """
    failed = 0
    while True:
        before = brought()
        try:
            return once()
        except _BrokenError as error:
            failed = 1 if brought() - before >= CHUNK_BYTES else failed + 1
            if failed > len(BACKOFF_SECONDS):
                problem = f"could not be fetched in {failed} attempts ({error}). Check the network and the credentials. {again}"
                raise ResourceError(f"{url}: {problem}".rstrip()) from None
        (stop or threading.Event()).wait(BACKOFF_SECONDS[failed - 1])


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
    sha256, size = hashlib.sha256(), 0
    with target.open("wb") as file, contextlib.closing(_chunks(url, advice)) as chunks:
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
        raise _BrokenError(f"it ended after {size} of {at_most} bytes")
    return sha256.hexdigest()


def _chunks(url: str, advice: str) -> Generator[bytes, None, None]:
    """The bytes of a file. A foreign file system's errors become ours here, before anybody can take them for the disk's."""
    protocol = url_parts(url, advice).scheme
    try:
        system, options = _file_system(protocol, os.getpid())
    except InputError as error:
        raise InputError(f"{url}: {error}") from None
    try:
        with system.open(url, "rb", **options) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except FileNotFoundError:
        raise InputError(f"{url}: there is no such file. {advice}") from None
    except Exception as error:  # each file system has its own
        status = getattr(error, "status", None)
        if isinstance(error, PermissionError) or status in (401, 403):
            raise ResourceError(f"{url}: not allowed ({error}). Check the credentials.") from None
        raise _BrokenError(f"{type(error).__name__}: {error}") from error


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


@dataclass(frozen=True, kw_only=True)
class _Version:
    """Which state of a file a server sends: its length, and what it calls it by. Kept beside a part, so that two states are never glued."""

    url: str
    size: int | None
    etag: str | None
    last_modified: str | None

    @property
    def condition(self) -> str | None:
        """What ``If-Range`` takes: a strong validator (RFC 9110, section 13.1.5)."""
        return self.etag if self.etag is not None and not self.etag.startswith("W/") else self.last_modified


def version_path(part: Path) -> Path:
    """Where :func:`download_resumed` keeps what it knows of a file that has not come whole yet."""
    return part.with_name(f"{part.name}.json")


def download_resumed(
    url: str,
    part: Path,
    *,
    size: int | None = None,
    at_most: int,
    stop: threading.Event | None = None,
    arrived: Callable[[int], None] = lambda _: None,
    advice: str = CHECK,
    again: str = AGAIN,
) -> None:
    """Fetch a file over HTTP, behind what ``part`` holds of it already; from its start where it has changed meanwhile.

    Args:
        part: Grows, and stays when the connection breaks or the process is killed. :func:`version_path` beside it says of what it is a part;
            whoever commits it removes that.
        size: The bytes that the file must have, if they are known.
        at_most: More bytes than these are never written.
        arrived: Told the bytes of each piece; less than 0 when the file is begun anew.
        advice: What to do about a file that is not there, or has another size.
        again: What to do once the network is there again.

    Raises:
        Stopped: ``stop`` was set.
        InputError: No URL of HTTP, or not found there.
        DamageError: Another size, or more than ``at_most``.
        ResourceError: Not allowed, or the connection broke each time.
    """
    if url_parts(url, advice).scheme not in ("http", "https"):
        raise InputError(f"{url}: this is fetched over http:// or https:// only. {advice}")

    def once() -> None:
        _resume_once(url, part, size, at_most, stop, arrived, advice)

    _tried(url, once, stop, again, lambda: part.stat().st_size if part.is_file() else 0)


def _resume_once(
    url: str, part: Path, size: int | None, at_most: int, stop: threading.Event | None, arrived: Callable[[int], None], advice: str
) -> None:
    had = part.stat().st_size if part.is_file() else 0
    known = _read_version(part)
    resumable = known is not None and known.url == url and known.condition is not None
    if stop is not None and stop.is_set():
        raise Stopped
    if had and had == (known.size if known is not None and resumable else None):
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "capstream"}
    if had and known is not None and resumable:
        headers |= {"Range": f"bytes={had}-", "If-Range": str(known.condition)}
    try:
        answer = _answer(url, headers, advice)
        at, found = _place(answer, url)
        if answer.status == 206 and (at != had or found != known):
            answer.close()
            raise _OtherPartError("the server sent another part than it was asked for")
    except _OtherPartError:
        version_path(part).unlink(missing_ok=True)  # the next attempt begins anew
        raise
    with answer:
        if None not in (size, found.size) and found.size != size:
            raise DamageError(f"{url}: has {found.size} bytes, it should have {size}. {advice}")
        if at == 0:
            arrived(-had)
            part.write_bytes(b"")
            write_json(version_path(part), vars(found))
        _append(answer, part, at, found.size if size is None else size, at_most, stop, arrived, url, advice)


def _append(
    answer: http.client.HTTPResponse,
    part: Path,
    at: int,
    size: int | None,
    at_most: int,
    stop: threading.Event | None,
    arrived: Callable[[int], None],
    url: str,
    advice: str,
) -> None:
    limit = at_most if size is None else min(size, at_most)
    with part.open("ab") as file:
        while chunk := _read(answer):
            if at + len(chunk) > limit:
                raise DamageError(f"{url}: sends more than {limit} bytes. {advice}")
            file.write(chunk)
            at += len(chunk)
            arrived(len(chunk))
            if stop is not None and stop.is_set():
                raise Stopped
    if size is not None and at < size:
        raise _BrokenError(f"it ended after {at} of {size} bytes")


def _read_version(part: Path) -> _Version | None:
    """What is known of a part; None where nothing is, or what a killed process has left is no such file."""
    if not version_path(part).is_file():
        return None
    try:
        content = read_json(version_path(part), what="state of a download")
        return _Version(**content)
    except (CapstreamError, TypeError):
        return None


def _answer(url: str, headers: dict[str, str], advice: str) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http and https alone come here
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=SILENCE_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (404, 410):
                raise InputError(f"{url}: there is no such file. {advice}") from None
            if error.code in (401, 403):
                raise ResourceError(f"{url}: not allowed ({error}). {advice}") from None
            raise (_OtherPartError if error.code == 416 else _BrokenError)(str(error)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a redirection to what is no URL
        raise _BrokenError(str(getattr(error, "reason", error)) or type(error).__name__) from None
    return answer


def _place(answer: http.client.HTTPResponse, url: str) -> tuple[int, _Version]:
    """Where in the file an answer begins, and of which state of it."""
    length = answer.headers.get("Content-Length")
    start, size = 0, int(length) if length is not None and length.isdecimal() else None
    if answer.status == 206:
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        start, size = (int(place[1]), int(place[2])) if place else (-1, None)
    return start, _Version(url=url, size=size, etag=answer.headers.get("ETag"), last_modified=answer.headers.get("Last-Modified"))


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read1(PIECE_BYTES)  # what is there: a slow connection loses nothing when it breaks
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _BrokenError(f"{type(error).__name__}: {error}") from None
