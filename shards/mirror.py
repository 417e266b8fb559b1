"""One tar of a remote dataset made local: fetched whole, checked against its sidecar on the way, kept within a bound of bytes.

A mirror is a dataset folder whose ``remote.json`` says where its tars come from. One lock for each mirror lets one tar come at a
time: so each comes once, however many processes wait for it, and the bound holds at every moment. What this trades is the second
connection, which might be faster. Temporary files that are met under the lock were left by a process that was killed.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from shards.atomic import committed, disk_errors, read_own_json
from shards.errors import DamageError, InputError
from shards.fetch import Stopped, download

FORMAT_VERSION = 1
MIRROR_FILE = "remote.json"
CACHE_OPTION = "--shard-cache"
ADVICE = "Check the URL: all that the shard command has made should be there, as verify finds it whole."
DEFAULT_CACHE_BYTES = 50 * 10**9
# A tar's time of use is written at most this often, so that opening one costs nothing.
TOUCH_SECONDS = 5.0


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


def open_records(path: Path, mirror: Mirror, *, records_bytes: int, records_sha256: str) -> BinaryIO:
    """Open the records beside a mirror's tar, fetching them first where they are not there.

    Raises:
        InputError, DamageError, ResourceError: As :func:`open_tar`.
    """
    there = _open_if_there(path, records_bytes)
    return there if there is not None else _fetch(path, mirror, size=records_bytes, sha256=records_sha256)


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
    return _fetch(
        path, mirror, size=tar_bytes, sha256=tar_sha256, stop=stop, room=lambda: make_room(path.parent, mirror.cache_bytes - tar_bytes, keep)
    )


def _fetch(
    path: Path, mirror: Mirror, *, size: int, sha256: str, stop: threading.Event | None = None, room: Callable[[], None] = lambda: None
) -> BinaryIO:
    """Fetch a file of a mirror into its place, unless somebody else has done so meanwhile, and open it; ``room`` is made before."""
    url = f"{mirror.url}/{path.name}"
    with fetching(path.parent, stop):
        there = _open_if_there(path, size)  # under the lock nobody removes it
        if there is not None:
            return there
        with disk_errors(path, CACHE_OPTION):
            path.unlink(missing_ok=True)
            room()
        with committed(path, CACHE_OPTION) as temporary:
            found = download(url, temporary, at_most=size, whole=True, stop=stop, advice=ADVICE)
            if found != sha256:
                raise DamageError(
                    f"{url}: damaged: its SHA-256 is {found}, its sidecar says {sha256}. If the dataset there has just been changed, run the "
                    "same command again. If not, check the original with: python cli.py verify, and upload this file again."
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


def gigabytes(count: int) -> str:
    """Bytes as a number of gigabytes that is not smaller: three decimals, as ``--shard-cache-gb`` takes it.

    >>> gigabytes(1_234_567_890)
    '1.235'
    """
    return f"{-(-count // 10**6) / 1000:.3f}"
