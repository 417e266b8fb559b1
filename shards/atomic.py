"""Committed writes: a file under its final name is always complete.

A writer fills ``.NAME.tmp`` next to the target. The file is then flushed to disk and renamed. Temporary names are fixed, so a run after
a crash overwrites what the crash left. While a process writes a file it holds the lock ``.NAME.tmp.lock``; a second writer of the same file waits,
and then replaces it. The lock is a file of its own, because on SMB shares a locked file cannot be written. :func:`hold_lock` keeps two writers of a
folder apart.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from shards.errors import NoSpaceError, OccupiedError, ResourceError

# How long the second writer of a file waits for the first.
WRITER_SECONDS = 600.0
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


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
            advice = f"Free some or choose another `{setting}`, then run again: finished parts are kept."
            raise NoSpaceError(path, error.strerror, advice) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = f"{path}: not allowed ({error.strerror}). Choose a folder that you may write to."
        elif error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            message = f"{path}: cannot be written, something else is in the way ({error.strerror}). Choose another `{setting}`."
        else:
            raise
        raise ResourceError(message) from error


def check_output_file(path: Path, setting: str = "out") -> None:
    """Refuse to write a file where there is something else: a folder, a named pipe, a socket or a device. Renaming a file there would remove it.

    Args:
        path: The file that will be written. It may be missing, or a symbolic link to a file.
        setting: The setting that chooses the place, for the message.

    Raises:
        ResourceError: There is something else; or the place cannot be looked at.
    """
    with disk_errors(path, setting):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in KINDS if is_kind(mode)), "something else")
            raise ResourceError(f"{path}: cannot be written, {kind} is in the way. Choose another `{setting}`.")


@contextlib.contextmanager
def committed(path: Path, setting: str = "out") -> Iterator[Path]:
    """Yield a temporary path next to ``path``. On a clean exit, fsync and rename it; on an error, remove it.

    A symbolic link is followed: its target is written. If another process is writing the same file, wait for it first.

    Args:
        path: The final name. Its folder is created if it is missing.
        setting: The setting that chooses the folder, for messages.

    Raises:
        ResourceError: The disk is full or the folder is not writable, or there is something else than a file.
        OccupiedError: Another process did not finish writing the file within ``WRITER_SECONDS``.
    """
    check_output_file(path, setting)
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = temporary_path(target)
    lock = hold_lock(target.parent, temporary.name[1:], f"writing {target.name}", wait_seconds=WRITER_SECONDS, setting=setting)
    with lock, disk_errors(path, setting):
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


@contextlib.contextmanager
def committed_file(path: Path, setting: str = "out") -> Iterator[IO[bytes]]:
    """Like :func:`committed`, but yield the temporary file, open for binary writing."""
    with committed(path, setting) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()


def remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed while it wrote ``path`` has left, unless another process is writing it now."""
    temporary = temporary_path(path)
    lock = temporary.with_name(f"{temporary.name}.lock")
    if temporary.exists() or lock.exists():
        with contextlib.suppress(OccupiedError), hold_lock(path.parent, temporary.name[1:], f"writing {path.name}"):
            temporary.unlink(missing_ok=True)  # hold_lock() removes the lock


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable, on systems that can open a folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def hold_lock(folder: Path, name: str, activity: str, *, wait_seconds: float = 0.0, setting: str = "out") -> Iterator[None]:
    """Hold the lock ``.NAME.lock`` in ``folder``. The operating system releases it when the process dies.

    Args:
        folder: Created if it is missing.
        name: What the lock protects.
        activity: What this process does, for messages ("writing split 'train'").
        wait_seconds: How long to wait for another process.
        setting: The setting that chooses the folder, for messages.

    Raises:
        OccupiedError: Another process holds the lock.
    """
    with disk_errors(folder, setting):
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
