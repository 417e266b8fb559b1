"""Resumable download of one large file over HTTP, for downloads that take hours, where :mod:`shards.fetch` would start again each time.

It uses the standard library alone: downloading a public dataset needs no extra package.
"""

import http.client
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shards.errors import CapstreamError, DamageError, InputError, ResourceError
from shards.fetch import RETRY_ADVICE, SILENCE_SECONDS, URL_ADVICE, FetchCancelledError, TransientError, split_url, with_retries
from shards.json_files import read_json, write_json

CHUNK_BYTES = 1 << 20
# A failed attempt that brought this many bytes does not count as a failure.
PROGRESS_BYTES = 8 << 20


class _WrongRangeError(TransientError):
    """The server no longer has that range of the file, or sends another range."""


@dataclass(frozen=True, kw_only=True)
class _RemoteState:
    """Which state of a file a server sends: its size and validators. Stored next to the partial file, so that two states are never mixed."""

    url: str
    size: int | None
    etag: str | None
    last_modified: str | None

    @property
    def validator(self) -> str | None:
        """The value for ``If-Range``: a strong validator (RFC 9110, section 13.1.5)."""
        return self.etag if self.etag is not None and not self.etag.startswith("W/") else self.last_modified

    def continues(self, known: "_RemoteState") -> bool:
        """Whether a range of this state continues ``known``. A partial response may omit validators (RFC 9110, section 15.3.7)."""
        validators = ((self.etag, known.etag), (self.last_modified, known.last_modified))
        return self.size == known.size and all(None in pair or pair[0] == pair[1] for pair in validators)


@dataclass(frozen=True, kw_only=True)
class _Download:
    """What to download; fields as the arguments of :func:`resume_download`."""

    url: str
    partial: Path
    size: int | None
    max_bytes: int
    stop: threading.Event | None
    on_bytes: Callable[[int], None]
    advice: str

    def check_size(self, size: int) -> None:
        """Refuse a file of ``size`` bytes if that is not the expected size, or too much."""
        if self.size is not None and size != self.size:
            raise DamageError(f"{self.url}: has {size} bytes, but should have {self.size}. {self.advice}")
        if size > self.max_bytes:
            raise DamageError(f"{self.url}: has {size} bytes, more than {self.max_bytes}. {self.advice}")

    def check_cancelled(self) -> None:
        if self.stop is not None and self.stop.is_set():
            raise FetchCancelledError


def state_path(partial: Path) -> Path:
    """Where :func:`resume_download` stores what it knows about a file that is not complete yet."""
    return partial.with_name(f"{partial.name}.json")


def resume_download(
    url: str,
    partial: Path,
    *,
    size: int | None = None,
    max_bytes: int,
    stop: threading.Event | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
    advice: str = URL_ADVICE,
    retry_advice: str = RETRY_ADVICE,
) -> None:
    """Download a file over HTTP, continuing what ``partial`` already holds. Start again if the remote file has changed.

    Args:
        url: The file.
        partial: Grows, and is kept when the connection breaks or the process is killed. :func:`state_path` next to it records the remote
            file's state; the caller removes that file when it commits the complete one.
        size: The expected size in bytes, if known.
        max_bytes: The largest allowed size.
        stop: Once set, the download is given up.
        on_bytes: Called with the number of bytes of each chunk; with a negative number when the download starts again.
        advice: What to do about a file that is missing or has another size.
        retry_advice: What to do once the network works again.

    Raises:
        FetchCancelledError: ``stop`` was set.
        InputError: Not a URL of HTTP, or no such file.
        DamageError: The file has another size, or more than ``max_bytes``.
        ResourceError: Access denied, or the connection broke in every attempt.
    """
    if split_url(url, advice).scheme not in ("http", "https"):
        raise InputError(f"{url}: only http:// and https:// are supported here. {advice}")
    job = _Download(url=url, partial=partial, size=size, max_bytes=max_bytes, stop=stop, on_bytes=on_bytes, advice=advice)
    before = 0

    def attempt() -> None:
        nonlocal before
        before = _bytes_of(partial)
        _resume_once(job)

    def made_progress() -> bool:
        return _bytes_of(partial) - before >= PROGRESS_BYTES

    with_retries(attempt, url, stop=stop, retry_advice=retry_advice, made_progress=made_progress)


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _resume_once(job: _Download) -> None:
    present = _bytes_of(job.partial)
    known = _read_state(job.partial)
    resumable = known is not None and known.url == job.url and known.validator is not None
    job.check_cancelled()
    if present and present == (known.size if known is not None and resumable else None):
        job.check_size(present)
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "capstream"}
    if present and known is not None and resumable:
        headers |= {"Range": f"bytes={present}-", "If-Range": str(known.validator)}
    try:
        response = _open_response(job, headers)
        start, state = _content_range(response, job.url)
        if response.status == 206 and (start != present or known is None or not state.continues(known)):
            response.close()
            raise _WrongRangeError("the server sent another range than the requested one")
    except _WrongRangeError:
        state_path(job.partial).unlink(missing_ok=True)  # the next attempt starts from the beginning
        raise
    with response:
        if state.size is not None and job.size is not None:
            job.check_size(state.size)
        if start == 0:
            job.on_bytes(-present)
            job.partial.write_bytes(b"")
            write_json(state_path(job.partial), vars(state))
        _append(response, job, start, state.size if job.size is None else job.size)


def _append(response: http.client.HTTPResponse, job: _Download, position: int, size: int | None) -> None:
    """Append the response to the partial file, which has ``position`` bytes; the complete file should have ``size``."""
    limit = job.max_bytes if size is None else min(size, job.max_bytes)
    with job.partial.open("ab") as file:
        while chunk := _read_chunk(response):
            if position + len(chunk) > limit:
                raise DamageError(f"{job.url}: sends more than {limit} bytes. {job.advice}")
            file.write(chunk)
            position += len(chunk)
            job.on_bytes(len(chunk))
            job.check_cancelled()
    if size is not None and position < size:
        raise TransientError(f"it ended after {position} of {size} bytes")


def _read_state(partial: Path) -> _RemoteState | None:
    """What is known about a partial file; None if there is nothing, or a killed process left a damaged file."""
    if not state_path(partial).is_file():
        return None
    try:
        content = read_json(state_path(partial), what="state of a download")
        return _RemoteState(**content)
    except (CapstreamError, TypeError):
        return None


def _open_response(job: _Download, headers: dict[str, str]) -> http.client.HTTPResponse:
    request = urllib.request.Request(job.url, headers=headers)  # noqa: S310 - the scheme is http or https
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=SILENCE_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (404, 410):
                raise InputError(f"{job.url}: no such file. {job.advice}") from None
            if error.code in (401, 403):
                raise ResourceError(f"{job.url}: not allowed ({error}). {job.advice}") from None
            raise (_WrongRangeError if error.code == 416 else TransientError)(str(error)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a redirection to an invalid URL
        raise TransientError(str(getattr(error, "reason", error)) or type(error).__name__) from None
    return response


def _content_range(response: http.client.HTTPResponse, url: str) -> tuple[int, _RemoteState]:
    """At which byte of the file a response begins, and which state of the file it is from."""
    length = response.headers.get("Content-Length")
    start, size = 0, int(length) if length is not None and length.isdecimal() else None
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        start, size = (int(match[1]), int(match[2])) if match else (-1, None)
    return start, _RemoteState(url=url, size=size, etag=response.headers.get("ETag"), last_modified=response.headers.get("Last-Modified"))


def _read_chunk(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK_BYTES)  # returns what has arrived: a slow connection loses nothing when it breaks
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TransientError(f"{type(error).__name__}: {error}") from None
