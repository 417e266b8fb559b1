"""Committed writes: a file under its final name is complete, always.

A writer fills ``.NAME.tmp`` beside the target, which is flushed to the disk and renamed. Temporary names are fixed, so that
a run after a crash overwrites what the crash left; who may write is settled by :func:`exclusive`.
"""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from shards.errors import CapstreamError, DamageError, InputError, MismatchError, OccupiedError, ResourceError

MAX_JSON_BYTES = 2 << 30


def temporary_path(path: Path) -> Path:
    """Where a file that will be committed as ``path`` is written first."""
    return path.with_name(f".{path.name}.tmp")


@contextlib.contextmanager
def disk_errors(path: Path, option: str = "--out") -> Iterator[None]:
    """Turn the operating system's refusals into a :class:`ResourceError` that names ``path`` and the next step: another ``option``, say."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message = f"{path}: no space left ({error.strerror}). Free some or choose another {option}, then run again: finished parts are kept."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = f"{path}: not allowed ({error.strerror}). Choose a folder that you may write to."
        elif error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            message = f"{path}: cannot be written, something else is in the way ({error.strerror}). Choose another {option}."
        else:
            raise
        raise ResourceError(message) from error


@contextlib.contextmanager
def committed(path: Path, option: str = "--out") -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on a clean exit fsync and rename it, on an error remove it.

    Args:
        path: The final name. Its folder is made if it is missing.
        option: Of the command line: what chooses the folder.

    Raises:
        ResourceError: The disk is full or the folder may not be written.
    """
    temporary = temporary_path(path)
    with disk_errors(path, option):
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
def committed_file(path: Path, option: str = "--out") -> Iterator[IO[bytes]]:
    """Like :func:`committed`, yielding the temporary file open for binary writing."""
    with committed(path, option) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable, on systems where a folder can be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def exclusive(folder: Path, name: str, doing: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the one writer's place for ``name`` in ``folder``; the operating system frees it when a process dies.

    Args:
        patience: So many seconds are waited for another process.

    Raises:
        OccupiedError: Another process holds it.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock_path = folder / f".{name}.lock"
        lock = FileLock(lock_path, timeout=patience)
        try:
            lock.acquire()
        except Timeout:
            raise OccupiedError(f"{folder}: another process is {doing} here. Wait for it, or choose another folder.") from None
    try:
        yield
    finally:
        # While it is still held: who opened the file meanwhile then finds that the lock guards no name, and tries again.
        with contextlib.suppress(OSError):
            lock_path.unlink()
        lock.release()


def json_bytes(content: Any) -> bytes:
    """JSON as files hold it: UTF-8, an indent of one space. Keys keep their order."""
    return (json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode("utf-8", "surrogatepass")


def write_json(path: Path, content: Any) -> None:
    """Commit ``content`` as JSON under ``path``."""
    with committed_file(path) as file:
        file.write(json_bytes(content))


def read_json(path: Path, *, what: str, error: type[CapstreamError] = InputError, repair: str = "") -> Any:
    """Read a JSON file, whatever it holds.

    Args:
        path: The file.
        what: What the file should be, for messages ("COCO caption file").
        error: Raised for content that is not JSON: :class:`InputError` for users' files, :class:`DamageError` for ours.
        repair: The next step, for the message about such content.

    Raises:
        InputError: The file is missing, unreadable or larger than ``MAX_JSON_BYTES``.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes is more than a {what} may have ({MAX_JSON_BYTES}).")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (expected a {what}).") from None
    except OSError as problem:
        raise InputError(f"{path}: cannot be read as a {what}: {problem.strerror}.") from None
    except UnicodeDecodeError as problem:
        line = problem.object[: problem.start].count(b"\n") + 1
        raise error(f"{path}: not a {what}: line {line} is not UTF-8 ({problem.reason}). {repair}".rstrip()) from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: not a {what}: it is not valid JSON ({problem}). {repair}".rstrip()) from None


def digest(content: Any) -> str:
    """SHA-256 (hex) over ``content`` as compact JSON, UTF-8, keys in their order."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_own_json(path: Path, *, what: str, format_version: int, repair: str = "") -> dict[str, Any]:
    """Read a JSON object that Capstream wrote and check its ``format_version``; ``repair`` says what to do about a damaged one.

    Raises:
        InputError: The file is missing.
        DamageError: It is not a JSON object.
        MismatchError: It was written in another format version.
    """
    content = read_json(path, what=what, error=DamageError, repair=repair)
    if not isinstance(content, dict):
        raise DamageError(f"{path}: not a {what}: a JSON object was expected, found {type(content).__name__}. {repair}".rstrip())
    found = content.get("format_version")
    if found != format_version:
        raise MismatchError(
            f"{path}: format version {found!r}; of a {what} this program reads {format_version}. Make it again with this version, "
            "or give another file if this never was one."
        )
    return content
