"""Untrusted ZIP archives -> files below a folder, and nowhere else.

The complete list of members is checked before anything is written. Each file is written under a temporary name and renamed, so that a killed
process loses one file at most. A file that exists with the size and the CRC-32 that the archive lists is kept. Files are not flushed to the
disk one by one, which would take longer than everything else: after a power cut, run the same command again.
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

from shards.atomic import check_output_file, disk_errors, temporary_path
from shards.errors import DamageError
from shards.fetch import FetchCancelledError
from shards.paths import is_inside

CHUNK_BYTES = 1 << 20
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# macOS stores its own metadata here, which is not part of the data
MACOS_FOLDER = "__MACOSX/"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveMember:
    """A file of an archive: its name relative to the folder, its size in bytes unpacked, and its CRC-32."""

    name: str
    size: int
    crc32: int


def list_members(archive: Path, *, at_most_bytes: int, at_most_members: int) -> tuple[ArchiveMember, ...]:
    """The files that an archive lists, all of which are safe to write below a folder.

    Args:
        archive: The archive.
        at_most_bytes: The limit for all files together, unpacked.
        at_most_members: The limit for their number.

    Raises:
        DamageError: It is not a ZIP archive, or lists something suspicious: a name that leads out of the folder, a link, a file twice, too many
            files or bytes, a password. Names the archive and the member.
    """
    advice = "Nothing was unpacked. Delete it and download it again from its publisher"
    try:
        with zipfile.ZipFile(archive) as file:
            infos = [info for info in file.infolist() if not info.filename.startswith(MACOS_FOLDER)]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:  # ZipFile reads the list only
        raise DamageError(f"{archive}: not a complete ZIP archive ({error}). {advice}.") from None
    seen: set[str] = set()
    for info in infos:
        problem = _problem(info, seen)
        if problem is not None:
            raise DamageError(f"{archive}: the member {info.orig_filename!r} {problem}. {advice}.")
    members = tuple(ArchiveMember(name=info.filename, size=info.file_size, crc32=info.CRC) for info in infos if not info.is_dir())
    total = sum(member.size for member in members)
    if len(members) > at_most_members or total > at_most_bytes:
        allowed = f"{at_most_members:,} and {at_most_bytes:,}"
        raise DamageError(f"{archive}: lists {len(members):,} files with {total:,} bytes unpacked, more than its limits ({allowed}). {advice}.")
    return members


def _problem(info: zipfile.ZipInfo, seen: set[str]) -> str | None:
    """What is wrong with a member, if anything is; adds its name to ``seen``."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.filename != info.orig_filename or "\\" in info.filename or not is_inside(info.filename) or not info.filename.strip("./"):
        return "leads out of the folder, or is not a plain name"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in COMPRESSIONS:
        return f"is compressed with an unsupported method ({info.compress_type})"
    if info.filename in seen:
        return "is listed twice"
    seen.add(info.filename)
    return None


def unzip(
    archive: Path,
    members: Sequence[ArchiveMember],
    into: Path,
    *,
    setting: str = "root",
    done: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> int:
    """Write the members of an archive that are missing or incomplete.

    Args:
        archive: The archive.
        members: The members, as :func:`list_members` returned them.
        into: The folder; it is created.
        setting: The setting that chooses the folder, for messages.
        done: Called with 1 after each file, kept or written.
        stop: Set to stop before the next file.

    Returns:
        How many files were written.

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
            if not is_complete(into, member):
                _write(file, archive, member, into / member.name, setting)
                written += 1
            done(1)
    return written


def _write(file: zipfile.ZipFile, archive: Path, member: ArchiveMember, target: Path, setting: str) -> None:
    check_output_file(target, setting)
    temporary = temporary_path(target)
    with disk_errors(target, setting):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # ZipFile reads no more bytes than a member lists. If it holds more, the CRC-32 does not match.
            with temporary.open("wb") as out:
                _copy(file, archive, member, out)
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def _copy(file: zipfile.ZipFile, archive: Path, member: ArchiveMember, out: IO[bytes]) -> None:
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
        raise _damaged(archive, member, f"{size} bytes, but {member.size} are listed")


def _damaged(archive: Path, member: ArchiveMember, problem: object) -> DamageError:
    return DamageError(f"{archive}: the member {member.name!r} is damaged ({problem}). Delete the archive and run the same command again.")


def is_complete(into: Path, member: ArchiveMember) -> bool:
    """Whether a member exists below a folder, with its size and CRC-32."""
    try:
        with (into / member.name).open("rb") as file:
            if file.seek(0, 2) != member.size:
                return False
            file.seek(0)
            crc = 0
            while chunk := file.read(CHUNK_BYTES):
                crc = zlib.crc32(chunk, crc)
    except OSError:  # missing, not a file, or not readable: writing it will report the problem
        return False
    return crc == member.crc32


def bytes_present(into: Path, members: Iterable[ArchiveMember]) -> int:
    """The bytes of the members that exist below a folder with their size; they are not read."""
    return sum(member.size for member in members if _size(into / member.name) == member.size)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
