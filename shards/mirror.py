"""Mirrors: local folders for remote datasets. A tar is fetched whole, checked against its sidecar, and kept within a bound of bytes.

A mirror is a dataset folder whose ``remote.json`` says where its tars come from. One lock per mirror allows one download at a time: each
tar is fetched once, however many processes wait for it, and the bound always holds. The cost is a second connection, which might be
faster. Temporary files that exist while this process holds the lock were left by a process that was killed.
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

from shards.atomic import committed, disk_errors
from shards.errors import DamageError, InputError
from shards.fetch import FetchCancelledError, download
from shards.json_files import read_versioned_json
from shards.layout import MIRROR_FILE

FORMAT_VERSION = 1
CACHE_SETTING = "shard_cache"
CACHE_SIZE_SETTING = "shard_cache_gb"
ADVICE = "Check the URL: it should hold all files that the shard command made, undamaged by the check of the verify command."
DEFAULT_CACHE_BYTES = 50 * 10**9
# The time of a tar's last use is updated at most this often, so that opening a tar costs nothing.
TOUCH_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """Where a mirror's tars come from, and how many bytes of them it may hold. Small: it travels with every shard."""

    url: str
    cache_bytes: int


def default_cache() -> Path:
    """The default folder of mirrors: ``$XDG_CACHE_HOME/capstream``, or ``~/.cache/capstream``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "capstream"


def read_mirror(folder: Path) -> Mirror | None:
    """Read ``remote.json``; None if the folder is not a mirror.

    Raises:
        DamageError, MismatchError: The file is damaged, or has another format version.
    """
    path = folder / MIRROR_FILE
    if not path.is_file():
        return None
    repair = "Delete its folder: everything in it is fetched again."
    content = read_versioned_json(path, what="mirror file", format_version=FORMAT_VERSION, repair=repair)
    url, cache_bytes = content.get("url"), content.get("cache_bytes")
    if not isinstance(url, str) or not isinstance(cache_bytes, int):
        raise DamageError(f"{path}: damaged (url {url!r}, cache_bytes {cache_bytes!r}). {repair}")
    return Mirror(url=url, cache_bytes=cache_bytes)


def open_tar(path: Path, mirror: Mirror, *, tar_bytes: int, tar_sha256: str) -> BinaryIO:
    """Open a mirror's tar; fetch it first if needed.

    Raises:
        InputError: It is missing at the URL, or larger than the mirror's bound.
        DamageError: Its bytes are not those that the sidecar lists.
        ResourceError: The connection broke in every attempt, access denied, disk full.
    """
    file = _open_complete(path, tar_bytes)
    return file if file is not None else fetch_tar(path, mirror, tar_bytes=tar_bytes, tar_sha256=tar_sha256)


def open_records(path: Path, mirror: Mirror, *, records_bytes: int, records_sha256: str) -> BinaryIO:
    """Open the records file of a mirror's tar; fetch it first if needed.

    Raises:
        InputError, DamageError, ResourceError: As :func:`open_tar`.
    """
    file = _open_complete(path, records_bytes)
    return file if file is not None else _fetch(path, mirror, size=records_bytes, sha256=records_sha256)


def mark_used(path: Path, tar_bytes: int) -> bool:
    """Whether the complete tar is in the mirror; if so, it counts as just used."""
    file = _open_complete(path, tar_bytes)
    if file is not None:
        file.close()
    return file is not None


def _open_complete(path: Path, size: int) -> BinaryIO | None:
    """Open a file if it exists with this size."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    found = os.fstat(file.fileno())
    if found.st_size != size:
        file.close()
        return None
    if time.time() - found.st_mtime > TOUCH_SECONDS:
        # It may have been removed meanwhile, which does not affect those that have it open; or it belongs to another user.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.utime(path)
    return file


def fetch_tar(
    path: Path, mirror: Mirror, *, tar_bytes: int, tar_sha256: str, keep: Collection[str] = (), stop: threading.Event | None = None
) -> BinaryIO:
    """Fetch a tar, unless another process has done so meanwhile, and open it.

    Args:
        path: Its place in the mirror.
        mirror: The mirror.
        tar_bytes: Its size.
        tar_sha256: Its SHA-256.
        keep: Names of the tars to remove last when space is needed.
        stop: Once set, the fetch is given up.

    Raises:
        FetchCancelledError: ``stop`` was set.
        InputError, DamageError, ResourceError: As :func:`open_tar`.
    """
    url = f"{mirror.url}/{path.name}"
    if tar_bytes > mirror.cache_bytes:
        raise InputError(
            f"{url}: has {tar_bytes} bytes, more than `{CACHE_SIZE_SETTING}` {mirror.cache_bytes / 1e9:g} allows. "
            f"Give at least {gigabytes(tar_bytes)}."
        )

    def free_space() -> None:
        evict_tars(path.parent, mirror.cache_bytes - tar_bytes, keep)

    return _fetch(path, mirror, size=tar_bytes, sha256=tar_sha256, stop=stop, free_space=free_space)


def _fetch(
    path: Path, mirror: Mirror, *, size: int, sha256: str, stop: threading.Event | None = None, free_space: Callable[[], None] = lambda: None
) -> BinaryIO:
    """Fetch a file of a mirror, unless another process has done so meanwhile, and open it; call ``free_space`` before the download."""
    url = f"{mirror.url}/{path.name}"
    with mirror_lock(path.parent, stop):
        file = _open_complete(path, size)  # no process removes it while this one holds the lock
        if file is not None:
            return file
        with disk_errors(path, CACHE_SETTING):
            path.unlink(missing_ok=True)
            free_space()
        with committed(path, CACHE_SETTING) as temporary:
            found = download(url, temporary, max_bytes=size, exact=True, stop=stop, advice=ADVICE)
            if found != sha256:
                raise DamageError(
                    f"{url}: damaged: its SHA-256 is {found}, but its sidecar lists {sha256}. If the remote dataset has just changed, run the "
                    "same command again. If not, check the original with: python cli.py verify, and upload this file again."
                )
        return path.open("rb")


@contextlib.contextmanager
def mirror_lock(folder: Path, stop: threading.Event | None = None) -> Iterator[None]:
    """Wait for a mirror's lock and hold it; remove temporary files of killed processes. The lock's file stays.

    Raises:
        FetchCancelledError: ``stop`` was set while waiting.
        ResourceError: The folder is not writable.
    """
    with disk_errors(folder, CACHE_SETTING):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".fetch.lock")
        while not lock.is_locked:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=-1 if stop is None else 0.2)
            if stop is not None and stop.is_set():
                lock.release()
                raise FetchCancelledError
    try:
        with disk_errors(folder, CACHE_SETTING):
            for temporary in folder.glob(".*.tmp"):
                temporary.unlink()
        yield
    finally:
        lock.release()


def evict_tars(folder: Path, max_bytes: int, keep: Collection[str] = ()) -> None:
    """Remove tars until the others have at most ``max_bytes`` bytes: the least recently used first, those of ``keep`` last."""
    tars = [(tar.name in keep, found.st_mtime, found.st_size, tar) for tar in folder.glob("*.tar") for found in [tar.stat()]]
    held = sum(size for _, _, size, _ in tars)
    for _, _, size, tar in sorted(tars):
        if held <= max_bytes:
            return
        tar.unlink()
        held -= size


def gigabytes(count: int) -> str:
    """Bytes in gigabytes, rounded up to three decimals, as the setting ``shard_cache_gb`` takes them.

    >>> gigabytes(1_234_567_890)
    '1.235'
    """
    return f"{-(-count // 10**6) / 1000:.3f}"
