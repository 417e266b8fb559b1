"""The files in a tar that another program wrote: where their bytes are, found without unpacking or trusting anything.

Links within the tar lead to the file that they name, sparse files are put together, and tars that were joined end to end are read to the last.
"""

import itertools
import posixpath
import tarfile
from dataclasses import dataclass, field, replace
from typing import IO, cast

from pipeline.images.decode import ImageError

MAX_MEMBERS = 300_000
# For a header with all its extensions
MAX_HEADER_BYTES = 1 << 16
MAX_LINKS = 16
_ZEROS = bytes(1 << 16)
Segments = tuple[tuple[int, int], ...]


class TarError(Exception):
    """A tar that cannot be used at all."""


@dataclass(frozen=True, kw_only=True)
class TarMember:
    """A file in a tar.

    Attributes:
        offset, size: Where its bytes begin in the tar, and how many it has.
        segments: Of a sparse file with holes, whose bytes are not all in the tar: (offset in the file, size) of each part that is.
        link: The name of the member that it is a link to.
        is_file: Whether it is a file or a link; not a device, for example.
    """

    name: str
    offset: int
    size: int
    segments: Segments | None = None
    link: str | None = None
    is_file: bool = True


@dataclass(kw_only=True)
class TarContents:
    """The members of a tar in order, and what is wrong with the bytes after its last one, if anything is."""

    members: list[TarMember] = field(default_factory=list)
    trailing: str | None = None

    def follow(self, member: TarMember) -> TarMember:
        """The file that a member is, or that it is a link to.

        Raises:
            ImageError: It is something else, or its link leads nowhere or out of the tar.
        """
        found = member
        for _ in range(MAX_LINKS):
            if not found.is_file:
                raise ImageError("unreadable_file", f"{member.name}: is neither a file nor a link")
            if found.link is None:
                return replace(found, name=member.name)
            target = self._by_name.get(posixpath.normpath(found.link))
            if target is None:
                raise ImageError("missing_file", f"{member.name}: is a link to {found.link}, which is not in the tar")
            found = target
        raise ImageError("missing_file", f"{member.name}: its links lead to each other")

    def __post_init__(self) -> None:
        self._by_name: dict[str, TarMember] = {}

    def add(self, member: TarMember) -> None:
        """Append a member. A link to a name that occurs several times leads to the first one."""
        self.members.append(member)
        self._by_name.setdefault(posixpath.normpath(member.name), member)


class _HeaderReader:
    """A tar for the standard library's reader, which reads headers from it and no content. ``left`` limits the bytes of one header."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.left = MAX_HEADER_BYTES
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise TarError(f"a header of more than {MAX_HEADER_BYTES} bytes")
        return self._file.read(size)


def read_members(file: IO[bytes]) -> TarContents:
    """Read all headers of a tar that is complete up to its end mark, and of those that follow it. Folders are left out.

    Raises:
        TarError: It is not a complete tar without compression, or exceeds a limit.
    """
    size = file.seek(0, 2)
    contents = TarContents()
    start: int | None = 0
    while start is not None:
        before, end = len(contents.members), start
        try:
            end = _read_archive(file, start, size, contents)
            file.seek(end)
            has_end = file.read(tarfile.BLOCKSIZE) == _ZEROS[: tarfile.BLOCKSIZE]
            problem = f"has no end mark at byte {end}: it is truncated, or damaged there"
        except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
            has_end, problem = False, f"not a complete tar without compression ({error})"
        if not has_end:
            if not start or len(contents.members) > before:
                raise TarError(problem)
            contents.trailing = f"the {size - start} bytes from byte {start} on, after its end mark, are not a tar"
            break
        start = _next_block(file, end, size)
    return contents


def _read_archive(file: IO[bytes], start: int, size: int, contents: TarContents) -> int:
    """Add the members of the archive at ``start``; returns where it ends."""
    file.seek(start)
    reader, last = _HeaderReader(file), -1
    with tarfile.open(fileobj=reader, mode="r:") as tar:  # type: ignore[call-overload]
        for member in tar:
            if len(contents.members) >= MAX_MEMBERS:
                raise TarError(f"more than {MAX_MEMBERS} members")
            has_content = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
            stored = member.size if has_content else 0
            if member.sparse is not None:
                stored = sum(length for _, length in cast("Segments", member.sparse))
            if not (last < member.offset and 0 <= stored <= size - member.offset_data and member.size >= 0):
                raise TarError(f"{member.name!r:.100} does not lie inside the file")
            last, reader.left = member.offset, MAX_HEADER_BYTES
            if not member.isdir():
                contents.add(_tar_member(member))
        return int(tar.offset)


def _tar_member(member: tarfile.TarInfo) -> TarMember:
    link = None
    if member.islnk():
        link = member.linkname
    elif member.issym():
        link = posixpath.join(posixpath.dirname(member.name), member.linkname)
    is_file = member.isreg() or link is not None
    segments = _segments(member) if member.isreg() and member.sparse is not None else None
    return TarMember(name=member.name, offset=member.offset_data, size=member.size, segments=segments, link=link, is_file=is_file)


def _segments(member: tarfile.TarInfo) -> Segments | None:
    """The parts of a sparse file that the tar has; None if they are the whole file."""
    parts = tuple((offset, length) for offset, length in cast("Segments", member.sparse) if length)
    ends = [0, *(offset + length for offset, length in parts)]
    if any(offset < end or length < 0 for (offset, length), end in zip(parts, ends, strict=False)) or ends[-1] > member.size:
        raise TarError(f"{member.name!r:.100} has an impossible map of its holes")
    return None if parts == ((0, member.size),) or not member.size else parts


def _next_block(file: IO[bytes], start: int, size: int) -> int | None:
    """The first block at or after ``start`` that is not all zeros: where another tar begins; None if there is none."""
    file.seek(start)
    for place in itertools.count(start, len(_ZEROS)):
        chunk = file.read(len(_ZEROS))
        if not chunk or place >= size:
            return None
        if chunk != _ZEROS[: len(chunk)]:
            first = next(number for number, byte in enumerate(chunk) if byte)
            return place + first // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    raise AssertionError("unreachable")


def read_member_bytes(file: IO[bytes], member: TarMember, at_most: int) -> bytes:
    """The bytes of a file, with the holes of a sparse one filled with zeros.

    Raises:
        ImageError: It is larger than ``at_most``.
    """
    if member.size > at_most:
        raise ImageError("too_large", f"{member.name}: {member.size} bytes, more than the limit of {at_most}")
    file.seek(member.offset)
    if member.segments is None:
        return file.read(member.size)
    content = bytearray(member.size)
    for offset, length in member.segments:
        content[offset : offset + length] = file.read(length)
    return bytes(content)
