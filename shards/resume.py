"""One large file over HTTP, behind what has come of it already: for what takes hours, where :mod:`shards.fetch` would begin anew each time.

By the standard library: what a dataset is fetched with needs no extra package.
"""

import http.client
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shards.atomic import read_json, write_json
from shards.errors import CapstreamError, DamageError, InputError, ResourceError
from shards.fetch import AGAIN, CHECK, SILENCE_SECONDS, BrokenError, Stopped, tried, url_parts

PIECE_BYTES = 1 << 20
# An attempt that brought so much is not counted as one in vain.
WORTH_BYTES = 8 << 20


class _OtherPartError(BrokenError):
    """The server has no part of that file at this place any more, or sends another one."""


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

    def goes_on(self, known: "_Version") -> bool:
        """Whether a part of this state goes behind one of ``known``. An answer with a part may leave validators out (RFC 9110, section 15.3.7)."""
        validators = ((self.etag, known.etag), (self.last_modified, known.last_modified))
        return self.size == known.size and all(None in pair or pair[0] == pair[1] for pair in validators)


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

    had = 0

    def attempt() -> None:
        nonlocal had
        had = _bytes_of(part)
        _resume_once(url, part, size, at_most, stop, arrived, advice)

    tried(attempt, url, stop=stop, again=again, got_on=lambda: _bytes_of(part) - had >= WORTH_BYTES)


def _bytes_of(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _resume_once(
    url: str, part: Path, size: int | None, at_most: int, stop: threading.Event | None, arrived: Callable[[int], None], advice: str
) -> None:
    had = _bytes_of(part)
    known = _read_version(part)
    resumable = known is not None and known.url == url and known.condition is not None
    if stop is not None and stop.is_set():
        raise Stopped
    if had and had == (known.size if known is not None and resumable else None):
        if size not in (None, had):
            raise DamageError(f"{url}: has {had} bytes, it should have {size}. {advice}")
        if had > at_most:
            raise DamageError(f"{url}: has {had} bytes, more than {at_most}. {advice}")
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "capstream"}
    if had and known is not None and resumable:
        headers |= {"Range": f"bytes={had}-", "If-Range": str(known.condition)}
    try:
        answer = _answer(url, headers, advice)
        at, found = _place(answer, url)
        if answer.status == 206 and (at != had or known is None or not found.goes_on(known)):
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
        raise BrokenError(f"it ended after {at} of {size} bytes")


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
            raise (_OtherPartError if error.code == 416 else BrokenError)(str(error)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a redirection to what is no URL
        raise BrokenError(str(getattr(error, "reason", error)) or type(error).__name__) from None
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
        raise BrokenError(f"{type(error).__name__}: {error}") from None
