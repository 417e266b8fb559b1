"""ZIP archives from strangers -> files below a folder, and nowhere else.

The whole list of members is judged before anything is written. Each file is written under a temporary name and renamed, so that a killed
process costs one file; what is there already with the size and the CRC-32 that the archive lists is kept. What this trades away: single
files are not flushed to the disk one by one, which would take longer than all the rest; a power cut is met by running again.
"""

import contextlib
import stat
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shards.atomic import disk_errors, temporary_path
from shards.errors import DamageError
from shards.fetch import FetchCancelledError
from shards.paths import is_inside

CHUNK_BYTES = 1 << 20
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Finder's copies of what a Mac's file system holds beside a file: no part of the data.
APPLES_OWN = "__MACOSX/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A file of an archive: its name relative to the folder, its size in bytes, the CRC-32 of these."""

    name: str
    size: int
    crc32: int


def zip_members(archive: Path, *, at_most_bytes: int, at_most_members: int) -> tuple[Member, ...]:
    """The files that an archive lists, all of which may be written below a folder.

    Args:
        at_most_bytes: What they may have together, unpacked.
        at_most_members: How many there may be.

    Raises:
        DamageError: It is no ZIP archive, or lists something that no honest one does: a name that leads out of the folder, a link, a file twice,
            too many files or bytes, a password; names the archive and the member.
    """
    advice = "Nothing was unpacked. Delete it and get it anew, from its publisher"
    try:
        with zipfile.ZipFile(archive) as file:
            infos = [info for info in file.infolist() if not info.filename.startswith(APPLES_OWN)]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:  # a ZipFile reads the list alone
        raise DamageError(f"{archive}: not a whole ZIP archive ({error}). {advice}.") from None
    seen: set[str] = set()
    for info in infos:
        problem = _problem(info, seen)
        if problem is not None:
            raise DamageError(f"{archive}: the member {info.orig_filename!r} {problem}. {advice}.")
    members = tuple(Member(name=info.filename, size=info.file_size, crc32=info.CRC) for info in infos if not info.is_dir())
    total = sum(member.size for member in members)
    if len(members) > at_most_members or total > at_most_bytes:
        allowed = f"{at_most_members:,} and {at_most_bytes:,}"
        raise DamageError(f"{archive}: lists {len(members):,} files with {total:,} bytes unpacked, more than its kind has ({allowed}). {advice}.")
    return members


def _problem(info: zipfile.ZipInfo, seen: set[str]) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.filename != info.orig_filename or "\\" in info.filename or not is_inside(info.filename) or not info.filename.strip("./"):
        return "leads out of the folder, or is no plain name"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in COMPRESSIONS:
        return f"is compressed in a way that is not read (method {info.compress_type})"
    if info.filename in seen:
        return "is there twice"
    seen.add(info.filename)
    return None


def unzip(
    archive: Path,
    members: Sequence[Member],
    into: Path,
    *,
    setting: str = "root",
    done: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> int:
    """Write those of an archive's members that are not there whole.

    Args:
        members: As :func:`zip_members` gave them.
        into: The folder; it is made.
        setting: The setting that chooses the folder, for messages.
        done: Told after each file, kept or written, that there is one more.

    Returns:
        How many were written.

    Raises:
        FetchCancelledError: ``stop`` was set.
        DamageError: A member's bytes are not what the archive lists; it is not written.
        ResourceError: Disk full, not allowed.
    """
    written = 0
    with zipfile.ZipFile(archive) as file:
        for member in members:
            if stop is not None and stop.is_set():
                raise FetchCancelledError
            if not is_whole(into, member):
                _write(file, archive, member, into / member.name, setting)
                written += 1
            done(1)
    return written


def _write(file: zipfile.ZipFile, archive: Path, member: Member, target: Path, setting: str) -> None:
    temporary = temporary_path(target)
    with disk_errors(target, setting):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Of a member that has more bytes than it lists, a ZipFile reads no more than those: they fail their CRC-32.
            with temporary.open("wb") as out:
                _copy(file, archive, member, out)
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def _copy(file: zipfile.ZipFile, archive: Path, member: Member, out: IO[bytes]) -> None:
    try:
        source = file.open(member.name)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise _damaged(archive, member, error) from None
    with source:
        size = 0
        while True:
            try:
                chunk = source.read(CHUNK_BYTES)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise _damaged(archive, member, error) from None
            if not chunk:
                break
            size += len(chunk)
            out.write(chunk)
    if size != member.size:
        raise _damaged(archive, member, f"{size} bytes, {member.size} are listed")


def _damaged(archive: Path, member: Member, problem: object) -> DamageError:
    return DamageError(f"{archive}: the member {member.name!r} is damaged ({problem}). Delete the archive and run the same command again.")


def is_whole(into: Path, member: Member) -> bool:
    """Whether a member stands below a folder, with its size and CRC-32."""
    try:
        with (into / member.name).open("rb") as file:
            if file.seek(0, 2) != member.size:
                return False
            file.seek(0)
            crc = 0
            while chunk := file.read(CHUNK_BYTES):
                crc = zlib.crc32(chunk, crc)
    except OSError:  # not there, no file, not readable: whoever writes it meets what is wrong
        return False
    return crc == member.crc32


def bytes_there(into: Path, members: Iterable[Member]) -> int:
    """The bytes of those members that stand below a folder with their size, without reading them."""
    return sum(member.size for member in members if _size(into / member.name) == member.size)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
