"""One tar of a remote dataset made local: fetched whole, checked against its sidecar on the way, kept within a bound of bytes.

A mirror is a dataset folder whose ``remote.json`` says where its tars come from. One lock for each mirror lets one tar come at a
time: so each comes once, however many processes wait for it, and the bound holds at every moment. What this trades is the second
connection, which might be faster. Temporary files that are met under the lock were left by a process that was killed.
"""

import contextlib
import functools
import hashlib
import os
import threading
import time
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from shards.atomic import committed, disk_errors, read_own_json
from shards.errors import DamageError, InputError, ResourceError

FORMAT_VERSION = 1
MIRROR_FILE = "remote.json"
CACHE_OPTION = "--shard-cache"
DEFAULT_CACHE_BYTES = 50 * 10**9
# The protocols that the extra "remote" installs what is needed for; fsspec knows others.
SERVED = ("http", "https", "s3")
CHUNK_BYTES = 8 << 20
# Between the attempts at a file whose connection breaks: there is one attempt more than there are pauses.
BACKOFF_SECONDS: tuple[float, ...] = (0.5, 2.0, 8.0)
CONNECT_SECONDS, SILENCE_SECONDS = 30, 60
# A tar's time of use is written at most this often, so that opening one costs nothing.
TOUCH_SECONDS = 5.0
AGAIN = "Run the same command again: what was fetched is kept."


class Stopped(Exception):  # noqa: N818 - not an error
    """Whoever asked for the file ahead of its use does not want it any more."""


class _BrokenError(Exception):
    """The connection broke, or could not be made."""


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """Where a mirror's tars come from, and how many bytes of them it may hold. Small: it travels with every shard."""

    url: str
    cache_bytes: int


def default_cache() -> Path:
    """Where mirrors are kept unless something else is said: ``$XDG_CACHE_HOME/capstream``, or ``~/.cache/capstream``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "capstream"


def read_mirror(folder: Path) -> Mirror | None:
    """What ``remote.json`` says, or None where the folder is no mirror.

    Raises:
        DamageError, MismatchError: It is damaged, or of another format version.
    """
    path = folder / MIRROR_FILE
    if not path.is_file():
        return None
    repair = "Delete its folder: everything in it is fetched again."
    content = read_own_json(path, what="mirror's file", format_version=FORMAT_VERSION, repair=repair)
    url, cache_bytes = content.get("url"), content.get("cache_bytes")
    if not isinstance(url, str) or not isinstance(cache_bytes, int):
        raise DamageError(f"{path}: damaged (url {url!r}, cache_bytes {cache_bytes!r}). {repair}")
    return Mirror(url=url, cache_bytes=cache_bytes)


def open_tar(path: Path, mirror: Mirror, *, tar_bytes: int, tar_sha256: str) -> BinaryIO:
    """Open a mirror's tar, fetching it first where it is not there.

    Raises:
        InputError: It is not there, or larger than all that the mirror may hold.
        DamageError: The bytes there are not those that the sidecar lists.
        ResourceError: The connection breaks again and again, not allowed, disk full.
    """
    there = _open_if_there(path, tar_bytes)
    return there if there is not None else fetch_tar(path, mirror, tar_bytes=tar_bytes, tar_sha256=tar_sha256)


def touch(path: Path, tar_bytes: int) -> bool:
    """Whether a tar is there whole; if it is, it counts as just used."""
    there = _open_if_there(path, tar_bytes)
    if there is not None:
        there.close()
    return there is not None


def _open_if_there(path: Path, tar_bytes: int) -> BinaryIO | None:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    found = os.fstat(file.fileno())
    if found.st_size != tar_bytes:
        file.close()
        return None
    if time.time() - found.st_mtime > TOUCH_SECONDS:
        with contextlib.suppress(FileNotFoundError, PermissionError):  # removed meanwhile, which hurts nobody who has it open; or another user's
            os.utime(path)
    return file


def fetch_tar(
    path: Path, mirror: Mirror, *, tar_bytes: int, tar_sha256: str, keep: Collection[str] = (), stop: threading.Event | None = None
) -> BinaryIO:
    """Fetch a tar into its place, unless somebody else has done so meanwhile, and open it.

    Args:
        keep: Names of tars that are removed last when there is no room.
        stop: Once set, the fetch is given up.

    Raises:
        Stopped: ``stop`` was set.
        InputError, DamageError, ResourceError: As :func:`open_tar`.
    """
    url = f"{mirror.url}/{path.name}"
    if tar_bytes > mirror.cache_bytes:
        allowed = f"{CACHE_OPTION}-gb {mirror.cache_bytes / 1e9:g}"
        raise InputError(f"{url}: has {tar_bytes} bytes, more than {allowed} holds. Give at least {gigabytes(tar_bytes)}.")
    with fetching(path.parent, stop):
        there = _open_if_there(path, tar_bytes)  # under the lock nobody removes it
        if there is not None:
            return there
        with disk_errors(path, CACHE_OPTION):
            path.unlink(missing_ok=True)
            make_room(path.parent, mirror.cache_bytes - tar_bytes, keep)
        with committed(path, CACHE_OPTION) as temporary:
            found = download(url, temporary, at_most=tar_bytes, whole=True, stop=stop)
            if found != tar_sha256:
                raise DamageError(
                    f"{url}: damaged: its SHA-256 is {found}, its sidecar says {tar_sha256}. If the dataset there has just been changed, run the "
                    "same command again. If not, check the original with: python cli.py verify, and upload this tar again."
                )
        return path.open("rb")


@contextlib.contextmanager
def fetching(folder: Path, stop: threading.Event | None = None) -> Iterator[None]:
    """Hold a mirror's lock, waiting for it, and clear away what killed processes left. The file of the lock stays.

    Raises:
        Stopped: ``stop`` was set while waiting.
        ResourceError: The folder may not be written.
    """
    with disk_errors(folder, CACHE_OPTION):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".fetch.lock")
        while not lock.is_locked:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=-1 if stop is None else 0.2)
            if stop is not None and stop.is_set():
                lock.release()
                raise Stopped
    try:
        with disk_errors(folder, CACHE_OPTION):
            for left in folder.glob(".*.tmp"):
                left.unlink()
        yield
    finally:
        lock.release()


def make_room(folder: Path, room: int, keep: Collection[str] = ()) -> None:
    """Remove tars, the least recently used first and those of ``keep`` last, until the others have ``room`` bytes at most."""
    tars = [(tar.name in keep, found.st_mtime, found.st_size, tar) for tar in folder.glob("*.tar") for found in [tar.stat()]]
    held = sum(size for _, _, size, _ in tars)
    for _, _, size, tar in sorted(tars):
        if held <= room:
            return
        tar.unlink()
        held -= size


def download(url: str, target: Path, *, at_most: int, whole: bool = False, stop: threading.Event | None = None) -> str:
    """Fetch a file in chunks, from its start again where the connection breaks.

    Args:
        target: Written over. At most ``at_most`` bytes are ever written, whatever comes.
        whole: ``at_most`` is just what has to come; less is a broken connection too.

    Returns:
        The SHA-256 of its bytes.

    Raises:
        Stopped: ``stop`` was set.
        InputError: Not found there, or a package is missing.
        DamageError: More comes than ``at_most``.
        ResourceError: Not allowed, or the connection broke each time.
    """
    for attempt in range(len(BACKOFF_SECONDS) + 1):
        if attempt:
            (stop or threading.Event()).wait(BACKOFF_SECONDS[attempt - 1])
        try:
            return _download_once(url, target, at_most, whole, stop)
        except _BrokenError as error:
            broken = error
    raise ResourceError(
        f"{url}: could not be fetched in {len(BACKOFF_SECONDS) + 1} attempts ({broken}). Check the network and the credentials. {AGAIN}"
    )


def _download_once(url: str, target: Path, at_most: int, whole: bool, stop: threading.Event | None) -> str:
    sha256, size = hashlib.sha256(), 0
    with target.open("wb") as file, contextlib.closing(_chunks(url)) as chunks:
        for chunk in chunks:
            size += len(chunk)
            if size > at_most:
                listed = " that its sidecar lists" if whole else ""
                raise DamageError(f"{url}: sends more than the {at_most} bytes{listed}. Check the original with: python cli.py verify.")
            file.write(chunk)
            sha256.update(chunk)
            if stop is not None and stop.is_set():
                raise Stopped
    if whole and size < at_most:
        raise _BrokenError(f"it ended after {size} of {at_most} bytes")
    return sha256.hexdigest()


def _chunks(url: str) -> Generator[bytes, None, None]:
    """The bytes of a file. A foreign file system's errors become ours here, before anybody can take them for the disk's."""
    system, options = _file_system(urlsplit(url).scheme, os.getpid())
    try:
        with system.open(url, "rb", **options) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except FileNotFoundError:
        raise InputError(f"{url}: there is no such file. Check the URL: all that the shard command has made should be there.") from None
    except Exception as error:  # each file system has its own
        status = getattr(error, "status", None)
        if isinstance(error, PermissionError) or status in (401, 403):
            raise ResourceError(f"{url}: not allowed ({error}). Check the credentials.") from None
        raise _BrokenError(f"{type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=8)
def _file_system(protocol: str, process: int) -> tuple[Any, dict[str, Any]]:  # noqa: ARG001 - fsspec's file systems do not outlive a fork
    """The file system of a protocol, and the options with which it reads a file from start to end.

    Raises:
        InputError: fsspec does not know the protocol, or the package for it is missing.
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
        return fsspec.filesystem(protocol, skip_instance_cache=True, **options), reading
    except ImportError as error:
        remedy = "pip install '.[remote]'" if protocol in SERVED else "pip install, and the name of that package"
        raise InputError(f"{protocol}://: a package is missing ({error}). Install it with: {remedy}") from None
    except ValueError as error:
        raise InputError(f"{protocol}://: {error}. Shards can be read from {', '.join(SERVED)}.") from None


def gigabytes(count: int) -> str:
    """Bytes as a number of gigabytes that is not smaller: three decimals, as ``--shard-cache-gb`` takes it.

    >>> gigabytes(1_234_567_890)
    '1.235'
    """
    return f"{-(-count // 10**6) / 1000:.3f}"
