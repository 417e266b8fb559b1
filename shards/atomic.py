"""Committed writes: a file under its final name is always complete.

A writer fills ``.NAME.tmp`` next to the target. The file is then flushed to disk and renamed. Temporary names are fixed, so a run after
a crash overwrites what the crash left. :func:`hold_lock` keeps two writers apart.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from shards.errors import OccupiedError, ResourceError


def temporary_path(path: Path) -> Path:
    """Where a file that will be committed as ``path`` is written first."""
    return path.with_name(f".{path.name}.tmp")


@contextlib.contextmanager
def disk_errors(path: Path, setting: str = "out") -> Iterator[None]:
    """Turn errors of the operating system into a :class:`ResourceError` that names ``path`` and the next step.

    Args:
        path: The file or folder that is written.
        setting: The setting that chooses the place, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message = f"{path}: no space left ({error.strerror}). Free some or choose another `{setting}`, then run again: finished parts are kept."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = f"{path}: not allowed ({error.strerror}). Choose a folder that you may write to."
        elif error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            message = f"{path}: cannot be written, something else is in the way ({error.strerror}). Choose another `{setting}`."
        else:
            raise
        raise ResourceError(message) from error


@contextlib.contextmanager
def committed(path: Path, setting: str = "out") -> Iterator[Path]:
    """Yield a temporary path next to ``path``. On a clean exit, fsync and rename it; on an error, remove it.

    Args:
        path: The final name. Its folder is created if it is missing.
        setting: The setting that chooses the folder, for messages.

    Raises:
        ResourceError: The disk is full or the folder is not writable.
    """
    temporary = temporary_path(path)
    with disk_errors(path, setting):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def committed_file(path: Path, setting: str = "out") -> Iterator[IO[bytes]]:
    """Like :func:`committed`, but yield the temporary file, open for binary writing."""
    with committed(path, setting) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable, on systems that can open a folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def hold_lock(folder: Path, name: str, activity: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock ``.NAME.lock`` in ``folder``. The operating system releases it when the process dies.

    Args:
        folder: Created if it is missing.
        name: What the lock protects.
        activity: What this process does, for messages ("writing split 'train'").
        wait_seconds: How long to wait for another process.

    Raises:
        OccupiedError: Another process holds the lock.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock_path = folder / f".{name}.lock"
        lock = FileLock(lock_path, timeout=wait_seconds)
        try:
            lock.acquire()
        except Timeout:
            raise OccupiedError(f"{folder}: another process is {activity} here. Wait for it, or choose another folder.") from None
    try:
        yield
    finally:
        # Remove the file before releasing the lock: a process that opened it meanwhile notices that it has no name, and tries again.
        with contextlib.suppress(OSError):
            lock_path.unlink()
        lock.release()
